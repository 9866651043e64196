"""An augmentation: the ordered ops, their stored columns, and how a view is drawn and replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image

from hf_dr.errors import ConfigError, ReplayError, did_you_mean
from hf_dr.settings import check_kind
from hf_dr.views.names import NAMED
from hf_dr.views.ops.base import OPS, Op, Param, Params, Size
from hf_dr.views.ops.colour import RandAugment
from hf_dr.views.ops.geometry import RandomErasing, RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import CutMix, MixUp
from hf_dr.views.resizing import HORIZONTAL

PARTNER = "partner"
"""The parameter (column `aug_partner`) that mixing adds: the partner's row of the base, -1 where nothing is mixed."""
NO_PARTNER = -1

KeyedOp = tuple[Op, dict[str, str]]
"""An op of an augmentation, and its parameter names -> the names in the view's parameters."""


class Augmentation:
    """An ordered list of ops.

    Args:
        ops: Applied first to last. Mixing ops come last, after an op of fixed output size; some op fixes the size of
            the views, because a teacher sees them in batches.

    Attributes:
        ops: The ops, in their order.
        single: The ops that need one image only.
        mixing: The ops that mix.

    Raises:
        ConfigError: The list is empty, or breaks one of these rules.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        advice = "Give e.g. `[ops.RandomResizedCrop(224)]`; `Augmentation.named` takes a name."
        check_kind("ops", ops, Iterable, "a list of ops", advice)
        self.ops = tuple(ops)
        for op in self.ops:
            check_kind("ops", op, Op, "a list of ops", advice)
        if not self.ops:
            raise ConfigError(
                "an augmentation must hold at least one op, got an empty list. Add e.g. RandomResizedCrop."
            )
        keyed = list(zip(self.ops, self._keys(), strict=True))
        _check_columns(keyed)
        self.single: list[KeyedOp] = [(op, keys) for op, keys in keyed if not op.mixes]
        self.mixing: list[KeyedOp] = [(op, keys) for op, keys in keyed if op.mixes]
        if [op.mixes for op in self.ops] != sorted(op.mixes for op in self.ops):
            raise ConfigError(f"mixing ops must come last, got {self._names()}. Move MixUp and CutMix to the end.")
        self._size = self._fixed_size()

    def _names(self) -> str:
        return ", ".join(type(op).__name__ for op in self.ops)

    def _keys(self) -> list[dict[str, str]]:
        """Returns for each op: its parameter names -> the names in the view's parameters; a second op of a kind gets `_2`."""
        seen: dict[str, int] = {}
        keys = []
        for op in self.ops:
            seen[op.name] = seen.get(op.name, 0) + 1
            prefix = op.name if seen[op.name] == 1 else f"{op.name}_{seen[op.name]}"
            keys.append({local: f"{prefix}_{local}" if local else prefix for local in op.params})
        return keys

    @property
    def mixes(self) -> bool:
        """Whether a view can need the image of another example."""
        return bool(self.mixing)

    def _fixed_size(self) -> Size:
        size: Size | None = None
        for op in self.ops:
            size = op.output_size(size)
        if size is None:
            raise ConfigError(
                f"the views must all have one size, but no op of {self._names()} fixes it. "
                "Add RandomResizedCrop, RandomCrop, CenterCrop, or Resize with (height, width)."
            )
        return size

    @property
    def size(self) -> Size:
        """(height, width) of every view, in pixels."""
        return self._size

    @cached_property
    def params(self) -> dict[str, Param]:
        """Name -> storage of every parameter of a view, in order. The column of `flip` is `aug_flip`."""
        stored = stored_params(self.single + self.mixing)
        if self.mixes:
            stored[PARTNER] = Param("int32")
        return stored

    @cached_property
    def partner_params(self) -> dict[str, Param]:
        """Name -> storage of what `apply` needs of a partner, for datasets that store it with the view; empty without mixing.

        The column of the partner's `flip` is `aug_partner_flip`.
        """
        return stored_params(self.single) if self.mixes else {}

    def check_size(self, size: Size) -> None:
        """Checks that every op can take images of `size`, (height, width), whatever is drawn.

        Raises:
            ConfigError: They are too small for an op's settings.
            ReplayError: They would become too large on the way.
        """
        current: Size | None = size
        for op in self.ops:
            assert current is not None
            op.check_size(current)
            current = op.output_size(current)

    def sample(self, rng: np.random.Generator, size: Size) -> Params:
        """Draws the parameters of one view, mixing included; who the partner is is not drawn here.

        Args:
            rng: The view's own generator (`hf_dr.views.rng.view_rng`).
            size: (height, width) of the decoded image.
        """
        params: Params = {}
        current: Size | None = size
        for op, keys in self.single + self.mixing:
            assert current is not None
            drawn = op.sample(rng, current)
            params.update({keys[name]: value for name, value in drawn.items()})
            current = op.output_size(current)
        return params

    def apply(self, image: PIL.Image.Image, params: Params) -> PIL.Image.Image:
        """Replays the ops that need one image only; `mix` does the rest.

        Args:
            image: The decoded RGB image.
            params: Parameters that `sample` drew, or that were read from the columns.

        Raises:
            ReplayError: The parameters do not fit the image.
        """
        for op, keys in self.single:
            image = op.apply(image, _local(params, keys))
        return image

    def needs_partner(self, params: Params) -> bool:
        """Whether these parameters mix anything in."""
        return any(not op.skipped(_local(params, keys)) for op, keys in self.mixing)

    def mix(self, view: PIL.Image.Image, params: Params, partner: PIL.Image.Image | None) -> PIL.Image.Image:
        """Applies the mixing ops.

        Args:
            view: What `apply` returned for the example.
            params: The example's parameters.
            partner: What `apply` returned for the partner's view of the same number; None if `needs_partner` is false.

        Raises:
            ReplayError: A partner is needed and missing, or has another size.
        """
        for op, keys in self.mixing:
            view = op.apply(view, _local(params, keys), partner)
        return view

    def without_mixing(self, params: Params) -> Params:
        """Returns the parameters with every mixing op skipped, for an example that has no usable partner."""
        neutral = {keys[name]: value for op, keys in self.mixing for name, value in op.neutral().items()}
        return {**params, **neutral}

    def to_list(self) -> list[dict[str, dict[str, Any]]]:
        """Returns the ops with all their settings in JSON types, as `from_list` reads them."""
        return [op.to_dict() for op in self.ops]

    @classmethod
    def from_list(cls, items: Any, *, passes: str = HORIZONTAL) -> Augmentation:
        """Builds an augmentation from YAML or JSON: `[{"RandomResizedCrop": {"size": 224}}, "RandomHorizontalFlip"]`.

        Args:
            items: The ops in their order.
            passes: Which pass comes first in a resize that does not say it: one of `hf_dr.views.resizing.PASSES`.

        Raises:
            ConfigError: An op or a setting is unknown or impossible.
        """
        if not isinstance(items, list):
            raise ConfigError(
                f"an augmentation must be a list of ops, got {type(items).__name__}. Write `- OpName: {{}}`."
            )
        ops = []
        for written in items:
            item = {written: {}} if isinstance(written, str) else written
            if not isinstance(item, Mapping) or len(item) != 1:
                raise ConfigError(
                    f"an op must be written as `- OpName: {{setting: value}}`, or be one of `hf_dr.ops`, got "
                    f"{item!s:.200}. Others cannot be replayed."
                )
            ((name, settings),) = item.items()
            if name not in OPS:
                known = did_you_mean(str(name), OPS)
                raise ConfigError(f"no op is called `{name}`.{known} Import the module of one of your own before.")
            if settings is not None and not isinstance(settings, Mapping):
                raise ConfigError(f"the settings of {name} must be a mapping, got {settings!r}.")
            settings = dict(settings or {})
            if any(field.name == "passes" for field in dataclasses.fields(OPS[name])):  # type: ignore[arg-type]
                settings.setdefault("passes", passes)
            ops.append(OPS[name].from_settings(settings))
        return cls(ops)

    @classmethod
    def named(cls, name: str, size: int | Size = 224) -> Augmentation:
        """Returns one of the paper's augmentations (section 3 of arXiv:2303.08983) at any size.

        Args:
            name: `rrc`, `mixing` (the paper's +M*), `randaug` (+RA/RE, its recommendation) or `randaug_mixing`
                (+M*+R*).
            size: Side of the views in pixels, or (height, width).

        Raises:
            ConfigError: The name is unknown.
        """
        check_kind("name", name, str, "the name of an augmentation", f"Give {' or '.join(NAMED)}, or a list of ops.")
        if name not in NAMED:
            raise ConfigError(f"no augmentation is called `{name}`.{did_you_mean(name, NAMED)} Or give a list of ops.")
        ops: list[Op] = [RandomResizedCrop(size), RandomHorizontalFlip()]
        if name.startswith("randaug"):
            ops += [RandAugment(num_ops=2, magnitude=9), RandomErasing(p=0.25)]
        if name.endswith("mixing"):
            ops += [MixUp(alpha=1.0, p=0.5), CutMix(alpha=1.0, p=0.5)]
        return cls(ops)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Augmentation) and self.ops == other.ops

    def __hash__(self) -> int:
        return hash(self.ops)

    def __repr__(self) -> str:
        return f"Augmentation([{', '.join(map(repr, self.ops))}])"


def _check_columns(ops: Sequence[KeyedOp]) -> None:
    """Refuses two parameters of one column: `b_c` of an op `a` and `c` of an op `a_b`, or one that is called as the partner."""
    owners = {PARTNER: "mixing"}
    for op, keys in ops:
        for key in keys.values():
            if key in owners:
                raise ConfigError(
                    f"each parameter must have a column of its own, but {owners[key]} and {type(op).__name__} both store "
                    f"{key!r}. Give one of your own ops another `name`."
                )
            owners[key] = type(op).__name__


def stored_params(ops: Sequence[KeyedOp]) -> dict[str, Param]:
    """Returns how the parameters of some of an augmentation's ops are stored, by their names in the view's parameters."""
    return {keys[name]: param for op, keys in ops for name, param in op.params.items()}


def _local(params: Params, keys: dict[str, str]) -> Params:
    try:
        return {name: params[key] for name, key in keys.items()}
    except KeyError as error:
        raise ReplayError(
            f"expected the parameter {error}, found {sorted(params)}. Use the augmentation it came with."
        ) from None
