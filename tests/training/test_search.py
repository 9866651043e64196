"""Models that `model_init` makes, and searches for hyperparameters, of which each trial is a training."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers.trainer
from transformers import AutoImageProcessor, AutoModelForImageClassification, BitImageProcessor, TrainingArguments
from transformers.trainer_utils import HPSearchBackend

from hf_dr.errors import ConfigError
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import SIZE, pooled, same, timm_student, transformers_student, weights


@pytest.fixture(autouse=True)
def _without_optuna(monkeypatch):
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)


def search(args, train, chosen, model=pooled):
    """Runs one trial with chosen settings, as the search of transformers does, and returns the trainer."""
    trainer = ReinforcedTrainer(model_init=lambda trial=None: model(), args=args, train_dataset=train)
    trainer.hp_search_backend, trainer.hp_space, trainer.hp_name = HPSearchBackend.OPTUNA, lambda trial: chosen, None
    trainer.train(trial=SimpleNamespace(number=3, params=chosen))  # as optuna's
    return trainer


def test_a_trial_has_checkpoints_of_its_own(plain, settings, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "learning_rate": 0.5}
    trainer = search(settings(**saving), plain, {"learning_rate": 0.05})
    last = trainer.state.global_step
    found = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("checkpoint-*")]
    assert found == [f"run-3/checkpoint-{last}"]
    alone = ReinforcedTrainer(pooled(), settings(**{**saving, "learning_rate": 0.05}), train_dataset=plain)
    alone.train()
    assert same(weights(trainer.model), weights(alone.model))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"label_weight": 3.0}, "`label_weight` must be .*, got 3.0"),
        ({"mixup_alpha": 0.5}, "`mixup_alpha` and `cutmix_alpha` must be 0 where stored views are replayed"),
        ({"ema_decay": 0.9}, "`ema_decay` must be None, as when the trainer was made, got 0.9. Leave it out"),
        ({"batch_size": 2}, "`batch_size` must be 4, as when the trainer was made"),
        (
            {"gradient_accumulation_steps": 2},
            "a step must see the 4 images of `batch_size`, but with what was set since it sees 8",
        ),
        ({"warmup_epochs": 1.0, "lr_scheduler_type": "constant"}, "`warmup_epochs` needs a schedule in which the"),
        ({"augment_on": "cpu"}, "`augment_on` must be auto, as when the trainer was made"),
    ],
)
def test_what_a_search_chooses_is_checked(chosen, message, plain, settings):
    with pytest.raises(ConfigError, match=message):
        search(settings(batch_size=4, per_device_train_batch_size=8), plain, chosen)


class _Backend:
    """Runs a trial for each choice that it is given as `choices`, as a backend of transformers does."""

    ensure_available = staticmethod(lambda: None)

    def run(self, trainer, n_trials, direction, choices):
        for number, chosen in enumerate(choices):
            trainer.train(trial=SimpleNamespace(number=number, params=chosen))
            trainer.model_wrapped = trainer.model = None  # as optuna's does to free the device's memory


def test_after_a_search_there_is_no_model_until_one_is_trained(plain, settings, monkeypatch):
    monkeypatch.setitem(transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, _Backend)
    trainer = ReinforcedTrainer(
        model_init=lambda trial=None: pooled(), args=settings(), train_dataset=plain, eval_dataset=plain
    )
    chosen = [{"learning_rate": 0.25}]
    trainer.hyperparameter_search(lambda trial: trial.params, backend="optuna", hp_name=str, choices=chosen)
    for use in (trainer.evaluate, partial(trainer.predict, plain), trainer.save_model):
        with pytest.raises(
            ConfigError, match=r"`model` must be a model, got NoneType\. A search keeps none of its trials'"
        ):
            use()
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model()


def test_what_a_trial_has_set_is_not_left_to_what_comes_after_it(plain, settings, monkeypatch):
    monkeypatch.setitem(transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, _Backend)
    trainer = ReinforcedTrainer(model_init=lambda trial=None: pooled(), args=settings(), train_dataset=plain)
    seen = []
    search = partial(trainer.hyperparameter_search, lambda trial: trial.params, backend="optuna", hp_name=str)
    training_step = trainer.training_step

    def step(*args, **more):
        seen.append((trainer.args.label_weight, trainer.args.learning_rate))
        return training_step(*args, **more)

    trainer.training_step = step
    search(choices=[{"label_weight": 0.5}, {"learning_rate": 0.25}])
    assert list(dict.fromkeys(seen)) == [(0.5, 0.05), (0.0, 0.25)]
    with pytest.raises(ConfigError, match=r"`label_weight` must be .*, got 3.0"):
        search(choices=[{"label_weight": 3.0}])
    seen.clear()
    trainer.train()
    assert set(seen) == {(0.0, 0.05)}


def test_a_search_takes_the_batches_of_a_trial_back_and_keeps_checkpoints_as_a_training_does(
    plain, settings, monkeypatch
):
    monkeypatch.setitem(transformers.trainer.ALL_HYPERPARAMETER_SEARCH_BACKENDS, HPSearchBackend.OPTUNA, _Backend)
    args = settings(per_device_train_batch_size=4, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer = ReinforcedTrainer(model_init=lambda trial=None: pooled(), args=args, train_dataset=plain)
    seen = []
    training_step = trainer.training_step

    def step(model, inputs, *more):
        seen.append((len(inputs["labels"]), args.save_total_limit))
        return training_step(model, inputs, *more)

    trainer.training_step = step
    trial = {"per_device_train_batch_size": 2}
    trainer.hyperparameter_search(lambda trial: trial.params, backend="optuna", hp_name=str, choices=[trial])
    assert set(seen) == {(2, None)}, "Trainer itself must delete no checkpoint"
    assert args.save_total_limit == 1
    for batch in (4, 3):  # as before the search; as whoever trains with the best settings sets it
        seen.clear()
        args.per_device_train_batch_size = batch
        trainer.train()
        assert set(seen) == {(batch, None)}


def test_a_search_mixes_no_batches_of_other_data(plain, settings):
    rows = [{name: plain[row][name] for name in ("pixel_values", "labels")} for row in range(8)]
    with pytest.raises(ConfigError, match="`mixup_alpha` and `cutmix_alpha` need a dataset of this package"):
        search(settings(), rows, {"mixup_alpha": 0.5})


def test_settings_that_were_changed_since_are_checked(plain, settings, tmp_path):
    args = settings(save_strategy="steps", save_steps=1)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain)
    trainer.args.mixup_alpha = 0.5
    with pytest.raises(ConfigError, match="`mixup_alpha` and `cutmix_alpha` must be 0 where stored views are replayed"):
        trainer.train()
    trainer.args.mixup_alpha = 0.0
    trainer.args.save_total_limit = 2
    trainer.train()
    assert len(list(tmp_path.glob("out/checkpoint-*"))) == 2


def test_what_model_init_makes_is_treated_as_a_given_model_is(plain, tiny_dataset, settings, tmp_path):
    """It was saved for the size that timm's architecture has by itself, at which nobody had trained it."""

    def student():
        model = timm_student("test_resnet")
        model.config.pretrained_cfg = {"input_size": [3, 160, 160], "crop_pct": 0.9, "interpolation": "bicubic"}
        return model

    def trained(name, **given):
        args = settings(channels_last=True, output_dir=str(tmp_path / name))
        trainer = ReinforcedTrainer(args=args, train_dataset=plain, eval_dataset=tiny_dataset, **given)
        trainer.train()
        trainer.save_model()
        return trainer, trainer.evaluate()["eval_loss"], json.loads((tmp_path / name / "config.json").read_text())

    one, loss, saved = trained("model", model=student())
    other, loss_of_other, saved_of_other = trained("init", model_init=student)
    del saved["use_cache"]  # Trainer's own, of a given model
    assert saved == saved_of_other
    assert saved["pretrained_cfg"]["input_size"] == [3, SIZE, SIZE]
    assert same(weights(one.model), weights(other.model))
    assert loss == loss_of_other
    convolutions = [p for p in other.model.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert convolutions
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)


def settings_of_trials(args, train, images, models):
    """Trains each model as a trial of a search does, and returns what each was shown, evaluated and saved with."""
    made = iter([models[0], *models])  # the trainer makes the first one to look at

    def student():
        return next(made)()

    trainer = ReinforcedTrainer(model_init=student, args=args, train_dataset=train, eval_dataset=images)
    white = torch.full((1, 3, SIZE, SIZE), 255, dtype=torch.uint8)
    for number, _ in enumerate(models):
        folder = f"{args.output_dir}/{number}"
        trainer.train()
        trainer.save_model(folder)
        shown = trainer._student_inputs({"pixel_values": white})["pixel_values"]
        yield shown[0, :, 0, 0].tolist(), str(trainer.eval_dataset["held out"]._augmentation), folder
    assert trainer.evaluate()["eval_held out_loss"] > 0


def test_each_model_of_a_search_is_trained_and_saved_with_its_own_normalization(plain, tiny_dataset, settings):
    """All had that of the first."""
    own = [((0.25, 0.25, 0.25), (0.5, 0.5, 0.5)), ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))]

    def student(normalization, crop):
        model = build_student("timm:test_resnet", None, 8, size=SIZE, normalization=normalization)
        model.config.pretrained_cfg["crop_pct"] = crop
        return model

    models = [partial(student, own[0], 1.0), partial(student, own[1], 0.5)]
    found = list(settings_of_trials(settings(max_steps=1), plain, {"held out": tiny_dataset}, models))
    assert [shown for shown, *_ in found] == [pytest.approx([1.5] * 3), pytest.approx([2.0] * 3)]
    assert found[0][1] != found[1][1], "the views to evaluate on have the model's crop"
    for (mean, std), (*_, folder) in zip(own, found, strict=True):
        saved = json.loads(Path(folder, "config.json").read_text())["pretrained_cfg"]
        assert (tuple(saved["mean"]), tuple(saved["std"])) == (mean, std)


def test_each_model_of_a_search_is_saved_with_its_own_image_processor(plain, tiny_dataset, settings, tmp_path):
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    for name, mean in (("one", 0.25), ("other", 0.5)):
        transformers_student("resnet").save_pretrained(tmp_path / name)
        processor = BitImageProcessor(**sizes, image_mean=[mean] * 3, image_std=[0.5] * 3)
        processor.save_pretrained(tmp_path / name)
    models = [partial(AutoModelForImageClassification.from_pretrained, tmp_path / name) for name in ("one", "other")]
    images = {"held out": tiny_dataset}
    found = list(settings_of_trials(settings(max_steps=1), plain, images, models))
    assert [shown for shown, *_ in found] == [pytest.approx([1.5] * 3), pytest.approx([1.0] * 3)]
    saved = [list(AutoImageProcessor.from_pretrained(folder).image_mean) for *_, folder in found]
    assert saved == [[0.25] * 3, [0.5] * 3]

    chosen = BitImageProcessor(**sizes, image_mean=[0.75] * 3, image_std=[0.25] * 3)
    trainer = ReinforcedTrainer(
        model_init=lambda trial=None: models[0](),
        args=settings(max_steps=1),
        train_dataset=plain,
        processing_class=chosen,
    )
    trainer.train()
    assert trainer.processing_class is chosen, "what was given is kept"


def test_a_model_of_other_classes_is_refused_from_model_init_too(plain, settings):
    with pytest.raises(ConfigError, match="must answer over the 8 classes"):
        ReinforcedTrainer(
            model_init=lambda: build_student("timm:test_resnet", None, 5, size=SIZE),
            args=settings(),
            train_dataset=plain,
        )


def test_a_trial_mixes_by_its_own_seed(plain, settings):
    given = {"reinforced_probability": 0.0, "mixup_alpha": 0.8}
    one = search(settings(**given), plain, {"seed": 3})
    alone = ReinforcedTrainer(pooled(), settings(**given, seed=3), train_dataset=plain)
    alone.train()
    assert same(weights(one.model), weights(alone.model))


@pytest.mark.parametrize(
    ("metric", "greater"), [("nll", False), ("ece", False), ("loss", False), ("top1", True), ("neg_nll", True)]
)
def test_the_best_is_the_lowest_where_lower_is_better(metric, greater, plain, tmp_path):
    """Transformers takes the highest of all but losses, and writes so into its settings."""
    args = TrainingArguments(
        str(tmp_path),
        metric_for_best_model=metric,
        load_best_model_at_end=True,
        eval_strategy="steps",
        save_strategy="steps",
    )
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=plain, eval_dataset=plain)
    assert trainer.args.greater_is_better is greater
