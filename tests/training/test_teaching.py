"""Images held out of a training, and a temperature that moves into the weights."""

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageClassification, ViTConfig

from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.training.calibrating import last_layer
from hf_dr.training.students import build_student
from hf_dr.training.teaching import divide, held_out_rows

SIDE = 32


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_each_class_keeps_rows_on_both_sides(labels, share, seed):
    labels = np.array(labels)
    test = held_out_rows(labels, share, seed)
    assert np.array_equal(test, np.unique(test))
    for label in np.unique(labels):
        count = (labels == label).sum()
        held_out = (labels[test] == label).sum()
        assert held_out == 0 if count == 1 else 0 < held_out < count
        assert abs(held_out - share * count) <= 1
    assert np.array_equal(test, held_out_rows(labels, share, seed))


def test_what_is_held_out_differs_by_seed():
    labels = np.arange(100) % 2
    assert not np.array_equal(held_out_rows(labels, 0.2, 0), held_out_rows(labels, 0.2, 1))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_copies_of_an_image_are_on_one_side(rows, share, seed):
    labels = np.array([label for label, _ in rows])
    images = [f"{label} {image}" for label, image in rows]
    test = set(held_out_rows(labels, share, seed, images).tolist())
    for label in range(4):
        of_class = {image for image in images if image.startswith(str(label))}
        held_out = {image for n, image in enumerate(images) if n in test} & of_class
        learned = {image for n, image in enumerate(images) if n not in test} & of_class
        assert not held_out & learned
        assert len(held_out) == (min(max(1, round(share * len(of_class))), len(of_class) - 1) if of_class else 0)


def test_a_copy_in_another_class_is_held_out_with_the_first():
    labels = np.array([0, 0, 1, 1, 1])
    for seed in range(8):
        test = held_out_rows(labels, 0.5, seed, ["a", "b", "a", "c", "d"])
        assert (0 in test) == (2 in test)
        assert set(test) & {0, 1}
        assert set(test) & {3, 4}
        assert {0, 1} - set(test)


def test_copies_are_not_divided(tmp_path, tiny_dataset):
    twice = datasets.concatenate_datasets([tiny_dataset.select([0, 1, 8, 9])] * 5)
    divide(twice, "image", "label", tmp_path / "photos", share=0.5, seed=0)
    parts = datasets.load_dataset(str(tmp_path / "photos"))
    seen = {name: {image.tobytes() for image in part["image"]} for name, part in parts.items()}
    assert not seen["train"] & seen["test"]
    with pytest.raises(
        DataError, match="a class must have at least 2 different images for one to be held out, but none of 1 has"
    ):
        divide(tiny_dataset.select([0, 0, 0]), "image", "label", tmp_path / "other" / "photos", share=0.5, seed=0)


def test_both_parts_are_written_with_their_images(tmp_path, photos):
    dataset = datasets.load_dataset(str(photos), split="train")
    left = tmp_path / "photos" / ".train-00000-of-00001.parquet.machine-1-a.tmp"  # by a process that was killed
    left.parent.mkdir()
    left.touch()
    divide(dataset, "image", "label", tmp_path / "photos", share=0.25, seed=0)
    assert not left.exists()
    parts = datasets.load_dataset(str(tmp_path / "photos"))
    assert {name: len(part) for name, part in parts.items()} == {"train": 9, "test": 3}
    assert parts["train"].features == dataset.features
    found = [(row["image"].tobytes(), row["label"]) for part in parts.values() for row in part]
    assert sorted(found) == sorted((row["image"].tobytes(), row["label"]) for row in dataset)
    cells = parts["test"].cast_column("image", datasets.Image(decode=False))
    assert all(cell["bytes"] and "/" not in str(cell["path"]) for cell in cells["image"])

    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "photos").iterdir()}
    divide(dataset, "image", "label", tmp_path / "photos", share=0.25, seed=0)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "photos").iterdir()}
    with pytest.raises(ConfigError, match="same images and labels in the same way, but it differs in images, share"):
        divide(dataset.select(range(8)), "image", "label", tmp_path / "photos", share=0.5, seed=0)
    (tmp_path / "held_out.json").write_text("{")
    with pytest.raises(FormatError, match=r"held_out\.json must be JSON, but .* Choose another `output_dir`"):
        divide(dataset, "image", "label", tmp_path / "photos", share=0.25, seed=0)


def test_an_unreadable_image_is_named_by_its_own_file_before_anything_is_written(tmp_path, tiny_dataset):
    for n, name in enumerate(("cats/1.png", "cats/2.png", "dogs/1.png", "dogs/2.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        tiny_dataset[n]["image"].save(tmp_path / "photos" / name)
    bad = tmp_path / "photos" / "dogs" / "1.png"
    content = bad.read_bytes()
    bad.write_bytes(content[:100])
    dataset = datasets.load_dataset(str(tmp_path / "photos"), split="train")
    with pytest.raises(DataError, match=rf"the image of row 2 \({bad}\) must be readable, but: .* Fix it"):
        divide(dataset, "image", "label", tmp_path / "teacher" / "photos", share=0.5, seed=0)
    assert not (tmp_path / "teacher").exists()
    bad.write_bytes(content)  # what was found before of the same file is not believed
    divide(dataset, "image", "label", tmp_path / "teacher" / "photos", share=0.5, seed=0)


def test_nothing_to_hold_out(tmp_path, tiny_dataset, monkeypatch):
    monkeypatch.delattr("hf_dr.training.teaching.file_hashes")  # no image is read for it
    with pytest.raises(
        DataError, match="a class must have at least 2 different images for one to be held out, but none of 8 has"
    ):
        divide(tiny_dataset.select(range(8)), "image", "label", tmp_path / "x", share=0.2, seed=0)


def test_labels_that_are_no_classes_are_found_before_anything_is_written(tmp_path, tiny_dataset, monkeypatch):
    monkeypatch.delattr("hf_dr.training.teaching.file_hashes")  # no image is read for it
    table = tiny_dataset.data.table
    labels = pa.array([77, *table.column("label").to_pylist()[1:]])
    changed = table.set_column(table.column_names.index("label"), "label", labels)
    dataset = datasets.Dataset(changed, info=tiny_dataset.info, split="train")
    with pytest.raises(DataError, match="`label` must be from 0 to 7 in every row, found 77 in row 0"):
        divide(dataset, "image", "label", tmp_path / "x", share=0.5, seed=0)


def a_vit() -> torch.nn.Module:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=SIDE, patch_size=16,
        num_labels=5,
    )  # fmt: skip
    return AutoModelForImageClassification.from_config(config)


TWO_HEADS = {"img_size": SIDE, "patch_size": 16, "depth": 1, "embed_dim": 24}


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("timm:test_resnet", 5),
        ("timm:test_resnet", 48),  # as many as an inner layer has channels
        ("timm:test_vit", 5),
        ("timm:test_efficientnet", 5),
        ("vit", 5),
        ("timm:deit_tiny_distilled_patch16_224", 5),
        ("timm:deit_tiny_distilled_patch16_224", 24),  # as many as inner layers have outputs
    ],
)
def test_logits_are_divided_as_the_weights_of_the_last_layer_are(name, classes):
    torch.manual_seed(0)
    size = 160 if name == "timm:test_vit" else SIDE
    if name == "vit":
        model = a_vit()
    else:
        model = build_student(name, None, classes, model_args=TWO_HEADS if "distilled" in name else None, size=size)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # none is 0, as in a trained model
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        before = model.eval()(pixels).logits
        kept = {key: value.clone() for key, value in model.state_dict().items()}
        layer = last_layer(model, pixels)
        assert all(torch.equal(value, kept[key]) for key, value in model.state_dict().items()), "only tried"
        for weight in layer:
            weight.div_(1.7)
        assert torch.allclose(model(pixels).logits, before / 1.7, rtol=1e-4, atol=1e-5)


def test_a_model_that_cannot_take_it_stays_as_it_was():
    torch.manual_seed(0)
    model = build_student("timm:test_resnet", None, 5, size=SIDE)
    torch.nn.init.normal_(model.timm_model.fc.bias, std=3.0)  # logits that are far from 0
    model.timm_model.fc = torch.nn.Sequential(model.timm_model.fc, torch.nn.Tanh())
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert not last_layer(model, torch.randn(2, 3, SIDE, SIDE))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
