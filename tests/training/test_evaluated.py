"""What a student is evaluated on, and a student that is given by its name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import ConvNextImageProcessor, ViTImageProcessor

from hf_dr.errors import ConfigError, DataError
from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.run import run_evaluation
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.metrics import compute_metrics
from hf_dr.teacher.preprocessing import evaluation_augmentation
from hf_dr.training.loader import ReinforcedLoader
from hf_dr.training.student_inputs import LabelledImages
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop, Resize
from training.helpers import BATCH, ROWS, SIZE, pooled, same, timm_student, transformers_student, weights


def top1(prediction):
    return {"top1": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def test_persistent_workers_evaluate_what_is_given(tiny_dataset, plain, settings):
    parts = [tiny_dataset.select(range(4)), tiny_dataset.select(range(4, ROWS))]
    losses = []
    for more in ({}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}):
        trainer = ReinforcedTrainer(pooled(), settings(**more), train_dataset=plain)
        losses.append([trainer.evaluate(part)["eval_loss"] for part in parts])
        several = trainer.evaluate({"a": parts[0], "b": parts[1]})
        losses.append([several["eval_a_loss"], several["eval_b_loss"]])
    assert losses[0][0] != losses[0][1]
    assert losses == [losses[0]] * 4


def test_images_that_are_set_later_are_evaluated(tiny_dataset, plain, settings):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain)
    trainer.eval_dataset = tiny_dataset
    assert len(trainer.get_eval_dataloader().dataset) == len(tiny_dataset)
    trainer.eval_dataset = {"a": tiny_dataset}
    assert trainer.evaluate()["eval_a_loss"] == trainer.evaluate(tiny_dataset)["eval_loss"]


def test_a_loader_of_ones_own_that_tells_no_dataset_is_evaluated(tiny_dataset, plain, settings):
    class Listed(ReinforcedTrainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return list(super().get_eval_dataloader(eval_dataset))

        get_test_dataloader = get_eval_dataloader

    class Looped(ReinforcedTrainer):
        def get_eval_dataloader(self, eval_dataset=None):
            return ReinforcedLoader(
                self.eval_dataset, BATCH, device="cpu", reinforced_probability=1, view_order="random"
            )

    # Where a loader tells no dataset, Trainer takes the rows of a batch for those of one in training.
    alike = {"per_device_eval_batch_size": BATCH}
    for more in ({}, {"ema_decay": 0.5}):
        usual, listed = (
            kind(pooled(), settings(**alike, **more), train_dataset=plain, eval_dataset=tiny_dataset)
            for kind in (ReinforcedTrainer, Listed)
        )
        assert listed.evaluate()["eval_loss"] == usual.evaluate()["eval_loss"]
        found, expected = (trainer.predict(tiny_dataset).predictions for trainer in (listed, usual))
        assert np.array_equal(found, expected)
    assert np.isfinite(Looped(pooled(), settings(), train_dataset=plain, eval_dataset=plain).evaluate()["eval_loss"])


def test_a_loader_that_can_be_read_once_is_not_evaluated_twice(tiny_dataset, plain, settings):
    """The averaged weights were measured on nothing, without a word."""

    class Once(ReinforcedTrainer):
        def get_eval_dataloader(self, eval_dataset=None):
            yield from super().get_eval_dataloader(eval_dataset)

    given = {"train_dataset": plain, "eval_dataset": tiny_dataset}
    alike = {"per_device_eval_batch_size": BATCH}
    usual = ReinforcedTrainer(pooled(), settings(**alike), **given).evaluate()
    assert Once(pooled(), settings(**alike), **given).evaluate()["eval_loss"] == usual["eval_loss"]
    trainer = Once(pooled(), settings(**alike, ema_decay=0.5), **given)
    with pytest.raises(
        ConfigError, match=r"read again with `ema_decay`, .* got generator\. Return a DataLoader or a list"
    ):
        trainer.evaluate()


def test_reinforced_data_of_other_classes_is_not_evaluated(plain, settings, tiny_dataset, tiny_teacher, tmp_path):
    names = plain.class_names[::-1]
    other = tiny_dataset.cast_column("label", datasets.ClassLabel(names=names))
    augmentation = Augmentation([RandomResizedCrop(SIZE)])
    teacher = Teacher([replace(tiny_teacher.members[0], labels=None)])
    held_out = reinforce(other, teacher, augmentation, ReinforceConfig(str(tmp_path / "other"), num_views=1, top_k=3))
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain)
    with pytest.raises(ConfigError, match=f"`eval_dataset` must have the classes of .* class 0 is '{names[0]}' there"):
        trainer.evaluate(held_out)
    linear = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 9))
    teacher = Teacher.from_model(linear, "linear", size=SIZE, normalization=((0.5,) * 3, (0.5,) * 3), device="cpu")
    config = ReinforceConfig(str(tmp_path / "more"), num_views=1, top_k=3, label_column="none")
    held_out = reinforce(tiny_dataset, teacher, augmentation, config)
    with pytest.raises(ConfigError, match="`eval_dataset` must have the 8 classes of the training set, got 9"):
        trainer.evaluate(held_out)


def test_a_plain_dataset_is_evaluated_as_its_images(tiny_dataset, plain, pictures, settings):
    renamed = tiny_dataset.rename_columns({"image": "photo", "label": "kind"})
    several = {"one": tiny_dataset, "other": renamed, "pictures": pictures}
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset=several, compute_metrics=top1)
    metrics = trainer.evaluate()
    assert metrics["eval_one_loss"] == metrics["eval_other_loss"] == metrics["eval_pictures_loss"] > 0
    assert trainer.evaluate(tiny_dataset)["eval_loss"] == metrics["eval_one_loss"]
    predicted = trainer.predict(tiny_dataset)
    assert predicted.predictions.shape == (len(tiny_dataset), 8)
    assert predicted.label_ids.tolist() == tiny_dataset["label"][:]

    def own(rows):
        return {"pixel_values": [torch.zeros(3, SIZE, SIZE)] * len(rows["label"]), "labels": rows["label"]}

    args = settings(remove_unused_columns=False)
    grey = ReinforcedTrainer(pooled(), args, train_dataset=plain, eval_dataset=tiny_dataset.with_transform(own))
    assert grey.evaluate()["eval_loss"] != metrics["eval_one_loss"]


@pytest.mark.parametrize("half", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_in_half_precision_leaves_the_weights_whole(plain, pictures, settings, half):
    """A save or a training may come after it. Trainer halves them for good."""
    found = {}
    for name in (half, "prediction_loss_only"):  # the second halves nothing
        student = timm_student("test_resnet")
        torch.nn.init.normal_(student.timm_model.get_classifier().weight)
        args = settings(max_steps=2, ema_decay=0.5, **{name: True})
        trainer = ReinforcedTrainer(student, args, train_dataset=plain, eval_dataset=pictures)
        trainer.evaluate()
        trainer.train()
        before = weights(student)
        found[name] = trainer.evaluate(), before
        trainer.predict(pictures)
        assert {value.dtype for value in before.values()} == {torch.float32, torch.int64}
        assert same(weights(student), before)
    (halved, trained), (whole, expected) = found.values()
    assert same(trained, expected)
    for loss in ("eval_loss", "eval_ema_loss"):
        assert halved[loss] != whole[loss]
        assert halved[loss] == pytest.approx(whole[loss], rel=0.05)


@pytest.mark.parametrize("half", ["bf16_full_eval", "fp16_full_eval"])
@pytest.mark.parametrize("make", [pooled, lambda: transformers_student("resnet")])
def test_a_model_that_casts_no_inputs_is_evaluated_in_half_precision(plain, pictures, settings, half, make):
    student = make()
    losses = []
    for name in (half, "prediction_loss_only"):  # the second halves nothing
        trainer = ReinforcedTrainer(student, settings(**{name: True}), train_dataset=plain, eval_dataset=pictures)
        losses += [trainer.evaluate()["eval_loss"], trainer.evaluate(plain)["eval_loss"]]
    assert losses[:2] == pytest.approx(losses[2:], rel=0.02)
    assert losses[:2] != losses[2:]


@pytest.mark.parametrize(
    ("labels", "found"), [([-1] * ROWS, r"-1, which is no label, in row 0 \(12 such rows\)"), ([0] * 11 + [8], "8 in row 11"),
                          ([0] * 5 + [None] + [1] * 6, r"none in row 5 \(1 such rows\)\. Take a split with labels")],
)  # fmt: skip
@pytest.mark.parametrize("wrapped", [False, True])
def test_labels_are_looked_at_before_the_training(tiny_dataset, plain, settings, labels, found, wrapped):
    images = tiny_dataset.remove_columns("label").add_column("label", labels)

    def make() -> None:
        given = LabelledImages(images, evaluation_augmentation((SIZE, SIZE))) if wrapped else {"test": images}
        ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset=given)

    with pytest.raises(DataError, match=rf"the labels .* must be from 0 .* in every row, found {found}"):
        make()


def test_sets_of_a_training_on_other_data_stay_the_users_own(settings):
    """What is added to the dictionary later is evaluated, too."""
    rows = [{"pixel_values": torch.zeros(3, SIZE, SIZE), "labels": n % 2} for n in range(4)]
    given = {"a": rows}
    trainer = ReinforcedTrainer(
        timm_student(), settings(reinforced_probability=0), train_dataset=rows, eval_dataset=given
    )
    assert trainer.eval_dataset is given


def test_metrics_may_be_of_the_images(plain, pictures, settings):
    seen = []
    for student in (pooled(), transformers_student("vit")):
        trainer = ReinforcedTrainer(
            student, settings(include_for_metrics=["inputs"]), train_dataset=plain, eval_dataset=pictures,
            compute_metrics=lambda prediction: seen.append(prediction.inputs) or {},
        )  # fmt: skip
        trainer.evaluate()
    assert seen[0].shape == (ROWS, 3, SIZE, SIZE)
    assert np.array_equal(*seen)


def test_predictions_are_of_one_dataset(tiny_dataset, plain, settings):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain)
    for several in (
        {"one": tiny_dataset, "other": tiny_dataset},
        datasets.DatasetDict(one=tiny_dataset, other=tiny_dataset),
    ):
        with pytest.raises(
            ConfigError, match=r"`test_dataset` must be one dataset, got several by name \(one, other\)\. Give"
        ):
            trainer.predict(several)
    with pytest.raises(ConfigError, match=r"`test_dataset` must be a datasets\.Dataset, or make its `pixel_values`"):
        trainer.predict(tiny_dataset.to_iterable_dataset())
    renamed = tiny_dataset.cast_column("label", datasets.ClassLabel(names=tiny_dataset.features["label"].names[::-1]))
    with pytest.raises(ConfigError, match="`test_dataset` must have the classes of"):
        trainer.predict(renamed)


@pytest.mark.parametrize(
    ("labels", "kind"), [([0.0] * ROWS, "double"), (["0"] * ROWS, "string"), ([True] * ROWS, "bool")]
)
def test_labels_that_are_no_whole_numbers_are_refused(tiny_dataset, labels, kind):
    images = tiny_dataset.remove_columns("label").add_column("label", labels)
    with pytest.raises(DataError, match=rf"must be whole numbers, the places of their classes, found {kind}\. Convert"):
        LabelledImages(images, evaluation_augmentation((SIZE, SIZE)))


class OwnRows(torch.utils.data.Dataset):
    """Rows as a user's own dataset may have them."""

    def __init__(self, *rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


PIXELS = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
GOOD = {"pixel_values": PIXELS, "labels": 1}
MALFORMED = {
    "no label": (
        {"labels": -1},
        r"`labels` must be from 0 to 7, the classes of the model, found -1 in row 1 of the batch \(1",
    ),
    "no class": ({"labels": 8}, r"`labels` must be from 0 to 7, .* found 8 in row 1 .*\. Leave these rows out"),
    "None": ({"labels": None}, "must be dictionaries with the same names, .* but: RuntimeError: .*NoneType"),
    "another size": ({"pixel_values": PIXELS[:, 1:]}, "tensors of the same shapes and numbers, but: RuntimeError"),
}


@pytest.mark.parametrize("kind", MALFORMED)
@pytest.mark.parametrize("workers", [0, 1])
def test_rows_of_ones_own_are_refused_in_words(plain, settings, kind, workers):
    changes, message = MALFORMED[kind]
    args = settings(dataloader_num_workers=workers)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain, compute_metrics=compute_metrics)
    rows = OwnRows(GOOD, {**GOOD, **changes})
    for measure in (trainer.evaluate, trainer.predict)[: 2 - workers]:
        with pytest.raises(DataError, match=message):
            measure(rows)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"labels": 1},
            "the rows of a batch must hold `pixel_values`, found labels. Let the dataset, its transform or the",
        ),
        ({**GOOD, "labels": 1.5}, r"`labels` must be whole numbers from 0 to 7, found 1\.5\. Convert them to int"),
        ({**GOOD, "labels": "cat"}, r"`labels` must be whole numbers from 0 to 7, found 'cat'"),
        (1, r"the rows of a batch must be dictionaries .* but: TypeError: .*\. Check the dataset, or its transform"),
    ],
)
def test_what_all_rows_of_ones_own_lack_is_told(plain, settings, row, message):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, compute_metrics=compute_metrics)
    with pytest.raises(DataError, match=message):
        trainer.evaluate(OwnRows(row, row))


def test_a_row_that_the_loss_leaves_out_and_a_collator_of_ones_own_are_left_alone(plain, settings):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain)
    assert trainer.evaluate(OwnRows(GOOD, {**GOOD, "labels": -100}))["eval_loss"] > 0

    def own(rows):
        raise KeyError("mine")

    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, data_collator=own)
    with pytest.raises(KeyError, match="mine"):
        trainer.evaluate(OwnRows(GOOD))


@pytest.mark.parametrize(("label", "smoothing"), [(700, 0), (700, 0.1), (-1, 0.1)])
def test_a_label_that_is_none_of_the_classes_is_named_by_the_loss_of_the_model(settings, label, smoothing):
    args = settings(per_device_train_batch_size=2, label_smoothing_factor=smoothing)
    trainer = ReinforcedTrainer(timm_student(), args, train_dataset=OwnRows(GOOD, {**GOOD, "labels": label}))
    with pytest.raises(
        DataError, match=f"`labels` must be from 0 to 7, the classes of the model, found {label} in row"
    ):
        trainer.train()


def test_a_row_that_is_left_out_of_a_smoothed_loss_passes(settings):
    args = settings(per_device_train_batch_size=2, label_smoothing_factor=0.1)
    trainer = ReinforcedTrainer(timm_student(), args, train_dataset=OwnRows(GOOD, {**GOOD, "labels": -100}))
    assert trainer.train().training_loss > 0


def test_a_collator_that_drops_the_pixels_is_refused(plain, settings):
    def own(rows):
        return {"labels": torch.zeros(len(rows), dtype=torch.int64)}

    for changes in ({}, {"mixup_alpha": 1.0, "reinforced_probability": 0.0}):
        trainer = ReinforcedTrainer(pooled(), settings(**changes), train_dataset=plain, data_collator=own)
        with pytest.raises(
            DataError, match=r"must hold `pixel_values`, found labels\. .* the `data_collator` keep them"
        ):
            trainer.train()


def test_the_names_of_the_classes_are_read_once(tiny_dataset, plain, settings, monkeypatch):
    """Each reading copies all columns' types: class by class, an evaluation on ImageNet began with seconds of it."""
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset=tiny_dataset)
    read = []
    names = type(plain).class_names.fget
    monkeypatch.setattr(type(plain), "class_names", property(lambda plus: read.append(plus) or names(plus)))
    trainer.evaluate()
    assert len(read) == 1


def test_other_classes_or_none_are_refused(tiny_dataset, plain, settings):
    names = tiny_dataset.features["label"].names
    turned = tiny_dataset.cast_column("label", datasets.ClassLabel(names=[*names[1:], names[0]]))
    words = tiny_dataset.remove_columns("label").add_column("label", ["cat"] * len(tiny_dataset))
    for images, error, message in (
        (turned, ConfigError, "must have the classes of the .* but class 0 is 'blue' there and 'black'"),
        (
            words,
            DataError,
            "`label` must hold class numbers, got Value.*Number .* `dataset.class_encode_column\\('label'\\)`",
        ),
        (tiny_dataset.select_columns(["image"]), DataError, "`eval_dataset` must have a column of labels, found image"),
        (
            LabelledImages(tiny_dataset, evaluation_augmentation((SIZE, SIZE)), label_column=None),
            DataError,
            "`eval_dataset` must have labels, got LabelledImages without",
        ),
    ):
        with pytest.raises(error, match=message):
            ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset=images)


@pytest.mark.parametrize("kind", ["uint8", "int64"])
def test_labels_of_any_whole_numbers_are_predicted(kind, tiny_dataset, plain, settings):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, compute_metrics=compute_metrics)
    images = tiny_dataset.cast_column("label", datasets.Value(kind))
    assert trainer.predict(images).label_ids.tolist() == tiny_dataset["label"][:]


@pytest.mark.parametrize("labels", ["none", "no class"])
def test_images_without_labels_are_predicted(labels, tiny_dataset, plain, settings):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, compute_metrics=compute_metrics)
    images = tiny_dataset.remove_columns("label")
    if labels == "no class":
        images = images.add_column("label", [-1] * len(images)).cast_column("label", tiny_dataset.features["label"])
    found = trainer.predict(images)
    assert np.array_equal(found.predictions, trainer.predict(tiny_dataset).predictions)
    assert found.label_ids is None
    with pytest.raises(DataError, match=r"found -1, which is no label, in row 0|must have a column of labels"):
        trainer.evaluate(images)


def test_images_without_a_training_set_are_refused(tiny_dataset, settings):
    trainer = ReinforcedTrainer(timm_student(), settings(), eval_dataset=tiny_dataset)
    named = ReinforcedTrainer(timm_student(), settings(), eval_dataset={"a": tiny_dataset})
    for measure in (trainer.evaluate, named.evaluate, lambda: trainer.predict(tiny_dataset)):
        with pytest.raises(ConfigError, match="images can be evaluated with a `train_dataset` of this package"):
            measure()


def test_a_student_by_its_name(plain, pictures, settings, tmp_path):
    fresh = [ReinforcedTrainer("timm:test_resnet", settings(), train_dataset=plain) for _ in range(2)]
    assert same(weights(fresh[0].model), weights(fresh[1].model))
    assert fresh[0].model.config.pretrained_cfg["input_size"] == [3, SIZE, SIZE]
    assert list(fresh[0].model.config.id2label.values()) == plain.class_names

    folder = tmp_path / "vit"
    student = transformers_student("vit")
    student.save_pretrained(folder)
    ViTImageProcessor(size={"height": 48, "width": 48}, image_mean=[0.1] * 3).save_pretrained(folder)
    trainer = ReinforcedTrainer(folder, settings(max_steps=1), train_dataset=plain, eval_dataset=pictures)
    assert same(weights(trainer.model), weights(student))
    assert dict(trainer.processing_class.size) == {"height": SIZE, "width": SIZE}
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    with pytest.raises(
        ConfigError, match="`model` must be a model where `train_dataset` is not what `load_reinforced` re"
    ):
        ReinforcedTrainer("timm:test_resnet", settings(), train_dataset=pictures)


def test_a_student_of_timm_from_a_file(tmp_path):
    three = build_student("timm:test_resnet", ["a", "b", "c"], 3)
    native = three.timm_model.state_dict()
    save_file(native, tmp_path / "own.safetensors")
    name = f"timm:test_resnet@{tmp_path / 'own.safetensors'}"
    assert same(weights(build_student(name, ["a", "b", "c"], 3)), weights(three))
    more = build_student(name, None, 8).timm_model.state_dict()
    assert [key for key in native if more[key].shape != native[key].shape] == ["fc.weight", "fc.bias"]
    assert all(torch.equal(more[key], native[key]) for key in native if not key.startswith("fc."))
    with pytest.raises(
        ConfigError, match=r"own\.safetensors must be those of timm's test_vit, but \d+ of them do not fit"
    ):
        build_student(name.replace("test_resnet", "test_vit"), None, 8)
    (tmp_path / "own.safetensors").write_bytes(b"nothing")
    for file in (name, "timm:test_resnet@nowhere.safetensors"):
        with pytest.raises(ConfigError, match=r"must name a \.safetensors file, but .* cannot be read"):
            build_student(file, None, 8)


def saved_by_timm(folder: Path, classes: int = 8) -> Path:
    """What timm itself exports, with the number of classes among the arguments of the architecture."""
    model = timm.create_model("test_resnet", num_classes=classes)
    torch.nn.init.normal_(model.fc.weight)  # answers that depend on the image
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return folder


def saved_by_transformers(folder: Path, processor: Any) -> Path:
    transformers_student("resnet").save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "student",
    [
        pytest.param(saved_by_timm, id="timm"),
        pytest.param(
            lambda folder: saved_by_transformers(
                folder, ViTImageProcessor(size={"height": 48, "width": 48}, resample=3)
            ),
            id="squashed",
        ),
        pytest.param(
            lambda folder: saved_by_transformers(
                folder, ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.8, resample=3)
            ),
            id="cropped",
        ),
    ],
)
def test_training_and_evaluate_find_the_same_numbers(tiny_dataset, plain, settings, tmp_path, student):
    """One view for both: also where images are not square, and crop and filter are the model's own."""
    trainer = ReinforcedTrainer(
        student(tmp_path / "start"),
        settings(),
        train_dataset=plain,
        eval_dataset=tiny_dataset,
        compute_metrics=compute_metrics,
    )
    found = trainer.evaluate()
    trainer.save_model(str(tmp_path / "out"))
    (tmp_path / "set").mkdir()
    tiny_dataset.to_parquet(tmp_path / "set" / "train.parquet")
    config = EvaluateConfig(
        models=[f"m={tmp_path / 'out'}"],
        sets=[f"s={tmp_path / 'set'}:train"],
        output_dir=str(tmp_path / "report"),
        device="cpu",
        num_workers=0,
    )
    (result,) = run_evaluation(config).results
    for name in ("top1", "nll"):
        assert result.metrics[name] == pytest.approx(found[f"eval_{name}"], rel=1e-5)


def test_a_model_that_does_not_say_how_it_is_evaluated_is_told(tiny_dataset, plain, settings):
    """As README has it: built without a size."""
    model = build_student("timm:test_resnet", plain.class_names, plain.num_classes)
    ReinforcedTrainer(model, settings(), train_dataset=plain, eval_dataset=tiny_dataset)
    told = {"input_size": [3, SIZE, SIZE], "crop_pct": 0.875, "interpolation": "bilinear"}
    assert told.items() <= model.config.pretrained_cfg.items()


def test_a_crop_of_whole_pixels_is_exact():
    """9 / (9 / 14) is 13.99... in float64."""
    resize, _ = evaluation_augmentation((9, 9), 9 / 14).ops
    assert resize == Resize(14)
    assert evaluation_augmentation((32, 32), 0.875).ops[0] == Resize(36)  # downwards, as timm does
