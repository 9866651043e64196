"""Publishing a trained student: only the files that belong to it, in the layout that transformers and timm both read."""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from hf_dr.errors import FormatError
from hf_dr.files import expanded
from hf_dr.hub.repository import Push, Repository, publish, warn_of_unsent
from hf_dr.store.card import CARD_FILE, read_card
from hf_dr.training.student_card import GENERATED_KEYS, STUDENT_FILE, Student, update_student_card
from hf_dr.training.student_inputs import is_timm
from hf_dr.training.students import EMA_FILE, complete_config, native_names

logger = logging.getLogger(__name__)

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_METRICS_FILE = "eval_results.json"
# What a student may consist of: of this, what a push does not bring is a former student's.
_OWN = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|pytorch_model[^/]*|"
    + "|".join(map(re.escape, ("config.json", *_PROCESSOR_FILES, _METRICS_FILE, STUDENT_FILE)))
)
_PLAIN_CARD = """---
library_name: transformers
pipeline_tag: image-classification
---

# {name}
"""


def weight_files(folder: Path) -> list[Path]:
    """Returns the files with the weights of a student in a folder, which may be several."""
    return sorted(folder.glob("model*.safetensors"))


def holds_model(folder: Path) -> bool:
    """Whether a folder holds weights and the configuration by which transformers loads them."""
    return bool(weight_files(folder)) and (folder / "config.json").is_file()


def is_student(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a model rather than a "+" dataset.

    Raises:
        FormatError: It holds only checkpoints of a training, and so will hold a model; or a model that is not of transformers.
    """
    folder = expanded(folder)
    if holds_model(folder):
        return True
    if any(folder.glob("checkpoint-*")):
        if weight_files(folder):
            raise FormatError(
                f"{folder} must hold a student that transformers loads, but its weights have no config.json. Train a model of "
                "transformers, such as `build_student` returns; what `hf-dr detect` or `segment` has trained is pushed by its "
                "own command, with `--push_to_hub` added."
            )
        raise FormatError(
            f"{folder} must hold a trained student, found only checkpoints of a training that has not ended. Run the same "
            "command again to its end, or name a checkpoint."
        )
    return False


def export_student(folder: str | os.PathLike[str], out: str | os.PathLike[str], *, ema: bool = False) -> None:
    """Writes the files of a student that are published, without the card: config, weights, image processor, metrics.

    The model is loaded as its users will load it. No state of the training is taken along, nothing that is a pickle.

    Args:
        folder: The folder of a trained student, or of a checkpoint.
        out: Folder to write to.
        ema: Take the averaged weights.

    Raises:
        FormatError: The folder holds no classifier of transformers in safetensors, or no averaged weights.
    """
    folder = expanded(folder)
    out = Path(out)
    if not is_student(folder):
        raise FormatError(
            f"{folder} must hold a trained student, config.json and model.safetensors, found none. Name the `output_dir` of a "
            "training."
        )
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            str(folder.resolve()), use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise FormatError(
            f"{folder} must hold an image classifier that transformers loads, but {type(error).__name__}: {str(error)[:300]}. "
            "Save it again."
        ) from error
    wrong = sorted(str(name) for names in report.values() for name in names)
    if wrong:
        raise FormatError(
            f"the weights in {folder} must be those of its config.json, but {wrong[0]} is not. Save it again."
        )
    if ema:
        if not (folder / EMA_FILE).is_file():
            raise FormatError(f"{folder} must hold {EMA_FILE} for `ema`, found none. Train with `ema_decay`.")
        try:
            model.load_state_dict(load_file(folder / EMA_FILE))
        except (RuntimeError, SafetensorError) as error:
            raise FormatError(
                f"{EMA_FILE} in {folder} must fit its model, but: {error!s:.300}. Train again."
            ) from error
    if is_timm(model):
        complete_config(model)
        model.save_pretrained(out, state_dict=native_names(model.state_dict()))
    else:
        model.save_pretrained(out)
        if not any((folder / name).is_file() for name in _PROCESSOR_FILES):
            logger.warning("%s has no image processor: nobody will know how to show it images. Save one there.", folder)
    for name in (*_PROCESSOR_FILES, _METRICS_FILE, STUDENT_FILE):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)


def push_student(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    ema: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: Sequence[str] = (),
    commit_message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Pushes a trained student and its card to a model repository, in one commit; one process alone does it.

    Text that people wrote into the card stays; files of a former student there that this one does not have go.

    Args:
        folder: `output_dir` of a training, or any folder with an image classifier of transformers.
        repo_id: `owner/name`; it is made if it is not there.
        ema: Publish the averaged weights (`ema_decay`) in place of the last ones, with their metrics.
        commit_message: Default: it names the student.
        private, revision, create_pr, tags, token, dry_run: See `push_to_hub`.

    Raises:
        FormatError: See `export_student`; or `student.json` or the card is damaged.
        ConfigError: A setting is impossible.
        HubError: The Hub refuses, or does not answer after all retries. Nothing was published, or all of it.
    """
    folder = expanded(folder)
    student = Student.read(folder)
    written = read_card(folder / CARD_FILE)
    if student is None and written is None:
        logger.warning(
            "%s has no card: its teachers, data and results will not be told. A training writes one at its end.", folder
        )

    repository = Repository(repo_id, "model", revision, token)

    @functools.cache  # each attempt asks again
    def card(remote: str | None) -> str:
        if student is not None:
            if remote is not None and written is not None:
                warn_of_unsent(written, remote, GENERATED_KEYS, repo_id)
            return update_student_card(remote or written, student, repo_id, revision=repository.named_revision, ema=ema)
        return written or remote or _PLAIN_CARD.format(name=repo_id.rpartition("/")[2])

    with tempfile.TemporaryDirectory(prefix="hf_dr_student_") as out:
        export_student(folder, out, ema=ema)
        return publish(
            repository,
            {path.name: path for path in sorted(Path(out).iterdir())},
            card,
            stale=lambda path: _OWN.fullmatch(path) is not None,
            private=private,
            create_pr=create_pr,
            tags=tags,
            message=commit_message or f"Push the student {folder.resolve().name}{' (averaged weights)' if ema else ''}",
            dry_run=dry_run,
            alone=True,
        )


def push_in_background(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    card_from: str | os.PathLike[str],
    warn: bool = False,
    **settings: Any,
) -> Future[Push]:
    """Pushes a student as it is now, in a thread of its own: its folder may change or be deleted in the meantime.

    The student's card and `student.json` are in another folder, `card_from`, where `folder` is a checkpoint. `warn` logs a
    failure of the thread, for callers that do not look at the result. The settings are those of `push_student`.
    """
    with ExitStack() as made:
        copy = made.enter_context(tempfile.TemporaryDirectory(prefix="hf_dr_push_"))
        export_student(folder, copy)
        for name in (CARD_FILE, STUDENT_FILE):
            path = Path(card_from, name)
            if path.is_file():
                shutil.copyfile(path, Path(copy, name))
        kept = made.pop_all()

    def push() -> Push:
        with kept:
            try:
                return push_student(copy, repo_id, **settings)
            except Exception as error:
                if warn:
                    warn_of_failure(error)
                raise

    return HfApi().run_as_future(push)


def warn_of_failure(error: Exception) -> None:
    """Says why a push failed that must not end its training."""
    logger.warning("A push during the training failed: %s", error)
