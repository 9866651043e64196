"""The contact sheet: a PNG of the right shape, written whole or not at all. How it looks is for people to judge."""

import copy
from pathlib import Path

import datasets
import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
from conftest import ALL_OPS, as_cell, colour_image
from matplotlib.font_manager import FontEntry, fontManager

from hf_dr.errors import ConfigError, HfDrError, ReplayError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.contact_sheet import contact_sheet
from hf_dr.generation.job import reinforce
from hf_dr.replay.combined import CombinedReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomHorizontalFlip, Resize


def test_rows_and_views_make_the_size(tmp_path, tiny_plus):
    small, tall, wide = (
        contact_sheet(tiny_plus, tmp_path / "new" / f"{n}.png", num_rows=rows, num_views=views)
        for n, (rows, views) in enumerate([(1, 2), (3, 2), (1, 3)])
    )
    sizes = []
    for path in (small, tall, wide):
        with PIL.Image.open(path) as image:
            assert image.format == "PNG"
            image.load()
            assert np.asarray(image.convert("L")).std() > 10, "something is drawn"
            sizes.append(image.size)
    assert 500 < sizes[0][0] < 1200
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] > 2 * sizes[0][1]
    assert sizes[2][1] == sizes[0][1]
    assert sizes[2][0] > sizes[0][0]


def test_only_the_sheet_is_left_in_the_folder(tmp_path, tiny_plus):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"an older one")
    assert contact_sheet(tiny_plus, str(path), rows=[11, 0, 3], num_views=99) == path
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_failure_leaves_the_old_sheet(tmp_path, tiny_plus, edit, monkeypatch):
    path = tmp_path / "sheet.png"
    path.write_bytes(b"an older one")
    image = as_cell(colour_image(np.random.default_rng(1), 3))
    damaged = edit(tiny_plus, "image", lambda cells: [image] * len(cells))
    with pytest.raises(ReplayError, match="must hold the image that was reinforced"):
        contact_sheet(damaged, path)

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    with pytest.raises(HfDrError, match=r"could not write .*no space left on device. Free space"):
        contact_sheet(tiny_plus, path, num_rows=1, num_views=1)
    assert path.read_bytes() == b"an older one"
    assert len(list(tmp_path.iterdir())) == 1


def test_large_pictures_are_scaled_down_smoothly(tmp_path, tiny_teacher):
    """Stripes of one pixel, of which every second one alone would be black or white, are grey."""
    stripes = np.zeros((464, 464, 3), np.uint8)
    stripes[:, ::2] = 255
    rows = {"image": [as_cell(PIL.Image.fromarray(stripes))]}
    base = datasets.Dataset.from_dict(rows, datasets.Features({"image": datasets.Image()}))
    plus = reinforce(base, tiny_teacher, Augmentation([Resize((464, 464))]), ReinforceConfig(str(tmp_path / "plus")))
    with PIL.Image.open(contact_sheet(plus, tmp_path / "sheet.png", num_rows=1, num_views=1)) as sheet:
        pixels = np.asarray(sheet.convert("L"))
    assert ((pixels > 100) & (pixels < 155)).sum() > 80_000


def test_the_users_matplotlib_is_left_alone(tmp_path, tiny_plus):
    with mpl.rc_context({"font.size": 30, "savefig.dpi": 20, "figure.facecolor": "red"}):
        before = dict(mpl.rcParams)
        odd = contact_sheet(tiny_plus, tmp_path / "odd.png", num_rows=1, num_views=1)
        assert dict(mpl.rcParams) == before
    plain = contact_sheet(tiny_plus, tmp_path / "plain.png", num_rows=1, num_views=1)
    with PIL.Image.open(odd) as one, PIL.Image.open(plain) as other:
        assert one.size == other.size
        assert one.tobytes() == other.tobytes()


def test_without_labels_or_their_names(tmp_path, tiny_dataset, tiny_teacher):
    still = Augmentation([Resize((20, 20)), RandomHorizontalFlip()])
    unnamed = tiny_dataset.remove_columns("label").add_column("label", [0] * 12)
    for n, dataset in enumerate([tiny_dataset.remove_columns("label"), unnamed]):
        reinforce(dataset, tiny_teacher, still, ReinforceConfig(str(tmp_path / str(n)), num_views=2, top_k=2))
        assert contact_sheet(load_reinforced(tmp_path / str(n)), tmp_path / f"{n}.png", num_rows=1).is_file()


def test_a_part_of_a_dataset_names_rows_of_the_base(tmp_path, tiny_plus, monkeypatch):
    captions = []
    monkeypatch.setattr(
        "hf_dr.generation.contact_sheet._Sheet._caption", lambda self, left, top, *texts: captions.append(texts)
    )
    part = type(tiny_plus)(tiny_plus.plus.select([7, 3, *range(8, 12), *range(3), *range(4, 7)]), tiny_plus.provenance)
    contact_sheet(part, tmp_path / "sheet.png", rows=[0, 1], num_views=4)
    assert [texts for texts in captions if "row" in texts[0]] == [("row 7", "original"), ("row 3", "original")]
    expected = [tiny_plus.params(row, view)["partner"] for row in (7, 3) for view in range(4)]
    found = [texts[1] for texts in captions if "view" in texts[0]]
    assert any(found)
    for partner, note in zip(expected, found, strict=True):
        assert note is None if partner < 0 else note.startswith(f"+ row {partner}, ")


@pytest.mark.parametrize("name", ["猫", "\U0001d7fb"])
def test_letters_that_matplotlibs_font_lacks(name, tmp_path, tiny_dataset, tiny_teacher, caplog, monkeypatch):
    """Another font has them, or they are told of, once, and not by warnings."""
    shipped = [font for font in fontManager.ttflist if mpl.get_data_path() in font.fname]
    gone = FontEntry(fname=str(tmp_path / "gone.ttf"), name="A font that is gone")
    monkeypatch.setattr(fontManager, "ttflist", [gone, *shipped])
    images = tiny_dataset.remove_columns("label").add_column("label", [0] * 12)
    images = images.cast_column("label", datasets.ClassLabel(names=[name, *"bcdefgh"]))
    still = Augmentation([Resize((20, 20))])
    unnamed = copy.copy(tiny_teacher)
    unnamed.labels = None
    config = ReinforceConfig(str(tmp_path), num_views=1, top_k=2)
    plus = reinforce(images, unnamed, still, config)
    assert contact_sheet(plus, tmp_path / "sheet.png", num_rows=2).is_file()
    assert caplog.text.count("No font of this machine has 猫: boxes are drawn. Install one") == (name == "猫")
    assert ("No font" in caplog.text) == (name == "猫")


def test_an_overlay_is_drawn_with_its_base(tmp_path, tiny_dataset, tiny_teacher):
    reinforce(tiny_dataset, tiny_teacher, ALL_OPS, ReinforceConfig(str(tmp_path), num_views=1, top_k=3, overlay=True))
    opened = contact_sheet(load_reinforced(tmp_path, base=tiny_dataset), tmp_path / "a.png", num_rows=2)
    named = contact_sheet(tmp_path, tmp_path / "b.png", num_rows=2, base=tiny_dataset, name="default")
    assert named.read_bytes() == opened.read_bytes()


def test_every_operation_of_a_policy_has_its_name(tmp_path):
    """AutoAugment and RandAugmentIncreasing have some that RandAugment has not."""
    golden = Path(__file__).parents[1] / "golden" / "v4"
    assert contact_sheet(golden, tmp_path / "sheet.png", name="policies", num_views=12).is_file()


def test_impossible_settings(tmp_path, tiny_plus):
    with pytest.raises(ConfigError, match='`plus` must be one "\\+" dataset whose rows can be chosen, got Combined'):
        contact_sheet(CombinedReinforcedDataset([tiny_plus]), tmp_path / "sheet.png")
    with pytest.raises(ConfigError, match="`name` and `base` must come with a path, got an opened dataset"):
        contact_sheet(tiny_plus, tmp_path / "sheet.png", name="all_ops")
    with pytest.raises(ConfigError, match=r"must be a .png file, got '.*sheet.jpg'. Rename it"):
        contact_sheet(tiny_plus, tmp_path / "sheet.jpg")
    for setting in ("num_rows", "num_views"):
        with pytest.raises(ConfigError, match=f"`{setting}` must be a whole number of at least 1, got 0"):
            contact_sheet(tiny_plus, tmp_path / "sheet.png", **{setting: 0})
    for rows in ([12], [-1], []):
        with pytest.raises(ConfigError, match=r"`rows` must name rows from 0 to 11, got"):
            contact_sheet(tiny_plus, tmp_path / "sheet.png", rows=rows)
