"""Architectures that timm cannot build, though it has their weights or other widths. Importing this module makes it do so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.models import build_model_with_cfg, efficientnet, generate_default_cfgs, register_model, resnet

_RESNEXT = "resnext101_32x48d"
_MOBILE = {"mobilenetv1_025": 0.25, "mobilenetv1_050": 0.5, "mobilenetv2_025": 0.25}  # widths

default_cfgs = {
    _RESNEXT: resnet.default_cfgs[_RESNEXT],
    **generate_default_cfgs({name: efficientnet._cfg() for name in _MOBILE}),
}
"""Where timm looks for the checkpoints of what this module registers; the MobileNets have none."""


def resnext101_32x48d(pretrained: bool = False, **settings: Any) -> resnet.ResNet:
    """The largest of the ResNeXts that Instagram's hashtags taught (arXiv:1805.00932), 828 million parameters."""
    structure = {"block": resnet.Bottleneck, "layers": (3, 4, 23, 3), "cardinality": 32, "base_width": 48}
    return build_model_with_cfg(resnet.ResNet, _RESNEXT, pretrained, **{**structure, **settings})


def _mobilenet(name: str) -> Callable[..., efficientnet.EfficientNet]:
    """Returns what builds a narrow MobileNetV1 or V2, by timm's own generator of the others."""
    generate = efficientnet._gen_mobilenet_v1 if "v1" in name else efficientnet._gen_mobilenet_v2

    def build(pretrained: bool = False, **settings: Any) -> efficientnet.EfficientNet:
        return generate(name, _MOBILE[name], pretrained=pretrained, **settings)

    build.__name__ = name  # by which timm registers it
    return build


ADDED = {
    build.__name__: build
    for build in (resnext101_32x48d, *map(_mobilenet, _MOBILE))
    if not timm.is_model(build.__name__)  # a later timm may have it
}
"""What this module registers."""
for _build in ADDED.values():
    register_model(_build)  # type: ignore[arg-type]
