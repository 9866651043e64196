"""How fast a push is beside the Hub client's own upload of the same files, and what it sends again after it was killed.

    python benchmarks/push.py                                                          # ratio, resent_fraction

A "+" dataset of 1 GB in 50 shards (images of noise, so that nothing compresses) goes to the tests' Hub on 127.0.0.1, a
process of its own, by plain LFS.

`ratio`: bytes a second of `push_to_hub` from two processes over those of the client's `upload_folder` from two processes,
each with half of the shards; both send five files at once in each process. From barrier to barrier: start-up is left out,
hashing is not. `ratio_one`: the same from one process. What is compared is timed in turns, round after round; medians.

`resent_fraction`: a push from two processes is killed (SIGKILL) when half of the files have arrived and the next ones are
half sent (the Hub holds them there), and run again. Bytes sent then beyond what was missing, over the bytes that were
there. To LFS a file is there when all of it has arrived: `there_fraction` and `cut_off_fraction` are the bytes of whole
and of half files at the kill, over all bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import common
import datasets
import huggingface_hub
import numpy as np
import PIL.Image
import synthetic

from hf_dr.hub.push import push_to_hub
from hf_dr.processes import process_state
from hf_dr.views.augmentation import Augmentation

HUB = Path(__file__).parents[1] / "tests" / "loopback_hub.py"
REPO, TOKEN = "org/push-plus", "hf_loopback_me"
SHARDS, ROWS, SIDE = 50, 102, 256  # images of 197 kB
TARGETS = {"ratio": (">=", 0.7), "resent_fraction": ("<", 0.02)}


def noise(rows: int) -> datasets.Dataset:
    """Returns images of random pixels, as PNG, and labels."""

    def cell(row: int) -> dict[str, Any]:
        pixels = np.random.Generator(np.random.Philox(row)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        file = BytesIO()
        PIL.Image.fromarray(pixels).save(file, "PNG", compress_level=0)
        return {"image": {"bytes": file.getvalue(), "path": None}, "label": row % 10}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_generator(lambda: map(cell, range(rows)), features=features)


def write(folder: Path, shards: int, rows: int) -> int:
    """Writes the "+" dataset; returns the bytes of its shards."""
    made = synthetic.write(
        noise(shards * rows), Augmentation.named("rrc"), 2, folder, config_name="rrc", shard_size=rows
    )
    return sum(path.stat().st_size for path in made.glob("*.parquet"))


# ---------------------------------------------------------------------------------------------------------------- Hub


class Hub:
    """The Hub's process; `url` is its address."""

    def __init__(self, url: str) -> None:
        self.url = url

    def counts(self) -> tuple[int, int]:
        """Returns the bytes of all uploads since the last reset, and of what is stored."""
        with urllib.request.urlopen(f"{self.url}/_hub/counts") as answer:
            found = json.load(answer)
        return found["kinds"].get("lfs_put", {"received": 0})["received"], found["stored"]

    def reset(self) -> None:
        """Forgets everything."""
        urllib.request.urlopen(f"{self.url}/_hub/reset", data=b"").close()

    def stall(self, number: int | None) -> None:
        """From this upload on (counted from 1) none gets further than its half; None lets them through again."""
        rules = [] if number is None else [{"kind": "stall", "at": "lfs_put", "when": number, "count": 1e9}]
        urllib.request.urlopen(f"{self.url}/_hub/faults", data=json.dumps(rules).encode()).close()


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub in a process of its own."""
    process = subprocess.Popen([sys.executable, HUB], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Hub(process.stdout.readline().strip())
    finally:
        process.terminate()  # it deletes what was uploaded
        process.wait()


def launch(hub: Hub, folder: Path, what: str, processes: int) -> list[subprocess.Popen[str]]:
    """Starts `child` in several processes, which find each other as those of torchrun or accelerate do."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(folder.parent / "home"),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true", "TMPDIR": str(folder.parent),  # who is killed cleans nothing up
    }  # fmt: skip
    command = [sys.executable, __file__, "--child", str(folder), what]
    ranks = []
    for rank in range(processes):
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes), "RANK": str(rank)}
        place = {**environment, **group, "LOCAL_RANK": str(rank)} if processes > 1 else environment
        ranks.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=place))
    return ranks


def finished(ranks: list[subprocess.Popen[str]]) -> None:
    """Waits for a launch."""
    for process in ranks:
        _, errors = process.communicate()
        if process.returncode:
            for other in ranks:
                other.kill()
            sys.exit(f"{process.args!r}\nfailed:\n{errors[-3000:]}")


def child(flags: argparse.Namespace) -> None:
    """One launched process: the push or the upload, from barrier to barrier."""
    folder, what = Path(flags.child[0]), flags.child[1]
    state = process_state()
    api = huggingface_hub.HfApi()
    api.create_repo(REPO, repo_type="dataset", exist_ok=True)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    mine = names[state.process_index :: state.num_processes]
    state.wait_for_everyone()
    began = time.perf_counter()
    if what == "push":
        push_to_hub(folder, REPO)
    else:
        api.upload_folder(folder_path=folder, repo_id=REPO, repo_type="dataset", allow_patterns=mine)
    state.wait_for_everyone()
    if state.is_main_process:
        (folder.parent / "seconds").write_text(str(time.perf_counter() - began), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- measurements


def measure_rates(hub: Hub, folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Megabytes a second of both, from two processes and from one, in turns."""
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for processes in (2, 1):
            for what in ("push", "upload") if number % 2 else ("upload", "push"):
                hub.reset()
                finished(launch(hub, folder, what, processes))
                sent, stored = hub.counts()
                assert sent == stored == size, f"{what} sent {sent} of {size} bytes"
                taken = float((folder.parent / "seconds").read_text(encoding="utf-8"))
                rates.setdefault(f"{what}_{processes}", []).append(size / 1e6 / taken)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return rates


def measure_resent(hub: Hub, folder: Path, size: int, shards: int) -> dict[str, float]:
    """Kills a push half way and runs it again."""
    hub.reset()
    hub.stall(shards // 2 + 1)
    ranks = launch(hub, folder, "push", 2)
    there = -1
    while there < 0.45 * size or hub.counts()[1] > there:  # until nothing moves any more
        there = hub.counts()[1]
        if any(process.poll() is not None for process in ranks):
            finished(ranks)
        time.sleep(0.5)
    for process in ranks:
        process.kill()
        process.communicate()
    hub.stall(None)
    before, there = hub.counts()
    finished(launch(hub, folder, "push", 2))
    sent = hub.counts()[0] - before
    return {
        "resent_fraction": (sent - (size - there)) / there,
        "there_fraction": there / size,
        "cut_off_fraction": (before - there) / size,
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, help="Rounds of each comparison. Default: 5, or 1 with --quick.")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags)
        return
    shards, rows, rounds = (20, 10, flags.rounds or 1) if flags.quick else (SHARDS, ROWS, flags.rounds or 5)
    with common.working_folder() as home, serving() as hub:
        folder = home / "push-plus"
        size = write(folder, shards, rows)
        print(f"{shards} shards, {size / 1e6:,.0f} MB\n")
        rates = measure_rates(hub, folder, size, rounds)
        resent = measure_resent(hub, folder, size, shards)
    ratios = {n: common.median_ratio(rates[f"push_{n}"], rates[f"upload_{n}"]) for n in (1, 2)}
    speeds = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "ratio": ratios[2], "ratio_one": ratios[1], **resent, "bytes": size, "shards": shards, "rounds": rounds,
        **{f"{name}_mb_per_s": speed for name, speed in speeds.items()},
    }  # fmt: skip
    common.table(
        [
            ["push_to_hub", speeds["push_1"], speeds["push_2"]],
            ["the client's upload_folder", speeds["upload_1"], speeds["upload_2"]],
            ["ratio", ratios[1], ratios[2]],
        ],
        ["MB/s", "one process", "two processes"],
    )
    common.table(
        [[name, result[name], f"{sign} {bound}"] for name, (sign, bound) in TARGETS.items()],
        ["", "measured", "wanted"],
    )
    common.finish(result, flags)


if __name__ == "__main__":
    main()
