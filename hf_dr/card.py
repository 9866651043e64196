"""The card of a "+" dataset: README.md with the YAML that lets `load_dataset` find the configs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from hf_dr.schema import PROVENANCE_FILE, Provenance
from hf_dr.shards import read_marker

_BODY = """# {title}

A reinforced dataset: each example carries, for {views} random augmentations of its image, the augmentation's parameters
and the {top_k} most probable classes of a teacher ensemble with their log-probabilities
([Dataset Reinforcement](https://arxiv.org/abs/2303.08983)). Made with hf_dr.

```python
from datasets import load_dataset

plus = load_dataset("{title}", "{config}", split="{split}")
```
"""


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table, without a line break at its end."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def finished_configs(folder: Path) -> dict[str, Provenance]:
    """Returns the provenance of every config of a "+" dataset whose shards are all there, by name."""
    configs = {}
    for path in sorted(folder.glob(f"*/{PROVENANCE_FILE}")):
        provenance = Provenance.read(path.parent)
        if all((path.parent / name).exists() for name in provenance.shard_names):
            configs[provenance.config_name] = provenance
    return configs


def write_card(folder: Path) -> None:
    """Writes the card of a "+" dataset for all its finished configs; text and other metadata of an existing card stay."""
    infos, sources = DatasetInfosDict(), MetadataConfigs()
    configs = finished_configs(folder)
    for name, provenance in configs.items():
        shards = [folder / name / shard for shard in provenance.shard_names]
        markers = [read_marker(path) for path in shards]
        split = SplitInfo(provenance.split, sum(m.num_bytes for m in markers), provenance.num_rows)
        infos[name] = DatasetInfo(
            features=Features.from_arrow_schema(pq.read_schema(shards[0])),
            splits=SplitDict({provenance.split: split}),
            download_size=sum(m.file_bytes for m in markers),
            dataset_size=split.num_bytes,
        )
        path = f"{name}/{provenance.split}-*"
        sources[name] = {"data_files": [{"split": provenance.split, "path": path}]}
    readme = folder / "README.md"
    if readme.exists():
        card = DatasetCard.load(readme)
    else:
        first = next(iter(configs.values()))
        body = _BODY.format(
            title=folder.resolve().name,
            views=first.num_views,
            top_k=first.top_k,
            config=first.config_name,
            split=first.split,
        )
        card = DatasetCard(f"---\n{DatasetCardData(tags=['dataset-reinforcement', 'arxiv:2303.08983'])}\n---\n\n{body}")
    infos.to_dataset_card_data(card.data)
    sources.to_dataset_card_data(card.data)
    temporary = readme.with_name(".README.md.tmp")
    card.save(temporary)
    temporary.replace(readme)
