"""Which configurations a folder or a repository holds, and which of them is meant."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from hf_dr.errors import ConfigError, FormatError, did_you_mean
from hf_dr.store.schema import EXPORT_FILES, PROVENANCE_FILE


def find_config(folder: Path, name: str | None = None) -> Path:
    """Returns the folder of one configuration of a local "+" dataset.

    Raises:
        FormatError: The folder holds no "+" dataset.
        ConfigError: The configuration does not exist, or none is named and there are several.
    """
    names = config_names(folder)
    if name is None and (folder / PROVENANCE_FILE).is_file():
        return folder  # the configuration's own folder was named
    return folder / choose_config(name, names, str(folder))


def choose_config(name: str | None, names: Sequence[str], where: str) -> str:
    """Returns `name`, or the only one of `names`; `where` they were found stands in messages.

    Raises:
        FormatError: There is none at all.
        ConfigError: `name` is not among them, or none is named and there are several.
    """
    if not names:
        raise FormatError(
            f'{where} must hold a "+" dataset, but no folder in it has a {PROVENANCE_FILE}. Check the path, or make one '
            "of these images by `hf-dr reinforce`."
        )
    if name is None and len(names) > 1:
        raise ConfigError(f"{where} has several configurations; name one of {', '.join(names)}.")
    if name is not None and name not in names:
        raise ConfigError(f"{where} has no configuration `{name}`.{did_you_mean(name, names)}")
    return name or names[0]


def config_names(folder: Path) -> list[str]:
    """Returns the names of the configurations in a folder, sorted, begun ones included.

    Raises:
        FormatError: The folder is an export.
    """
    names = (PROVENANCE_FILE, *EXPORT_FILES)
    files = [file for name in names for pattern in (name, f"*/{name}") for file in folder.glob(pattern)]
    return read_config_names([file.relative_to(folder).as_posix() for file in files], str(folder))


def read_config_names(files: Collection[str], where: str) -> list[str]:
    """Same as `config_names`, from the paths of the files in a folder or repository, which messages call `where`."""
    if _is_export(files, ""):
        raise FormatError(
            f'a "+" dataset must be in Parquet files, found the tar files of `hf-dr export` in {where}. Name the "+" dataset '
            "of which they were made. The package `webdataset` reads them: their README.md says what they hold."
        )
    return configs_among(files)


def configs_among(files: Collection[str]) -> list[str]:
    """Returns the names of the configurations among files, sorted; an export, which has a provenance, too, is none."""
    ending = f"/{PROVENANCE_FILE}"
    names = [file.removesuffix(ending) for file in files if file.endswith(ending) and file.count("/") == 1]
    return sorted(name for name in names if not _is_export(files, f"{name}/"))


def _is_export(files: Collection[str], folder: str) -> bool:
    return all(f"{folder}{name}" in files for name in EXPORT_FILES)
