"""Writes the cards of the "+" datasets to publish, as far as they are known before their runs: `python hub_cards/render.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_data_config

from hf_dr.cli.arguments import build_augmentation
from hf_dr.cli.config import parse
from hf_dr.cli.flags import BaseArguments, RunArguments, TeacherArguments
from hf_dr.cli.yaml_files import read_yaml
from hf_dr.generation.config import ReinforceConfig
from hf_dr.store.base_dataset import card_license
from hf_dr.store.card import CardConfig, update_card
from hf_dr.store.provenance import Provenance
from hf_dr.store.schema import SCHEMA_VERSION
from hf_dr.teacher.members import load_member

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "hub_cards"
OWNER = "org"  # whoever publishes: pushing puts the real name in


def render_all() -> dict[Path, str]:
    """Returns the text of each card, by its file."""
    cards = {}
    for name, plan in read_yaml(CARDS / "plans.yaml").items():
        folder = ROOT / "recipes" / plan["recipe"]
        configs = {}
        for config, recipe in plan["configs"].items():
            path = folder / f"{recipe}.yaml"
            if "runs" in plan:
                names = {f"{config}_{seed}": ["--seed", str(seed)] for seed in range(plan["runs"])}
            else:
                names = {config: []}
            configs |= {name: CardConfig(planned(path, name, *flags)) for name, flags in names.items()}
        cards[CARDS / name / "README.md"] = update_card(f"# {plan['title']}\n", configs, name=f"{OWNER}/{name}")
    return cards


def planned(recipe: Path, name: str, *flags: str) -> Provenance:
    """Returns the configuration that a recipe makes, with more flags; what only a run can tell is 0 or empty."""
    base, teaching, _, config = parse(
        [BaseArguments, TeacherArguments, RunArguments, ReinforceConfig],
        ["--config", str(recipe), "--config_name", name, *flags],
        prog="reinforce",
        description="",
    )
    folder = ROOT / base.dataset
    known = {"id": folder.name, "license": card_license(str(folder))} if folder.is_dir() else {"id": base.dataset}
    augmentation = build_augmentation(teaching.augmentation, teaching.size)
    members = [describe(teacher, recipe.parent) for teacher in teaching.teacher]
    return Provenance(
        config_name=name,
        split=base.split,
        augmentation=augmentation.to_list(),
        num_views=config.num_views,
        top_k=config.top_k,
        signal=config.signal,
        seed=config.seed,
        overlay=config.overlay,
        mixing_scope=config.mixing_scope,
        base={"config": base.dataset_config, "revision": base.revision, **known},
        teacher={"members": members},
        num_classes=members[0].get("num_classes", 0),
        shard_size=0,
        num_rows=0,
        image_column="",
        label_column=config.label_column or "label",  # as a run finds it
        on_bad_image=config.on_bad_image,
        library_versions={},
        created_with="",
        skipped_rows=[],
        schema_version=SCHEMA_VERSION,
    )


def describe(teacher: str, folder: Path) -> dict[str, Any]:
    """Returns what is known of a teacher without the network: from its folder, or from timm for its checkpoints."""
    if (ROOT / teacher / "config.json").is_file():
        return load_member(str(ROOT / teacher)).provenance()
    if not teacher.startswith("timm/"):
        by = f" by {path.relative_to(ROOT)}" if (path := folder / "teacher.yaml").is_file() else ""
        return {"id": f"to be fine-tuned on the base dataset first{by}"}
    cfg = timm.get_pretrained_cfg(teacher.removeprefix("timm/"))
    assert cfg is not None
    data = resolve_data_config(pretrained_cfg=cfg.to_dict(), verbose=False)
    preprocessing = {key: data[key] for key in ("mean", "std", "interpolation")} | {"size": data["input_size"][1:]}
    return {"id": teacher, "license": cfg.license, "num_classes": cfg.num_classes, "preprocessing": preprocessing}


if __name__ == "__main__":
    for path, text in render_all().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
