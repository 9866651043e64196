"""`make demo`: reinforces the embedded Fashion-MNIST, checks and draws it, and compares students. Takes no arguments."""

import sys
from pathlib import Path

from hf_dr.cli.launch import run_step

RECIPES = Path(__file__).parent / "fashion_mnist"
PLUS = "demo/fashion-mnist-plus"
SHEET = f"{PLUS}/randaug/contact_sheet.png"
TEACHERS = [f"hf_dr/assets/teachers/fashion_mnist_{member}" for member in "ab"]

REINFORCE = [
    ("reinforce", ["--config", str(RECIPES / "reinforce.yaml"), "--output_dir", PLUS]),
    ("verify", [PLUS, "--num_rows", "100", "--save", "--teacher", *TEACHERS]),
    ("inspect", [PLUS, "--save"]),
]
COMPARE = [("compare", ["--config", str(RECIPES / "compare.yaml")])]


def run(steps: list[tuple[str, list[str]]]) -> None:
    """Runs commands as a user would type them; ends the program at the first that fails."""
    for command, arguments in steps:
        status = run_step(command, arguments)
        if status:
            sys.exit(status)


if __name__ == "__main__":
    run(REINFORCE)
    print(f'\nThe "+" dataset is in {PLUS}; load_dataset("{PLUS}", "randaug") opens it. The picture is {SHEET}.')
    print("\nNow the same student learns from the labels alone (erm) and from the stored answers (reinforced).")
    run(COMPARE)
