"""What timm lists and cannot build is built, by timm's own functions."""

import pytest
import timm
import torch
from torch import nn

from hf_dr.teacher.architectures import ADDED
from hf_dr.teacher.members import load_member


@pytest.mark.parametrize(
    ("name", "parent", "share", "parameters"),
    [
        # Tables 6 and 7 of arXiv:1704.04861 round them to 0.5 and 1.3 million.
        ("mobilenetv1_025", "mobilenetv1_100", 0.25, 470_072),
        ("mobilenetv1_050", "mobilenetv1_100", 0.5, 1_331_592),
        ("mobilenetv2_025", "mobilenetv2_100", 0.25, None),
    ],
)
def test_narrow_mobilenets_have_the_layers_of_the_whole_one(name, parent, share, parameters):
    assert timm.is_model(name) == (name in ADDED) == (name not in timm.list_models(module="efficientnet"))
    with torch.device("meta"):
        narrow, whole = timm.create_model(name, num_classes=1000, drop_rate=0.1), timm.create_model(parent)
        assert narrow(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    assert narrow.drop_rate == 0.1
    assert narrow.state_dict().keys() == whole.state_dict().keys()
    for ours, theirs in zip(narrow.modules(), whole.modules(), strict=True):
        if isinstance(ours, nn.Conv2d) and ours is not getattr(narrow, "conv_head", None):
            # In multiples of 8, and never less than nine tenths of the share.
            assert ours.out_channels == pytest.approx(share * theirs.out_channels, abs=8 * (6 if "v2" in name else 1))
    if parameters:
        assert sum(p.numel() for p in narrow.parameters()) == parameters


def test_the_largest_resnext_is_between_timms_own_ones():
    name = "resnext101_32x48d"
    assert load_member  # what names a teacher registers it
    assert timm.is_model(name)
    assert timm.get_pretrained_cfg(f"{name}.fb_wsl_ig1b_ft_in1k").license == "cc-by-nc-4.0"
    assert timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name}.fb_wsl_ig1b_ft_in1k"
    with torch.device("meta"):  # 828 million parameters, of which none is made
        largest, smaller = timm.create_model(name), timm.create_model("resnext101_32x32d")
        assert largest(torch.empty(1, 3, 64, 64)).shape == (1, 1000)
    assert round(sum(p.numel() for p in largest.parameters()) / 1e6) == 828
    assert largest.state_dict().keys() == smaller.state_dict().keys()
    wider = {key: value.shape[0] for key, value in largest.state_dict().items() if key.endswith("conv1.weight")}
    for key, channels in wider.items():
        assert key == "conv1.weight" or 2 * channels == 3 * smaller.state_dict()[key].shape[0]
