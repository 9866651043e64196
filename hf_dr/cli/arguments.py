"""What several commands take, and how they read it."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_dr.cli.config import read_yaml
from hf_dr.cli.launch import launch
from hf_dr.cli.smoke import Rehearsal, rehearsal
from hf_dr.errors import ConfigError, HfDrError
from hf_dr.processes import process_state
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.named_files import FILES_FROM_HELP
from hf_dr.store.provenance import find_config
from hf_dr.teacher.ensemble import PRECISIONS
from hf_dr.teacher.members import imagenet_synsets
from hf_dr.views.augmentation import NAMED, Augmentation


@dataclass
class BaseArguments:
    """Which dataset is reinforced."""

    dataset: str = field(
        metadata={"help": "Hub id, Parquet file, folder of Parquet files or images, or saved Dataset."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration, where it has several."})
    split: str = field(default="train", metadata={"help": "Its split."})
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the dataset on the Hub."})


@dataclass
class TeacherArguments:
    """Which teacher labels which views."""

    teacher: list[str] = field(
        metadata={
            "help": "One or several of: Hub id of a timm or transformers classifier (pin it with @revision), transformers "
            "folder, timm:ARCHITECTURE@FILE.safetensors. Probabilities of several are averaged."
        }
    )
    teacher_classes: str | None = field(
        default=None,
        metadata={
            "help": "Where the dataset has a subset of the teacher's classes: `by_name`, a timm list such as imagenet-a or "
            "imagenet-r, or a JSON file with the teacher's index (or name) for each class of the dataset."
        },
    )
    precision: str = field(default="fp32", metadata={"help": "Of the teacher.", "choices": list(PRECISIONS)})
    compile: bool = field(default=False, metadata={"help": "Compile the teacher with torch.compile."})
    augmentation: str = field(
        default="randaug",
        metadata={"help": f"One of {', '.join(NAMED)}; or a YAML file with an `augmentation` list of ops."},
    )
    size: int = field(default=224, metadata={"help": "Side in pixels of the views of a named augmentation."})


def build_augmentation(value: Any, size: int) -> Augmentation:
    """Builds the augmentation from a name, a YAML file, or a list of ops.

    Raises:
        ConfigError: It is none of these, or an op is wrong.
    """
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        content = read_yaml(value)
        if "augmentation" not in content:
            raise ConfigError(
                f"{value} must have the key `augmentation`, found {', '.join(map(str, content)) or 'nothing'}."
            )
        value = content["augmentation"]
    return Augmentation.named(value, size) if isinstance(value, str) else Augmentation.from_list(value)


def read_classes(value: str | None, names: Sequence[str] | None) -> list[Any] | None:
    """Turns `--teacher_classes` into the classes that `Teacher` takes; `names` are those of the dataset.

    Raises:
        ConfigError: It is no known word and no JSON list.
    """
    if value is None:
        return None
    if value == "by_name":
        if names is None:
            raise ConfigError(
                "`teacher_classes=by_name` needs a ClassLabel column with names, found none. Give a JSON file."
            )
        return list(names)
    if value in ("imagenet-a", "imagenet-r"):
        return imagenet_synsets(value)
    try:
        content = json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"`teacher_classes` must be `by_name`, imagenet-a, imagenet-r or a JSON file, but {value!r}: {error}."
        ) from error
    if not isinstance(content, list) or not content or len({type(c) for c in content} | {int, str}) > 2:
        raise ConfigError(f"{value} must hold a JSON list of class indices or names, found {str(content)[:60]}.")
    return content


def rehearse(argv: Sequence[str]) -> contextlib.AbstractContextManager[Rehearsal]:
    if process_state().num_processes > 1:
        raise ConfigError(f"`smoke` takes one process, got {process_state().num_processes}. Leave accelerate out.")
    return rehearsal(argv, lambda arguments: launch("reinforce", arguments, "hf-dr reinforce"))


@contextlib.contextmanager
def as_config_error() -> Iterator[None]:
    """Lets the user see what transformers has to say against the settings, without its traceback."""
    try:
        yield
    except HfDrError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help='Folder or Hub id of the "+" dataset.')
    parser.add_argument("--name", help="Its configuration, where it has several.")
    parser.add_argument("--base", help="For an overlay: the base dataset with the images, as for reinforce.")
    parser.add_argument("--base_config", help="Configuration of the base.")
    parser.add_argument("--base_revision", help="Its branch, tag or commit. Default: the one that was reinforced.")
    parser.add_argument("--files_from", nargs="+", default=[], metavar="DIR", help=FILES_FROM_HELP)
    parser.add_argument("--revision", help='Branch, tag or commit of the "+" dataset on the Hub.')


def open_reinforced(arguments: argparse.Namespace) -> ReinforcedDataset:
    names = ("base", "base_config", "base_revision", "files_from", "revision")
    return load_reinforced(arguments.path, arguments.name, **{name: getattr(arguments, name) for name in names})


def local_config(arguments: argparse.Namespace) -> Path:
    """Returns the folder of the configuration that is meant, to save findings in."""
    folder = Path(arguments.path).expanduser()
    if not folder.is_dir():
        raise ConfigError(
            f"`save` needs the dataset's folder, got {arguments.path}. Give a folder, or leave `save` out."
        )
    return find_config(folder, arguments.name).resolve()
