"""Do students learn more from easy views first, or from hard ones first? And what does it take to look up a view's rank?

    python benchmarks/view_order.py --work WORK --json view_order.json
    python benchmarks/view_order.py --view_difficulty cross_entropy --json view_order.json      # adds to it

The student, the data and the teachers are those of `benchmarks/accuracy.py` for Fashion-MNIST with a ResNet: 8 views and 8
epochs, so that with every order each view of each image is shown once, and only the order differs. Keys: `<order>_` with
`top1`, `nll`, `ece` (top-1 and ECE as fractions, NLL in nats; means over seeds) and `..._std`; for the cross-entropy
`<order>_cross_entropy_`. `lookup_us_<difficulty>`: microseconds to find the view of a rank, 400 views of 10 classes.

Finished runs in --work are kept: the same command goes on where it was stopped, and adds to the --json file.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import accuracy
import common
import synthetic

from hf_dr.evaluation.tables import numbers
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.names import DIFFICULTIES
from hf_dr.replay.view_requests import ranked_view
from hf_dr.views.augmentation import Augmentation

ORDERS = ("all", "easy_first", "hard_first")
KEYS = ("top1", "nll", "ece")
ROWS, VIEWS = 64, 400


def lookup(folder: Path, rounds: int) -> dict[str, float]:
    """Microseconds a row, the median over rounds, each over all rows."""
    images, _ = common.small_images(None, ROWS)
    augmentation = Augmentation.named("randaug", 28)
    plus = load_reinforced(synthetic.write(synthetic.with_numbers(images), augmentation, VIEWS, folder))
    found = {}
    for by in DIFFICULTIES:

        def all_rows(by: str = by) -> None:
            for row in range(ROWS):
                plus.resolved(row, ranked_view(VIEWS // 2, by))

        all_rows()  # opens the columns
        found[f"lookup_us_{by}"] = 1e6 * statistics.median(common.seconds(all_rows) for _ in range(rounds)) / ROWS
    return found


def main() -> None:
    parser = common.training_parser(__doc__)
    parser.add_argument("--view_difficulty", choices=DIFFICULTIES, default=DIFFICULTIES[0], help="As for train.py.")
    parser.set_defaults(**accuracy.USUAL, objectives=["reinforced"])
    flags = parser.parse_args()
    by = flags.view_difficulty
    result = common.earlier(flags)
    table = []
    with common.working_folder() as folder:
        result |= lookup(folder, 3 if flags.quick else 30)
    with common.working_folder(flags.work) as flags.work:
        for order in ORDERS:
            # The order of `all` knows no difficulty: one folder for both.
            name = order if order == "all" or by == DIFFICULTIES[0] else f"{order}_{by}"
            more = {} if order == "all" else {"view_difficulty": by}
            comparison = accuracy.run("fashion_mnist", "resnet", flags, f"_{name}", view_order=order, **more)
            cells: list[Any] = [name]
            for key in KEYS:
                found = numbers(comparison.values("reinforced", key))
                cells += [found["mean"], found.get("std", "")]
                result |= {f"{name}_{key}": found["mean"], "seeds": found["seeds"]}
                if "std" in found:
                    result[f"{name}_{key}_std"] = found["std"]
            table.append(cells)
            common.finish(result, flags)  # after each: a stopped run keeps what it has
    common.table(table, ["", *(column for key in KEYS for column in (key, "std"))])


if __name__ == "__main__":
    main()
