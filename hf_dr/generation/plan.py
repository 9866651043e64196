"""From settings, teacher and base dataset to the provenance: what a run makes is known before anything is written."""

from __future__ import annotations

import importlib.metadata
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.features

from hf_dr.errors import ConfigError
from hf_dr.files import expanded
from hf_dr.generation.config import ImportConfig, ReinforceConfig
from hf_dr.generation.own_ops import check_own_ops
from hf_dr.generation.teachers import checked_labels
from hf_dr.settings import check_kind
from hf_dr.store.base_dataset import checked_origin, content_hash, undecoded_images
from hf_dr.store.labels import check_dataset, label_advice
from hf_dr.store.named_files import stored_columns
from hf_dr.store.provenance import Provenance, added_features
from hf_dr.store.schema import MAX_SHARDS, SCHEMA_VERSION
from hf_dr.teacher.ensemble import Teacher
from hf_dr.text import shown_text
from hf_dr.version import __version__
from hf_dr.views.augmentation import NAMED, Augmentation
from hf_dr.views.maker import ViewMaker
from hf_dr.views.ops.base import Op

logger = logging.getLogger(__name__)

_DEFAULT_TOP_K = 10
_VERSIONED = ("numpy", "pillow", "timm", "torch", "torchvision", "transformers")


@dataclass(frozen=True)
class Plan:
    """What a run makes, from which base, and where.

    Attributes:
        provenance: How the "+" dataset is made; complete but for the rows that will be skipped.
        augmentation: The ops, as the provenance describes them.
        images: The base's image column alone, undecoded.
        base: The base's columns that are stored, all its rows.
        folder: The folder of the configuration; the shards go there.
        labels: Class of each row, int64 (rows,); None where there are none.
    """

    provenance: Provenance
    augmentation: Augmentation
    images: datasets.Dataset
    base: datasets.Dataset
    folder: Path
    labels: np.ndarray | None = None

    @property
    def features(self) -> datasets.Features:
        """The columns of a shard: the base's own, then the reinforcement's."""
        return datasets.Features({**self.base.features, **added_features(self.provenance, self.augmentation)})

    def view_maker(self) -> ViewMaker:
        """Returns what draws and makes the views, candidates included."""
        provenance = self.provenance
        return ViewMaker(
            self.images,
            self.augmentation,
            provenance.num_candidates,
            provenance.seed,
            matching_size=provenance.shard_size if provenance.mixing_scope == "shard" else None,
        )


def augmentation_of(given: Augmentation | str | Sequence[Any]) -> Augmentation:
    """Returns the augmentation that is given as `reinforce` takes it; a ConfigError if it is none."""
    if isinstance(given, str):
        return Augmentation.named(given)
    if isinstance(given, (list, tuple)):
        return Augmentation.from_list([op.to_dict() if isinstance(op, Op) else op for op in given])
    if not isinstance(given, Augmentation):
        raise ConfigError(
            f"`augmentation` must be an Augmentation, a name or a list of ops, got {type(given).__name__}. Put a single "
            "op of `hf_dr.ops` into a list; others cannot be replayed."
        )
    return given


def plan_run(
    dataset: datasets.Dataset,
    teacher: Teacher,
    augmentation: Augmentation,
    config: ReinforceConfig,
    *,
    base: dict[str, Any] | None = None,
) -> Plan:
    """Checks that settings, teacher and dataset fit each other, and returns what the run makes; see `reinforce`."""
    if base is not None:
        check_kind("base", base, Mapping, "names and values", 'Give e.g. `{"id": "me/photos"}`.')
    image_column, label_column = check_dataset(dataset, config.image_column, config.label_column)
    known = checked_origin(dataset, config.files_from)
    if config.max_examples is not None and config.max_examples < len(dataset):
        dataset = dataset.select(range(config.max_examples))
    if dataset.features[image_column].mode not in (None, "RGB"):
        logger.warning(
            "The mode %s of the column `%s` is not applied: views are made of the images as they are stored, in RGB.",
            dataset.features[image_column].mode,
            image_column,
        )
    if not augmentation.params and config.num_views > 1:
        logger.warning(
            "Nothing in the augmentation is random: the %d views of an image are all alike. One view is enough.",
            config.num_views,
        )
    top_k = config.top_k or min(_DEFAULT_TOP_K, teacher.num_classes)
    if top_k > teacher.num_classes:
        raise ConfigError(
            f"`top_k` must be between 1 and the teacher's {teacher.num_classes} classes, got {top_k}. Lower `top_k`."
        )
    if config.selects:
        _check_selection(config, augmentation, label_column)
    labels = None if label_column is None else checked_labels(dataset, label_column, teacher)
    if label_column is None and config.label_column is None:
        others = [name for name in dataset.column_names if name != image_column]
        logger.warning(
            "No column is taken for labels, among %s. %s Or pass `label_column` none.",
            ", ".join(shown_text(name, 40) for name in others) or "no others",
            label_advice(
                dataset,
                image_column,
                "Name that of the class numbers by `label_column` (text is made into them by `dataset.class_encode_column`).",
            ),
        )
    plan = make_plan(
        dataset,
        augmentation,
        config,
        (image_column, label_column),
        labels,
        num_views=config.num_views,
        top_k=top_k,
        num_classes=teacher.num_classes,
        seed=config.seed,
        mixing_scope=config.mixing_scope if augmentation.mixes else "dataset",
        on_bad_image=config.on_bad_image,
        base={**known, **(base or {}), "content_hash": content_hash(undecoded_images(dataset, image_column))},
        teacher=teacher.provenance(),
        library_versions=library_versions(),
        created_with=f"hf_dr {__version__}",
        candidates={"num": config.num_candidates, "keep": config.keep} if config.selects else None,
        signal=config.signal,
    )
    check_own_ops(plan.view_maker())
    return plan


def make_plan(
    dataset: datasets.Dataset,
    augmentation: Augmentation,
    config: ReinforceConfig | ImportConfig,
    columns: tuple[str, str | None],
    labels: np.ndarray | None,
    **settings: Any,
) -> Plan:
    """Returns what is made of a dataset, which was checked.

    Args:
        dataset: The base.
        augmentation: The ops that make the views, or made them.
        config: How it is stored.
        columns: Those of the images and of the labels.
        labels: Class of each row, int64 (rows,); None where there are none.
        **settings: The fields of `Provenance` that do not follow from these.
    """
    config_name = config.config_name or _name_of(augmentation)
    image_column, label_column = columns
    rows = str(dataset.split or "train")
    if "+" in rows:
        settings["base"] = {"split": rows, **settings["base"]}
    elif "[" in rows and "[:" not in rows:
        logger.info("`%s` is stored as split `%s`; its rows are counted from 0.", rows, _first_split(rows))
    stored = stored_columns(dataset.features, image_column, overlay=config.overlay)
    provenance = Provenance(
        config_name=config_name,
        split=_first_split(rows),
        augmentation=augmentation.to_list(),
        shard_size=_choose_shard_size(config.shard_size, len(dataset)),
        num_rows=len(dataset),
        overlay=config.overlay,
        image_column=image_column,
        label_column=label_column,
        skipped_rows=[],
        schema_version=SCHEMA_VERSION,
        **settings,
    )
    provenance.check()
    folder = expanded(config.output_dir) / config_name
    images = undecoded_images(dataset, image_column)
    return Plan(provenance, augmentation, images, dataset.select_columns(stored), folder, labels)


def _check_selection(config: ReinforceConfig, augmentation: Augmentation, label_column: str | None) -> None:
    if augmentation.mixes:
        raise ConfigError(
            f"`num_candidates` must be left out with MixUp or CutMix, got {config.num_candidates}: views are mixed in pairs by "
            "their numbers, and both of a pair would have to keep the same ones. Leave it out, or those ops."
        )
    if label_column is None and str(config.keep).endswith("_cross_entropy"):
        raise ConfigError(
            f"`keep` must be low_entropy or high_entropy for a dataset without labels, got {config.keep}. Set one of these, or "
            "name a `label_column`."
        )


def _first_split(rows: str) -> str:
    """Returns the name of the first split that rows are taken from: `train` for `train[:100]+test`."""
    return re.sub(r"[^A-Za-z0-9_.-]+.*", "", rows) or "train"


def _choose_shard_size(wanted: int | None, num_rows: int) -> int:
    """Returns the examples in each shard. Default: 1024, or an eighth of a smaller dataset."""
    size = wanted or min(1024, math.ceil(num_rows / 8))
    if size * MAX_SHARDS < num_rows:
        raise ConfigError(
            f"`shard_size` must be at least {-(-num_rows // MAX_SHARDS)} for {num_rows} rows in {MAX_SHARDS} files at most, "
            f"got {size}. Raise it."
        )
    return size


def library_versions(names: tuple[str, ...] = _VERSIONED) -> dict[str, str]:
    """Returns the versions of the libraries that decide pixels and answers, and MKL's choice of kernels."""
    versions = {name: importlib.metadata.version(name) for name in names}
    versions["libjpeg"] = str(PIL.features.version("jpg"))  # inside Pillow, or the system's
    if "torch" in versions:
        versions["mkl_cbwr"] = os.environ.get("MKL_CBWR", "default")
    return versions


def _name_of(augmentation: Augmentation) -> str:
    """The name under which an augmentation is known, or `default`."""
    height, width = augmentation.size
    for name in NAMED:
        if augmentation == Augmentation.named(name, height if height == width else (height, width)):
            return name
    return "default"
