"""`make demo`: reinforces the embedded Fashion-MNIST, checks and draws it, and compares students. Takes no arguments."""

import sys
from pathlib import Path

import compare

from hf_dr.cli import launch

RECIPES = Path(__file__).parent / "fashion_mnist"
PLUS = "demo/fashion-mnist-plus"
SHEET = "demo/contact_sheet.png"

STEPS = [
    ("reinforce", ["--config", str(RECIPES / "reinforce.yaml"), "--output_dir", PLUS]),
    ("verify", [PLUS, "--num_rows", "100", "--teacher", *(f"hf_dr/assets/teachers/fashion_mnist_{m}" for m in "ab")]),
    ("inspect", [PLUS, "--contact_sheet", SHEET]),
]


def main() -> int:
    """Runs the steps as a user would type them; stops at the first that fails."""
    for command, arguments in STEPS:
        print(f"\n$ hf-dr {command} {' '.join(arguments)}\n", flush=True)
        status = launch(command, arguments, f"hf-dr {command}")
        if status:
            return status
    print(
        f'\nThe "+" dataset is in {PLUS}; load_dataset("{PLUS}", "randaug") opens it. The picture is {SHEET}.\n'
        "\nNow the same student learns from the labels alone (erm) and from the stored answers (reinforced).\n"
        f"\n$ python recipes/compare.py --config {RECIPES / 'compare.yaml'}",
        flush=True,
    )
    return compare.main(["--config", str(RECIPES / "compare.yaml")])


if __name__ == "__main__":
    sys.exit(main())
