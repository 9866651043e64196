"""The lines of docs/format.md that replay a dataset without this package give the views that the teacher saw."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import as_cell, colour_image

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.loading import load_reinforced
from hf_dr.views.augmentation import NAMED, Augmentation

PAGE = Path(__file__).parents[2] / "docs" / "format.md"
SIDE = 40
ROWS = 8


def lines_of_the_page() -> dict[str, Any]:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.mark.parametrize("name", NAMED)
def test_the_page_replays_every_view(name: str, tmp_path: Path, tiny_teacher: Any, tiny_dataset: Any) -> None:
    rng = np.random.default_rng(5)
    sizes = [(90, 30), (30, 90), (48, 48), (41, 77), (40, 40), (64, 50), (35, 120), (120, 33)]
    rows = {"image": [as_cell(colour_image(rng, n, size)) for n, size in enumerate(sizes)], "label": list(range(ROWS))}
    rows["image"][2] = as_cell(PIL.Image.fromarray(rng.integers(0, 1 << 16, (48, 48), np.uint16)))  # 16-bit grey
    dataset = datasets.Dataset.from_dict(rows, features=tiny_dataset.features)
    config = ReinforceConfig(str(tmp_path), "a", num_views=30, top_k=2)
    reinforce(dataset, tiny_teacher, Augmentation.named(name, SIDE), config)
    plus = load_reinforced(tmp_path)
    stored = pa.concat_tables([pq.read_table(path) for path in sorted((tmp_path / "a").glob("*.parquet"))]).to_pylist()
    replay = lines_of_the_page()["view"]
    mixed = 0
    for row in range(ROWS):
        for view in range(30):
            found = replay(stored[row], view, lambda index: stored[index], size=SIDE)
            np.testing.assert_array_equal(
                np.asarray(found), np.asarray(plus.image(row, view)), err_msg=f"{row}, {view}"
            )
            mixed += stored[row].get("aug_partner", [-1] * 30)[view] >= 0
    assert (mixed > 0) == name.endswith("mixing")
