"""How many bytes a stored view takes, what storing float16 loses, and the price of finding damage.

    python benchmarks/storage.py --data DATA --weights WEIGHTS            # randaug, randaug_mixing, kl
    python benchmarks/storage.py --data DATA --weights WEIGHTS --sweep    # and every encoding of every column
    python benchmarks/storage.py --data DATA --checks                     # only the price of finding damage

Counts every column that the reinforcement adds (hashes and source_index too, the base's own columns not), as they lie
in the Parquet file that the real job writes. K = 10 of 1,000 classes, V = 50. The price of checksums of pages and digests of
columns is that of the same shard without them, written and read in turn: percent of its bytes, and ratios of CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import common
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce_job
from hf_dr.store import shards
from hf_dr.store.schema import TEACHER_LOGPROBS, is_reserved
from hf_dr.store.shards import ZSTD_LEVEL, ShardWriter, check_digests, column_encoding, read_features, read_marker
from hf_dr.teacher.ensemble import Teacher
from hf_dr.views.augmentation import Augmentation

NUM_VIEWS, TOP_K = 50, 10
TARGETS = {"randaug": 34.0, "randaug_mixing": 44.0}
ENCODINGS = ("PLAIN", "BYTE_STREAM_SPLIT", "DELTA_BINARY_PACKED", "DICTIONARY")
CODECS = (("zstd", 3), ("zstd", 15), ("zstd", 19), ("zstd", 22), ("brotli", 11))


def reinforce(teacher: Teacher, photos: datasets.Dataset, name: str, folder: Path) -> tuple[Path, np.ndarray]:
    """Runs the job into one shard; returns it and the exact log-probabilities (views, K)."""
    recording = common.RecordingTeacher(teacher)
    top_k = min(TOP_K, teacher.num_classes)
    config = ReinforceConfig(
        output_dir=str(folder), num_views=NUM_VIEWS, top_k=top_k, label_column="none",
        shard_size=len(photos), num_workers=1,  # the answers are recorded in order
    )  # fmt: skip
    job = reinforce_job(photos, recording, Augmentation.named(name), config)
    job.run()
    answers = torch.from_numpy(recording.answers(len(photos) * NUM_VIEWS))
    return job.folder / job.provenance.shard_names[0], answers.topk(top_k).values.numpy()


def bytes_by_column(shard: Path) -> dict[str, float]:
    """Compressed bytes per view of each of the reinforcement's columns."""
    views = pq.read_metadata(shard).num_rows * NUM_VIEWS
    return {name: size / views for name, size in common.column_bytes(shard).items() if is_reserved(name)}


def kl_of_storing(exact_NK: np.ndarray, stored_NK: np.ndarray) -> float:
    """Mean KL divergence, in nats, of the stored answer from the exact one, over the K classes and the rest in one."""

    def with_rest(logprobs_NK: np.ndarray) -> np.ndarray:
        p_NK = np.exp(logprobs_NK.astype(np.float64))
        return np.concatenate([p_NK, np.clip(1 - p_NK.sum(axis=1, keepdims=True), 1e-12, None)], axis=1)

    p, q = with_rest(exact_NK), with_rest(stored_NK)
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    return float((p * np.log(p / q)).sum(axis=1).mean())


def stored_logprobs(shard: Path) -> np.ndarray:
    """The log-probabilities (views, K) of a shard, float16, by way of `datasets`."""
    plus = datasets.load_dataset("parquet", data_files=str(shard), split="train")
    logprobs_RVK = common.as_array(plus.data.column(TEACHER_LOGPROBS))
    return logprobs_RVK.reshape(-1, logprobs_RVK.shape[-1])


class NoDigests(shards.ColumnDigests):
    """In the place of the digests of columns: nothing."""

    def update(self, table: pa.Table | pa.RecordBatch) -> None:
        pass


def price_of_checks(shard: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Writes and reads the rows of a shard with checksums and digests, and without.

    Returns:
        `bytes_percent` of the shard, `overlay_bytes_percent` of one without images, and the median ratios of CPU time, `write`,
        `read_pages` (their checksums compared) and `read_digests` (all that `verify`, a push and resuming compare).
    """
    whole, features = pq.read_table(shard), read_features(shard)
    columns = {name: common.as_array(whole[name]) for name in filter(is_reserved, whole.column_names)}
    parquet_writer = pq.ParquetWriter

    def write(path: Path, features: datasets.Features = features) -> None:
        with ShardWriter(path, features, read_marker(shard).fingerprint) as writer:
            writer.write(whole, columns, np.ones(len(whole), bool))
            writer.finish()

    def write_bare(path: Path, features: datasets.Features = features) -> None:
        def without(*arguments: Any, **settings: Any) -> pq.ParquetWriter:
            return parquet_writer(*arguments, **{**settings, "write_page_checksum": False})

        with mock.patch.object(shards, "ColumnDigests", NoDigests), mock.patch.object(pq, "ParquetWriter", without):
            write(path, features)

    def read(path: Path, checked: bool) -> None:
        file = pq.ParquetFile(path, page_checksum_verification=checked)
        for group in range(file.num_row_groups):
            file.read_row_group(group)

    one, bare = folder / "with.parquet", folder / "without.parquet"
    price = {}
    own = datasets.Features({name: feature for name, feature in features.items() if is_reserved(name)})
    for name, kept in (("overlay_bytes_percent", own), ("bytes_percent", features)):
        write(one, kept)
        write_bare(bare, kept)
        price[name] = 100 * (one.stat().st_size / bare.stat().st_size - 1)
    price["write"] = _ratio(lambda: write(one), lambda: write_bare(bare), rounds)
    price["read_pages"] = _ratio(lambda: read(one, True), lambda: read(bare, False), rounds)
    price["read_digests"] = _ratio(lambda: check_digests(one), lambda: read(bare, False), rounds)
    return price


def _ratio(work: Callable[[], None], baseline: Callable[[], None], rounds: int) -> float:
    """The median over rounds, in each of which both are done, of the ratio of their CPU time."""
    works = {"work": partial(common.cpu_seconds, work), "baseline": partial(common.cpu_seconds, baseline)}
    times = common.in_turns(works, rounds, warm_up=0)
    return common.median_ratio(times["work"], times["baseline"])


def encoded_size(table: pa.Table, encoding: str, codec: str, level: int) -> int | None:
    """Bytes of a table of one column under an encoding; None where the type does not have it."""
    leaf = pq.ParquetFile(_written(table)).schema.column(0).path
    dictionary = encoding == "DICTIONARY"
    try:
        file = _written(
            table, compression=codec, compression_level=level, use_dictionary=dictionary, data_page_size=1 << 22,
            column_encoding=None if dictionary else {leaf: encoding}, write_statistics=False,
        )  # fmt: skip
    except (OSError, pa.ArrowException):
        return None
    return common.column_bytes(file).total()


def _written(table: pa.Table, **settings: Any) -> pa.BufferReader:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **settings)
    return pa.BufferReader(sink.getvalue())


def sweep(shard: Path) -> None:
    """Prints the bytes per view of every column under every encoding, codec and number of rows."""
    whole = pq.read_table(shard)
    whole = whole.select([name for name in whole.column_names if is_reserved(name)])
    views = len(whole) * NUM_VIEWS
    rows = []
    for name in whole.column_names:
        column = whole.select([name])
        sizes = [encoded_size(column, encoding, "zstd", ZSTD_LEVEL) for encoding in ENCODINGS]
        rows.append([name, *("-" if s is None else s / views for s in sizes)])
    print(f"bytes per view by encoding, zstd {ZSTD_LEVEL}, {len(whole)} rows")
    common.table(rows, ["column", *ENCODINGS])

    features = datasets.Features.from_arrow_schema(whole.schema)
    ours = {leaf.split(".")[0]: encoding for leaf, encoding in column_encoding(features).items()}

    def total(table: pa.Table, codec: str, level: int) -> float:
        sizes = [encoded_size(table.select([name]), ours[name], codec, level) for name in table.column_names]
        return sum(s for s in sizes if s is not None) / (len(table) * NUM_VIEWS)

    print("bytes per view of all columns in our encodings, by codec")
    common.table([[f"{codec} {level}", total(whole, codec, level)] for codec, level in CODECS], ["codec", "bytes"])
    print("bytes per view of all columns as written, by rows in the shard")
    counts = [n for n in (10, 25, 50, 100, 200, 400, 800) if n < len(whole)] + [len(whole)]
    common.table([[str(n), total(whole.slice(0, n), "zstd", ZSTD_LEVEL)] for n in counts], ["rows", "bytes"])


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--examples", type=int, help="Photos; each gets 50 views. Default: 100, or 20 with --quick.")
    parser.add_argument("--sweep", action="store_true", help="Also try other encodings, codecs and shard sizes.")
    parser.add_argument("--checks", action="store_true", help="Only the price of checksums and digests, for randaug.")
    parser.add_argument("--keep", type=Path, help="Keep the shards in this folder, and take those that are there.")
    flags: argparse.Namespace = parser.parse_args()
    count = flags.examples or (20 if flags.quick else 100)
    photos, data = common.photos(flags.data, count)
    teacher, who = common.lite0_or_embedded(flags.weights)
    print(f"data: {data}, {count} rows x {NUM_VIEWS} views; teacher: {who}\n")
    result: dict[str, Any] = {"data": data, "teacher": who, "examples": count, "num_views": NUM_VIEWS}
    kl, by_column = [], {}
    with common.working_folder() as temporary:
        if flags.checks:
            shard, _ = remembered(teacher, photos, "randaug", flags.keep or temporary)
            price = price_of_checks(shard, temporary, 3 if flags.quick else 15)
            common.table([[key, value] for key, value in price.items()], ["checks", "with / without"])
            common.finish({**result, **price, "shard_bytes": shard.stat().st_size}, flags)
            return
        for name in TARGETS:
            folder = flags.keep or temporary
            shard, exact = remembered(teacher, photos, name, folder)
            by_column[name] = bytes_by_column(shard)
            result[name] = sum(by_column[name].values())
            kl.append(kl_of_storing(exact, stored_logprobs(shard)))
            if flags.sweep:
                print(f"== {name}")
                sweep(shard)
    result["kl"] = float(np.mean(kl))
    columns = list(dict.fromkeys(column for sizes in by_column.values() for column in sizes))
    rows = [[column, *(sizes.get(column, "-") for sizes in by_column.values())] for column in columns]
    rows += [["total", *(result[name] for name in TARGETS)], ["at most", *TARGETS.values()]]
    common.table(rows, ["bytes per view", *TARGETS])
    for name, sizes in by_column.items():
        result |= {f"{name}_{column}": size for column, size in sizes.items()}
    common.finish(result, flags)


def remembered(teacher: Teacher, photos: datasets.Dataset, name: str, folder: Path) -> tuple[Path, np.ndarray]:
    """`reinforce`, or what it left in the folder last time."""
    answers = folder / f"{name}-{len(photos)}.npy"
    target = folder / str(len(photos))
    if answers.exists():
        return next((target / name).glob("*.parquet")), np.load(answers)
    shard, exact = reinforce(teacher, photos, name, target)
    np.save(answers, exact)
    return shard, exact


if __name__ == "__main__":
    main()
