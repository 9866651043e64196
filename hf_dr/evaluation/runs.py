"""One trained student of a comparison, as it lies in its folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_dr.errors import DataError

BASELINE = "erm"
"""The objective over which others gain."""

RUN_NOTE = "comparison_run.json"
"""What a comparison notes in a run's folder: what it is made of."""

RESULTS_FILE = "all_results.json"
STATE_FILE = "trainer_state.json"


@dataclass(frozen=True)
class Run:
    """One training: what it took, and its accuracy on the way.

    Attributes:
        seconds: Of training alone, without the evaluations on the way. A run that was resumed counts from where it went on.
        steps: Of the optimizer.
        accuracy: (share of the steps, top-1) of each evaluation.
    """

    objective: str
    seed: int
    folder: Path
    seconds: float
    steps: int
    accuracy: list[tuple[float, float]]

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
        results = json.loads((path / RESULTS_FILE).read_text(encoding="utf-8"))
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} must hold a finished training, but {error.strerror}: {error.filename}. Train it."
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path} must hold a training's JSON, but reading it failed: {error}. Train it again."
        ) from error
    try:
        steps = state["global_step"]
        history = state["log_history"]
        # By step: after training the last model is evaluated once more.
        accuracy = {entry["step"]: entry["eval_top1"] for entry in history if "eval_top1" in entry}
        curve = [(step / steps, float(top1)) for step, top1 in accuracy.items()]
        return Run(objective, seed, path, _training_seconds(results, history, steps), steps, curve)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise DataError(
            f"{path} must hold what `hf-dr train` writes, but reading it failed: {type(error).__name__}: {error}. "
            "Train it again."
        ) from error


def _training_seconds(results: dict[str, Any], history: list[dict[str, Any]], steps: int) -> float:
    """Returns the Trainer's `train_runtime` less the evaluations that it includes."""
    runtime = float(results["train_runtime"])
    # A run that was resumed counts its own steps and seconds, but its history has the evaluations before it as well. Where it
    # went on is known from its steps a second, which the Trainer rounds to 3 digits; so an evaluation there is one before it.
    rate = float(results.get("train_steps_per_second", 0))
    resumed_at = steps - runtime * (rate - 0.0005) if rate else 0
    evaluations = 0.0
    for entry in history:
        if "train_runtime" in entry:
            break  # the evaluation after training is not in it
        if entry["step"] > resumed_at:  # `eval_runtime`, or `eval_NAME_runtime` of one of several sets
            evaluations += sum(float(value) for key, value in entry.items() if re.fullmatch("eval_(.*_)?runtime", key))
    return round(max(0.0, runtime - evaluations), 4)  # as the Trainer rounds
