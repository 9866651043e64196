"""The soak of benchmarks/soak.py in short, and that it tells what is not well."""

import os
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"
# Both in one process, because Python's start with all libraries takes longer than what is measured.
BOTH = f"""
import sys
sys.path.insert(0, {str(SOAK.parent)!r})
import soak
sys.argv[1:] = ["--trials", "1"]
soak.main()
soak.Soak.result = lambda self, name, folder: {{str(folder): b""}}  # never twice the same
sys.argv[1:] = ["--trials", "1", "--seed", "3", "--kind", "reinforce_damaged"]
soak.main()
"""


def test_one_trial_of_each_kind_ends_well_and_what_is_not_well_is_told_with_how_to_repeat_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", BOTH],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.stdout.count('": "1 of 1"') == 12, done.stderr
    assert '"reinforce_damaged": "0 of 1"' in done.stdout
    assert done.returncode == 1
    assert "differ from those of the undisturbed run" in done.stderr
    assert "python benchmarks/soak.py --seed 3 --kind reinforce_damaged --first 0 --trials 1" in done.stderr
