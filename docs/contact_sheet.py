"""Makes docs/contact_sheet.png: the demo's "+" dataset of four images of clothes. Takes no arguments."""

import tempfile
from pathlib import Path

import PIL.Image

import hf_dr
from hf_dr.cli.yaml_files import read_yaml
from hf_dr.generation.contact_sheet import contact_sheet
from hf_dr.store.base_dataset import load_base

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).with_suffix(".png")
ROWS = (0, 3, 9, 14)
COLOURS = 128  # enough for text, bars and grey clothes, in a third of the bytes


def main() -> None:
    recipe = read_yaml(ROOT / "recipes" / "fashion_mnist" / "reinforce.yaml")
    images, described = load_base(str(ROOT / recipe["dataset"]), split="train")
    with tempfile.TemporaryDirectory() as folder:
        config = hf_dr.ReinforceConfig(folder, "randaug", num_views=5, top_k=recipe["top_k"], max_examples=16)
        plus = hf_dr.reinforce(
            images, [str(ROOT / name) for name in recipe["teacher"]], recipe["augmentation"], config, base=described
        )
        sheet = contact_sheet(plus, Path(folder) / "sheet.png", rows=ROWS, num_views=5)
        PIL.Image.open(sheet).convert("RGB").quantize(COLOURS).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
