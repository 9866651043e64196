"""`ReinforcedTrainer`: transformers' Trainer on a "+" dataset."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from timm.utils import ModelEmaV3
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, seed_worker, set_seed

from hf_dr.errors import ConfigError
from hf_dr.replay.messages import InOneMessage
from hf_dr.replay.names import BY_DIFFICULTY
from hf_dr.replay.proof import check_replay
from hf_dr.replay.reinforced_data import MappedReinforcedData, ReinforcedData
from hf_dr.replay.sampling import ReinforcedSampler
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.settings import check_kind
from hf_dr.teacher.preprocessing import EVAL_CROP
from hf_dr.training.arguments import ReinforcedTrainingArguments, as_reinforced
from hf_dr.training.calibrating import check_whole
from hf_dr.training.callbacks import WeightAverage
from hf_dr.training.checkpoints import plain
from hf_dr.training.checks import (
    check_batches,
    check_loss,
    check_model_settings,
    check_no_path,
    check_no_sampler,
    check_other_dataset,
    check_student,
    check_training,
    learns_from_one,
)
from hf_dr.training.device_views import augmentation_of_trainer, undone, with_made_views
from hf_dr.training.evaluated import precision_kept, share_buffers
from hf_dr.training.losses import TailRule, check_batch, check_num_classes, reinforced_loss, tail_rule
from hf_dr.training.mixing import BatchMixer
from hf_dr.training.resumable import changed
from hf_dr.training.stream_progress import StreamProgress
from hf_dr.training.student_inputs import (
    Normalization,
    check_processor,
    is_timm,
    load_processor,
    outputs_of,
    resized_processor,
)
from hf_dr.training.student_trainer import StudentTrainer, steps_of_epoch
from hf_dr.training.students import build_student, evaluation_cfg, unwrapped

logger = logging.getLogger(__name__)

# What decides the batches and their loss, and so must not change when a run is resumed.
_KEPT = (
    "reinforced_probability", "view_order", "temperature", "label_weight", "unreinforced_label_smoothing",
)  # fmt: skip
_KEPT_OF_MIXING = ("mixup_alpha", "cutmix_alpha", "mixup_prob", "mixup_switch_prob")


class ReinforcedTrainer(StudentTrainer):
    """Trains an image classifier on stored views and stored teacher answers, with no teacher in memory.

    A drop-in for `transformers.Trainer`. With what `load_reinforced` returns as `train_dataset` the loss is the KL
    divergence to the stored answers; with any other dataset it is Trainer's own. `eval_dataset` is as for Trainer, or a plain
    `datasets.Dataset` with an image and a label column, or several by name. Where `pixel_values` are uint8, as those of this
    package are, they are normalised on the device.

    Examples:
        ```python
        from hf_dr import ReinforcedTrainer, ReinforcedTrainingArguments, load_reinforced

        train = load_reinforced("cifar100-plus")
        args = ReinforcedTrainingArguments("out", num_train_epochs=100, learning_rate=1e-3, batch_size=64)
        trainer = ReinforcedTrainer("timm:resnet18", args, train_dataset=train)
        trainer.train()
        trainer.save_model()
        ```

    Args:
        model: An image classifier of transformers, timm's through `TimmWrapperForImageClassification` included; or its name,
            as `build_student` takes it: a Hub id, a folder, or `timm:ARCHITECTURE` for fresh weights. It gets the classes
            and the size of `train_dataset`, and its image processor is kept.
        args: Settings; those of transformers get the defaults of `ReinforcedTrainingArguments`.
        normalization: (mean, std) of the student's input, each three numbers of the scale 0 to 1. Default: what
            `processing_class` does, the image processor that is saved with the student, channel order and rescale factor
            included. Without one what its `pretrained_cfg` says; else its checkpoint's, else ImageNet's, by a new processor.
        **settings: All that Trainer takes.

    Raises:
        ConfigError: The model's classes are not the dataset's, or a setting does not fit the dataset.
        ReplayError: A view has not the pixels that its teacher saw; some rows are checked.
        TeacherError: The image processor does something that is not understood.
    """

    settings_file = "reinforced_training.json"

    def __init__(
        self,
        model: nn.Module | str | Path | None = None,
        args: TrainingArguments | None = None,
        *,
        normalization: Normalization | None = None,
        **settings: Any,
    ) -> None:
        args = as_reinforced(args)
        self._evaluated: ReinforcedData | None = None  # while it is evaluated
        self._learned_from = train = settings.get("train_dataset")
        model, settings["processing_class"] = _student(model, settings, args)
        super().__init__(model=model, args=args, normalization=normalization, **settings)
        self._stream = StreamProgress(self)
        if self._reinforced is not None:
            check_student(self.model, self._reinforced)
            # Our loss is a mean over the batch, which Trainer is to divide by the number of accumulated batches. It would take
            # the loss of a model that accepts its arguments for one that is divided already.
            self.model_accepts_loss_kwargs = False
        self._check_settings()
        self.add_callback(_LateCheck(self))
        self._augmenter = augmentation_of_trainer(args, train, self.data_collator)
        check_replay(train, None if self._augmenter is None else (self._augmenter, args.device))
        self._mixer = BatchMixer(args, lambda: self._order_seed)
        self.add_callback(self._mixer)
        self._average = _weight_average(self)
        self._companions = [self._stream] if self._average is None else [self._stream, self._average]

    def _check_settings(self) -> None:
        """Checks that settings and data go together: when the trainer is made, and again when a training begins."""
        if self._reinforced is None:
            check_other_dataset(self.args, self.train_dataset)
        else:
            check_training(self.args, self._reinforced, self)
            self._in_order()  # checks the settings of the order

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Same as Trainer's; what `model_init` makes is treated as a given model is."""
        made = super().call_model_init(trial)
        check_kind("model_init", made, nn.Module, "a function that returns a model", "Build it with `build_student`.")
        model = _own(made, self._learned_from, self.args)
        if isinstance(self._learned_from, ReinforcedData):
            check_student(model, self._learned_from)
        if hasattr(self, "_preprocessing"):  # else the trainer is being made, and looks at its model later
            self.model = model
            self._look_at_model()
        return model

    @property
    def ema(self) -> ModelEmaV3 | None:
        """The average of the weights, with `ema_decay`; its `module` is the averaged model."""
        return None if self._average is None else self._average.ema

    # ------------------------------------------------------------------------------------------------------------ data

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Same as Trainer's; reinforced data comes in its own order."""
        if self._reinforced is None:
            return super().get_train_dataloader()
        _check_loader(self, self._reinforced)
        dataset, self._sampler = self._in_order()
        return self._loader_of(dataset, self._sampler)

    def _loader_of(self, dataset: Any, sampler: ReinforcedSampler | None) -> torch.utils.data.DataLoader:
        """Returns the loader of what `_in_order` returns."""
        collate: Any = self._get_collator_with_removed_columns(self.data_collator, "Training")
        if self._augmenter is not None:
            dataset, collate = undone(dataset, self._augmenter, collate)
        args = self.args
        loader = torch.utils.data.DataLoader(
            dataset,
            self._train_batch_size,
            sampler=sampler,
            collate_fn=InOneMessage(collate),
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            # The lowest transformers that is accepted lacks this setting and `dataloader_in_order`: their defaults stand here.
            multiprocessing_context=getattr(args, "dataloader_multiprocessing_context", None),
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=getattr(args, "dataloader_in_order", True),
            worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
        )
        if sampler is not None:
            return self._for_training(self.accelerator.prepare(loader))
        # Left to itself, accelerate has process 0 read a stream for all. Each process has its share already.
        own = {"num_processes": 1, "process_index": 0, "put_on_device": True, "dispatch_batches": False}
        return self._for_training(prepare_data_loader(loader, args.device, **own))

    def _in_order(self, progress: dict[str, Any] | None = None) -> tuple[Any, ReinforcedSampler | None]:
        """Returns what a loader reads: the dataset and its sampler, or this process's share of a stream.

        `progress` is that of a stream's epoch that goes on.
        """
        args, train = self.args, self.train_dataset
        order: dict[str, Any] = {
            "seed": self._order_seed,
            "num_epochs": self._num_epochs,
            "view_order": args.view_order,
            "view_difficulty": args.view_difficulty,
            "reinforced_probability": args.reinforced_probability,
        }
        if not isinstance(train, StreamedReinforcedDataset):
            return train, ReinforcedSampler(train, **order)
        stream = train.ordered(**order) if progress is None else train.ordered(**order).resumed(progress)
        batch_size = self._train_batch_size
        return stream.split_by_node(args.process_index, args.world_size, batch_size=batch_size, even=True), None

    @property
    def _loader_seed(self) -> int | None:
        return None if self._reinforced is None else self._order_seed

    @property
    def _num_epochs(self) -> int | None:
        """Epochs of the whole training, where views come by their difficulty; what the order of views must know."""
        if self.args.view_order not in BY_DIFFICULTY:
            return None
        if self.args.max_steps <= 0:
            return math.ceil(self.args.num_train_epochs)
        return -(-self.args.max_steps // steps_of_epoch(self))

    def num_examples(self, dataloader: torch.utils.data.DataLoader) -> int:
        """Same as Trainer's; counts the rows of all processes where the data is streamed."""
        given = _dataset_of(dataloader)
        dataset: Any = self.train_dataset if isinstance(given, StreamedReinforcedDataset) else given
        return len(dataset) if isinstance(dataset, ReinforcedData) else super().num_examples(dataloader)

    # ------------------------------------------------------------------------------------------------------------ loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Same as Trainer's; mixes the batch first where `mixup_alpha` or `cutmix_alpha` say so."""
        inputs = with_made_views(inputs, channels_last=self._channels_last)  # if others than Trainer read the loader
        if self.args.mixes:
            inputs = self._mixer.mix(inputs, self.state.global_step)
        return super().training_step(model, self._student_inputs(inputs), num_items_in_batch)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Same as Trainer's; computes the loss also of reinforced views that have no labels."""
        inputs = self._student_inputs(inputs)
        if "teacher_ids" not in inputs or "labels" in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), None if prediction_loss_only else outputs["logits"].detach(), None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns the mean over the batch of KL to the stored teacher, and of the label's cross-entropy where it counts."""
        if (self._reinforced if model.training else self._evaluated) is not None:
            check_batch(inputs)
        if "teacher_ids" in inputs:
            outputs = self._logits_of(model, inputs)
            loss = reinforced_loss(
                outputs["logits"],
                inputs,
                tail=self._tail,
                temperature=self.args.temperature,
                label_weight=self.args.label_weight,
                label_smoothing=self.args.unreinforced_label_smoothing,
                # Newly drawn views, which learn from their label; what is evaluated may have some where training has none.
                new_views=self.args.reinforced_probability < 1
                or not getattr(self.train_dataset, "all_reinforced", True)
                or not outputs["logits"].requires_grad,
            )
        elif self._reinforced is not None and "labels" in inputs:
            # Evaluated; not every model has a loss of its own, and some have another.
            outputs = self._logits_of(model, inputs)
            loss = nn.functional.cross_entropy(outputs["logits"].float(), inputs["labels"])
        else:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _logits_of(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the model's outputs, with its `logits`."""
        outputs = outputs_of(model, inputs["pixel_values"])
        if self._reinforced is not None:  # where the model's config did not tell
            check_num_classes(outputs["logits"].shape[-1], self._reinforced.num_classes)
        return outputs

    @property
    def _tail(self) -> TailRule:
        """The tail rule of the loss: `tail`, or that of the signal of what is evaluated, else of what is learned from."""
        data = self._reinforced if self._evaluated is None else self._evaluated
        return (self.args.tail or "uniform") if data is None else tail_rule(self.args.tail, data.signal)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Same as Trainer's; with `ema_decay`, `evaluate` measures the averaged weights too, as `<prefix>_ema_*`."""
        given = (dataloader, description, prediction_loss_only, ignore_keys)
        average = self._average if description == "Evaluation" else None
        if average is not None:
            _check_read_again(dataloader)
        share_buffers(self, None if self.ema is None else self.ema.module)
        dataset = _dataset_of(dataloader)
        evaluated = dataset if isinstance(dataset, ReinforcedData) else None
        with changed(self, _evaluated=evaluated), precision_kept(self):
            output = super().evaluation_loop(*given, metric_key_prefix)
            if average is not None:
                assert output.metrics is not None
                with average.in_place_of(self.accelerator.unwrap_model(self.model)):
                    averaged = super().evaluation_loop(*given, f"{metric_key_prefix}_ema")
                output.metrics.update(averaged.metrics or {})
        return output

    # ----------------------------------------------------------------------------------------- checkpoints and the Hub

    def _run_epoch(self, *args: Any, **settings: Any) -> None:
        if isinstance(self._reinforced, MappedReinforcedData):
            # For a subclass's own loader, which asks for rows without a view and gets that of the epoch.
            self._reinforced.set_epoch(settings["epoch"])
        with self._stream.in_epoch(settings["epoch"]):
            super()._run_epoch(*args, **settings)

    def _rest_of_epoch(self, loader: Any, batches: int) -> Any:
        streamed = isinstance(self.train_dataset, StreamedReinforcedDataset)
        return self._stream.rest() if streamed else super()._rest_of_epoch(loader, batches)

    def run_settings(self) -> dict[str, Any] | None:
        """Returns what decides the batches and their loss; None where the data is not reinforced."""
        args, train, seen = self.args, self._reinforced, self._preprocessing
        if train is None:
            return None
        return {
            "dataset_fingerprint": train.fingerprint,
            "num_rows": len(train),
            "num_views": train.num_views,
            "view_seed": train.seed,
            "shuffled_shards": train.shuffled_shards if isinstance(train, StreamedReinforcedDataset) else None,
            "rows": train.rows_digest if isinstance(train, MappedReinforcedData) else None,
            "order_seed": self._order_seed,
            "tail": self._tail,
            "num_epochs": self._num_epochs,
            "view_difficulty": args.view_difficulty if self._num_epochs is not None else None,
            "model": self._model_summary,
            "model_args": self._model_args,
            "normalization": plain([seen.mean, seen.std, seen.bgr]),
            "online_teacher": self._online_teacher,
            **{name: getattr(args, name) for name in _KEPT},
            **{name: getattr(args, name) if args.mixes else None for name in _KEPT_OF_MIXING},
        }

    @property
    def _online_teacher(self) -> str | None:
        """The teacher in memory, where there is one, by its weights."""
        return None


def _dataset_of(loader: Any) -> Any:
    """Returns what a loader reads; that of a subclass of the trainer, such as a `ReinforcedLoader`, may tell none."""
    return getattr(loader, "dataset", None)


def _check_read_again(loader: Any) -> None:
    """Checks that a loader for evaluation has batches left for the averaged weights."""
    if isinstance(loader, Iterator):
        raise ConfigError(
            "a loader for evaluation must be one that can be read again with `ema_decay`, which measures the averaged weights "
            f"too, got {type(loader).__name__}. Return a DataLoader or a list."
        )


_NOT_SEARCHED = ("batch_size", "ema_decay", "augment_on", "channels_last")


class _LateCheck(TrainerCallback):
    """Checks settings and data when a training begins: a search, or a user, sets attributes, which are not checked then."""

    def __init__(self, trainer: ReinforcedTrainer) -> None:
        self._trainer = trainer
        self._views = _views_of(trainer.train_dataset)
        self._fixed = {name: getattr(trainer.args, name) for name in _NOT_SEARCHED}

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        args.check()
        if _views_of(self._trainer.train_dataset) != self._views:
            raise ConfigError(
                "`train_dataset` must have the augmentation and the classes of the one with which the trainer was made, by "
                "which views are made and evaluated, but another was set. Make another trainer, of the `model` of this one."
            )
        for name, value in self._fixed.items():
            if getattr(args, name) != value:
                raise ConfigError(
                    f"`{name}` must be {value}, as when the trainer was made, got {getattr(args, name)}. Leave it out of a "
                    "search, or make another trainer."
                )
        processes = 1 if args.accelerator_config.split_batches else args.world_size
        found = args.train_batch_size * processes * args.gradient_accumulation_steps
        if args.batch_size not in (None, found):
            raise ConfigError(
                f"a step must see the {args.batch_size} images of `batch_size`, but with what was set since it sees {found}. "
                "Make the trainer without `batch_size`, or leave batches and accumulation as they were."
            )
        self._trainer._check_settings()


def _views_of(dataset: Any) -> object:
    """Returns what a trainer is made for."""
    if not isinstance(dataset, ReinforcedData):
        return None
    return dataset.augmentations, dataset.num_classes, dataset.class_names


def _check_loader(trainer: ReinforcedTrainer, train: ReinforcedData) -> None:
    """Checks that a loader of reinforced data is asked for what it does, and has batches to learn from."""
    args = trainer.args
    check_no_sampler(trainer)
    if train.paired and args.train_batch_size % 2:
        logger.warning("An odd batch size splits mixed pairs over batches: their images are decoded twice.")
    check_batches(
        len(train),
        args,
        partial(learns_from_one, trainer.model, train, args.world_size),
        streamed=isinstance(train, StreamedReinforcedDataset),
        # What a process takes now, which `auto_find_batch_size` may have lowered.
        batch_size=trainer._train_batch_size // (args.world_size if trainer.accelerator.split_batches else 1),
    )


def _weight_average(trainer: ReinforcedTrainer) -> WeightAverage | None:
    """Returns the average of the weights that the settings ask for, as a callback; None without `ema_decay`."""
    args = trainer.args
    if args.ema_decay is None:
        return None
    check_whole(trainer, "ema_decay")
    average = WeightAverage(trainer.model, args.ema_decay, args.device)
    trainer.add_callback(average)
    return average


def _set_evaluation_size(model: Any, size: tuple[int, int]) -> None:
    """Has the configuration of a model of timm say the size of the views, at which it is evaluated from now on."""
    own = getattr(model.config, "pretrained_cfg", None) or {}
    there = tuple(own.get("input_size", ()))[1:]
    if there == size:
        return
    if there:
        logger.info(
            "The student learns from images of %dx%d pixels, for which it is saved; it was for %dx%d.", *size, *there
        )
    model.config.pretrained_cfg = {**evaluation_cfg(size, EVAL_CROP), **own, "input_size": [3, *size]}


def _own(model: Any, train: Any, args: ReinforcedTrainingArguments) -> nn.Module:
    """Returns a model without wrappers that says what it takes, and the size of the views that it learns from."""
    model = unwrapped(model)
    check_model_settings(args, model)
    if not hasattr(model, "main_input_name"):  # Trainer would ask for that of texts
        model.main_input_name = "pixel_values"
    if is_timm(model) and isinstance(train, ReinforcedData):
        _set_evaluation_size(model, train.size)
    return model


def _student(model: Any, settings: dict[str, Any], args: ReinforcedTrainingArguments) -> tuple[nn.Module | None, Any]:
    """Returns a student without wrappers, built if it is given by its name, and its image processor, the given one first."""
    for name in ("train_dataset", "eval_dataset"):
        check_no_path(name, settings.get(name))
    train, processor = settings.get("train_dataset"), settings.get("processing_class")
    if isinstance(model, type):
        raise ConfigError(
            f"`model` must be a model, got the class {model.__name__}. Make one of it: `{model.__name__}(...)`."
        )
    check_processor("processing_class", processor)
    if isinstance(train, ReinforcedData):
        check_loss(args, settings.get("compute_loss_func"))
    if processor is not None and isinstance(train, ReinforcedData):
        processor = resized_processor(processor, max(train.size))
    if not isinstance(model, (str, Path)):
        return None if model is None else _own(model, train, args), processor
    name = str(model)
    if not isinstance(train, ReinforcedData):
        check_other_dataset(args, train)
        raise ConfigError(
            f"`model` must be a model where `train_dataset` is not what `load_reinforced` returns, got the name {name!r} with "
            f"{type(train).__name__}. Build it with `build_student`."
        )
    set_seed(args.seed)  # new weights are those of the seed
    student = build_student(name, train.class_names, train.num_classes, size=train.size)
    return student, load_processor(name, max(train.size)) if processor is None else processor
