"""`inspect`: its numbers are those of a slow computation in plain Python; wrong labels come to light."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CLASSES, as_cell, colour_image
from samples import rewritten

import hf_dr.generation.answer_statistics
import hf_dr.generation.inspection
from hf_dr.errors import ConfigError, FormatError
from hf_dr.generation.answer_statistics import NUM_SUSPECTS
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.inspection import inspect
from hf_dr.generation.job import reinforce
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.findings import Statistics, read_finding, save_finding
from hf_dr.store.schema import EXTENDED_FROM
from hf_dr.teacher.topk import MIN_REST
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop, Resize
from hf_dr.views.ops.mixing import MixUp

CROP = Augmentation([RandomResizedCrop(16, scale=(0.5, 1.0))])


def shares_of(example: dict, left_out: set[int], rest: float, signal: str) -> dict[int, float]:
    """What each class that was left out has of the rest."""
    if signal == "sampled":
        return dict.fromkeys(left_out, 0.0)
    weights = dict.fromkeys(left_out, 1.0)
    if signal == "topk_image_tail":
        tail = dict(zip(example["tail_ids"], map(math.exp, example["tail_logprobs"]), strict=True))
        beyond = max(MIN_REST, 1 - sum(tail.values())) / max(1, len(CLASSES) - len(tail))
        weights = {c: tail.get(c, beyond) for c in left_out}
    return {c: rest * weight / sum(weights.values()) for c, weight in weights.items()}


def slow_statistics(folder, num_classes: int, signal: str) -> dict:
    """The definitions of the docstrings, one number after the other, through `load_dataset`."""
    plus = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), split="train")
    plus = plus.remove_columns("image")
    entropy, mass, nll, confidences, hits, rows = [], [], [], [], [], {}
    for example in plus:
        if example["image_hash"] is None:
            continue
        label_probabilities, sums = [], dict.fromkeys(range(num_classes), 0.0)
        for view, (ids, logprobs) in enumerate(zip(example["teacher_ids"], example["teacher_logprobs"], strict=True)):
            kept = [math.exp(value) for value in logprobs]
            rest = max(MIN_REST, 1 - sum(kept))
            mass.append(sum(kept))
            entropy.append(-sum(p * math.log(p) for p in kept))
            shares = shares_of(example, set(range(num_classes)) - set(ids), rest, signal)
            if signal != "sampled":
                entropy[-1] -= sum(p * math.log(p) for p in shares.values())
            if example.get("aug_partner", [-1] * 99)[view] >= 0:
                continue
            label = example["label"]
            probability = kept[ids.index(label)] if label in ids else shares[label]
            label_probabilities.append(probability)
            nll.append(-math.log(probability) if signal != "sampled" else 0)
            confidences.append(min(kept[0], 1.0))
            hits.append(ids[0] == label)
            for class_id, p in zip(ids, kept, strict=True):
                sums[class_id] += p
        if label_probabilities:
            favourite = max(sums, key=sums.get)
            count = len(label_probabilities)
            if favourite != label:
                rows[example["source_index"]] = (sum(label_probabilities) / count, favourite, sums[favourite] / count)
    ece = 0.0
    for n in range(15):
        inside = [i for i, c in enumerate(confidences) if n / 15 < c <= (n + 1) / 15]
        ece += abs(sum(hits[i] for i in inside) - sum(confidences[i] for i in inside)) / len(confidences)
    return {
        "entropy": np.mean(entropy),
        "kept_mass": np.mean(mass),
        "nll": np.mean(nll) if signal != "sampled" else None,
        "agreement": np.mean(hits),
        "ece": ece,
        "num_views": len(hits),
        "suspects": sorted((p, row, *favourite) for row, (p, *favourite) in rows.items())[:NUM_SUSPECTS],
    }


def check(folder) -> None:
    found = inspect(folder)
    expected = slow_statistics(folder / found.provenance.config_name, len(CLASSES), found.provenance.signal)
    assert found.entropy == pytest.approx(expected["entropy"], rel=1e-9)
    assert found.kept_mass == pytest.approx(expected["kept_mass"], rel=1e-9)
    for name in ("nll", "agreement", "ece", "num_views"):
        assert getattr(found.labels, name) == (expected[name] and pytest.approx(expected[name], rel=1e-9)), name
    suspects = [(s.label_probability, s.row, s.favourite, s.favourite_probability) for s in found.labels.suspects]
    assert len(suspects) == len(expected["suspects"]) > 0
    for one, other in zip(suspects, expected["suspects"], strict=True):
        assert one == pytest.approx(other)


@pytest.fixture
def mislabelled() -> datasets.Dataset:
    """60 images of which every third or so has another's label; row 17, a clear green, is called red."""
    rng = np.random.default_rng(1)
    shown = rng.integers(0, 8, 60)
    shown[17] = CLASSES.index("green")
    labels = np.where(rng.random(60) < 0.3, rng.integers(0, 8, 60), shown)
    labels[17] = CLASSES.index("red")
    images = [as_cell(colour_image(rng, int(colour))) for colour in shown]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict({"image": images, "label": labels.tolist()}, features=features, split="train")


def test_statistics_with_mixing_equal_a_slow_computation(tiny_folder):
    check(tiny_folder)


@pytest.mark.parametrize("top_k", [1, 3, 7, 8])
def test_statistics_equal_a_slow_computation(tmp_path, mislabelled, make_teacher, top_k):
    reinforce(mislabelled, make_teacher(20.0), CROP, ReinforceConfig(str(tmp_path), num_views=3, top_k=top_k))
    check(tmp_path)


@pytest.mark.parametrize("signal", ["topk_image_tail", "sampled"])
def test_statistics_of_other_signals_equal_a_slow_computation(tmp_path, mislabelled, make_teacher, monkeypatch, signal):
    monkeypatch.setattr(hf_dr.generation.inspection, "_BATCH_VALUES", 20)
    config = ReinforceConfig(str(tmp_path), num_views=3, top_k=3, signal=signal)
    reinforce(mislabelled, make_teacher(2.0), CROP, config)
    check(tmp_path)
    report = str(inspect(tmp_path))
    told = {
        "topk_image_tail": (
            "top 3 of 8 classes and a tail for each image",
            "the rest of the mass as in the image's tail",
        ),
        "sampled": ("3 of 8 classes, drawn", "of the drawn classes", "not known"),
    }
    assert all(text in report for text in told[signal])
    assert (inspect(tmp_path).statistics.nll is None) == (signal == "sampled")


def test_a_label_that_the_teacher_all_but_rules_out_has_its_stored_logarithm(tmp_path, mislabelled, make_teacher):
    """float64 has no probability below exp(-745), float16 its logarithm: nothing becomes infinite on the way."""
    reinforce(mislabelled, make_teacher(20_000), CROP, ReinforceConfig(str(tmp_path), num_views=2, top_k=len(CLASSES)))
    stored = load_reinforced(tmp_path)
    answers = [dict(zip(*stored.teacher_answer(row, view), strict=True)) for row in range(60) for view in range(2)]
    of_labels = [
        float(answer[label]) for answer, label in zip(answers, np.repeat(mislabelled["label"], 2), strict=True)
    ]
    assert min(of_labels) < -750
    found = inspect(tmp_path)
    assert found.labels.nll == pytest.approx(-np.mean(of_labels))
    fingerprint = found.provenance.fingerprint
    save_finding(tmp_path, fingerprint, found.statistics)
    assert read_finding(tmp_path, fingerprint, Statistics) == found.statistics


def test_a_tail_of_fewer_classes_than_there_are():
    """Golden: 120 classes, of which a tail has 100. Each answer's shares are those of the dense target."""
    found = inspect(Path(__file__).parents[1] / "golden" / "v3", "topk_image_tail")
    plus = load_reinforced(Path(__file__).parents[1] / "golden" / "v3", "topk_image_tail")
    entropies = []
    for row in range(len(plus)):
        tail_ids, tail = plus.image_tail(row)
        tail = np.exp(tail.astype(float))
        weights = np.full(120, (1 - tail.sum()) / 20)
        weights[tail_ids] = tail
        for view in range(plus.num_views):
            ids, logprobs = plus.teacher_answer(row, view)
            kept, rest = np.exp(logprobs.astype(float)), weights.copy()
            rest[ids] = 0
            target = rest * (1 - kept.sum()) / rest.sum()
            target[ids] = kept
            entropies.append(-(target * np.log(target)).sum())
    assert found.entropy == pytest.approx(np.mean(entropies), rel=1e-9)


def test_batches_of_one_row_give_the_same(tmp_path, mislabelled, tiny_teacher, monkeypatch):
    """The list of suspects is longer than a batch, and more rows want to be on it than it takes."""
    reinforce(mislabelled, tiny_teacher, CROP, ReinforceConfig(str(tmp_path), num_views=3, top_k=2, shard_size=23))
    whole = inspect(tmp_path)
    monkeypatch.setattr(hf_dr.generation.answer_statistics, "NUM_SUSPECTS", 5)
    assert inspect(tmp_path).labels.suspects == whole.labels.suspects[:5]
    monkeypatch.setattr(hf_dr.generation.inspection, "_BATCH_VALUES", 1)
    piecewise = inspect(tmp_path)
    assert len(whole.labels.suspects) > 5
    assert piecewise.labels.suspects == whole.labels.suspects[:5]
    for name in ("entropy", "kept_mass"):
        assert getattr(piecewise, name) == pytest.approx(getattr(whole, name))
    for name in ("nll", "ece", "agreement"):
        assert getattr(piecewise.labels, name) == pytest.approx(getattr(whole.labels, name))


def test_a_planted_wrong_label_is_the_most_suspicious(tmp_path, tiny_dataset, tiny_teacher):
    labels = list(tiny_dataset["label"])
    labels[10] = CLASSES.index("magenta")  # it shows green, the opposite
    feature = tiny_dataset.features["label"]
    planted = tiny_dataset.remove_columns("label").add_column("label", labels, feature=feature)
    centre = Augmentation([Resize((16, 16))])
    reinforce(planted, tiny_teacher, centre, ReinforceConfig(str(tmp_path), num_views=2, top_k=4))
    found = inspect(tmp_path)
    (suspect,) = found.labels.suspects
    assert (suspect.row, suspect.label_name, suspect.favourite_name) == (10, "magenta", "green")
    assert suspect.favourite_probability > 0.5
    assert suspect.label_probability < 0.1
    assert found.labels.agreement == pytest.approx(11 / 12)
    line = next(line for line in str(found).splitlines() if "magenta" in line)
    assert line.split() == [
        "10",
        "magenta",
        f"{suspect.label_probability:.4f}",
        "green",
        f"{suspect.favourite_probability:.4f}",
    ]


def test_suspicious_labels_come_with_the_files_of_their_images(tmp_path, tiny_dataset, tiny_teacher):
    labels = list(tiny_dataset["label"])
    labels[10] = CLASSES.index("magenta")  # it shows green, the opposite
    cells = tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"]
    cells = [{"bytes": cell["bytes"], "path": f"{row}.png"} for row, cell in enumerate(cells)]
    base = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=tiny_dataset.features)
    for overlay in (False, True):  # an overlay has no images
        config = ReinforceConfig(str(tmp_path / str(overlay)), num_views=2, top_k=4, overlay=overlay)
        reinforce(base, tiny_teacher, Augmentation([Resize((16, 16))]), config)
        found = inspect(tmp_path / str(overlay))
        (suspect,) = found.labels.suspects
        assert (suspect.row, suspect.file) == (10, None if overlay else "10.png")
        assert (" 10.png" in str(found), "  probability  file" in str(found)) == (not overlay, not overlay)


def test_bytes_are_those_of_the_files(tiny_folder):
    found = inspect(tiny_folder)
    shards = sorted((tiny_folder / "all_ops").glob("*.parquet"))
    assert found.file_bytes == sum(path.stat().st_size for path in shards)
    columns = found.columns
    assert list(columns) == pq.read_schema(shards[0]).names
    assert min(columns.values()) > 0
    groups = [pq.read_metadata(path).row_group(0) for path in shards]
    expected = sum(g.column(n).total_compressed_size for g in groups for n in range(g.num_columns))
    assert sum(columns.values()) == expected < found.file_bytes


def test_columns_whose_names_begin_alike_are_told_apart(tmp_path, tiny_dataset, tiny_teacher):
    more = tiny_dataset.add_column("label.x", ["a" * 500] * 12).add_column("label.x.y", [{"z": n} for n in range(12)])
    reinforce(more, tiny_teacher, CROP, ReinforceConfig(str(tmp_path), num_views=1, top_k=1, shard_size=12))
    (path,) = (tmp_path / "default").glob("*.parquet")
    group = pq.read_metadata(path).row_group(0)
    expected = {}
    for n in range(group.num_columns):
        column = group.column(n)
        name = {"label.x.y.z": "label.x.y"}.get(column.path_in_schema, column.path_in_schema)
        expected[name] = column.total_compressed_size
    found = inspect(tmp_path).columns
    assert {name: found[name] for name in ("label", "label.x", "label.x.y")} == {
        name: expected[name] for name in ("label", "label.x", "label.x.y")
    }


def test_without_labels_their_part_is_left_out(tmp_path, tiny_dataset, tiny_teacher):
    reinforce(
        tiny_dataset.remove_columns("label"), tiny_teacher, CROP, ReinforceConfig(str(tmp_path), num_views=2, top_k=3)
    )
    found = inspect(tmp_path)
    assert found.labels is None
    assert 0 < found.entropy < math.log(8)
    assert "left out: the dataset has no labels" in str(found)
    assert "suspicious" not in str(found)
    assert json.loads(json.dumps(found.to_dict()))["labels"] is None


def test_where_every_view_is_mixed_labels_are_left_out(tmp_path, tiny_dataset, tiny_teacher):
    always = Augmentation([Resize((8, 8)), MixUp(alpha=100, p=1)])
    reinforce(tiny_dataset, tiny_teacher, always, ReinforceConfig(str(tmp_path), num_views=2, top_k=3))
    found = inspect(tmp_path)
    assert found.labels is None
    assert "left out: every view is mixed" in str(found)


def test_plain_numbers_serve_as_names(tmp_path, tiny_dataset, tiny_teacher):
    numbers = tiny_dataset.remove_columns("label").add_column("label", [7] * 12)
    reinforce(numbers, tiny_teacher, CROP, ReinforceConfig(str(tmp_path), num_views=2, top_k=3))
    suspect = inspect(tmp_path).labels.suspects[0]
    assert (suspect.label_name, suspect.favourite_name) == ("7", str(suspect.favourite))


def test_rows_without_reinforcement_are_not_counted(tmp_path, tiny_dataset, tiny_teacher, monkeypatch):
    cells = tiny_dataset.cast_column("image", datasets.Image(decode=False))["image"]
    cells = [{"bytes": b"broken", "path": None} if row in (0, 7) else cell for row, cell in enumerate(cells)]
    broken = tiny_dataset.remove_columns("image").add_column("image", cells, feature=datasets.Image())
    config = ReinforceConfig(str(tmp_path), num_views=3, top_k=3, on_bad_image="skip", shard_size=7)
    reinforce(broken, tiny_teacher, CROP, config)
    found = inspect(tmp_path)
    assert found.num_reinforced == 10
    assert found.labels.num_views == 30
    assert "2 of them without reinforcement" in str(found)
    monkeypatch.setattr(hf_dr.generation.inspection, "_BATCH_VALUES", 1)  # batches of one row: some are empty
    assert inspect(tmp_path).num_reinforced == 10


def test_the_report_says_what_there_is(tiny_folder):
    found = inspect(tiny_folder, "all_ops")
    report = str(found)
    for expected in (
        "all_ops, split train", "12, all reinforced", "4, top 3 of 8 classes, seed 0", "RandomResizedCrop(size=24",
        "colours, licence cc0-1.0", "= reinforcement", "teacher_logprobs", "100.0 %", "ECE, 15 bins",
    ):  # fmt: skip
        assert expected in report
    as_json = json.loads(json.dumps(found.to_dict()))
    assert as_json["provenance"]["num_views"] == 4
    assert as_json["labels"]["suspects"][0]["row"] == found.labels.suspects[0].row
    assert {"name": "label", "num_bytes": found.columns["label"]} in as_json["columns"]
    teacher = {**found.provenance.teacher, "temperature": 1.5, EXTENDED_FROM: {"num_members": 1}}
    extended = str(dataclasses.replace(found, provenance=dataclasses.replace(found.provenance, teacher=teacher)))
    assert "at the temperature 1.5" in extended
    assert "the first 1 by their stored top 3 answers" in extended


def test_no_image_is_decoded(tiny_folder, monkeypatch):
    monkeypatch.setattr("PIL.Image.open", lambda *_, **__: pytest.fail("an image was opened"))
    assert inspect(tiny_folder).labels


def test_a_missing_shard_is_named(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    (tmp_path / "copy" / "all_ops" / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(FormatError, match=r"must have 3 shards, found 2 of them, e.g. no train-00001-of-00003.parquet"):
        inspect(tmp_path / "copy")


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("teacher_ids", lambda ids: 8),
        ("teacher_ids", lambda ids: ids[-1]),
        ("teacher_logprobs", lambda logprobs: np.float16(np.nan)),
    ],
)
def test_damaged_answers_are_refused(tmp_path, tiny_folder, column, wrong):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    path = tmp_path / "copy" / "all_ops" / "train-00001-of-00003.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(column)
    values = table.column(column).to_pylist()
    values[3][1][0] = wrong(values[3][1])
    field = table.schema.field(column)
    table = table.set_column(place, field, pa.array(values, field.type))
    pq.write_table(table.replace_schema_metadata(pq.read_metadata(path).metadata), path)
    with pytest.raises(
        FormatError, match="must be finite and of classes below 8, each once, found others in rows 5 to 9"
    ):
        inspect(tmp_path / "copy")


@pytest.mark.parametrize("number", [3, None])
def test_rows_out_of_order_are_refused(tmp_path, tiny_folder, number):
    shutil.copytree(tiny_folder, tmp_path / "copy")

    def numbered(table: pa.Table) -> pa.Table:
        numbers = pa.array([5, 6, number, 8, 9], pa.int64())
        return table.set_column(table.column_names.index("source_index"), table.schema.field("source_index"), numbers)

    path = tmp_path / "copy" / "all_ops" / "train-00001-of-00003.parquet"
    rewritten(path, numbered)
    with pytest.raises(
        FormatError, match=rf"{path.name} must hold rows 5 to 9 in order \(`source_index`\), found others"
    ):
        inspect(tmp_path / "copy")


def test_labels_that_are_no_numbers_are_refused(tmp_path, tiny_folder):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    for path in (tmp_path / "copy" / "all_ops").glob("*.parquet"):
        rewritten(path, lambda table: table.set_column(1, "label", table["label"].cast(pa.string())))
    with pytest.raises(FormatError, match=r"the labels `label` must be whole numbers, found string. Fetch it again"):
        inspect(tmp_path / "copy")


def test_an_opened_dataset_is_inspected_by_its_files(tiny_folder, tiny_plus):
    expected = inspect(tiny_folder)
    assert inspect(tiny_plus) == inspect(tiny_plus.select([3, 1])) == inspect(str(tiny_folder), "all_ops") == expected
    with pytest.raises(ConfigError, match="`name` and `revision` must come with a path, got an opened dataset"):
        inspect(tiny_plus, "all_ops")
    in_memory = ReinforcedDataset(tiny_plus.plus, tiny_plus.provenance)
    for given in (CombinedReinforcedDataset([tiny_plus]), in_memory):
        with pytest.raises(
            ConfigError, match=f'`plus` must be one "\\+" dataset with files, got {type(given).__name__}'
        ):
            inspect(given)


def test_wrong_names(tmp_path, tiny_folder):
    with pytest.raises(ConfigError, match=r"no configuration `all_op`. Did you mean `all_ops`"):
        inspect(tiny_folder, "all_op")
    with pytest.raises(FormatError, match=r'must hold a "\+" dataset'):
        inspect(tmp_path)


def test_candidates_are_told():
    report = str(inspect(Path(__file__).parents[1] / "golden" / "v3", "candidates"))
    assert "of 24 drawn, those with the highest entropy of the teacher's answer" in report
