"""Trains one student by several objectives and seeds, evaluates them side by side, and writes the table and the report.

    python recipes/compare.py --config recipes/fashion_mnist/compare.yaml

Finished runs are kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_dr.cli import launch
from hf_dr.comparison import Comparison, compare, run_name
from hf_dr.config import parse
from hf_dr.errors import ConfigError, HfDrError
from hf_dr.replay import find_config
from hf_dr.schema import Provenance


@dataclass
class CompareConfig:
    """What is compared."""

    title: str = field(metadata={"help": "What the table and the report call it."})
    output_dir: str = field(metadata={"help": "Folder of the runs, the table and the report."})
    train: Any = field(metadata={"help": "Settings of train.py, all but objective, seed and output_dir. In YAML only."})
    evaluate: Any = field(metadata={"help": "Settings of evaluate.py, all but models and output_dir. In YAML only."})
    objectives: list[str] = field(
        default_factory=lambda: ["erm", "reinforced"], metadata={"help": "Of erm, reinforced, kd."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Each trains every objective."})
    teacher: list[str] = field(default_factory=list, metadata={"help": "For kd: as for train.py."})
    pictures: list[str] = field(default_factory=list, metadata={"help": "PNG files to show in the report."})


def run_comparison(config: CompareConfig) -> Comparison:
    """Trains what is missing, then compares.

    Raises:
        ConfigError: A training was refused.
    """
    folder = Path(config.output_dir)
    for seed in config.seeds:  # objectives in turns, so that a disturbance of the machine hits all of them
        for objective in config.objectives:
            path = folder / run_name(objective, seed)
            flags: dict[str, Any] = {**config.train, "objective": objective, "seed": seed, "output_dir": path}
            if objective == "kd" and config.teacher:
                flags["teacher"] = config.teacher
            if is_finished(path, flags):
                continue
            print(f"\n{config.title}: {path.name}", flush=True)
            status = launch("train", as_arguments(flags), "train.py")
            if status:
                raise ConfigError(f"the training in {path} must succeed, but it ended with status {status}. See above.")
    comparison = compare(config.title, folder, config.objectives, config.seeds, config.evaluate)
    page = comparison.save(folder, [Path(p) for p in config.pictures])
    print(f"\n{comparison.to_markdown()}\nreport: {page}", flush=True)
    return comparison


def is_finished(run: Path, flags: dict[str, Any]) -> bool:
    """Tells whether a run is done; notes what it is made of, so that no later comparison takes it for another.

    Raises:
        ConfigError: The folder holds a run of other settings or of another "+" dataset.
    """
    provenance = Provenance.read(find_config(Path(flags["dataset"]), flags.get("name")))
    made_of = {**{key: str(value) for key, value in flags.items()}, "fingerprint": provenance.fingerprint}
    note = run / "comparison_run.json"
    if not note.exists():
        run.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(made_of, indent=2) + "\n", encoding="utf-8")
    there = json.loads(note.read_text(encoding="utf-8"))
    differing = [key for key in made_of.keys() | there.keys() if made_of.get(key) != there.get(key)]
    if differing:
        raise ConfigError(
            f"{run} must be a run of the same settings, but it differs in {', '.join(sorted(differing))}. Remove it, or choose "
            "another `output_dir`."
        )
    return (run / "all_results.json").is_file()


def as_arguments(flags: dict[str, Any]) -> list[str]:
    """Writes settings as a command line."""
    return [
        word
        for key, value in flags.items()
        for word in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]


def main(argv: Sequence[str]) -> int:
    """Compares as the command line says."""
    try:
        (config,) = parse(
            [CompareConfig], argv, prog="compare.py", description=(__doc__ or "").split("\n", maxsplit=1)[0]
        )
        run_comparison(config)
    except HfDrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
