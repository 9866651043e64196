"""Importing ml-dr's files: every variant of the format comes out as what ml-dr's own student would see."""

# ruff: noqa: TID251 (the tests write pickles, which the library never does)

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import tarfile
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import CLASSES, as_cell, colour_image
from hypothesis import given
from hypothesis import strategies as st
from samples import quick
from torchvision import transforms
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError, FingerprintMismatchError, FormatError, HfDrError
from hf_dr.generation.ml_dr import fitting
from hf_dr.generation.ml_dr import importer as ml_dr
from hf_dr.generation.ml_dr.files import RunFormat, read_file
from hf_dr.generation.ml_dr.fitting import find_rows
from hf_dr.generation.ml_dr.importer import ImportConfig, ImportJob
from hf_dr.generation.ml_dr.runs import archive_files, open_runs
from hf_dr.generation.verify import verify
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.base_dataset import undecoded_images
from hf_dr.store.schema import SCHEMA_VERSION
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomCrop, RandomResizedCrop, Resize

ROWS, VIEWS, TOP_K, SIDE = 12, 6, 3, 16
RANDAUG: dict[str, Any] = {
    "uint8": {"enable": True},
    "normalize": {"mean": [0.5] * 3, "std": [0.2] * 3},
    "random_erase": {"p": 0.5},
    "random_resized_crop": {"enable": True, "size": SIDE},
    "random_crop": {"enable": False, "size": 99},
    "random_horizontal_flip": {"p": 0.5},
    "rand_augment": {"enable": True, "p": 0.8},
    "to_tensor": {"enable": True},
}
MIXING: dict[str, Any] = {
    **RANDAUG, "mixup": {"alpha": 1.0, "div_by": 2.0, "p": 0.5}, "cutmix": {"enable": True, "alpha": 1.0, "p": 0.5},
}  # fmt: skip
CIFAR: dict[str, Any] = {
    "resize": {"size": [20, 20]}, "random_crop": {"size": SIDE, "padding": 2}, "random_horizontal_flip": {}, "to_tensor": {},
}  # fmt: skip
ORDER = ("resize", "random_crop", "random_resized_crop", "random_horizontal_flip", "rand_augment", "random_erase")


def import_ml_dr(sources: Any, base: datasets.Dataset, to: Path | ImportConfig, **settings: Any) -> Path:
    """Runs an import into a folder, with these settings, or with those of `to`; returns the folder of the configuration."""
    config = to if isinstance(to, ImportConfig) else ImportConfig(str(to), **settings)
    job = ImportJob(sources, base, config)
    job.run()
    return job.folder


@pytest.fixture(scope="module")
def base() -> datasets.Dataset:
    """Twelve images of many sizes."""
    rng = np.random.default_rng(0)
    images = [colour_image(rng, n % 8, (24 + n, 40 - n)) for n in range(ROWS)]
    rows = {"image": [as_cell(image) for image in images], "label": [n % 8 for n in range(ROWS)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict(rows, features, split="train")


# ------------------------------------------------------------------------------------------------- writing ml-dr's files


def draw(ops: dict[str, Any], size: tuple[int, int], rng: np.random.Generator) -> dict[str, Any]:
    """One image's own parameters in ml-dr's uncompressed form; `size` is (height, width)."""
    params: dict[str, Any] = {name: () for name in ("uint8", "to_tensor", "normalize") if name in ops}
    if "resize" in ops:
        params["resize"] = tuple(ops["resize"]["size"])
    if "random_crop" in ops and ops["random_crop"].get("enable", True):
        params["random_crop"] = tuple(rng.integers(0, 9, 2).tolist())
    if "random_resized_crop" in ops:
        top, left = (int(rng.integers(0, side - 2)) for side in size)
        bottom, right = int(rng.integers(top + 1, size[0] + 1)), int(rng.integers(left + 1, size[1] + 1))
        params["random_resized_crop"] = (top, left, bottom - top, right - left)
    params["random_horizontal_flip"] = bool(rng.integers(2))
    if "rand_augment" in ops:
        space = transforms.RandAugment()._augmentation_space(31, (SIDE, SIDE))
        params["rand_augment"] = None
        if rng.random() < 0.8:
            params["rand_augment"] = []
            for name in rng.choice(list(space), 2).tolist():
                magnitudes, signed = space[name]
                magnitude = float(magnitudes[9].item()) if magnitudes.ndim else 0.0
                params["rand_augment"].append((name, magnitude * (-1.0 if signed and rng.integers(2) else 1.0)))
    if "random_erase" in ops:
        boxes = [None, (-1, 0, 0, 0), (0, 0, SIDE, SIDE), (2, 3, 5, 7), (10, 11, 6, 5)]
        params["random_erase"] = boxes[rng.integers(len(boxes))]
    return params


def draw_view(ops: dict[str, Any], row: int, sizes: list[tuple[int, int]], rng: np.random.Generator) -> dict[str, Any]:
    """The uncompressed `params` of a view: pairs, whether anything is mixed or not."""
    partner = int(rng.integers(len(sizes)))
    own, other = draw(ops, sizes[row], rng), draw(ops, sizes[partner], rng)
    params: dict[str, Any] = {name: (own[name], other[name]) for name in own}
    if "mixup" in ops:
        params["mixup"] = float(rng.beta(1, 1)) / 2 if rng.random() < 0.5 else None
        corners = tuple(np.sort(rng.integers(0, SIDE + 1, (2, 2)), axis=0).ravel())  # NumPy integers, as in the files
        params["cutmix"] = (float(rng.random()), corners) if rng.random() < 0.5 else None
        params["id2"] = partner
    return params


def compress(params: dict[str, Any], ops: dict[str, Any]) -> list[Any]:
    """The compressed form of the same."""
    names = list(transforms.RandAugment()._augmentation_space(31, (SIDE, SIDE)))

    def small(name: str, value: Any) -> Any:
        if name == "rand_augment" and value is not None:
            return [(names.index(op), magnitude) for op, magnitude in value]
        return value

    paired = params.get("mixup") is not None or params.get("cutmix") is not None
    compressed: list[Any] = [params["id2"] if paired else None] if "mixup" in ops else []
    for name in ORDER:
        if name in params:
            own, other = (small(name, value) for value in params[name])
            compressed.append([own, other] if paired else own)
    if "mixup" in ops:
        compressed.append(params["mixup"])
        compressed.append(None if params["cutmix"] is None else [params["cutmix"][0], *params["cutmix"][1]])
    return compressed


def answer(label: int, rng: np.random.Generator) -> tuple[list[float], list[int]]:
    """Unsorted; the label is the most probable class."""
    ids = [label, *(int(c) for c in rng.permutation(8) if c != label)][:TOP_K]
    order = rng.permutation(TOP_K)
    probs = np.array([0.7, 0.2, *np.full(TOP_K - 2, 0.01)], np.float32)
    return probs[order].tolist(), [ids[n] for n in order]


class Files:
    """The content of one run, and ways of writing it."""

    def __init__(self, base: datasets.Dataset, ops: dict[str, Any], compressed: bool = True, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        sizes = [(image.height, image.width) for image in base["image"]]
        self.views = [[draw_view(ops, row, sizes, rng) for _ in range(VIEWS)] for row in range(ROWS)]
        self.answers = [[answer(label, rng) for _ in range(VIEWS)] for label in base["label"]]
        self.config = {
            "dataset": "colours", "num_classes": 8, "seed": None,
            "teacher": {"timm_ensemble": True, "name": "ig_resnext101_32x8d,other"},
            "reinforce": {"num_samples": VIEWS, "topk": TOP_K, "compress": compressed, "image_augmentation": ops},
        }  # fmt: skip
        self.rows: list[Any] = []
        for row in range(ROWS):
            samples = []
            for params, prob in zip(self.views[row], self.answers[row], strict=True):
                samples.append({"params": compress(params, ops) if compressed else params, "prob": prob})
            self.rows.append((row, samples))

    def contents(self, container: str = "torch") -> dict[str, bytes]:
        names = {f"{row}.pth.tar": content for row, content in enumerate(self.rows)}
        dumped = {name: dump(content, container) for name, content in names.items()}
        order = np.random.default_rng(1).permutation(ROWS).tolist()
        shuffled = {name: dumped[name] for name in (list(dumped)[n] for n in order)}
        return {**shuffled, "config.pth.tar": dump(self.config, "torch", 2)}

    def write(self, folder: Path, kind: str = "folder", container: str = "torch") -> Path:
        return write(self.contents(container), folder, kind)


def dump(content: Any, container: str, protocol: int = 4) -> bytes:
    if container == "joblib":  # joblib.dump(..., compress=True): zlib around a pickle
        return zlib.compress(pickle.dumps(content, protocol), 3)
    file = io.BytesIO()
    torch.save(content, file, pickle_protocol=protocol)
    return file.getvalue()


def write(contents: dict[str, bytes], folder: Path, kind: str = "folder") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        inner = folder / "reinforced_data"
        inner.mkdir()
        for name, data in contents.items():
            (inner / name).write_bytes(data)
        return folder
    path = folder / f"reinforced_data.{kind}"
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
        directory = tarfile.TarInfo("reinforced_data")
        directory.type = tarfile.DIRTYPE
        archive.addfile(directory)
        for name, data in contents.items():
            member = tarfile.TarInfo(f"reinforced_data/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# ------------------------------------------------------------------------------------------- what ml-dr's student sees


def resized(image: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """The horizontal pass first, as the Pillow of ml-dr's time did it."""
    bilinear = PIL.Image.Resampling.BILINEAR
    return image.resize((width, image.height), bilinear).resize((width, height), bilinear)


def augmented(image: PIL.Image.Image, params: dict[str, Any], ops: dict[str, Any], which: int) -> np.ndarray:
    """One image of a view up to mixing, uint8; `which` is 0 for the image, 1 for its partner."""
    own = {name: params[name][which] for name in ORDER if name in params}
    if "resize" in own:
        image = resized(image, *own["resize"])
    if "random_crop" in own:
        image = F.crop(F.pad(image, ops["random_crop"]["padding"]), *own["random_crop"], SIDE, SIDE)
    if "random_resized_crop" in own:
        image = resized(F.crop(image, *own["random_resized_crop"]), SIDE, SIDE)
    if own["random_horizontal_flip"]:
        image = F.hflip(image)
    for op, magnitude in own.get("rand_augment") or ():
        image = _apply_op(image, op, magnitude, interpolation=transforms.InterpolationMode.NEAREST, fill=None)
    pixels = np.array(image)
    if own.get("random_erase") is not None and own["random_erase"][0] != -1:
        row, column, height, width = own["random_erase"]
        pixels[row : row + height, column : column + width] = 0
    return pixels


def student_sees(images: list[PIL.Image.Image], row: int, params: dict[str, Any], ops: dict[str, Any]) -> np.ndarray:
    pixels = augmented(images[row], params, ops, 0).astype(np.float64)
    if params.get("mixup") is None and params.get("cutmix") is None:
        return pixels
    other = augmented(images[params["id2"]], params, ops, 1)
    if params["mixup"] is not None:
        pixels = params["mixup"] * pixels + (1 - params["mixup"]) * other
    if params["cutmix"] is not None:
        r1, c1, r2, c2 = params["cutmix"][1]
        pixels[r1:r2, c1:c2] = other[r1:r2, c1:c2]
    return pixels


def check_views(
    plus: Any, base: datasets.Dataset, files: Files, ops: dict[str, Any], row_of: Any = None, start: int = 0
) -> None:
    """Compares every view with the student's, exactly but for MixUp's rounding."""
    images = list(base["image"])
    for number in range(ROWS):
        row = number if row_of is None else int(row_of[number])
        for view, params in enumerate(files.views[number]):
            renumbered = (
                {**params, "id2": params["id2"] if row_of is None else row_of[params["id2"]]}
                if "id2" in params
                else params
            )
            expected = student_sees(images, row, renumbered, ops)
            difference = np.abs(np.asarray(plus.image(row, start + view)) - expected).max()
            assert difference <= (1 if params.get("mixup") is not None else 0), (number, view, params)
            ids, logprobs = plus.teacher_answer(row, start + view)
            probs, classes = files.answers[number][view]
            by_probability = sorted(
                zip(np.float16(np.log(probs)).tolist(), classes, strict=True), key=lambda a: (-a[0], a[1])
            )
            assert [(float(p), int(c)) for p, c in zip(logprobs, ids, strict=True)] == by_probability


# ------------------------------------------------------------------------------------------------------- every variant


@pytest.mark.parametrize("ops", [RANDAUG, MIXING, CIFAR], ids=["randaug", "mixing", "cifar"])
@pytest.mark.parametrize(
    ("compressed", "container", "kind"),
    [(True, "torch", "tar.gz"), (False, "torch", "folder"), (True, "joblib", "folder"), (False, "joblib", "tar")],
)
def test_views_are_what_the_student_of_ml_dr_sees(ops, compressed, container, kind, base, tmp_path):
    files = Files(base, ops, compressed)
    source = files.write(tmp_path / "in", kind, container)
    folder = import_ml_dr([source], base, tmp_path / "plus", shard_size=5)
    plus = load_reinforced(folder)
    check_views(plus, base, files, ops)
    assert plus.provenance.schema_version == SCHEMA_VERSION
    assert plus.labels.tolist() == base["label"]
    assert [path.name for path in folder.iterdir() if path.name.startswith(".import")] == []


def test_several_runs_add_up(base, tmp_path):
    runs = [Files(base, MIXING, seed=1), Files(base, MIXING, compressed=False, seed=2)]
    sources = [
        run.write(tmp_path / str(n), kind) for n, (run, kind) in enumerate(zip(runs, ("tar", "folder"), strict=True))
    ]
    plus = load_reinforced(import_ml_dr(sources, base, tmp_path / "plus"))
    assert plus.num_views == 2 * VIEWS
    check_views(plus, base, runs[0], MIXING)
    check_views(plus, base, runs[1], MIXING, start=VIEWS)
    assert plus.provenance.teacher["runs"] == [VIEWS, VIEWS]


@pytest.fixture(scope="module")
def mixing(base, tmp_path_factory) -> tuple[Files, Path, Path]:
    """Files with mixing, their archive, and the imported dataset."""
    folder = tmp_path_factory.mktemp("mixing")
    files = Files(base, MIXING)
    source = files.write(folder / "in", "tar")
    import_ml_dr([source], base, folder / "plus", shard_size=5)
    return files, source, folder / "plus"


def test_it_is_a_dataset_without_this_package(mixing):
    plus = datasets.load_dataset(str(mixing[2]), "default", split="train")
    assert plus.num_rows == ROWS
    assert plus["views_hash"][:] == [None] * ROWS
    assert len(plus[0]["aug_partner_crop_box"]) == VIEWS


def test_verify_says_what_is_unknown(mixing, make_teacher):
    report = verify(str(mixing[2]), num_rows=3, ask_teacher=False)
    assert report.ok
    assert report.bit_equal is None
    assert "rows equal bit for bit    unknown" in str(report)
    assert verify(str(mixing[2]), make_teacher(), num_rows=1).kl_mean is not None


def test_the_provenance_says_what_ml_dr_says(mixing):
    provenance = load_reinforced(mixing[2]).provenance
    members = [(member["id"], member["license"]) for member in provenance.teacher["members"]]
    assert members == [("ig_resnext101_32x8d", "cc-by-nc-4.0"), ("other", None)]
    assert (provenance.seed, provenance.mixing_scope, provenance.num_classes) == (0, "stored", 8)
    assert "import-ml-dr" in provenance.created_with
    assert "cc-by-nc-4.0" in (mixing[2] / "README.md").read_text("utf-8")


def test_rows_need_not_come_in_pairs(mixing):
    plus = load_reinforced(mixing[2])
    assert plus.augmentation.mixes
    assert not plus.paired
    assert len(plus.pairs(0)[0]) == 0
    assert len(set(plus.scheduled_views(np.arange(ROWS), 0).tolist())) > 1


def test_an_overlay_leaves_the_images_out(base, mixing, tmp_path):
    import_ml_dr([mixing[1]], base, tmp_path / "plus", overlay=True)
    check_views(load_reinforced(tmp_path / "plus", base=base), base, mixing[0], MIXING)


# ------------------------------------------------------------------------------------------------------------- resuming


def test_a_stopped_import_goes_on_and_writes_the_same(base, mixing, tmp_path, monkeypatch):
    written = ml_dr.ShardWriter.finish
    calls = []

    def stop_at_second(self):
        calls.append(self.path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return written(self)

    config = ImportConfig(str(tmp_path / "plus"), shard_size=5)
    monkeypatch.setattr(ml_dr.ShardWriter, "finish", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        import_ml_dr([mixing[1]], base, config)
    monkeypatch.undo()
    reads = []
    whole = RunFormat.read
    monkeypatch.setattr(RunFormat, "read", lambda *arguments: reads.append(arguments) or whole(*arguments))
    monkeypatch.setattr(fitting, "_size", reads.append)
    folder = import_ml_dr([mixing[1]], base, config)
    assert reads == [], "what had been read is read again"
    for name in load_reinforced(folder).provenance.shard_names:
        assert (folder / name).read_bytes() == (mixing[2] / "default" / name).read_bytes()


@pytest.fixture
def several(monkeypatch):
    """Workers that start at once; all that processes need as well is that their task can be sent to them."""

    class Workers(ThreadPoolExecutor):
        def __init__(self, count: int, *_: object) -> None:
            super().__init__(count)

        def submit(self, task, *arguments):
            return super().submit(*pickle.loads(pickle.dumps((task, *arguments))))

    monkeypatch.setattr("hf_dr.generation.ml_dr.runs.ProcessPoolExecutor", Workers)


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("num_workers", [2, 5])
def test_several_workers_write_the_same(num_workers, base, mixing, tmp_path):
    config = ImportConfig(str(tmp_path / "plus"), shard_size=5, num_workers=num_workers)
    folder = import_ml_dr([mixing[1]], base, config)
    for name in load_reinforced(folder).provenance.shard_names:
        assert (folder / name).read_bytes() == (mixing[2] / "default" / name).read_bytes()


@pytest.mark.usefixtures("several")
def test_what_a_worker_refuses_is_told(base, tmp_path):
    contents = Files(base, RANDAUG).contents()
    contents["7.pth.tar"] = b"garbage"
    source = write(contents, tmp_path / "in")
    with pytest.raises(FormatError, match=r"7\.pth\.tar must be written by torch\.save or joblib"):
        import_ml_dr([source], base, tmp_path / "plus", num_workers=2)


def test_a_damaged_scratch_file_is_noticed(base, mixing, tmp_path, monkeypatch):
    def stop(self, missing, scratch):
        scratch._rows["aug_flip"][3, 0] ^= True
        known = scratch.sizes(self.plan.images)
        for damage in (bytes(8), b"x", known.tobytes()):
            (scratch.folder / "sizes").write_bytes(damage)
            np.testing.assert_array_equal(scratch.sizes(self.plan.images), known)
        raise KeyboardInterrupt

    config = ImportConfig(str(tmp_path / "plus"))
    with monkeypatch.context() as patch:
        patch.setattr(ImportJob, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            import_ml_dr([mixing[1]], base, config)
    with pytest.raises(FormatError, match=r"must hold what was written, but row 3 is damaged\. Delete it"):
        import_ml_dr([mixing[1]], base, config)


def test_images_that_were_mended_meanwhile_are_seen(base):
    images = undecoded_images(base, "image")
    sizes = fitting.image_sizes(images)
    assert sizes.min() > 0
    found = fitting.image_sizes(images, np.where(np.arange(len(base))[:, None] % 5 == 2, 0, sizes))
    np.testing.assert_array_equal(found, sizes)


def test_a_disk_without_room_for_the_scratch_file_is_refused(base, mixing, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ConfigError, match="for a scratch file next to the shards, but: No space left on device"):
        import_ml_dr([mixing[1]], base, tmp_path / "plus")


def test_another_import_into_the_folder_is_refused(base, mixing, tmp_path):
    config = ImportConfig(str(tmp_path / "plus"))
    import_ml_dr([mixing[1]], base, config)
    other = Files(base, RANDAUG).write(tmp_path / "other")
    with pytest.raises(FingerprintMismatchError, match="mixing_scope: stored there, dataset here"):
        import_ml_dr([other], base, config)


def test_an_import_goes_on_with_its_own_labels_only(base, mixing, tmp_path):
    config = ImportConfig(str(tmp_path / "plus"), allow_disagreement=True)
    folder = import_ml_dr([mixing[1]], base, config)
    other = base.map(lambda row: {"label": (row["label"] + 1) % len(CLASSES)})
    with pytest.raises(FingerprintMismatchError, match="must have the columns of the dataset, but its column `label`"):
        import_ml_dr([mixing[1]], other, config)
    assert import_ml_dr([mixing[1]], base, config) == folder


def test_a_folder_of_other_files_is_refused_and_left_as_it_is(base, mixing, tmp_path):
    (tmp_path / "cat.jpg").touch()
    job = ImportJob([mixing[1]], base, ImportConfig(str(tmp_path)))
    for make in (job.run, job.estimate):
        with pytest.raises(ConfigError, match=r"found cat\.jpg in .*, where none was begun\. Choose another"):
            make()
    assert list(tmp_path.iterdir()) == [tmp_path / "cat.jpg"]


# ---------------------------------------------------------------------------------------------------------------- order


def shuffled(base: datasets.Dataset) -> tuple[datasets.Dataset, np.ndarray]:
    """The base in another order with paths, and the row of each image."""
    order = np.random.default_rng(5).permutation(ROWS)
    named = _named(base)
    return named.select(order.tolist()), np.argsort(order)


def _named(base: datasets.Dataset) -> datasets.Dataset:
    cells = base.cast_column("image", datasets.Image(decode=False))["image"]
    rows = {
        "image": [{**cell, "path": f"{n:03d}/image.png"} for n, cell in enumerate(cells)],
        "label": base["label"][:],
    }
    return datasets.Dataset.from_dict(rows, base.features, split="train")


@pytest.mark.parametrize("form", ["imagefolder", "json rows", "text rows", "text names"])
def test_the_order_of_the_base_is_found(form, base, mixing, tmp_path):
    moved, row_of = shuffled(base)
    order = tmp_path / "order"
    if form == "json rows":
        order.write_text(json.dumps(row_of.tolist()))
    elif form == "text rows":
        order.write_text("\n".join(map(str, row_of)) + "\n")
    elif form == "text names":
        order.write_text("".join(f"{n:03d}/image.png\n" for n in range(ROWS)))
    config = ImportConfig(str(tmp_path / "plus"), order="imagefolder" if form == "imagefolder" else str(order))
    plus = load_reinforced(import_ml_dr([mixing[1]], moved, config))
    check_views(plus, moved, mixing[0], MIXING, row_of)


def paths(names: list[str | None]) -> datasets.Dataset:
    cells = [{"bytes": b"", "path": name} for name in names]
    return datasets.Dataset.from_dict({"image": cells}, datasets.Features({"image": datasets.Image(decode=False)}))


def test_imagefolder_sorts_as_torchvision_does_even_where_names_carry_the_folder():
    # By the whole name "10026_..." would come before "1002_...": '6' sorts before '_', but '.' before '6'.
    names = [f"n01440764_{n}_n01440764.JPEG" for n in (10026, 1002, 3)] + ["n01440763_7_n01440763.JPEG"]
    assert find_rows("imagefolder", paths(names)).tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.png", None], "found none in row 1"),
        (["plain.png"], "none in row 0"),
        (["a/1.png", "a/1.png"], "two images of one"),
    ],
)
def test_images_without_names_cannot_be_sorted(names, message):
    with pytest.raises(DataError, match=message):
        find_rows("imagefolder", paths(names))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ConfigError, "must hold row numbers or file names"),
        ("[1, ", ConfigError, "must be a JSON list or plain lines"),
        ("[1, true]", ConfigError, "must hold row numbers or file names"),
        ("[0]", DataError, "must name 2 images, as many as the base has, found 1"),
        ("0\n0\n", DataError, "must name each row from 0 to 1 once"),
        ("1.png\n3.png\n", DataError, "names '3.png', which no image of the base is called"),
        ("1.png\n1.png\n", DataError, "must name each image of the base once"),
    ],
)
def test_bad_order_files_are_refused(text, error, message, tmp_path):
    (tmp_path / "order").write_text(text)
    with pytest.raises(error, match=message):
        find_rows(str(tmp_path / "order"), paths(["a/1.png", "a/2.png"]))


def test_an_order_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="`order` must be position, imagefolder or a text file"):
        find_rows(str(tmp_path / "none"), paths(["a/1.png"]))


def test_a_wrong_order_shows_in_the_boxes(base, mixing, tmp_path):
    with pytest.raises(DataError, match=r"must have boxes inside its image of .* set `order`"):
        import_ml_dr([mixing[1]], base.select(range(ROWS - 1, -1, -1)), tmp_path / "plus")


@pytest.fixture
def alike(base) -> datasets.Dataset:
    """Images of one size, so that no box can betray a wrong order."""
    rows = {"image": [image.resize((32, 32)) for image in base["image"]], "label": base["label"][:]}
    return datasets.Dataset.from_dict(rows, base.features, split="train")


def test_a_wrong_order_shows_in_the_labels(alike, tmp_path):
    """Each time, and leaves nothing behind that is in the way of the right one."""
    source = Files(alike, RANDAUG).write(tmp_path / "in")
    wrong = alike.select([*range(1, ROWS), 0])
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"far more often than by chance .* found 0\.0 % of 72 views. .* set `order`"
        ):
            import_ml_dr([source], wrong, tmp_path / "plus")
    (tmp_path / "order.txt").write_text("\n".join(map(str, [ROWS - 1, *range(ROWS - 1)])))
    import_ml_dr([source], wrong, tmp_path / "plus", order=str(tmp_path / "order.txt"))
    shutil.rmtree(tmp_path / "plus")
    import_ml_dr([source], wrong, tmp_path / "plus", allow_disagreement=True)


def test_rows_without_a_label_judge_no_order():
    check = fitting.OrderCheck(np.array([-1, 3, 0]), 2, tolerated=False)
    answers = {"teacher_ids": np.array([[0], [1]])}
    for row in (0, 1):  # without a label, and of a class that the teacher does not have
        check.add(answers, row)
    check.check()
    check.add(answers, 2)
    assert check._favourites.tolist() == [1, 1]
    unlabelled = fitting.OrderCheck(None, 2, tolerated=False)
    unlabelled.add(answers, 0)
    unlabelled.check()


def test_boxes_lie_in_what_a_resize_by_the_shorter_side_leaves():
    ops = Augmentation([Resize(20), RandomResizedCrop(16)])
    sizes = np.array([[30, 60]])
    fitting._check_boxes(ops, {"aug_crop_box": np.array([[0, 0, 20, 40]])}, "", sizes, "x")
    with pytest.raises(DataError, match=r"x must have boxes inside its image of 20x40 pixels, found \(0, 0, 21, 40\)"):
        fitting._check_boxes(ops, {"aug_crop_box": np.array([[0, 0, 21, 40]])}, "", sizes, "x")


def test_settings_of_a_crop_in_the_short_forms_of_torchvision():
    crop = {"size": SIDE, "padding": [2], "fill": 7}
    (op,) = RunFormat({"reinforce": {"image_augmentation": {"random_crop": crop}}}, "config").augmentation.ops
    assert op == RandomCrop(SIDE, padding=2, fill=(7, 7, 7))


def test_rows_that_were_read_before_a_stop_are_judged_too(alike, tmp_path, monkeypatch):
    source = Files(alike, RANDAUG).write(tmp_path / "in")
    wrong = alike.select([*range(1, ROWS), 0])

    def stopped(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ml_dr.OrderCheck, "check", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_ml_dr([source], wrong, tmp_path / "plus")
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"found 0\.0 % of 72 views"):
        import_ml_dr([source], wrong, tmp_path / "plus")


def test_sources_are_known_by_what_they_hold(base, tmp_path, monkeypatch):
    """A scratch file has views of one and of the other otherwise, and nobody would see it."""
    runs = [Files(base, RANDAUG, seed=seed).write(tmp_path / str(seed)) for seed in (1, 2)]
    import_ml_dr(runs, base, tmp_path / "plus")
    known = open_runs(runs)[0].digest
    with pytest.raises(FingerprintMismatchError, match="run_digests"):
        import_ml_dr(runs[::-1], base, tmp_path / "plus")
    names = [path.name for path in runs[0].rglob("*.tar")]
    for order in (sorted(names), sorted(names, reverse=True)):  # as another file system lists them
        monkeypatch.setattr(os, "listdir", lambda path, order=order: order)
        assert len({run.digest for run in open_runs([runs[0]])} | {known}) == 1
    with pytest.raises(ConfigError, match=r"must be different runs, found the same in .*1.* and .*1.*Name each once"):
        import_ml_dr([runs[0], runs[0]], base, tmp_path / "twice")


@pytest.mark.parametrize("label", [None, -1])
def test_labels_without_a_class_are_refused_before_anything_is_read(label, base, tmp_path):
    source = Files(base, RANDAUG).write(tmp_path / "in")
    rows = {"image": base["image"][:], "label": [label, *base["label"][1:]]}
    unlabelled = datasets.Dataset.from_dict(rows, base.features, split="train")
    with pytest.raises(
        DataError, match=r"labels of the base must be from 0 to 7 in every row, found .* in row 0 \(1 such"
    ):
        ImportJob([source], unlabelled, ImportConfig(str(tmp_path / "plus")))


def test_labels_are_judged_against_the_whole_base(alike, tmp_path, monkeypatch):
    """One class first, as in an archive by class: its own share of those rows is no measure of chance."""
    monkeypatch.setattr("hf_dr.generation.ml_dr.fitting.LABELLED_ROWS", 1)
    source = Files(alike, RANDAUG).write(tmp_path / "in", "tar")
    import_ml_dr([source], alike, tmp_path / "plus")


def test_a_base_without_a_readable_image_is_refused(base, tmp_path):
    source = Files(base, RANDAUG).write(tmp_path / "in")
    cells = {"image": [{"bytes": b"none", "path": None}] * ROWS, "label": base["label"][:]}
    unreadable = datasets.Dataset.from_dict(cells, base.features)
    with pytest.raises(DataError, match="must have images that can be decoded, found none"):
        import_ml_dr([source], unreadable, tmp_path / "plus")


def test_images_turned_by_exif_stay_out_also_as_partners(alike, tmp_path):
    files = Files(alike, MIXING)
    turned, exif = io.BytesIO(), PIL.Image.Exif()
    exif[0x0112] = 6
    alike[4]["image"].save(turned, "PNG", exif=exif)
    cells = alike.cast_column("image", datasets.Image(decode=False))["image"][:]
    cells[4] = {"bytes": turned.getvalue(), "path": None}
    cells[7] = {"bytes": b"no image", "path": None}
    cells[8] = {"bytes": cells[8]["bytes"][:-60], "path": None}  # its header says its size
    exif[0x0112] = 0  # undefined: it stands as it is
    upright = io.BytesIO()
    alike[5]["image"].save(upright, "PNG", exif=exif)
    cells[5] = {"bytes": upright.getvalue(), "path": None}
    base = datasets.Dataset.from_dict({"image": cells, "label": alike["label"][:]}, alike.features, split="train")
    plus = load_reinforced(import_ml_dr([files.write(tmp_path / "in")], base, tmp_path / "plus"))
    assert plus.provenance.skipped_rows == [4, 7, 8]
    assert len(plus) == ROWS - 3
    partners = {plus.params(row, view)["partner"] for row in range(len(plus)) for view in range(VIEWS)}
    assert partners & {4, 7, 8} == set()
    for row in range(len(plus)):
        for view in range(VIEWS):
            plus.image(row, view)


# ------------------------------------------------------------------------------------------------------------- refusals


def changed(files: Files, change: Any) -> dict[str, bytes]:
    """The run's files with the first image's views changed."""
    contents = files.contents()
    rows = pickle.loads(pickle.dumps(files.rows[0]))
    contents["0.pth.tar"] = dump(change(rows) or rows, "torch")
    return contents


def _set(path: list[Any], value: Any) -> Any:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


# Place of each parameter in the compressed list of RANDAUG.
_CROP, _FLIP, _RA, _ERASE = range(4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: (1, c[1]), "be about image 0, as its name says, found 1"),
        (lambda c: [0, c[1]], "hold a pair"),
        (lambda c: (0, []), "hold a pair"),
        (lambda c: (0, c[1][:-1]), "must have . views, as others, found ."),
        (_set([1, 0], {"params": []}), "have `params` and `prob`"),
        (_set([1, 0, "prob"], ([0.5], [1])), "6 x 3 numbers|hold"),
        (_set([1, 0, "prob"], ([0.5, 0.2, float("nan")], [0, 1, 2])), "above 0 and at most 1, found .nan."),
        (_set([1, 0, "prob"], ([0.5, 0.2, 0.0], [0, 1, 2])), "above 0 and at most 1"),
        (_set([1, 0, "prob"], ([0.5, 0.2, 1.5], [0, 1, 2])), "above 0 and at most 1"),
        (_set([1, 0, "prob"], ([0.9, 0.9, 0.9], [0, 1, 2])), "add up to at most 1"),
        (_set([1, 0, "prob"], ([0.5, 0.2, 0.1], [0, 1, 8])), "be below 8, found .8."),
        (_set([1, 0, "prob"], ([0.5, 0.2, 0.1], [0, 1, -1])), "be below 8"),
        (_set([1, 0, "prob"], ([0.5, 0.2, 0.1], [0, 1, 1])), "be distinct"),
        (_set([1, 0, "prob"], ([0.5, 0.2, "x"], [0, 1, 2])), "numbers"),
        (_set([1, 0, "prob"], 3), "be a pair of lists"),
        (_set([1, 0, "params"], [1, 2]), "be a dict or a list of 4"),
        (_set([1, 0, "params", _CROP], (0, 0, 5)), "random_resized_crop .* hold 6 x 4 numbers"),
        (_set([1, 0, "params", _CROP], (0, 0, 5.0, 5)), "hold 6 x 4 numbers"),
        (_set([1, 0, "params", _CROP], (-1, 0, 5, 5)), "be pixels from 0 to 65,535"),
        (_set([1, 0, "params", _CROP], (0, 0, 0, 5)), "must have boxes inside"),
        (_set([1, 0, "params", _FLIP], 1), "random_horizontal_flip .* numbers"),
        (_set([1, 0, "params", _FLIP], None), "random_horizontal_flip .* numbers"),
        (_set([1, 0, "params", _RA], [(1, 0.09)]), "be a list of 2 operations"),
        (_set([1, 0, "params", _RA], [(1, 0.09), (14, 0.0)]), "use operations of Identity"),
        (_set([1, 0, "params", _RA], [(1, 0.09), ("Invert", 0.0)]), "use operations of Identity"),
        (_set([1, 0, "params", _RA], [(1, 0.09), (1, 0.0912)]), r"magnitude of torchvision's table for ShearX \(31 levels\)"),
        (_set([1, 0, "params", _RA], [(1, 0.09), (11, -178.5)]), "table for Solarize"),
        (_set([1, 0, "params", _RA], [(1, 0.09), 7]), "be pairs of operation and magnitude"),
        (_set([1, 0, "params", _ERASE], (0, 0, 17, 3)), "must have boxes inside its image of 16x16"),
    ],
)  # fmt: skip
def test_views_that_cannot_be_are_refused(change, message, base, tmp_path):
    source = write(changed(Files(base, RANDAUG), change), tmp_path / "in")
    with pytest.raises((FormatError, DataError), match=message):
        import_ml_dr([source], base, tmp_path / "plus")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixup": 1.5}, "be weights from 0 to 1"),
        ({"mixup": "x"}, "mixup .* numbers"),
        ({"cutmix": (0.5, (3, 3, 2, 5))}, "be pixels from 0"),
        ({"cutmix": (0.5, (0, 0, 17, 5))}, "must have boxes inside its image of 16x16"),
        ({"cutmix": 0.5}, "be None, or a weight and a box"),
        ({"id2": ROWS}, "mixes in image 12, but the base has 12"),
        ({"id2": -1}, "be numbers of images"),
        ({"id2": None}, "name the partner, `id2`"),
        ({"random_resized_crop": ((0, 0, 3, 3), (0, 0, 99, 3))}, "a partner must have boxes inside"),
        ({"random_resized_crop": ((0, 0, 3, 3),)}, "be a pair, the image's and its partner's"),
        ({"random_erasing": None}, "found .'random_erasing'."),
    ],
)
def test_mixed_views_that_cannot_be_are_refused(change, message, base, tmp_path):
    files = Files(base, MIXING, compressed=False)
    files.rows[0][1][0]["params"] = {**files.views[0][0], "mixup": 0.25, "id2": 1, **change}
    source = files.write(tmp_path / "in")
    with pytest.raises((FormatError, DataError), match=message):
        import_ml_dr([source], base, tmp_path / "plus")


@pytest.mark.parametrize(
    ("ops", "message"),
    [
        ({"random_resize_crop": {"size": 8}}, "has the op `random_resize_crop`.* Did you mean `random_resized_crop`"),
        ({"random_resized_crop": {"sise": 8}}, "has no setting `sise`. Did you mean `size`"),
        ({"random_resized_crop": {}}, "needs `size`"),
        ({"random_crop": {"size": 8, "pad_if_needed": True}}, "`pad_if_needed` of random_crop .* be False, found True"),
        ({"normalize": {"mode": 1}}, "normalize .* have no settings"),
        ({"rand_augment": {"magnitude": 99}}, "`magnitude` of RandAugment must be"),
        ({"rand_augment": 3}, "must have reinforce.image_augmentation"),
        ({}, "no op of RandomHorizontalFlip fixes"),
    ],
)
def test_configurations_that_cannot_be_replayed_are_refused(ops, message):
    with pytest.raises(HfDrError, match=message):
        RunFormat({"reinforce": {"image_augmentation": {"random_horizontal_flip": {}, **ops}}}, "config.pth.tar")


@pytest.mark.parametrize("count", [0, 1 << 40, True, "8"])
def test_impossible_numbers_of_classes_are_refused(count):
    content = {"num_classes": count, "reinforce": {"image_augmentation": RANDAUG}}
    with pytest.raises(FormatError, match="`num_classes` in config must be from 1 to 1,048,576"):
        RunFormat(content, "config")


@pytest.mark.parametrize("content", [None, {}, {"reinforce": 3}, {"reinforce": {"image_augmentation": []}}])
def test_other_files_are_no_configuration(content):
    with pytest.raises(FormatError, match=r"must have reinforce\.image_augmentation"):
        RunFormat(content, "config.pth.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.pop("7.pth.tar"),
            "must have a file for each of the base's 12 images, but 1 are missing, e.g. 7.pth.tar",
        ),
        (lambda c: c.pop("config.pth.tar"), "found no config.pth.tar"),
        (lambda c: [c.pop(f"{n}.pth.tar") for n in range(12)], "found no image"),
        (lambda c: c.update({"12.pth.tar": c["0.pth.tar"]}), "one of the base's 12 images, found number 12"),
        (lambda c: c.update({"evil.sh": b""}), "found 'evil.sh'"),
        (lambda c: c.update({"-1.pth.tar": b""}), "found '-1.pth.tar'"),
        (
            lambda c: c.update({"0.pth.tar": b"garbage"}),
            "must be written by torch.save or joblib, but: ValueError: it begins with",
        ),
        (lambda c: c.update({"0.pth.tar": c["0.pth.tar"][:-30]}), "must be written by torch.save or joblib"),
        (lambda c: c.update({"0.pth.tar": zlib.compress(b"x" * 99)[:-9]}), "it breaks off"),
    ],
)
def test_sources_that_are_incomplete_or_damaged_are_refused(change, message, base, tmp_path):
    contents = Files(base, RANDAUG).contents()
    change(contents)
    with pytest.raises(HfDrError, match=message):
        import_ml_dr([write(contents, tmp_path / "in")], base, tmp_path / "plus")


def test_a_payload_is_not_run(base, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    contents = Files(base, RANDAUG).contents()
    contents["3.pth.tar"] = dump(Bomb(), "joblib")
    with pytest.raises(FormatError, match=r"3\.pth\.tar must hold plain values only .* found the name \w+\.system"):
        import_ml_dr([write(contents, tmp_path / "in")], base, tmp_path / "plus")
    assert not (tmp_path / "ran").exists()


def test_tensors_are_refused():
    with pytest.raises(FormatError, match=r"found the (name torch|instruction BINPERSID)"):
        read_file(dump({"weights": torch.zeros(2)}, "torch"), "x")


def test_bombs_are_not_inflated():
    bomb = zlib.compress(bytes(1 << 26))
    with pytest.raises(FormatError, match="must hold at most 33,554,432 bytes, found more"):
        read_file(bomb, "x")


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("reinforced_data/0.pth.tar", tarfile.SYMTYPE), "found 'reinforced_data/0.pth.tar' of type b'2'"),
        (member("reinforced_data/0.pth.tar", tarfile.LNKTYPE), "of type b'1'"),
        (member("reinforced_data/0.pth.tar", tarfile.CHRTYPE), "of type b'3'"),
        (member("reinforced_data/0.pth.tar", size=1 << 30), "with 1,073,741,824 bytes"),
        (member("reinforced_data/0.pth.tar", tarfile.XHDTYPE, 1 << 30), "with 1,073,741,824 bytes"),
        (member("/etc/0.pth.tar"), "must hold plain relative names, found '/etc/0.pth.tar'"),
        (member("a/../../0.pth.tar"), "must hold plain relative names"),
        (member("elsewhere/0.pth.tar"), "must hold one folder of files, found elsewhere and reinforced_data"),
    ],
)
def test_hostile_archives_are_refused(info, message, tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(member("reinforced_data/1.pth.tar").tobuf() + info.tobuf() + bytes(1024))
    with pytest.raises(FormatError, match=message):
        list(archive_files(path))


def test_endless_maps_of_sparse_files_are_not_read(tmp_path):
    header = tarfile.TarInfo("reinforced_data/0.pth.tar")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    numbers = bytes(1024).replace(b"\0", b"9\n")
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.PAX_FORMAT) + numbers)
    with pytest.raises(FormatError, match=r"found the sparse 'reinforced_data/0\.pth\.tar'"):
        list(archive_files(tmp_path / "x.tar"))


@pytest.mark.parametrize("said", [{"size": str(1 << 30)}, {"GNU.sparse.map": "0,1"}], ids=["large", "sparse"])
def test_what_a_longer_header_says_of_a_file_is_checked(said, tmp_path):
    header = tarfile.TarInfo("reinforced_data/0.pth.tar")
    header.pax_headers = said
    (tmp_path / "x.tar").write_bytes(header.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(FormatError, match=r"x\.tar must hold plain files only, found 'reinforced_data/0\.pth\.tar'"):
        list(archive_files(tmp_path / "x.tar"))


def test_endless_chains_of_headers_are_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(member("x", tarfile.XGLTYPE).tobuf() * 20_000)
    with pytest.raises(FormatError, match="reading it failed"):
        list(archive_files(tmp_path / "x.tar"))


@quick
@given(
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=5),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.booleans(),
)
def test_no_damage_to_an_archive_does_harm(changes, layout, packed):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=layout) as archive:
        archive.addfile(member("reinforced_data/" + "é" * 60 + "/0.pth.tar", size=3), io.BytesIO(b"abc"))
        archive.addfile(member("reinforced_data/1.pth.tar"))
    data = bytearray(zlib.compress(file.getvalue(), wbits=31) if packed else file.getvalue())
    for at, value in changes:
        data[at % len(data)] = value
    with tempfile.NamedTemporaryFile() as path:
        path.write(data)
        path.flush()
        with contextlib.suppress(FormatError):
            for _, read in archive_files(Path(path.name)):
                read()


def test_a_link_in_a_folder_is_refused(tmp_path):
    (tmp_path / "0.pth.tar").symlink_to("/etc/passwd")
    with pytest.raises(FormatError, match=r"must hold plain files only, found '0\.pth\.tar'"):
        list(archive_files(tmp_path))


def test_a_huge_file_in_a_folder_is_not_read(tmp_path):
    (tmp_path / "0.pth.tar").touch()
    os.truncate(tmp_path / "0.pth.tar", 1 << 30)  # without a block on the disk
    with pytest.raises(
        FormatError, match=r"0\.pth\.tar must have at most .* bytes, found 1,073,741,824 bytes\. Remove it"
    ):
        list(archive_files(tmp_path))


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_archives_that_break_off_are_refused(kind, base, tmp_path):
    path = Files(base, RANDAUG).write(tmp_path / "in", kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(FormatError, match=r"reading it failed|are missing|found no|breaks off"):
        import_ml_dr([path], base, tmp_path / "plus")


@quick
@given(
    st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=5),
    st.sampled_from(["torch", "joblib"]),
)
def test_no_damage_to_a_file_does_harm(changes, container):
    data = bytearray(dump((0, [{"params": [None, (0, 1, 2, 3)], "prob": ([0.5], [3])}] * 3), container))
    for at, value in changes:
        data[at % len(data)] = value
    with contextlib.suppress(FormatError):
        read_file(bytes(data), "x")


@quick
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=2),
        lambda v: st.lists(v, max_size=4),
    )
)
def test_no_values_in_a_file_do_harm(value):
    run = RunFormat({"reinforce": {"image_augmentation": MIXING}}, "config")
    for params in (
        [None, (0, 0, 3, 3), value, None, None, value, None],
        [0, value, [True, False], value, value, 0.5, value],
    ):
        with contextlib.suppress(FormatError):
            run.columns((0, [{"params": params, "prob": ([0.5], [3])}]), 1, 8, "x")
    with contextlib.suppress(FormatError):
        run.columns((0, [{"params": value, "prob": ([0.5], value)}]), 1, 8, "x")


def test_runs_of_different_make_are_not_added(base, tmp_path):
    sources = [Files(base, ops).write(tmp_path / str(n)) for n, ops in enumerate([RANDAUG, MIXING])]
    with pytest.raises(ConfigError, match="several sources must be runs of one augmentation"):
        import_ml_dr(sources, base, tmp_path / "plus")


def test_sources_must_exist(base, tmp_path):
    with pytest.raises(ConfigError, match="must be a folder or archive of ml-dr, found nothing there"):
        import_ml_dr([tmp_path / "none"], base, tmp_path / "plus")
    with pytest.raises(ConfigError, match="at least one folder or archive, got none"):
        import_ml_dr([], base, tmp_path / "plus")


def test_the_classes_must_be_those_of_the_base(base, mixing, tmp_path):
    fewer = base.cast_column("label", datasets.ClassLabel(num_classes=9))
    with pytest.raises(DataError, match="must have the 8 classes of ml-dr's configuration, found 9"):
        import_ml_dr([mixing[1]], fewer, tmp_path / "plus")


def test_someone_must_count_the_classes(base, tmp_path):
    files = Files(base, RANDAUG)
    del files.config["num_classes"]
    source = files.write(tmp_path / "in")
    with pytest.raises(DataError, match="must have a ClassLabel column, as ml-dr's configuration does not count"):
        import_ml_dr([source], base.remove_columns("label"), tmp_path / "plus")
    assert load_reinforced(import_ml_dr([source], base, tmp_path / "plus")).provenance.num_classes == 8


# --------------------------------------------------------------------------------------------------------- command line


def test_the_command_line(base, mixing, tmp_path, capsys):
    base.to_parquet(str(tmp_path / "base.parquet"))
    arguments = [str(mixing[1]), "--base", str(tmp_path / "base.parquet"), "--output_dir", str(tmp_path / "plus")]
    assert main(["import-ml-dr", *arguments, "--dry_run"]) == 0
    assert "12 x 6, of 1 run(s)" in capsys.readouterr().out
    assert not (tmp_path / "plus").exists()
    assert main(["import-ml-dr", *arguments, "--config_name", "mixing"]) == 0
    check_views(load_reinforced(tmp_path / "plus", "mixing"), base, mixing[0], MIXING)
    assert main(["import-ml-dr", *arguments, "--order", "nowhere"]) == 2
    assert "error: `order` must be" in capsys.readouterr().err


def test_a_command_that_is_stopped_says_how_to_go_on(base, mixing, tmp_path, monkeypatch, caplog):
    def stopped(*_):
        raise KeyboardInterrupt

    base.to_parquet(str(tmp_path / "base.parquet"))
    arguments = [str(mixing[1]), "--base", str(tmp_path / "base.parquet"), "--output_dir", str(tmp_path / "plus")]
    with monkeypatch.context() as patched:
        patched.setattr(ImportJob, "_write", stopped)
        assert main(["import-ml-dr", *arguments]) == 130
    assert "run the same command again to go on" in caplog.text
    assert main(["import-ml-dr", *arguments]) == 0
    assert len(load_reinforced(tmp_path / "plus")) == len(base)
