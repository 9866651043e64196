"""Detection: what is read, what is learned from and what is measured, on coloured rectangles."""

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import WithoutDoubles, quick
from toys import CATEGORY_COLOURS, SIDE, detection_flags, objects_dataset, read_coco, write_coco

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError
from hf_dr.transfer.backbone import backbone
from hf_dr.transfer.coco_masks import coco_library, decode_mask
from hf_dr.transfer.coco_metrics import CocoMeter, coco_truth
from hf_dr.transfer.detection import Detector, DetectorConfig, _choose_masks, check_same_categories
from hf_dr.transfer.detection_data import DetectionData, DetectionImages, collate
from hf_dr.transfer.settings import DetectionArguments


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    write_coco(folder)
    return folder


@pytest.fixture
def changed(tmp_path):
    """Writes a small set with its annotations changed; returns its folder."""

    def changed(change):
        content = write_coco(tmp_path, 2)
        change(content)
        (tmp_path / "a.json").write_text(json.dumps(content))
        return tmp_path

    return changed


# -------------------------------------------------------------------------------------------------------- what is read


def test_categories_become_labels_in_the_order_of_their_ids(toy):
    data = read_coco(toy)
    assert data.categories == {3: "red", 7: "blue"}
    assert sum(each.segmentations.count(None) for each in data.objects) == 0
    example = DetectionImages(data, train=True, masks=True)[0]
    image, target = example["image"].numpy(), example["target"]
    assert target["labels"].tolist() == [1, 2]
    for label, (left, top, right, bottom), mask in zip(
        target["labels"].tolist(), target["boxes"].int().tolist(), target["masks"].numpy(), strict=True
    ):
        colour = list(CATEGORY_COLOURS.values())[label - 1]
        inside = (image == np.array(colour)[:, None, None]).all(axis=0)
        assert np.array_equal(mask.astype(bool), inside)
        assert np.array_equal(np.argwhere(inside)[[0, -1]], [[top, left], [bottom - 1, right - 1]])


def test_what_is_not_learned(changed):
    def change(content):
        first, second, third, fourth = content["annotations"]
        first.update(iscrowd=1, segmentation={"size": [SIDE, SIDE], "counts": [0, SIDE * SIDE]})
        second["bbox"] = [SIDE - 0.2, 5, 10, 10]  # nearly all of it outside
        third["bbox"] = [5, 5, 10, 0]
        fourth["bbox"] = [-10, 5, 20, 10]  # clipped

    data = read_coco(changed(change))
    shown = DetectionImages(data, train=True, masks=True)
    assert shown.rows == [1]
    assert shown[0]["target"]["boxes"].tolist() == [[0, 5, 10, 15]]
    assert shown[0]["target"]["image_id"] == 1
    assert len(DetectionImages(data, train=False)) == 2


@quick
@given(st.integers(0, 99), st.integers(0, 5))
def test_a_mirrored_image_is_mirrored_with_its_objects(toy, epoch, row):
    data = read_coco(toy)
    plain = DetectionImages(data, train=True, masks=True)[row, epoch]
    flipped = DetectionImages(data, train=True, masks=True, flip=1.0)[row, epoch]
    assert torch.equal(flipped["image"], plain["image"].flip(-1))
    assert torch.equal(flipped["target"]["masks"], plain["target"]["masks"].flip(-1))
    left, top, right, bottom = plain["target"]["boxes"].unbind(1)
    assert torch.equal(flipped["target"]["boxes"], torch.stack([SIDE - right, top, SIDE - left, bottom], 1))


def test_flips_follow_from_seed_row_and_epoch(toy):
    data = read_coco(toy)

    def drawn(seed):
        images = DetectionImages(data, train=True, flip=0.5, seed=seed)
        return [images[row, epoch]["target"]["boxes"].sum().item() for epoch in range(4) for row in range(6)]

    assert drawn(0) == drawn(0) != drawn(1)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("bbox_format", "box"), [("coco", [10, 5, 20, 10]), ("voc", [10, 5, 30, 15])])
def test_a_dataset_of_the_hub(nested, bbox_format, box):
    rows = objects_dataset([[box, box], []], [[1, 0], []], nested, width=[40, 40], height=[30, 30])
    data = DetectionData.from_dataset(rows, {"id": "x"}, bbox_format=bbox_format)
    assert data.categories == {0: "a", 1: "b"}
    assert sum(each.segmentations.count(None) for each in data.objects) == 2
    shown = DetectionImages(data, train=True)
    assert len(shown) == 1
    assert shown[0]["target"]["boxes"].tolist() == [[10, 5, 30, 15]] * 2
    assert shown[0]["target"]["labels"].tolist() == [2, 1]
    assert shown[0]["image"].shape == (3, 30, 40)
    assert data.objects[0].areas.tolist() == [200, 200]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [(objects_dataset([[[20, 5, 10, 10]]], [[0]]), {"bbox_format": "voc"}, "but with `bbox_format` voc .* set the other"),
     (objects_dataset([[[20, 15, 39, 29]]], [[0]], width=[40], height=[30]), {}, "`bbox_format` is coco: set it to voc"),
     (objects_dataset([[[0, 0, 9, float("nan")]]], [[0]]), {}, "row 0 must have finite boxes"),
     (objects_dataset([[[0, 0, 9, 9]] * 2], [[1, -1]]), {}, r"row 0 must have .* categories below 2, found .* \[1, -1\]\. Fix"),
     (objects_dataset([[[900, 9, -1e-14, 5]]], [[0]]), {}, "with `bbox_format` coco the sides are .*-9.99.*e-15, 5"),
    (objects_dataset([[[9, 9, -4, 5]]], [[0]]), {}, "not have a side below 0, but with `bbox_format` coco .*-4.* Fix the row"),
     (objects_dataset([[]], [[]], width=[40], height=[None]), {}, "`height` and `width` must be whole numbers in every row"),
     (objects_dataset([[]], [[]]), {}, "x must have objects, found none in 1 images"),
     (objects_dataset([[]], [[]]), {"objects_column": "object"}, "must have the column `object`. Did you mean `objects`"),
     (objects_dataset([[]], [[]], n=[1]), {"objects_column": "n"}, "`n` must hold `bbox` and `category` .* Name another `ob"),
     (objects_dataset([[]], [[]]).cast_column("objects", {"bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                                              "category": datasets.List(datasets.Value("int64"))}), {},
      "`category` in `objects` must be a ClassLabel"),
     (datasets.Dataset.from_dict({"image": [None], "objects": [{"bbox": [[1.0, 2.0]], "category": [0]}]}, datasets.Features(
         {"image": datasets.Image(), "objects": {"bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                                                 "category": datasets.List(datasets.ClassLabel(names=["a"]))}})), {},
      "each object of row 0 must have a box of four numbers")],
)  # fmt: skip
def test_datasets_that_cannot_be_read(rows, settings, message):
    with pytest.raises(DataError, match=message):
        DetectionData.from_dataset(rows, {"id": "x"}, **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda content: content.pop("categories"), "fit each other, but: 'categories' is missing. Fix the file"),
     (lambda content: content["annotations"][0].update(category_id=5),
      "a.json must .* the `category_id` of annotation 1 is 5, but known are 3, 7. Fix"),
     (lambda content: content["annotations"][0].update(image_id=5),
      "a.json must .* the `image_id` of annotation 1 is 5, but known are 10, 11. Fix"),
     (lambda content: content["annotations"][0].pop("image_id"), "`image_id` of annotation 1 is None, but known are 10, 11"),
     (lambda content: content["annotations"][0].pop("bbox"), "the `bbox` of annotation 1 .* not left, top, .* but None. Fix"),
     (lambda content: content["annotations"].append("x"), "fit each other, but: 'str' object has no attribute 'get'. Fix"),
     (lambda content: content["images"].extend({**content["images"][0], "id": n} for n in range(20, 50)) or
      content["annotations"][0].update(image_id=5), "is 5, but known are 10, 11, 20, .*, 37, .... Fix"),
     (lambda content: content["annotations"][0].update(bbox=[0, 0, float("inf"), 1]), "of image 10 is not left, top"),
     (lambda content: content["annotations"][0].update(bbox=[9, 9, -3, 1]), "but .9, 9, -3, 1."),
     (lambda content: content["annotations"][0].update(bbox=[]), "of image 10 is not left, top, width, height, but ..\\. Fix"),
     (lambda content: content["annotations"][0].update(bbox=[1, 2, 3, 4] * 2), "is not left, top, width, height"),
     (lambda content: content["images"].append(content["images"][0]), "but: two images have the id 10"),
     (lambda content: content["categories"].append({"id": 7, "name": "x"}), "but: two categories have the id 7"),
     (lambda content: content["images"][0].update(file_name="/etc/passwd"), "'/etc/passwd' is no file in the folder"),
     (lambda content: content["images"][0].update(file_name="../a.json"), "'../a.json' is no file in the folder of the images"),
     (lambda content: content["annotations"].clear(), "a.json must have objects, found none in 2 images")],
)  # fmt: skip
def test_annotations_that_cannot_be_read(changed, change, message):
    with pytest.raises(DataError, match=message):
        read_coco(changed(change))


def test_an_area_that_is_null_is_that_of_the_box(changed):
    folder = changed(lambda content: [each.update(area=None) for each in content["annotations"]])
    data = read_coco(folder)
    for each in data.objects:
        assert each.areas.tolist() == np.prod(each.boxes[:, 2:] - each.boxes[:, :2], axis=1).tolist()


def hub_objects(**more):
    boxes, categories = datasets.List(datasets.Value("float32")), datasets.ClassLabel(names=["a"])
    fields = {"bbox": datasets.List(boxes), "category": datasets.List(categories)}
    kinds = {"iscrowd": datasets.Value("int64"), "area": datasets.Value("float32")}
    fields |= {name: datasets.List(kinds[name]) for name in more}
    cell = {"bbox": [[0, 0, 4, 5], [1, 1, 2, 2]], "category": [0, 0], **more}
    return datasets.Dataset.from_dict(
        {"image": [None], "objects": [cell]}, datasets.Features({"image": datasets.Image(), "objects": fields})
    )


def test_some_boxes_may_reach_out_of_their_images():
    """Annotations are rarely exact; most boxes in the other format would reach out."""
    boxes = [[[20, 15, 39, 29], [1, 2, 3, 4]], [[0, 0, 41, 31]]]
    data = DetectionData.from_dataset(
        objects_dataset(boxes, [[0, 1], [1]], width=[40] * 2, height=[30] * 2), {"id": "x"}
    )
    assert [data.size(row) for row in range(2)] == [(30, 40)] * 2
    assert data.objects[0].boxes.tolist() == [[20, 15, 59, 44], [1, 2, 4, 6]]
    assert DetectionData.from_dataset(objects_dataset(boxes, [[0, 1], [1]]), {"id": "x"}).size(0) is None


def test_crowds_and_areas_of_a_dataset_of_the_hub():
    data = DetectionData.from_dataset(hub_objects(iscrowd=[None, 1], area=[None, 3.0]), {"id": "x"})
    assert data.objects[0].crowd.tolist() == [False, True]
    assert data.objects[0].areas.tolist() == [20, 3]
    with pytest.raises(DataError, match=r"each object of row 0 must have .* 2 categories, 1 areas and 2 crowds"):
        DetectionData.from_dataset(hub_objects(area=[3.0]), {"id": "x"})


def test_polygons_of_two_points_are_no_masks(changed):
    def change(content):
        content["annotations"][0]["segmentation"].append([1, 2, 3, 4])
        content["annotations"][1]["segmentation"] = [[1, 2, 3, 4]]

    data = read_coco(changed(change))
    assert [len(each) for each in data.objects[0].segmentations[:2]] == [1, 0]
    assert _choose_masks(None, [data]) is True
    kept = DetectionImages(data, train=True, masks=True)[0]["target"]
    boxes = DetectionImages(data, train=True)[0]["target"]
    assert kept["boxes"].tolist() == [box for n, box in enumerate(boxes["boxes"].tolist()) if n != 1]
    assert len(kept["masks"]) == len(kept["labels"]) == len(boxes["labels"]) - 1
    counts = [len(coco_truth(data, [0], masks).dataset["annotations"]) for masks in (False, True)]
    assert counts == [len(boxes["labels"]), len(kept["labels"])], "no detector could find what has no area"


def test_polygons_without_an_area_are_told(changed, caplog):
    data = read_coco(changed(lambda content: content["annotations"][1].update(segmentation=[[1, 2, 3, 4]])))
    assert _choose_masks(None, [data]) is True
    count = sum(len(each.labels) for each in data.objects)
    found = f"1 of the {count} objects of a.json have only polygons of fewer than three points, and are not learned"
    assert f"{found}. Pass --masks false" in caplog.text
    areas = data.objects[0].areas
    areas[:] = [10.0, 50.0**2, *areas[2:]]
    for each in data.objects[1:]:
        each.areas[:] = 10.0
    names = CocoMeter(data, masks=True).names
    assert "box_map_medium" in names
    assert "mask_map_medium" not in names, "of the only one no mask is known"


def test_boxes_are_learned_where_no_polygon_has_an_area(changed):
    def change(content):
        for each in content["annotations"]:
            each["segmentation"] = [[1, 2, 3, 4]]

    data = read_coco(changed(change))
    assert _choose_masks(None, [data]) is False
    with pytest.raises(
        DataError, match=r"needs segmentations of all objects, but (\d+) of the \1 objects of a.json have none"
    ):
        _choose_masks(True, [data])


def test_some_objects_without_a_segmentation_are_told(changed, caplog):
    data = read_coco(changed(lambda content: content["annotations"][1].pop("segmentation")))
    assert _choose_masks(None, [data]) is False
    found = rf"1 of the {sum(len(each.labels) for each in data.objects)} objects of a.json have none"
    assert f"No masks are learned, which needs segmentations of all objects: {found}." in caplog.text
    with pytest.raises(DataError, match=f"`masks` needs segmentations of all objects, but {found}. Leave it out"):
        _choose_masks(True, [data])


def test_annotations_are_known_by_what_they_hold(changed):
    hub = [DetectionData.from_dataset(hub_objects(iscrowd=[0, crowd]), {"id": "x"}).described for crowd in (0, 1)]
    assert hub[0]["digest"] != hub[1]["digest"]
    folder = changed(lambda content: None)
    one = read_coco(folder).described
    (folder / "a.json").write_text((folder / "a.json").read_text().replace('"area"', '"surface"'))
    other = read_coco(folder).described
    assert one["id"] == other["id"]
    assert one["digest"] != other["digest"]


def test_other_images_of_the_same_annotations_are_other_data(changed, tmp_path):
    digests = [read_coco(changed(lambda content: None)).described["digest"]]
    first, second = sorted((tmp_path / "images").iterdir())
    first.rename(tmp_path / "third")
    second.rename(first)
    (tmp_path / "third").rename(second)
    digests.append(read_coco(tmp_path).described["digest"])
    for colour in ("red", "blue"):
        hub = objects_dataset([[[0, 0, 4, 5]]], [[0]])
        hub = hub.map(lambda row, colour=colour: {"image": PIL.Image.new("RGB", (40, 30), colour)})
        digests.append(DetectionData.from_dataset(hub, {"id": "x"}).described["digest"])
    assert len(set(digests)) == 4


@pytest.mark.parametrize("given", ["0", None, "no"])
def test_no_crowd_as_text_or_null_is_no_crowd(changed, given):
    folder = changed(lambda content: content["annotations"][0].update(iscrowd=given))
    if given != "no":
        assert not read_coco(folder).objects[0].crowd.any()
        return
    with pytest.raises(DataError, match=r"that fit each other, but: invalid literal for int\(\) .*'no'"):
        read_coco(folder)


@pytest.mark.parametrize("area", [-5, float("nan"), float("inf")])
def test_impossible_areas_are_refused(changed, area):
    folder = changed(lambda content: content["annotations"][0].update(area=area))
    with pytest.raises(DataError, match="but: areas must be finite and not below 0, found"):
        read_coco(folder)
    features = objects_dataset([[[0, 0, 4, 5]]], [[0]]).features
    features["objects"]["area"] = datasets.List(datasets.Value("float32"))
    image = PIL.Image.new("RGB", (40, 30))
    row = {"image": [image], "objects": [{"bbox": [[0, 0, 4, 5]], "category": [0], "area": [area]}]}
    objects = datasets.Dataset.from_dict(row, features)
    with pytest.raises(
        DataError, match="the objects of row 0 must have areas in pixels: areas must be finite and not below 0"
    ):
        DetectionData.from_dataset(objects, {"id": "x"})


def test_boxes_as_shares_of_the_sides_are_refused(changed):
    def shares(content):
        sizes = {each["id"]: (each["width"], each["height"]) for each in content["images"]}
        for each in content["annotations"]:
            width, height = sizes[each["image_id"]]
            each["bbox"] = [value / side for value, side in zip(each["bbox"], (width, height) * 2, strict=True)]

    with pytest.raises(DataError, match="boxes must be in pixels, but none of them reaches beyond 1"):
        read_coco(changed(shares))
    hub = objects_dataset([[[0.25, 0.25, 0.5, 0.5]]], [[0]])
    with pytest.raises(DataError, match="boxes must be in pixels, but none of them reaches beyond 1"):
        DetectionData.from_dataset(hub, {"id": "x"})


def test_corners_in_the_place_of_widths_are_refused(changed):
    def corners(content):
        for each in content["annotations"]:
            left, top, width, height = each["bbox"]
            each["bbox"] = [left, top, left + width, top + height]

    with pytest.raises(DataError, match=r"% reach out of them\. COCO's JSON has left, top, width and height: correct"):
        read_coco(changed(corners))


def test_files_that_are_missing_or_others(changed, tmp_path):
    with pytest.raises(DataError, match="`images` must be a folder, found none at"):
        DetectionData.from_coco(tmp_path / "a.json", tmp_path / "none")
    with pytest.raises(DataError, match=r"a.json must be annotations in COCO's JSON, but: .* Check the file"):
        DetectionData.from_coco(tmp_path / "a.json", tmp_path)

    def change(content):
        content["images"][0]["width"] = 32
        for each in content["annotations"]:
            each["bbox"] = [1, 1, 9, 9]

    images = DetectionImages(read_coco(changed(change)), train=True)
    with pytest.raises(DataError, match=r"row 0 must be 32x64, as its annotations say, found 64x64. .*EXIF"):
        images[0]
    images.data.cells[1]["path"] += "x"
    with pytest.raises(
        DataError,
        match=r"the image of row 1 \(.*pngx\) must be readable, but: expected a file, found none at .* Fix it, or check",
    ):
        images[1]
    for each in images.data.objects:
        each.crowd[:] = True
    with pytest.raises(DataError, match=r"a.json must have objects that are no crowd, with a width and a height"):
        DetectionImages(images.data, train=True)


# pycocotools takes memory without an end for some, and leaves what was in memory for others.
SEGMENTATIONS = [
    [[1]],
    [[1, 2, 3, 4, 5, float("nan")]],
    [[1, 2, 3, 4, 5, float("inf")]],
    [[1, 2, 3, 4, 5, 1e300]],
    [[1, 2, 3, 4, 5, 50 * SIDE]],
    [[1, 2, 3, 4, None, 6]],
    [["1", "2", "3", "4", "5", "6"]],
    [[[1, 2], [3, 4], [5, 6]]],
    [1, 2, 3, 4, 5, 6],
    "polygon",
    {"size": [SIDE, SIDE]},
    {"size": [SIDE, SIDE], "counts": [1, 2, 3]},
    {"size": [SIDE, SIDE], "counts": [SIDE * SIDE, 1]},
    {"size": [SIDE, SIDE], "counts": [-1, SIDE * SIDE + 1]},
    {"size": [SIDE, SIDE], "counts": [SIDE * SIDE - 0.5, 0.5]},
    {"size": [SIDE, SIDE], "counts": [float("nan"), SIDE * SIDE]},
    {"size": [SIDE, SIDE], "counts": "5"},
    {"size": [SIDE, SIDE], "counts": ""},
    {"size": [SIDE, SIDE], "counts": "\xff\xfe"},
    {"size": [7, 9], "counts": [63]},
    {"size": "7, 9", "counts": [63]},
]


@pytest.mark.parametrize("wrong", SEGMENTATIONS, ids=str)
def test_what_is_no_segmentation_is_found_before_masks_are_learned(changed, wrong):
    data = read_coco(changed(lambda content: content["annotations"][2].update(segmentation=[[1, 1, 9, 1, 9, 9]])))
    assert _choose_masks(None, [data])
    data.objects[1].segmentations[0] = wrong
    said = r"must be polygons in its image or run lengths that fill it, .* for one of 64x64 pixels"
    with pytest.raises(
        DataError, match=said + r", image 1 \(of 2\) in a\.json\. Fix the file, or set `masks` to false"
    ):
        _choose_masks(None, [data])
    assert _choose_masks(False, [data]) is False
    with pytest.raises(DataError, match=said):
        decode_mask(wrong, (SIDE, SIDE))


def test_no_polygon_is_no_mask():
    with pytest.raises(DataError, match=r"must be polygons in its image or .*, found \[\] for one of 64x64 pixels"):
        decode_mask([], (SIDE, SIDE))


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_of_any_mask_are_taken(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 200, 2).tolist())
    mask = (rng.random(shape) < rng.choice([0, 0.001, 0.5, 1])).astype(np.uint8)
    compressed = coco_library().mask.encode(np.asfortranarray(mask))
    ends = np.flatnonzero(np.diff(mask.T.reshape(-1), prepend=0, append=2))
    runs = {"size": list(shape), "counts": np.diff(ends, prepend=0).tolist()}
    for written in (runs, compressed, {**compressed, "counts": compressed["counts"].decode()}):
        np.testing.assert_array_equal(decode_mask(written, shape), mask)


def test_all_images_of_the_annotations_must_be_there(changed):
    def change(content):
        content["images"][1]["file_name"] = "none.png"
        content["images"][0]["file_name"] = "images/0.png"

    folder = changed(change)
    with pytest.raises(
        DataError,
        match=r"folder of all [0-9] images of a\.json, but 2 are not there, such as .*images/0\.png\. Check the folder",
    ):
        read_coco(folder)


def test_the_folder_of_images_is_listed_and_not_asked_for_each(changed, monkeypatch):
    folder = changed(lambda content: content["images"][0].update(file_name="more/0.png"))
    (folder / "images/more").mkdir()
    (folder / "images/more/0.png").symlink_to(folder / "images/0.png")
    asked = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: asked.append(path) or is_file(path))
    assert len(read_coco(folder).cells) == 2
    assert not asked
    (folder / "images/1.png").unlink()
    (folder / "images/1.png").mkdir()
    with pytest.raises(DataError, match=r"but 1 are not there, such as .*images/1\.png"):
        read_coco(folder)


def test_sets_of_other_categories(toy, changed):
    other = read_coco(changed(lambda content: content["categories"][0].update(name="azure")))
    with pytest.raises(
        DataError, match=r"but number 1 is \[\(7, 'azure'\)\] there and \[\(7, 'blue'\)\] here. Evaluate on"
    ):
        check_same_categories(read_coco(toy), other)


# ---------------------------------------------------------------------------------------------------- what is measured


class Oracle(torch.nn.Module):
    """Answers with what is there, as `change` makes it."""

    def __init__(self, data, change=lambda answer: answer):
        super().__init__()
        self.images, self.change = DetectionImages(data, train=True, masks=True), change

    def forward(self, images, targets):
        answers = []
        for target in targets:
            place = self.images.rows.index(int(target["image_id"]))
            found = {key: value for key, value in self.images[place]["target"].items() if key != "image_id"}
            answers.append(
                self.change({**found, "scores": torch.ones(len(found["labels"])), "masks": found["masks"][:, None]})
            )
        return answers


def measure(data, change=lambda answer: answer):
    meter, shown = CocoMeter(data, masks=True), DetectionImages(data, train=False)
    meter.update(Oracle(data, change), collate([shown[row] for row in range(len(shown))]))
    return meter.compute()


def test_perfect_answers_are_perfect(changed):
    def change(content):
        crowd = {"id": 9, "image_id": 10, "category_id": 3, "bbox": [0, 0, SIDE, SIDE], "area": SIDE**2, "iscrowd": 1,
                 "segmentation": {"size": [SIDE, SIDE], "counts": [0, SIDE * SIDE]}}  # fmt: skip
        content["annotations"].append(crowd)

    found = measure(read_coco(changed(change)))
    assert found["box_map"] == found["mask_map"] == found["box_map_50"] == pytest.approx(1)
    assert "box_map_large" not in found


@pytest.mark.parametrize(
    ("change", "box", "mask"),
    [(lambda answer: {**answer, "labels": 3 - answer["labels"]}, 0, 0),  # red and blue exchanged
     (lambda answer: {key: value[:0] for key, value in answer.items()}, 0, 0),
     (lambda answer: {**answer, "masks": answer["masks"] * 0}, 1, 0),
     (lambda answer: {key: value[:1] for key, value in answer.items()}, 0.5, 0.5)],
)  # fmt: skip
def test_wrong_answers_are_wrong(toy, change, box, mask):
    found = measure(read_coco(toy), change)
    assert (found["box_map"], found["mask_map"]) == (pytest.approx(box), pytest.approx(mask))


def test_a_device_without_doubles_is_measured(toy):
    data = read_coco(toy)
    found = measure(data, lambda answer: {**answer, "boxes": answer["boxes"].as_subclass(WithoutDoubles)})
    assert found == measure(data)


@pytest.mark.parametrize("area", [None, 20.0, 32.0**2, 50.0**2, 1e5])
def test_what_is_measured_is_known_before(changed, area):
    def change(content):
        for each in content["annotations"]:
            each["area"] = area or each["area"]
        content["annotations"].append({**content["annotations"][0], "id": 99, "iscrowd": 1, "area": 1e6})

    data = read_coco(changed(change))
    names = CocoMeter(data, masks=True).names
    assert names[0] == "box_map"
    assert list(measure(data)) == names
    assert list(measure(data, lambda answer: {key: value[:0] for key, value in answer.items()})) == names
    assert CocoMeter(data, masks=False).names == names[: len(names) // 2]


def test_what_is_not_installed(monkeypatch, toy, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    assert main(["detect", *detection_flags(toy, tmp_path / "out")]) == 2
    message = "detection needs the package pycocotools, which is not installed: pip install pycocotools"
    assert message in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- what cannot be asked for


def test_a_detector_needs_several_scales():
    config = DetectorConfig(["a"], [1], False, [64], 64, 8, 8)
    with pytest.raises(ConfigError, match=r"features of several scales, but test_vit has the strides 16. Choose"):
        Detector(backbone("timm:test_vit")[0], config)


def test_what_is_found_in_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    detector = Detector(backbone("timm:resnet10t")[0], DetectorConfig(["a"], [1], False, [64], 128, 8, 8)).eval()
    image, wider = (torch.randint(256, (3, 40, width), dtype=torch.uint8) for width in (50, 80))
    with torch.no_grad():
        alone, beside = detector([image])[0], detector([image, wider])[0]
    assert len(alone["boxes"]) > 0
    for name, found in alone.items():
        torch.testing.assert_close(beside[name], found, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({}, "exactly one of `annotations` and `dataset` must be given, got None and None"),
     ({"annotations": "a", "images": "b", "dataset": "c"}, "one of `annotations` and `dataset`"),
     ({"dataset": "a", "eval_annotations": "b"}, "`eval_annotations` must not come with `dataset`, got both. Use `eval_split`"),
     ({"annotations": "a", "images": "b", "eval_split": "c"}, "`eval_split` must not come with `annotations`.* `eval_ann"),
     ({"annotations": "a"}, "`annotations` and `images` must come together"),
     ({"annotations": "a", "images": "b", "bbox_format": "voc"}, "`bbox_format` is for `dataset`, got it with `annotations`"),
     ({"annotations": "a", "images": "b", "split": "test"}, "`split` is for `dataset`, got it with `annotations`. Leave it"),
     ({"annotations": "a", "images": "b", "files_from": ["c"]}, "`files_from` is for `dataset`"),
     ({"annotations": "a", "images": "b", "revision": "c"}, "`revision` is for `dataset`"),
     ({"dataset": "a", "flip": 1.5}, "`flip` must be between 0 and 1, got 1.5"),
     ({"dataset": "a", "long_side": 0}, "`long_side` must be a whole number of at least 1, got 0"),
     ({"dataset": "a", "short_side": [64, 0]}, "`short_side` must be a whole number of at least 1, got 0"),
     ({"dataset": "a", "short_side": []}, "`short_side` must be one or several numbers of pixels, got none"),
     ({"dataset": "a", "fpn_channels": 0}, "`fpn_channels` must be a whole number of at least 1, got 0"),
     ({"dataset": "a", "rois_per_image": -1}, "`rois_per_image` must be a whole number of at least 1, got -1"),
     ({"dataset": "a", "bbox_format": "yolo"}, "`bbox_format` must be coco or voc, got 'yolo'")],
)  # fmt: skip
def test_impossible_arguments(settings, message):
    with pytest.raises(ConfigError, match=message):
        DetectionArguments(**settings)
