"""What timm lists and cannot build is built, by timm's own functions."""

import timm
import torch

from hf_dr.teacher.members import load_member


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
