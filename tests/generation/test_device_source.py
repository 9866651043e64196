"""A run whose views are made on the teacher's device writes the bytes of one whose views Pillow makes."""

import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ALL_OPS
from test_extension import make, more
from test_reinforce import PLAIN, OnAnotherDevice, files_of, run, with_bad_row

from hf_dr.errors import DataError
from hf_dr.generation import sources
from hf_dr.generation.config import ExtendConfig, ReinforceConfig
from hf_dr.generation.extend import extend
from hf_dr.generation.job import Job, reinforce_job
from hf_dr.generation.labelling import CPU_BATCH, Labeller
from hf_dr.generation.plan import plan_run
from hf_dr.generation.sources import DeviceSource, LoaderSource, ThreadSource, choose_source, cut_spans
from hf_dr.store.provenance import Provenance
from hf_dr.store.shards import ShardWriter
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device import maker, triton_ready
from hf_dr.views.device.augment import DeviceAugmentation
from hf_dr.views.device.maker import DeviceViewMaker
from hf_dr.views.device.plan import NotOnDeviceError
from hf_dr.views.maker import Span
from hf_dr.views.ops.colour import ColorJitter
from hf_dr.views.ops.geometry import RandomResizedCrop

SIGNALS = {
    "topk": {},
    "sampled": {"signal": "sampled", "mixing_scope": "shard"},
    "topk_image_tail": {"signal": "topk_image_tail"},
    "candidates by entropy": {"num_candidates": 7, "keep": "high_entropy"},
    "candidates by label": {
        "num_candidates": 5, "keep": "low_cross_entropy", "signal": "sampled"
    },
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_has_the_same_bytes(tmp_path, tiny_dataset, tiny_teacher, name, workers):
    settings = SIGNALS[name]
    ops = PLAIN if "keep" in settings else ALL_OPS
    expected = run(tmp_path / "a", tiny_dataset, tiny_teacher, ops, **settings)
    found = run(tmp_path / "b", tiny_dataset, tiny_teacher, ops, augment_on="device", num_workers=workers, **settings)
    assert found == expected
    texts = [next((tmp_path / n).rglob("reinforcement.json")).read_text() for n in "ab"]
    assert texts[0] == texts[1], "where views are made is not part of the dataset"


def test_a_device_that_makes_other_pixels_is_not_used(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    finish = maker.MadeViews.finish

    def flawed(made):
        batch = finish(made)
        return replace(batch, view_hashes=batch.view_hashes ^ (np.arange(len(batch.view_hashes)) == 3))

    monkeypatch.setattr(maker.MadeViews, "finish", flawed)
    message = "cpu must make views of the pixels that Pillow makes, but 1 of the first 15 views are others. Set `augment_on` to"
    with pytest.raises(NotOnDeviceError, match=message):
        run(tmp_path, tiny_dataset, tiny_teacher, augment_on="device")
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_has_the_same_bytes_on_a_gpu(tmp_path, tiny_dataset, tiny_teacher, name):
    """Also where the teacher is replayed as a recorded graph, which begins with the second full batch."""
    teacher = Teacher(copy.deepcopy(tiny_teacher.members), device="cuda")
    settings = {"num_views": 5, "batch_size": 8, "shard_size": 6, "num_workers": 2, **SIGNALS[name]}
    ops = PLAIN if "keep" in settings else ALL_OPS
    expected = run(tmp_path / "a", tiny_dataset, teacher, ops, augment_on="cpu", **settings)
    assert run(tmp_path / "b", tiny_dataset, teacher, ops, augment_on="device", **settings) == expected


@pytest.mark.parametrize("scope", ["dataset", "shard"])
def test_bad_images_are_skipped_or_end_the_run(tmp_path, tiny_dataset, tiny_teacher, scope):
    bad = with_bad_row(tiny_dataset, 7, b"no image")
    settings = {"on_bad_image": "skip", "mixing_scope": scope}
    expected = run(tmp_path / "a", bad, tiny_teacher, ALL_OPS, **settings)
    assert run(tmp_path / "b", bad, tiny_teacher, ALL_OPS, augment_on="device", **settings) == expected
    assert Provenance.read(tmp_path / "b" / "default").skipped_rows == [7]
    with pytest.raises(DataError, match=r"image of row 7 .*must be readable"):
        run(tmp_path / "c", bad, tiny_teacher, ALL_OPS, augment_on="device")
    assert not list((tmp_path / "c").rglob("*.tmp*"))


def test_images_too_large_for_the_device_are_left_to_pillow(tmp_path, tiny_dataset, tiny_teacher, monkeypatch, caplog):
    """Only by `auto`: who says `device` has it."""
    monkeypatch.setattr(sources, "is_fast_on", lambda device: True)
    monkeypatch.setattr(DeviceViewMaker, "allowed_bytes", 1000)
    expected = run(tmp_path / "a", tiny_dataset, tiny_teacher, PLAIN, augment_on="cpu")
    assert run(tmp_path / "b", tiny_dataset, tiny_teacher, PLAIN, augment_on="auto") == expected
    assert "the images that are needed at a time take" in caplog.text
    caplog.clear()
    assert run(tmp_path / "c", tiny_dataset, tiny_teacher, PLAIN, augment_on="device") == expected
    assert not [text for text in caplog.messages if "needed at a time" in text]


def test_large_images_are_decoded_one_at_a_time(tiny_dataset, tiny_teacher, monkeypatch):
    made = plan_run(tiny_dataset, tiny_teacher, PLAIN, ReinforceConfig("x", num_views=2, top_k=5)).view_maker()
    spans = [Span(0, 0, 2 * len(tiny_dataset))]
    for part_bytes, most in ((1 << 26, 8), (1, 1)):
        monkeypatch.setattr(maker, "_PART_BYTES", part_bytes)
        items = [item for item, _ in DeviceViewMaker(made, torch.device("cpu"))._items(spans, 0)]
        assert max(len(item) for item in items if not isinstance(item, Span)) == most


def test_a_run_goes_on_where_the_other_way_has_stopped(tmp_path, tiny_dataset, tiny_teacher):
    expected = run(tmp_path / "a", tiny_dataset, tiny_teacher, ALL_OPS)
    run(tmp_path / "b", tiny_dataset, tiny_teacher, ALL_OPS)
    next((tmp_path / "b").rglob("*-00001-*.parquet")).unlink()
    assert run(tmp_path / "b", tiny_dataset, tiny_teacher, ALL_OPS, augment_on="device") == expected


def test_more_views_are_the_same(tmp_path, tiny_dataset, tiny_teacher):
    few = make(tmp_path / "few", tiny_dataset, tiny_teacher, 3)
    expected = files_of(more(few, tmp_path / "a", 7, tiny_teacher))
    extend(
        few, ExtendConfig(str(tmp_path / "b"), num_views=7, num_workers=0, augment_on="device"), teacher=tiny_teacher
    )
    assert files_of(tmp_path / "b") == expected


def test_views_that_the_device_cannot_make_are_made_by_pillow(
    tmp_path, tiny_dataset, tiny_teacher, monkeypatch, caplog
):
    expected = run(tmp_path / "a", tiny_dataset, tiny_teacher, ALL_OPS)
    planned = DeviceAugmentation.program

    def refuses_some(self, images, *settings):
        if len(images) % 2:
            raise NotOnDeviceError("images of 2x9000 pixels are rotated by Pillow")
        refused.append(len(images))
        return planned(self, images, *settings)

    refused = []
    monkeypatch.setattr(DeviceAugmentation, "program", refuses_some)
    with caplog.at_level(logging.WARNING):
        assert run(tmp_path / "b", tiny_dataset, tiny_teacher, ALL_OPS, augment_on="device", num_views=3) == expected
    told = [record.message for record in caplog.records if "made on the CPU" in record.message]
    assert told == [
        "Some views are made on the CPU, which takes longer: images of 2x9000 pixels are rotated by Pillow."
    ]


# ------------------------------------------------------------------------------------------------------------ the choice


@pytest.fixture
def plan(tmp_path, tiny_dataset, tiny_teacher):
    return plan_run(
        tiny_dataset, tiny_teacher, ALL_OPS, ReinforceConfig(str(tmp_path / "p"), "a", num_views=6, top_k=3)
    )


def elsewhere(plan, teacher, kind):
    teacher = OnAnotherDevice(teacher)
    teacher.device = torch.device(kind)
    return Labeller(teacher, plan.provenance)


@pytest.fixture
def triton(monkeypatch):
    """A GPU on which Triton works."""
    triton_ready._compiles.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(triton_ready, "_try_out", lambda device: None)
    monkeypatch.setattr(DeviceViewMaker, "allowed_bytes", 1 << 30)
    yield
    triton_ready._compiles.cache_clear()


def test_a_gpu_makes_its_views(plan, tiny_teacher, triton, monkeypatch, caplog):
    on_gpu, on_cpu = elsewhere(plan, tiny_teacher, "cuda"), Labeller(tiny_teacher, plan.provenance)
    chosen = choose_source(plan.view_maker(), on_gpu, 5, 3)
    assert isinstance(chosen, DeviceSource)
    assert (chosen.batch_size, chosen.workers, chosen.first_new) == (5, 3, 0)
    assert isinstance(choose_source(plan.view_maker(), on_gpu, 5, 3, "cpu"), LoaderSource)
    assert isinstance(choose_source(plan.view_maker(), on_cpu, 5, 3), ThreadSource)
    assert isinstance(choose_source(plan.view_maker(), elsewhere(plan, tiny_teacher, "meta"), 5, 3), LoaderSource)
    chosen = choose_source(plan.view_maker(), on_cpu, 5, 3, "device")
    assert isinstance(chosen, DeviceSource)
    assert chosen.batch_size == CPU_BATCH
    assert not caplog.records
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(choose_source(plan.view_maker(), on_gpu, 5, 3), LoaderSource), "without Triton"
    assert not caplog.records


def test_a_gpu_for_which_triton_does_not_compile(plan, tiny_teacher, triton, monkeypatch, caplog):
    def fails(device):
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(triton_ready, "_try_out", fails)
    on_gpu = elsewhere(plan, tiny_teacher, "cuda")
    for _ in range(2):
        assert isinstance(choose_source(plan.view_maker(), on_gpu, 5, 3), LoaderSource)
    assert len(caplog.messages) == 1, "said once"
    assert "Triton cannot be used on cuda, so views are made more slowly: RuntimeError: Failed to find C" in caplog.text


def test_what_a_gpu_cannot_make_is_said(plan, tiny_teacher, triton, caplog):
    hue = replace(plan, augmentation=Augmentation([RandomResizedCrop(24), ColorJitter(hue=0.1)])).view_maker()
    on_gpu = elsewhere(plan, tiny_teacher, "cuda")
    assert isinstance(choose_source(hue, on_gpu, 5, 3), LoaderSource)
    assert "Views are made on the CPU, which takes longer: ColorJitter with `hue` has no device version" in caplog.text
    with pytest.raises(NotOnDeviceError, match="`augment_on` must be `cpu` or `auto` here, got `device`: Color"):
        choose_source(hue, on_gpu, 5, 3, "device")


def test_the_choice_is_checked(tmp_path):
    with pytest.raises(Exception, match="`augment_on` must be one of auto, cpu, device, got 'gpu'"):
        ReinforceConfig(str(tmp_path), augment_on="gpu")


# --------------------------------------------------------------------------------------------------------- time, errors


def test_measuring_gives_the_columns_of_all_spans_but_the_first(plan, tiny_teacher):
    labeller = Labeller(tiny_teacher, plan.provenance)
    source = DeviceSource(plan.view_maker(), labeller, CPU_BATCH, 0)
    spans = cut_spans(plan.provenance, [0], CPU_BATCH)[:3]
    timing = source.measure(spans)
    assert timing.seconds_augment > 0
    assert timing.seconds_teacher > 0
    maker = plan.view_maker()
    for columns, span in zip(timing.columns, spans[1:], strict=True):
        expected = labeller.label(maker[span])
        assert all((columns.columns[name] == values).all() for name, values in expected.columns.items())
    estimate = Job(plan, source).estimate(2)
    assert estimate.num_asked == 72
    report = estimate.report(1, 0, torch.device("cpu"))
    for name in ("  augmenting and teacher  ", "  decoding  ", "  core-hours of decoding  "):
        assert name in report


def test_an_error_of_the_writing_thread_ends_the_run_and_leaves_no_file(
    tmp_path, tiny_dataset, tiny_teacher, monkeypatch
):
    written = []
    write = ShardWriter.write

    def fails(self, *row_group):
        written.append(self.path)
        if len(written) == 2:
            raise OSError("no space")
        write(self, *row_group)

    monkeypatch.setattr(ShardWriter, "write", fails)
    config = ReinforceConfig(str(tmp_path), num_views=3, top_k=2, shard_size=5, num_workers=0)
    job = reinforce_job(tiny_dataset, tiny_teacher, ALL_OPS, config)
    with pytest.raises(OSError, match="no space"):
        job.run()
    assert len(set(written)) == len(written) == 2, "nothing is written after the error"
    assert [path.name for path in job.folder.iterdir() if "parquet" in path.name] == [written[0].name]


def test_answers_that_are_not_finite_are_refused(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    monkeypatch.setattr(Teacher, "__call__", lambda self, views: torch.full((len(views), 8), float("nan")))
    with pytest.raises(Exception, match="log-probabilities must be finite, got nan for a view"):
        run(tmp_path, tiny_dataset, tiny_teacher, ALL_OPS, augment_on="device")
