"""Rewrites what is frozen, on purpose: `python tests/frozen/make.py surface` or `plus`, or both.

`surface` are the public names, flags and recipes: rewrite it when one of them is added or changed, and read the difference.
`plus` are the hashes of the "+" datasets: another hash is another format, and needs a reason.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

# Before the libraries are imported.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TQDM_DISABLE="1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import datasets

from tests.frozen.plus import build, freeze, versions
from tests.frozen.surface import SURFACE

HERE = Path(__file__).parent
KINDS = ("surface", "plus")


def main(kinds: list[str]) -> None:
    """Rewrites the files of these kinds."""
    if not kinds or not set(kinds) <= set(KINDS):
        sys.exit(f"expected {' or '.join(KINDS)}, or both, got {' '.join(kinds) or 'none'}")
    if "surface" in kinds:
        for name, write in SURFACE.items():
            (HERE / name).write_text(write(), encoding="utf-8")
    if "plus" in kinds:
        with tempfile.TemporaryDirectory() as folder, versions():
            datasets.config.HF_DATASETS_CACHE = Path(folder, "cache")
            build(Path(folder, "made"))
            text = json.dumps(freeze(Path(folder, "made")), indent=2) + "\n"
        (HERE / "plus.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
