"""What detection and segmentation share: a student as backbone, and its training on transformers' Trainer.

A task adds three things: a model around a `Backbone`, a dataset, and a `Meter`.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import timm
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import SAFE_WEIGHTS_NAME

import hf_dr.teacher.architectures  # noqa: F401 (what it registers, timm builds)
from hf_dr.errors import ConfigError, FormatError, did_you_mean
from hf_dr.hub.repository import Push, Repository, publish
from hf_dr.teacher.members import load_member
from hf_dr.training.resumable import ResumableTrainer
from hf_dr.training.student_card import STUDENT_FILE, Student
from hf_dr.training.students import is_timm, read_model_args
from hf_dr.views.rng import DOMAIN_ORDER, keyed_rng

logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

TRANSFER_FILE = "transfer.json"
"""What a model is made of and was trained on, beside its weights: it is built and resumed from this."""
RESULTS_FILE = "transfer_results.json"
"""What came of a finished training: `task`, `student`, `dataset`, `metrics` and `training`."""
HEADLINES = {"box_map": "box mAP", "mask_map": "mask mAP", "mean_iou": "mIoU"}
"""Of the metrics, those that cards and results pages show, by what they call them; fractions from 0 to 1."""

_CARD = """---
library_name: hf_dr
pipeline_tag: {tag}
---

# {name}

{about}
"""


@dataclass(frozen=True)
class BackboneSpec:
    """All that builds a backbone but its weights.

    Attributes:
        architecture: One of timm's.
        model_args: Keyword arguments of `timm.create_model`.
        out_indices: Which of timm's features, from the finest on.
        output_stride: The coarsest reduction, kept by dilation; None for the architecture's own.
        mean: Of the normalised input, for each channel, on the scale 0 to 1.
        std: The same.
    """

    architecture: str
    model_args: dict[str, Any]
    out_indices: tuple[int, ...]
    output_stride: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> BackboneSpec:
        """Reads what `asdict` and JSON made of one."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**values)


class Backbone(nn.Module):
    """A classifier without its classifier: normalised pixels (B, 3, H, W) -> features, (B, channels[i], h, w) each.

    Args:
        spec: What is built.
        freeze_norm: Whether batch normalisations keep their statistics, scale and offset, as is usual where a GPU holds few
            images. Others learn.

    Attributes:
        spec: As given.
        channels: Of each feature.
        reductions: Pixels of the input to one of each feature, sideways; ascending.

    Raises:
        ConfigError: timm gives no such features of the architecture.
    """

    def __init__(self, spec: BackboneSpec, *, freeze_norm: bool = False) -> None:
        super().__init__()
        self.spec, self.freeze_norm = spec, freeze_norm
        self.net = _features(spec.architecture, spec.model_args, spec.output_stride, spec.out_indices)
        self.channels: list[int] = self.net.feature_info.channels()  # type: ignore[union-attr, operator]
        self.reductions: list[int] = self.net.feature_info.reduction()  # type: ignore[union-attr, operator]
        if freeze_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (module for module in self.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))

    def train(self, mode: bool = True) -> Backbone:
        """As Module's; frozen normalisations stay in evaluation."""
        super().train(mode)
        if self.freeze_norm:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def forward(self, pixels_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Returns the features, from the finest on."""
        return list(self.net(pixels_BCHW))

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the parameters that the architecture exempts."""
        own: Any = getattr(getattr(self.net, "model", self.net), "no_weight_decay", set)
        return {name for name, _ in self.named_parameters() if _native(name.removeprefix("net.")) in own()}

    def load_classifier(self, weights: dict[str, torch.Tensor]) -> None:
        """Takes over the weights of the whole classifier, by timm's names; what comes after the features is left out.

        Raises:
            ConfigError: Some are missing, or of another shape.
        """
        own = self.net.state_dict()
        missing = [name for name in own if _native(name) not in weights]
        if missing:
            raise ConfigError(
                f"the features of {self.spec.architecture} need all weights of their classifier, but `{missing[0]}` is not "
                "among them. Choose another architecture."
            )
        try:
            self.net.load_state_dict({name: weights[_native(name)] for name in own})
        except RuntimeError as error:
            raise ConfigError(
                f"the weights must fit {self.spec.architecture} with {self.spec.model_args}, but: {str(error)[:300]}. Check "
                "`model_args`."
            ) from error


def _native(name: str) -> str:
    """timm's name of a weight, of that in its wrapper for features."""
    return name.removeprefix("model.")


def backbone(
    student: str,
    *,
    out_indices: tuple[int, ...] | None = None,
    output_stride: int | None = None,
    model_args: dict[str, Any] | None = None,
    freeze_norm: bool = False,
) -> tuple[Backbone, dict[str, Any]]:
    """Makes a backbone of a student.

    Args:
        student: Folder of a training or Hub id of a classifier of timm's architectures (`name@revision` pins one),
            `timm:ARCHITECTURE@FILE.safetensors`, or `timm:ARCHITECTURE` for fresh weights.
        out_indices: Which of timm's features. Default: the last of each reduction from 4 on.
        output_stride: The coarsest reduction; later strides become dilations. Default: the architecture's own, mostly 32.
        model_args: For `timm:`: keyword arguments of `timm.create_model`.
        freeze_norm: See `Backbone`.

    Returns:
        The backbone, and who the student is: `id`, `revision`, `architecture`, `weights_hash` (None for fresh weights),
        `objective` (`reinforced`, `erm`, `kd`, or None where that is unknown), and of its `student.json` `dataset`, `metrics`
        and `settings`.

    Raises:
        HfDrError: It cannot be loaded, is no classifier of timm's, or timm gives no such features of it.
    """
    name, at, _ = student.removeprefix("timm:").partition("@")
    weights, identity = None, dict[str, Any](id=student, revision=None, weights_hash=None)
    if student.startswith("timm:") and not at:
        architecture, args, trained = name, dict(model_args or {}), None
        if not timm.is_model(architecture):
            raise ConfigError(
                f"timm has no architecture `{architecture}`.{did_you_mean(architecture, timm.list_models())}"
            )
        mean, std = None, None
    else:
        if model_args and not student.startswith("timm:"):
            raise ConfigError(f"`model_args` must come with `timm:ARCHITECTURE`, got {student!r}. Leave it out.")
        member = load_member(student, card=False, strict=True)
        model: Any = member.model
        if student.startswith("timm:"):
            architecture, args = name, dict(model_args or {})
        elif is_timm(model):
            architecture, args, model = model.config.architecture, dict(model.config.model_args or {}), model.timm_model
        else:
            raise ConfigError(
                f"a backbone must be of one of timm's architectures, found {type(model).__name__} in {student!r}. Train "
                "`timm:ARCHITECTURE`."
            )
        weights, trained = model.state_dict(), _student(student, member.revision)
        identity = {"id": member.id, "revision": member.revision, "weights_hash": member.weights_hash}
        mean, std = member.preprocessing.mean, member.preprocessing.std
    args = _any_size(architecture, args)
    every: Any = _features(architecture, args, output_stride)
    if out_indices is None:
        last = {info["reduction"]: index for index, info in enumerate(every.feature_info.info)}
        out_indices = tuple(index for reduction, index in sorted(last.items()) if reduction >= 4)
    if mean is None or std is None:
        data = resolve_model_data_config(every)
        mean, std = tuple(data["mean"]), tuple(data["std"])
    built = Backbone(
        BackboneSpec(architecture, args, tuple(out_indices), output_stride, mean, std), freeze_norm=freeze_norm
    )
    if weights is not None:
        built.load_classifier(weights)
    identity.update(architecture=architecture, objective=None, dataset=None, metrics={}, settings={})
    if trained is not None:
        identity.update(
            objective=trained.objective_name,
            dataset=trained.dataset,
            metrics=trained.metrics,
            settings=trained.settings,
        )
    return built, identity


def _any_size(architecture: str, args: dict[str, Any]) -> dict[str, Any]:
    """Lets transformers of one image size take any."""
    cfg = timm.get_pretrained_cfg(architecture)
    return {**args, "dynamic_img_size": True} if cfg is not None and cfg.fixed_input_size else args


def _features(
    architecture: str, args: dict[str, Any], output_stride: int | None, out_indices: tuple[int, ...] | None = None
) -> nn.Module:
    settings: dict[str, Any] = {**args, "features_only": True}
    if out_indices is not None:
        settings["out_indices"] = out_indices
    if output_stride is not None:
        settings["output_stride"] = output_stride
    try:
        try:
            # By the model's own method: features come as (B, C, H, W) whatever it has inside, and weights keep their names.
            return timm.create_model(architecture, feature_cls="getter", **settings)
        except TypeError:
            if output_stride is None:
                raise
            return timm.create_model(architecture, **settings)  # dilated by another class of timm's than the classifier
    except TypeError as error:
        raise ConfigError(
            f"timm's {architecture} must take {', '.join(settings)}, but: {error}. "
            f"{'Leave `output_stride` out, or choose' if output_stride else 'Choose'} another architecture."
        ) from error
    except (ValueError, RuntimeError, AssertionError, AttributeError, NotImplementedError) as error:
        raise ConfigError(
            f"timm must give features of {architecture} ({', '.join(f'{k}={v}' for k, v in settings.items())}), but: {error}. "
            "Choose another architecture."
        ) from error


def _student(name: str, revision: str | None) -> Student | None:
    """Reads the `student.json` of a folder, or beside a model on the Hub."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Student.read(folder)
    if name.startswith("timm:"):
        return None
    try:
        file = hf_hub_download(
            name.partition("@")[0], STUDENT_FILE, revision=revision, local_files_only=constants.is_offline_mode()
        )
    except EntryNotFoundError:  # another project's model
        return None
    return Student.read(Path(file).parent)


@dataclass
class BackboneArguments:
    """Which student, and how it becomes a backbone."""

    student: str = field(
        metadata={
            "help": "Folder of a training or Hub id of a classifier, of timm's architectures; timm:ARCHITECTURE for fresh "
            "weights."
        }
    )
    model_args: str = field(default="{}", metadata={"help": "For timm: JSON with arguments of timm.create_model."})
    freeze_norm: bool = field(
        default=True,
        metadata={"help": "Keep statistics, scale and offset of the student's batch normalisations as they are."},
    )

    def build(self, **settings: Any) -> tuple[Backbone, dict[str, Any]]:
        """As `backbone`, which takes the settings."""
        model_args = read_model_args(self.model_args)
        return backbone(self.student, model_args=model_args, freeze_norm=self.freeze_norm, **settings)


@dataclass
class TransferArguments(TrainingArguments):
    """`TrainingArguments` for detection and segmentation.

    Raises:
        ConfigError: A value is impossible.
    """

    momentum: float = field(default=0.9, metadata={"help": "Of --optim sgd."})
    nesterov: bool = field(default=False, metadata={"help": "Nesterov momentum for --optim sgd."})
    lr_milestones: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Shares of all steps, ascending, after each of which the rate falls by --lr_decay, after a linear warm-up: "
            "in place of --lr_scheduler_type."
        },
    )
    lr_decay: float = field(default=0.1, metadata={"help": "Factor of the rate at each of --lr_milestones."})

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"`momentum` must be at least 0 and below 1, got {self.momentum!r}.")
        if not 0 < self.lr_decay <= 1:
            raise ConfigError(f"`lr_decay` must be above 0 and at most 1, got {self.lr_decay!r}.")
        steps = [0.0, *self.lr_milestones, 1.0]
        if any(high <= low for low, high in itertools.pairwise(steps)):
            raise ConfigError(
                f"`lr_milestones` must be ascending shares between 0 and 1, got {', '.join(map(str, self.lr_milestones))}."
            )
        if self.push_to_hub and str(getattr(self.hub_strategy, "value", self.hub_strategy)) != "end":
            raise ConfigError(
                f"`hub_strategy` must be end, got {self.hub_strategy!s}: the states in checkpoints are pickles, which are not "
                "published. Set it."
            )
        self.remove_unused_columns = False  # batches are made by the task's own dataset
        # Without an accelerator several processes form a group only if the CPU is asked for, and no memory can be pinned.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()


class Meter(Protocol):
    """Measures a model over the batches of this process, each image once; `compute` is over those of all processes."""

    def update(self, model: nn.Module, batch: dict[str, Any]) -> None:
        """Takes in a batch, which is on the model's device."""

    def compute(self) -> dict[str, float]:
        """Returns the metrics; every process calls it, and gets all."""


class EpochSampler(torch.utils.data.Sampler[tuple[int, int]]):
    """Yields (row, epoch) for each row once, in an order that follows from (seed, epoch) alone.

    Args:
        count: Number of rows.
        seed: Of the order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed, self.epoch = count, seed, 0

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
            model anew. It is saved with the weights; a run is resumed only under the same.
        meter: Starts a measurement.
        train_dataset: `train_dataset[row, epoch]` is an example; its randomness follows from row, epoch and a seed alone.
        eval_dataset: `eval_dataset[row]` is an example.
        data_collator: Makes a batch, a dictionary, of a list of examples.
    """

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
        super().__init__(
            model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, data_collator=data_collator
        )
        self.args: TransferArguments
        self._description, self._meter = json.loads(json.dumps(description)), meter

    @property
    def _module(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    # ------------------------------------------------------------------------------------------------------------ data

    def _get_dataloader(self, dataset: Any, *settings: Any, **more: Any) -> torch.utils.data.DataLoader:
        loader = super()._get_dataloader(dataset, *settings, **more)
        # A loader draws the seed of its workers when it starts to iterate: from the global generator, what the model draws
        # after a restart would not be what it had been without.
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        dataset: Any = train_dataset if train_dataset is not None else self.train_dataset
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        self._sampler = EpochSampler(len(dataset), seed)
        return self._sampler

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Returns the batches of this process: every so-many-th image, and none of another's to fill up the last batch."""
        args = self.args
        dataset: Any = eval_dataset if eval_dataset is not None else self.eval_dataset
        return torch.utils.data.DataLoader(
            torch.utils.data.Subset(dataset, range(args.process_index, len(dataset), args.world_size)),
            batch_size=args.eval_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(args.seed),
        )

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
        """As Trainer's, or, with `lr_milestones`, in steps."""
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

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Returns the metrics of the task's meter, over all images of all processes."""
        model, meter = self._module, self._meter()  # unwrapped: processes have batches of different numbers
        model.eval()
        for batch in dataloader:
            with torch.no_grad(), self.compute_loss_context_manager():
                meter.update(model, self._prepare_inputs(batch))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in meter.compute().items()}
        return EvalLoopOutput(None, None, metrics, len(dataloader.dataset.dataset))  # type: ignore[arg-type]

    # ----------------------------------------------------------------------------------------------------- what is kept

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            text = json.dumps(self._description, indent=2) + "\n"
            Path(output_dir or self.args.output_dir or ".", TRANSFER_FILE).write_text(text, encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        there, here = read_description(resume_from_checkpoint), self._description
        differing = [
            f"{key}: {there.get(key)!r:.80} there, {here.get(key)!r:.80} here"
            for key in dict.fromkeys([*there, *here])
            if there.get(key) != here.get(key)
        ]
        if differing:
            raise ConfigError(
                f"a run must be resumed with its own settings, but {resume_from_checkpoint} differs in {'; '.join(differing)}. "
                "Restore them, or choose another `output_dir`."
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def write_results(self) -> None:
        """Writes `transfer_results.json`: the last evaluation of just the present weights, of which student, on which data."""
        if not self.is_world_process_zero():
            return
        described, args = self._description, self.args
        content = {
            **{key: described[key] for key in ("task", "student", "dataset")},
            "metrics": self._measured,
            "training": {
                "seed": args.seed,
                "epochs": self.state.epoch,
                "steps": self.state.global_step,
                "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
                "learning_rate": args.learning_rate,
                "lr_schedule": args.lr_milestones
                or str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
                "optim": str(getattr(args.optim, "value", args.optim)),
                "weight_decay": args.weight_decay,
            },
        }
        path = Path(args.output_dir or ".", RESULTS_FILE)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **_: Any,
    ) -> Push | None:
        """As Trainer's, but only weights, description and results are pushed: no checkpoints, states, logs."""
        args = self.args
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        self.write_results()
        if not self.is_world_process_zero():
            return None
        assert self.hub_model_id is not None
        name, student = self.hub_model_id.rpartition("/")[2], self._description["student"]
        measured = ", ".join(
            f"{title} {self._measured[key]:.4g}" for key, title in HEADLINES.items() if key in self._measured
        )
        about = f"Trained on `{self._description['dataset'].get('id')}`, on the backbone `{student['id']}`. {measured}"
        card = _CARD.format(tag=self._description["task"], name=name, about=about)
        folder = Path(args.output_dir or ".")
        return publish(
            Repository(self.hub_model_id, "model", revision or args.hub_revision, token or args.hub_token),
            {file: folder / file for file in (SAFE_WEIGHTS_NAME, TRANSFER_FILE, RESULTS_FILE)},
            lambda remote: remote or card,
            stale=lambda path: False,
            check=lambda repository, remote: None,
            private=private if private is not None else args.hub_private_repo,
            create_pr=False,
            tags=(),
            message=commit_message or "End of training",
            dry_run=False,
            alone=True,
        )


def read_description(folder: str | Path) -> dict[str, Any]:
    """Reads the `transfer.json` of a folder.

    Raises:
        FormatError: There is none, or it is malformed.
    """
    path = Path(folder).expanduser() / TRANSFER_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(
            f"{path.parent} must hold a model that `hf-dr detect` or `segment` trained, with its {TRANSFER_FILE}, but: "
            f"{error}. Name an `output_dir` of one."
        ) from error
    if not isinstance(content, dict) or not {"task", "student", "dataset", "backbone"} <= content.keys():
        raise FormatError(
            f"{path} must tell task, student, dataset and backbone, found {str(content)[:80]}. Train anew."
        )
    return content


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Loads the weights of a folder that `TransferTrainer` wrote.

    Raises:
        FormatError: They are missing, or those of another model.
    """
    path = Path(folder).expanduser() / SAFE_WEIGHTS_NAME
    try:
        model.load_state_dict(load_file(path))
    except (OSError, RuntimeError) as error:
        raise FormatError(f"{path} must hold the weights of its model, but: {str(error)[:300]}. Train anew.") from error


def load_trained(folder: str | Path, task: str, build: Callable[[Backbone, dict[str, Any]], Model]) -> Model:
    """Loads a model that `TransferTrainer` wrote, for evaluation.

    Args:
        folder: Where.
        task: It must be of this one.
        build: Makes the model around its backbone, of what the folder's description says.

    Raises:
        ConfigError: It is of another task.
        FormatError: The folder holds none.
    """
    described = read_description(folder)
    if described["task"] != task:
        raise ConfigError(f"{folder} must hold a model of {task}, found one of {described['task']}.")
    model = build(
        Backbone(BackboneSpec.from_dict(described["backbone"]), freeze_norm=described["freeze_norm"]), described
    )
    load_weights(model, folder)
    return model.eval()


def describe_backbone(built: Backbone) -> dict[str, Any]:
    """Returns a backbone's `BackboneSpec` for a description, under the name `backbone`."""
    return {"backbone": asdict(built.spec), "freeze_norm": built.freeze_norm}
