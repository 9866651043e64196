"""Replay equals generation, bit for bit.

    python benchmarks/fidelity.py --data DATA

The real job reinforces photos and 28x28 images; a classifier in the teacher's place writes down every pixel that it is
shown. Another process, which shares nothing with the first but the "+" dataset's files, loads them with `load_dataset`,
replays every view and counts the pixels that differ. Fails unless each registered op has changed some image.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import common
import datasets
import numpy as np
import torch
from torch import nn

from hf_dr import ops
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce_job
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.store.provenance import Provenance
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Member
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.views.augmentation import NAMED, Augmentation
from hf_dr.views.ops.colour import OPERATIONS

# What the named augmentations leave out: every other op, ops twice, other settings, mixing after each.
CUSTOM: dict[str, list[Any]] = {
    "trivial": [
        {"RandomResizedCrop": {"scale": [0.25, 1.0], "interpolation": "bicubic"}}, "RandomHorizontalFlip",
        "TrivialAugmentWide",
    ],
    "colour": [
        {"RandomResizedCrop": {"interpolation": "lanczos"}},
        {"ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}},
        {"RandomErasing": {"p": 1.0, "value": [0, 0, 0]}}, "MixUp",
    ],
    "padded": [
        {"Resize": {}}, {"RandomCrop": {"padding": 4, "fill": [124, 116, 104]}}, "RandomHorizontalFlip",
        {"RandAugment": {"num_ops": 3, "magnitude": 20, "p": 0.7, "interpolation": "bilinear", "fill": [1, 2, 3]}},
        "CutMix",
    ],
    "increasing": [
        {"RandomResizedCrop": {}},
        {"RandAugmentIncreasing": {"num_ops": 3, "magnitude": 27, "magnitude_std": 40.0, "interpolation": "bilinear"}},
    ],
    "learned": [{"RandomResizedCrop": {"interpolation": "bicubic"}}, "AutoAugment", "CutMix"],
    "repeated": [
        {"Resize": {}}, {"CenterCrop": {}}, {"RandomHorizontalFlip": {"p": 1.0}}, "TrivialAugmentWide",
        "RandomHorizontalFlip", "TrivialAugmentWide", {"RandomErasing": {"p": 0.5}}, {"RandomErasing": {"p": 0.5}},
        {"MixUp": {"alpha": 0.2, "p": 1.0}}, {"MixUp": {"alpha": 0.2, "p": 1.0}},
    ],
}  # fmt: skip
_CLASSES = 10


class Recorder(nn.Module):
    """A tiny classifier that appends the pixels of every batch it is shown to a file."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.head = nn.Linear(3, _CLASSES)
        self.file = file.open("wb")

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        shown_BHWC = pixels_BCHW.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        assert (shown_BHWC.permute(0, 3, 1, 2) == pixels_BCHW).all(), "the teacher was shown no whole levels"
        self.file.write(shown_BHWC.numpy().tobytes())
        return self.head(pixels_BCHW.mean(dim=(2, 3)) / 255)


def augmentation(name: str, size: int) -> Augmentation:
    """Returns an augmentation by name whose views have `size` pixels a side."""
    if name in NAMED:
        return Augmentation.named(name, size)
    sizes = {
        "RandomResizedCrop": size,
        "RandomCrop": size,
        "CenterCrop": size,
        "Resize": size if size > 28 else size + 4,
    }
    items: list[dict[str, dict[str, Any]]] = []
    for item in CUSTOM[name]:
        ((op, settings),) = item.items() if isinstance(item, dict) else ((item, {}),)
        items.append({op: {**settings, **({"size": sizes[op]} if op in sizes else {})}})
    return Augmentation.from_list(items)


def generate(images: datasets.Dataset, name: str, size: int, num_views: int, folder: Path) -> None:
    """Runs the real job; leaves the "+" dataset and `shown.bin`, the teacher's pixels in flat order (example, view)."""
    torch.manual_seed(0)
    recorder = Recorder(folder / "shown.raw")
    plain = Preprocessing((size, size), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), "bilinear")  # leaves 0..255
    member = Member(recorder, "recorder", None, None, _CLASSES, None, plain, "recorder")
    config = ReinforceConfig(
        output_dir=str(folder / "plus"),
        config_name=name,
        num_views=num_views,
        top_k=3,
        label_column="none",
        num_workers=0,
    )
    job = reinforce_job(images, Teacher([member]), augmentation(name, size), config)
    job.run()
    recorder.file.close()
    # A CPU's last batch of a shard is filled up with black views, which nothing stores.
    batch = job.source.batch_size
    view_bytes = size * size * 3
    with (folder / "shown.raw").open("rb") as raw, (folder / "shown.bin").open("wb") as shown:
        for shard in range(job.provenance.num_shards):
            count = len(job.provenance.shard_range(shard)) * num_views
            shown.write(raw.read(count * view_bytes))
            raw.seek(-count % batch * view_bytes, 1)
        assert not raw.read(1), "the teacher was shown more views than were asked for"
    (folder / "shown.raw").unlink()


def replay(folder: Path) -> dict[str, Any]:
    """Replays every view of the "+" dataset in a folder and compares it with `shown.bin`."""
    name = folder.name
    plus = datasets.load_dataset(str(folder / "plus"), name, split="train", cache_dir=str(folder / "cache"))
    dataset = ReinforcedDataset(plus, Provenance.read(folder / "plus" / name))
    height, width = dataset.augmentation.size
    shown = np.memmap(folder / "shown.bin", np.uint8, "r").reshape(len(dataset), dataset.num_views, height, width, 3)
    pixels = views = largest = 0
    policy: set[str] = set()
    for view in range(dataset.num_views):
        for first in range(0, len(dataset), 64):
            rows = range(first, min(first + 64, len(dataset)))
            for row, item in zip(rows, dataset.__getitems__([(row, view) for row in rows]), strict=True):
                replayed = item["pixel_values"].permute(1, 2, 0).numpy()
                off = np.abs(replayed.astype(np.int16) - shown[row, view])
                pixels += int((off.max(axis=2) > 0).sum())
                views += int(off.any())
                largest = max(largest, int(off.max()))
                params = dataset.params(row, view)
                # Each policy numbers its operations as this list begins.
                policy |= {OPERATIONS[op] for key, value in params.items() if key.endswith("_op") for op in value}
    return {
        "views": len(dataset) * dataset.num_views, "differing_pixels": pixels, "differing_views": views,
        "largest_difference": largest, "policy": sorted(policy),
    }  # fmt: skip


def _count_changes() -> Counter[str]:
    """Makes every op count, by its class name, the images that it has changed; returns the counter."""
    counted: Counter[str] = Counter()

    def counting(name: str, apply: Any) -> Any:
        def wrapped(op: Any, image: Any, params: Any, partner: Any = None) -> Any:
            result = apply(op, image, params, partner)
            counted[name] += result.size != image.size or result.tobytes() != image.tobytes()
            return result

        return wrapped

    for name, op in ops.OPS.items():
        op.apply = counting(name, op.apply)  # type: ignore[method-assign]
    return counted


def in_another_process(folders: list[Path]) -> list[dict[str, Any]]:
    """`replay` of every folder, named as its augmentation, in one new interpreter."""
    told = common.output_of([sys.executable, __file__, "--replay", *map(str, folders)])
    return json.loads(told.splitlines()[-1])


def main() -> None:
    flags = common.parser(__doc__).parse_args()
    torch.set_num_threads(1)  # the classifier is tiny
    names = (*NAMED, *CUSTOM)
    # (images, what, views' side, rows, views of each): at least 10,000 views, also with --quick.
    small_rows, photo_rows = (160, 16) if flags.quick else (160, 100)
    small, small_from = common.small_images(flags.data, small_rows)
    photos, photos_from = common.photos(flags.data, photo_rows)
    print(f"small images: {small_from}; photos: {photos_from}\n")
    result: dict[str, Any] = {"small": small_from, "photos": photos_from, "views": 0, "differing_pixels": 0}
    with common.working_folder() as folder:
        folders = []
        for kind, images, size, num_views in (("small", small, 28, 8), ("photos", photos, 224, 4)):
            for name in names:
                folders.append(folder / kind / name)
                folders[-1].mkdir(parents=True)
                generate(images, name, size, num_views, folders[-1])
        *outcomes, last = in_another_process(folders)
    changed = Counter(last["changed"])
    policy = {op for outcome in outcomes for op in outcome["policy"]}
    rows = []
    for name, *pair in zip(names, outcomes[: len(names)], outcomes[len(names) :], strict=True):
        views, pixels = (sum(o[key] for o in pair) for key in ("views", "differing_pixels"))
        rows.append([name, *(o["views"] for o in pair), pixels, max(o["largest_difference"] for o in pair)])
        result |= {f"{name}_views": views, f"{name}_differing_pixels": pixels}
        result["views"] += views
        result["differing_pixels"] += pixels
    common.table(rows, ["augmentation", "28x28 views", "photo views", "differing pixels", "largest difference"])
    common.table([[op, changed[op]] for op in ops.OPS], ["op", "images changed"])
    asleep = [op for op in ops.OPS if not changed[op]]
    assert not asleep, f"no augmentation of this benchmark exercises {', '.join(asleep)}; add it to CUSTOM"
    assert policy == set(OPERATIONS), f"never drawn: {sorted(set(OPERATIONS) - policy)}"
    result |= {"augmentations": len(names), "ops": len(ops.OPS), "policy_operations": len(policy)}
    common.finish(result, flags)
    assert result["views"] >= 10_000, result["views"]
    sys.exit(result["differing_pixels"] != 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--replay"]:
        counter = _count_changes()
        results = [replay(Path(folder)) for folder in sys.argv[2:]]
        print(json.dumps([*results, {"changed": counter}]))
    else:
        main()
