"""Kills, fills the disk, cuts the Hub, damages files, goes on, and compares with what an undisturbed run made.

    python benchmarks/soak.py --minutes 60 --seed 7 --json benchmarks/results/soak.json
    python benchmarks/soak.py --kind flip --trials 1000               # one kind, so many times

The kinds of trials take turns; each is drawn from (seed, kind, number). What is disturbed is a fork of this process: it is
killed at a random file operation or moment, or may write no file beyond a random size, as on a full disk; the tests' Hub on
127.0.0.1 cuts, refuses or garbles requests. A trial is well where

- a reinforcing run, killed or out of room, or with a damaged shard, ends in the same bytes when it is started again;
- a training ends in the same weights, also of the average, after kills, a full disk, or damage to its last checkpoint;
- a push ends well or in one clear error without the token, once more makes the repository whole, and no commit held half;
- a bit that is flipped in a shard, or rows or values that are swapped, are found by `verify` and refused by a push, and both
  name the first damaged shard. `flip_without_effect` counts flips that leave all that is read as it was.

Nothing may end in an error but this package's own. Where a trial is not well, it is said how to repeat it, its files are
kept, and the exit code is 1.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import conftest  # isort: skip (before the libraries: it sets their environment)
import common
import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hub import test_hub_faults as faults
from loopback_hub import Fault
from training.helpers import pooled, settings_in

from hf_dr.errors import FormatError, HfDrError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.generation.verify import verify
from hf_dr.hub import retry
from hf_dr.hub.push import push_to_hub
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.shards import read_marker
from hf_dr.training.checkpoints import last_checkpoint
from hf_dr.training.trainer import ReinforcedTrainer

HUB, ROWS, SHARD = conftest.HUB, 24, 4
FILE_OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")
Work = Callable[[Path], Any]


class NotWellError(Exception):
    """What a trial found."""


# ----------------------------------------------------------------------------------------------------- what is disturbed


def reinforcing(folder: Path) -> None:
    """Makes, or goes on with, the "+" dataset of this soak."""
    rng = np.random.default_rng(0)
    labels = [row % len(conftest.CLASSES) for row in range(ROWS)]
    cells = [conftest.as_cell(conftest.colour_image(rng, label)) for label in labels]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*conftest.CLASSES])})
    data = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    config = ReinforceConfig(str(folder), "all_ops", num_views=4, top_k=3, shard_size=SHARD)
    reinforce(data, conftest.colour_teacher(), conftest.ALL_OPS, config)


def training(plus: Path, kept: int | None, folder: Path) -> None:
    """Trains, or goes on from the last whole checkpoint: 12 steps with dropout and an average, a checkpoint of each."""
    args = settings_in(
        folder, num_train_epochs=2, save_strategy="steps", save_steps=1, save_total_limit=kept, ema_decay=0.7,
        optim="adamw_torch", learning_rate=0.01, lr_scheduler_type="cosine", reinforced_probability=0.5,
    )  # fmt: skip
    trainer = ReinforcedTrainer(pooled(dropout=0.5), args, train_dataset=load_reinforced(plus))
    trainer.train(resume_from_checkpoint=last_checkpoint(str(folder)))
    trainer.save_model(str(folder / "final"))


def pushing(plus: Path, way: str, folder: Path) -> Any:
    """Pushes as somebody who is online and logged in; nobody waits before another attempt."""
    os.environ["HF_TOKEN"] = HUB.token
    huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
    huggingface_hub.constants.HF_HUB_CACHE = str(folder / "cache")
    retry._sleep = lambda _: None
    for module in (huggingface_hub.utils._http, huggingface_hub.file_download):
        module.time = SimpleNamespace(sleep=lambda _: None)
    return push_to_hub(plus, faults.REPO, **faults.PUSHES[way])


def looking(folder: Path) -> list[str]:
    """Returns what `verify` of one row and a push say of damaged files; nothing where they find none."""
    said = []
    for look in (lambda: verify(folder, num_rows=1).problems, lambda: push_to_hub(folder, faults.REPO)):
        try:
            said.append("".join(look()[:1]))
        except FormatError as error:
            said.append(str(error))
        except HfDrError:
            said.append("")  # a push that does not refuse finds no Hub
    return said


# ------------------------------------------------------------------------------------------------------------ processes


def child(work: Work, folder: Path, limits: dict[str, int], answer: Connection) -> None:
    """Does `work` in this process; sends its result, the trace of its error, and how many file operations it took."""
    with (folder.parent / "log.txt").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event in FILE_OPERATIONS and str(folder) in str(arguments[0]):
            done += 1
            if done == limits.get("operation"):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.get("bytes", resource.RLIM_INFINITY), resource.RLIM_INFINITY))
    result, error = None, ""
    try:
        result = work(folder)
    except Exception as found:
        result, error = str(found), "".join(traceback.format_exception(found))
        error = error if isinstance(found, HfDrError) else f"UNCLEAR {error}"
    answer.send((result, error, done))


def run(work: Work, folder: Path, after: float | None = None, **limits: int) -> Any:
    """Does `work` in a fork; returns what `child` sends, None where it was killed, after so many seconds or by a limit."""
    folder.mkdir(parents=True, exist_ok=True)
    answer, end = faults.FORK.Pipe(duplex=False)
    process = faults.FORK.Process(target=child, args=(work, folder, limits, end))
    process.start()
    end.close()
    ended = answer.poll(after or 300)
    try:
        sent = answer.recv() if ended else process.kill()
    except EOFError:
        sent = None
    process.join()
    if (sent is not None and sent[1].startswith("UNCLEAR")) or not (ended or after):
        raise NotWellError(sent[1] if ended else "it did not end within 300 s")
    return sent


# --------------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, rng: np.random.Generator) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)


def swap(path: Path, rng: np.random.Generator) -> None:
    """Swaps two rows, of one column or of all, and leaves the shard's marker as it was."""
    marker, table = pq.read_metadata(path).metadata[b"hf_dr"], pq.read_table(path)
    order = np.arange(len(table))
    one, other = rng.choice(len(table), 2, replace=False)
    order[[one, other]] = order[[other, one]]
    name = str(rng.choice([name for name in table.column_names if not table[name].take(order).equals(table[name])]))
    changed = table.take(order)
    if rng.random() < 0.8:
        changed = table.set_column(table.column_names.index(name), table.schema.field(name), changed[name])
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(changed)
        writer.add_key_value_metadata({"hf_dr": marker})


def cut(path: Path, rng: np.random.Generator) -> None:
    """Truncates a file."""
    os.truncate(path, int(rng.integers(path.stat().st_size)))


def remove(path: Path, rng: np.random.Generator) -> None:
    """Deletes a file."""
    path.unlink()


def reads_the_same(path: Path, intact: Path) -> bool:
    """Whether a shard has the table, the schema with its features, the marker and the statistics of another."""
    try:
        same = pq.read_table(path).equals(pq.read_table(intact), check_metadata=True)
        groups = [str(pq.read_metadata(file).row_group(0).column(0).statistics) for file in (path, intact)]
        return same and groups[0] == groups[1] and read_marker(path) == read_marker(intact)
    except (FormatError, OSError, pa.ArrowException, ValueError):
        return False


# --------------------------------------------------------------------------------------------------------------- trials


class Soak:
    """The undisturbed results, with the seconds and file operations that they took, and a method for each kind of trial.

    Args:
        home: Where all of it is.
    """

    def __init__(self, home: Path) -> None:
        self.places = {"reinforce": home / "plus", "train": home / "trained"}
        self.plus = self.places["reinforce"]
        self.passed = 0  # flips that changed nothing
        self.whole, self.operations, self.seconds = {}, {}, {}
        for name, folder in self.places.items():
            began = time.perf_counter()
            _, error, self.operations[name] = run(self.work(name, None), folder)
            if error:
                raise NotWellError(error)
            self.seconds[name] = time.perf_counter() - began
            self.whole[name] = self.result(name, folder)

    def work(self, name: str, kept: int | None) -> Work:
        return reinforcing if name == "reinforce" else partial(training, self.plus, kept)

    def result(self, name: str, folder: Path) -> dict[str, bytes]:
        """The files whose bytes count: all of a "+" dataset, the weights of a training."""
        files = sorted(folder.rglob("[!.]*") if name == "reinforce" else folder.glob("final/*.safetensors"))
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}

    def go_on(self, name: str, work: Work, folder: Path) -> None:
        """Starts the work again, without disturbing it, and compares."""
        _, error, _ = run(work, folder)
        found, whole = self.result(name, folder), self.whole[name]
        if error or found != whole:
            differing = [file for file in sorted(found | whole) if found.get(file) != whole.get(file)]
            raise NotWellError(error or f"{', '.join(differing)} differ from those of the undisturbed run")

    def killed(self, name: str, rng: np.random.Generator, folder: Path) -> None:
        work = self.work(name, (None, 1, 2)[rng.integers(3)])
        for _ in range(int(rng.integers(1, 4))):
            if rng.random() < 0.5:
                run(work, folder, operation=int(rng.integers(1, self.operations[name])))
            else:
                run(work, folder, after=float(rng.uniform(0.01, self.seconds[name])))
        self.go_on(name, work, folder)

    def full(self, name: str, rng: np.random.Generator, folder: Path) -> None:
        work = self.work(name, (None, 1, 2)[rng.integers(3)])
        largest = max(path.stat().st_size for path in self.places[name].rglob("*") if path.is_file())
        run(work, folder, bytes=int(np.exp(rng.uniform(0, np.log(largest)))))
        self.go_on(name, work, folder)

    def damaged(self, name: str, rng: np.random.Generator, folder: Path) -> None:
        shutil.copytree(self.places[name], folder)
        if name == "train":
            shutil.rmtree(folder / "final")
            files = sorted(Path(str(last_checkpoint(str(folder)))).iterdir())
        else:
            files = sorted(folder.rglob("*.parquet"))
        path = files[rng.integers(len(files))]
        (flip, cut, remove)[rng.integers(3)](path, rng)
        intact = self.places[name] / path.relative_to(folder)
        if name == "reinforce" and path.exists() and reads_the_same(path, intact):
            shutil.copy(intact, path)
        self.go_on(name, self.work(name, None), folder)

    def found(self, damage: Callable[[Path, np.random.Generator], None], rng: np.random.Generator, folder: Path) -> None:
        shutil.copytree(self.plus, folder)
        shards = sorted(folder.rglob("*.parquet"))
        chosen = [shards[n] for n in sorted(rng.choice(len(shards), int(rng.integers(1, 3)), replace=False))]
        for path in chosen:
            damage(path, rng)
        changed = [path.name for path in chosen if not reads_the_same(path, self.plus / path.relative_to(folder))]
        self.passed += len(chosen) - len(changed)
        for look, said in zip(("verify", "push"), run(looking, folder)[0], strict=True):
            if changed and changed[0] not in said:
                raise NotWellError(f"{look} must name {changed[0]}, but it said: {said or 'nothing'}")

    def pushed(self, rng: np.random.Generator, folder: Path) -> None:
        way, request = faults.KINDS[rng.integers(len(faults.KINDS))]
        fault = str(rng.choice(faults.FAULTS + faults.LASTING))
        HUB.reset()
        faults.prepare(HUB, way)
        HUB.faults.append(Fault(fault, request, int(rng.integers(1, 3)), float(rng.choice([1, 3, np.inf]))))
        work = partial(pushing, self.plus, way)
        first = run(work, folder, after=float(rng.uniform(0.05, 1)) if rng.random() < 1 / 4 else None)
        HUB.faults.clear()
        again, error, _ = run(work, folder)
        log = (folder.parent / "log.txt").read_text(encoding="utf-8")
        if first is not None and first[1] and not faults.CLEAR.match(first[0]):
            error = f"the error is not clear: {first[1]}"
        error = error or "".join(HUB.errors) or ("the token was shown" if "hf_loopback" in log else "")
        if error:
            raise NotWellError(f"{fault} at {request} ({way}): {error}")
        faults.assert_whole(HUB, again, self.plus, way)


KINDS: dict[str, Callable[[Soak, np.random.Generator, Path], None]] = {
    **{
        f"{name}_{how}": lambda soak, rng, folder, name=name, how=how: getattr(soak, how)(name, rng, folder)
        for name in ("reinforce", "train")
        for how in ("killed", "full", "damaged")
    },
    "push": lambda soak, rng, folder: soak.pushed(rng, folder),
    "flip": lambda soak, rng, folder: soak.found(flip, rng, folder),
    "swap": lambda soak, rng, folder: soak.found(swap, rng, folder),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    flags = common.parser(__doc__)
    flags.add_argument("--minutes", type=float, default=1.0, help="How long, whole rounds of all kinds. Default: 1.")
    flags.add_argument("--trials", type=int, help="Rounds, in place of --minutes.")
    flags.add_argument("--first", type=int, default=0, help="The number of the first round. Default: 0.")
    flags.add_argument("--seed", type=int, default=0, help="Default: 0.")
    flags.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS), help="Default: all.")
    given = flags.parse_args(arguments)
    tried: Counter[str] = Counter()
    well: Counter[str] = Counter()
    began = time.monotonic()
    with common.working_folder() as home:
        HUB.start()
        soak = Soak(home)
        number = given.first
        while number < given.first + given.trials if given.trials else time.monotonic() < began + 60 * given.minutes:
            for kind in given.kind:
                folder = home / f"{kind}-{number}"
                tried[kind] += 1
                try:
                    KINDS[kind](soak, np.random.default_rng([given.seed, zlib.crc32(kind.encode()), number]), folder / "work")
                    well[kind] += 1
                    shutil.rmtree(folder)
                except (NotWellError, AssertionError) as error:
                    place = shutil.move(folder, tempfile.mkdtemp(prefix="hf_dr_soak_"))
                    print(f"{kind} {number} is not well: {error}\nIts files: {place}. To repeat it:", file=sys.stderr)
                    print(f"    python benchmarks/soak.py --seed {given.seed} --kind {kind} --first {number} --trials 1\n", file=sys.stderr)
            number += 1
    result = {kind: f"{well[kind]} of {tried[kind]}" for kind in given.kind}
    common.table([[kind, text] for kind, text in result.items()], ["kind", "ended well"])
    common.finish({**result, "flip_without_effect": soak.passed, "minutes": (time.monotonic() - began) / 60}, given)
    if well != tried:
        sys.exit(1)


if __name__ == "__main__":
    main()
