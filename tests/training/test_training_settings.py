"""Settings of a training: the optimizer, pixels, and what does not fit together."""

import copy
import dataclasses

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import Seq2SeqTrainingArguments, TrainerCallback, TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

from hf_dr.errors import ConfigError, FormatError, ReplayError
from hf_dr.replay.loading import load_reinforced
from hf_dr.training.arguments import NEVER_RISING, ReinforcedTrainingArguments
from hf_dr.training.loader import ReinforcedLoader
from hf_dr.training.losses import ReinforcedLoss
from hf_dr.training.student_card import Student
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import (
    BATCH,
    ROWS,
    Pooled,
    by_hand,
    normalized,
    pooled,
    same,
    timm_student,
    transformers_student,
    weights,
)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.1}, {"momentum": 0.5}, {"nesterov": False}, {"max_grad_norm": 2.0}, {"warmup_epochs": 0.5},
        {"ema_decay": 0.9}, {"decay_biases_and_norms": True}, {"lr_scheduler_kwargs": {"num_cycles": 2}},
    ],
    ids=str,
)  # fmt: skip
def test_the_student_tells_what_decides_the_steps(plain, settings, tmp_path, changes):
    found = []
    for given in ({}, changes):
        ReinforcedTrainer(timm_student(), settings(**given), train_dataset=plain).create_model_card()
        found.append(Student.read(tmp_path / "out").settings)
    assert {key for key in found[0] if found[0][key] != found[1][key]} == changes.keys()


def test_the_student_tells_the_weight_of_the_labels(plain, settings, tmp_path):
    ReinforcedTrainer(timm_student(), settings(label_weight=0.5), train_dataset=plain).create_model_card()
    assert "stored views, a teacher's stored answers and, at weight 0.5, the labels" in (
        (tmp_path / "out" / "README.md").read_text()
    )


def test_what_decays(plain, settings):
    trainer = ReinforcedTrainer(timm_student(), settings(weight_decay=0.1), train_dataset=plain)
    decaying = set(trainer.get_decay_parameter_names(trainer.model))
    parameters = dict(trainer.model.named_parameters())
    assert "timm_model.pos_embed" in parameters
    assert "timm_model.pos_embed" not in decaying, "timm's models name what must not decay"
    assert "timm_model.patch_embed.proj.weight" in decaying
    assert {name for name in parameters if name.endswith(".bias") or "norm" in name}.isdisjoint(decaying)
    groups = trainer.create_optimizer().param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in groups] == [len(decaying), len(parameters) - len(decaying)]

    everything = ReinforcedTrainer(timm_student(), settings(decay_biases_and_norms=True), train_dataset=plain)
    excluded = everything.model.timm_model.no_weight_decay()
    assert {name.removeprefix("timm_model.") for name in parameters} - excluded == {
        name.removeprefix("timm_model.") for name in everything.get_decay_parameter_names(everything.model)
    }

    resnet = ReinforcedTrainer(timm_student("test_resnet"), settings(), train_dataset=plain)
    decaying = resnet.get_decay_parameter_names(resnet.model)
    assert all(dict(resnet.model.named_parameters())[name].ndim > 1 for name in decaying)


@pytest.mark.parametrize(
    ("changes", "momentum", "nesterov"),
    [({}, 0.9, True), ({"momentum": 0.5, "nesterov": False}, 0.5, False), ({"momentum": 0.0}, 0.0, False)],
)
def test_sgd_has_momentum(plain, settings, changes, momentum, nesterov):
    optimizer = ReinforcedTrainer(pooled(), settings(**changes), train_dataset=plain).create_optimizer()
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"]) == (momentum, nesterov)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "length",
    [
        {"num_train_epochs": 3}, {"num_train_epochs": 7.5}, {"max_steps": 20},
        {"num_train_epochs": 4, "gradient_accumulation_steps": 2},
        {"num_train_epochs": 4, "per_device_train_batch_size": 5, "dataloader_drop_last": True},
    ],
    ids=str,
)  # fmt: skip
def test_a_warm_up_in_epochs_is_as_long_in_every_training(in_shards, settings, length, streaming):
    """The rate is highest when the epochs are over, whatever the length, the batch and the schedule's end are."""
    args = settings(warmup_epochs=1.5, learning_rate=0.1, lr_scheduler_type="linear", **length)
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=load_reinforced(in_shards["plain"], streaming=streaming))
    rates = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            rates.append((state.global_step, trainer.lr_scheduler.get_last_lr()[0]))

    trainer.add_callback(Rates())
    trainer.train()
    per_epoch = {2: 2, 1: 3}[args.gradient_accumulation_steps] if args.train_batch_size == BATCH else 2
    highest = max(rates, key=lambda at: at[1])
    assert highest == (round(1.5 * per_epoch), 0.1)
    assert args.warmup_steps == 0, "the settings that are saved are those that were given"


def test_a_warm_up_longer_than_the_training_is_said(plain, settings, caplog):
    ReinforcedTrainer(pooled(), settings(warmup_epochs=5, max_steps=2), train_dataset=plain).train()
    assert "rises for 5 epochs, which are 15 steps, but the training has 2" in caplog.text


@pytest.mark.parametrize("schedule", [schedule.value for schedule in SchedulerType])
def test_the_schedules_that_never_rise_are_known(schedule):
    optimizer = torch.optim.SGD(pooled().parameters(), 1.0)
    needed = {"warmup_stable_decay": {"num_decay_steps": 2}}
    needed |= {name: {"min_lr": 0.1} for name in ("cosine_with_min_lr", "cosine_warmup_with_min_lr")}
    get_scheduler(schedule, optimizer, 4, 9, needed.get(schedule))
    assert (optimizer.param_groups[0]["lr"] == 1) == (schedule in NEVER_RISING)


def test_a_warm_up_in_epochs_needs_a_length(settings):
    trainer = ReinforcedTrainer(pooled(), settings(warmup_epochs=1, max_steps=2))
    with pytest.raises(ConfigError, match="`warmup_epochs` needs a `train_dataset` with a length, got NoneType"):
        trainer.create_optimizer_and_scheduler(2)


def test_a_warm_up_in_epochs_has_no_part_in_a_schedule_of_ones_own(plain, settings):
    student = pooled()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    own = (optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
    with pytest.raises(
        ConfigError, match=r"`warmup_epochs` must be 0 with a scheduler of your own, got 1 and ConstantLR"
    ):
        ReinforcedTrainer(student, settings(warmup_epochs=1), train_dataset=plain, optimizers=own)
    ReinforcedTrainer(student, settings(), train_dataset=plain, optimizers=own).train()
    trainer = ReinforcedTrainer(student, settings(warmup_epochs=1), train_dataset=plain, optimizers=(optimizer, None))
    trainer.train()
    trainer.train()


def test_other_optimizers_are_trainers(plain, settings):
    optimizer = ReinforcedTrainer(pooled(), settings(optim="adamw_torch"), train_dataset=plain).create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)


def test_normalization():
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalized(pixels), by_hand(pixels))


def test_the_students_own_normalization_is_used(plain, settings):
    own, given = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    student = build_student("timm:test_resnet", None, 8, normalization=own)
    pixels = plain[0]["pixel_values"][None]
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain)
    torch.testing.assert_close(
        trainer._student_inputs({"pixel_values": pixels})["pixel_values"], normalized(pixels, *own)
    )
    trainer = ReinforcedTrainer(student, settings(), train_dataset=plain, normalization=given)
    torch.testing.assert_close(trainer._student_inputs({"pixel_values": pixels})["pixel_values"], pixels / 255)
    ready = torch.randn(2, 3, 4, 4)
    assert trainer._student_inputs({"pixel_values": ready})["pixel_values"] is ready, "floats are normalised already"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reinforced_probability": 1.5}, "`reinforced_probability` must be between 0 and 1, got 1.5"),
        ({"reinforced_probability": float("nan")}, "`reinforced_probability` must be between 0 and 1, got nan"),
        ({"warmup_epochs": -1}, "`warmup_epochs` must be a number of at least 0, got -1"),
        ({"warmup_epochs": float("inf")}, "`warmup_epochs` must be a number of at least 0, got inf"),
        (
            {"warmup_epochs": 2, "warmup_steps": 0.1},
            "how long the learning rate rises, got 2 and 0.1. Set the other to 0",
        ),
        (
            {"warmup_epochs": 2, "lr_scheduler_type": "constant"},
            "got 2 and `lr_scheduler_type` constant, in which it never does. Take `constant_with_warmup`, or set",
        ),
        ({"label_weight": -0.1}, "`label_weight` must be between 0 and 1, got -0.1"),
        ({"unreinforced_label_smoothing": 2}, "`unreinforced_label_smoothing` must be between 0 and 1, got 2"),
        ({"momentum": -1}, "`momentum` must be at least 0 and below 1, got -1"),
        ({"momentum": 1}, "`momentum` must be at least 0 and below 1, got 1"),
        ({"temperature": 0}, "`temperature` must be a number above 0, got 0"),
        ({"temperature": float("inf")}, "`temperature` must be a number above 0, got inf"),
        ({"tail": "short"}, "`tail` must be one of uniform, bucket, renormalize, zero, image, got 'short'"),
        ({"view_difficulty": "loss"}, "`view_difficulty` must be entropy or cross_entropy, got 'loss'"),
        ({"view_order": "shuffled"}, "`view_order` must be one of all, random, easy_first, hard_first, got 'shuffled'"),
        ({"weight_decay": float("nan")}, "`weight_decay` must be a number of at least 0, got nan"),
        ({"max_grad_norm": -1}, "`max_grad_norm` must be a number of at least 0, got -1"),
        ({"warmup_steps": float("nan")}, "`warmup_steps` must be a number of at least 0, got nan"),
        ({"adam_beta2": 1}, "`adam_beta2` must be at least 0 and below 1, got 1"),
        ({"max_steps": -5}, "`max_steps` must be a whole number of at least -1, got -5"),
        ({"seed": -1}, "`seed` must be a whole number of at least 0, got -1"),
        ({"seed": 2**32}, "`seed` must be at most 4294967295, got 4294967296"),
        ({"data_seed": -1}, "`data_seed` must be a whole number of at least 0, got -1"),
        ({"save_total_limit": 0}, "`save_total_limit` must be a whole number of at least 1, got 0"),
        ({"dataloader_num_workers": -1}, "`dataloader_num_workers` must be a whole number of at least 0, got -1"),
        ({"ddp_timeout": 0}, "`ddp_timeout` must be a whole number of at least 1, got 0"),
        ({"neftune_noise_alpha": 5}, "`neftune_noise_alpha` has no part in this training, got 5. Leave it out"),
        (
            {"enable_jit_checkpoint": True},
            "`enable_jit_checkpoint` has no part in this training, got True. Leave it out",
        ),
        ({"use_liger_kernel": True}, "`use_liger_kernel` has no part in this training, got True. Leave it out"),
        ({"ema_decay": 1.0}, "`ema_decay` must be above 0 and below 1, got 1.0"),
        (
            {"optim": "sgd", "optim_args": "momentum=0.5, nesterov=False"},
            "`momentum` of sgd must be a setting of its own, got it in `optim_args` 'momentum=0.5, nesterov=False'.",
        ),
        (
            {"optim": "rmsprop", "optim_args": "momentum=0.5,weight_decay=1e-4"},
            "`weight_decay` of rmsprop must be a setting of its own, got it in `optim_args` 'momentum=0.5,weight_de",
        ),
        ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be a whole number of at least 1"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be a whole number of at least 1"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a number of at least 0, got nan"),
        ({"learning_rate": -1.0}, "`learning_rate` must be a number of at least 0, got -1"),
        ({"num_train_epochs": 0}, "`num_train_epochs` must be a number above 0, got 0"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1"),
        (
            {"batch_size": 4, "auto_find_batch_size": True},
            "`auto_find_batch_size` must be left out with `batch_size`, which it would",
        ),
        (
            {"batch_size": 4, "accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 2}}},
            "`batch_size` needs `gradient_accumulation_steps`, got `num_steps` of",
        ),
        (
            {"batch_size": 7, "gradient_accumulation_steps": 2},
            "`batch_size` must divide among 1 devices and 2 accumulated batches, got 7. Choose a multiple of 2",
        ),
        (
            {"batch_size": 8, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 5},
            "only one of `batch_size` and `per_device_train_batch_size`",
        ),
    ],
)
def test_impossible_settings(settings, changes, message):
    with pytest.raises(ConfigError) as error:
        settings(**changes)
    assert message in str(error.value)


def test_arguments_of_trainer_get_the_reinforced_defaults_and_keep_what_was_chosen(plain, tmp_path):
    chosen = {"learning_rate": 0.25, "lr_scheduler_type": "cosine", "seed": 7, "warmup_steps": 0.1, "max_steps": 3}
    chosen |= {"save_strategy": "no", "optim": "sgd", "report_to": "none", "logging_steps": 0.5, "adam_beta2": 0.98}
    given = TrainingArguments(str(tmp_path), use_cpu=True, **chosen)
    args = ReinforcedTrainer(pooled(), given, train_dataset=plain).args
    ours = ReinforcedTrainingArguments(str(tmp_path), use_cpu=True, **chosen)
    assert args.to_dict() == ours.to_dict()
    assert not args.logging_nan_inf_filter
    other = Seq2SeqTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ConfigError, match=r"or TrainingArguments, got Seq2SeqTrainingArguments\. Build one of them"):
        ReinforcedTrainer(pooled(), other, train_dataset=plain)


def test_an_optimizer_of_another_model_is_refused(plain, settings):
    other = torch.optim.SGD(pooled().parameters(), 0.1)
    with pytest.raises(ConfigError, match="the optimizer must have weights of the model, but has others, so that noth"):
        ReinforcedTrainer(pooled(), settings(), train_dataset=plain, optimizers=(other, None))


@pytest.mark.parametrize("asks", [False, True], ids=["of the dataset", "of what Trainer's loader reads"])
def test_a_loader_of_ones_own_shows_another_view_in_each_epoch(plain, settings, asks):
    """It showed the same view in all epochs, because only the sampler of this package was told which epoch it is."""
    shown = []

    class Own(ReinforcedTrainer):
        def get_train_dataloader(self):
            dataset = super().get_train_dataloader().dataset if asks else self.train_dataset
            return torch.utils.data.DataLoader(dataset, len(plain), collate_fn=self.data_collator)

        def training_step(self, model, inputs, *args, **settings):
            shown.append(inputs["pixel_values"])
            return super().training_step(model, inputs, *args, **settings)

    trainer = Own(pooled(), settings(num_train_epochs=plain.num_views), train_dataset=plain)
    trainer.train()
    assert len(shown) == plain.num_views
    assert not any(shown[0].equal(later) for later in shown[1:])  # all views of a row come before any repeats
    trainer.train_dataset = plain.select(range(len(plain)))  # other data, which counts its own epochs
    trainer.train()
    assert all(one.equal(again) for one, again in zip(shown[: plain.num_views], shown[plain.num_views :], strict=True))


def test_a_loader_of_ones_own_over_views_that_the_device_makes_is_refused(plain, settings):
    class Own(ReinforcedTrainer):
        def get_train_dataloader(self):
            dataset = super().get_train_dataloader().dataset
            return torch.utils.data.DataLoader(dataset, 4, collate_fn=self.data_collator)

    trainer = Own(pooled(), settings(augment_on="device"), train_dataset=plain)
    message = (
        r"a loader of your own must read views that are made, .* the trainer's `train_dataset`, or set `augment_on`"
    )
    with pytest.raises(ConfigError, match=message):
        trainer.train()


def test_other_views_that_are_set_later_are_refused(plain, tiny_plus, settings):
    """On a device they would have been made by the ops of the first dataset, and everywhere evaluated at its size."""
    renamed = copy.copy(plain)
    renamed.__class__ = type("Renamed", (type(plain),), {"class_names": plain.class_names[::-1]})
    trainer = ReinforcedTrainer(pooled(), settings(), train_dataset=plain)
    for other in (tiny_plus, renamed):
        trainer.train_dataset = other
        with pytest.raises(
            ConfigError, match=r"`train_dataset` must have the augmentation .* was made, .* another was set\. Make"
        ):
            trainer.train()


def test_a_loader_of_this_package_is_taken_as_ones_own(plain, settings):
    class Own(ReinforcedTrainer):
        def get_train_dataloader(self):
            return ReinforcedLoader(self.train_dataset, 4)

    trainer = Own(pooled(), settings(num_train_epochs=1), train_dataset=plain)
    trainer.train()
    assert trainer.state.global_step == -(-len(plain) // 4)


def test_a_sampler_that_would_not_be_asked_is_refused(plain, settings):
    class Own(ReinforcedTrainer):
        def _get_train_sampler(self, train_dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    with pytest.raises(
        ConfigError, match=r"`_get_train_sampler` of Own would not be called: .* `get_train_dataloader`"
    ):
        Own(pooled(), settings(), train_dataset=plain).train()

    class Wrapped(Own):
        def get_train_dataloader(self):
            return super().get_train_dataloader()

    with pytest.raises(ConfigError, match="`_get_train_sampler` of Wrapped would not be called"):
        Wrapped(pooled(), settings(), train_dataset=plain).train()

    class WithLoader(Own):
        def get_train_dataloader(self):
            sampler = self._get_train_sampler()
            return torch.utils.data.DataLoader(self.train_dataset, 4, sampler=sampler, collate_fn=self.data_collator)

    assert WithLoader(pooled(), settings(max_steps=2), train_dataset=plain).train().global_step == 2


def test_a_plain_plus_dataset_is_refused(tiny_folder, settings):
    plus = datasets.load_dataset(str(tiny_folder), "all_ops", split="train")
    with pytest.raises(
        ConfigError, match=r"must be what `load_reinforced` returns, got the plain datasets\.Dataset of a"
    ):
        ReinforcedTrainer(pooled(), settings(), train_dataset=plus)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda d: torch.utils.data.Subset(d, range(4)),
        lambda d: torch.utils.data.Subset(torch.utils.data.Subset(d, range(8)), range(4)),
        lambda d: torch.utils.data.ConcatDataset([d, d]),
        lambda d: [d[row] for row in range(4)],
        lambda d: [torch.utils.data.TensorDataset(torch.zeros(1)), d],
    ],
    ids=["Subset", "Subset of a Subset", "ConcatDataset", "list", "list of datasets"],
)
def test_rows_that_would_show_one_view_in_all_epochs_are_refused(plain, settings, wrap):
    wrapped = wrap(plain)
    message = rf"got a {type(wrapped).__name__} of its rows, each of which would show one view in all epochs\. Sel"
    for student in (pooled(), "timm:test_resnet"):
        with pytest.raises(ConfigError, match=message):
            ReinforcedTrainer(student, settings(), train_dataset=wrapped)
    ReinforcedTrainer(pooled(), settings(), train_dataset=plain.select(range(4))).train()  # what the message advises


def test_a_folder_without_reinforcements_is_refused(tmp_path, tiny_dataset):
    tiny_dataset.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(FormatError, match=r'must hold a "\+" dataset, but no folder in it has a reinforcement\.json'):
        load_reinforced(tmp_path)


def test_a_model_of_other_classes_is_refused(plain, settings):
    student = build_student("timm:test_resnet", None, 10)
    with pytest.raises(
        ConfigError, match=r'must answer over the 8 classes of the "\+" dataset, got 10\. Build it with num'
    ):
        ReinforcedTrainer(student, settings(), train_dataset=plain)
    for classes in (6, 10):  # a module without a config tells by its first answer
        trainer = ReinforcedTrainer(Pooled(classes), settings(), train_dataset=plain)
        with pytest.raises(ConfigError, match=rf"must answer over the 8 classes .* got {classes}"):
            trainer.train()


def test_a_model_with_the_classes_in_another_order_is_refused(plain, settings):
    names = plain.class_names
    turned = [*names[1:], names[0]]
    with pytest.raises(ConfigError, match=r"class 0 is 'blue' for the model and 'black' in the dataset\. Build"):
        ReinforcedTrainer(build_student("timm:test_resnet", turned, 8), settings(), train_dataset=plain)
    for fine in (names, None, [f"{name}s" for name in names]):
        ReinforcedTrainer(build_student("timm:test_resnet", fine, 8), settings(), train_dataset=plain)


def test_the_label_of_one_image_is_not_that_of_a_view_of_two(in_shards, settings):
    mixing = load_reinforced(in_shards["mixing"])
    message = r"`label_weight` must be 0 where stored views are mixed, got 0\.5: such a view shows two images, but"
    with pytest.raises(ConfigError, match=message):
        ReinforcedTrainer(pooled(), settings(label_weight=0.5), train_dataset=mixing)
    with pytest.raises(ConfigError, match=message):
        ReinforcedLoss(mixing, label_weight=0.5)
    ReinforcedTrainer(pooled(), settings(label_weight=0.5, reinforced_probability=0.0), train_dataset=mixing)


def test_settings_that_need_labels_are_refused_without(unlabelled, settings):
    with pytest.raises(
        ConfigError, match=r"`reinforced_probability` must be 1 for a dataset without labels, got 0\.99"
    ):
        ReinforcedTrainer(pooled(), settings(), train_dataset=unlabelled)
    with pytest.raises(
        ConfigError, match=r"`label_weight` must be 0 for a dataset without labels, got 0\.5\. Set it to 0"
    ):
        ReinforcedTrainer(pooled(), settings(reinforced_probability=1, label_weight=0.5), train_dataset=unlabelled)


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (
            {"label_smoothing_factor": 0.1},
            {},
            "`label_smoothing_factor` has no part in the loss of a reinforced dataset",
        ),
        ({}, {"compute_loss_func": F.mse_loss}, "`compute_loss_func` has no part in the loss of a reinforced dataset"),
        ({"train_sampling_strategy": "sequential"}, {}, "`train_sampling_strategy` must be `random`, got 'sequential'"),
    ],
)
def test_settings_of_trainer_without_a_part_are_refused(plain, settings, changes, more, message):
    with pytest.raises(ConfigError) as error:
        ReinforcedTrainer(timm_student("test_resnet"), settings(**changes), train_dataset=plain, **more)
    assert message in str(error.value)


def test_settings_that_a_model_does_not_know_are_refused(plain, settings):
    """They ended in errors of transformers."""
    rows = [{name: plain[row][name] for name in ("pixel_values", "labels")} for row in range(2)]
    message = r"`label_smoothing_factor` has no part in the loss of a reinforced dataset, got one\. Set `unreinforced_"
    with pytest.raises(ConfigError, match=message):
        ReinforcedTrainer(pooled(), settings(label_smoothing_factor=0.1), train_dataset=plain)
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in fields)
    for changes, message in (
        (
            {"label_smoothing_factor": 0.1},
            r"`label_smoothing_factor` needs a model that has a `config`, .* got Pooled\.",
        ),
        ({name: True}, rf"`{name}` needs a model that supports it, by a method `{name}_enable`, got Pooled\. Leave"),
    ):
        with pytest.raises(ConfigError, match=message):
            ReinforcedTrainer(pooled(), settings(**changes), train_dataset=rows)
        with pytest.raises(ConfigError, match=message):
            ReinforcedTrainer(model_init=lambda trial=None: pooled(), args=settings(**changes), train_dataset=rows)
    with pytest.raises(ConfigError, match=f"`{name}` needs a model .* got ResNetForImageClassification"):
        ReinforcedTrainer(transformers_student("resnet"), settings(**{name: True}), train_dataset=plain)
    for student in (transformers_student("vit"), timm_student()):
        trainer = ReinforcedTrainer(student, settings(**{name: True}, max_steps=1), train_dataset=plain)
        assert trainer.train().training_loss > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_answers_are_never_trained_on(plain, settings, edit, workers):
    def damage(logprobs: np.ndarray) -> np.ndarray:
        logprobs[7, :, 1] = np.nan
        return logprobs

    student = pooled()
    args = settings(reinforced_probability=1.0, dataloader_num_workers=workers, per_device_train_batch_size=ROWS)
    trainer = ReinforcedTrainer(student, args, train_dataset=edit(plain, "teacher_logprobs", damage))
    before = weights(student)
    with pytest.raises(FormatError, match=r"the log-probabilities of row 7, view \d must be finite"):
        trainer.train()
    assert same(before, weights(student))


def test_another_image_is_never_trained_on(plain, settings, edit, monkeypatch):
    changed = edit(plain, "image", lambda cells: [*cells[:3], cells[4], *cells[4:]])
    message = "row 3 must hold the image that was reinforced"
    args = settings(per_device_train_batch_size=ROWS)
    with pytest.raises(ReplayError, match=message):
        ReinforcedTrainer(pooled(), args, train_dataset=changed)
    monkeypatch.setattr("hf_dr.training.trainer.check_replay", lambda *_: None)  # it sees some rows only
    trainer = ReinforcedTrainer(pooled(), args, train_dataset=changed)
    with pytest.raises(ReplayError, match=message):
        trainer.train()


def test_odd_batches_of_a_mixing_dataset_are_warned_of(tiny_plus, settings, caplog):
    ReinforcedTrainer(pooled(), settings(per_device_train_batch_size=3), train_dataset=tiny_plus).get_train_dataloader()
    assert "An odd batch size splits mixed pairs" in caplog.text
    caplog.clear()
    ReinforcedTrainer(pooled(), settings(), train_dataset=tiny_plus).get_train_dataloader()
    assert not caplog.text


@pytest.mark.parametrize("lost", ["teacher_ids", "teacher_logprobs", "reinforced"])
@pytest.mark.parametrize("objective", ["reinforced", "erm"])
def test_a_collator_that_drops_the_answers_is_refused(plain, pictures, settings, lost, objective):
    def collate(rows):
        return {name: torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in rows[0] if name != lost}

    args = settings(reinforced_probability=0.99 if objective == "reinforced" else 0.0)
    student = pooled()
    trainer = ReinforcedTrainer(student, args, train_dataset=plain, eval_dataset=pictures, data_collator=collate)
    before = weights(student)
    with pytest.raises(ConfigError, match=rf"must hold its stored answers, but {lost} are not among .*Leave `data_co"):
        trainer.train()
    assert same(before, weights(student))
    assert trainer.evaluate()["eval_loss"] > 0, "pictures with labels have no answers"
    with pytest.raises(ConfigError, match=f"must hold its stored answers, but {lost}"):
        trainer.evaluate(plain)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_global_batch_is_divided_among_processes_and_accumulation(tmp_path, processes, accumulated, monkeypatch):
    monkeypatch.setattr(ReinforcedTrainingArguments, "world_size", processes)
    args = ReinforcedTrainingArguments(str(tmp_path), batch_size=24, gradient_accumulation_steps=accumulated)
    assert args.per_device_train_batch_size * processes * accumulated == 24
    assert dataclasses.replace(args).per_device_train_batch_size == args.per_device_train_batch_size
    # There a batch is that of all processes.
    split = {"gradient_accumulation_steps": accumulated, "accelerator_config": {"split_batches": True}}
    args = ReinforcedTrainingArguments(str(tmp_path), batch_size=24, **split)
    assert args.per_device_train_batch_size * accumulated == 24


def test_the_cpu_that_accelerate_is_told_to_use_is_the_models_too(tmp_path, monkeypatch):
    """On a machine with an accelerator; the tests' environment asks for the CPU."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    args = ReinforcedTrainingArguments(str(tmp_path))
    assert args.use_cpu
    assert args.device.type == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    assert ReinforcedTrainingArguments(str(tmp_path)).use_cpu
