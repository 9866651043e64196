"""Images in flat buffers."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_dr.views.device import images
from hf_dr.views.device.images import pack, pinned

ARRAYS = [np.full((h, w, 3), h * w, np.uint8) for h, w in ((1, 1), (5, 7), (16, 2))]


def packed(arrays):
    return pack(arrays)[0]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_worker_packs_what_the_main_process_would(num_workers):
    expected, windows = pack(ARRAYS)
    loader = DataLoader([ARRAYS], batch_size=None, num_workers=num_workers, collate_fn=packed)
    (buffer,) = loader
    assert buffer.dtype == torch.uint8
    assert torch.equal(buffer, expected)
    assert windows.places.tolist() == [0, 3, 108]


@pytest.mark.parametrize("num_bytes", [0, 1, 1 << 22, (1 << 22) + 1, 5 << 22])
def test_all_parts_are_pinned(num_bytes, monkeypatch):
    empty = torch.empty
    asked = []

    def without_a_gpu(*shape, pin_memory=False, **settings):
        asked.append(pin_memory)
        return empty(*shape, **settings).fill_(255)

    monkeypatch.setattr(images.torch, "empty", without_a_gpu)
    buffer = torch.arange(num_bytes, dtype=torch.int64).mul(37).remainder(251).to(torch.uint8)
    copy = pinned(buffer)
    assert asked == [True]
    assert copy is not buffer
    assert torch.equal(copy, buffer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_a_worker_sends_is_pinned(num_workers):
    expected, _ = pack(ARRAYS)
    loader = DataLoader([ARRAYS], batch_size=None, num_workers=num_workers, collate_fn=packed)
    (copy,) = map(pinned, loader)
    assert copy.is_pinned()
    assert torch.equal(copy.to("cuda", non_blocking=True).cpu(), expected)
