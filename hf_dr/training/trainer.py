"""`ReinforcedTrainer`: transformers' Trainer on a "+" dataset."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.data_loader import prepare_data_loader
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.utils import ModelEmaV3
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState
from transformers.modelcard import extract_hyperparameters_from_trainer
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils.hub import PushInProgress

from hf_dr.errors import ConfigError
from hf_dr.hub.repository import Push
from hf_dr.replay.reinforced_data import MappedReinforcedData, ReinforcedData
from hf_dr.replay.sampling import BY_DIFFICULTY, ReinforcedSampler
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.losses import TailRule, reinforced_kl, tail_rule
from hf_dr.training.mixing import mix_batch
from hf_dr.training.resumable import ResumableTrainer
from hf_dr.training.student_card import STUDENT_FILE, Student
from hf_dr.training.student_hub import export_student, push_student
from hf_dr.training.students import EMA_FILE, complete_config, is_timm, native_names
from hf_dr.views.rng import DOMAIN_MIXING, keyed_rng

logger = logging.getLogger(__name__)

_SPEED = "train_samples_per_second"
_SETTINGS_FILE = "reinforced_training.json"
# What decides the batches and their loss: a run that is resumed keeps it.
_KEPT = (
    "reinforced_probability", "view_order", "temperature", "label_weight", "unreinforced_label_smoothing",
)  # fmt: skip
_KEPT_OF_MIXING = ("mixup_alpha", "cutmix_alpha", "mixup_prob", "mixup_switch_prob")


class ReinforcedTrainer(ResumableTrainer):
    """Trains an image classifier on stored views and stored teacher answers: no teacher in memory, no extra time.

    A drop-in for `transformers.Trainer`. With what `load_reinforced` returns as `train_dataset` the loss is the KL
    divergence to the stored answers; with any other dataset it is Trainer's own. `eval_dataset` is as for Trainer. Where
    `pixel_values` are uint8, as those of this package are, they are normalised on the device.

    Args:
        model: An image classifier of transformers, timm's through `TimmWrapperForImageClassification` included.
        args: Settings.
        normalization: (mean, std) of the student's input, each three numbers of the scale 0 to 1. Default: those of the
            model's own `pretrained_cfg`, else ImageNet's.
        **settings: All that Trainer takes.

    Raises:
        ConfigError: The model's classes are not the dataset's, or a setting does not fit the dataset.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        args: ReinforcedTrainingArguments | None = None,
        *,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        **settings: Any,
    ) -> None:
        args = args or ReinforcedTrainingArguments("trainer_output")
        if not isinstance(args, ReinforcedTrainingArguments):
            raise ConfigError(f"`args` must be ReinforcedTrainingArguments, got {type(args).__name__}.")
        self.ema: ModelEmaV3 | None = None
        self._accumulated = 0  # batches of the present step, so far
        self._tail: TailRule = args.tail or "uniform"
        super().__init__(model=model, args=args, **settings)
        self.args: ReinforcedTrainingArguments
        assert isinstance(self.model, nn.Module)
        # Before any wrapper changes its class.
        name = getattr(getattr(self.model, "config", None), "architecture", None) or type(self.model).__name__
        self._model_summary = f"{name} of {sum(p.numel() for p in self.model.parameters()):,} parameters"
        self._check_train_dataset()
        self._normalization = normalization or _own_normalization(self.model)
        if args.ema_decay is not None:
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ConfigError(
                    "`ema_decay` must be unset where the weights are sharded (FSDP, DeepSpeed). Unset it."
                )
            if self.ema is None:
                self.ema = ModelEmaV3(self.model, decay=args.ema_decay, device=args.device)
        self.add_callback(_Steps(self))

    def _check_train_dataset(self) -> None:
        train: Any = self.train_dataset
        if isinstance(train, ReinforcedData):
            assert isinstance(self.model, nn.Module)
            check_student(self.model, train)
            self._tail = tail_rule(self.args.tail, train.signal)
            for name, given, instead in (
                ("compute_loss_func", self.compute_loss_func, "Subclass and override `compute_loss`"),
                ("label_smoothing_factor", self.args.label_smoothing_factor, "Set `unreinforced_label_smoothing`"),
            ):
                if given:
                    raise ConfigError(f"`{name}` has no part in the loss of a reinforced dataset, got one. {instead}.")
            if self.args.train_sampling_strategy != "random":
                raise ConfigError(
                    f"`train_sampling_strategy` must be `random`, got {self.args.train_sampling_strategy!r}: a reinforced "
                    "dataset has its own order. Leave it out."
                )
            if self.args.mixes and self.args.reinforced_probability:
                raise ConfigError(
                    "`mixup_alpha` and `cutmix_alpha` must be 0 where stored views are replayed, which are mixed as they were "
                    f"stored, got {self.args.mixup_alpha} and {self.args.cutmix_alpha}. Set them to 0, or train with "
                    "`objective` erm or kd (`reinforced_probability` 0)."
                )
            if self.args.label_weight and not train.has_labels:
                raise ConfigError(
                    f"`label_weight` must be 0 for a dataset without labels, got {self.args.label_weight}. Set it to 0."
                )
            if isinstance(train, StreamedReinforcedDataset):  # checks the rest
                self._share_of(train, self.args.train_batch_size)
            else:
                self._get_train_sampler()
            if train.paired and self.args.train_batch_size % 2:
                logger.warning("An odd batch size splits mixed pairs over batches: their images are decoded twice.")
            # Ours is a mean over the batch: Trainer divides it by the number of accumulated batches.
            self.loss_is_scaled_for_ga = False
        elif _wraps_reinforced(train):
            raise ConfigError(
                f"`train_dataset` must be what `load_reinforced` returns, got it wrapped in {type(train).__name__}, where "
                "each row would show one view for ever. Select rows before: "
                "`ReinforcedDataset(train.plus.select(rows), train.provenance)`."
            )
        elif hasattr(train, "column_names") and "teacher_ids" in train.column_names:
            raise ConfigError(
                '`train_dataset` must be what `load_reinforced` returns, got the plain datasets.Dataset of a "+" dataset. '
                "Its views would not be replayed: open it with `load_reinforced`."
            )
        elif self.args.mixes and train is not None:
            raise ConfigError(
                "`mixup_alpha` and `cutmix_alpha` need a dataset of this package (`load_reinforced`, `AugmentedDataset`), got "
                f"{type(train).__name__}. Set them to 0."
            )

    def call_model_init(self, trial: Any = None) -> Any:
        """As Trainer's; a new model starts a new average of the weights."""
        model = super().call_model_init(trial)
        decay = getattr(self.args, "ema_decay", None)
        if decay is not None:
            self.ema = ModelEmaV3(model, decay=decay, device=self.args.device)
        return model

    # ------------------------------------------------------------------------------------------------- data and loss

    def _get_dataloader(
        self,
        dataset: Any,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> torch.utils.data.DataLoader:
        if is_training and isinstance(dataset, StreamedReinforcedDataset):
            loader = self._stream_loader(dataset, description, batch_size)
        else:
            loader = super()._get_dataloader(dataset, description, batch_size, sampler_fn, is_training, dataloader_key)
        if isinstance(dataset, ReinforcedData):
            # What is evaluated may have another signal than what is learnt from, but the loss has one rule.
            rule = self._tail if isinstance(self.train_dataset, ReinforcedData) else self.args.tail
            self._tail = tail_rule(rule, dataset.signal)
        if isinstance(self.train_dataset, ReinforcedData):
            # A loader draws the seed of its workers when it starts to iterate, one with persistent workers only once: from
            # the global generator, dropout after a restart would not be what it had been without.
            generator = torch.Generator().manual_seed(self._order_seed)
            getattr(loader, "base_dataloader", loader).generator = generator
        return loader

    def _share_of(self, stream: StreamedReinforcedDataset, batch_size: int) -> StreamedReinforcedDataset:
        """What this process sees of a stream."""
        args = self.args
        ordered = stream.ordered(**self._order)
        return ordered.split_by_node(args.process_index, args.world_size, batch_size=batch_size, even=True)

    def _stream_loader(
        self, stream: StreamedReinforcedDataset, description: str, batch_size: int
    ) -> torch.utils.data.DataLoader:
        args = self.args
        loader = torch.utils.data.DataLoader(
            self._share_of(stream, batch_size),
            batch_size=batch_size,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description),
            drop_last=args.dataloader_drop_last,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
        )
        # Left to itself, accelerate has process 0 read everything for all. Each has its share already.
        return prepare_data_loader(
            loader, args.device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def num_examples(self, dataloader: torch.utils.data.DataLoader) -> int:
        """As Trainer's; of a stream those of all processes."""
        dataset: Any = dataloader.dataset
        if isinstance(dataset, StreamedReinforcedDataset):
            dataset = self.train_dataset
        return len(dataset) if isinstance(dataset, ReinforcedData) else super().num_examples(dataloader)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        dataset = train_dataset if train_dataset is not None else self.train_dataset
        if not isinstance(dataset, MappedReinforcedData):
            return super()._get_train_sampler(train_dataset)
        self._sampler = ReinforcedSampler(dataset, **self._order)
        return self._sampler

    @property
    def _order(self) -> dict[str, Any]:
        """The settings of the order of rows and views."""
        names = ("view_order", "view_difficulty", "reinforced_probability")
        return {
            "seed": self._order_seed,
            "num_epochs": self._num_epochs,
            **{name: getattr(self.args, name) for name in names},
        }

    @property
    def _num_epochs(self) -> int | None:
        """Epochs of the whole training, the last of them perhaps not whole, where views come by their difficulty."""
        args, train = self.args, self.train_dataset
        if args.view_order not in BY_DIFFICULTY:
            return None
        if args.max_steps <= 0:
            return math.ceil(args.num_train_epochs)
        assert isinstance(train, ReinforcedData)
        rows, batch_size = len(train), self._train_batch_size
        if isinstance(train, StreamedReinforcedDataset):
            rows = -(-rows // args.world_size)  # all processes have equally many
        elif not self.accelerator.split_batches:
            batch_size *= args.world_size
        batches = rows // batch_size if args.dataloader_drop_last else -(-rows // batch_size)
        return -(-args.max_steps // max(1, -(-batches // args.gradient_accumulation_steps)))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        assert self._signature_columns is not None
        for name in ("teacher_ids", "teacher_logprobs", "tail_ids", "tail_logprobs", "reinforced"):
            if name not in self._signature_columns:
                self._signature_columns.append(name)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """As Trainer's, on the mixed batch where `mixup_alpha` or `cutmix_alpha` say so."""
        if self.args.mixes:
            inputs = self._mixed(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def _mixed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        args = self.args
        # By its place in the run, so that a restart draws what would have been drawn, and each process its own.
        place = self._accumulated * args.world_size + args.process_index
        rng = keyed_rng(self._order_seed, domain=DOMAIN_MIXING, major=self.state.global_step, minor=place)
        self._accumulated += 1
        pixels_BCHW, lam = mix_batch(
            inputs["pixel_values"],
            rng,
            mixup_alpha=args.mixup_alpha,
            cutmix_alpha=args.cutmix_alpha,
            prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob,
        )
        return {**inputs, "pixel_values": pixels_BCHW, "lam": lam}

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs.get("pixel_values")
        if isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8:
            inputs = {**inputs, "pixel_values": normalize(pixels, *self._normalization)}
        return inputs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Returns the mean over the batch of KL to the stored teacher, and of the label's cross-entropy where it counts."""
        if "teacher_ids" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = self._answer(model, inputs)
        loss = self._reinforced_loss(outputs["logits"], inputs)
        return (loss, outputs) if return_outputs else loss

    def _answer(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = model(pixel_values=inputs["pixel_values"])
        if not isinstance(outputs, dict):
            outputs = {"logits": outputs if isinstance(outputs, torch.Tensor) else outputs[0]}
        if isinstance(self.train_dataset, ReinforcedData):  # where the model's config did not tell
            _check_num_classes(outputs["logits"].shape[-1], self.train_dataset)
        return outputs

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """As Trainer's, and the loss of reinforced views that have no labels."""
        if "teacher_ids" not in inputs or "labels" in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, self._prepare_inputs(inputs), return_outputs=True)
        return loss.detach(), None if prediction_loss_only else outputs["logits"].detach(), None

    @property
    def _draws_anew(self) -> bool:
        """Whether some samples are newly drawn views, which learn from their label."""
        return self.args.reinforced_probability < 1 or not getattr(self.train_dataset, "all_reinforced", True)

    def _reinforced_loss(self, logits_BC: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
        args, labels_B = self.args, inputs.get("labels")
        kl_B = reinforced_kl(
            logits_BC,
            inputs["teacher_ids"],
            inputs["teacher_logprobs"],
            tail=self._tail,
            temperature=args.temperature,
            tail_ids_BT=inputs.get("tail_ids"),
            tail_logprobs_BT=inputs.get("tail_logprobs"),
        )
        if labels_B is None:
            if logits_BC.requires_grad and (args.label_weight or self._draws_anew):
                raise ConfigError(
                    "the loss needs `labels`, but the batch has none. Set `label_names=['labels']`: Trainer drops what the "
                    "model's forward does not take."
                )
            return kl_B.mean()
        loss_B = kl_B
        if args.label_weight:
            label_B = F.cross_entropy(logits_BC.float(), labels_B, reduction="none")
            loss_B = (1 - args.label_weight) * kl_B + args.label_weight * label_B
        # What is evaluated may have rows without stored views where training has none.
        if self._draws_anew or not logits_BC.requires_grad:
            fresh_B = self._label_loss(logits_BC, labels_B)
            lam = inputs.get("lam", 1.0)
            if lam < 1:  # cross-entropy is linear in its target: that of the mixed labels
                fresh_B = lam * fresh_B + (1 - lam) * self._label_loss(logits_BC, labels_B.flip(0))
            loss_B = torch.where(inputs["reinforced"], loss_B, fresh_B)
        return loss_B.mean()

    def _label_loss(self, logits_BC: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        smoothing = self.args.unreinforced_label_smoothing
        return F.cross_entropy(logits_BC.float(), labels_B, reduction="none", label_smoothing=smoothing)

    # ------------------------------------------------------------------------------------------ optimizer and average

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the parameters that decay: not biases, normalisations, or what the model itself excludes."""
        unwrapped = getattr(model, "timm_model", model)
        excluded: Any = getattr(unwrapped, "no_weight_decay", set)
        own = excluded()
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and name.removeprefix("timm_model.") not in own
        ]

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As Trainer's; with `ema_decay`, `evaluate` measures the averaged weights too, as `<prefix>_ema_*`."""

        def loop(prefix: str) -> EvalLoopOutput:
            return super(ReinforcedTrainer, self).evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, prefix
            )

        output = loop(metric_key_prefix)
        if self.ema is not None and description == "Evaluation":
            model = self.accelerator.unwrap_model(self.model)
            current = copy.deepcopy(model.state_dict())
            model.load_state_dict(self.ema.module.state_dict())
            try:
                assert output.metrics is not None
                output.metrics.update(loop(f"{metric_key_prefix}_ema").metrics or {})
            finally:
                model.load_state_dict(current)
        return output

    # ------------------------------------------------------------------------------------------------- checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        timm = is_timm(self.model)
        if timm:  # timm reads it as well as transformers, and both resume from it
            complete_config(self.model, self._normalization)
            state_dict = native_names(self.model.state_dict() if state_dict is None else state_dict)  # type: ignore[union-attr]
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        if self.ema is not None:
            average = {k: v.contiguous() for k, v in self.ema.module.state_dict().items()}
            save_file(native_names(average) if timm else average, folder / EMA_FILE, {"format": "pt"})
        kept = self._kept_settings()
        if kept is not None:
            (folder / _SETTINGS_FILE).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

    def _kept_settings(self) -> dict[str, Any] | None:
        train = self.train_dataset
        if not isinstance(train, ReinforcedData):
            return None
        streamed = isinstance(train, StreamedReinforcedDataset)
        return {
            "dataset_fingerprint": train.fingerprint,
            # Who reads which rows of an epoch, and in which order, follows from these.
            "streamed_by": [self.args.world_size, self.args.dataloader_num_workers] if streamed else None,
            "num_rows": len(train),
            "num_views": train.num_views,
            "view_seed": train.seed,
            "order_seed": self._order_seed,
            "tail": self._tail,
            "num_epochs": self._num_epochs,
            "view_difficulty": self.args.view_difficulty if self._num_epochs is not None else None,
            "model": self._model_summary,
            "online_teacher": self._online_teacher,
            **{name: getattr(self.args, name) for name in _KEPT},
            **{name: getattr(self.args, name) if self.args.mixes else None for name in _KEPT_OF_MIXING},
        }

    def create_model_card(self, **settings: Any) -> None:  # type: ignore[override]
        """Writes README.md: who learned what from which data, with which settings and results. Needs no network.

        Only the last evaluation of `eval_dataset` with just the present weights counts as a result.

        Args:
            **settings: `model_name`, `dataset` (a name), `dataset_tags` (Hub ids), `finetuned_from` (Hub id or folder),
                `language`, `license` and `tags`, as for Trainer's; `dataset_revision`; `evaluated_on`, what `eval_dataset`
                is: a dictionary with its `id`, and `config`, `split` and `revision` where it has them.
        """
        train = self.train_dataset
        if not isinstance(train, ReinforcedData):
            known = inspect.signature(Trainer.create_model_card).parameters
            super().create_model_card(**{key: value for key, value in settings.items() if key in known})
            return
        if not self.is_world_process_zero():
            return
        origin, start, tags = train.origin, settings.get("finetuned_from"), settings.get("tags") or []
        local = start is not None and Path(start).expanduser().is_dir()
        base, views = origin.base.get("id"), " + ".join(map(str, origin.num_views))
        labellers = ", ".join(dict.fromkeys(member["id"] for member in origin.teacher_members))
        kept = {key: value for key, value in (self._kept_settings() or {}).items() if value is not None}
        hyperparameters = {k: " ".join(str(v).split()) for k, v in extract_hyperparameters_from_trainer(self).items()}
        speeds = [entry[_SPEED] for entry in self.state.log_history if _SPEED in entry]
        speed = {_SPEED: speeds[-1], "processes": self.args.world_size} if speeds else {}
        student = Student(
            model=f"{self._model_summary}, over {train.num_classes} classes",
            start=Path(start).expanduser().resolve().name if start and local else start,
            objective=self._objective,
            dataset={
                "id": settings.get("dataset"),
                "revision": settings.get("dataset_revision"),
                "config": " + ".join(origin.configs) or origin.base.get("config"),
                "fingerprint": train.fingerprint,
                **({} if labellers else {"reinforced": False}),
            },
            origin=f"That is {origin.num_examples:,} examples{f' of {base}' if base else ''}"
            + (f", whose {views} views each were labelled by {labellers}." if labellers else "."),
            timm=is_timm(self.model),
            teachers=[{key: m.get(key) for key in ("id", "revision", "license")} for m in self._teacher_members],
            evaluated_on=settings.get("evaluated_on"),
            metrics=self._measured,
            settings={**kept, **hyperparameters, **speed},
            metadata={
                "base_model": None if local else start,
                "datasets": settings.get("dataset_tags"),
                "language": settings.get("language"),
                "license": settings.get("license"),
                "tags": [tags] if isinstance(tags, str) else tags,
            },
        )
        student.write(Path(self.args.output_dir or "."), settings.get("model_name"))

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """As Trainer's, but only what belongs to the student is pushed (see `push_student`): no checkpoints, states, logs.

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
        job = self._push(str(self.args.output_dir), commit_message, token, revision, private)
        return job.result() if blocking else job

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == "end":
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        self._finish_current_push()
        self.create_model_card()
        job = self._push(checkpoint_folder, f"Training in progress, step {self.state.global_step}")
        self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type, assignment]

    def _push(
        self,
        folder: str,
        message: str | None,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> Future[Push]:
        # The checkpoint may be deleted before the push is through.
        copy = tempfile.TemporaryDirectory(prefix="hf_dr_push_")
        export_student(folder, copy.name)
        for name in ("README.md", STUDENT_FILE):
            if (path := Path(self.args.output_dir or ".", name)).is_file():
                shutil.copyfile(path, Path(copy.name, name))

        def push() -> Push:
            assert self.hub_model_id is not None
            with copy:
                return push_student(
                    copy.name,
                    self.hub_model_id,
                    private=private if private is not None else self.args.hub_private_repo,
                    revision=revision or self.args.hub_revision,
                    token=token or self.args.hub_token,
                    commit_message=message,
                )

        return HfApi().run_as_future(push)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        progress = getattr(self, "push_in_progress", None)
        for job in progress.jobs if progress is not None else ():
            if job.exception() is not None:  # the next push brings it, and the last one raises
                logger.warning("A push during the training failed: %s", job.exception())
        self.push_in_progress = None

    @property
    def _objective(self) -> str:
        share = self.args.reinforced_probability
        if share == 0:
            return "newly drawn views and their labels"
        rest = "" if share == 1 else f" ({share:.4g} of the samples; the others are new views with their labels)"
        train: Any = self.train_dataset
        others = "" if train.all_reinforced else ", and new views of the rows that have none stored, with their labels"
        return f"stored views and a teacher's stored answers{rest}{others}"

    @property
    def _teacher_members(self) -> list[dict[str, Any]]:
        """What the student's teachers are, as in the provenance; none where it learns from labels only."""
        train = self.train_dataset
        if not isinstance(train, ReinforcedData) or self.args.reinforced_probability == 0:
            return []
        return list({json.dumps(member, sort_keys=True): member for member in train.origin.teacher_members}.values())

    @property
    def _online_teacher(self) -> str | None:
        return None

    @property
    def _order_seed(self) -> int:
        return self.args.data_seed if self.args.data_seed is not None else self.args.seed

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        kept, path = self._kept_settings(), Path(resume_from_checkpoint) / _SETTINGS_FILE
        if kept is not None and path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            differing = [f"{k}: {there[k]} there, {v} here" for k, v in kept.items() if k in there and there[k] != v]
            if differing:
                raise ConfigError(
                    f"a run must be resumed with its own settings, but {resume_from_checkpoint} differs in "
                    f"{'; '.join(differing)}. Restore them, or start a new run from the checkpoint's model."
                )
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_ema(Path(resume_from_checkpoint), "Resume")

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._measured = {}
        assert self.state.best_model_checkpoint is not None
        self._load_ema(Path(self.state.best_model_checkpoint), "Go on")

    def _load_ema(self, checkpoint: Path, verb: str) -> None:
        if self.ema is None:
            return
        path = checkpoint / EMA_FILE
        if not path.is_file():
            raise ConfigError(
                f"`ema_decay` is set, but the checkpoint {checkpoint} has no {EMA_FILE}. {verb} without it, or from a "
                "checkpoint that was trained with it."
            )
        self.ema.module.load_state_dict(load_file(path))


class _Steps(TrainerCallback):
    """Counts the batches of a step from its begin on; updates the averaged weights after it."""

    def __init__(self, trainer: ReinforcedTrainer) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._trainer._accumulated = 0

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._trainer.ema is not None:
            self._trainer.ema.update(self._trainer.accelerator.unwrap_model(self._trainer.model), state.global_step)


def normalize(pixels_BCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Turns uint8 pixels into the model's float32 input: (pixels / 255 - mean) / std for each channel."""
    shape = (1, -1, 1, 1)
    offset = torch.tensor(mean, device=pixels_BCHW.device).view(shape) * 255
    scale = torch.tensor(std, device=pixels_BCHW.device).view(shape) * 255
    return (pixels_BCHW - offset) / scale


def _own_normalization(model: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    cfg = getattr(getattr(model, "config", None), "pretrained_cfg", None) or {}
    return cfg.get("mean", IMAGENET_DEFAULT_MEAN), cfg.get("std", IMAGENET_DEFAULT_STD)


def _wraps_reinforced(dataset: Any) -> bool:
    """Whether a reinforced dataset is inside a Subset, a ConcatDataset or the like."""
    inner = [getattr(dataset, "dataset", None), *getattr(dataset, "datasets", ())]
    return any(isinstance(d, ReinforcedData) or _wraps_reinforced(d) for d in inner if d is not None)


def check_student(model: nn.Module, dataset: ReinforcedData) -> None:
    """Checks that a model takes pixels and answers over the classes that the teacher did, in the same order.

    Raises:
        ConfigError: It does not.
    """
    taken = inspect.signature(model.forward).parameters
    if "pixel_values" not in taken and all(p.kind is not p.VAR_KEYWORD for p in taken.values()):
        raise ConfigError(
            f"forward of the model must take `pixel_values`, but that of {type(model).__name__} takes {', '.join(taken)}. "
            "Give a classifier of transformers; for timm's, `build_student` or TimmWrapperForImageClassification."
        )
    config, expected = getattr(model, "config", None), dataset.num_classes
    if getattr(config, "num_labels", None) is not None:
        _check_num_classes(config.num_labels, dataset)  # type: ignore[union-attr]
    names, own = dataset.class_names, getattr(config, "id2label", None)
    if names is None or not own or all(str(own.get(c)) == f"LABEL_{c}" for c in range(expected)):
        return
    mine = [str(own.get(c)) for c in range(expected)]
    # Other words for the same classes are no contradiction; the same words in another order are.
    if set(mine) == set(names) and mine != names:
        c = next(c for c in range(expected) if mine[c] != names[c])
        raise ConfigError(
            f"the model's classes must be in the dataset's order, but class {c} is {mine[c]!r} for the model and "
            f"{names[c]!r} in the dataset. Build it with the dataset's id2label."
        )


def _check_num_classes(count: int, dataset: ReinforcedData) -> None:
    expected = dataset.num_classes
    if count != expected:
        raise ConfigError(
            f'the model must answer over the {expected} classes of the "+" dataset, got {count}. Build it with '
            f"num_labels={expected}."
        )
