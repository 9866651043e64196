"""How commands read what their flags name: augmentations, classes and datasets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_dr.cli.config import built
from hf_dr.cli.flags import FEATURES_FILE, PlusArguments
from hf_dr.cli.smoke import Described
from hf_dr.cli.yaml_files import config_files, read_yaml
from hf_dr.errors import ConfigError, DataError
from hf_dr.files import check_writable, expanded
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.configs import find_config
from hf_dr.teacher.members import imagenet_synsets
from hf_dr.views.augmentation import Augmentation


def build_augmentation(value: Any, size: int | None) -> Augmentation:
    """Builds the augmentation from a name, with views of `size` pixels or 224, or from a list of ops or a YAML file of one.

    Raises:
        ConfigError: There is no such name or file, the ops are wrong, or their views have another size than the one given.
    """
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        content = read_yaml(value, "augmentation")
        if "augmentation" not in content:
            raise ConfigError(
                f"{value} must have the key `augmentation`, found {', '.join(map(str, content)) or 'nothing'}."
            )
        value = content["augmentation"]
    if isinstance(value, str):
        return Augmentation.named(value, 224 if size is None else size)
    augmentation = Augmentation.from_list(value)
    height, width = augmentation.size
    if size is not None and (height, width) != (size, size):
        raise ConfigError(
            f"`size` must be that of the views of a list of ops, {height}x{width}, got {size}. Leave it out, or change the ops."
        )
    return augmentation


def read_classes(value: str | None, names: Sequence[str] | None) -> list[Any] | None:
    """Turns `--teacher_classes` into the classes that `Teacher` takes; `names` are those of the dataset."""
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
        content = json.loads(expanded(value).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"`teacher_classes` must be `by_name`, imagenet-a, imagenet-r or a JSON file, but {value!r}: {error}."
        ) from error
    if not isinstance(content, list) or not content or len({type(c) for c in content} | {int, str}) > 2:
        raise ConfigError(f"{value} must hold a JSON list of class indices or names, found {str(content)[:60]}.")
    return content


def check_rows(argv: Sequence[str], name: str, split: str, rows: int, *, at_most: bool = False) -> None:
    """Refuses a dataset that was loaded whose split has another size than the recipe among a command's arguments says.

    With `at_most` fewer rows are a part on purpose.
    """
    described = Described.find(config_files(argv))
    if described is None:
        return
    expected = described.splits.get(split, rows)  # a slice, such as `train[:1000]`, is a part on purpose
    if rows > expected or (rows < expected and not at_most):
        raise DataError(
            f"the split `{split}` of {name} must have {expected:,} rows, as {described.folder / FEATURES_FILE} says of "
            f"{described.dataset}, found {rows:,}. Name that dataset or a copy with the same splits. For another dataset, copy "
            f"the recipe to a folder without {FEATURES_FILE}."
        )


def open_reinforced(path: str, arguments: Any) -> ReinforcedDataset:
    """Opens the "+" dataset that the arguments of a command name, among which are those of `PlusArguments`."""
    return load_reinforced(path, **vars(built(PlusArguments, vars(arguments))))


def local_config(path: str, name: str | None) -> Path:
    """Returns the folder of the configuration that is meant, to save findings in: it can be written to."""
    folder = expanded(path)
    if not folder.is_dir():
        raise ConfigError(f"`save` needs the dataset's folder, got {path}. Give a folder, or leave `save` out.")
    config = find_config(folder, name).resolve()
    check_writable(config, "save")
    return config
