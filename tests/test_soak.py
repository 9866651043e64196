"""The soak of benchmarks/soak.py in short, and that it tells what is not well."""

import os
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).parents[1] / "benchmarks" / "soak.py"


def test_one_trial_of_each_kind_ends_well():
    done = subprocess.run([sys.executable, SOAK, "--trials", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('": "1 of 1"') == 12


def test_what_is_not_well_is_told_with_how_to_repeat_it(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(SOAK.parent)!r}); import soak\n"
        "soak.Soak.result = lambda self, name, folder: {str(folder): b''}\n"  # never twice the same
        "soak.main()\n"
    )
    command = [sys.executable, "-c", script, "--trials", "1", "--seed", "3", "--kind", "reinforce_damaged"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 1
    assert "differ from those of the undisturbed run" in done.stderr
    assert "python benchmarks/soak.py --seed 3 --kind reinforce_damaged --first 0 --trials 1" in done.stderr
