"""A student that is calibrated: a temperature fitted to other images, which its weights take in."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from hf_dr.errors import ConfigError, DataError
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.teacher.calibration import TEMPERATURES, fit_temperature
from hf_dr.teacher.metrics import classification_metrics, compute_metrics
from hf_dr.teacher.preprocessing import evaluation_augmentation
from hf_dr.training.calibrating import as_trained, check_foldable, check_other_images, check_sample, check_whole
from hf_dr.training.student_inputs import LabelledImages
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import MODELS, SIZE, STEPS, Pooled, pooled, same, timm_student, weights


class WithTeacher(Pooled):
    """Returns more than logits, as distilled DeiT models of transformers do."""

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        outputs = super().forward(pixel_values, labels)
        return {**outputs, "cls_logits": outputs["logits"] + 1, "distillation_logits": outputs["logits"] - 1}


@pytest.fixture(scope="module")
def held_out(tiny_dataset):
    """Other images than those that are learned."""
    return tiny_dataset.map(lambda row: {"image": row["image"].rotate(180)}, features=tiny_dataset.features)


@pytest.fixture(scope="module")
def pictures(held_out):
    return LabelledImages(held_out, evaluation_augmentation((SIZE, SIZE)))


class FeaturesFirst(Pooled):
    """Returns its logits after something else."""

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        outputs = super().forward(pixel_values, labels)
        return {"features": pixel_values.flatten(1), **outputs}


def test_logits_are_calibrated_wherever_they_stand_and_whatever_metrics_are_made_of(plain, pictures, settings):
    found = []
    for student, more in (
        (Pooled, {}),
        (FeaturesFirst, {}),
        (Pooled, {"preprocess_logits_for_metrics": lambda logits, labels: logits.argmax(-1)}),
    ):
        torch.manual_seed(0)
        trainer = ReinforcedTrainer(student(), settings(), train_dataset=plain, **more)
        found.append(trainer.calibrate(pictures))
    assert found[0].temperature != 1
    assert {each.temperature for each in found} == {found[0].temperature}
    assert all(np.array_equal(each.logits, found[0].logits) for each in found)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", [*MODELS, "of several outputs"])
def test_probabilities_are_those_at_the_temperature(trainer_of, pictures, settings, kind, bf16):
    student = WithTeacher() if kind == "of several outputs" else MODELS[kind]()
    trainer = trainer_of(student, settings(bf16=bf16))
    trainer.train()
    before = trainer.predict(pictures)
    before = before._replace(predictions=first(before.predictions))
    found = trainer.calibrate(pictures)
    assert found.folded
    assert found.ema_temperature is None
    assert found.temperature == fit_temperature(before.predictions, before.label_ids)
    assert np.array_equal(found.logits, before.predictions)
    assert np.array_equal(found.labels, before.label_ids)
    after = trainer.predict(pictures)
    close = {"rtol": 0.02, "atol": 0.02} if bf16 else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(first(after.predictions), before.predictions / found.temperature, **close)
    least, greatest = TEMPERATURES
    if 1.001 * least < found.temperature < 0.999 * greatest:
        left = fit_temperature(first(after.predictions), after.label_ids)
        assert left == pytest.approx(1, abs=0.05 if bf16 else 1e-3)


def first(predictions):
    return predictions[0] if isinstance(predictions, tuple) else predictions


def test_a_second_calibration_takes_the_place_of_the_first(plain, pictures, held_out, settings):
    trainer = ReinforcedTrainer(pooled(), settings(ema_decay=0.9, learning_rate=1.0), train_dataset=plain)
    trainer.train()
    kept = weights(trainer.model), weights(trainer.ema.module)
    once = trainer.calibrate(pictures)
    calibrated = weights(trainer.model), weights(trainer.ema.module)
    with as_trained(trainer):
        assert same(weights(trainer.model), kept[0])
        assert same(weights(trainer.ema.module), kept[1])
    assert same(weights(trainer.model), calibrated[0])
    assert trainer.calibrate(held_out.select(range(5))).temperature != once.temperature
    with pytest.raises(DataError):  # then it is not calibrated at all, and says so
        trainer.calibrate([{"pixel_values": row["pixel_values"], "labels": -100} for row in (pictures[0], pictures[1])])
    assert same(weights(trainer.model), kept[0])
    assert trainer._calibration is None
    twice = trainer.calibrate(pictures)
    assert (twice.temperature, twice.ema_temperature) == (once.temperature, once.ema_temperature)
    assert same(weights(trainer.model), calibrated[0])
    assert same(weights(trainer.ema.module), calibrated[1])


def test_averaged_weights_get_their_own(trainer_of, pictures, settings, tmp_path):
    args = settings(ema_decay=0.9, learning_rate=1.0, save_strategy="epoch")
    trainer = trainer_of(pooled(), args)
    trainer.train()
    before = trainer.evaluate()
    kept = weights(trainer.model), weights(trainer.ema.module)
    found = trainer.calibrate(pictures)
    assert found.ema_temperature != found.temperature
    for old, new, temperature in zip(
        kept, (trainer.model, trainer.ema.module), (found.temperature, found.ema_temperature), strict=True
    ):
        for name, value in new.state_dict().items():
            torch.testing.assert_close(value * temperature, old[name])
    trainer.save_model()
    assert same(load_file(tmp_path / "out" / "model.safetensors"), weights(trainer.model))
    assert same(load_file(tmp_path / "out" / "ema.safetensors"), weights(trainer.ema.module))
    checkpoint = tmp_path / "out" / f"checkpoint-{STEPS}"
    assert same(load_file(checkpoint / "model.safetensors"), kept[0])
    assert same(load_file(checkpoint / "ema.safetensors"), kept[1])
    after = trainer.evaluate()
    for prefix in ("eval_", "eval_ema_"):
        assert after[f"{prefix}nll"] <= before[f"{prefix}nll"]
        assert after[f"{prefix}top1"] == before[f"{prefix}top1"]


def test_it_can_be_found_and_left(plain, pictures, settings):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain, eval_dataset=pictures)
    trainer.evaluate()
    kept = weights(trainer.model)
    found = trainer.calibrate(pictures, fold=False)
    assert not found.folded
    assert same(weights(trainer.model), kept)
    assert trainer._measured, "of weights that have not changed"


def test_images_that_are_too_few_are_told(plain, held_out, settings, caplog):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain)
    at_the_ends = 0
    for row in range(len(held_out)):
        caplog.clear()
        found = trainer.calibrate(held_out.select([row]), fold=False)
        told = f"The temperature that fits 1 images is {found.temperature:.2f}, and none beyond is tried"
        assert (told in caplog.text) == (found.temperature in (pytest.approx(0.25), pytest.approx(4)))
        at_the_ends += told in caplog.text
    assert 0 < at_the_ends < len(held_out)


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_loss_only": True},
        {"eval_do_concat_batches": False, "compute_metrics": None},
        {"batch_eval_metrics": True, "compute_metrics": lambda found, compute_result: {}},
        {"bf16_full_eval": True},
        {"compute_metrics": None},
    ],
    ids=" ".join,
)
def test_how_evaluations_are_set_does_not_matter(plain, pictures, settings, changes):
    compute = {"compute_metrics": changes.pop("compute_metrics", compute_metrics)}
    trainer = ReinforcedTrainer(
        timm_student(), settings(**changes), train_dataset=plain, eval_dataset=pictures, **compute
    )
    found = trainer.calibrate(pictures)
    usual = ReinforcedTrainer(timm_student(), settings(), train_dataset=plain).calibrate(pictures)
    assert found.temperature == pytest.approx(usual.temperature, rel=0.1 if "bf16_full_eval" in changes else 0)
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert trainer.compute_metrics is compute["compute_metrics"]
    assert all(getattr(trainer.args, name) == value for name, value in changes.items())


def test_the_card_tells_it_of_the_present_weights(trainer_of, pictures, settings, tmp_path):
    trainer = trainer_of(pooled(), settings())
    card = tmp_path / "out" / "README.md"
    trainer.train()
    top1 = f"| top1 | {trainer.evaluate()['eval_top1']:.4g} |"
    trainer.create_model_card()
    assert top1 in card.read_text()
    assert "calibrated" not in card.read_text()
    found = trainer.calibrate(pictures)
    trainer.create_model_card(calibrated_on={"id": "photos", "split": "validation"})
    of = "12 images of `photos`, split `validation` best."
    assert f"divides the logits by {found.temperature:.4g}, the temperature that fits {of}" in card.read_text()
    assert top1 not in card.read_text(), "measured before"
    trainer.evaluate()
    trainer.create_model_card()
    assert f"by {found.temperature:.4g}, the temperature that fits 12 images best." in card.read_text()
    assert top1 in card.read_text()
    trainer.train()
    trainer.create_model_card()
    assert "calibrated" not in card.read_text()


def test_images_of_ones_own(plain, held_out, settings):
    rows = [{"pixel_values": torch.randn(3, SIZE, SIZE), "labels": n % 8} for n in range(6)]
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=rows)
    assert trainer.calibrate(rows).folded
    assert ReinforcedTrainer(pooled(), settings(), train_dataset=plain).calibrate(held_out).folded

    def stack(rows):
        return {"pixel_values": torch.stack([x for x, _ in rows]), "labels": torch.tensor([y for _, y in rows])}

    pairs = [(row["pixel_values"], row["labels"]) for row in rows]
    args = settings(remove_unused_columns=False)
    assert ReinforcedTrainer(pooled(), args, train_dataset=pairs, data_collator=stack).calibrate(pairs).folded


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "must have labels from 0 to 7, found none in row 0. Give others."),
        ([3, -100, 1], "must have labels from 0 to 7, found -100 in row 1. Give others."),
    ],
)
def test_images_without_labels(settings, labels, message):
    rows = [{"pixel_values": torch.zeros(3, SIZE, SIZE), "labels": 0} for _ in range(3)]
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=rows)
    rows = [{"pixel_values": row["pixel_values"]} for row in rows]
    for row, label in zip(rows, labels or [], strict=False):
        row["labels"] = label
    with pytest.raises(DataError, match=message):
        trainer.calibrate(rows)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "photos",
            r"`images` must be a dataset, such as `datasets.load_dataset` returns, got the name 'photos'. Open it",
        ),
        ({"a": [], "b": []}, r"`images` must be one dataset, got several by name \(a, b\)\. Give one"),
        (None, "`images` must be a dataset with images, got none. Give some that were held out."),
        ([], "`images` must be a dataset with images, got none. Give some that were held out."),
    ],
)
def test_what_is_no_dataset(plain, settings, given, message):
    with pytest.raises(ConfigError, match=message):
        ReinforcedTrainer(pooled(), settings(), train_dataset=plain).calibrate(given)


def test_images_that_are_learned_are_found_by_their_pixels(plain, settings, tiny_dataset, held_out):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain)
    message = "`images` must have images that are not learned, but 3 of its 4 are: the student is too sure of them"
    with pytest.raises(ConfigError, match=message):
        trainer.calibrate(datasets.concatenate_datasets([tiny_dataset.select(range(3)), held_out.select([3])]))
    assert trainer.calibrate(held_out).temperature > 0
    both = ReinforcedTrainer(pooled(), settings(), train_dataset=CombinedReinforcedDataset([plain, plain]))
    with pytest.raises(ConfigError, match="`images` must have images that are not learned, but 4 of its 4 are"):
        both.calibrate(tiny_dataset.select(range(4)))


def test_what_is_learned_is_not_held_out(plain, settings):
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain)
    with pytest.raises(
        ConfigError, match=r"`images` must be held out from the training, got a ReinforcedDataset, which"
    ):
        trainer.calibrate(plain)


def test_a_model_that_cannot_take_it_in_is_left_as_it_is(plain, pictures, settings, caplog):
    student = pooled()
    student.register_forward_hook(lambda model, given, outputs: {"logits": 9 * torch.tanh(outputs["logits"] + 3)})
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain)
    kept = weights(student)
    found = trainer.calibrate(pictures)
    assert not found.folded
    assert same(weights(student), kept)
    assert f"cannot take the temperature in: divide its logits by {found.temperature:.4g}." in caplog.text
    assert trainer._calibration is None


def test_a_model_that_cannot_take_it_in_is_refused_before():
    student = timm_student("test_resnet")
    kept = weights(student)
    check_foldable(student.train(), (SIZE, SIZE))
    assert same(weights(student), kept)
    assert student.training
    nn.init.normal_(student.timm_model.fc.bias, std=3.0)
    student.timm_model.fc = nn.Sequential(student.timm_model.fc, nn.Tanh())
    with pytest.raises(
        ConfigError, match="`calibrate_split` needs a model whose logits are linear in the weights of its"
    ):
        check_foldable(student, (SIZE, SIZE))


@pytest.mark.parametrize("sharded", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_sharded_weights_are_not_calibrated(sharded):
    trainer = SimpleNamespace(**{"is_fsdp_enabled": False, "is_deepspeed_enabled": False, sharded: True})
    with pytest.raises(ConfigError, match=r"`calibrate` needs all weights in each process, but they are sharded"):
        check_whole(trainer, "calibrate")


@given(st.integers(1, 60), st.integers(2, 200), st.floats(0, 2), st.sampled_from([0.1, 0.2, 0.5]), st.integers(0, 999))
def test_a_slice_of_a_sorted_split_is_refused_and_a_sample_is_not(classes, each, tail, share, seed):
    sizes = np.maximum(1, each / np.arange(1, classes + 1) ** tail).astype(int)  # from balanced to long tails
    rows = np.repeat(np.arange(classes), sizes)
    drawn = np.random.default_rng(seed).permutation(rows)
    count = max(1, int(share * len(rows)))
    check_sample(drawn[:count], drawn[count:])
    if classes > 1 and each >= 20 and tail < 0.1:
        with pytest.raises(ConfigError, match=r"must have images of all classes, but its .* A slice of a split that"):
            check_sample(rows[:count], rows[count:])


def test_images_that_are_tested_are_refused_and_a_few_twins_are_not(tiny_dataset):
    files = undecoded_images(tiny_dataset, "image")
    check_other_images(files.select(range(6)), files.select(range(6, 12)), "the test")
    with pytest.raises(
        ConfigError, match="other images than the test, but 1 of its 7 are the same: the calibration error"
    ):
        check_other_images(files.select(range(7)), files.select(range(6, 12)), "the test")
    rows = [{"bytes": str(n).encode(), "path": None} for n in range(101)]
    many = datasets.Dataset.from_dict(
        {"image": rows}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    check_other_images(many.select(range(100)), many.select([99, 100]), "the test")
    with pytest.raises(ConfigError, match="2 of its 100 are the same"):
        check_other_images(many.select(range(100)), many.select([98, 99]), "the test")


def test_what_is_learned_after_it_goes_on_from_those_weights(trainer_of, pictures, settings):
    """In Python the temperature is in the model itself, and a `train` that resumes takes the checkpoint's weights again."""
    trainer = trainer_of(pooled(), settings(save_strategy="epoch"))
    trainer.train()
    kept = weights(trainer.model)
    found = trainer.calibrate(pictures)
    expected = classification_metrics(found.logits / found.temperature, found.labels)
    assert trainer.evaluate()["eval_ece"] == pytest.approx(expected["ece"], abs=1e-5)
    trainer.train(resume_from_checkpoint=True)  # of which no step is left
    assert same(weights(trainer.model), kept)
