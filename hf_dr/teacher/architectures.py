"""Architectures whose weights timm lists but which it cannot build. Importing this module makes them timm's."""

from __future__ import annotations

from typing import Any

import timm
from timm.models import build_model_with_cfg, register_model, resnet

_NAME = "resnext101_32x48d"

default_cfgs = {name: cfg for name, cfg in resnet.default_cfgs.items() if name == _NAME}
"""Where timm looks for the checkpoints of what this module registers."""


def resnext101_32x48d(pretrained: bool = False, **settings: Any) -> resnet.ResNet:
    """The largest of the ResNeXts that Instagram's hashtags taught (arXiv:1805.00932), 828 million parameters."""
    structure = {"block": resnet.Bottleneck, "layers": (3, 4, 23, 3), "cardinality": 32, "base_width": 48}
    return build_model_with_cfg(resnet.ResNet, _NAME, pretrained, **{**structure, **settings})


if not timm.is_model(_NAME):  # a later timm may have it
    register_model(resnext101_32x48d)
