"""What `inspect` says of the "+" datasets of benchmarks/accuracy.py: the signs that the docs compare with the gains.

    python benchmarks/signs.py --data DATA --weights WEIGHTS --work WORK --json signs.json
    python benchmarks/signs.py --sets fashion_mnist                  # without --data and --weights

Makes teachers and "+" datasets as benchmarks/accuracy.py does, and trains no student. Keys: `<set>_` with `agreement` (share of
views whose most probable class is the label), `ece`, `nll` (nats), `entropy` (nats) and `classes`. Sets that are in the --json
file stay there: the same command may be run for one set after the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import accuracy
import common

from hf_dr.generation.inspection import inspect_dataset


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--work", type=Path, help="Folder of the datasets; kept. Default: a temporary one.")
    parser.add_argument("--sets", nargs="+", choices=list(accuracy.CASES), default=["fashion_mnist"])
    parser.add_argument("--teachers", choices=accuracy.TEACHERS, help="As for accuracy.py.")
    parser.add_argument("--small", action="store_true", help="As for accuracy.py.")
    parser.set_defaults(**accuracy.USUAL)  # as the students in accuracy.json had it
    flags = parser.parse_args()
    result: dict[str, Any] = {}
    if flags.json is not None and flags.json.exists():
        result = json.loads(flags.json.read_text(encoding="utf-8"))
    with common.working_folder() as folder:
        flags.work = flags.work or folder
        for name in flags.sets:
            plus, _ = accuracy.reinforced(name, accuracy.case_of(name, flags), flags)
            prefix = f"{name}{accuracy.suffix(flags)}"
            found = inspect_dataset(plus)
            assert found.labels is not None
            result[f"{prefix}_classes"] = found.provenance.num_classes
            result[f"{prefix}_entropy"] = found.entropy
            for key in ("agreement", "ece", "nll"):
                result[f"{prefix}_{key}"] = getattr(found.labels, key)
            common.finish(result, flags)  # after each: a stopped run keeps what it has


if __name__ == "__main__":
    main()
