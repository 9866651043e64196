"""Images a second of the reinforced loader beside a plain one, which decodes and augments for training on labels.

    python benchmarks/loader.py --data DATA

The reinforced side is a torch DataLoader over what `load_reinforced` returns, with `ReinforcedSampler` at Trainer's
defaults and transformers' collate; the plain side is a `datasets.Dataset` with torchvision's transforms of the same
parameters. Photos of 500x375 pixels, JPEG of quality 90; views of 224x224. The stored parameters are drawn as a real run
draws them; the answers are made up.

`randaug_v50`, `randaug_v400`: reinforced over plain, `randaug` with 50 or 400 stored views, loaded in the main process.
`randaug_mixing_v400`: the same with MixUp and CutMix; the plain side mixes batches, after torchvision's guide, so it
decodes each image once. `floor`: decoding and resizing to 224x224, and nothing else, over plain `randaug`. The same with
`_workers`: loaded by two processes. `*_per_s`: images a second. `*_cpu`: the ratios without workers in seconds of CPU time,
which other programs disturb less than those of the clock; `*_cpu_ms`: CPU milliseconds an image. A process computes with one
thread everywhere, as the workers of a loader do: threads that wait for each other would count as CPU time.

What is compared is timed in turns, an epoch each; ratios are medians over rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import datasets
import synthetic
import torch
from torchvision.transforms import v2
from transformers import default_data_collator

from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.sampling import ReinforcedSampler
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import IMAGENET_MEAN_RGB

SIDE, BATCH, WORKERS = 224, 64, 2
PHOTO = (500, 375)
TARGETS = {"randaug_v50": 1.0, "randaug_v400": 1.0, "randaug_mixing_v400": 0.9}
OVER = {
    "randaug_v50": "plain_randaug",
    "randaug_v400": "plain_randaug",
    "randaug_mixing_v400": "plain_randaug_mixing",
    "floor": "plain_randaug",
}


def randaug() -> Callable[[Any], torch.Tensor]:
    """torchvision's transforms with the parameters of `Augmentation.named("randaug")`."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(SIDE),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(num_ops=2, magnitude=9),
            v2.PILToTensor(),
            v2.RandomErasing(p=0.25, value=list(IMAGENET_MEAN_RGB)),
        ]
    )


def resized() -> Callable[[Any], torch.Tensor]:
    """The least that any loader of such photos has to do."""
    return v2.Compose([v2.Resize((SIDE, SIDE)), v2.PILToTensor()])


def transformed(transform: Callable[[Any], torch.Tensor], rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """What a `datasets.Dataset` calls with the rows of a batch."""
    return {"pixel_values": [transform(i.convert("RGB")) for i in rows["image"]], "labels": rows["label"]}


class MixingCollate:
    """MixUp and CutMix of a float batch, each with the probability of `Augmentation.named("randaug_mixing")`."""

    def __init__(self) -> None:
        mixing: list[Callable[..., Any]] = [
            v2.MixUp(alpha=1.0, num_classes=1000),
            v2.CutMix(alpha=1.0, num_classes=1000),
        ]
        self._mix = v2.Compose([v2.RandomApply([op], p=0.5) for op in mixing])

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = default_data_collator(items)
        pixels = v2.functional.to_dtype(batch["pixel_values"], torch.float32, scale=True)
        pixels, labels = self._mix(pixels, batch["labels"])
        return {"pixel_values": pixels, "labels": labels}


def plain(
    base: datasets.Dataset, transform: Callable[[Any], torch.Tensor], collate: Callable[..., Any], **settings: Any
) -> torch.utils.data.DataLoader:
    """The loader of training on labels."""
    dataset: Any = base.with_transform(partial(transformed, transform))
    return torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, collate_fn=collate, **settings)


def reinforced(dataset: ReinforcedDataset, **settings: Any) -> torch.utils.data.DataLoader:
    """The loader that `ReinforcedTrainer` makes."""
    share = ReinforcedTrainingArguments.reinforced_probability
    sampler = ReinforcedSampler(dataset, reinforced_probability=share)
    return torch.utils.data.DataLoader(dataset, BATCH, sampler=sampler, collate_fn=default_data_collator, **settings)


def epoch(loader: torch.utils.data.DataLoader) -> float:
    """Seconds in which a loader goes through all batches and keeps none."""

    def go() -> None:
        for batch in loader:
            assert batch["pixel_values"].shape[1:] == (3, SIDE, SIDE)

    taken = common.seconds(go)
    if isinstance(loader.sampler, ReinforcedSampler):
        loader.sampler.set_epoch(loader.sampler.epoch + 1)
    return taken


def noted_epoch(loader: torch.utils.data.DataLoader, cpu: list[float]) -> float:
    """The same; notes the seconds of this process's CPU time."""
    began = time.process_time()
    taken = epoch(loader)
    cpu.append(time.process_time() - began)
    return taken


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, help="Epochs of each loader. Default: 7, or 2 with --quick.")
    flags = parser.parse_args()
    rows, rounds = (2 * BATCH, flags.rounds or 2) if flags.quick else (16 * BATCH, flags.rounds or 7)
    torch.set_num_threads(1)
    photos, data = common.photos(flags.data, rows)
    result: dict[str, Any] = {"data": data, "images": rows, "rounds": rounds, "batch": BATCH, "workers": WORKERS}
    with common.working_folder() as folder:
        base = synthetic.jpegs(photos, PHOTO, folder)
        stored = {
            key: synthetic.write(base, Augmentation.named(name, SIDE), views, folder / key)
            for key, name, views in (
                ("randaug_v50", "randaug", 50),
                ("randaug_v400", "randaug", 400),
                ("randaug_mixing_v400", "randaug_mixing", 400),
            )
        }
        print("datasets written", file=sys.stderr)
        for suffix, settings in (("", {}), ("_workers", {"num_workers": WORKERS, "persistent_workers": True})):
            loaders = {
                "plain_randaug": plain(base, randaug(), default_data_collator, **settings),
                "plain_randaug_mixing": plain(base, randaug(), MixingCollate(), **settings),
                **{key: reinforced(load_reinforced(path), **settings) for key, path in stored.items()},
                "floor": plain(base, resized(), default_data_collator, **settings),
            }
            spent: dict[str, list[float]] = {key: [] for key in loaders}
            works = {key: partial(noted_epoch, loader, spent[key]) for key, loader in loaders.items()}
            times = common.in_turns(works, rounds, f"{WORKERS} workers" if settings else "no workers", warm_up=1)
            result |= {key + suffix: common.median_ratio(times[other], times[key]) for key, other in OVER.items()}
            result |= {f"{key}{suffix}_per_s": rows / statistics.median(taken) for key, taken in times.items()}
            if not settings:
                cpu = {key: taken[1:] for key, taken in spent.items()}  # without the round that warms up
                result |= {f"{key}_cpu": common.median_ratio(cpu[other], cpu[key]) for key, other in OVER.items()}
                result |= {f"{key}_cpu_ms": 1e3 * statistics.median(taken) / rows for key, taken in cpu.items()}
            del loaders, works
    print(f"data: {data}, {rows} photos of {PHOTO[0]}x{PHOTO[1]}\n")
    table = []
    for key in ("plain_randaug", "plain_randaug_mixing", *OVER):
        cells = [(result[f"{key}{s}_per_s"], result.get(key + s, 1.0)) for s in ("", "_workers")]
        table.append([key, *cells[0], result.get(f"{key}_cpu", 1.0), *cells[1], TARGETS.get(key, "-")])
    common.table(table, ["", "images/s", "ratio", "of CPU time", f"with {WORKERS} workers", "ratio", "at least"])
    common.finish(result, flags)


if __name__ == "__main__":
    main()
