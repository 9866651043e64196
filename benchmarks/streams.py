"""What a stream reads: where an epoch goes on, with V = 400 views in one dataset or in eight, and of a base that comes along.

    python benchmarks/streams.py --data DATA

Photos of 500x375 pixels, JPEG of quality 90, with `randaug` and made-up answers, in shards of 64 rows, streamed from the disk
by one process without workers. Bytes and rows are those of the Parquet column chunks that are read.

`whole_mb`, `whole_rows`: read in an epoch. `resume_10_*`, `resume_90_*`: an epoch that goes on after 10 and 90 % of its
batches: seconds to its first batch, MB and rows read until its end, and images decoded. `skip_10_s`, `skip_90_s`: seconds to
the same batch where all before it are read and thrown away, as Trainer does with a stream that cannot seek.
`resume_over_skip_*`: the time of the one over that of the other, the median over rounds.
`one_mb`: an epoch of an overlay of V = 400 views in one dataset, without the images; `eight_mb`: mean over 8 epochs of eight
datasets of V = 50 that are streamed together, which have as many views; `one_over_eight`: the first over the second.
`base_mb`: images read in an epoch of an overlay from the Parquet file of its base, whose row groups have 6 rows, which are to
shards of 64 as 100 are to 1,024; `base_over_images`: that over the images' own bytes.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import datasets
import pyarrow.parquet as pq
import synthetic

from hf_dr.replay import dataset as replayed
from hf_dr.replay import streamed_base, streamed_shards
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.streaming import StreamedReinforcedDataset
from hf_dr.views.augmentation import Augmentation

SIDE, BATCH, SHARD, VIEWS, PARTS = 224, 16, 64, 400, 8
PHOTO = (500, 375)


class Read:
    """What was read while it was watched."""

    def __init__(self) -> None:
        self.bytes = self.rows = self.images = self.decoded = 0


class Watched:
    """A Parquet file that counts the column chunks that are read from it."""

    def __init__(self, file: pq.ParquetFile, read: Read) -> None:
        self._file, self._read = file, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _count(self, groups: Any, columns: list[str]) -> int:
        rows = 0
        for number in groups:
            group = self._file.metadata.row_group(number)
            rows += group.num_rows
            chunks = [group.column(n) for n in range(group.num_columns)]
            self._read.bytes += sum(
                c.total_compressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns
            )
        return rows

    def read(self, columns: list[str], **settings: Any) -> Any:
        self._read.rows += self._count(range(self._file.num_row_groups), columns)
        return self._file.read(columns, **settings)

    def read_row_groups(self, groups: list[int], columns: list[str], **settings: Any) -> Any:
        self._read.images += self._count(groups, columns)
        return self._file.read_row_groups(groups, columns, **settings)


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

    streamed_shards.with_parquet = streamed_base.with_parquet = watched
    replayed.decode_row = decoded
    try:
        yield read
    finally:
        streamed_shards.with_parquet = streamed_base.with_parquet = with_parquet
        replayed.decode_row = decode


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
    seek, skip = [], []
    for number in range(rounds):
        left, all_rows = opened().resumed(progress).split_by_node(0, 1, batch_size=BATCH), opened()
        works = [
            lambda left=left: seek.append(common.seconds(lambda: list(itertools.islice(left, BATCH)))),
            lambda rows=all_rows: skip.append(
                common.seconds(lambda: list(itertools.islice(rows, batches * BATCH, (batches + 1) * BATCH)))
            ),
        ]
        for work in works if number % 2 else reversed(works):
            work()
    read = epoch_of(opened().resumed(progress))
    return {
        f"resume_{name}_s": statistics.median(seek),
        f"skip_{name}_s": statistics.median(skip),
        f"resume_over_skip_{name}": statistics.median(a / b for a, b in zip(seek, skip, strict=True)),
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

        def write(name: str, views: int, **settings: Any) -> Path:
            return synthetic.write(base, augmentation, views, folder / name, shard_size=SHARD, **settings)

        embedded = write("embedded", VIEWS // PARTS)
        whole = epoch_of(load_reinforced(embedded, streaming=True))
        result |= {"whole_mb": whole.bytes / 1e6, "whole_rows": whole.rows}
        for share in (0.1, 0.9):
            result |= resuming(embedded, share, rounds)
        one = load_reinforced(write("one", VIEWS, overlay=True), base=base, streaming=True)
        folders = [write(f"part{seed}", VIEWS // PARTS, overlay=True, seed=seed) for seed in range(PARTS)]
        eight = load_reinforced(folders, base=base, streaming=True)
        result["one_mb"] = epoch_of(one).bytes / 1e6
        result["eight_mb"] = statistics.mean(epoch_of(eight, epoch).bytes for epoch in range(PARTS)) / 1e6
        result["one_over_eight"] = result["one_mb"] / result["eight_mb"]
        along = load_reinforced(folders[0], base=file, streaming=True)
        alone = epoch_of(load_reinforced(folders[0], base=base, streaming=True))
        result["base_mb"] = (epoch_of(along).bytes - alone.bytes) / 1e6
        cells = base.cast_column("image", datasets.Image(decode=False))["image"]
        result["base_over_images"] = result["base_mb"] / (sum(len(cell["bytes"]) for cell in cells) / 1e6)
    print(f"data: {data}, {rows} photos of {PHOTO[0]}x{PHOTO[1]} in {rows // SHARD} shards\n")
    common.table([[key, value] for key, value in result.items() if isinstance(value, (int, float))], ["", ""])
    common.finish(result, flags)


if __name__ == "__main__":
    main()
