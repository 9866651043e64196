"""What several tests need: images, one instance of every op, and the way of parameters through storage and back."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import Trainer

from hf_dr.store.features import reinforcement_features
from hf_dr.store.schema import AUG_PREFIX, METADATA_KEY
from hf_dr.store.shards import list_array
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.base import OPS, Op, Params
from hf_dr.views.ops.geometry import CenterCrop

SIDE = 8
"""Output side of the ops below; `RandomCrop` pads 4 on each side, so it fits images of any size."""

RESUMED_TOGETHER = pytest.mark.skipif(
    'self.args.device.type != "cpu"' not in inspect.getsource(Trainer._load_optimizer_and_scheduler),
    reason="an older transformers cannot resume several processes on a CPU",
)


class WithoutDoubles(torch.Tensor):
    """Acts as on a device that has no float64, such as Apple's MPS."""

    def double(self) -> torch.Tensor:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def cpu(self) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def one_pixel_off(image: PIL.Image.Image) -> PIL.Image.Image:
    """Returns nearly the same image, whose pixel hash is another."""
    changed = image.convert("RGB")
    red, *others = changed.getpixel((0, 0))
    changed.putpixel((0, 0), (red ^ 1, *others))
    return changed


# For tests whose examples are dear, or use fixtures.
quick = settings(max_examples=20, suppress_health_check=list(HealthCheck))

# Settings that make an op do something; an op without an entry here is built with its defaults.
_LIVELY: dict[str, dict[str, Any]] = {
    "ColorJitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2},
    "RandomCrop": {"padding": 4, "fill": (255, 0, 255)},
    "RandAugment": {"num_ops": 3},
    "RandAugmentIncreasing": {"num_ops": 3, "magnitude_std": 40.0},
}


def make_op(cls: type[Op], **changes: Any) -> Op:
    """Builds an op of any registered class: `size` where the class has one, `p` = 1, and what `changes` says."""
    fields = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    given: dict[str, Any] = {"size": SIDE, "p": 1.0, **_LIVELY.get(cls.__name__, {}), **changes}
    return cls(**{name: value for name, value in given.items() if name in fields})


def every_op() -> list[Op]:
    """Returns instances of every registered op: lively ones, and those with a probability also as by default."""
    ops = []
    for cls in OPS.values():
        ops.append(make_op(cls))
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if "p" in fields:
            ops.append(make_op(cls, p=0.5))
    return ops


def op_id(op: Op) -> str:
    """Names an op in pytest's output."""
    return f"{type(op).__name__}-p{op.p}" if hasattr(op, "p") else type(op).__name__


def photo(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    """Returns an RGB image with smooth parts, edges and noise, so that no op is without effect by chance."""
    rng = np.random.default_rng([seed, height, width])
    y, x = np.mgrid[:height, :width]
    base = np.stack([255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 128 + 120 * np.sin((x + y) / 5)], -1)
    base[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return PIL.Image.fromarray((base * 0.8 + rng.integers(0, 52, base.shape)).clip(0, 255).astype(np.uint8))


def same_pixels(a: PIL.Image.Image, b: PIL.Image.Image) -> bool:
    """Whether two images have the same mode, size and pixels."""
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


def plain(params: Params) -> Params:
    """Returns parameters as Python numbers and tuples, for comparison."""

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            value = value.tolist()
        if isinstance(value, np.generic):
            return value.item()
        return tuple(map(convert, value)) if isinstance(value, (list, tuple)) else value

    return {name: convert(value) for name, value in params.items()}


def through_numpy(op: Op, params: Params) -> Params:
    """Returns the parameters as NumPy holds them in the declared types."""
    stored = {}
    for name, param in op.params.items():
        array = np.zeros((2,) if param.length is None else (2, param.length), param.dtype)
        array[1] = params[name]
        stored[name] = array[1]
    return stored


def through_parquet(op: Op, views: list[Params], folder: Path) -> list[Params]:
    """Writes the parameters of the views of one row with the schema's types and reads them back."""
    crop = CenterCrop(SIDE)  # has no parameters; makes any op an augmentation
    augmentation = Augmentation([crop, op] if op.mixes else [op, crop])
    features = reinforcement_features(augmentation, num_views=len(views), top_k=1, num_classes=10)
    columns = {}
    for name, param in op.params.items():
        key = f"{AUG_PREFIX}{op.name}_{name}" if name else AUG_PREFIX + op.name
        values = np.array([view[name] for view in views], param.dtype)
        columns[key] = list_array(values[None], np.ones(1, bool), features.arrow_schema.field(key).type)
    if not columns:
        return [{} for _ in views]
    pq.write_table(pa.table(columns), folder / "params.parquet")
    row = pq.read_table(folder / "params.parquet").to_pylist()[0]
    names = dict(zip(columns, op.params, strict=True))
    return [{names[key]: value[v] for key, value in row.items()} for v in range(len(views))]


def rewritten(shard: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Writes the shard again with other values and the marker that it had."""
    marker = pq.read_metadata(shard).metadata[METADATA_KEY]
    table = change(pq.read_table(shard))
    with pq.ParquetWriter(shard, table.schema) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({METADATA_KEY: marker})


def shift_labels(shard: Path) -> None:
    """Gives each row of a shard the label of the next one; everything else stays, what the shard says of itself too."""

    def shifted(table: pa.Table) -> pa.Table:
        place = table.column_names.index("label")
        labels = table.column("label").take([*range(1, len(table)), 0])
        return table.set_column(place, table.schema.field(place), labels)

    rewritten(shard, shifted)


MAY_CHANGE: dict[str, Any] = {
    "logging_strategy": "no", "logging_steps": 2, "logging_first_step": True, "log_on_each_node": False,
    "logging_nan_inf_filter": True, "include_num_input_tokens_seen": "all", "log_level": "error", "log_level_replica": "error",
    "disable_tqdm": False, "report_to": [], "run_name": "another", "project": "another", "skip_memory_metrics": False,
    "debug": "underflow_overflow", "per_device_eval_batch_size": 1, "prediction_loss_only": True, "eval_on_start": True,
    "eval_do_concat_batches": False, "eval_use_gather_object": True, "eval_accumulation_steps": 1, "bf16_full_eval": True,
    "include_for_metrics": ["loss"], "save_only_model": True, "save_on_each_node": True, "save_total_limit": 1,
    "dataloader_num_workers": 1, "dataloader_pin_memory": False, "torch_empty_cache_steps": 1, "do_train": True,
    "do_eval": False, "do_predict": True, "restore_callback_states_from_checkpoint": True, "eval_strategy": "no",
    "eval_steps": 2, "eval_delay": 1, "save_strategy": "no", "save_steps": 1, "metric_for_best_model": "loss",
    "greater_is_better": True,
}  # fmt: skip
"""Another value of each training argument that may change when a run is resumed."""
