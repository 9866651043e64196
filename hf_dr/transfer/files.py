"""Files of images and masks, by which a training tells its data from other data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from hf_dr.errors import DataError
from hf_dr.store.base_dataset import sampled_rows


def digest_of(paths: Sequence[Path]) -> str:
    """Tells files from others by their names and sizes, and by what some of them hold, as SHA-256."""
    digest = hashlib.sha256()
    sampled = set(sampled_rows(len(paths)).tolist())
    for row, path in enumerate(paths):
        try:
            digest.update(b"%s %d\n" % (os.fsencode(path.name), path.stat().st_size))
            if row in sampled:
                digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise DataError(
                f"{path} must be a file that can be read, but: {error.strerror}. Check the folder."
            ) from error
    return digest.hexdigest()
