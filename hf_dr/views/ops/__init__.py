"""The replayable transforms, by the names that YAML files and `hf_dr.ops` have; `ops.register` adds one of your own."""

# An op of this package has its class, with `@register`, in the module of its kind, and its name here: the tests find it.
from hf_dr.views.ops.base import OPS, Op, Param, Params, Size, register
from hf_dr.views.ops.colour import AutoAugment, ColorJitter, RandAugment, RandAugmentIncreasing, TrivialAugmentWide
from hf_dr.views.ops.geometry import (
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
)
from hf_dr.views.ops.mixing import CutMix, MixUp

__all__ = [
    "OPS",
    "AutoAugment",
    "CenterCrop",
    "ColorJitter",
    "CutMix",
    "MixUp",
    "Op",
    "Param",
    "Params",
    "RandAugment",
    "RandAugmentIncreasing",
    "RandomCrop",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "Resize",
    "Size",
    "TrivialAugmentWide",
    "register",
]
