"""`--smoke`: a command on tiny generated data in place of the real, in seconds, through the same code.

Next to a recipe, `features.yaml` describes the columns, image mode and size, class names and splits of its dataset. A few
rows are generated from it; the dataset of a real run must have the split sizes that it says. Pretrained networks are replaced
by untrained tiny ones over as many classes; a fresh student (`timm:ARCHITECTURE`) stays what it is. Only names and numbers are
replaced, by flags that follow the user's own: what runs is the command itself, with the recipe's augmentation, columns,
configuration, loss and optimizer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
import yaml
from timm.data import ImageNetInfo

from hf_dr.cli.flags import FEATURES_FILE, StudentArguments
from hf_dr.cli.launch import launch
from hf_dr.cli.yaml_files import config_files, read_yaml
from hf_dr.errors import ConfigError
from hf_dr.evaluation.config import as_arguments
from hf_dr.evaluation.corruptions import CORRUPTIONS
from hf_dr.evaluation.sets import EvaluationSet, parse_set
from hf_dr.files import expanded
from hf_dr.processes import refuse_several
from hf_dr.store.labels import image_columns
from hf_dr.training.students import build_student, complete_config

ROWS = 4
"""Rows of each generated split."""
_TESTED = f"[{ROWS // 2}:]"  # the rows to test on where the other rows of the split calibrate
_SUFFIX = "-smoke"
_KEYS = {"dataset", "splits", "images", "columns"}


@dataclass(frozen=True)
class Described:
    """What `features.yaml` says about a dataset.

    Attributes:
        dataset: Its name.
        splits: Their rows, by name.
        images: `mode` and `format` as Pillow calls them, `width` and `height` in pixels.
        columns: `image`, or the names of the classes, or `imagenet`, for each column.
        folder: The folder of the description.
    """

    dataset: str
    splits: dict[str, int]
    images: dict[str, Any]
    columns: dict[str, Any]
    folder: Path

    @classmethod
    def find(cls, files: Sequence[str]) -> Described | None:
        """Reads the description next to the last of some configuration files that has one; None where none has."""
        found = [path for path in (expanded(file).with_name(FEATURES_FILE) for file in files) if path.is_file()]
        if not found:
            return None
        path = found[-1]
        content = read_yaml(path)
        if content.keys() != _KEYS:
            raise ConfigError(
                f"{path} must have the keys {', '.join(sorted(_KEYS))}, found {', '.join(map(str, content))}."
            )
        splits = content["splits"]
        if not isinstance(splits, dict) or not all(isinstance(rows, int) for rows in splits.values()):
            raise ConfigError(f"`splits` in {path} must say how many rows each split has, found {splits}.")
        return cls(**content, folder=path.parent)

    @cached_property
    def features(self) -> datasets.Features:
        """The columns with their types."""
        features: dict[str, Any] = {}
        for name, kind in self.columns.items():
            names = _imagenet_names() if kind == "imagenet" else kind
            features[name] = datasets.Image() if kind == "image" else datasets.ClassLabel(names=names)
        return datasets.Features(features)

    def generate(self, folder: Path) -> None:
        """Writes all splits as Parquet files, for `load_dataset`."""
        folder.mkdir(parents=True)
        for number, split in enumerate(self.splits):
            rng = np.random.default_rng(number)
            columns = {
                name: [
                    self._image(rng) if isinstance(feature, datasets.Image) else int(rng.integers(feature.num_classes))
                    for _ in range(ROWS)
                ]
                for name, feature in self.features.items()
            }
            rows = datasets.Dataset.from_dict(columns, features=self.features)
            rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")

    def generate_coco(self, folder: Path, annotations: Path) -> None:
        """Writes images, and their objects in COCO's format: polygons, one crowd as run lengths, one image without any."""
        folder.mkdir(parents=True)
        rng = np.random.default_rng(0)
        found: list[dict[str, Any]] = []
        categories: dict[int, str] = self.columns["objects"]
        width, height = self.images["width"], self.images["height"]
        described = [
            {"id": 1000 + n, "file_name": f"{n:012}.jpg", "width": width, "height": height} for n in range(ROWS)
        ]
        for n, image in enumerate(described):
            (folder / image["file_name"]).write_bytes(self._image(rng)["bytes"])
            for crowd in () if n == 0 else (False, False, n == 1):
                left, top = int(rng.integers(width // 2)), int(rng.integers(height // 2))
                right, bottom = left + width // 2, top + height // 2
                mask = np.zeros((width, height), bool)  # COCO's run lengths go down the columns
                mask[left:right, top:bottom] = True
                ends = np.flatnonzero(np.diff(mask.ravel().astype(int), prepend=0, append=0))
                runs = np.diff(ends, prepend=0, append=mask.size)
                found.append(
                    {
                        "id": len(found) + 1,
                        "image_id": image["id"],
                        "category_id": int(rng.choice(list(categories))),
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": int(crowd),
                        "segmentation": {"size": [height, width], "counts": runs.tolist()}
                        if crowd
                        else [[left, top, right, top, right, bottom, left, bottom]],
                    }
                )
        content = {
            "images": described,
            "annotations": found,
            "categories": [{"id": category, "name": name} for category, name in categories.items()],
        }
        annotations.parent.mkdir(exist_ok=True)
        annotations.write_text(json.dumps(content), encoding="utf-8")

    def generate_masks(self, images: Path, masks: Path) -> None:
        """Writes images, and masks of the same names: grey PNG with the numbers that the description gives."""
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        rng = np.random.default_rng(0)
        numbers: dict[str, int] = self.columns["mask"]
        for n in range(ROWS):
            (images / f"{n:08}.jpg").write_bytes(self._image(rng)["bytes"])
            blocks = rng.integers(numbers["least"], numbers["greatest"], size=(8, 8), endpoint=True).astype(np.uint8)
            size = self.images["width"], self.images["height"]
            mask = PIL.Image.fromarray(blocks).resize(size, PIL.Image.Resampling.NEAREST)
            mask.save(masks / f"{n:08}.png")

    def _image(self, rng: np.random.Generator) -> dict[str, Any]:
        images = self.images
        pixels = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)  # blocks of colour: photos have few edges, too
        image = PIL.Image.fromarray(pixels).resize((images["width"], images["height"])).convert(images["mode"])
        file = BytesIO()
        image.save(file, images["format"])
        return {"bytes": file.getvalue(), "path": None}


@cache
def _imagenet_names() -> list[str]:
    names: list[str] = []
    for name in ImageNetInfo().label_descriptions():
        names.append(name if name not in names else f"{name}2")  # two classes are called crane
    return names


class Rehearsal:
    """The stand-ins of one command: generated data and untrained networks, made when they are first asked for.

    A method that is called as a command returns what a rehearsal changes in the settings of that command.
    """

    def __init__(self, argv: Sequence[str], folder: Path) -> None:
        self.folder = folder
        files = config_files(argv)
        described = Described.find(files)
        if described is None:
            raise ConfigError(
                f"`smoke` needs a --config in a folder with a {FEATURES_FILE}, which describes the dataset, found none next to "
                f"{', '.join(files) or 'no file'}. Give a recipe."
            )
        self.described = described
        self._config = folder / "rehearsal.yaml"  # without settings; beside it stands what describes the generated data
        self._plus = folder / "plus"

    @property
    def base(self) -> str:
        folder = self.folder / "base"
        if not folder.exists():
            self.described.generate(folder)
            own = {**vars(self.described), "dataset": str(folder), "splits": dict.fromkeys(self.described.splits, ROWS)}
            written = {key: own[key] for key in sorted(_KEYS)}
            (self.folder / FEATURES_FILE).write_text(yaml.safe_dump(written), encoding="utf-8")
            self._config.write_text("{}\n", encoding="utf-8")
        return str(folder)

    @property
    def classes(self) -> int:
        """Number of classes: of the largest set of labels, where there are finer and coarser ones."""
        kinds = self.described.features.values()
        return max(kind.num_classes for kind in kinds if isinstance(kind, datasets.ClassLabel))

    def teachers(self, count: int) -> list[str]:
        return [self.checkpoint(self.classes, seed) for seed in range(count)]

    def checkpoint(self, classes: int, seed: int = 0) -> str:
        """A folder with an untrained classifier, as `train` saves them."""
        folder = self.folder / f"checkpoint{classes}_{seed}"
        if not folder.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model: Any = build_student("timm:test_resnet", None, classes, size=64)
            complete_config(model)
            model.save_pretrained(folder)
        return str(folder)

    def reinforce(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        num_views, num_candidates = settings["num_views"], settings.get("num_candidates")
        views = min(num_views, 2)
        fewer = {} if num_candidates is None else {"num_candidates": views + min(num_candidates - num_views, 2)}
        return {
            "dataset": self.base,
            "dataset_config": None,
            "revision": None,
            "config": self._config,
            "teacher": self.teachers(len(settings["teacher"])),
            "precision": "fp32",
            "compile": False,
            "num_views": views,
            **fewer,
            "output_dir": self._plus,
        }

    @property
    def _short(self) -> dict[str, Any]:
        """What makes a training short."""
        return {
            "output_dir": self.folder / "out",
            "max_steps": 2,
            "batch_size": 2,
            "per_device_eval_batch_size": 2,
            "gradient_accumulation_steps": 1,
            "dataloader_num_workers": 0,
            "dataloader_persistent_workers": False,
            "save_strategy": "no",
            "push_to_hub": False,
        }

    def train(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Also makes the "+" dataset by `reinforce.yaml`."""
        plain = settings.get("augmentation") is not None
        named = settings["dataset"]
        plus = str(self._plus) if isinstance(named, str) else [str(self._plus)] * len(named)
        changed = {
            "dataset": self.base if plain else plus,
            "config": self._config,
            "warmup_epochs": 0,
            **self._short,
        }
        if any(settings.get(f"dataloader_{name}") for name in ("multiprocessing_context", "prefetch_factor")):
            changed["dataloader_num_workers"] = 1  # both settings need workers
        if not settings["student"].startswith("timm:"):
            changed["student"] = self.checkpoint(1000)  # classes that the dataset may not have
        for name, stand_in in (("base", self.base), ("eval_dataset", self.base), ("num_views", 1)):
            if settings.get(name):
                changed[name] = stand_in
        if settings.get("calibrate_split"):
            split = settings.get("eval_split") or StudentArguments.eval_split
            whole = split.partition("[")[0]
            changed |= {"calibrate_split": f"{whole}[:{ROWS // 2}]", "eval_split": f"{whole}{_TESTED}"}
        places = ["revision", "base_config", "base_revision", "eval_config", "eval_revision"]
        places += ["name"] if plain else []
        changed |= {name: None for name in places if settings.get(name)}
        if settings.get("teacher"):
            changed["teacher"] = self.teachers(len(settings["teacher"]))
        if not plain:
            names = settings.get("name") or [None]
            for name in [names] if isinstance(names, str) else names:
                self._make_plus({"config_name": name, "size": settings.get("size")})
        return changed

    def _make_plus(self, settings: Mapping[str, Any]) -> None:
        recipe = self.described.folder / "reinforce.yaml"
        changed = self.reinforce({"teacher": ["one"], "num_views": 2}) | {
            name: value for name, value in settings.items() if value
        }
        status = launch("reinforce", ["--config", str(recipe), *as_arguments(changed)], "hf-dr reinforce")
        if status:
            raise ConfigError(f'{recipe} must make the "+" dataset, but it ended with status {status}. See above.')

    def _pictures(self, kind: str, generate: Callable[[Path, Path], None]) -> dict[str, Any]:
        """Generates images and, in a place of the kind, what is known of them; returns the settings that name both."""
        changed: dict[str, Any] = {}
        for prefix, split in zip(("", "eval_"), self.described.splits, strict=True):
            places = {name: self.folder / name / split for name in ("images", kind)}
            generate(*places.values())
            changed |= {f"{prefix}{name}": place for name, place in places.items()}
        return changed

    def detect(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Also generates images and annotations in COCO's format."""
        return {
            **self._pictures("annotations", self.described.generate_coco),
            "student": self.checkpoint(1000),
            "short_side": 64,
            "long_side": 96,
            "fpn_channels": 16,
            "rois_per_image": 16,
            **self._short,
        }

    def segment(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """Also generates folders of images and masks."""
        return {
            **self._pictures("masks", self.described.generate_masks),
            "student": self.checkpoint(1000),
            "crop_size": 64,
            "short_side": [48, 96],
            "long_side": 128,
            "head_channels": 16,
            **self._short,
        }

    def evaluate(self, settings: Mapping[str, Any], rows: str = "") -> dict[str, Any]:
        """Every set becomes the described dataset.

        `rows` is the slice of a split that is taken, such as `[2:]`.
        """
        changed: dict[str, Any] = {
            "sets": [self._set(parse_set(text), rows) for text in settings["sets"]],
            "max_examples": ROWS,
        }
        if "models" in settings:
            names = [
                text.partition("=")[0] if "=" in text else f"model{n}" for n, text in enumerate(settings["models"])
            ]
            changed["models"] = [f"{name}={self.checkpoint(self.classes)}" for name in names]
            changed["output_dir"] = self.folder / "out"
        if settings.get("corrupt"):
            changed["corrupt"] = [f"{name}{_SUFFIX}" for name in settings["corrupt"]]
            changed.update(severities=[1], corruptions=(settings.get("corruptions") or list(CORRUPTIONS))[:1])
        return changed

    def _set(self, spec: EvaluationSet, rows: str) -> str:
        described = self.described
        features = described.features
        image = image_columns(features)[0]
        labels = [name for name in features if name != image]
        split = spec.split if spec.split in described.splits else list(described.splits)[1]
        label = spec.label if spec.label in labels else labels[0]
        # The name is no preset's, so that nothing of a preset is taken over.
        return f"{spec.name}{_SUFFIX}={self.base}:{split}{rows},image={image},label={label}"

    def compare(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Writes all of it into a file."""
        own = self.train(settings["train"])
        del own["output_dir"], own["config"]
        rows = _TESTED if "calibrate_split" in own else ""
        changed: dict[str, Any] = {
            "train": {**settings["train"], **own},
            "evaluate": {**settings["evaluate"], **self.evaluate(settings["evaluate"], rows)},
            "pictures": [],
            "seeds": [0],
            "output_dir": str(self.folder / "out"),
        }
        if settings["teacher"]:
            changed["teacher"] = self.teachers(len(settings["teacher"]))
        file = self.folder / "compare.yaml"
        file.write_text(yaml.safe_dump(changed), encoding="utf-8")
        return {"config": file}


def rehearse(command: str, argv: Sequence[str], prog: str, settings: Mapping[str, Any]) -> int:
    """Runs a command on stand-ins, and removes them with what it makes of them; returns its exit status.

    `argv` are the user's arguments, `settings` what was read from them.
    """
    refuse_several("smoke")
    with tempfile.TemporaryDirectory(prefix="hf_dr_smoke_") as folder:
        changed = {**getattr(Rehearsal(argv, Path(folder)), command)(settings), "smoke": False}
        return launch(command, [*argv, *as_arguments(changed)], prog)
