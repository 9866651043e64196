"""Checkpoints that are whole: the checksums of all their files are written last, and looked at before a run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_dr.errors import ConfigError
from hf_dr.files import TEMPORARY, write_whole

logger = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"
"""The last file of a checkpoint: the SHA-256 of each other one, and whether a run can go on from it."""


def write_checksums(checkpoint: Path, *, resumable: bool) -> None:
    """Completes a checkpoint with the checksums of all its files.

    Args:
        checkpoint: The folder, to which nothing else is written any more.
        resumable: Whether it holds the optimizer's state, not only the model.
    """
    files = {
        path.relative_to(checkpoint).as_posix(): _digest(path) for path in sorted(checkpoint.rglob("*")) if _own(path)
    }
    content = {"resumable": resumable, "sha256": files}
    write_whole(checkpoint / CHECKSUMS_FILE, json.dumps(content, indent=2) + "\n")


def find_damage(checkpoint: Path, *, to_go_on: bool = True) -> str | None:
    """Returns what is wrong with a checkpoint, as the end of a sentence that begins with it; None where it can be used.

    Args:
        checkpoint: Its folder.
        to_go_on: Whether it must hold the state of the optimizer, so that a run can go on from it.
    """
    try:
        content = json.loads((checkpoint / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        files = dict(content["sha256"])
        resumable = content["resumable"]
    except FileNotFoundError:
        return f"was not written completely (it has no {CHECKSUMS_FILE})"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return f"is damaged ({CHECKSUMS_FILE} cannot be read)"
    if to_go_on and not resumable:
        return "holds the model only, without the state of its optimizer (`save_only_model`)"
    for name, digest in files.items():
        path = checkpoint / name
        try:
            found = _digest(path)
        except FileNotFoundError:
            return f"is damaged ({name} is missing)"
        except OSError as error:
            return f"is damaged ({name} cannot be read: {error.strerror})"
        if found != digest:
            return f"is damaged ({name} is not what was written)"
    return None


def check_checkpoint(checkpoint: Path) -> None:
    """Checks a checkpoint that was named.

    Raises:
        ConfigError: A run cannot go on from it.
    """
    reason = find_damage(checkpoint)
    if reason is not None:
        raise ConfigError(
            f"`resume_from_checkpoint` must name a whole checkpoint, but {checkpoint} {reason}. Name an earlier one, or "
            "leave it out: the last whole checkpoint of `output_dir` is found without it."
        )


def last_checkpoint(folder: str) -> str | None:
    """Returns the last checkpoint in a folder from which a run can go on, with a warning of those that are skipped, or None."""
    numbered = {
        int(path.name.rpartition("-")[2]): path for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*[0-9]/")
    }
    for _, checkpoint in sorted(numbered.items(), reverse=True):
        reason = find_damage(checkpoint)
        if reason is None:
            return str(checkpoint)
        logger.warning("Skipping %s, which %s.", checkpoint, reason)
    return None


def _own(path: Path) -> bool:
    return path.is_file() and path.name != CHECKSUMS_FILE and not path.name.endswith(TEMPORARY)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
