"""Wrote the golden dataset of schema version 2: `PYTHONPATH=tests:. python tests/golden/make_v2.py FOLDER`.

Never run it over an old version's folder: the files stand for what users have on disk.
"""

import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from conftest import as_cell, colour_image

from hf_dr.store.features import combine_hashes, reinforcement_features
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import AUG_PREFIX, STORED_PARTNERS
from hf_dr.store.shards import ShardWriter
from hf_dr.views.augmentation import NO_PARTNER, PARTNER, Augmentation
from hf_dr.views.images import pixel_hash
from hf_dr.views.maker import hash_view
from hf_dr.views.ops.colour import RandAugment
from hf_dr.views.ops.geometry import RandomErasing, RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import CutMix, MixUp
from hf_dr.views.rng import view_rng

ROWS, VIEWS, SIZE = 7, 16, (20, 24)
AUGMENTATION = Augmentation(
    [RandomResizedCrop(16), RandomHorizontalFlip(), RandAugment(), RandomErasing(), MixUp(p=0.5), CutMix(p=0.5)]
)


def main(folder: str) -> None:
    """Mixes each view with any of seven generated images, itself included, under parameters of the partner's own."""
    rng = np.random.default_rng(2)
    images = [colour_image(rng, n, (SIZE[1], SIZE[0])) for n in range(ROWS)]
    augmentation = AUGMENTATION
    features = reinforcement_features(augmentation, VIEWS, 3, ROWS, stored_partners=True)
    columns: dict[str, list[list[object]]] = {name: [] for name in features if name.startswith(AUG_PREFIX)}
    hashes = []
    for row, image in enumerate(images):
        views, drawn = [], []
        for view in range(VIEWS):
            params = {**augmentation.sample(view_rng(0, row, view), SIZE), PARTNER: NO_PARTNER}
            other = augmentation.sample(view_rng(1, row, view), SIZE)
            pixels = augmentation.apply(image, params)
            if augmentation.needs_partner(params):
                params[PARTNER] = int(rng.integers(ROWS))
                pixels = augmentation.mix(pixels, params, augmentation.apply(images[params[PARTNER]], other))
            views.append(hash_view(np.asarray(pixels)))
            drawn.append({**params, **{f"{PARTNER}_{name}": other[name] for name in augmentation.partner_params}})
        hashes.append(combine_hashes(np.array(views, np.uint64)))
        for name, values in columns.items():
            values.append([params[name.removeprefix(AUG_PREFIX)] for params in drawn])
    provenance = Provenance(
        config_name="stored_partners", split="train", augmentation=augmentation.to_list(), num_views=VIEWS, top_k=3,
        num_classes=ROWS, seed=0, shard_size=4, num_rows=ROWS, overlay=False, image_column="image", label_column="label",
        mixing_scope=STORED_PARTNERS, on_bad_image="error", base={"id": "generated"}, library_versions={},
        teacher={"members": [{"id": "random", "revision": None, "license": "cc0-1.0", "weights_hash": None}]},
        created_with="hf_dr", skipped_rows=[], schema_version=2,
    )  # fmt: skip
    config = Path(folder) / provenance.config_name
    config.mkdir(parents=True)
    provenance.write(config)
    all_features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=ROWS), **features}
    )
    cells = pa.array([as_cell(image) for image in images], datasets.Image().pa_type)
    base = pa.table({"image": cells, "label": pa.array(range(ROWS))})
    for index, name in enumerate(provenance.shard_names):
        rows = np.array(provenance.shard_range(index))
        logprobs = np.sort(rng.uniform(-6, -1.2, (len(rows), VIEWS, 3)).astype(np.float16), axis=-1)[..., ::-1]
        ids = rng.permuted(np.tile(np.arange(ROWS, dtype=np.uint16), (len(rows), VIEWS, 1)), axis=-1)
        part = {
            "source_index": rows,
            "image_hash": np.array([pixel_hash(images[row]) for row in rows], np.uint64),
            "views_hash": np.array(hashes, np.uint64)[rows],
            "teacher_ids": np.ascontiguousarray(ids[..., :3]),
            "teacher_logprobs": np.ascontiguousarray(logprobs),
        }
        for column, values in columns.items():
            dtype = features[column].feature
            dtype = getattr(dtype, "feature", dtype).dtype
            part[column] = np.array([values[row] for row in rows], dtype)
        with ShardWriter(config / name, all_features, provenance.fingerprint) as writer:
            writer.write(base.slice(rows[0], len(rows)), part, np.ones(len(rows), bool))
            writer.finish()


if __name__ == "__main__":
    main(sys.argv[1])
