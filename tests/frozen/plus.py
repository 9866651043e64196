"""The frozen "+" datasets: tiny ones that together use all that a dataset can be made with, the same bytes on every machine.

What could differ from machine to machine is taken out:

* The images are PNG files that are put together here, uncompressed, because a compressor's versions differ in their bytes.
* The teacher's arithmetic is exact up to its last function (`Numbered`), and what is stored of it is far from any border of
  rounding or of an order: the datasets come out the same with a teacher whose answers are off by some bits (`Inexact`).
* The versions of the libraries, which stand in the provenance, are given (`versions`); that of this package is blanked out.
* Another pyarrow may write the same columns as other bytes. So a shard's file is compared under the stored version of pyarrow
  only, and its columns, types and metadata always.
"""

# ruff: noqa: TID251 (an archive of ml-dr holds pickles; the library reads them as data)

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.extend import ExtendConfig, extend
from hf_dr.generation.job import reinforce
from hf_dr.generation.ml_dr.importer import ImportConfig, ImportJob
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.schema import KEEP
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Member, weights_hash
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.version import __version__
from hf_dr.views.augmentation import Augmentation
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

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")
ROWS = 6
SIDE = 16
VERSIONS = {
    "numpy": "2.4.0", "pillow": "13.0.0", "timm": "1.0.31", "torch": "2.14.0", "torchvision": "0.29.0",
    "transformers": "5.24.0", "libjpeg": "3.1",
}  # fmt: skip
"""What the provenance tells, whatever is installed."""


# --------------------------------------------------------------------------------------------------------------- images


def png(pixels_HWC: np.ndarray) -> bytes:
    """Returns an RGB image as a PNG file without compression."""
    height, width, _ = pixels_HWC.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels_HWC)  # each after the number of its filter, none
    assert len(rows) < 1 << 16, "one stored block"
    block = struct.pack("<BHH", 1, len(rows), len(rows) ^ 0xFFFF) + rows
    stream = b"\x78\x01" + block + struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", stream), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def picture(row: int) -> np.ndarray:
    """Returns ramps, a pattern and a box of one colour; integers only, another size in each row."""
    y, x = np.mgrid[: 24 + 2 * row, : 34 - row]
    pixels = np.stack([7 * x + 20 * row, 6 * y + 31 * row, 5 * x + 9 * y + (x * y) % 23 + 40 * row], -1) % 256
    pixels[8 : 14 + row, 5 : 15 + row] = 40 * row, 255 - 30 * row, 90 + 20 * row
    return pixels.astype(np.uint8)


def base(bad_row: int | None = None) -> datasets.Dataset:
    """Returns the dataset that is reinforced.

    Args:
        bad_row: The file of this row breaks off.
    """
    files = [png(picture(row)) for row in range(ROWS)]
    if bad_row is not None:
        files[bad_row] = files[bad_row][:60]
    rows = {
        "image": [{"bytes": file, "path": None} for file in files],
        "label": [(3 * row) % len(CLASSES) for row in range(ROWS)],
        "note": [f"row {row}" for row in range(ROWS)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(CLASSES)),
            "note": datasets.Value("string"),
        }
    )
    return datasets.Dataset.from_dict(rows, features=features, split="train")


# -------------------------------------------------------------------------------------------------------------- teacher


class Numbered(nn.Module):
    """Turns a view into a number, and the number into logits: one order of the same few values, and how sharp they are.

    This is exact on every processor, whatever the order of additions and with or without fused ones: pixels and weights are
    small integers, so all sums are integers below 2**24, and a logit is an integer over 8. Only the softmax rounds. As there
    are few distinct logits, there are few distinct answers, and these can be chosen to lie far from where float16 rounds
    the other way; a convolution would give another answer for each view, and some of them near such a place.

    Args:
        salt: Makes members differ.
        sharpness: Eighths by which the integers are multiplied, one factor for each kind of view.
    """

    def __init__(self, salt: int, sharpness: tuple[int, ...]) -> None:
        super().__init__()
        count = len(CLASSES)
        y, x = np.mgrid[:SIDE, :SIDE]
        # Odd, so that a change of one level in one pixel gives another number.
        places = torch.from_numpy(1 + 2 * ((3 * x + 5 * y + salt) % 4)).float()
        values = torch.tensor([9, -1, 4, 1, -6, -3, 6, -11], dtype=torch.float32)
        self.register_buffer("places_HW", places)
        self.register_buffer("values_C", values)
        self.register_buffer("sharpness_S", torch.tensor(sharpness, dtype=torch.float32))
        self.register_buffer("turns_CC", (torch.arange(count)[:, None] + torch.arange(count)) % count)

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        numbers_B = (pixels_BCHW * self.places_HW).sum(dim=(1, 2, 3)).long()
        kinds_B, turns_B = numbers_B // len(CLASSES) % len(self.sharpness_S), numbers_B % len(CLASSES)
        return self.values_C[self.turns_CC[turns_B]] * self.sharpness_S[kinds_B, None] / 8


def member(salt: int, sharpness: tuple[int, ...]) -> Member:
    """Returns one classifier of the ensemble."""
    model = Numbered(salt, sharpness)
    # Minus 0, by 255 / 255: pixels stay integers.
    preprocessing = Preprocessing((SIDE, SIDE), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), "bilinear")
    labels = tuple((name,) for name in CLASSES)
    return Member(model, f"numbered-{salt}", None, "cc0-1.0", len(CLASSES), labels, preprocessing, weights_hash(model))


# No two members alike, or two classes would be equally probable where they change places.
SHARPNESS = {1: (3, 5), 2: (4,), 3: (7,)}
MANY_KINDS = (2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
"""For views chosen by their entropy, which is the same for all views of one kind."""


class Inexact(Teacher):
    """Answers off by up to `units` of float32's last place, as they may be on another processor; by none if 0.

    Args:
        members: As for Teacher.
        units: How many. All classes of every second view are off to one side, those of the others each to a side of its own.
    """

    def __init__(self, members: list[Member], units: int = 0) -> None:
        super().__init__(members)
        self.units = units

    def __call__(self, views_BCHW: torch.Tensor) -> torch.Tensor:
        answers_BC = super().__call__(views_BCHW)
        if not self.units:
            return answers_BC
        generator = torch.Generator().manual_seed(int(views_BCHW.sum()) + self.units)
        signs_BC = torch.randint(0, 2, answers_BC.shape, generator=generator) * 2 - 1
        signs_BC[::2] = -1
        return answers_BC * (1 + signs_BC * self.units * 2.0**-23)


# -------------------------------------------------------------------------------------------------------------- archive

RUN = {
    "dataset": "animals", "num_classes": len(CLASSES), "seed": None,
    "teacher": {"timm_ensemble": True, "name": "ig_resnext101_32x8d,other"},
}  # fmt: skip
OPS: dict[str, Any] = {
    "uint8": {"enable": True}, "random_resized_crop": {"enable": True, "size": SIDE}, "random_horizontal_flip": {"p": 0.5},
    "rand_augment": {"enable": True, "p": 0.8}, "to_tensor": {"enable": True}, "random_erase": {"p": 0.5},
    "normalize": {"mean": [0.5] * 3, "std": [0.2] * 3},
}  # fmt: skip
MIXING: dict[str, Any] = {"mixup": {"alpha": 1.0, "p": 0.5}, "cutmix": {"alpha": 1.0, "p": 0.5}}


def archive(folder: Path, *, mixes: bool) -> Path:
    """Writes reinforcements of `base` as apple/ml-dr published them, one compressed pickle for each image."""
    ops = OPS | (MIXING if mixes else {})
    settings = {"num_samples": 4, "topk": 3, "compress": True, "image_augmentation": ops}
    folder.mkdir(parents=True)
    contents: dict[str, Any] = {"config.pth.tar": {**RUN, "reinforce": settings}}
    for row, label in enumerate(base()["label"]):
        samples = [_sample(row, view, label, mixes) for view in range(4)]
        contents[f"{row}.pth.tar"] = row, samples
    for name, content in contents.items():
        (folder / name).write_bytes(zlib.compress(pickle.dumps(content, 4)))
    return folder


def _sample(row: int, view: int, label: int, mixes: bool) -> dict[str, Any]:
    own, other = _drawn(row, view), _drawn((row + 1 + view) % ROWS, view + 2)
    mixup, cutmix = (0.25, None), (None, [0.5, 2, 3, 9, 11])
    drawn = {0: (None, None), 1: (mixup[0], None), 2: (None, cutmix[1]), 3: (mixup[0], cutmix[1])}[view]
    mixed = mixes and drawn != (None, None)
    params = [[mine, theirs] if mixed else mine for mine, theirs in zip(own, other, strict=True)]
    if mixes:
        params = [(row + 1 + view) % ROWS if mixed else None, *params, *drawn]
    ids = [(label + 3) % len(CLASSES), label, (label + 5 + view) % len(CLASSES)]
    if len(set(ids)) < len(ids):
        ids[-1] = (label + 1) % len(CLASSES)
    return {"params": params, "prob": ([0.2, 0.7, 0.01 * (1 + view)], ids)}


def _drawn(row: int, view: int) -> list[Any]:
    """One image's crop, flip, operations and erased box, in the compressed form."""
    operations = [(6, 0.27), (0, 0.0)] if view % 2 else [(5, -9.0), (13, 0.0)]
    erased = [None, (-1, 0, 0, 0), (2, 3, 5, 7), (10, 11, 6, 5)][(row + view) % 4]
    return [(row, view, 12 + view, 10 + row), (row + view) % 2 == 0, operations, erased]


# ------------------------------------------------------------------------------------------------------------- datasets

EVERY_OP = Augmentation(
    [
        Resize(28),
        RandomCrop(26, padding=2, fill=(200, 0, 100)),
        CenterCrop(24),
        ColorJitter(0.4, 0.4, 0.4, 0.1),
        TrivialAugmentWide(),
        RandomResizedCrop(SIDE),
        RandomHorizontalFlip(),
        RandAugment(),
        RandomErasing(),
        MixUp(p=0.4),
        CutMix(p=0.4),
    ]
)
POLICIES = Augmentation([RandomResizedCrop(SIDE), AutoAugment(), RandAugmentIncreasing()])
PLAIN = Augmentation([RandomResizedCrop(SIDE), RandomHorizontalFlip()])
MIXED = Augmentation([RandomResizedCrop(SIDE), RandomHorizontalFlip(), CutMix(p=0.5)])
# Chosen so that `Inexact` changes no byte: no answer lies where it could be rounded the other way, and nothing is tied.
SEEDS = {
    "every_op": 0,
    "ensemble": 0,
    "mixing_in_shards": 0,
    "signals": 0,
    "candidates": 3,
    "partial": 0,
    "policies": 0,
}


def build(folder: Path, units: int = 0) -> None:
    """Makes all datasets, each in a folder of its own (those of one folder share a card).

    Args:
        folder: An empty one; `<folder>/<name>/<configuration>`.
        units: Of `Inexact`.
    """

    def teacher(*salts: int) -> Teacher:
        return Inexact([member(salt, SHARPNESS[salt]) for salt in salts], units)

    def make(name: str, config: str, augmentation: Augmentation, asked: Teacher, **settings: Any) -> None:
        given = {"num_views": 4, "top_k": 3, "shard_size": 4, "num_workers": 1, "seed": SEEDS[name], **settings}
        rows = base(given.pop("bad_row", None))
        reinforce(rows, asked, augmentation, ReinforceConfig(str(folder / name), config, **given))

    one, two = teacher(1), teacher(1, 2)
    sharp = Inexact([member(4, MANY_KINDS)], units)
    make("every_op", "whole", EVERY_OP, one)
    make("policies", "others", POLICIES, one)
    make("ensemble", "two_members", PLAIN, two)
    make("mixing_in_shards", "shards", MIXED, one, mixing_scope="shard")
    make("signals", "topk_image_tail", MIXED, one, signal="topk_image_tail")
    make("signals", "sampled", MIXED, one, signal="sampled")
    for keep in KEEP:
        make("candidates", keep, PLAIN, sharp, num_views=2, num_candidates=5, keep=keep)
    tails = {"keep": "low_entropy", "signal": "topk_image_tail"}
    make("candidates", "of_tails", PLAIN, sharp, num_views=2, num_candidates=5, **tails)
    make("partial", "overlay", MIXED, one, overlay=True)
    make("partial", "skipped", MIXED, one, on_bad_image="skip", bad_row=2)
    make("partial", "few_without_labels", PLAIN, one, max_examples=5, label_column="none")

    more = ExtendConfig(str(folder / "more_views"), num_views=6, num_workers=1)
    for name, config in (("every_op", "whole"), ("signals", "sampled"), ("partial", "skipped")):
        extend(load_reinforced(folder / name, config), more, teacher=one)
    members = ExtendConfig(str(folder / "more_members"), num_workers=1)
    extend(load_reinforced(folder / "mixing_in_shards", "shards"), members, add_teacher=teacher(2, 3))

    for mixes in (False, True):
        source = archive(folder / "ml_dr" / f"mixes_{mixes}", mixes=mixes)
        name = "mixed" if mixes else "plain"
        settings = ImportConfig(str(folder / "imported"), name, shard_size=4, num_workers=1)
        ImportJob([source], base(), settings, described={"id": "animals/small", "revision": None}).run()


@contextmanager
def versions() -> Iterator[None]:
    """Tells `VERSIONS` in place of what is installed, and the truth on other packages."""
    installed: Callable[[str], str] = importlib.metadata.version
    with (
        mock.patch("importlib.metadata.version", lambda name: VERSIONS.get(name) or installed(name)),
        mock.patch("PIL.features.version", return_value=VERSIONS["libjpeg"]),
        mock.patch.dict("os.environ"),
    ):
        os.environ.pop("MKL_CBWR", None)
        yield


# --------------------------------------------------------------------------------------------------------------- hashes


def freeze(folder: Path) -> dict[str, Any]:
    """Returns what is compared of the datasets below a folder, by their paths in it."""
    frozen: dict[str, Any] = {"pyarrow": pa.__version__, "cards": {}, "datasets": {}}
    for card in sorted(folder.glob("*/README.md")):
        text = _without_version(card.read_text(encoding="utf-8"))
        frozen["cards"][card.parent.name] = {"file": _sha(text), "without_sizes": _sha(without_sizes(text))}
    for provenance in sorted(folder.glob("*/*/reinforcement.json")):
        config = provenance.parent
        shards = sorted(config.glob("*.parquet"))
        frozen["datasets"][f"{config.parent.name}/{config.name}"] = {
            "reinforcement.json": _sha(_without_version(provenance.read_text(encoding="utf-8"))),
            "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shards},
            "contents": {path.name: _sha(_content(pq.read_table(path))) for path in shards},
            "columns": _columns(pa.concat_tables([pq.read_table(path) for path in shards])),
        }
    return frozen


def without_sizes(card: str) -> str:
    """Returns a card without the sizes of files, which depend on pyarrow's version."""
    card = re.sub(r"(download_size:) \d+", r"\1 -", card)
    return re.sub(r"\d[\d.,]* (?:bytes|B|kB|KB|MB)\b", "-", card)


def _without_version(text: str) -> str:
    return text.replace(f"hf_dr {__version__}", "hf_dr VERSION")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _content(table: pa.Table) -> str:
    """Names, types, metadata and values, as a text that does not depend on how they lie in memory or in a file."""
    metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    types = {field.name: str(field.type) for field in table.schema}
    return json.dumps([types, metadata, table.to_pylist()], sort_keys=True, default=_text)


def _columns(table: pa.Table) -> dict[str, str]:
    """A short hash of each column's values, to tell where a difference is."""
    return {
        name: _sha(json.dumps(table.column(name).to_pylist(), sort_keys=True, default=_text))[:16]
        for name in table.column_names
    }


def _text(value: Any) -> Any:
    """Turns what JSON does not have into text: an image's bytes."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a column must hold numbers, texts and bytes, found {type(value).__name__}")
