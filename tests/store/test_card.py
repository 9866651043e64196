"""The card: its code runs, its YAML says what the files hold, and people's text and others' configurations stay."""

import json
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import datasets
import filelock
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_dr import Augmentation, ReinforceConfig, load_reinforced, ops, reinforce
from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.generation.verify import verify
from hf_dr.store.base_dataset import describe_base, load_base
from hf_dr.store.card import CARD_FILE, CardConfig, card_config, check_card, size_category, update_card, write_card
from hf_dr.store.findings import Students, Verification, save_finding
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import CONTACT_SHEET_FILE, STATISTICS_FILE, VERIFICATION_FILE
from hf_dr.text import format_bytes

NAME = "me/tiny-plus"
FEW = settings(max_examples=30)  # a card takes some 10 ms
PART = re.compile(r"<!-- hf_dr: (?!end).*? -->.*?<!-- hf_dr: end -->", re.DOTALL)


@pytest.fixture(scope="module")
def config(tiny_folder):
    return card_config(tiny_folder / "all_ops")


@pytest.fixture(scope="module")
def small(config):
    """The same with one column only: its YAML is parsed faster, and its failures are read faster."""
    return replace(config, features=datasets.Features({"x": datasets.Value("int64")}))


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny "+" dataset to write into."""
    return shutil.copytree(tiny_folder, tmp_path / "tiny-plus")


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, tiny_dataset, tiny_teacher):
    """An overlay, its base beside it, and the id that it gives to its base."""
    place = tmp_path_factory.mktemp("overlay")
    tiny_dataset.to_parquet(place / "base.parquet")
    augmentation = Augmentation([ops.RandomResizedCrop(24)])
    config = ReinforceConfig(str(place / "over-plus"), "crops", num_views=2, top_k=3, overlay=True)
    reinforce(tiny_dataset, tiny_teacher, augmentation, config, base={"id": "me/colours", "license": "mit"})
    return place


def named(config, name, **changes):
    """The configuration under another name."""
    return replace(config, provenance=replace(config.provenance, config_name=name, **changes))


def titles(card):
    """The lines that are titles, which comments in code are not."""
    return re.findall("^# .*", re.sub("```.*?```", "", card, flags=re.DOTALL), re.MULTILINE)


PLANNED = CardConfig(Provenance(
    config_name="plan", split="train", augmentation=[{"RandomResizedCrop": {"size": 24}}], num_views=2, top_k=3, seed=0,
    overlay=True, mixing_scope="dataset", base={"id": "me/base"}, teacher={"members": [{"id": "me/t"}]}, num_classes=0,
    shard_size=0, num_rows=0, image_column="image", label_column=None, on_bad_image="error", library_versions={},
    created_with="", skipped_rows=[], schema_version=4,
))  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ its code


def run(card, tmp_path, base=None):
    """Runs a card's code as its readers would, with a small student and one step."""
    blocks = dict(re.findall(r"^```(\w*)\n(.*?)^```$", card, re.MULTILINE | re.DOTALL))
    code, commands = blocks["python"], blocks[""]
    scope = {}
    exec(code.replace("me/colours", str(base)), scope)
    assert scope["plus"].num_rows == len(scope["train"]) == 12
    assert scope["train"][3, 1]["pixel_values"].shape == (3, 24, 24)
    train, verify = shlex.split(commands.replace("\\\n", ""), comments=True), None
    at = train.index("hf-dr")
    train, verify = train[:at], train[at:]
    assert (train[:4], verify[:2]) == (["accelerate", "launch", "-m", "hf_dr"], ["hf-dr", "verify"])
    words = {
        "timm:mobilenetv3_small_100": "timm:test_resnet",
        "me/colours": str(base),
        "student": str(tmp_path / "out"),
    }
    small = ["--max_steps", "1", "--report_to", "none", "--save_strategy", "no", "--use_cpu"]
    assert main([*(words.get(word, word) for word in train[4:]), *small]) == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert main([words.get(word, word) for word in verify[1:]]) == 0


def test_the_code_of_a_card_runs(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_folder.parent)
    run((tiny_folder / "README.md").read_text(), tmp_path)


@pytest.mark.parametrize(
    ("signal", "text"),
    [
        ("topk", "each with the teacher's 3 most probable classes."),
        (
            "topk_image_tail",
            "each with the teacher's 3 most probable classes. Each example also has the most probable classes",
        ),
        ("sampled", "each with 3 classes, drawn so that the stored answer is the teacher's on average."),
    ],
)
def test_the_signal_is_told(signal, text):
    card = update_card("", {"plan": named(PLANNED, "plan", signal=signal)}, name="me/plus")
    assert text in card
    assert (f"| Signal | `{signal}` |" in card) == (signal != "topk")


def test_candidates_are_told():
    golden = Path(__file__).parents[1] / "golden" / "v3"
    card = update_card(None, {"candidates": card_config(golden / "candidates")}, name="me/chosen")
    assert "V | 8 |\n| Chosen among | 24 candidates: the highest entropy of the teacher's answer |\n" in card


def test_the_code_of_an_overlays_card_runs(overlay, tmp_path, monkeypatch):
    monkeypatch.chdir(overlay)
    run((overlay / "over-plus" / "README.md").read_text(), tmp_path, overlay / "base.parquet")


# ------------------------------------------------------------------------------------------------------------ its YAML


def test_the_features_are_those_of_the_files(tiny_folder):
    loaded = datasets.load_dataset(str(tiny_folder), "all_ops", split="train")
    shard = tiny_folder / "all_ops" / "train-00000-of-00003.parquet"
    assert loaded.features == datasets.Features.from_arrow_schema(pq.read_schema(shard))
    data = DatasetCard.load(tiny_folder / "README.md").data
    (split,) = data.dataset_info["splits"]
    assert (split["num_examples"], split["num_bytes"]) == (12, data.dataset_info["dataset_size"])
    assert data.dataset_info["download_size"] == sum(f.stat().st_size for f in tiny_folder.glob("*/*.parquet"))
    assert data.configs == [{"config_name": "all_ops", "data_files": [{"split": "train", "path": "all_ops/train-*"}]}]
    assert data.tags == ["dataset-reinforcement", "arxiv:2303.08983"]
    assert data.size_categories == ["n<1K"]
    assert data.license is data.source_datasets is None  # nothing is known of the base


def test_features_of_every_kind_come_back_from_the_card(config):
    features = datasets.Features(
        {
            "depth": datasets.Array2D((2, 3), "float32"),  # a shape is a tuple, which YAML does not know
            "words": datasets.Translation(["en", "fr"]),
            "boxes": datasets.List(datasets.List(datasets.Value("int32"), length=4)),
            "nested": {
                "at": datasets.Value("timestamp[ms, tz=UTC]"),
                "0": datasets.LargeList(datasets.Value("string")),
            },
            "yes": datasets.ClassLabel(names=["no", "1", "\x85 \u2028", "a: b"]),
        }
    )
    changed = {"all_ops": replace(config, features=features)}
    card = update_card(None, changed, name=NAME)
    assert datasets.DatasetInfo._from_yaml_dict(DatasetCard(card).data.dataset_info).features == features
    assert update_card(card, changed, name=NAME) == card


def test_the_code_of_an_overlays_card_names_the_configuration_of_its_base(overlay):
    """A dataset without configurations has none to name: of its file, or of what is saved of it, one would be refused."""
    card = update_card("", {"plan": named(PLANNED, "plan", base={"id": "base", "config": "large"})}, name="me/plus")
    assert 'load_reinforced("me/plus", "plan", base="path/to/base", base_config="large")' in card
    assert card.count("--base path/to/base --base_config large") == 2
    loaded = datasets.load_dataset("parquet", data_files=str(overlay / "base.parquet"), split="train")
    assert (loaded.info.config_name, describe_base(loaded)["config"]) == ("default", None)


def test_what_is_known_of_the_base_stands_in_the_yaml(overlay):
    data = DatasetCard.load(overlay / "over-plus" / "README.md").data
    assert (data.license, data.source_datasets) == ("mit", ["me/colours"])
    assert "image" not in [feature["name"] for feature in data.dataset_info["features"]]


def test_the_licence_of_the_base_is_that_of_its_card(tmp_path, tiny_dataset):
    tiny_dataset.to_parquet(tmp_path / "train.parquet")
    for text, license in (
        ("license: cc0-1.0", "cc0-1.0"),
        ("license: [mit]", "mit"),
        ("license: [mit, gfdl]", "mit, gfdl"),
        ("license: [3]", None),
        ("license: []", None),
        ("", None),
    ):
        (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
        assert load_base(str(tmp_path))[1].get("license") == license
    (tmp_path / "README.md").write_text("---\n- no mapping\n---\n")
    with pytest.raises(DataError, match="could not load split `train`"):
        load_base(str(tmp_path))


def test_sizes():
    known = [size_category(count) for count in (0, 999, 1000, 9999, 10**4, 1_281_167, 10**9, 10**12, 10**15)]
    assert known == [
        "n<1K", "n<1K", "1K<n<10K", "1K<n<10K", "10K<n<100K", "1M<n<10M", "1B<n<10B", "n>1T", "n>1T",
    ]  # fmt: skip
    assert [format_bytes(count) for count in (1, 1234, 5.6e13)] == ["1 B", "1.23 kB", "56 TB"]
    assert [format_bytes(count) for count in (999_400, 999_600, 1.5e15)] == ["999 kB", "1 MB", "1,500 TB"]


def test_the_size_is_that_of_the_largest_configuration(config):
    both = {"a": named(config, "a"), "b": named(config, "b", num_rows=20_000)}
    assert DatasetCard(update_card(None, both, name=NAME)).data.size_categories == ["10K<n<100K"]


def test_what_people_put_into_the_yaml_stays(config):
    existing = (
        "---\n# by hand\nlicense: other # see below\ntags:\n- mine\nlanguage: no\nsize_categories: n>1T\n"
        "configs:\n- config_name: all_ops\n  data_files: x\n  default: true\n- config_name: zz\n  data_files: z/*\n---\nText"
    )
    card = update_card(existing, {"all_ops": config}, name=NAME)
    assert card.startswith("---\n# by hand\nlicense: other # see below\n")
    assert "\nlanguage: no\n" in card
    data = DatasetCard(card).data
    assert data.tags == ["mine", "dataset-reinforcement", "arxiv:2303.08983"]
    assert data.size_categories == ["n<1K"]
    assert data.configs == [
        {"config_name": "all_ops", "data_files": [{"split": "train", "path": "all_ops/train-*"}], "default": True},
        {"config_name": "zz", "data_files": "z/*"},
    ]
    assert "\n---\nText\n\n<!-- hf_dr: head -->\n" in card


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
OTHERS = st.dictionaries(st.text(min_size=1), st.dictionaries(st.sampled_from("abc"), VALUES, max_size=2), max_size=3)


@FEW
@given(OTHERS, OTHERS, st.booleans())
def test_other_configurations_keep_their_metadata(small, infos, files, single):
    there = {
        "dataset_info": [{"config_name": name, **info} for name, info in infos.items()],
        "configs": [{"config_name": name, **entry} for name, entry in files.items()],
    }
    if single and len(infos) == 1:
        (there["dataset_info"],) = there["dataset_info"]
    card = update_card(f"---\n{yaml.safe_dump(there, sort_keys=False)}---\n", {"all_ops": small}, name=NAME)
    data = yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))
    for key, before in (("dataset_info", infos), ("configs", files)):
        after = data[key] if isinstance(data[key], list) else [data[key]]
        found = {entry.get("config_name", "default"): entry for entry in after}
        assert found.keys() == before.keys() | {"all_ops"}
        for name in before.keys() - {"all_ops"}:
            expected = {"config_name": name, **before[name]}
            if len(after) == 1 and name == "default":
                del expected["config_name"]
            assert repr(sorted(found[name].items())) == repr(sorted(expected.items()))
    assert update_card(card, {"all_ops": small}, name=NAME) == card


@pytest.mark.parametrize(
    ("yaml_text", "message"),
    [
        ("configs: x", "`configs` in the card's YAML must be a list of configurations.*found 'x'"),
        ("configs: {config_name: a}", "`configs` in the card's YAML must be a list"),
        ("configs: [{data_files: x}]", "each with another `config_name`, found {'data_files': 'x'}"),
        ("configs: [{config_name: a}, {config_name: a}]", "each with another `config_name`"),
        ("dataset_info: [1]", "`dataset_info` in the card's YAML must be a list of configurations.*found 1"),
        ("tags: {a: 1}", "`tags` in the card's YAML must be a list of texts, found {'a': 1}"),
        ("source_datasets: [1]", "`source_datasets` in the card's YAML must be a list of texts"),
    ],
)
def test_odd_yaml_is_refused(config, yaml_text, message):
    with pytest.raises(FormatError, match=message):
        update_card(f"---\n{yaml_text}\n---\n", {"all_ops": config}, name=NAME)


# ------------------------------------------------------------------------------------------------------------ its text

HUMAN = st.text().filter(lambda text: not re.search(r"<!--[ \t]*hf_dr\b", text))


@FEW
@given(HUMAN, HUMAN, HUMAN, HUMAN)
def test_what_people_wrote_stays_byte_for_byte(small, first, second, third, last):
    card = update_card(None, {"a": named(small, "a"), "c": PLANNED}, name=NAME)
    head, *parts = re.split(r"(?=<!-- hf_dr: (?:head|config|foot))", card)
    card = head + f"{first}\n" + parts[0] + f"{second}\n" + parts[1] + f"{third}\n" + "".join(parts[2:]) + last
    changed = update_card(card, {"b": small, "c": named(small, "c")}, name=NAME)
    assert update_card(changed, {"b": small, "c": named(small, "c")}, name=NAME) == changed
    human, after = PART.split(card.split("\n---\n", 1)[1]), PART.split(changed.split("\n---\n", 1)[1])
    assert after.pop(2) == "\n\n"  # between a and b
    assert after == human
    assert all(text in piece for text, piece in zip((first, second, third, last), (*human[:3], human[-1]), strict=True))


@FEW
@given(st.permutations(["a", "b", "c"]))
def test_the_order_of_pushes_does_not_matter(small, names):
    configs = {"a": named(small, "a"), "b": named(PLANNED, "b"), "c": named(small, "c", overlay=True)}
    card = None
    for name in names:
        card = update_card(card, {name: configs[name]}, name=NAME)
    assert card == update_card(None, configs, name=NAME)


@FEW
@given(st.text())
def test_any_card_is_merged_with_or_refused(small, existing):
    card = update_card(existing, {"all_ops": small}, name=NAME)
    assert update_card(card, {"all_ops": small}, name=NAME) == card
    assert DatasetCard(card).data.dataset_info["config_name"] == "all_ops"


def test_who_deletes_the_head_has_no_need_of_it(config):
    card = update_card(None, {"a": named(config, "a")}, name=NAME)
    assert titles(card) == ["# tiny-plus"]
    without = PART.sub("", card, count=1)
    assert update_card(without, {"a": named(config, "a")}, name=NAME) == without


def test_a_new_run_replaces_its_part(config):
    card = update_card(None, {"a": named(config, "a")}, name=NAME)
    again = update_card(card, {"a": named(config, "a", seed=77)}, name="you/other")
    assert ("| Seed | 0 |" in card, "| Seed | 77 |" in again, "| Seed | 0 |" in again) == (True, True, False)
    assert '"you/other"' in again
    assert NAME not in again


@pytest.mark.parametrize("name", ["a\nb", "a`b", "<!-- hf_dr: end -->"])
def test_names_that_would_break_the_card_are_refused(config, name):
    with pytest.raises(ConfigError, match="a dataset's name must be printable"):
        update_card(None, {"a": config}, name=name)


def test_text_from_data_stays_in_its_place(config):
    bad = "<!-- hf_dr: end -->\n# Title | `x` [l](http://x) <script>"
    member = {"id": bad, "license": bad, "revision": bad, "preprocessing": {"size": [bad], "mean": bad}}
    hostile = named(
        config, "a", base={"id": bad, "config": bad, "revision": bad, "license": [bad]},
        created_with=bad, library_versions={bad: bad},
        teacher={"members": [member], "precision": bad, "device_type": bad}, augmentation=[{bad: {bad: [bad]}}],
        overlay=True,
    )  # fmt: skip
    hostile = replace(hostile, students=Students([bad, bad], [[bad, bad]]))
    card = update_card(None, {"a": hostile}, name=NAME)
    assert update_card(card, {"a": hostile}, name=NAME) == card
    assert "<script>" not in re.sub("`.*?`", "", card)
    assert titles(card) == ["# tiny-plus"]
    assert all(line.count(" | ") <= 5 for line in card.splitlines() if line.startswith("| "))


@pytest.mark.parametrize(
    ("license", "said"),
    [
        ("cc-by-nc-4.0", "licensed for non-commercial use only"),
        ("CC BY-NC-SA 3.0", "licensed for non-commercial use only"),
        ("PolyForm Non-Commercial", "licensed for non-commercial use only"),
        ("apache-2.0", None),
        ("cncf", None),
        (None, "**Unknown licence.** The licence of me/t is not known"),
    ],
)
def test_licences_of_teachers_are_called_out(config, license, said):
    card = update_card(
        None, {"a": named(config, "a", teacher={"members": [{"id": "me/t", "license": license}]})}, name=NAME
    )
    for text in ("licensed for non-commercial use only", "**Unknown licence.**"):
        assert (text in card) == (said is not None and text in said)
    assert f"| {license or 'unknown'} |" in card


def test_a_teacher_on_the_hub_can_be_asked_again(config):
    for revision, asked in (("0" * 40, True), ("main", False)):
        about = named(config, "a", teacher={"members": [{"id": "me/t", "license": "mit", "revision": revision}]})
        assert ("--no_teacher" in update_card(None, {"a": about}, name=NAME)) != asked


def test_without_labels_the_training_is_told_to_learn_stored_views_only(config):
    for column, told in (("label", False), (None, True)):
        about = named(config, "a", label_column=column)
        assert (
            "--batch_size 64 --reinforced_probability 1 --output_dir" in update_card(None, {"a": about}, name=NAME)
        ) == told


def test_what_only_a_run_can_tell_is_not_told_of_a_plan():
    card = update_card(None, {"plan": PLANNED}, name=NAME)
    assert "**Planned; not made yet.** 2 views of each example of [me/base]" in card
    assert not {"dataset_info", "configs", "size_categories"} & DatasetCard(card).data.to_dict().keys()
    assert "Rows" not in card
    assert "Fingerprint" not in card


# ------------------------------------------------------------------------------------------------------- with findings


def test_a_finding_is_kept_for_the_run_that_was_looked_at(folder, monkeypatch):
    """Also where the configuration was made again meanwhile: it has not been looked at."""
    config = folder / "all_ops"
    opened = Provenance.read(config)

    def verified_meanwhile(*given, **settings):
        report = verify(*given, **settings)
        replace(opened, seed=opened.seed + 1).write(config)
        return report

    monkeypatch.setattr("hf_dr.generation.verify.verify", verified_meanwhile)
    assert main(["verify", str(config), "--save", "--no_teacher", "--num_rows", "5"]) == 0
    assert json.loads((config / VERIFICATION_FILE).read_text())["fingerprint"] == opened.fingerprint


def test_findings_stand_in_the_card(folder, tiny_teacher):
    card = (folder / "README.md").read_text()
    assert "### Statistics" not in card
    assert main(["inspect", str(folder), "--save"]) == 0
    assert main(["verify", str(folder / "all_ops"), "--save", "--no_teacher", "--num_rows", "5"]) == 0
    fingerprint = Provenance.read(folder / "all_ops").fingerprint
    save_finding(folder / "all_ops", fingerprint, Students(["who", "top-1"], [["erm", "70.0 ± 0.1"]]))
    write_card(folder)
    card = (folder / "README.md").read_text()
    config = card_config(folder / "all_ops")
    size = f"{config.statistics.columns['teacher_logprobs']:,}"
    assert f"| log-probabilities | {size} |" in card
    assert f"| entropy | {config.statistics.entropy:.3f} nats" in card
    assert "| Rows replayed | 5 with 4 views each |\n| Equal bit for bit | 100.00 % |" in card
    assert "| Teacher's answers | not compared |" in card
    assert "| erm | 70.0 ± 0.1 |" in card
    assert f"(all_ops/{CONTACT_SHEET_FILE})" in card
    total = sum(
        int(n.replace(",", "")) for n in re.findall(r"^\| [a-z' -]+ \| ([\d,]+) \| [\d.]+ \|$", card, re.MULTILINE)
    )
    assert total == config.file_bytes
    assert datasets.load_dataset(str(folder), "all_ops", split="train").num_rows == 12


def test_an_overlay_gets_no_contact_sheet(overlay, tmp_path):
    folder = shutil.copytree(overlay / "over-plus", tmp_path / "over-plus")
    assert main(["inspect", str(folder), "--save"]) == 0
    assert (folder / "crops" / STATISTICS_FILE).is_file()
    assert not (folder / "crops" / CONTACT_SHEET_FILE).exists()
    assert "### Views" not in (folder / "README.md").read_text()


def test_a_failed_verification_is_told(folder):
    marker = json.loads((folder / "all_ops" / "reinforcement.json").read_text())["fingerprint"]
    report = {"fingerprint": marker, "ok": False, "num_rows": 3, "num_views": 4, "bit_equal": 0.99999}
    (folder / "all_ops" / VERIFICATION_FILE).write_text(json.dumps(report))
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "| `hf-dr verify` | **not ok** |" in card
    assert "| Equal bit for bit | 99.99 % |" in card


def test_a_verification_of_tails_is_told(folder):
    fingerprint = json.loads((folder / "all_ops" / "reinforcement.json").read_text())["fingerprint"]
    save_finding(folder / "all_ops", fingerprint, Verification(True, 3, 4, 1.0, 1e-9, 1e-8, 1.0, 2e-4))
    write_card(folder)
    assert "| KL of the images' tails, mean | 2.00e-04 nats |" in (folder / "README.md").read_text()


def test_save_needs_a_folder(capsys):
    assert main(["verify", "me/nowhere", "--save", "--no_teacher"]) == 2
    assert "`save` needs the dataset's folder, got me/nowhere" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- configurations


def test_unfinished_configurations_are_left_out_or_refused(folder):
    (folder / "all_ops" / "train-00001-of-00003.parquet").unlink()
    (folder / "README.md").unlink()
    write_card(folder)
    assert "all_ops" not in (folder / "README.md").read_text()
    with pytest.raises(FormatError, match=r"must have 3 shards, found 2 of them, e.g. no train-00001-of-00003.parquet"):
        card_config(folder / "all_ops")
    with pytest.raises(FormatError, match=r"must hold reinforcement.json, found none"):
        card_config(folder / "other")


def test_a_renamed_folder_is_refused_and_no_hindrance_to_others(folder, caplog):
    shutil.copytree(folder / "all_ops", folder / "backup")
    with pytest.raises(FormatError, match="must hold the configuration of its name, found `all_ops`"):
        card_config(folder / "backup")
    write_card(folder)
    assert "The card is written without news of `backup`: " in caplog.text
    assert "## all_ops" in (folder / "README.md").read_text()
    assert "backup" not in (folder / "README.md").read_text()


def test_a_card_that_could_not_be_written_is_known_before(folder, tmp_path):
    check_card(folder)
    check_card(tmp_path / "new")
    for card in ("---\nconfigs: 3\n---\n", "---\ndataset_info: [1]\n---\n", "---\ntags: {a: 1}\n---\n"):
        (folder / "README.md").write_text(card)
        with pytest.raises(FormatError, match="in the card's YAML must be"):
            check_card(folder)
    with pytest.raises(ConfigError, match="a dataset's name must be printable"):
        check_card(tmp_path / "a`b")


def test_a_card_that_is_no_text_is_refused(folder):
    (folder / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=r"README.md must be UTF-8, but"):
        write_card(folder)


def test_line_ends_of_a_card_stay(folder):
    (folder / "README.md").write_bytes(b"Words.\r\n")
    write_card(folder)
    text = (folder / "README.md").read_bytes()
    assert b"Words.\r\n" in text
    assert text.count(b"\n") == text.count(b"\r\n")
    assert load_reinforced(folder).num_views == 4


def test_cards_are_written_one_after_the_other(tiny_folder, tmp_path):
    """What another configuration adds between reading and writing would be lost."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "plus"))
    (folder / CARD_FILE).unlink()
    with ThreadPoolExecutor(1) as pool:
        with filelock.FileLock(folder / ".card.lock"):
            written = pool.submit(write_card, folder)
            with pytest.raises(TimeoutError):
                written.result(timeout=0.5)
            assert not (folder / CARD_FILE).exists()
        written.result()
    assert (folder / CARD_FILE).exists()
