"""The shards of one "+" dataset, read when they are needed and checked as they are read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.join import JoinedBase
from hf_dr.replay.proof import check_replay
from hf_dr.replay.streamed_base import StreamedBase, with_parquet
from hf_dr.settings import check_names
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import IMAGE_HASH, METADATA_KEY, SOURCE_INDEX, is_reserved
from hf_dr.store.shards import check_of_run, check_row_numbers, shard_features

logger = logging.getLogger(__name__)

_Read = TypeVar("_Read")


class StreamedShards:
    """Reads the shards of a "+" dataset, from a folder or the Hub, each as a `ReinforcedDataset`.

    Args:
        files: Path or `hf://` address of every shard, in order.
        base: The base dataset of an overlay: loaded, or its Parquet files.
        **settings: Further settings of `ReinforcedDataset`.

    Attributes:
        template: The dataset without rows: it knows labels, names and views.
        sizes: How many rows of each shard are reinforced, int64 (shards,).

    Raises:
        ConfigError: A partner may be in another shard, or a setting is impossible.
        DataError: The base cannot be joined.
        FormatError: The first shard does not follow the format.
    """

    def __init__(self, files: Sequence[str], provenance: Provenance, *, base: Any = None, **settings: Any) -> None:
        if settings.get("unreinforced"):
            raise ConfigError("`unreinforced` rows are of the base, not of a shard. Leave it out, or `streaming`.")
        self.provenance = provenance
        self._files = list(files)
        self._proved = False  # whether views of the first shards that were read replayed, in this process
        self._streamed_base = base if isinstance(base, StreamedBase) else None
        self._settings = settings
        self._described = provenance
        if self._streamed_base is not None:
            if not settings.get("check_images", True):
                raise ConfigError(
                    "`check_images` must be True where the base is streamed: nothing else tells whether its images are those "
                    "that were reinforced. Leave it out, or load the base."
                )
            # A shard that has got the images of its base is read as one of a dataset that has its own.
            self._described = replace(provenance, overlay=False)
        elif base is not None:
            if not isinstance(base, datasets.Dataset):
                raise DataError(
                    "`base` must be a datasets.Dataset, whose rows can be found by number, or the name of one, whose Parquet "
                    f"files are then read shard by shard, got {type(base).__name__}. Give its name, or load it without "
                    "`streaming=True`."
                )
            # Its images are looked for once, not for every shard.
            joined = JoinedBase(base, provenance) if provenance.overlay else base
            self._settings = {**settings, "base": joined}
        schema = self._with_shard(0, lambda parquet: parquet.schema_arrow)
        shard_features(schema, self._files[0])
        # Only what items need is read from the files.
        columns = settings.get("columns", ())
        check_names("columns", columns)
        wanted = {provenance.image_column, provenance.label_column, *columns}
        fields = [field for field in schema if is_reserved(field.name) or field.name in wanted]
        self._schema = pa.schema(fields, schema.metadata)
        self.template = self._dataset(self._with_images(schema.empty_table()), "empty")
        if self.template.mixes and provenance.mixing_scope != "shard" and provenance.num_shards > 1:
            raise ConfigError(
                "a streamed view must find its partner in its own shard, but those of this dataset are anywhere in it. Load it "
                "without `streaming=True`, or reinforce with `--mixing_scope shard`."
            )
        sizes = [len(provenance.shard_range(shard)) for shard in range(provenance.num_shards)]
        skipped = np.asarray(provenance.skipped_rows, np.int64) // provenance.shard_size
        self.sizes = np.asarray(sizes) - np.bincount(skipped, minlength=provenance.num_shards)
        if provenance.skipped_rows:
            logger.warning("%d rows have no reinforcement and are left out.", len(provenance.skipped_rows))

    def read(self, shards: Sequence[int]) -> ReinforcedDataset:
        """Returns the reinforced rows of some shards.

        Raises:
            FormatError: One does not follow the format or is another's.
            ReplayError: A view of the first has not the pixels that its teacher saw (`hf_dr.replay.proof.check_replay`).
        """
        table = pa.concat_tables([self._read_shard(shard) for shard in shards])
        # Without a name, datasets would hash the table.
        read = self._dataset(table, f"{self.provenance.fingerprint[:32]}-{'-'.join(map(str, shards))}")
        if not self._proved:
            check_replay(read)
            self._proved = True
        return read

    def _dataset(self, table: pa.Table, name: str) -> ReinforcedDataset:
        return ReinforcedDataset(datasets.Dataset(table, fingerprint=name), self._described, **self._settings)

    def _with_images(self, table: pa.Table) -> pa.Table:
        """Returns the rows of an overlay with the images of its streamed base; others as they are."""
        if self._streamed_base is None:
            return table
        column = self.provenance.image_column
        features = datasets.Features({**datasets.Features.from_arrow_schema(table.schema), column: datasets.Image()})
        images = self._streamed_base.images(table.column(SOURCE_INDEX).to_numpy())
        return table.append_column(column, images).replace_schema_metadata(features.arrow_schema.metadata)

    def _read_shard(self, shard: int) -> pa.Table:
        file = self._files[shard]
        table = self._with_shard(shard, self._read_all)
        shard_features(table.schema, file)
        for field in self._schema:
            found = table.schema.field(field.name).type if field.name in table.column_names else "none"
            if found != field.type:
                raise FormatError(
                    f"column `{field.name}` of {file} must be {field.type}, as in the first shard, found {found}. Fetch or "
                    "make it again."
                )
        table = table.replace_schema_metadata(self._schema.metadata)
        check_row_numbers(table.column(SOURCE_INDEX), self.provenance.shard_range(shard), file)
        if table.column(IMAGE_HASH).null_count:
            table = table.filter(pc.is_valid(table.column(IMAGE_HASH)))
        if len(table) != self.sizes[shard]:
            raise FormatError(
                f"{file} must have {self.sizes[shard]} reinforced rows by its provenance, found {len(table)}. Fetch it again."
            )
        return self._with_images(table)

    def _read_all(self, parquet: pq.ParquetFile) -> pa.Table:
        """Reads all rows, one row group at a time, because pyarrow reads less than 2 GiB of images at once."""
        groups = range(parquet.num_row_groups)
        return pa.concat_tables(
            parquet.read_row_group(group, self._schema.names, use_threads=False) for group in groups
        )

    def _with_shard(self, shard: int, read: Callable[[pq.ParquetFile], _Read]) -> _Read:
        """Opens a shard, checks that it is of this dataset, and returns what `read` takes from it."""
        file, provenance = self._files[shard], self.provenance

        def checked(parquet: pq.ParquetFile) -> _Read:
            marker = json.loads((parquet.metadata.metadata or {}).get(METADATA_KEY, b"null"))
            fingerprint = marker.get("fingerprint") if isinstance(marker, dict) else None
            # This comes first: a provenance that lies may speak of more rows than fit in memory.
            check_of_run(file, provenance, len(provenance.shard_range(shard)), fingerprint, parquet.metadata.num_rows)
            return read(parquet)

        return with_parquet(file, checked)
