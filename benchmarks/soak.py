"""Kills, fills the disk, cuts the Hub, damages files, goes on, and compares with what an undisturbed run made.

    python benchmarks/soak.py --minutes 30 --json benchmarks/results/soak.json        # all kinds in turn
    python benchmarks/soak.py --full --kind flip swap --json benchmarks/results/soak_damage.json   # 1,000 and 200 trials
    python benchmarks/soak.py --full --kind grid --json benchmarks/results/soak_grid.json          # each fault at each request
    python benchmarks/soak.py --kind flip --first 17 --trials 1                       # one trial again

Kinds of trials take turns, each drawn from (seed, kind, number). What is disturbed is a fork of this process. It is killed at a
random file operation or moment, or from a random operation on no file may grow beyond a random size, as on a full disk; the
tests' Hub on 127.0.0.1 cuts, refuses or garbles requests. Nothing may end in another error than this package's own, and

- `reinforce`: started again, a run ends in the same bytes, whether killed, out of room, with a damaged shard, or beside another
  process: of two that make the whole, one is refused; two parts need not know of each other;
- `train`: likewise in the same weights, also of the average; what is damaged is the last checkpoint;
- `push`: it ends well or in one clear error, without the token; the next one makes the repository whole; no commit held half;
- `grid`: the same, where each of 21 faults meets each request of each way to push, one after the other;
- `flip`, `swap`: in one or two shards, a flipped bit, or swapped rows or values, are found by `verify` and refused by a push,
  which name the first of them; once that one is whole again, the second. A flip that changes no value, feature, marker or
  statistic is counted by where it fell (`flips_without_effect_in_`), and another bit is flipped. `num_bytes`, of which the card
  makes a size, is not compared.

Where a trial is not well it is said how to repeat it, its files are kept, and the exit code is 1. Ctrl-C ends it with the
figures so far.
"""

import contextlib
import math
import os
import re
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
from dataclasses import replace
from functools import partial
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
from samples import rewritten
from training.helpers import pooled, settings_in

from hf_dr.errors import FormatError, HfDrError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.folder import WHOLE, Part
from hf_dr.generation.job import reinforce_job
from hf_dr.generation.verify import verify
from hf_dr.hub import retry
from hf_dr.hub.push import push_to_hub
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.shards import read_marker
from hf_dr.training.checkpoints import last_checkpoint
from hf_dr.training.trainer import ReinforcedTrainer

HUB = conftest.HUB
Rng = np.random.Generator
Work = Callable[[Path], Any]
FILE_OPERATIONS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir")


class NotWellError(Exception):
    """What a trial found."""


def reinforcing(part: Part, folder: Path) -> None:
    """Makes, or goes on with, a "+" dataset of three shards, or a part of them."""
    rng, labels = np.random.default_rng(0), [row % len(conftest.CLASSES) for row in range(24)]
    cells = [conftest.as_cell(conftest.colour_image(rng, label)) for label in labels]
    cells[13]["bytes"] = b"no image"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=[*conftest.CLASSES])})
    data = datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features)
    config = ReinforceConfig(str(folder), "all_ops", num_views=4, top_k=3, shard_size=8, on_bad_image="skip")
    reinforce_job(data, conftest.colour_teacher(), conftest.ALL_OPS, config).run(part)


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
    impatient: Any = SimpleNamespace(sleep=lambda _: None)
    huggingface_hub.utils._http.time = huggingface_hub.file_download.time = impatient
    return push_to_hub(plus, faults.REPO, **faults.PUSHES[way])


def looking(folder: Path) -> list[str]:
    """Returns what `verify` of one row and a push say of damaged files; nothing where they find none."""
    said = []
    looks: tuple[Callable[[], Any], ...] = (
        lambda: verify(folder, ask_teacher=False, num_rows=1).problems,
        lambda: push_to_hub(folder, faults.REPO),
    )
    for look in looks:
        try:
            said.append("".join(look()[:1]))
        except HfDrError as error:  # a push that does not refuse finds no Hub
            said.append(str(error) if isinstance(error, FormatError) else "")
    return said


def child(work: Work, folder: Path, after: dict[str, int], answer: Any) -> None:
    """Does `work` in this process; sends its result, the trace of its error, and how many file operations it took."""
    log = os.open(os.devnull if "bytes" in after else folder.parent / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    done = 0

    def disturb(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in FILE_OPERATIONS or str(folder) not in str(arguments[0]):
            return
        done += 1
        if done == after.get("operations") and "bytes" in after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (after["bytes"], resource.RLIM_INFINITY))
        elif done == after.get("operations"):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(disturb)
    result, error = None, ""
    try:
        result = work(folder)
    except Exception as found:
        result, error = str(found), "".join(traceback.format_exception(found))
        error = error if isinstance(found, HfDrError) else f"UNCLEAR {error}"
    answer.send((result, error, done))


def begin(work: Work, folder: Path, **after: int) -> Callable[..., Any]:
    """Begins `work` in a fork; returns what waits for it: see `run`."""
    folder.mkdir(parents=True, exist_ok=True)
    answer, end = faults.FORK.Pipe(duplex=False)
    process = faults.FORK.Process(target=child, args=(work, folder, after, end))
    process.start()
    end.close()

    def wait(seconds: float | None = None) -> Any:
        ended = answer.poll(seconds or 300)
        try:
            sent = answer.recv() if ended else process.kill()
        except EOFError:
            sent = None
        process.join()
        if (sent and sent[1].startswith("UNCLEAR")) or not (ended or seconds):
            raise NotWellError(sent[1] if ended else "it did not end within 300 s")
        return sent

    return wait


def run(work: Work, folder: Path, seconds: float | None = None, **after: int) -> Any:
    """Does `work` in a fork; returns what `child` sends, None where it was killed, after a number of seconds or operations."""
    return begin(work, folder, **after)(seconds)


def flip(path: Path, rng: Rng) -> int:
    """Flips a bit; returns the place of its byte."""
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    content[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(content)
    return place


def flip_with_effect(path: Path, intact: Path, rng: Rng) -> list[str]:
    """Flips bits until one changes what is read; tells where others fell: in `pages`, `num_bytes` or else the `footer`."""
    none = []
    while reads_the_same(path, intact):
        shutil.copy(intact, path)
        place = flip(path, rng)
        if reads_the_same(path, intact):
            footer = intact.stat().st_size - 8 - int.from_bytes(intact.read_bytes()[-8:-4], "little")
            size = read_marker(path).num_bytes != read_marker(intact).num_bytes
            none.append("num_bytes" if size else "footer" if place >= footer else "pages")
    return none


def swap(path: Path, rng: Rng) -> None:
    table = pq.read_table(path)
    order = np.arange(len(table))
    one, other = rng.choice(len(table), 2, replace=False)
    order[[one, other]] = other, one
    name = str(rng.choice([name for name in table.column_names if not table[name].take(order).equals(table[name])]))
    place, field = table.column_names.index(name), table.schema.field(name)
    rows = rng.random() < 0.2  # whole ones, else the values of a column
    rewritten(
        path, lambda table: table.take(order) if rows else table.set_column(place, field, table[name].take(order))
    )


def reads_the_same(path: Path, intact: Path) -> bool:
    """Whether a shard has the table, the features, the marker (but for `num_bytes`) and the statistics of another."""
    try:
        one, other = pq.read_table(path), pq.read_table(intact)
        same = str(one.to_pylist()) == str(other.to_pylist()) and one.schema.metadata == other.schema.metadata
        groups = [pq.read_metadata(file).row_group(0).to_dict()["columns"] for file in (path, intact)]
        statistics = [[column["statistics"] for column in columns] for columns in groups]
        return (
            same
            and statistics[0] == statistics[1]
            and replace(read_marker(path), num_bytes=0) == replace(read_marker(intact), num_bytes=0)
        )
    except (FormatError, OSError, pa.ArrowException, ValueError):
        return False


class Soak:
    """The undisturbed results, with the seconds and file operations that they took, and a method for each kind of trial."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.places = {name: home / name / "work" for name in ("reinforce", "train")}
        self.plus = self.places["reinforce"]
        self.tried, self.well, self.counts = Counter[str](), Counter[str](), Counter[str]()
        self.whole, self.operations, self.seconds = {}, {}, {}
        for name, folder in self.places.items():
            began = time.perf_counter()
            _, error, self.operations[name] = run(self.work(name), folder)
            self.seconds[name] = time.perf_counter() - began
            self.whole[name] = self.result(name, folder)
            assert not error, error

    def trial(self, kind: str, number: int, seed: int) -> None:
        """Does one trial, and says how to repeat it where it is not well."""
        method, name = KINDS[kind]
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
        folder = self.home / f"{kind}-{number}" / "work"
        try:
            getattr(self, method)(name, rng, folder)
            self.well[kind] += 1
            shutil.rmtree(folder.parent)
        except (NotWellError, AssertionError) as error:
            kept = shutil.move(folder.parent, tempfile.mkdtemp(prefix="hf_dr_soak_"))
            print(f"{kind} {number} is not well: {error}\nIts files: {kept}. To repeat it:", file=sys.stderr)
            again = f"--seed {seed} --kind {kind} --first {number} --trials 1"
            print(f"    python benchmarks/soak.py {again}\n", file=sys.stderr)
        self.tried[kind] += 1

    def work(self, name: str, kept: int | None = None) -> Work:
        return partial(reinforcing, WHOLE) if name == "reinforce" else partial(training, self.plus, kept)

    def result(self, name: str, folder: Path) -> dict[str, bytes]:
        """The files whose bytes count: all of a "+" dataset, the weights of a training."""
        files = folder.rglob("[!.]*") if name == "reinforce" else folder.glob("final/*.safetensors")
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}

    def go_on(self, name: str, work: Work, folder: Path) -> None:
        """Starts the work again, without disturbing it, and compares."""
        _, error, _ = run(work, folder)
        found, whole = self.result(name, folder), self.whole[name]
        differing = [file for file in sorted(found | whole) if found.get(file) != whole.get(file)]
        if error or differing:
            raise NotWellError(error or f"{', '.join(differing)} differ from those of the undisturbed run")

    def killed(self, name: str, rng: Rng, folder: Path) -> None:
        work = self.work(name, (None, 1, 2)[rng.integers(3)])
        for _ in range(int(rng.integers(1, 4))):
            if rng.random() < 0.5:
                run(work, folder, operations=int(rng.integers(1, self.operations[name])))
            else:
                run(work, folder, seconds=float(rng.uniform(0.01, self.seconds[name])))
        self.go_on(name, work, folder)

    def full(self, name: str, rng: Rng, folder: Path) -> None:
        work = self.work(name, (None, 1, 2)[rng.integers(3)])
        largest = max(path.stat().st_size for path in self.places[name].rglob("*") if path.is_file())
        size = int(np.exp(rng.uniform(0, np.log(largest))))
        run(work, folder, bytes=size, operations=int(rng.integers(1, self.operations[name])))
        self.go_on(name, work, folder)

    def damaged(self, name: str, rng: Rng, folder: Path) -> None:
        shutil.copytree(self.places[name], folder)
        shutil.rmtree(folder / "final", ignore_errors=True)
        last = Path(str(last_checkpoint(str(folder)))) if name == "train" else folder / "all_ops"
        path = rng.choice(sorted(last.glob("*.*" if name == "train" else "*.parquet")))
        intact = self.places[name] / path.relative_to(folder)
        if rng.random() < 0.3:
            path.unlink()
        elif rng.random() < 0.5:
            os.truncate(path, int(rng.integers(path.stat().st_size)))
        else:
            flip(path, rng)
            if name == "reinforce" and reads_the_same(path, intact):
                shutil.copy(intact, path)
        if name == "reinforce":  # a shard with a damaged fingerprint may be another run's: whose it is, people must say
            _, error, _ = run(self.work(name), folder)
            if f"{path.name} must carry this run's fingerprint, found another's. Delete it, and" in error:
                path.unlink()
        self.go_on(name, self.work(name), folder)

    def together(self, name: str, rng: Rng, folder: Path) -> None:
        """Two processes on one folder, of which one may be killed; parts do their work, of others one is refused."""
        parts = name == "reinforce" and rng.random() < 0.5
        works = [partial(reinforcing, Part(n, 2)) if parts else self.work(name) for n in range(2)]
        waits = []
        for work in works:
            waits.append(begin(work, folder))
            time.sleep(float(rng.uniform(0, self.seconds[name])))
        killed = [float(rng.uniform(0.01, self.seconds[name])) if rng.random() < 0.3 else None for _ in works]
        errors = [sent[1] for sent in [wait(seconds) for wait, seconds in zip(waits, killed, strict=True)] if sent]
        refused = [error for error in errors if error]
        self.counts["processes_refused_beside_another"] += len(refused)
        if any("must not be in use" not in error or parts for error in refused) or len(refused) > 1:
            raise NotWellError("\n".join(refused))
        self.go_on(name, self.work(name), folder)

    def found(self, kind: str, rng: Rng, folder: Path) -> None:
        shutil.copytree(self.plus, folder)
        damaged = sorted(rng.choice(sorted(folder.rglob("*.parquet")), int(rng.integers(1, 3)), replace=False))
        intact = [self.plus / path.relative_to(folder) for path in damaged]
        for path, whole in zip(damaged, intact, strict=True):
            if kind == "swap":
                swap(path, rng)
            else:
                none = flip_with_effect(path, whole, rng)
                self.counts.update(f"flips_without_effect_in_{place}" for place in none)
        for path, whole in zip(damaged, intact, strict=True):
            for look, said in zip(("verify", "push"), looking(folder), strict=True):
                if re.findall(r"train-\d+-of-\d+\.parquet", said)[:1] != [path.name]:
                    raise NotWellError(f"{look} must name {path.name} first, but it said: {said or 'nothing'}")
            self.counts[f"{kind}s_found"] += 1
            shutil.copy(whole, path)

    def pushed(self, _: str, rng: Rng, folder: Path) -> None:
        way, request = faults.KINDS[rng.integers(len(faults.KINDS))]
        kind = str(rng.choice(faults.FAULTS + faults.ANSWERS))
        fault = Fault(kind, request, int(rng.integers(1, 3)), float(rng.choice([1, 3, np.inf])))
        self.push(way, fault, folder, float(rng.uniform(0.05, 1)) if rng.random() < 0.2 else None)

    def cell(self, _: str, rng: Rng, folder: Path) -> None:
        (way, request), (kind, count) = GRID[int(folder.parent.name.rpartition("-")[2]) % len(GRID)]
        fault = Fault(kind, request, faults.when(request), count)
        said = self.push(way, fault, folder)
        if not fault.reached.is_set():
            raise NotWellError(f"{kind} did not fall on {request} ({way})")
        self.counts["grid_ends_in_one_clear_error" if said else "grid_ends_well"] += 1

    def push(self, way: str, fault: Fault, folder: Path, seconds: float | None = None) -> str:
        """Pushes while there is a fault, then without; returns the first one's error."""
        HUB.reset()
        faults.prepare(HUB, way)
        HUB.faults.append(fault)
        work = partial(pushing, self.plus, way)
        first = run(work, folder, seconds)
        HUB.faults.clear()
        again, error, _ = run(work, folder)
        if first and first[1] and not faults.CLEAR.match(first[0]):
            error = f"the error is not clear: {first[1]}"
        if "hf_loopback" in (folder.parent / "log.txt").read_text(encoding="utf-8") + str(first):
            error = "the token was shown"
        if error or HUB.errors:
            raise NotWellError(f"{fault.kind} at {fault.at} ({way}): {error or HUB.errors}")
        faults.assert_whole(HUB, again, self.plus, way)
        return first[0] if first and first[1] else ""


HOW = ("killed", "full", "damaged", "together")
KINDS = {f"{name}_{how}": (how, name) for name in ("reinforce", "train") for how in HOW}
KINDS |= {"push": ("pushed", ""), "grid": ("cell", ""), "flip": ("found", "flip"), "swap": ("found", "swap")}
ONCE_OR_FOR_EVER = [(kind, count) for kind in faults.FAULTS for count in (1, np.inf)]
GRID = [(at, fault) for at in faults.KINDS for fault in ONCE_OR_FOR_EVER + [(kind, np.inf) for kind in faults.ANSWERS]]
FULL = {"flip": 1000, "swap": 200, "grid": len(GRID)}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="How long, in whole rounds of all kinds. Default: 1."
    )
    parser.add_argument("--trials", type=int, help="Number of rounds, in place of --minutes.")
    parser.add_argument(
        "--full", action="store_true", help=f"Trials of some kinds instead of rounds, this number of each: {FULL}."
    )
    parser.add_argument("--first", type=int, default=0, help="The number of the first round. Default: 0.")
    parser.add_argument("--seed", type=int, default=0, help="Default: 0.")
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=[*KINDS], help="Default: all.")
    flags = parser.parse_args()
    with common.working_folder() as home:
        HUB.start()
        soak = Soak(home)
        limits = FULL if flags.full else dict.fromkeys(KINDS, flags.trials or math.inf)
        rounds = max(limits.get(kind, 0) for kind in flags.kind)
        number, began = flags.first, time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):  # the figures so far are printed
            while number < flags.first + rounds and (
                rounds < math.inf or time.monotonic() < began + 60 * flags.minutes
            ):
                for kind in flags.kind:
                    if number < flags.first + limits.get(kind, 0):
                        soak.trial(kind, number, flags.seed)
                number += 1
    result = {kind: f"{soak.well[kind]} of {tried}" for kind, tried in soak.tried.items()}
    common.table([[*pair] for pair in result.items()], ["kind", "ended well"])
    common.finish({**result, **soak.counts, "minutes": (time.monotonic() - began) / 60}, flags)
    if soak.well != soak.tried:
        sys.exit(1)


if __name__ == "__main__":
    main()
