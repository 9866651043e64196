"""Extending: what a run with all views at once writes, for the price of the new ones; new members exactly, or as bounded."""

import dataclasses
import json
from pathlib import Path

import children
import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from conftest import ALL_OPS, CLASSES, as_cell, colour_image
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from samples import quick
from test_reinforce import MIXING, OnAnotherDevice, files_of, with_bad_row

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError, FingerprintMismatchError, FormatError, ReplayError, TeacherError
from hf_dr.generation import extend as extension
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.extend import ExtendConfig, extend, extend_job
from hf_dr.generation.folder import Part
from hf_dr.generation.job import reinforce
from hf_dr.generation.verify import verify
from hf_dr.hub.push import push_to_hub
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import EXTENDED_FROM, PROVENANCE_FILE
from hf_dr.store.shards import ShardWriter
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.topk import add_members, top_k
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop

REPOSITORY = Path(__file__).parents[2]


def make(folder: Path, dataset: datasets.Dataset, teacher: Teacher, num_views: int, **settings) -> Path:
    augmentation = settings.pop("augmentation", MIXING)
    config = {"config_name": "a", "top_k": 3, "shard_size": 5, "num_workers": 0, **settings}
    reinforce(dataset, teacher, augmentation, ReinforceConfig(str(folder), num_views=num_views, **config))
    return folder


def more(source: Path | ReinforcedDataset, folder: Path, num_views: int, teacher: Teacher, **settings) -> Path:
    extend(source, ExtendConfig(str(folder), num_views=num_views, num_workers=0), teacher=teacher, **settings)
    return folder


def assert_same(first: Path, second: Path) -> None:
    assert files_of(first) == files_of(second)
    assert (first / "a" / PROVENANCE_FILE).read_text() == (second / "a" / PROVENANCE_FILE).read_text()
    assert (first / "README.md").read_text().replace(first.name, second.name) == (second / "README.md").read_text()


class Counting:
    """A teacher that remembers how many views it was asked for in each batch."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self.batches = teacher, []

    def __getattr__(self, name):
        return getattr(self._teacher, name)

    def __call__(self, views_BCHW):
        self.batches.append(len(views_BCHW))
        return self._teacher(views_BCHW)


# ----------------------------------------------------------------------------------------------------------- more views


@pytest.mark.parametrize(
    "settings",
    [
        {"augmentation": ALL_OPS},
        {"mixing_scope": "shard", "signal": "sampled"},
        {"shard_size": 12, "seed": 7, "top_k": 8, "label_column": "none", "max_examples": 11},
    ],
    ids=["all_ops", "shard_sampled", "one_shard"],
)
@pytest.mark.parametrize(("before", "after"), [(1, 8), (6, 8)])
def test_the_result_is_what_a_run_with_all_views_writes(tmp_path, tiny_dataset, tiny_teacher, settings, before, after):
    source = make(tmp_path / "source", tiny_dataset, tiny_teacher, before, **settings)
    whole = make(tmp_path / "whole", tiny_dataset, tiny_teacher, after, **settings)
    assert_same(more(source, tmp_path / "extended", after, tiny_teacher), whole)


def test_the_teacher_sees_the_new_views_only_in_full_batches(tmp_path, tiny_dataset, tiny_teacher):
    source = make(tmp_path / "source", tiny_dataset, tiny_teacher, 5, shard_size=12)
    teacher = Counting(tiny_teacher)
    more(source, tmp_path / "extended", 9, teacher)
    assert teacher.batches == [16] * (12 * 4 // 16)


def test_worker_processes_make_the_views_for_an_accelerator(tmp_path, tiny_dataset, tiny_teacher):
    source = make(tmp_path / "source", tiny_dataset, tiny_teacher, 2)
    expected = files_of(more(source, tmp_path / "threads", 5, tiny_teacher))
    config = ExtendConfig(str(tmp_path / "processes"), num_views=5, batch_size=16, num_workers=2)
    extend(source, config, teacher=OnAnotherDevice(tiny_teacher))
    assert files_of(tmp_path / "processes") == expected


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
def test_an_answer_does_not_depend_on_its_place_or_neighbours_in_a_batch(architecture):
    """So it does not matter that new views come in other batches than in a run with all views at once."""
    torch.manual_seed(0)
    size = 160 if architecture == "test_vit" else 24
    model = timm.create_model(architecture, num_classes=8).eval().to(memory_format=torch.channels_last)
    views, order = torch.rand(16, 3, size, size), torch.randperm(16)
    with torch.inference_mode():
        straight, shuffled, next_to_zeros = (
            model(x.contiguous(memory_format=torch.channels_last)).log_softmax(-1)
            for x in (views, views[order], torch.cat([views[8:], torch.zeros(8, 3, size, size)]))
        )
    assert torch.equal(shuffled, straight[order])
    assert torch.equal(next_to_zeros[:8], straight[8:])


def test_an_overlay_is_extended_with_its_base_in_any_order(tmp_path, tiny_dataset, tiny_teacher):
    source = make(tmp_path / "source", tiny_dataset, tiny_teacher, 2, overlay=True)
    whole = make(tmp_path / "whole", tiny_dataset, tiny_teacher, 3, overlay=True)
    assert_same(more(source, tmp_path / "in_order", 3, tiny_teacher, base=tiny_dataset), whole)
    assert_same(
        more(source, tmp_path / "shuffled", 3, tiny_teacher, base=tiny_dataset.select(range(11, -1, -1))), whole
    )


def test_rows_without_views_stay_without(tmp_path, tiny_dataset, tiny_teacher):
    bad = with_bad_row(tiny_dataset, 7, b"no image")
    settings = {"on_bad_image": "skip", "overlay": True}
    source = make(tmp_path / "source", bad, tiny_teacher, 3, **settings)
    whole = make(tmp_path / "whole", bad, tiny_teacher, 6, **settings)
    assert_same(more(source, tmp_path / "extended", 6, tiny_teacher, base=bad), whole)
    assert_same(more(source, tmp_path / "fixed", 6, tiny_teacher, base=tiny_dataset), whole)
    assert Provenance.read(tmp_path / "fixed" / "a").skipped_rows == [7]


def test_stopped_and_resumed_in_parts_is_the_same(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    source = make(tmp_path / "source", tiny_dataset, tiny_teacher, 2)
    whole = make(tmp_path / "whole", tiny_dataset, tiny_teacher, 4)
    plus, config = load_reinforced(source), ExtendConfig(str(tmp_path / "extended"), num_views=4, num_workers=1)
    finish, finished = ShardWriter.finish, []

    def stop_at_the_second(self):
        if finished:
            raise KeyboardInterrupt
        finished.append(self.path)
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            extend_job(plus, tiny_teacher, config).run()
    assert list((tmp_path / "extended").rglob("*.parquet")) == finished
    assert not list((tmp_path / "extended").rglob("*.tmp"))
    written = finished[0].stat().st_mtime_ns
    for index in (1, 0):
        extend_job(plus, tiny_teacher, config).run(Part(index, 2))
    assert finished[0].stat().st_mtime_ns == written, "a finished shard is not made again"
    assert_same(tmp_path / "extended", whole)


def test_from_the_hub_and_back(tmp_path, tiny_dataset, tiny_teacher, loopback_hub):
    push_to_hub(make(tmp_path / "source", tiny_dataset, tiny_teacher, 2), "me/plus")
    extended = more("me/plus", tmp_path / "extended", 3, tiny_teacher)
    assert_same(extended, make(tmp_path / "whole", tiny_dataset, tiny_teacher, 3))
    with pytest.raises(ConfigError, match=r"num_views: 2 there, 3 here\). Pass `overwrite` to replace it"):
        push_to_hub(extended, "me/plus")
    push_to_hub(extended, "me/plus", overwrite=True)
    assert load_reinforced("me/plus").num_views == 3


@pytest.fixture(scope="module")
def named(tmp_path_factory, tiny_dataset):
    """Teachers and a "+" dataset as the command line names them."""
    folder = tmp_path_factory.mktemp("named")
    names = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_file(
            timm.create_model("test_resnet", num_classes=len(CLASSES)).state_dict(), folder / f"{seed}.safetensors"
        )
        names.append(f"timm:test_resnet@{folder / str(seed)}.safetensors")
    settings = {"top_k": 4, "augmentation": ALL_OPS}
    return names, make(folder / "source", tiny_dataset, Teacher.from_pretrained(names[0]), 2, **settings)


def test_the_command_in_one_process_or_two(tmp_path, named, tiny_dataset, capsys):
    (first, second), source = named
    views = ["--num_views", "5", "--teacher", first, "--output_dir", str(tmp_path / "in_one")]
    assert main(["extend", str(source), *views, "--dry_run"]) == 0
    assert "36" in next(line for line in capsys.readouterr().out.splitlines() if "asked of the teacher" in line)
    assert not (tmp_path / "in_one").exists()
    assert main(["extend", str(source), *views]) == 0
    words = ["extend", str(source), *views[:-1], str(tmp_path / "in_two")]
    assert "in 2 process(es)" in children.run(main, words, two=True, log=tmp_path / "log")
    assert_same(tmp_path / "in_one", tmp_path / "in_two")
    assert main(["extend", str(source), "--add_teacher", second, "--output_dir", str(tmp_path / "both")]) == 0
    assert main(["verify", str(tmp_path / "both"), "--teacher", second, first, "--num_rows", "3"]) == 0
    assert main(["verify", str(tmp_path / "both"), "--teacher", second, "--num_rows", "3"]) == 2
    assert "must have the weights that reinforced the dataset" in capsys.readouterr().err


def test_the_command_asks_over_the_classes_of_the_run(tmp_path, tiny_dataset):
    torch.manual_seed(2)
    larger = timm.create_model("test_resnet", num_classes=len(CLASSES) + 3)
    save_file(larger.state_dict(), tmp_path / "larger.safetensors")
    name = f"timm:test_resnet@{tmp_path / 'larger.safetensors'}"
    teacher = Teacher.from_pretrained(name, classes=[9, *range(1, len(CLASSES))])
    source = make(tmp_path / "source", tiny_dataset, teacher, 1)
    out = tmp_path / "more"
    assert main(["extend", str(source), "--num_views", "2", "--teacher", name, "--output_dir", str(out)]) == 0
    assert_same(out, make(tmp_path / "whole", tiny_dataset, teacher, 2))


def test_new_members_have_classes_of_their_own(tmp_path, tiny_dataset):
    """The run chose among the classes of its teacher, by other numbers than those of a new member."""
    names = []
    for number, classes in enumerate((len(CLASSES) + 3, len(CLASSES))):
        torch.manual_seed(number)
        save_file(
            timm.create_model("test_resnet", num_classes=classes).state_dict(), tmp_path / f"{number}.safetensors"
        )
        names.append(f"timm:test_resnet@{tmp_path / f'{number}.safetensors'}")
    chosen = list(reversed(range(len(CLASSES))))
    source = make(tmp_path / "source", tiny_dataset, Teacher.from_pretrained(names[0], classes=chosen), 2)
    new = Teacher.from_pretrained(names[1])
    extend(source, ExtendConfig(str(tmp_path / "expected"), num_workers=0), add_teacher=new)
    extend(source, ExtendConfig(str(tmp_path / "found"), num_workers=0), add_teacher=names[1])
    assert main(["extend", str(source), "--add_teacher", names[1], "--output_dir", str(tmp_path / "by_command")]) == 0
    for name in ("found", "by_command"):
        assert_same(tmp_path / name, tmp_path / "expected")


def test_the_command_wants_one_dataset(capsys):
    for words in ([], ["a", "b"]):
        assert main(["extend", *words, "--output_dir", "c"]) == 2
        assert f'expected one "+" dataset before the flags, got {" ".join(words) or "none"}' in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------- new members


def ensemble(*teachers: Teacher) -> Teacher:
    return Teacher([member for teacher in teachers for member in teacher.members])


def added(source: Path | ReinforcedDataset, folder: Path, teacher: Teacher, **settings) -> Path:
    extend(source, ExtendConfig(str(folder), num_workers=0), add_teacher=teacher, **settings)
    return folder


def dense(folder: Path, num_views: int) -> np.ndarray:
    """Stored probabilities, the tail spread evenly, (rows * V, C)."""
    plus, answers = load_reinforced(folder), []
    for row in range(len(plus)):
        for view in range(num_views):
            ids, logprobs = plus.teacher_answer(row, view)
            kept = np.exp(logprobs.astype(np.float64))
            full = np.full(len(CLASSES), max(0.0, 1 - kept.sum()) / max(1, len(CLASSES) - len(ids)))
            full[ids] = kept
            answers.append(full)
    return np.stack(answers)


def test_new_members_of_whole_answers_give_what_all_at_once_do(tmp_path, tiny_dataset, make_teacher):
    old, new = ensemble(make_teacher(1.0), make_teacher(6.0)), make_teacher(3.0)
    source = make(tmp_path / "source", tiny_dataset, old, 3, top_k=8, augmentation=ALL_OPS)
    whole = make(tmp_path / "whole", tiny_dataset, ensemble(old, new), 3, top_k=8, augmentation=ALL_OPS)
    teacher = Counting(new)
    extended = added(source, tmp_path / "extended", teacher)
    assert sum(teacher.batches) == 16 + 16 + 16, "12 rows x 3 views in shards of 5: each once, its last batch filled up"
    one, two = load_reinforced(extended), load_reinforced(whole)
    for row in range(12):
        assert one.views_hash(row) == two.views_hash(row)
        for view in range(3):
            assert one.params(row, view) == two.params(row, view)
            (ids, logprobs), (wanted_ids, wanted) = (plus.teacher_answer(row, view) for plus in (one, two))
            np.testing.assert_allclose(logprobs[ids.argsort()], wanted[wanted_ids.argsort()], rtol=2**-9)


def test_what_new_members_of_cut_answers_miss_is_bounded(tmp_path, tiny_dataset, make_teacher):
    old, new = ensemble(make_teacher(1.0), make_teacher(2.0)), make_teacher(1.5)
    source = make(tmp_path / "source", tiny_dataset, old, 3)
    tail = 1 - np.sort(dense(make(tmp_path / "old", tiny_dataset, old, 3, top_k=8), 3))[:, -3:].sum(axis=1)
    exact = dense(make(tmp_path / "whole", tiny_dataset, ensemble(old, new), 3, top_k=8), 3)
    found = dense(added(source, tmp_path / "extended", new), 3)
    kept = found.argsort(axis=1)[:, -3:]  # what is cut off again is for the tail rule
    missed = np.abs(np.take_along_axis(found - exact, kept, axis=1)).sum(axis=1)
    assert tail.min() > 0.1
    assert (missed <= 2 * 2 / 3 * tail + 1e-3).all()


@quick
@given(
    k=st.integers(1, 12), n=st.integers(1, 5), m=st.integers(1, 5), scale=st.floats(0.01, 30), seed=st.integers(0, 1000)
)
def test_the_average_is_as_near_to_that_of_all_members_as_is_stated(k, n, m, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    old, new = (
        (scale * torch.randn(9, 12, generator=generator)).log_softmax(1),
        torch.randn(9, 12, generator=generator).log_softmax(1),
    )
    ids, logprobs = top_k(old, k)
    found = add_members(ids, logprobs, new, n, m).double().exp()
    exact = (n * old.double().exp() + m * new.double().exp()) / (n + m)
    tail = (1 - old.double().exp().topk(k).values.sum(dim=1)).clamp(min=0)
    rounding = 2 * (old.exp() * old.abs()).sum(dim=1) * 2**-11 + 1e-5
    assert ((found - exact).abs().sum(dim=1) <= n / (n + m) * (2 * tail + rounding)).all()


def test_provenance_tells_who_was_asked_in_full(tmp_path, tiny_dataset, make_teacher):
    first, second, third = (make_teacher(sharpness) for sharpness in (1.0, 2.0, 3.0))
    source = make(tmp_path / "source", tiny_dataset, first, 2)
    twice = added(added(source, tmp_path / "once", second), tmp_path / "twice", third)
    before, once, result = (Provenance.read(folder / "a") for folder in (source, tmp_path / "once", twice))
    assert [m["weights_hash"] for m in result.teacher["members"]] == [
        teacher.members[0].weights_hash for teacher in (first, second, third)
    ]
    made = {"precision": "fp32", "device_type": "cpu", "library_versions": before.library_versions}
    inner = {"dataset": before.fingerprint, "num_members": 1, **made}
    assert once.teacher[EXTENDED_FROM] == inner
    assert result.teacher[EXTENDED_FROM] == {
        "dataset": once.fingerprint,
        "num_members": 2,
        EXTENDED_FROM: inner,
        **made,
    }
    whole = make(tmp_path / "whole", tiny_dataset, ensemble(first, second, third), 2)
    assert len({p.fingerprint for p in (before, once, result, Provenance.read(whole / "a"))}) == 4
    assert "The first 2 stand in the average with their stored top-3 answers" in (twice / "README.md").read_text()
    report = verify(twice, ensemble(third, first, second))
    assert report.ok
    assert report.kl_max < 1e-6, "as it was made, not as all members at once would answer"


@pytest.mark.parametrize("value", [[], {}, {"num_members": 0}, {"num_members": 2}, {"num_members": True}, "x"])
def test_an_impossible_history_is_refused(tiny_plus, value):
    content = tiny_plus.provenance.to_dict()
    content["teacher"] = {**content["teacher"], EXTENDED_FROM: value}
    with pytest.raises(
        FormatError, match=r"`teacher` in x must be a teacher whose `extended_from` has fewer members each time"
    ):
        Provenance.from_dict(json.loads(json.dumps(content)), "x")


def test_new_members_must_belong(tmp_path, tiny_plus, tiny_teacher, make_teacher):
    with pytest.raises(
        TeacherError, match=r"must not be in the ensemble yet, but colours has the weights of its colours"
    ):
        added(tiny_plus, tmp_path, tiny_teacher)
    with pytest.raises(TeacherError, match=r"must answer over the stored 8 classes, found 3. Name others, or pass"):
        added(tiny_plus, tmp_path, Teacher(make_teacher(2.0).members, classes=[0, 1, 2]))
    turned = Teacher(make_teacher(2.0).members, classes=CLASSES[::-1])
    with pytest.raises(
        TeacherError, match=r"classes must be in the dataset's order, but class 0 is 'black' in the data"
    ):
        added(tiny_plus, tmp_path, turned)
    assert not list(tmp_path.iterdir())


def test_no_new_members_are_refused(tmp_path, tiny_plus):
    with pytest.raises(TeacherError, match=r"a teacher must have at least one member, got none"):
        added(tiny_plus, tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_new_members_may_come_with_other_libraries(tmp_path, tiny_plus, make_teacher, monkeypatch):
    """The views are compared with what was seen, and the provenance tells both."""
    now = {**tiny_plus.provenance.library_versions, "timm": "9.9"}
    monkeypatch.setattr(extension, "library_versions", lambda: now)
    made = Provenance.read(added(tiny_plus, tmp_path, make_teacher(2.0)) / "all_ops")
    assert made.library_versions == now
    assert made.teacher[EXTENDED_FROM]["library_versions"] == tiny_plus.provenance.library_versions


# ------------------------------------------------------------------------------------------------------------- refusals


def refused(plus: ReinforcedDataset, error: type[Exception], message: str, folder: Path, **given) -> None:
    given = {"num_views": 6, "teacher": None, "add_teacher": None, **given}
    config = ExtendConfig(str(folder), num_views=given.pop("num_views"), num_workers=0)
    with pytest.raises(error, match=message):
        extend(plus, config, **given)
    assert not folder.exists(), "nothing is written"


def test_what_cannot_be_asked_for(tmp_path, tiny_folder, tiny_plus, tiny_teacher, make_teacher):
    out, other = tmp_path / "out", make_teacher(2.0)
    refused(
        tiny_plus, ConfigError, r"either `num_views` or `add_teacher` must be given, got neither", out, num_views=None
    )
    refused(tiny_plus, ConfigError, r"got both. For both extend twice, the views first", out, add_teacher=other)
    both = {"num_views": None, "teacher": tiny_teacher, "add_teacher": other}
    refused(
        tiny_plus, ConfigError, r"`teacher` is for more views, got it with `add_teacher`. Leave it out", out, **both
    )
    refused(tiny_plus, ConfigError, r"must be more than the 4 views that are stored, got 4. Raise it", out, num_views=4)
    beyond = {"num_views": (1 << 20) + 1, "teacher": tiny_teacher}
    refused(tiny_plus, ConfigError, r"`num_views` in `reinforcement.json` must be .*1048576", out, **beyond)
    refused(tiny_plus, ConfigError, r"`name` and `base` must come with a path, got an opened", out, name="all_ops")
    combined = load_reinforced([tiny_folder] * 2, "all_ops")
    refused(
        combined,
        ConfigError,
        r"one \"\+\" dataset whose rows can be chosen, got CombinedReinforced.* Open it alone",
        out,
    )
    refused(
        tiny_plus,
        TeacherError,
        r"a commit on the Hub, found .colours. .* that answered as `teacher` \(--teacher\)\.$",
        out,
    )
    selected = ReinforcedDataset(tiny_plus.plus.select(range(5)), tiny_plus.provenance)
    refused(selected, ConfigError, r"all 12 reinforced rows must be there in their order, found 5. Open", out)
    with pytest.raises(ConfigError, match=r"must be another folder than that of the dataset which is extended, got "):
        more(tiny_folder, tiny_folder, 6, tiny_teacher)
    for setting in ("num_views", "batch_size"):
        with pytest.raises(ConfigError, match=rf"`{setting}` must be a whole number of at least 1, got -1. Raise"):
            ExtendConfig("out", **{setting: -1})


def test_datasets_that_cannot_be_extended(tmp_path, tiny_plus, tiny_dataset, tiny_teacher, make_teacher, edit):
    imported = edit(tiny_plus, "views_hash", np.zeros_like)
    refused(imported, ConfigError, r"must hold hashes of what its teacher saw .* it was imported", tmp_path / "out")
    chosen = {"num_candidates": 4, "keep": "low_entropy", "augmentation": Augmentation([RandomResizedCrop(16)])}
    for number, (settings, asked, message) in enumerate(
        (
            (chosen, {}, r"more views need .* found views that were chosen among candidates. Reinforce the base again"),
            ({"signal": "topk_image_tail"}, {}, r"the `signal` topk or sampled, found `signal` topk_image_tail"),
            (
                {"signal": "sampled"},
                {"num_views": None, "add_teacher": make_teacher(2.0)},
                r"new members need .* topk, found",
            ),
        )
    ):
        plus = load_reinforced(make(tmp_path / str(number), tiny_dataset, tiny_teacher, 2, **settings))
        refused(plus, ConfigError, message, tmp_path / "out", **asked)
    golden = load_reinforced(REPOSITORY / "tests" / "golden" / "v3", "sampled")
    refused(
        golden, ConfigError, r"must be of format 4, .* found format 3: .* Reinforce the base again", tmp_path / "out"
    )
    nameless = ReinforcedDataset(tiny_plus.plus, tiny_plus.provenance)
    nameless.provenance = dataclasses.replace(nameless.provenance, teacher={"members": []})
    refused(nameless, FormatError, r"`teacher.members` of the provenance must name the teacher", tmp_path / "out")
    longer = load_reinforced(added(tiny_plus, tmp_path / "longer", make_teacher(2.0)))
    message = r"members were all asked at once, but here 1 of them stand .* Add views to the dataset as it was before"
    refused(longer, ConfigError, message, tmp_path / "out")


def test_more_views_need_the_teacher_and_the_libraries_of_the_stored_ones(
    tmp_path, tiny_plus, tiny_teacher, make_teacher, monkeypatch
):
    out = tmp_path / "out"
    message = (
        r"answered by the teacher of the stored ones, \S+, in .*found \S+ with .*weights_hash: [0-9a-f]{64} there, "
        r"[0-9a-f]{64} here. Pass that"
    )
    refused(tiny_plus, TeacherError, message, out, teacher=make_teacher(2.0))
    halved = Teacher(tiny_teacher.members, precision="bf16")
    refused(tiny_plus, TeacherError, r"teacher.precision: fp32 there, bf16 here", out, teacher=halved)
    here = {**tiny_plus.provenance.library_versions, "pillow": "1.2.3"}
    monkeypatch.setattr(extension, "library_versions", lambda: here)
    stored = tiny_plus.provenance.library_versions["pillow"]
    message = rf"pillow: {stored} there, 1.2.3 here. Run `pip install pillow=={stored}`, or reinforce the base again"
    refused(tiny_plus, FingerprintMismatchError, message, out, teacher=tiny_teacher)


@pytest.mark.parametrize("added_views", [True, False])
def test_views_that_are_not_those_stored_end_the_run(
    tmp_path, tiny_plus, tiny_teacher, make_teacher, edit, added_views
):
    config = ExtendConfig(str(tmp_path), num_views=6 if added_views else None, num_workers=0)
    teachers = {"teacher": tiny_teacher} if added_views else {"add_teacher": make_teacher(2.0)}

    def ends(plus, error, message):
        with pytest.raises(error, match=message):
            extend(plus, config, **teachers)
        assert not any("00001" in name for name in files_of(tmp_path)), "row 7 is in the second shard"

    def change(place, new):
        return lambda cells: [new if row == place else cell for row, cell in enumerate(cells)]

    version = tiny_plus.provenance.library_versions["pillow"]
    changed = edit(tiny_plus, "views_hash", lambda hashes: np.where(np.arange(12) == 7, hashes ^ 1, hashes))
    ends(
        changed,
        ReplayError,
        rf"the 4 views of row 7 must be what was reinforced .*pillow {version}.* Run `hf-dr verify`",
    )
    image = as_cell(colour_image(np.random.default_rng(1), 3))
    ends(
        edit(tiny_plus, "image", change(7, image)),
        ReplayError,
        r"the (image|4 views) of row \d+ must be what was reinf",
    )
    broken = edit(tiny_plus, "image", change(7, {"bytes": b"no image", "path": None}))
    ends(broken, DataError, r"the image of row 7 must be readable, but: .*\. Fix it\.$")  # an extension skips no image
    damaged = edit(tiny_plus, "teacher_logprobs", lambda values: np.where(np.arange(12)[:, None, None] == 7, 1, values))
    ends(damaged, FormatError, r"log-probabilities of row 7, view 0 must be finite and fall from at most 0")


@pytest.mark.parametrize("added_views", [True, False])
def test_shards_that_somebody_has_changed_are_not_taken_over(
    tmp_path, tiny_dataset, tiny_teacher, make_teacher, added_views
):
    """The new shards would have digests that fit."""
    source = make(tmp_path / "source", tiny_dataset, tiny_teacher, 2)
    shard = next(source.rglob("*-00001-*.parquet"))
    table, metadata = pq.read_table(shard), pq.read_metadata(shard).metadata[b"hf_dr"]
    place = table.schema.get_field_index("label")
    with pq.ParquetWriter(shard, table.schema) as writer:
        writer.write_table(table.set_column(place, table.schema.field(place), table["label"].take([1, 0, 2, 3, 4])))
        writer.add_key_value_metadata({"hf_dr": metadata})
    config = ExtendConfig(str(tmp_path / "out"), num_views=3 if added_views else None, num_workers=0)
    teachers = {"teacher": tiny_teacher} if added_views else {"add_teacher": make_teacher(2.0)}
    with pytest.raises(FormatError, match=r"-00001-.*must hold what was written, but .*label"):
        extend(source, config, **teachers)


def test_an_image_that_can_no_longer_be_read_ends_the_run(tmp_path, tiny_dataset, tiny_teacher):
    """Also where unreadable images are skipped, because its views are there."""
    source = make(tmp_path / "source", tiny_dataset, tiny_teacher, 1, on_bad_image="skip", overlay=True)
    plus = load_reinforced(source, base=tiny_dataset)
    plus._images = undecoded_images(with_bad_row(tiny_dataset, 7, b"no image"), "image")
    with pytest.raises(DataError, match=r"the image of row 7 must be readable, as it was before"):
        more(plus, tmp_path / "extended", 2, tiny_teacher)
