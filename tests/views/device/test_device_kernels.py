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
from hf_dr.views.device.hashing import ViewHashes, hash_lanes, merge
from hf_dr.views.device.images import Images
from hf_dr.views.device.plan import plan, plan_mixing
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
        images = Images.pack(pictures)
        steps = plan(augmentation, columns, images.heights, images.widths)
        expected = eager.run(images, steps)
        found = fused.run(images.to(device), steps)
        assert torch.equal(found.data.cpu(), expected.data), augmentation
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
    pool = torch.from_numpy(rng.integers(0, 256, (10, 7, 9, 3), dtype=np.uint8))
    partners = np.array([9, 8, 0, 1, -1, 6, 5, 3])
    expected, found, there = pool[:8].clone(), pool[:8].clone().to(device), pool.to(device)
    for step in plan_mixing(augmentation, columns):
        eager.mix_in_place(expected, pool, partners, step)
        fused.mix(found, there, partners, step)
    assert torch.equal(found.cpu(), expected)


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

else:

    def test_all_in_the_interpreter():
        """In a process of its own: the interpreter is chosen when the kernels are defined."""
        code = (
            "import torch, tests.views.device.test_device_kernels as t; d = torch.device('cpu'); "
            "t.check_steps(d); t.check_mixing(d); t.check_hashes(d)"
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
    assert ViewHashes(views.cuda() if CUDA else views).get().tolist() == expected
