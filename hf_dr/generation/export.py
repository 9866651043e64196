"""Writing a "+" dataset as WebDataset shards: tar files in which the files of one name are an example."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any

import datasets
import filelock
import numpy as np
import pyarrow as pa

from hf_dr.errors import ConfigError, FingerprintMismatchError
from hf_dr.files import (
    check_apart,
    check_writable,
    expanded,
    file_lock,
    nearest,
    remove_temporaries,
    sha256_of,
    take,
    write_whole,
    written_whole,
)
from hf_dr.generation.config import ExportConfig
from hf_dr.generation.estimate import shown_hours
from hf_dr.replay.columns import Columns
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced, opened
from hf_dr.settings import Place, check_kind
from hf_dr.store import schema
from hf_dr.store.base_dataset import sampled_rows
from hf_dr.store.card import CARD_FILE
from hf_dr.store.json_files import read_object, validated
from hf_dr.store.named_files import as_table
from hf_dr.store.shards import check_all_digests
from hf_dr.teacher.signals import IMAGE_TAIL
from hf_dr.text import counted, format_bytes, inline, progress_bar, two_columns
from hf_dr.views.images import decode_with

logger = logging.getLogger(__name__)

WRITTEN_FILE, SIZES_FILE = schema.EXPORT_FILES
_CHUNK = 256  # rows that are read at a time
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2"}  # of other formats, Pillow's name in lower case
_IN_JSON = (
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_string,
    pa.types.is_large_string,
)


def export(
    plus: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    shard_size: int | None = None,
    name: str | None = None,
    base: datasets.Dataset | str | os.PathLike[str] | None = None,
) -> Path:
    """Writes a "+" dataset as tar files that WebDataset and open_clip read, as `hf-dr export` does.

    Each example is a few files of one name: the image as it is stored, `.cls` and `.txt` (the label and its name), `.json`
    (parameters of all views, hashes, the base's own columns), and the answers to all views, `.teacher_ids.npy` and
    `.teacher_logprobs.npy`, (V, K). The same dataset gives the same bytes. Running it again resumes.

    Args:
        plus: Folder or Hub id of the "+" dataset.
        output_dir: Folder of the tar files, new or with an export that was stopped.
        shard_size: Examples in each tar file. Default: those of a shard of the "+" dataset.
        name: The configuration, where there are several.
        base: The base dataset that has the images, if `plus` is an overlay; see `load_reinforced`.

    Returns:
        The folder.

    Raises:
        ConfigError: The folder cannot be used, or the disk cannot hold the examples.
        FingerprintMismatchError: The folder holds another export.
        FormatError: A shard of the "+" dataset is damaged.
        ReplayError: An image of an overlay's base is not the one that was reinforced.
    """
    check_kind("plus", plus, (str, os.PathLike), 'the folder or Hub id of a "+" dataset', "Name it.")
    Place().check("plus", plus)
    Place().check("output_dir", output_dir)
    config = ExportConfig(os.fspath(output_dir), shard_size=shard_size)
    check_apart(config.output_dir, [os.fspath(base)] if isinstance(base, (str, os.PathLike)) else [])
    writing = WebDatasetExport(opened(load_reinforced(plus, name, base=base), None, None), config)
    writing.run()
    return writing.folder


@dataclass
class _Written:
    """The content of `WRITTEN_FILE`: of what, how it is divided, and the SHA-256 of each shard that is finished."""

    fingerprint: str
    shard_size: int
    shards: dict[str, str] = field(default_factory=dict)


class WebDatasetExport:
    """The export of a "+" dataset that was opened from its files, an overlay with its base; see `export`.

    Raises:
        ConfigError: It would be written into the dataset.
    """

    def __init__(self, plus: ReinforcedDataset, config: ExportConfig) -> None:
        self.folder = expanded(config.output_dir)
        source = plus.shards[0].parent
        # Next to a configuration are others, which a common card makes one dataset.
        check_apart(self.folder, [str(source.parent if (source.parent / CARD_FILE).is_file() else source)])
        self._plus = plus
        self._source = source
        self._slots = plus.rows.reinforced
        self._images = plus.undecoded_images.select(self._slots)
        self._answers = [schema.TEACHER_IDS, schema.TEACHER_LOGPROBS]
        if plus.signal == IMAGE_TAIL:
            self._answers += [schema.TAIL_IDS, schema.TAIL_LOGPROBS]
        others = (plus.provenance.image_column, plus.provenance.label_column)
        own = [name for name in plus.plus.column_names if not schema.is_reserved(name) and name not in others]
        types = plus.plus.features.arrow_schema
        self._own = [name for name in own if _is_of_json(types.field(name).type)]
        self._left_out = sorted(set(own) - set(self._own))
        told = [name for name in plus.plus.column_names if schema.is_reserved(name) and name not in self._answers]
        self._told = plus.plus.select_columns([*told, *self._own]).select(self._slots).with_format("arrow")
        self._columns = Columns(plus.plus, plus.provenance.num_views)
        self._class_names = plus.class_names  # which takes long to ask for
        size = config.shard_size or plus.provenance.shard_size
        self._written = _Written(plus.provenance.fingerprint, size)
        starts = range(0, len(self._slots), size)
        # The pattern of WebDataset's users: train-{00000..00011}.tar.
        self._rows = {
            f"{plus.provenance.split}-{number:05d}.tar": range(start, min(start + size, len(self._slots)))
            for number, start in enumerate(starts)
        }

    def estimate(self) -> str:
        """Returns what the export would take, from a few examples; writes nothing."""
        self._open()
        count = len(self._slots)
        began = time.monotonic()
        bytes_of_one = self._bytes_of_one()
        seconds = (time.monotonic() - began) / len(sampled_rows(count)) * count
        free = self._check_space(count * bytes_of_one)
        lines = [
            ("examples", f"{count:,}, each with {counted(self._plus.provenance.num_views, 'view')}"),
            ("shards", f"{len(self._rows):,} of {self._written.shard_size:,} examples"),
            ("bytes", f"{format_bytes(count * bytes_of_one)}, {format_bytes(free)} are free"),
            ("hours", shown_hours(seconds / 3600)),
        ]
        return two_columns(lines)

    def run(self) -> None:
        """Writes the shards that are not there, or are not what was written."""
        self._open()
        if self._left_out:
            logger.warning("Not exported, because JSON cannot hold them: the columns %s.", ", ".join(self._left_out))
        check_all_digests(self._plus.shards)
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = file_lock(self.folder / ".lock")
        try:
            take(lock)
        except filelock.Timeout:
            raise ConfigError(
                f"{self.folder} must not be in use, but another export is writing to it. Wait for it, or choose another "
                "`output_dir`."
            ) from None
        try:
            self._run()
        finally:
            lock.release()

    def _run(self) -> None:
        remove_temporaries(self.folder)
        there = self._open().shards
        kept = {
            name: digest
            for name, digest in there.items()
            if (self.folder / name).is_file() and sha256_of(self.folder / name) == digest
        }
        for name in sorted(there.keys() - kept.keys()):
            logger.warning("%s is not what was written. It is made again.", self.folder / name)
        self._written.shards = kept
        missing = [name for name in self._rows if name not in kept]
        rows = sum(len(self._rows[name]) for name in missing)
        self._check_space(rows * self._bytes_of_one())
        self._save()
        written = 0
        total = len(self._slots)
        with progress_bar(total=total, initial=total - rows, unit="example", desc="exporting") as bar:
            for number, name in enumerate(missing, 1):
                kept[name] = self._write(self.folder / name, self._rows[name], bar)
                self._save()
                written += (self.folder / name).stat().st_size
                bar.set_postfix_str(f"{number} shards, {format_bytes(written)}", refresh=False)
        sizes = {name: len(rows_of) for name, rows_of in self._rows.items()}
        write_whole(self.folder / SIZES_FILE, json.dumps(sizes, indent=1) + "\n")
        write_whole(self.folder / schema.PROVENANCE_FILE, (self._source / schema.PROVENANCE_FILE).read_bytes())
        write_whole(self.folder / "README.md", _readme(self._plus, total, len(self._rows)))
        others = ", the others were there" if len(missing) < len(self._rows) else ""
        logger.info("%s: %d of %d shards written%s.", self.folder, len(missing), len(self._rows), others)

    def _open(self) -> _Written:
        """Returns what an earlier call has written, which is nothing in a new folder; one of something else is refused."""
        check_writable(self.folder, "output_dir")
        path = self.folder / WRITTEN_FILE
        if not path.exists():
            strangers = sorted(file.name for file in self.folder.glob("[!.]*"))
            if strangers:
                raise ConfigError(
                    f"`output_dir` must be new, empty, or hold an export with its {WRITTEN_FILE}, found {strangers[0]} in "
                    f"{self.folder} without. Choose another."
                )
            return self._written
        advice = "Delete the folder, or choose another `output_dir`."
        there = validated(_Written, read_object(path, advice), str(path), advice)
        for name in ("fingerprint", "shard_size"):
            found, wanted = getattr(there, name), getattr(self._written, name)
            if found != wanted:
                raise FingerprintMismatchError(
                    f'{self.folder} must hold an export of this "+" dataset in shards of this size, but its `{name}` is '
                    f"{found!r:.80}, not {wanted!r}. Choose another `output_dir`."
                )
        # Only names that this export has: a file from elsewhere could name any file.
        return _Written(there.fingerprint, there.shard_size, {k: v for k, v in there.shards.items() if k in self._rows})

    def _save(self) -> None:
        write_whole(self.folder / WRITTEN_FILE, json.dumps(asdict(self._written), indent=1, sort_keys=True) + "\n")

    def _bytes_of_one(self) -> float:
        """Returns the mean bytes of an example in a tar file, from a few."""
        blocks = [
            sum(1 + math.ceil(len(file) / tarfile.BLOCKSIZE) for file in files.values())
            for row in sampled_rows(len(self._slots)).tolist()
            for files in self._examples(range(row, row + 1))
        ]
        return float(np.mean(blocks)) * tarfile.BLOCKSIZE

    def _check_space(self, needed: float) -> int:
        """Refuses to begin where the disk has not the bytes that are needed; returns the free ones."""
        free = shutil.disk_usage(nearest(self.folder)).free
        if needed > free:
            raise ConfigError(
                f"`output_dir` needs about {format_bytes(needed)}, found {format_bytes(free)} free. Free space, or choose "
                "another."
            )
        return free

    def _write(self, path: Path, rows: range, bar: Any) -> str:
        """Writes one shard and returns its SHA-256."""
        with written_whole(path) as temporary:
            with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
                for files in self._examples(rows):
                    for name, content in files.items():
                        member = tarfile.TarInfo(name)  # of nobody, at time 0: the same bytes wherever it is made
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                    bar.update()
            return sha256_of(temporary)

    def _examples(self, rows: range) -> Iterator[dict[str, bytes]]:
        """Yields the files of each example, by their names."""
        for start in range(rows.start, rows.stop, _CHUNK):
            stop = min(start + _CHUNK, rows.stop)
            cells = as_table(self._images, start, stop).column(0).to_pylist()
            for row, cell, told in zip(range(start, stop), cells, self._told[start:stop].to_pylist(), strict=True):
                yield self._files(int(self._slots[row]), cell, told)

    def _files(self, slot: int, cell: dict[str, Any], told: dict[str, Any]) -> dict[str, bytes]:
        """Returns the files of one example, by their names: those of an image's label only where it has one."""
        plus = self._plus
        if plus.provenance.overlay:
            plus.decode(slot)  # refuses an image of the base that is not the one that was reinforced
        key = f"{told[schema.SOURCE_INDEX]:09d}"
        image_format = str(decode_with(cell, attrgetter("format")))
        files = {_EXTENSIONS.get(image_format, image_format.lower()): cell["bytes"]}
        about: dict[str, Any] = {"id": key, schema.SOURCE_INDEX: told[schema.SOURCE_INDEX]}
        # In words: JSON's readers take whole numbers of 64 bits for others.
        hashes = (schema.IMAGE_HASH, schema.VIEWS_HASH)
        about |= {name: f"{told[name]:016x}" for name in hashes if told[name] is not None}
        if plus.has_labels:
            label = plus.stored.label(slot)
            files["cls"] = str(label).encode()
            if self._class_names:
                files["txt"] = self._class_names[label].encode()
                about["label_name"] = self._class_names[label]
        known = (*about, *self._own, *hashes)
        about |= {name: value for name, value in told.items() if name not in known}
        about["base"] = {name: _finite(told[name]) for name in self._own}
        text = json.dumps(about, ensure_ascii=False, separators=(",", ":"), default=float, allow_nan=False)
        files["json"] = text.encode()
        for name in self._answers:
            array = io.BytesIO()
            np.save(array, self._columns.cell(name, slot), allow_pickle=False)
            files[f"{name}.npy"] = array.getvalue()
        return {f"{key}.{suffix}": content for suffix, content in files.items()}


def _is_of_json(kind: pa.DataType) -> bool:
    """Whether values of a type are texts, truth values or numbers, or lists or dictionaries of them, such as boxes."""
    if pa.types.is_struct(kind):
        return all(_is_of_json(inner.type) for inner in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _is_of_json(kind.value_type)
    return any(is_kind(kind) for is_kind in _IN_JSON)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, (float, np.floating)) and not math.isfinite(value) else value


def _readme(plus: ReinforcedDataset, examples: int, shards: int) -> str:
    """Returns what the files hold, for people."""
    about = plus.provenance
    base = inline(about.base.get("id") or "a local dataset")
    teachers = ", ".join(
        f"{inline(member.get('id'))} (licence: {inline(member.get('license') or 'unknown')})"
        for member in plus.origin.teacher_members
    )
    return f"""# WebDataset shards of a reinforced dataset

{examples:,} examples of {base} in {shards} tar files. Each has V = {about.num_views} augmented views, and of the answer
to each view the K = {about.top_k} most probable of {about.num_classes} classes. The teachers: {teachers}.
The images are the base's: its licence and terms hold for them.

| file | what it holds |
|---|---|
| `KEY.jpg`, `.png`, `.webp`, ... | the image as the base has it; KEY is the row of the base |
| `KEY.cls`, `KEY.txt` | the label, and its name |
| `KEY.json` | `id`, `source_index`, `label_name`; `image_hash`, `views_hash`, in hexadecimal; `aug_...`, the parameters of \
all V views; `base`, the base's own columns |
| `KEY.teacher_ids.npy` | (V, K) whole numbers: the kept classes, most probable first |
| `KEY.teacher_logprobs.npy` | (V, K) float16: their natural log-probabilities, not renormalised |
| `KEY.tail_ids.npy`, `KEY.tail_logprobs.npy` | (T,) the same of the mean over the views, with the signal `topk_image_tail` |

`{schema.PROVENANCE_FILE}` says how views and answers were made; `docs/format.md` of hf_dr says what each parameter means,
and has the lines that replay a view with torchvision. `{SIZES_FILE}` has the number of examples in each shard, `{WRITTEN_FILE}`
the SHA-256 of each. Fingerprint of the reinforced dataset: `{about.fingerprint}`
"""
