"""What detection and segmentation share: a student as backbone, and its training on transformers' Trainer.

A task adds three things: a model around a `Backbone`, a dataset, and a `Meter`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import datasets
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy
from transformers.utils import SAFE_WEIGHTS_NAME

import hf_dr.teacher.architectures  # noqa: F401 (what it registers, timm builds)
from hf_dr.errors import ConfigError, FormatError, HfDrError
from hf_dr.files import expanded, write_json
from hf_dr.hub.repository import Push, Repository, publish
from hf_dr.processes import process_state
from hf_dr.settings import Place, flag
from hf_dr.store.base_dataset import load_base, sampled_rows
from hf_dr.store.readme import merge_parts, newline_of, revision_argument, split_readme
from hf_dr.text import code
from hf_dr.training.checkpoints import follows_a_metric, plain
from hf_dr.training.evaluated import share_buffers
from hf_dr.training.resumable import ResumableTrainer
from hf_dr.training.resumable_arguments import ResumableArguments
from hf_dr.training.student_card import optimization
from hf_dr.transfer.backbone import Backbone, BackboneSpec
from hf_dr.transfer.settings import DataArguments, TransferSettings
from hf_dr.views.rng import DOMAIN_ORDER, keyed_rng

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

TRANSFER_FILE = "transfer.json"
"""What a model is made of and was trained on, next to its weights: it is built and resumed from this."""
RESULTS_FILE = "transfer_results.json"
"""The results of a finished training: `task`, `student`, `dataset`, `metrics` and `training`."""
HEADLINES = {"box_map": "box mAP", "mask_map": "mask mAP", "mean_iou": "mIoU"}
"""The metrics that cards and results pages show, with their titles; fractions from 0 to 1.

Where `metric_for_best_model` is not set, the first of them that a task measures chooses the best weights.
"""

LOADERS = {"object-detection": "load_detector", "image-segmentation": "load_segmenter"}
"""What of `hf_dr` loads a model again, by its task; cards show it."""

# Settings of the steps that are written as they are, next to those that student and transfer have in common.
_TOLD = ("lr_decay", "warmup_steps", "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args")

_CARD = """---
library_name: hf_dr
pipeline_tag: {tag}
---

# {name}
"""

_LOADING = """

```python
from hf_dr import {loader}
from huggingface_hub import snapshot_download

model = {loader}(snapshot_download("{repo_id}"{revision}))
```"""


@dataclass
class TransferArguments(TransferSettings, ResumableArguments):
    """`TrainingArguments` for detection and segmentation."""

    without_part: ClassVar[dict[str, Any]] = {
        **ResumableArguments.without_part, "label_smoothing_factor": 0.0, "train_sampling_strategy": "random",
        "gradient_checkpointing": False, "bf16_full_eval": False, "fp16_full_eval": False,
    }  # fmt: skip

    hub_strategy: str = flag(
        "When --push_to_hub pushes: at the end, because checkpoints hold the state of the training.", default="end"
    )

    def __post_init__(self) -> None:
        TransferSettings.__post_init__(self)
        self.remove_unused_columns = False  # batches are made by the task's own dataset
        named = self.metric_for_best_model
        greater_is_better = self.greater_is_better
        ResumableArguments.__post_init__(self)
        if named is None:  # transformers has put the loss there, which no task measures
            self.metric_for_best_model = None
            self.greater_is_better = greater_is_better


class Described(Protocol):
    """Data of a task, with what names them in results."""

    @property
    def described(self) -> dict[str, Any]:
        """What names them."""


Data = TypeVar("Data", bound=Described)


def open_data(
    chosen: DataArguments,
    from_places: Callable[[str, str], Data],
    from_dataset: Callable[[datasets.Dataset, dict[str, Any]], Data],
) -> tuple[Data, Data | None, dict[str, Any]]:
    """Opens the data to train on and those to evaluate on, None where there are none; returns also what names them.

    `from_places` reads the two places; `from_dataset` reads a split of a dataset, and its second argument names the split.
    """
    places = [[getattr(chosen, prefix + name) for name in chosen.PLACES] for prefix in ("", "eval_")]
    where: dict[str, Any] = {"revision": chosen.revision, "files_from": chosen.files_from}
    with process_state().local_main_process_first():
        if chosen.dataset is None:
            opened = [from_places(*pair) for pair in places if None not in pair]
        else:
            opened = []
            for split in filter(None, (chosen.split, chosen.eval_split)):
                rows, described = load_base(chosen.dataset, chosen.dataset_config, split=split, **where)
                opened.append(from_dataset(rows, {**described, "split": split}))
    if len(opened) == 1:
        return opened[0], None, dict(opened[0].described)
    train, evaluated = opened
    return train, evaluated, {**train.described, "evaluated_on": evaluated.described}


class Meter(Protocol):
    """Measures a model over the batches of this process, each image once; `compute` is over those of all processes."""

    @property
    def names(self) -> Sequence[str]:
        """What `compute` returns, known before anything is measured."""

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Takes in a batch, which is on the model's device."""

    def compute(self) -> dict[str, float]:
        """Returns the metrics; every process calls it, and gets all."""


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Yields (row, epoch) once for each of `count` rows, in an order that follows from (seed, epoch) alone."""

    def __init__(self, count: int, seed: int) -> None:
        self._count = count
        self._seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next `iter`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = keyed_rng(self._seed, domain=DOMAIN_ORDER, major=self.epoch).permutation(self._count)
        return ((row, self.epoch) for row in order.tolist())


class TransferTrainer(ResumableTrainer):
    """transformers' Trainer for a task on a backbone; a run that is killed and resumed is the same run.

    Args:
        model: Its forward takes a batch by name and returns `{"loss": ...}` in training.
        args: Settings.
        description: What decides the model and its training, for JSON: `task`, `student`, `dataset`, and all that builds the
            model again. It is saved with the weights; a run is resumed only under the same.
        meter: Starts a measurement.
        train_dataset: `train_dataset[row, epoch]` is an example; its randomness follows from row, epoch and a seed alone.
        eval_dataset: `eval_dataset[row]` is an example. Before the training some are made, and those that `is_doubtful(row)`.
        data_collator: Makes a batch, a dictionary, of a list of examples.
    """

    settings_file = TRANSFER_FILE

    def __init__(
        self,
        model: nn.Module,
        args: TransferArguments,
        *,
        description: dict[str, Any],
        meter: Callable[[], Meter],
        train_dataset: Any,
        eval_dataset: Any = None,
        data_collator: Callable[[list[Any]], dict[str, Any]],
    ) -> None:
        self._meter = meter
        self._name_metric(args)
        super().__init__(
            model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, data_collator=data_collator
        )
        self.args: TransferArguments
        # What cannot be evaluated is not found only when the training is done: all files are opened, some are decoded.
        if eval_dataset is not None:
            doubtful = filter(eval_dataset.is_doubtful, range(len(eval_dataset)))
            for row in sorted({*sampled_rows(len(eval_dataset)).tolist(), *doubtful}):
                eval_dataset[row]
        self._description = json.loads(json.dumps(description))  # as it is read back

    def _name_metric(self, args: TransferArguments) -> None:
        """Names the metric that chooses the best weights, or the learning rate, where nobody has."""
        evaluated = args.eval_strategy != IntervalStrategy.NO
        if args.metric_for_best_model is not None or not evaluated or not follows_a_metric(args):
            return
        names = self.metric_names()
        args.metric_for_best_model = next((name for name in HEADLINES if name in names), "loss")
        if args.greater_is_better is None:
            args.greater_is_better = args.metric_for_best_model in HEADLINES

    # ------------------------------------------------------------------------------------------------------------ data

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        self._sampler = EpochSampler(len(dataset), self._order_seed)
        return self._sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Returns the batches of this process: of N processes every N-th image, with no others to fill up the last batch."""
        args = self.args
        dataset: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        loader = torch.utils.data.DataLoader(
            torch.utils.data.Subset(dataset, range(args.process_index, len(dataset), args.world_size)),
            batch_size=args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        return self._with_own_generator(loader)

    # ------------------------------------------------------------------------------------------------------- optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the parameters that decay: not biases, normalisations, or what the student itself excludes."""
        excluded = {
            f"{prefix}.{name}"
            for prefix, module in model.named_modules()
            if isinstance(module, Backbone)
            for name in module.no_weight_decay()
        }
        return [name for name, p in model.named_parameters() if p.ndim > 1 and name not in excluded]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Same as Trainer's; with `lr_milestones` the rate falls in steps."""
        args = self.args
        if self.lr_scheduler is None and args.lr_milestones:
            warmup = args.get_warmup_steps(num_training_steps)

            def factor(step: int) -> float:
                passed = sum(step >= share * num_training_steps for share in args.lr_milestones)
                return min(1.0, (step + 1) / (warmup + 1)) * args.lr_decay**passed

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)  # type: ignore[arg-type]
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ------------------------------------------------------------------------------------------------------ evaluation

    def metric_names(self) -> set[str]:
        """Returns the names of what the task's meter measures."""
        return set(self._meter().names)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Returns the metrics of the task's meter, over all images of all processes."""
        share_buffers(self)
        # Unwrapped, because processes have different numbers of batches.
        model = self.accelerator.unwrap_model(self.model).eval()
        meter = self._meter()
        self.callback_handler.eval_dataloader = dataloader  # for the progress bar
        for batch in dataloader:
            with torch.no_grad(), self.compute_loss_context_manager():
                meter.update(model, self._prepare_inputs(batch))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in meter.compute().items()}
        return EvalLoopOutput(None, None, metrics, len(dataloader.dataset.dataset))  # type: ignore[arg-type]

    # ----------------------------------------------------------------------------------------------------- what is kept

    def run_settings(self) -> dict[str, Any]:
        """Returns the description."""
        return self._description

    def prepare_resume(self, checkpoint: str | None) -> None:
        """Same as `ResumableTrainer`'s; a FormatError if the checkpoint is not that of a detector or a segmenter."""
        if checkpoint is not None:
            read_description(checkpoint)
        super().prepare_resume(checkpoint)

    def write_results(self) -> None:
        """Writes `transfer_results.json`: the last evaluation of the present weights, with the student and the data."""
        if not self.is_world_process_zero():
            return
        described = self._description
        args = self._args_of_steps
        content = {
            **{key: described[key] for key in ("task", "student", "dataset")},
            "metrics": self._measured,
            "training": {
                "seed": args.seed,
                "epochs": self.state.epoch,
                "steps": self.state.global_step,
                "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                "learning_rate": args.learning_rate,
                "lr_schedule": args.lr_milestones or plain(args.lr_scheduler_type),
                "optim": plain(args.optim),
                **{name: getattr(args, name) for name in _TOLD},
                **optimization(args),
            },
        }
        write_json(Path(args.output_dir or ".", RESULTS_FILE), content)

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **_: Any,
    ) -> Push | None:
        """Same as Trainer's, but only weights, description and results are pushed: no checkpoints, states, logs."""
        args = self.args
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        self.write_results()
        if not self.is_world_process_zero():
            return None
        name = self.hub_model_id.rpartition("/")[2]
        described = self._description
        measured = ", ".join(
            f"{title} {self._measured[key]:.4g}" for key, title in HEADLINES.items() if key in self._measured
        )
        images = described["dataset"].get("id")
        on = f"on {code(images)}, " if images else ""
        about = f"Trained {on}on the backbone {code(described['student']['id'])}. {measured}".rstrip()
        repository = Repository(self.hub_model_id, "model", revision or args.hub_revision, token or args.hub_token)
        if loader := LOADERS.get(described["task"]):
            at = revision_argument(repository.named_revision)
            about += _LOADING.format(loader=loader, repo_id=self.hub_model_id, revision=at)

        def card(remote: str | None) -> str:
            opening, metadata, closing, body = split_readme(remote or _CARD.format(tag=described["task"], name=name))
            return opening + metadata + closing + merge_parts(body, {"transfer": about}, str, newline_of(body))

        folder = Path(args.output_dir or ".")
        return publish(
            repository,
            {file: folder / file for file in (SAFE_WEIGHTS_NAME, TRANSFER_FILE, RESULTS_FILE)},
            card,
            private=private if private is not None else args.hub_private_repo,
            message=commit_message or "End of training",
            stale=lambda path: False,
            alone=True,
        )


def read_description(folder: str | Path) -> dict[str, Any]:
    """Reads the `transfer.json` of a folder; a FormatError if there is none, or it is malformed."""
    path = expanded(folder) / TRANSFER_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{path.parent} must hold a model that `hf-dr detect` or `segment` trained, with its {TRANSFER_FILE}, but: "
            f"{error}. Name an `output_dir` of one."
        ) from error
    if not isinstance(content, dict) or not {"task", "student", "dataset", "backbone"} <= content.keys():
        raise FormatError(
            f"{path} must hold task, student, dataset and backbone, found {str(content)[:80]}. Train again."
        )
    return content


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Loads the weights of a folder that `TransferTrainer` wrote; a FormatError if they are missing, or another model's."""
    path = expanded(folder) / SAFE_WEIGHTS_NAME
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise FormatError(
            f"{path} must hold the weights of its model, but: {str(error).rstrip('. '):.300}. Train again."
        ) from error


def load_trained(folder: str | Path, task: str, build: Callable[[Backbone, dict[str, Any]], Model]) -> Model:
    """Loads a model that `TransferTrainer` wrote for a task, for evaluation; an HfDrError if the folder holds none.

    `build` makes the model around a backbone, from the folder's description.
    """
    Place().check("folder", folder)
    described = read_description(folder)
    if described["task"] != task:
        raise ConfigError(
            f"{folder} must hold a model of {task}, found one of {described['task']}. Name another folder."
        )
    try:
        body = Backbone(BackboneSpec.from_dict(described["backbone"]), freeze_norm=described["freeze_norm"])
        model = build(body, described)
    except HfDrError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise FormatError(
            f"{Path(folder) / TRANSFER_FILE} must say what builds the model, but: {error!s:.200}. Train again."
        ) from error
    load_weights(model, folder)
    return model.eval()
