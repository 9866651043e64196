"""An overlay finds its images in any copy of its base, by their pixels, and nothing else passes for them."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import torch
from conftest import ALL_OPS, as_cell, colour_image
from hypothesis import example, given
from hypothesis import strategies as st
from samples import quick

import hf_dr.replay.join
import hf_dr.store.base_dataset
from hf_dr.errors import ConfigError, DataError, ReplayError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.join import UNREADABLE, JoinedBase, index_images
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.view_requests import fresh_view
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.views.augmentation import PARTNER, Augmentation
from hf_dr.views.images import pixel_hash
from hf_dr.views.ops.geometry import RandomResizedCrop

ROWS, VIEWS = 12, 4
FORMATS = ("PNG", "BMP", "WEBP")
BROKEN = {"bytes": b"broken", "path": None}
STRANGERS = [colour_image(np.random.default_rng(100 + n), n) for n in range(3)]


@pytest.fixture(scope="module")
def overlay(tmp_path_factory, tiny_dataset, tiny_teacher) -> ReinforcedDataset:
    """`tiny_folder` without its images, joined to its own base."""
    folder = tmp_path_factory.mktemp("overlay")
    config = ReinforceConfig(str(folder), num_views=VIEWS, top_k=3, shard_size=5, overlay=True)
    reinforce(tiny_dataset, tiny_teacher, ALL_OPS, config)
    return load_reinforced(folder, base=tiny_dataset)


@pytest.fixture(scope="module")
def join(overlay) -> Callable[..., ReinforcedDataset]:
    """Returns `join(base)`: the overlay over another base."""
    return lambda base, **settings: ReinforcedDataset(overlay.plus, overlay.provenance, base=base, **settings)


@pytest.fixture
def base_of(tiny_dataset) -> Callable[..., datasets.Dataset]:
    """Returns `base_of(cells, labels)`: a dataset of these undecoded cells."""

    def base_of(cells: Sequence[dict], labels: Sequence[int] | None = None) -> datasets.Dataset:
        columns = {"image": list(cells), "label": [0] * len(cells) if labels is None else list(labels)}
        return datasets.Dataset.from_dict(columns, features=tiny_dataset.features, split="train")

    return base_of


@pytest.fixture
def images(tiny_dataset) -> list:
    return [tiny_dataset[row]["image"] for row in range(ROWS)]


@pytest.fixture
def no_index(monkeypatch) -> None:
    """No image may be decoded for an index."""

    def refuse(images):
        raise AssertionError("the index is made")

    monkeypatch.setattr(hf_dr.replay.join, "_decode_all", refuse)


def pixels(plus: ReinforcedDataset, view: int) -> np.ndarray:
    return np.stack([plus[row, view]["pixel_values"].numpy() for row in range(ROWS)])


# ------------------------------------------------------------------------------------------------------ by the pixels


@quick
@given(
    order=st.permutations(range(ROWS + len(STRANGERS))),
    formats=st.lists(st.sampled_from(FORMATS), min_size=ROWS + len(STRANGERS), max_size=ROWS + len(STRANGERS)),
    view=st.integers(0, VIEWS - 1),
)
@example(order=range(ROWS + len(STRANGERS)), formats=["BMP"] * (ROWS + len(STRANGERS)), view=0)
def test_any_order_and_any_lossless_files_replay_the_same_views(
    overlay, join, base_of, images, tiny_plus, order, formats, view
):
    """Mixed views, too: partners are found across the join."""
    own = [*images, *STRANGERS]
    settings = {"WEBP": {"lossless": True, "exact": True}}
    cells = [as_cell(own[row], kind, **settings.get(kind, {})) for row, kind in zip(order, formats, strict=True)]
    plus = join(base_of(cells))
    np.testing.assert_array_equal(pixels(plus, view), pixels(overlay, view))
    np.testing.assert_array_equal(pixels(plus, view), pixels(tiny_plus, view))


def test_the_views_of_the_property_are_mixed_ones(overlay):
    partners = [overlay.params(row, view)[PARTNER] for row in range(ROWS) for view in range(VIEWS)]
    assert sum(partner >= 0 for partner in partners) > 8


def test_equal_images_may_be_there_twice(overlay, join, tiny_dataset):
    twice = datasets.concatenate_datasets([tiny_dataset.select([3, 4]), tiny_dataset.shuffle(seed=1)])
    np.testing.assert_array_equal(pixels(join(twice), 1), pixels(overlay, 1))


def test_rows_that_were_selected_look_only_for_their_own_images(overlay, images, tiny_dataset):
    plus = ReinforcedDataset(overlay.plus.select([7, 2]), overlay.provenance, base=tiny_dataset.select([2, 9, 7]))
    for number, row in enumerate((7, 2)):
        np.testing.assert_array_equal(np.asarray(plus.example_image(number)), np.asarray(images[row]))


@pytest.mark.parametrize("order", [range(ROWS), [*range(1, ROWS), 0]], ids=["in place", "moved"])
def test_a_changed_pixel_is_refused_with_its_row(join, base_of, images, order):
    changed = images[3].copy()
    changed.putpixel((5, 5), (0, 0, 0))
    cells = [as_cell(changed if row == 3 else images[row]) for row in order]
    message = r"`base` must hold the images of all 12 reinforced rows, but those of 1 are not among its 12: first row 3 \(pixel"
    with pytest.raises(DataError, match=message):
        join(base_of(cells))


def test_a_changed_pixel_that_no_sample_shows_is_refused_when_met(monkeypatch, join, base_of, images):
    monkeypatch.setattr(hf_dr.store.base_dataset, "_SAMPLED_ROWS", 2)
    changed = images[3].copy()
    changed.putpixel((5, 5), (0, 0, 0))
    plus = join(base_of([as_cell(changed if row == 3 else image) for row, image in enumerate(images)]))
    plus.example_image(2)
    with pytest.raises(ReplayError, match=r"row 3 must hold the image that was reinforced \(pixel hash [0-9a-f]{16}\)"):
        plus.example_image(3)


def test_a_wrong_image_is_named_by_its_row_here_and_there(join, tiny_dataset, monkeypatch):
    """As where the kept index is of files that were changed behind its back."""
    plus = join(tiny_dataset.select([*range(1, ROWS), 0]))
    monkeypatch.setattr(plus, "_images", undecoded_images(tiny_dataset, "image"))
    with pytest.raises(ReplayError, match=r"row 3 \(row 2 of `base`\) must hold the image that was reinforced"):
        plus.example_image(3)


def test_an_undecodable_image_is_no_match(join, base_of, images):
    cells = [BROKEN if row == 5 else as_cell(image) for row, image in enumerate(images)]
    with pytest.raises(DataError, match="those of 1 are not among its 12: first row 5"):
        join(base_of(cells))
    np.testing.assert_array_equal(
        index_images(undecoded_images(base_of([BROKEN, as_cell(images[0])]), "image")),
        np.array([UNREADABLE, pixel_hash(images[0])], np.uint64),
    )


def test_a_base_is_one_split(join, tiny_dataset):
    for base in (datasets.DatasetDict({"train": tiny_dataset}), tiny_dataset.to_iterable_dataset()):
        with pytest.raises(
            DataError, match=f"must be one split, a datasets.Dataset, got {type(base).__name__}. Load split"
        ):
            join(base)


def test_an_empty_base_has_no_image(join, tiny_dataset):
    with pytest.raises(DataError, match="those of 12 are not among its 0: first row 0"):
        join(tiny_dataset.select([]))


# ----------------------------------------------------------------------------------------------------------- by place


@pytest.mark.usefixtures("no_index")
def test_images_in_place_are_not_looked_for(join, base_of, images, tiny_dataset, overlay):
    files = [as_cell(image, "BMP") for image in images]
    for base in (tiny_dataset, tiny_dataset.with_format("torch"), base_of(files), base_of([*files, BROKEN])):
        assert torch.equal(join(base)[7, 1]["pixel_values"], overlay[7, 1]["pixel_values"])
    with pytest.raises(AssertionError, match="the index is made"):
        join(base_of([*files[1:], BROKEN]))


@pytest.mark.usefixtures("no_index")
def test_the_same_files_are_in_place_whatever_decodes_them(monkeypatch, overlay, tiny_dataset):
    """Another library's pixels are refused at the first image, not after an hour."""
    wrong = dataclasses.replace(overlay.provenance, base={**overlay.provenance.base, "content_hash": None})
    monkeypatch.setattr(hf_dr.replay.join, "pixel_hash", lambda image: 1)
    source, hashes = np.arange(ROWS), np.arange(2, ROWS + 2).astype(np.uint64)
    assert JoinedBase(tiny_dataset, overlay.provenance).places(source, hashes) is source
    with pytest.raises(AssertionError, match="the index is made"):
        JoinedBase(tiny_dataset, wrong).places(source, hashes)


def test_a_joined_base_serves_one_stretch_of_rows_after_another(overlay, tiny_dataset, images):
    hashes = np.array([pixel_hash(image) for image in images], np.uint64)
    for order in (np.arange(ROWS), np.random.default_rng(0).permutation(ROWS)):
        joined = JoinedBase(tiny_dataset.select(order), overlay.provenance)
        assert joined.places(np.arange(0), hashes[:0]).tolist() == []
        for rows in (np.arange(5), np.arange(5, 12)):
            np.testing.assert_array_equal(order[joined.places(rows, hashes[rows])], rows)


def test_a_part_in_place_does_not_speak_for_the_next(overlay, tiny_dataset, images):
    """As a stream asks: an image more in the middle of the base moves what comes after it only."""
    hashes = np.array([pixel_hash(image) for image in images], np.uint64)
    order = np.array([*range(6), 0, *range(6, ROWS)])
    joined = JoinedBase(tiny_dataset.select(order), overlay.provenance)
    for rows in (np.arange(5), np.arange(6, ROWS), np.arange(5)):
        np.testing.assert_array_equal(hashes[order[joined.places(rows, hashes[rows])]], hashes[rows])


# -------------------------------------------------------------------------------------------------------------- cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    return tmp_path / "hf_dr"


def test_the_index_is_kept(cache, monkeypatch, tiny_dataset):
    shuffled = undecoded_images(tiny_dataset.shuffle(seed=3), "image")
    index = index_images(shuffled)
    monkeypatch.setattr(hf_dr.replay.join, "_decode_all", None)
    np.testing.assert_array_equal(index_images(shuffled), index)
    np.testing.assert_array_equal(index_images(undecoded_images(tiny_dataset.shuffle(seed=3), "image")), index)
    # Some versions of filelock leave their file.
    assert [path.suffix for path in cache.iterdir() if path.suffix != ".lock"] == [".npy"]


def test_one_process_makes_the_index_and_the_others_wait(cache, monkeypatch, tiny_dataset):
    """Threads stand for them: a file lock holds off either."""
    images, made, decode_all = undecoded_images(tiny_dataset, "image"), [], hf_dr.replay.join._decode_all

    def slow(images):
        made.append(images)
        time.sleep(0.2)
        return decode_all(images)

    monkeypatch.setattr(hf_dr.replay.join, "_decode_all", slow)
    with ThreadPoolExecutor(4) as pool:
        indices = list(pool.map(index_images, [images] * 4))
    assert len(made) == 1
    assert all((index == indices[0]).all() for index in indices)


@pytest.mark.parametrize("changed", [("DECODING_RULE", 2), ("PIL.__version__", "0")], ids=lambda changed: changed[0])
def test_another_decoder_makes_an_index_of_its_own(cache, monkeypatch, tiny_dataset, changed):
    images = undecoded_images(tiny_dataset, "image")
    index_images(images)
    monkeypatch.setattr(f"hf_dr.replay.join.{changed[0]}", changed[1])
    index_images(images)
    index_images(images.select([1, 0]))
    assert len(list(cache.glob("*.npy"))) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-20] + b"\1" + content[-19:],
        lambda content: b"",
        lambda content: b"\x93NUMPY" + content[7:],
        lambda content: content.replace(b"<u8", b"|O8"),  # would be unpickled
    ],
    ids=["cut", "flipped", "empty", "no version", "objects"],
)
def test_a_damaged_index_is_made_again_with_a_warning(cache, tiny_dataset, caplog, damage):
    images = undecoded_images(tiny_dataset, "image")
    index = index_images(images)
    (path,) = cache.glob("*.npy")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(index_images(images), index)
    assert f"The index of the base's images in {path} is damaged" in caplog.text
    assert path.read_bytes() == whole


def test_an_index_that_is_stopped_leaves_nothing_half(cache, monkeypatch, tiny_dataset):
    images = undecoded_images(tiny_dataset, "image")
    with monkeypatch.context() as patch:
        patch.setattr(hf_dr.replay.join, "decode_image", lambda cell: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index_images(images)
    assert not list(cache.glob("*.npy"))
    assert UNREADABLE not in index_images(images)


# ---------------------------------------------------------------------------------------------- without reinforcement


@pytest.fixture(scope="module")
def partial(tmp_path_factory, tiny_dataset, tiny_teacher) -> Callable[..., ReinforcedDataset]:
    """Returns `partial(base, ...)`: the first 9 rows reinforced, of which 2 and 5 were undecodable; an overlay."""
    cells = undecoded_images(tiny_dataset, "image")["image"]
    cells = [BROKEN if row in (2, 5) else cell for row, cell in enumerate(cells)]
    broken = tiny_dataset.remove_columns("image").add_column("image", cells, feature=datasets.Image())
    folder = tmp_path_factory.mktemp("partial")
    config = ReinforceConfig(
        str(folder), num_views=VIEWS, top_k=3, overlay=True, on_bad_image="skip", max_examples=9, shard_size=4
    )
    reinforce(broken, tiny_teacher, Augmentation([RandomResizedCrop(16)]), config)
    return lambda base=broken, **settings: load_reinforced(folder, base=base, **settings)


def test_rows_without_reinforcement_come_last_if_asked_for(partial, tiny_dataset, caplog):
    default = partial()
    assert (len(default), default.num_reinforced, default.all_reinforced) == (7, 7, True)
    assert "2 rows have no reinforcement and are left out" in caplog.text
    caplog.clear()
    plus = partial(unreinforced=True)
    assert (len(plus), plus.num_reinforced, plus.all_reinforced) == (10, 7, False)
    assert "2 rows cannot be decoded and are left out" in caplog.text
    assert plus.source_rows.tolist() == [0, 1, 3, 4, 6, 7, 8, -1, -1, -1]
    rows = [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
    assert plus.labels.tolist() == [tiny_dataset[row]["label"] for row in rows]
    for number, row in enumerate(rows):
        item = plus[number]
        assert item["reinforced"] == (number < 7)
        assert item["labels"] == tiny_dataset[row]["label"]
        assert torch.equal(item["teacher_ids"], torch.zeros(3, dtype=torch.int64)) == (number >= 7)
        np.testing.assert_array_equal(np.asarray(plus.example_image(number)), np.asarray(tiny_dataset[row]["image"]))
    for number in range(7):
        assert torch.equal(plus[number, 1]["pixel_values"], default[number, 1]["pixel_values"])


def test_views_without_reinforcement_are_newly_drawn_in_each_epoch(partial):
    plus = partial(unreinforced=True)
    epochs = range(VIEWS + 2)
    assert plus.scheduled_views(np.arange(10), 3)[7:].tolist() == [-1 - 3] * 3
    assert (plus.scheduled_views(np.arange(10), 3)[:7] == partial().scheduled_views(np.arange(7), 3)).all()
    assert plus.resolved(9, int(plus.scheduled_views(-1, 2))) == fresh_view(2)
    drawn = [plus[9, fresh_view(epoch)]["pixel_values"] for epoch in epochs]
    assert len({view.numpy().tobytes() for view in drawn}) == len(epochs)
    for epoch in epochs:
        plus.set_epoch(epoch)
        assert torch.equal(plus[9]["pixel_values"], drawn[epoch])
    for ask in (lambda: plus[9, 0], lambda: plus.image(7, 0), lambda: plus.params(8, 1), lambda: plus.views_hash(9)):
        with pytest.raises(IndexError, match=r"view \d of 0"):
            ask()


def test_each_row_draws_for_itself(partial, tiny_dataset):
    twice = datasets.concatenate_datasets([tiny_dataset.select(range(9)), tiny_dataset.select([11, 11])])
    plus = partial(twice, unreinforced=True)
    np.testing.assert_array_equal(np.asarray(plus.example_image(-1)), np.asarray(plus.example_image(-2)))
    assert not torch.equal(plus[-1]["pixel_values"], plus[-2]["pixel_values"])


def test_rows_that_can_be_decoded_by_now_are_among_them(partial, tiny_dataset):
    assert partial(tiny_dataset, unreinforced=True).labels[7:].tolist() == [
        tiny_dataset[row]["label"] for row in (2, 5, 9, 10, 11)
    ]


def test_they_are_found_in_another_order_as_well(partial, tiny_dataset):
    order = np.random.default_rng(1).permutation(ROWS)
    plus = partial(tiny_dataset.select(order), unreinforced=True)
    rest = [row for row in order if row in (2, 5, 9, 10, 11)]
    assert plus.source_rows.tolist() == [0, 1, 3, 4, 6, 7, 8] + [-1] * 5
    assert plus.labels[7:].tolist() == [tiny_dataset[int(row)]["label"] for row in rest]
    np.testing.assert_array_equal(np.asarray(plus.example_image(7)), np.asarray(tiny_dataset[int(rest[0])]["image"]))


def test_skipped_rows_of_a_dataset_with_images(tmp_path, tiny_dataset, tiny_teacher, caplog):
    """They are its own: fixed in place they can be used, else not."""
    cells = undecoded_images(tiny_dataset, "image")["image"]
    broken = tiny_dataset.remove_columns("image").add_column(
        "image", [BROKEN if row == 4 else cell for row, cell in enumerate(cells)], feature=datasets.Image()
    )
    config = ReinforceConfig(str(tmp_path), num_views=1, top_k=1, on_bad_image="skip")
    reinforce(broken, tiny_teacher, Augmentation([RandomResizedCrop(8)]), config)
    plus = load_reinforced(tmp_path, unreinforced=True)
    assert (len(plus), plus.all_reinforced) == (11, True)
    assert "1 rows cannot be decoded and are left out" in caplog.text
    fixed = plus.plus.remove_columns("image").add_column("image", cells, feature=datasets.Image())
    whole = ReinforcedDataset(fixed, plus.provenance, unreinforced=True)
    assert (len(whole), whole.num_reinforced, whole[-1]["labels"]) == (12, 11, tiny_dataset[4]["label"])


def test_without_labels_there_is_nothing_to_learn_from(tmp_path, tiny_dataset, tiny_teacher, partial):
    config = ReinforceConfig(str(tmp_path), num_views=1, top_k=1)
    reinforce(tiny_dataset.remove_columns("label"), tiny_teacher, Augmentation([RandomResizedCrop(8)]), config)
    with pytest.raises(ConfigError, match=r"`unreinforced` needs the labels of the base, .* Leave it out"):
        load_reinforced(tmp_path, unreinforced=True)
    with pytest.raises(
        ConfigError, match=r"needs the labels of the base, found \['image'\] and the label column 'label'"
    ):
        partial(tiny_dataset.remove_columns("label"), unreinforced=True)


def test_the_base_must_have_the_same_classes(partial, tiny_dataset):
    names = tiny_dataset.features["label"].names
    other = tiny_dataset.cast_column("label", datasets.ClassLabel(names=[names[1], names[0], *names[2:]]))
    with pytest.raises(
        DataError, match=r"classes of the .* in their order, but class 0 is 'blue' there and 'black' in"
    ):
        partial(other, unreinforced=True)
    plain = tiny_dataset.remove_columns("label").add_column("label", [0] * 10 + [None, 0])
    with pytest.raises(DataError, match="labels of the base must be from 0 to 7 in every row, found none in row 10"):
        partial(plain, unreinforced=True)
