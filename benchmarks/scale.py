"""Opening and reading a "+" dataset as large as ImageNet's: 1,280,000 rows of 400 views, and of 50.

    python benchmarks/scale.py

The dataset is an overlay (no images) whose shards are one file under a thousand names, written by the package's own
writer. `load_reinforced` converts Parquet to Arrow, once: `datasets` keeps the result in its cache, which takes 60 bytes
a view, 31 GB here; where that is more than the memory has room for, reads go to the disk. So the same is tried again with
one shard's Arrow table in place of every shard's (`hot_*`), opened as `load_reinforced` opens it after the conversion:
what a machine does that has the memory. So that the cache stays within `--limit` GB, there may be fewer `rows`.

`open_s`: seconds of `load_reinforced` in a new process, the cache filled; `convert_s`: the first time. `read_us`:
microseconds of a random read of a stored view, its parameters and the teacher's answer, mean of 10,000. `rss_mb`:
resident memory after that, pages of the mapped cache included, which the system takes back when it needs them;
`anon_mb`: without them. `rows`, `cache_gb`: size of what was opened; `memory_gb`: of the machine. The same with `_v50`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import common
import datasets
import numpy as np
import synthetic

from hf_dr.replay import loading
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.provenance import Provenance
from hf_dr.views.augmentation import Augmentation

ROWS, QUICK_ROWS, SHARD = 1_280_000, 12_800, 1280
READS = 10_000
VIEWS = {"": 400, "_v50": 50}


def base_of(rows: int, flags: argparse.Namespace) -> datasets.Dataset:
    """Returns `rows` rows, those of one shard again and again; nothing is copied."""
    images, _ = common.small_images(flags.data, SHARD)
    return datasets.concatenate_datasets([synthetic.with_numbers(images)] * (rows // SHARD))


def read(dataset: ReinforcedDataset) -> float:
    """Microseconds of a read of a random view of a random row."""
    rng = np.random.Generator(np.random.Philox(0))
    rows, views = rng.integers(len(dataset), size=READS).tolist(), rng.integers(dataset.num_views, size=READS).tolist()
    began = time.perf_counter()
    for row, view in zip(rows, views, strict=True):
        dataset.params(row, view)
        dataset.teacher_answer(row, view)
    return 1e6 * (time.perf_counter() - began) / READS


def resident() -> dict[str, float]:
    """Resident memory of this process in MB, with and without pages of files; empty where /proc does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return {"rss_mb": kilobytes["VmRSS"] / 1024, "anon_mb": kilobytes["RssAnon"] / 1024}


def child(flags: argparse.Namespace) -> None:
    """One process that opens the dataset, and unless it is the first, reads from it."""
    folder, cache, what = Path(flags.child[0]), Path(flags.child[1]), flags.child[2]
    datasets.config.HF_DATASETS_CACHE = cache
    loading._check_rows = lambda *_: None  # would refuse files that repeat each other's rows
    base = base_of(Provenance.read(folder).num_rows, flags)
    began = time.perf_counter()
    dataset = load_reinforced(folder, base=base)
    taken = time.perf_counter() - began
    measured: dict[str, float] = {}
    if what == "convert":
        measured = {"convert_s": taken}
    elif what == "read":
        measured = {"open_s": taken, "read_us": read(dataset), **resident()}
    elif what == "hot":
        rows = QUICK_ROWS if flags.quick else ROWS
        base, shard = base_of(rows, flags), dataset.plus.select(range(SHARD))
        provenance = dataclasses.replace(dataset.provenance, num_rows=rows)
        del dataset
        began = time.perf_counter()
        dataset = ReinforcedDataset(datasets.concatenate_datasets([shard] * (rows // SHARD)), provenance, base=base)
        taken = time.perf_counter() - began
        measured = {"hot_rows": rows, "hot_open_s": taken, "hot_read_us": read(dataset)}
        measured["hot_anon_mb"] = resident().get("anon_mb", float("nan"))
    print(json.dumps(measured))


def measured(folder: Path, cache: Path, what: str, flags: argparse.Namespace) -> dict[str, float]:
    """Runs `child` in a new process."""
    command = [sys.executable, __file__, "--child", str(folder), str(cache), what, *common.inputs(flags)]
    told = common.output_of([*command, "--quick"] if flags.quick else command)
    print(f"{folder.parent.name}, {what}: {told.strip()}", file=sys.stderr)
    return json.loads(told)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--limit", type=float, default=40, help="GB of disk for the Arrow cache. Default: 40.")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags)
        return
    wanted = QUICK_ROWS if flags.quick else ROWS
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    result: dict[str, Any] = {"reads": READS, "limit_gb": flags.limit, "memory_gb": memory}
    for suffix, views in VIEWS.items():
        with common.working_folder() as folder:
            images, _ = common.small_images(flags.data, SHARD)
            base, augmentation = synthetic.with_numbers(images), Augmentation.named("randaug")
            plus = synthetic.write_repeated(base, augmentation, views, folder / f"v{views}", wanted, 1e9 * flags.limit)
            cache = folder / "cache"
            found: dict[str, Any] = {"rows": Provenance.read(plus).num_rows}
            for what in ("convert", "read", "hot"):
                found |= measured(plus, cache, what, flags)
            found["cache_gb"] = sum(p.stat().st_size for p in cache.rglob("*.arrow")) / 1e9
            result |= {key + suffix: value for key, value in found.items()}
    keys = ["rows", "cache_gb", "convert_s", "open_s", "read_us", "rss_mb", "anon_mb"]
    keys += ["hot_rows", "hot_open_s", "hot_read_us", "hot_anon_mb"]
    common.table(
        [[key, *(result.get(key + suffix, "-") for suffix in VIEWS)] for key in keys],
        ["", *(f"V = {views}" for views in VIEWS.values())],
    )
    common.finish(result, flags)


if __name__ == "__main__":
    main()
