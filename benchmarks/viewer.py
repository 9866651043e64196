"""What the Hub's dataset viewer does with rows of many views, by its own code.

    git clone https://github.com/huggingface/dataset-viewer && pip install orjson pytz pymongo mongoengine environs
    python benchmarks/viewer.py --viewer dataset-viewer

100 rows, which are a page of the viewer, of an overlay of `randaug` with made-up answers, K = 10. For each V:
`row_kb_V`: a row as JSON; `page_mb_V`: a page as JSON, which the viewer's `/rows` does not shorten. The preview is made by
`create_first_rows_response` (libs/libcommon/src/libcommon/viewer_utils/rows.py) with the settings in production
(chart/env/prod.yaml: firstRows.maxBytes 200,000; chart/values.yaml: minCellBytes 100, minNumber 10): `preview_rows_V`, how
many rows it has; `preview_whole_V`, how many of them with nothing cut off; `preview_s_V` and `preview_gb_V`: seconds of a
core, and by how much the process's memory grew.
"""

from __future__ import annotations

import resource
import sys
import types
from pathlib import Path
from typing import Any

import common
import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import synthetic

from hf_dr.views.augmentation import Augmentation

PAGE, WRITTEN = 100, 10
MAX_BYTES, MIN_CELL_BYTES, MIN_ROWS, MAX_COLUMNS = 200_000, 100, 10, 1_000


class _Unused:
    """What the viewer needs for images and PDFs, which are not in an overlay."""


def viewer(checkout: Path) -> tuple[Any, Any, Any]:
    """Returns the viewer's `create_first_rows_response`, `RowsContent` and `get_json_size`."""
    sys.path.append(str(checkout / "libs" / "libcommon" / "src"))
    for name in ("libcommon.storage_client", "libcommon.viewer_utils.asset", "pdfplumber", "pdfplumber.pdf"):
        stub = types.ModuleType(name)
        stub.__getattr__ = lambda _: _Unused  # type: ignore[method-assign]
        sys.modules[name] = stub
    from libcommon.dtos import RowsContent
    from libcommon.utils import get_json_size
    from libcommon.viewer_utils.rows import create_first_rows_response

    return create_first_rows_response, RowsContent, get_json_size


def _highest_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--viewer", type=Path, required=True, help="Folder of a clone of huggingface/dataset-viewer.")
    flags = parser.parse_args()
    first_rows, content, size_of = viewer(flags.viewer)
    photos, data = common.photos(flags.data, WRITTEN)
    result: dict[str, Any] = {"data": data, "rows": PAGE}
    with common.working_folder() as folder:
        for views in (50, 400) if flags.quick else (50, 400, 1000, 8000):
            made = synthetic.write(
                synthetic.with_numbers(photos), Augmentation.named("randaug"), views, folder / str(views), overlay=True
            )
            table = pa.concat_tables([pq.read_table(path) for path in made.glob("*.parquet")] * (PAGE // WRITTEN))
            features = datasets.Features.from_arrow_schema(table.schema)
            answers: list[Any] = []

            def preview(
                table: pa.Table = table, features: datasets.Features = features, to: list[Any] = answers
            ) -> None:
                def rows(count: int) -> Any:
                    return content(rows=table.slice(0, count).to_pylist(), all_fetched=False, truncated_columns=[])

                limits = (MIN_CELL_BYTES, MAX_BYTES, PAGE, MIN_ROWS, MAX_COLUMNS)
                to.append(first_rows("org/x-plus", "main", "x", "train", None, "", None, features, rows, *limits))

            before = _highest_memory()
            result[f"preview_s_{views}"] = common.cpu_seconds(preview)
            result[f"preview_gb_{views}"] = _highest_memory() - before
            shown = answers[0]["rows"]
            result[f"preview_rows_{views}"] = len(shown)
            result[f"preview_whole_{views}"] = sum(not row["truncated_cells"] for row in shown)
            sizes = [size_of(row) for row in table.slice(0, WRITTEN).to_pylist()]
            result[f"row_kb_{views}"] = sum(sizes) / len(sizes) / 1e3
            result[f"page_mb_{views}"] = sum(sizes) / len(sizes) * PAGE / 1e6
    common.table([[key, value] for key, value in result.items() if isinstance(value, (int, float))], ["", ""])
    common.finish(result, flags)


if __name__ == "__main__":
    main()
