"""Finding an overlay's images in a copy of its base, and checking that they are the ones.

    python benchmarks/join.py --data DATA

Photos of 500x375 pixels, JPEG of quality 90, in another order than the one that was reinforced, so that all are decoded
once and recognised by their pixels (`index_images`).

`index_per_s`: images a second of that, on all cores; `decode_per_s`: of decoding them in as many threads and nothing else;
`index_over_decoding`: the time of the one over that of the other. `index_one_core_per_s`: on one core. `cached_s`: seconds
of `load_reinforced` when the index is kept from before; `in_place_s`: over a base that is in order.
`check_share`: time of the pixel hash, by which the loader tells a wrong image, over the time of the loader: a torch
DataLoader in the main process over `randaug` views of 224x224, V = 50, at Trainer's defaults. Each image is checked once,
so that is the share in the first epoch; in later ones it is 0. Most of it is Pillow's packing of the pixels.

What is compared is timed in turns; ratios are medians over rounds.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import common
import datasets
import numpy as np
import synthetic
from loader import BATCH, PHOTO, SIDE, epoch, reinforced

from hf_dr.processes import num_cores
from hf_dr.replay.join import index_images
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.images import decode_image, pixel_hash

VIEWS, CHUNK = 50, 64
CORES = num_cores()


def forget() -> None:
    """Deletes what was indexed before."""
    for path in (Path(datasets.config.HF_DATASETS_CACHE) / "hf_dr").glob("*.npy"):
        path.unlink()


def index(images: datasets.Dataset) -> None:
    forget()
    index_images(images)


def decode(images: datasets.Dataset, threads: int) -> None:
    """Decodes all images and keeps none."""

    def stretch(start: int) -> None:
        for cell in images[start : start + CHUNK]["image"]:
            decode_image(cell)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(stretch, range(0, len(images), CHUNK)))


def first_epoch(folder: Path, base: datasets.Dataset) -> float:
    """Seconds of the loader's first epoch, in which every image is checked; without opening the dataset."""
    return epoch(reinforced(load_reinforced(folder, base=base)))


def hashing(images: datasets.Dataset) -> float:
    """Seconds of hashing all images, each just decoded, as in the loader."""
    taken = 0.0
    for row in range(len(images)):
        image = decode_image(images[row]["image"])
        taken += common.seconds(partial(pixel_hash, image))
    return taken


def main() -> None:
    flags = common.parser(__doc__).parse_args()
    rows, rounds = (2 * BATCH, 2) if flags.quick else (16 * BATCH, 5)
    photos, data = common.photos(flags.data, rows)
    result: dict[str, Any] = {"data": data, "images": rows, "rounds": rounds, "batch": BATCH, "cores": CORES}
    with common.working_folder() as folder:
        base = synthetic.jpegs(photos, PHOTO, folder)
        plus = synthetic.write(base, Augmentation.named("randaug", SIDE), VIEWS, folder / "plus", overlay=True)
        moved = base.select(np.random.Generator(np.random.Philox(0)).permutation(rows))
        images = undecoded_images(moved, "image")
        works: dict[str, Callable[[], float]] = {
            "index": lambda: common.seconds(partial(index, images)),
            "decode": lambda: common.seconds(partial(decode, images, CORES)),
            "epoch": lambda: first_epoch(plus, base),
            "hash": lambda: hashing(images),
        }
        times = common.in_turns(works, rounds, "join")
        index(images)
        result["cached_s"] = min(common.seconds(partial(load_reinforced, plus, base=moved)) for _ in range(3))
        result["in_place_s"] = min(common.seconds(partial(load_reinforced, plus, base=base)) for _ in range(3))
        if hasattr(os, "sched_setaffinity"):
            cores = os.sched_getaffinity(0)
            os.sched_setaffinity(0, sorted(cores)[:1])
            result["index_one_core_per_s"] = rows / min(works["index"]() for _ in range(3))
            os.sched_setaffinity(0, cores)
    result |= {f"{key}_per_s": rows / statistics.median(times[key]) for key in ("index", "decode")}
    result["index_over_decoding"] = common.median_ratio(times["index"], times["decode"])
    result["check_share"] = common.median_ratio(times["hash"], times["epoch"])
    print(f"data: {data}, {rows} photos of {PHOTO[0]}x{PHOTO[1]}, {CORES} cores\n")
    shown = ("index_per_s", "decode_per_s", "index_over_decoding", "cached_s", "in_place_s", "check_share")
    common.table([[key, result[key]] for key in shown], ["", ""])
    common.finish(result, flags)


if __name__ == "__main__":
    main()
