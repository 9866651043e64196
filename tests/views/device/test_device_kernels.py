"""The Triton kernels: bit for bit what torch computes, in Triton's interpreter where there is no GPU."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import xxhash

from hf_dr import ops
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.device import eager
from hf_dr.views.device.hashing import hash_lanes, later_hashes, merge
from hf_dr.views.device.images import Windows, pack
from hf_dr.views.device.plan import plan, plan_mixing
from hf_dr.views.device.program import program
from tests.views.device.pictures import any_size, as_columns, picture

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
CUDA = torch.cuda.is_available()
AUGMENTATIONS = [
    [ops.RandomResizedCrop((11, 14)), ops.RandomHorizontalFlip(), ops.RandAugment(), ops.RandomErasing(1.0)],
    [ops.RandomHorizontalFlip(), ops.Resize((9, 30), "lanczos"), ops.TrivialAugmentWide(fill=(5, 6, 7))],
    [ops.RandomCrop((5, 4), padding=5, fill=(3, 2, 1)), ops.ColorJitter(0.5, 0.5, 2.0)],
    [ops.RandomResizedCrop(6, (0.9, 1), interpolation="bicubic")],
]


def check_steps(device):
    """Runs all steps of each augmentation through the kernels and through torch; returns the number of views."""
    from hf_dr.views.device import fused

    rng, count = np.random.default_rng(0), 0
    for number, chosen in enumerate(AUGMENTATIONS):
        augmentation = Augmentation(chosen)
        pictures = [picture(rng, *any_size(rng)) for _ in range(200 if CUDA else 3)]
        if number == 3:
            pictures = [picture(rng, 40, 64) for _ in range(2)]  # windows too large to be unrolled
        columns = as_columns(augmentation, [augmentation.sample(rng, image.shape[:2]) for image in pictures])
        pixels, images = pack(pictures)
        steps = plan(augmentation, columns, images.heights, images.widths)
        whole = program(images, steps, [], np.full(len(images), -1), augmentation.size)
        divided = program(images, steps, [], np.full(len(images), -1), augmentation.size, working_bytes=200)
        assert len(divided.launches) > len(whole.launches)
        expected = eager.run(whole, [pixels])
        for each in (whole, divided):
            assert torch.equal(fused.run(each, [pixels.to(device)]).cpu(), expected), augmentation
        count += len(pictures)
    return count


def check_mixing(device):
    """Mixes views through the kernel and through torch."""
    from hf_dr.views.device import fused

    rng = np.random.default_rng(1)
    augmentation = Augmentation([ops.CenterCrop((7, 9)), ops.MixUp(), ops.CutMix()])
    columns = as_columns(
        augmentation, [augmentation.sample(rng, (7, 9)) for _ in range(8)], ["mixup_lam", "cutmix_box"]
    )
    buffers = [torch.from_numpy(rng.integers(0, 256, 5 * 4 * 7 * 9 * 3, dtype=np.uint8)) for _ in range(2)]
    images = Windows.dense(*np.repeat([[7], [9]], 10, axis=1))
    partners = np.array([9, 8, 0, 1, -1, 6, 5, 3])
    made = program(images, [], plan_mixing(augmentation, columns), partners, (7, 9))
    # The images of two buffers, each with a place of its own there.
    numbers, offsets = np.arange(10) % 2, rng.integers(0, 600, 10)
    found, expected = (
        engine.run(made.moved(engine.starts(there)[numbers] + offsets - images.places), there).cpu()
        for engine, there in ((fused, [b.to(device) for b in buffers]), (eager, buffers))
    )
    assert torch.equal(found, expected)


def check_probe(device):
    from hf_dr.views.device import triton_ready

    triton_ready._try_out(device)


def check_hashes(device):
    """Hashes views of lengths that end anywhere in a block, a stripe and a word."""
    rng = np.random.default_rng(2)
    for height, width in [(9, 9), (10, 10), (19, 18), (8, 128), (7, 49), (31, 33)]:
        views = torch.from_numpy(rng.integers(0, 256, (3, height, width, 3), dtype=np.uint8))
        lanes = hash_lanes(views.to(device)).cpu().numpy().view(np.uint64)
        expected = [xxhash.xxh3_64_intdigest(view.numpy().tobytes()) for view in views]
        assert merge(lanes, views[0].numel()).tolist() == expected


def check_no_fused_multiply_add():
    """Products and sums of blends and weights must be rounded one by one."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from hf_dr.views.device import kernels

    kinds = {
        "source_ptr": "*u8",
        "out_ptr": "*u8",
        "table_ptr": "*i64",
        "tables_ptr": "*u8",
        "fill": "i32",
        "colour": "i32",
    }
    change = ASTSource(kernels.change_kernel, {**kinds, "BLOCK": "constexpr"}, {"BLOCK": 1024})
    sizes = {
        "sizes_ptr": "*i64",
        "first_ptr": "*i32",
        "weights_ptr": "*i32",
        "num_outputs": "i32",
        "num_weights": "i32",
    }
    constants = {"HALF_WIDTH": 2.0, "FILTER": kernels.BICUBIC.value, "BLOCK": 128}
    weights = ASTSource(kernels.weights_kernel, {**sizes, **dict.fromkeys(constants, "constexpr")}, constants)
    for source in (change, weights):
        made = compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
        assert ".f" in made.asm["ptx"]
        assert "fma.rn" not in made.asm["ptx"]


if CUDA:

    def test_steps():
        assert check_steps(torch.device("cuda")) > 600

    def test_mixing():
        check_mixing(torch.device("cuda"))

    def test_hashes():
        check_hashes(torch.device("cuda"))

    def test_kernels_are_compiled():
        check_probe(torch.device("cuda"))

else:

    def test_all_in_the_interpreter():
        """In a process of its own: the interpreter is chosen when the kernels are defined."""
        code = (
            "import torch, tests.views.device.test_device_kernels as t; d = torch.device('cpu'); "
            "t.check_steps(d); t.check_mixing(d); t.check_hashes(d); t.check_probe(d)"
        )
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]


def test_the_compiler_fuses_no_multiply_add():
    check_no_fused_multiply_add()


@pytest.mark.parametrize("size", [(4, 4), (9, 9), (32, 32)])
def test_hashes_on_the_host(size):
    views = torch.arange(2 * 3 * size[0] * size[1]).view(2, *size, 3).to(torch.uint8)
    expected = [xxhash.xxh3_64_intdigest(view.numpy().tobytes()) for view in views]
    assert later_hashes(views.cuda() if CUDA else views)().tolist() == expected
