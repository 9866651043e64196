"""One trained student of a comparison, as it lies in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from hf_dr.errors import DataError

BASELINE = "erm"


RUN_NOTE = "comparison_run.json"
"""What a comparison notes in a run's folder: what it is made of."""


@dataclass(frozen=True)
class Run:
    """One training: what it took, and its accuracy on the way."""

    objective: str
    seed: int
    folder: Path
    seconds: float
    steps: int
    accuracy: list[tuple[float, float]]  # (share of the steps, top-1)

    @property
    def name(self) -> str:
        """Names the run in tables and folders."""
        return run_name(self.objective, self.seed)


def run_name(objective: str, seed: int) -> str:
    """Returns the folder of a run within the comparison's."""
    return f"{objective}-{seed}"


def read_run(folder: Path, objective: str, seed: int) -> Run:
    """Reads a run of a comparison; see `read_training`."""
    return read_training(folder / run_name(objective, seed), objective, seed)


def read_training(path: Path, objective: str, seed: int) -> Run:
    """Reads what `hf-dr train` left in a folder.

    Raises:
        DataError: The run is not there or not finished.
    """
    try:
        results = json.loads((path / "all_results.json").read_text(encoding="utf-8"))
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} must hold a finished training, but {error.strerror}: {error.filename}. Train it."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} must hold a training's JSON, but reading it failed: {error}. Train it anew."
        ) from error
    try:
        steps = state["global_step"]
        # By step: after training the last model is evaluated once more.
        accuracy = {entry["step"]: entry["eval_top1"] for entry in state["log_history"] if "eval_top1" in entry}
        curve = [(step / steps, float(top1)) for step, top1 in accuracy.items()]
        return Run(objective, seed, path, float(results["train_runtime"]), steps, curve)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise DataError(
            f"{path} must hold what `hf-dr train` writes, but reading it failed: {type(error).__name__}: {error}. "
            "Train it anew."
        ) from error
