"""What ImageNet+ costs in GPU-hours and money, by teacher and size: the table of docs/imagenet.md, a calculation.

    python benchmarks/cost.py
    python benchmarks/cost.py --teacher timm/caformer_b36.sail_in22k_ft_in1k --ms_per_view 1.2 --price 1.8

The first takes teachers to need time in proportion to their multiply-adds, and the time of the paper's four as given by
--hours_per_view. The second takes what `hf-dr reinforce --dry_run` measured on the machine that will do it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import hf_dr.teacher.architectures  # noqa: F401 (what it registers, timm builds)
from hf_dr.text import markdown_table

ROOT = Path(__file__).parents[1]
ROWS = 1_281_167  # images of ImageNet
SIZES = {"mini": 50, "small": 100, "full": 400}  # views
LIGHT = ("timm/resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "timm/caformer_b36.sail_in22k_ft_in1k")


def teachers() -> dict[str, list[str]]:
    """Returns the members of the teachers of the table: those of two recipes, and two light ones."""
    recipes = {name: yaml.safe_load((ROOT / "recipes/imagenet" / name).read_text()) for name in (
        "reinforce.yaml", "reinforce_free.yaml",
    )}  # fmt: skip
    return {**{name: recipe["teacher"] for name, recipe in recipes.items()}, **{name: [name] for name in LIGHT}}


def multiply_adds(members: Sequence[str]) -> float:
    """Returns those of a view of 224x224 pixels, in billions, all members together. No weights are made."""
    total = 0
    for member in members:
        with torch.device("meta"), FlopCounterMode(display=False) as counted:
            timm.create_model(member.removeprefix("timm/").partition(".")[0]).eval()(torch.empty(1, 3, 224, 224))
        total += counted.get_total_flops()
    return total / 2e9


def costs(hours_per_view: float, price: float) -> list[str]:
    """Returns hours and money of each size.

    Args:
        hours_per_view: GPU-hours of a view of each image.
        price: Price of a GPU-hour.
    """
    cells = []
    for views in SIZES.values():
        hours = views * hours_per_view
        money = price * hours
        cells.append(f"{hours:,.0f}, ${round(money, -1 if money >= 100 else 0):,.0f}")
    return cells


def table(billions: dict[str, float], hours_of_reference: float, price: float) -> str:
    """Returns the table, for teachers with these multiply-adds; the first is the reference."""
    reference = next(iter(billions.values()))
    titles = [f"{size}, V = {views}" for size, views in SIZES.items()]
    rows = [
        [f"`{name}`", f"{count:.1f} billion", *costs(hours_of_reference * count / reference, price)]
        for name, count in billions.items()
    ]
    return markdown_table(["teacher", "multiply-adds", *titles], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--price", type=float, default=2.5, help="Dollars for a GPU-hour. Default: %(default)s.")
    parser.add_argument(
        "--hours_per_view", type=float, default=4.8, help="GPU-hours of the paper's four teachers for a view of each image, "
        "read off the plot of training times in apple/ml-dr's README. Default: %(default)s.",
    )  # fmt: skip
    parser.add_argument("--teacher", nargs="+", help="Another teacher, with --ms_per_view.")
    parser.add_argument(
        "--ms_per_view", type=float, help="What --dry_run says of it: milliseconds of a GPU for a view."
    )
    parser.add_argument("--json", type=Path, help="Write the multiply-adds and inputs there.")
    flags = parser.parse_args(argv)
    if (flags.teacher is None) != (flags.ms_per_view is None):
        parser.error("--teacher and --ms_per_view go together")
    if flags.teacher:
        cells = costs(ROWS * flags.ms_per_view / 3.6e6, flags.price)
        print(" + ".join(flags.teacher))
        print("\n".join(f"{size}: {cell}" for size, cell in zip(SIZES, cells, strict=True)))
        return
    billions = {name: round(multiply_adds(members), 1) for name, members in teachers().items()}
    print(table(billions, flags.hours_per_view, flags.price))
    if flags.json:
        inputs = {"price": flags.price, "hours_per_view": flags.hours_per_view}
        flags.json.write_text(json.dumps({"inputs": inputs, "billions": billions}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
