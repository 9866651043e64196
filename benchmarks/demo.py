"""What the students of `make demo` reach on labels and on stored answers, by what the demo has left in its folder `demo`.

    make demo && python benchmarks/demo.py --json demo.json

Keys: `<objective>_` with a metric of `hf-dr compare`, and `<metric>_gain`, what `reinforced` gains over `erm`. Metrics are
shares, NLL in nats; means over `seeds`, with `..._std`. Times are left out: they depend on what else the machine does.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import common

COMPARISON = Path("demo") / "comparison" / "comparison.json"
PREFIX = "comparison_"


def main() -> None:
    flags = common.parser(__doc__).parse_args()
    if not COMPARISON.is_file():
        sys.exit(f"expected {COMPARISON}, found none. Run `make demo` in this folder first.")
    found = json.loads(COMPARISON.read_text(encoding="utf-8"))
    kept = [key for key in found if key.startswith(PREFIX) and "seconds" not in key]
    common.finish({key.removeprefix(PREFIX): found[key] for key in kept}, flags)


if __name__ == "__main__":
    main()
