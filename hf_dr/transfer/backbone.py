"""A student as a backbone: timm's features by the model's own method, in one layout for all architectures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import timm
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from timm.data import resolve_model_data_config
from torch import nn

from hf_dr.errors import ConfigError
from hf_dr.files import expanded
from hf_dr.teacher.members import load_member
from hf_dr.training.student_card import STUDENT_FILE, Student
from hf_dr.training.student_inputs import is_timm
from hf_dr.training.students import check_architecture, read_model_args
from hf_dr.transfer.settings import BackboneArguments


@dataclass(frozen=True)
class BackboneSpec:
    """All that builds a backbone, except its weights.

    Attributes:
        architecture: One of timm's.
        model_args: Keyword arguments of `timm.create_model`.
        out_indices: Which of timm's features, from the finest on.
        output_stride: The coarsest reduction, kept by dilation; None for the architecture's own.
        mean: What is subtracted from each channel of an input from 0 to 1.
        std: What it is divided by then.
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


class StudentIdentity(TypedDict):
    """Who a student is, for results; `objective` is `reinforced`, `erm`, `kd`, or None where that is unknown.

    Fresh weights have no `weights_hash`. What is in `dataset`, `metrics` and `settings` is from the student's `student.json`.
    """

    id: str
    revision: str | None
    weights_hash: str | None
    architecture: str
    objective: str | None
    dataset: dict[str, Any] | None
    metrics: dict[str, float]
    settings: dict[str, Any]


class Backbone(nn.Module):
    """A classifier without its classifier: normalised pixels (B, 3, H, W) -> features, (B, channels[i], h, w) each.

    Args:
        spec: What is built.
        freeze_norm: Whether batch normalisations keep their statistics, scale and offset, as is usual where a GPU holds few
            images. Others learn.

    Attributes:
        spec: The backbone's settings.
        channels: Number of channels of each feature.
        reductions: Side in pixels of what one place of each feature stands for; ascending.

    Raises:
        ConfigError: timm gives no such features of the architecture.
    """

    def __init__(self, spec: BackboneSpec, *, freeze_norm: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.freeze_norm = freeze_norm
        self.net = _features(spec.architecture, spec.model_args, spec.output_stride, spec.out_indices)
        self.channels: list[int] = self.net.feature_info.channels()  # type: ignore[union-attr, operator]
        self.reductions: list[int] = self.net.feature_info.reduction()  # type: ignore[union-attr, operator]
        if freeze_norm:
            for norm in self._batch_norms():
                norm.requires_grad_(False)

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (module for module in self.net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))

    def train(self, mode: bool = True) -> Backbone:
        """Same as `Module.train`, but frozen normalisations stay in evaluation mode."""
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
            found = " ".join(str(error).split()).rstrip(".")  # torch gives each weight a line
            raise ConfigError(
                f"the weights must fit {self.spec.architecture} with {self.spec.model_args}, but: {found:.300}. Check "
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
) -> tuple[Backbone, StudentIdentity]:
    """Makes a backbone of a student.

    Args:
        student: Folder of a training or Hub id of a classifier of timm's architectures (`name@revision` pins one),
            `timm:ARCHITECTURE@FILE.safetensors`, or `timm:ARCHITECTURE` for fresh weights.
        out_indices: Which of timm's features. Default: the last of each reduction from 4 on.
        output_stride: The coarsest reduction; later strides become dilations. Default: the architecture's own, mostly 32.
        model_args: Keyword arguments of `timm.create_model`, for `timm:` only.
        freeze_norm: See `Backbone`.

    Returns:
        The backbone, and who the student is.

    Raises:
        HfDrError: It cannot be loaded, is no classifier of timm's, or timm gives no such features of it.
    """
    identity, args, weights, normalization = _load_classifier(student, model_args or {})
    architecture = identity["architecture"]
    cfg = timm.get_pretrained_cfg(architecture)
    if cfg is not None and cfg.fixed_input_size:  # transformers of one image size then take any
        args = {**args, "dynamic_img_size": True}
    all_features: Any = _features(architecture, args, output_stride)
    if out_indices is None:
        last = {info["reduction"]: index for index, info in enumerate(all_features.feature_info.info)}
        out_indices = tuple(index for reduction, index in sorted(last.items()) if reduction >= 4)
    if normalization is None:
        data = resolve_model_data_config(all_features)
        normalization = (tuple(data["mean"]), tuple(data["std"]))
    built = Backbone(
        BackboneSpec(architecture, args, tuple(out_indices), output_stride, *normalization), freeze_norm=freeze_norm
    )
    if weights is not None:
        built.load_classifier(weights)
    return built, identity


_Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]


def _load_classifier(
    student: str, model_args: dict[str, Any]
) -> tuple[StudentIdentity, dict[str, Any], dict[str, torch.Tensor] | None, _Normalization | None]:
    """Loads a student as it was trained.

    Returns:
        Who it is; the arguments of its `timm.create_model`; its weights by timm's names, and mean and standard deviation of its
        input, both None where nothing is trained yet.
    """
    is_architecture = student.startswith("timm:")
    architecture, at, _ = student.removeprefix("timm:").partition("@")
    identity: StudentIdentity = {
        "id": student,
        "revision": None,
        "weights_hash": None,
        "architecture": architecture,
        "objective": None,
        "dataset": None,
        "metrics": {},
        "settings": {},
    }
    if is_architecture and not at:
        check_architecture(architecture)
        return identity, model_args, None, None
    if model_args and not is_architecture:
        raise ConfigError(f"`model_args` must come with `timm:ARCHITECTURE`, got {student!r}. Leave it out.")
    member = load_member(student, card=False, strict=True)
    identity.update({"id": member.id, "revision": member.revision, "weights_hash": member.weights_hash})
    model: Any = member.model
    if not is_architecture:
        if not is_timm(model):
            raise ConfigError(
                f"a backbone must be of one of timm's architectures, found {type(model).__name__} in {student!r}. Train "
                "`timm:ARCHITECTURE`."
            )
        identity["architecture"] = model.config.architecture
        model_args = dict(model.config.model_args or {})
        model = model.timm_model
    trained = _read_student(student, member.revision)
    if trained is not None:
        identity.update({"dataset": trained.dataset, "metrics": trained.metrics, "settings": trained.settings})
        identity["objective"] = trained.objective_name
    return identity, model_args, model.state_dict(), (member.preprocessing.mean, member.preprocessing.std)


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
            # Some architectures are dilated only by another class of timm's.
            return timm.create_model(architecture, **settings)
    except TypeError as error:
        if "dynamic_img_size" in str(error):
            raise ConfigError(
                f"a backbone must take images of all sizes, but timm's {architecture} takes those of one size. Choose another "
                "architecture."
            ) from error
        raise ConfigError(
            f"timm's {architecture} must take {', '.join(settings)}, but: {str(error).rstrip('. '):.300}. "
            f"{'Leave `output_stride` out, or choose' if output_stride else 'Choose'} another architecture."
        ) from error
    except (ValueError, RuntimeError, AssertionError, AttributeError, NotImplementedError) as error:
        raise ConfigError(
            f"timm must give features of {architecture} ({', '.join(f'{k}={v}' for k, v in settings.items())}), but: "
            f"{str(error).rstrip('. '):.300}. Choose another architecture."
        ) from error


def _read_student(name: str, revision: str | None) -> Student | None:
    """Reads the `student.json` of a folder, or next to a model on the Hub."""
    folder = expanded(name)
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


def build_backbone(student: BackboneArguments, **settings: Any) -> tuple[Backbone, StudentIdentity]:
    """Makes the backbone that arguments name; the settings are those of `backbone`."""
    model_args = read_model_args(student.model_args)
    return backbone(student.student, model_args=model_args, freeze_norm=student.freeze_norm, **settings)


def describe_backbone(built: Backbone) -> dict[str, Any]:
    """Returns a backbone's `BackboneSpec` for a description, under the name `backbone`."""
    return {"backbone": asdict(built.spec), "freeze_norm": built.freeze_norm}
