"""What the trainers of students have in common, whatever they learn from: normalised pixels, their files, card and pushes."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Sized
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, default_data_collator
from transformers.utils.hub import PushInProgress

from hf_dr.errors import ConfigError
from hf_dr.hub.repository import Push
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.settings import check_kind
from hf_dr.teacher.preprocessing import checked_normalization
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.batches import CheckedBatches, pixels_of
from hf_dr.training.calibrating import Calibration, calibrate
from hf_dr.training.callbacks import WeightAverage
from hf_dr.training.checkpoints import plain
from hf_dr.training.checks import as_evaluation, check_no_path, check_one, check_optimizer, is_undecoded
from hf_dr.training.device_views import with_made_views
from hf_dr.training.evaluated import names_of_metrics
from hf_dr.training.losses import check_classes
from hf_dr.training.resumable import ResumableTrainer, changed, check_has_model
from hf_dr.training.student_card import student_of_training, with_labels
from hf_dr.training.student_hub import push_in_background, warn_of_failure
from hf_dr.training.student_inputs import Normalization, is_timm, normalize, processor_of, student_preprocessing
from hf_dr.training.students import complete_config, native_names

logger = logging.getLogger(__name__)

# What a batch of reinforced data has that no model takes.
_ANSWERS = ("teacher_ids", "teacher_logprobs", "tail_ids", "tail_logprobs", "reinforced")


class StudentTrainer(ResumableTrainer):
    """Shows an image classifier normalised pixels, and saves and publishes it in the layout of `student_hub`.

    All arguments are Trainer's, but `normalization`, which is that of `ReinforcedTrainer`.
    """

    args: ReinforcedTrainingArguments
    _average: WeightAverage | None = None
    # What was found for the model: an image processor where none was given, and the views of plain images to evaluate on.
    _found_processor: Any = None
    _images: Any = None
    _shown_images: Any = None

    def __init__(self, *args: Any, normalization: Normalization | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        if self.args.warmup_epochs and self.lr_scheduler is not None:  # which would not rise so
            raise ConfigError(
                f"`warmup_epochs` must be 0 with a scheduler of your own, got {self.args.warmup_epochs} and "
                f"{type(self.lr_scheduler).__name__}. Set it to 0, or leave the scheduler out."
            )
        check_optimizer(self.optimizer, self.model)
        self._normalization = checked_normalization(normalization)
        self._look_at_model()

    def _look_at_model(self) -> None:
        """Reads from the model what it is shown and saved with, where that was not given; again for each of `model_init`."""
        model = self.model
        # A loss of this package takes labels also where forward takes none.
        takes_none = self._reinforced is not None and not self.label_names
        if self.args.label_names is None and (self._takes_anything or takes_none):
            self.label_names = ["labels"]
        # Before any wrapper changes its class; a search drops the model between its trials, in the first process alone.
        self._model_summary = _summary(model)
        # What timm was given to build it; nothing is {}, as it is saved.
        self._model_args = plain(model.config.model_args or {}) if is_timm(model) else None
        if self.processing_class is self._found_processor and self._reinforced is not None:
            self._found_processor = processor_of(model, self._reinforced.size, self._normalization)
            self.processing_class = self.callback_handler.processing_class = self._found_processor
        self._preprocessing = student_preprocessing(model, self.processing_class, self._normalization)
        if self.eval_dataset is not self._shown_images:
            self._images = self.eval_dataset
        self.eval_dataset = self._shown_images = as_evaluation(self, self._images)
        wanted = self.args.channels_last
        on_gpu = self.args.device.type == "cuda"
        self._channels_last = on_gpu and any(p.ndim == 4 for p in model.parameters()) if wanted is None else wanted
        if self._channels_last:
            model.to(memory_format=torch.channels_last)

    @property
    def _reinforced(self) -> ReinforcedData | None:
        """What is learned from, where it is data of this package."""
        return self.train_dataset if isinstance(self.train_dataset, ReinforcedData) else None

    def get_batch_samples(self, *args: Any, **settings: Any) -> tuple[list[Any], Any]:
        """Same as Trainer's; views that the device makes meanwhile are tensors from here on."""
        batches, count = super().get_batch_samples(*args, **settings)
        return [with_made_views(batch, channels_last=self._channels_last) for batch in batches], count

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **settings: Any) -> Any:
        """Same as Trainer's; a label that is none of the classes is named."""
        labels = inputs.get("labels")
        if self.label_smoother is not None:  # it would take any label below 0 for class 0
            _check_labels(model, labels)
        try:
            return super().compute_loss(model, inputs, *args, **settings)
        except IndexError:
            _check_labels(model, labels)
            raise

    def _student_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns a batch with its pixels normalised, if they are uint8."""
        pixels = inputs.get("pixel_values") if self._reinforced is None else pixels_of(inputs)
        if isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8:
            if self._channels_last:
                pixels = pixels.contiguous(memory_format=torch.channels_last)
            # On the device, where the loader has put them: a quarter of the bytes to send there.
            pixels = normalize(pixels, self._preprocessing)
            # `bf16_full_eval` and `fp16_full_eval` cast the model for an evaluation after the training, but no inputs.
            return {**inputs, "pixel_values": pixels if self.is_in_train else pixels.to(_precision(self.model))}
        return inputs

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Same as Trainer's, but also takes plain images with labels."""
        own = self.eval_dataset
        if eval_dataset is None:
            eval_dataset = own
        elif isinstance(eval_dataset, str) and isinstance(own, dict):
            if eval_dataset not in own:
                raise ConfigError(
                    f"`eval_dataset` must be a dataset, or the name of one of the trainer's, {', '.join(own)}; got "
                    f"{eval_dataset!r}. Name one of them, or open it: `datasets.load_dataset(...)`."
                )
            eval_dataset = own[eval_dataset]
        evaluated = as_evaluation(self, eval_dataset)
        self._check_decoded("eval_dataset", evaluated)
        with self._checking_batches():
            return super().get_eval_dataloader(evaluated)

    def get_test_dataloader(self, test_dataset: Any) -> torch.utils.data.DataLoader:
        """Same as Trainer's, but also takes plain images with labels."""
        check_one("test_dataset", test_dataset)
        evaluated = as_evaluation(self, test_dataset, to_predict=True, name="test_dataset")
        self._check_decoded("test_dataset", evaluated)
        with self._checking_batches():
            return super().get_test_dataloader(evaluated)

    def _checking_batches(self) -> AbstractContextManager[None]:
        """Has the loaders that are made meanwhile check their batches, where the training set tells the classes."""
        train, given = self._reinforced, self.data_collator
        return changed(self, data_collator=given if train is None else CheckedBatches(given, train.num_classes))

    def _check_decoded(self, name: str, given: Any) -> None:
        """Refuses the name of a dataset, and images that no transform and no `data_collator` turns into `pixel_values`."""
        check_no_path(name, given)
        if is_undecoded(given) and self.data_collator is default_data_collator:
            raise ConfigError(
                "images can be evaluated with a `train_dataset` of this package, which tells size and classes, got "
                f"{type(self.train_dataset).__name__}. Give one, make `pixel_values` by a transform, or use `hf-dr evaluate`."
            )

    # Private, because there is no public way to tell Trainer which columns a loss needs that the model does not take: it would
    # take the teacher's answers out of the batches, and train on labels.
    def _set_signature_columns_if_needed(self) -> None:
        check_has_model(self.model)
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        others = ("pixel_values",) if self._takes_anything else ()
        columns += [name for name in (*_ANSWERS, *others) if name not in columns]

    @property
    def _takes_anything(self) -> bool:
        """Whether the model's forward takes any argument by its name, so that its signature does not tell what it needs."""
        taken = inspect.signature(self.model.forward).parameters.values()
        return any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken)

    def metric_names(self) -> set[str] | None:
        """Returns the loss, and what `compute_metrics` makes of a few images; None where it refuses those, or names classes."""
        return names_of_metrics(self)

    def calibrate(self, images: Any, *, fold: bool = True) -> Calibration:
        """Divides the student's logits by the temperature that fits images best (Guo et al., arXiv:1706.04599, section 4.2).

        Its last layer takes the temperature in: whoever loads the weights that are saved next gets calibrated probabilities.
        Averaged weights get their own. Checkpoints stay as they are.

        Args:
            images: Labelled images, as `eval_dataset` takes them; neither the training nor the test should have any of them.
            fold: Whether the weights take it in, which those can whose logits are linear in the weights of the last layer.

        Raises:
            ConfigError: The weights are sharded.
            DataError: An image has no label.
        """
        found = calibrate(self, as_evaluation(self, images, name="images"), self._average, fold=fold)
        if found.folded:
            self._calibration, self._measured = found, {}
        return found

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Same as Trainer's; with `warmup_epochs` the rate rises over as many steps as they have.

        Raises:
            ConfigError: Nothing tells how many steps an epoch has.
        """
        if not self.args.warmup_epochs or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        # What Trainer asks; the settings that are saved stay as they were given.
        with changed(self.args, warmup_steps=_warmup_steps(self, num_training_steps)):
            return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the parameters that decay: not what the model itself excludes, nor, without
        `decay_biases_and_norms`, biases and normalisations."""
        own: Any = getattr(getattr(model, "timm_model", model), "no_weight_decay", set)()
        return [
            name
            for name, parameter in model.named_parameters()
            if (parameter.ndim > 1 or self.args.decay_biases_and_norms) and name.removeprefix("timm_model.") not in own
        ]

    # ----------------------------------------------------------------------------------------- checkpoints and the Hub

    # Private for the reason that `ResumableTrainer` has. No public method is told the names of the weights.
    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if is_timm(self.model):  # timm reads it as well as transformers, and both resume from it
            complete_config(self.model, (self._preprocessing.mean, self._preprocessing.std))
            state_dict = native_names(self.model.state_dict() if state_dict is None else state_dict)
        super()._save(output_dir, state_dict)

    def create_model_card(self, **settings: Any) -> None:  # type: ignore[override]
        """Writes README.md: who learned what from which data, with which settings and results. Needs no network.

        Only the last evaluation of `eval_dataset` with just the present weights counts as a result.

        Args:
            **settings: `model_name`, `dataset` (a name), `dataset_tags` (Hub ids), `finetuned_from` (Hub id or folder),
                `language`, `license` and `tags`, as for Trainer's; `dataset_revision`; `evaluated_on` and `calibrated_on`,
                what the images are: dictionaries with their `id`, and `config`, `split` and `revision` where they have them.
        """
        if self._reinforced is None:
            own = ("dataset_revision", "evaluated_on", "calibrated_on")
            super().create_model_card(**{key: value for key, value in settings.items() if key not in own})
        elif self.is_world_process_zero():
            student = student_of_training(self, self._reinforced, settings)
            student.write(Path(self.args.output_dir or "."), settings.get("model_name"))

    @property
    def _objective(self) -> str:
        """What the student learns from, as its card says it."""
        share = self.args.reinforced_probability
        if share == 0:
            return "newly drawn views and their labels"
        rest = "" if share == 1 else f" ({share:.4g} of the samples; the others are new views with their labels)"
        assert self._reinforced is not None
        whole = self._reinforced.all_reinforced
        others = "" if whole else ", and new views of the rows that have none stored, with their labels"
        return with_labels("stored views", "a teacher's stored answers", self.args.label_weight) + rest + others

    @property
    def _teacher_members(self) -> list[dict[str, Any]]:
        """What the student's teachers are, as in the provenance; none where it learns from labels only."""
        if self._reinforced is None or self.args.reinforced_probability == 0:
            return []
        members = self._reinforced.origin.teacher_members
        return list({json.dumps(member, sort_keys=True): member for member in members}.values())

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Same as Trainer's, but only what belongs to the student is pushed (see `push_student`): no checkpoints, states, logs.

        Returns:
            On rank 0 a `Push`, or its future if not `blocking`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card)
        self._finish_current_push()
        job = self._push(
            self.args.output_dir, commit_message=commit_message, token=token, revision=revision, private=private
        )
        return job.result() if blocking else job

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Same as Trainer's, but refuses a model that cannot be published."""
        loadable = "a model of transformers to be pushed (`push_to_hub`)"
        advice = "Build it with `build_student`, or leave `push_to_hub` out."
        check_kind("model", self.model, PreTrainedModel, loadable, advice)
        super().init_hf_repo(token, private)

    # Private, because Trainer's own would publish all of `output_dir`, pickles included, and no callback can keep it from that.
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == "end":
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        try:  # a checkpoint is not whole yet when Trainer calls this
            self._finish_current_push()
            self.create_model_card()
            job = self._push(checkpoint_folder, warn=True, commit_message=message)
            self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]
        except Exception as error:
            warn_of_failure(error)

    def _push(self, folder: str | None, *, warn: bool = False, **given: Any) -> Future[Push]:
        args = self.args
        settings: dict[str, Any] = {
            "private": args.hub_private_repo,
            "revision": args.hub_revision,
            "token": args.hub_token,
        }
        settings |= {name: value for name, value in given.items() if value is not None}
        return push_in_background(
            folder or ".", self.hub_model_id, card_from=args.output_dir or ".", warn=warn, **settings
        )


def _summary(model: nn.Module) -> str:
    name = getattr(getattr(model, "config", None), "architecture", None) or type(model).__name__
    return f"{name} of {sum(p.numel() for p in model.parameters()):,} parameters"


def _precision(model: Any) -> torch.dtype:
    """Returns the type of a model's weights."""
    return next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), torch.float32)


def steps_of_epoch(trainer: StudentTrainer) -> int:
    """Returns the steps of an epoch, at least 1, on all processes together; the training set must have a length."""
    args = trainer.args
    rows, batch_size = len(trainer.train_dataset), trainer._train_batch_size
    if isinstance(trainer.train_dataset, StreamedReinforcedDataset):
        rows = -(-rows // args.world_size)  # all processes have equally many
    elif not trainer.accelerator.split_batches:
        batch_size *= args.world_size
    batches = rows // batch_size if args.dataloader_drop_last else -(-rows // batch_size)
    return max(1, -(-batches // args.gradient_accumulation_steps))


def _warmup_steps(trainer: StudentTrainer, training_steps: int) -> int:
    """Returns the steps of `warmup_epochs`."""
    args = trainer.args
    if not isinstance(trainer.train_dataset, Sized):
        raise ConfigError(
            f"`warmup_epochs` needs a `train_dataset` with a length, got {type(trainer.train_dataset).__name__}. Set "
            "`warmup_steps` instead."
        )
    steps = max(1, round(args.warmup_epochs * steps_of_epoch(trainer)))
    if steps >= training_steps:
        logger.warning(
            "The learning rate rises for %g epochs, which are %d steps, but the training has %d: it never becomes %g.",
            args.warmup_epochs, steps, training_steps, args.learning_rate,
        )  # fmt: skip
    return steps


def _check_labels(model: nn.Module, labels: Any) -> None:
    """Checks labels of rows of one's own, where the model tells its classes."""
    classes = getattr(getattr(model, "config", None), "num_labels", None)
    if classes is not None and isinstance(labels, torch.Tensor) and labels.ndim == 1:
        check_classes(labels, classes)
