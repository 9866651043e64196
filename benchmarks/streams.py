"""What a stream reads: where an epoch goes on, with V = 400 views in one dataset or in eight, and of a base that comes along.

    python benchmarks/streams.py --data DATA

Photos of 500x375 pixels, JPEG of quality 90, with `randaug` and made-up answers, in shards of 64 rows, streamed from the disk
by one process without workers. Bytes and rows are those of the Parquet column chunks that are read.

`whole_mb`, `whole_rows`: read in an epoch. `resume_10_*`, `resume_90_*`: an epoch that goes on after 10 and 90 % of its
batches: seconds to its first batch, MB and rows read until its end, and images decoded. `skip_10_s`, `skip_90_s`: seconds to
the same batch where all before it are read and thrown away, as Trainer does with a stream that cannot seek.
`resume_over_skip_*`: the time of the one over that of the other, the median over rounds.
An epoch of an overlay of V = 400 views, which needs one view of each row, without the images, in shards of 512 rows, from the
disk and (`_http`) from the tests' Hub on 127.0.0.1, all bytes of files that were sent and the requests for them:
`one_*`: one dataset; `eight_*`: mean over 8 epochs of eight datasets of V = 50 that are streamed together, which have as many
views; `one_over_eight_*`: the first over the second. What other layouts of the one dataset would read: `pages_mb`: with a page
index and pages of 8 kB, of which those that hold a wanted view are read, which is each; `blocks_mb`: with eight columns of 50
views in place of each column; `places_mb`, `places_requests`: neither encoded nor compressed, each cell asked for by its place.
`base_mb`: images read in an epoch of an overlay from the Parquet file of its base, whose row groups have 6 rows, which are to
shards of 64 as 100 are to 1,024; `base_over_images`: that over the images' own bytes.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import common
import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import synthetic
from huggingface_hub.hf_file_system import HfFileSystemFile
from push import TOKEN, serving

from hf_dr.replay import dataset as replayed
from hf_dr.replay import streamed_base, streamed_shards
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.store.shards import ROW_GROUP_VIEWS, ZSTD_LEVEL, column_compression
from hf_dr.views.augmentation import Augmentation

SIDE, BATCH, SHARD, LARGE_SHARD, VIEWS, PARTS = 224, 16, 64, 512, 400, 8
PHOTO = (500, 375)


class Read:
    """What was read while it was watched."""

    def __init__(self) -> None:
        self.bytes = self.rows = self.decoded = 0


class Watched:
    """A Parquet file that counts the column chunks that are read from it."""

    def __init__(self, file: pq.ParquetFile, read: Read) -> None:
        self._file, self._read = file, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read_row_group(self, number: int, columns: list[str], **settings: Any) -> Any:
        group = self._file.metadata.row_group(number)
        chunks = [group.column(n) for n in range(group.num_columns)]
        self._read.rows += group.num_rows
        self._read.bytes += sum(c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)
        return self._file.read_row_group(number, columns, **settings)


@contextmanager
def watching() -> Iterator[Read]:
    """Counts what is read from Parquet files, and the images that are decoded."""
    read = Read()
    with_parquet, decode = streamed_shards.with_parquet, replayed.decode_row

    def watched(file: str, take: Any) -> Any:
        return with_parquet(file, lambda parquet: take(Watched(parquet, read)))

    def decoded(*args: Any) -> Any:
        read.decoded += 1
        return decode(*args)

    with (
        patch.object(streamed_shards, "with_parquet", watched),
        patch.object(streamed_base, "with_parquet", watched),
        patch.object(replayed, "decode_row", decoded),
    ):
        yield read


@contextmanager
def sending() -> Iterator[list[int]]:
    """Collects the bytes of each answer with which the Hub sends a part of a file."""
    sent: list[int] = []
    fetch = HfFileSystemFile._fetch_range

    def counted(self: HfFileSystemFile, start: int, end: int) -> bytes:
        content = fetch(self, start, end)
        sent.append(len(content))
        return content

    with patch.object(HfFileSystemFile, "_fetch_range", counted):
        yield sent


def epochs_of(stream: StreamedReinforcedDataset, name: str, count: int) -> dict[str, float]:
    """Mean over some epochs: megabytes of column chunks, and of what the Hub sent, if it is asked at all."""
    with sending() as sent:
        chunks = statistics.mean(epoch_of(stream, epoch).bytes for epoch in range(count)) / 1e6
    if not sent:
        return {f"{name}_mb": chunks}
    return {f"{name}_http_mb": sum(sent) / 1e6 / count, f"{name}_http_requests": len(sent) / count}


def layouts(shards: list[Path], folder: Path) -> dict[str, float]:
    """What one view of each row would take in other layouts of the same shards."""
    pages = blocks = places = 0.0
    requests = 0
    for path in shards:
        table = pq.read_table(path)
        pages += _chunks(table, folder / "pages.parquet", write_page_index=True, data_page_size=8192)
        parts = {name: _blocks(table.column(name)) for name in table.column_names}
        # Every block of a column is read equally often.
        blocks += sum(
            _chunks(pa.table({name: part}), folder / "block.parquet") / len(all_parts)
            for name, all_parts in parts.items()
            for part in all_parts
        )
        for name, all_parts in parts.items():
            in_lists = len(all_parts) > 1
            places += table.column(name).nbytes / (VIEWS if in_lists else 1)
            requests += len(table) if in_lists else 1
    return {"pages_mb": pages / 1e6, "blocks_mb": blocks / 1e6, "places_mb": places / 1e6, "places_requests": requests}


def _blocks(column: pa.ChunkedArray) -> list[pa.Array]:
    """A column of V views in blocks of V / 8; another one as it is."""
    array = column.combine_chunks()
    if not pa.types.is_fixed_size_list(array.type):
        return [array]
    views = np.arange(len(array) * VIEWS).reshape(len(array), PARTS, VIEWS // PARTS)
    return [
        pa.FixedSizeListArray.from_arrays(array.flatten().take(pa.array(views[:, part].ravel())), VIEWS // PARTS)
        for part in range(PARTS)
    ]


def _chunks(table: pa.Table, path: Path, **settings: Any) -> int:
    """Writes a table as shards are written; returns the bytes of its column chunks."""
    leaves = column_compression(datasets.Features.from_arrow_schema(table.schema))
    encodings = {}
    for leaf, dtype in zip(leaves, table.schema.types, strict=True):
        value = dtype
        while pa.types.is_fixed_size_list(value):
            value = value.value_type
        encodings[leaf] = "PLAIN" if value in (pa.bool_(), pa.float16()) else "BYTE_STREAM_SPLIT"
    settings = {"compression": "zstd", "compression_level": ZSTD_LEVEL, "data_page_size": 1 << 22, **settings}
    rows = max(1, ROW_GROUP_VIEWS // VIEWS)
    pq.write_table(
        table, path, rows, column_encoding=encodings, use_dictionary=False, write_statistics=False, **settings
    )
    return common.column_bytes(path).total()


def epoch_of(stream: StreamedReinforcedDataset, epoch: int = 0) -> Read:
    stream.set_epoch(epoch)
    with watching() as read:
        for _ in stream:
            pass
    return read


def resuming(folder: Path, share: float, rounds: int) -> dict[str, float]:
    """An epoch that goes on after a share of its batches."""

    def opened() -> StreamedReinforcedDataset:
        return load_reinforced(folder, streaming=True)

    whole = opened().split_by_node(0, 1, batch_size=BATCH)
    batches = int(share * len(whole)) // BATCH
    progress = whole.progress(batches)
    name = f"{100 * share:.0f}"

    def seek() -> float:
        left = opened().resumed(progress).split_by_node(0, 1, batch_size=BATCH)
        return common.seconds(lambda: list(itertools.islice(left, BATCH)))

    def skip() -> float:
        rows = opened()
        return common.seconds(lambda: list(itertools.islice(rows, batches * BATCH, (batches + 1) * BATCH)))

    times = common.in_turns({"seek": seek, "skip": skip}, rounds, warm_up=0)
    read = epoch_of(opened().resumed(progress))
    return {
        f"resume_{name}_s": statistics.median(times["seek"]),
        f"skip_{name}_s": statistics.median(times["skip"]),
        f"resume_over_skip_{name}": common.median_ratio(times["seek"], times["skip"]),
        f"resume_{name}_mb": read.bytes / 1e6,
        f"resume_{name}_rows": read.rows,
        f"resume_{name}_decoded": read.decoded,
        f"left_{name}_rows": len(whole) - batches * BATCH,
    }


def main() -> None:
    flags = common.parser(__doc__).parse_args()
    rows, rounds = (2 * SHARD, 1) if flags.quick else (8 * SHARD, 3)
    photos, data = common.photos(flags.data, rows)
    result: dict[str, Any] = {
        "data": data,
        "rows": rows,
        "shard_rows": SHARD,
        "rounds": rounds,
        "batch": BATCH,
        "views": VIEWS,
    }
    augmentation = Augmentation.named("randaug", SIDE)
    with common.working_folder() as folder:
        base = synthetic.jpegs(photos, PHOTO, folder)
        file = folder / "images.parquet"
        base.to_parquet(file, batch_size=6)

        def write(name: str, views: int, shard_size: int = SHARD, **settings: Any) -> Path:
            return synthetic.write(base, augmentation, views, folder / name, shard_size=shard_size, **settings)

        embedded = write("embedded", VIEWS // PARTS)
        whole = epoch_of(load_reinforced(embedded, streaming=True))
        result |= {"whole_mb": whole.bytes / 1e6, "whole_rows": whole.rows}
        for share in (0.1, 0.9):
            result |= resuming(embedded, share, rounds)
        large = {"overlay": True, "shard_size": LARGE_SHARD}
        one = write("one", VIEWS, **large)
        eight = [write(f"part{seed}", VIEWS // PARTS, seed=seed, **large) for seed in range(PARTS)]
        result |= layouts(sorted(one.rglob("*.parquet")), folder)
        api = huggingface_hub.HfApi()
        for name, folders, count in (("one", [one], 1), ("eight", eight, PARTS)):
            result |= epochs_of(load_reinforced(folders, base=base, streaming=True), name, count)
            for path in folders:
                api.create_repo(f"org/{path.parent.name}", repo_type="dataset")
                api.upload_folder(folder_path=path.parent, repo_id=f"org/{path.parent.name}", repo_type="dataset")
            there = [f"org/{path.parent.name}" for path in folders]
            result |= epochs_of(load_reinforced(there, base=base, streaming=True), name, count)
        for way in ("mb", "http_mb"):
            result[f"one_over_eight_{way}"] = result[f"one_{way}"] / result[f"eight_{way}"]
        result["blocks_over_eight"] = result["blocks_mb"] / result["eight_mb"]
        part = write("part", VIEWS // PARTS, overlay=True)
        along = load_reinforced(part, base=file, streaming=True)
        alone = epoch_of(load_reinforced(part, base=base, streaming=True))
        result["base_mb"] = (epoch_of(along).bytes - alone.bytes) / 1e6
        cells = base.cast_column("image", datasets.Image(decode=False))["image"]
        result["base_over_images"] = result["base_mb"] / (sum(len(cell["bytes"]) for cell in cells) / 1e6)
    print(f"data: {data}, {rows} photos of {PHOTO[0]}x{PHOTO[1]} in {rows // SHARD} shards\n")
    common.table([[key, value] for key, value in result.items() if isinstance(value, (int, float))], ["", ""])
    common.finish(result, flags)


if __name__ == "__main__":
    if "HF_DR_LOOPBACK" in os.environ:
        main()
    else:  # the Hub's address is read when its client is imported
        with serving() as hub, common.working_folder() as home:
            place = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
            sys.exit(subprocess.call([sys.executable, *sys.argv], env={**os.environ, **place, "HF_DR_LOOPBACK": "1"}))
