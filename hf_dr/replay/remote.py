"""Reading from Parquet files one at a time, from a folder or the Hub, without a copy on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from datasets.utils.file_utils import xopen

from hf_dr.errors import FormatError, HfDrError
from hf_dr.hub.retry import with_retries

_Read = TypeVar("_Read")


def with_parquet(file: str, read: Callable[[pq.ParquetFile], _Read]) -> _Read:
    """Opens a Parquet file and returns what `read` takes from it; where the Hub does not answer, it is asked again.

    Args:
        file: Path or `hf://` address.
        read: May be called several times.

    Raises:
        FormatError: The file is missing, or damaged.
        HubError: The Hub refuses, or cannot be reached.
    """

    def attempt() -> _Read:
        with (
            xopen(file, "rb") as stream,
            pq.ParquetFile(stream, pre_buffer=True, page_checksum_verification=True) as parquet,
        ):
            return read(parquet)

    if "://" not in file and Path(file).exists() and not Path(file).is_file():  # a pipe would be waited for
        raise FormatError(f"{file} must be a file, found a folder or a device. Fetch or make it again.")
    try:
        return with_retries(attempt, f"read {file}")
    except HfDrError:
        raise
    except FileNotFoundError as error:
        raise FormatError(f"{file} must be there, but it is missing. Fetch or make it again.") from error
    except (OSError, ValueError, pa.ArrowException, RecursionError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system could not read it; Arrow's own have no number
        raise FormatError(
            f"{file} must be a readable shard, but: {type(error).__name__}: {error}. Fetch or make it again."
        ) from error
