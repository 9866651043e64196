"""What an evaluation had measured when it was stopped: the same command goes on after it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_dr.files import write_json
from hf_dr.store.json_files import read_object, validated

logger = logging.getLogger(__name__)

UNFINISHED_FILE = "evaluation.unfinished.json"
_ADVICE = "Delete it: what it holds is measured again."


@dataclass
class _Content:
    """The metrics of a model on images of one corruption, by the hash of all that determines them."""

    metrics: dict[str, dict[str, float]]


class Unfinished:
    """Metrics that are kept in a file of a folder until the evaluation is done; None keeps them in memory only."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = None if folder is None else folder / UNFINISHED_FILE
        self.metrics: dict[str, dict[str, float]] = {}
        self._taken: set[str] = set()
        if self._path is not None and self._path.exists():
            self.metrics = validated(_Content, read_object(self._path, _ADVICE), str(self._path), _ADVICE).metrics
            logger.info("%s has %d measurements of an evaluation that was stopped.", self._path, len(self.metrics))

    def keep(self, metrics: Mapping[str, dict[str, float]]) -> None:
        """Takes in measurements, and writes the file."""
        self.metrics |= metrics
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, {"metrics": self.metrics})

    def take(self, key: str) -> dict[str, float]:
        """Returns a measurement, which the report will hold."""
        self._taken.add(key)
        return self.metrics[key]

    def done(self) -> None:
        """Removes what was taken, since the report is written; the file stays where another evaluation was stopped as well."""
        if self._path is None:
            return
        left = {key: metrics for key, metrics in self.metrics.items() if key not in self._taken}
        if left:
            logger.info("%s keeps %d measurements of another evaluation that was stopped.", self._path, len(left))
            write_json(self._path, {"metrics": left})
        else:
            self._path.unlink(missing_ok=True)
