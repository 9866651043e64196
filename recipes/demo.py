"""`make demo`: reinforces some of the embedded Fashion-MNIST, checks and draws it, and compares students. Takes no arguments.

Prints a line for each phase; what the commands themselves print is in demo/log.txt.
"""

import json
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

from hf_dr.cli.launch import launch

RECIPES = Path(__file__).parent / "fashion_mnist"
FOLDER = Path("demo")
PLUS = FOLDER / "fashion-mnist-plus"
TEACHERS = [f"hf_dr/assets/teachers/fashion_mnist_{member}" for member in "ab"]
# As many images as let two CPU cores do all of it in minutes.
REINFORCE = f"--config {RECIPES}/reinforce.yaml --max_examples 3000 --output_dir {PLUS}"
STEPS = [
    ("two teachers answer for 8 views of each of 3,000 images", "reinforce", REINFORCE),
    (
        "views are replayed, and the teachers asked again",
        "verify",
        f"{PLUS} --num_rows 100 --save --teacher {' '.join(TEACHERS)}",
    ),
    ("statistics of the answers, and a picture", "inspect", f"{PLUS} --save"),
    ("students learn from labels (erm) or stored answers (reinforced)", "compare", f"--config {RECIPES}/compare.yaml"),
]


def main() -> None:
    """Runs the commands as a user would type them; ends the program at the first that fails."""
    began = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "log.txt").open("w", encoding="utf-8") as log:
        for what, command, arguments in STEPS:
            print(f"[{time.monotonic() - began:3.0f} s] {what}\n$ hf-dr {command} {arguments}", flush=True)
            with redirect_stdout(log):
                status = launch(command, arguments.split(), f"hf-dr {command}")
            if status:
                sys.exit(status)
            if command == "inspect":
                found = json.loads((PLUS / "randaug" / "statistics.json").read_text(encoding="utf-8"))
                share = f"{100 * found['agreement']:.1f} % of the views"
                print(f"The teachers' first class is the label in {share}. Picture: {PLUS}/randaug/contact_sheet.png")
    table = (FOLDER / "comparison" / "comparison.md").read_text(encoding="utf-8")
    print(f"[{time.monotonic() - began:3.0f} s] done\n\n{table}\nReport: {FOLDER}/comparison/report.html", flush=True)


if __name__ == "__main__":
    main()
