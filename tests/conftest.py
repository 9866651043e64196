"""Shared fixtures: tiny images, a tiny teacher, a tiny "+" dataset, a Hub on 127.0.0.1. No other network; nothing is left."""

# ruff: noqa: E402 (the environment must be set before the libraries are imported)

import atexit
import copy
import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub

# Before any library reads them. The Hub has its port from here on, and serves only those who ask for `loopback_hub`.
HUB = LoopbackHub()
atexit.register(HUB.stop)
_HOME = tempfile.mkdtemp(prefix="hf_dr_tests_")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ.update(
    HF_ENDPOINT=HUB.endpoint,
    HF_HUB_DISABLE_XET="1",
    HF_HOME=_HOME,
    HF_HUB_CACHE=f"{_HOME}/hub",
    HF_DATASETS_CACHE=f"{_HOME}/datasets",
    HF_MODULES_CACHE=f"{_HOME}/modules",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false",
    ACCELERATE_USE_CPU="true",  # the tests compare bytes, also on a machine with an accelerator
)

import children  # noqa: F401 (what its server imports must be said before the first worker starts)
import datasets
import huggingface_hub
import hypothesis
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
import transformers
from torch import nn

import hf_dr.replay.dataset
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.store.shards import list_array
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.members import Member, weights_hash
from hf_dr.teacher.preprocessing import Preprocessing
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.colour import RandAugment
from hf_dr.views.ops.geometry import RandomErasing, RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import CutMix, MixUp

torch.set_num_threads(1)


class TorchRandom:
    """torch's global generator as Hypothesis seeds it before each example."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


_TORCH_RANDOM = TorchRandom()  # Hypothesis holds it weakly
hypothesis.register_random(_TORCH_RANDOM)
# The same examples in every run: a red test stays red until the code is mended. And none is timed: a machine may be busy.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("same")

_ROOT = Path(__file__).parents[1]
_AT_START = set(_ROOT.iterdir())


@pytest.hookimpl(wrapper=True, tryfirst=True)  # after the report
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Fails where tests left something in the repository's root, but for what .gitignore names: tools make that."""
    yield
    if hasattr(session.config, "workerinput"):
        return  # a worker of pytest-xdist; who started it looks when all workers have ended
    tools = [line.strip("/") for line in (_ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    new = sorted(path.name for path in set(_ROOT.iterdir()) - _AT_START)
    if left := [name for name in new if not any(fnmatch(name, tool) for tool in tools)]:
        pytest.exit(f"tests left {', '.join(left)} in {_ROOT}. They must write to their `tmp_path` only.", returncode=1)


@pytest.hookimpl(tryfirst=True)  # before the fixtures
def pytest_runtest_setup() -> None:
    """Seeds torch's global generator: a test draws the same, whichever ran before it. Others' are banned (ruff)."""
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _frozen() -> None:
    """Takes what is imported out of garbage collection: transformers' Trainer collects at each training, then for 0.3 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _verbosity() -> Iterator[None]:
    """Restores what transformers logs: a training with a `log_level` sets it for the process, bars included."""
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)


CLASSES = ("black", "blue", "green", "cyan", "red", "magenta", "yellow", "white")
# Corners of the colour cube, one for each class: what the images show and what the teacher knows.
_COLOURS = np.array([[50 + 155 * (c >> 2 & 1), 50 + 155 * (c >> 1 & 1), 50 + 155 * (c & 1)] for c in range(8)])


class ColourModel(nn.Module):
    """Classifies the mean colour by its distance from each class's; a linear layer on pooled pixels."""

    def __init__(self, sharpness: float = 8.0) -> None:
        super().__init__()
        colours = torch.tensor(_COLOURS / 255, dtype=torch.float32)
        self.linear = nn.Linear(3, len(CLASSES))
        with torch.no_grad():
            self.linear.weight.copy_(2 * sharpness * colours)
            self.linear.bias.copy_(-sharpness * (colours**2).sum(dim=1))

    def forward(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels_BCHW.mean(dim=(2, 3)))


def colour_image(rng: np.random.Generator, label: int, size: tuple[int, int] = (40, 30)) -> PIL.Image.Image:
    """Noise and a gradient around the class's colour; `size` is (width, height)."""
    width, height = size
    ramp = np.linspace(-30, 30, width)[None, :, None] * rng.choice([-1, 1])
    noise = rng.normal(0, 15, (height, width, 3))
    return PIL.Image.fromarray(np.clip(_COLOURS[label] + ramp + noise, 0, 255).astype(np.uint8))


def as_cell(image: PIL.Image.Image, file_format: str = "PNG", **settings: Any) -> dict[str, bytes | None]:
    """The image as a cell of an undecoded image column."""
    file = BytesIO()
    image.save(file, file_format, **settings)
    return {"bytes": file.getvalue(), "path": None}


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler of Ctrl-C, which tests that run in the background do not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def loopback_hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """An empty Hub that this process and its libraries are online with, logged in as `me`, and an empty cache of its files.

    The caches of datasets and transformers are shared by the tests of a process; they cannot lie, because no commit ever has
    the sha of an earlier one.
    """
    HUB.start()
    HUB.reset()
    monkeypatch.setenv("HF_TOKEN", HUB.token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub_cache")))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield HUB
    assert not HUB.errors, "\n".join(HUB.errors)


def colour_teacher(sharpness: float = 8.0) -> Teacher:
    """A teacher of the eight colours; another sharpness, other weights."""
    model = ColourModel(sharpness)
    member = Member(
        model=model,
        id="colours",
        revision=None,
        license="cc0-1.0",
        num_classes=len(CLASSES),
        labels=tuple((name,) for name in CLASSES),
        preprocessing=Preprocessing((16, 16), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear"),
        weights_hash=weights_hash(model),
    )
    return Teacher([member])


@pytest.fixture(scope="session")
def make_teacher() -> Callable[..., Teacher]:
    """Builds a teacher of any sharpness."""
    return colour_teacher


@pytest.fixture(scope="session")
def tiny_teacher(make_teacher: Callable[..., Teacher]) -> Teacher:
    """A classifier of eight colours."""
    return make_teacher()


@pytest.fixture(scope="session")
def tiny_dataset() -> datasets.Dataset:
    """12 PNG images of eight colours, most of 40x30 pixels, with ClassLabel; split `train`."""
    rng = np.random.default_rng(0)
    labels = [n % len(CLASSES) for n in range(12)]
    sizes = [(30, 40) if n == 5 else (40, 30) for n in range(12)]
    images = [as_cell(colour_image(rng, label, size)) for label, size in zip(labels, sizes, strict=True)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features, split="train")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: datasets.Dataset) -> Path:
    """A folder as somebody has one: three classes, a folder each, of four PNG images; read only."""
    root = tmp_path_factory.mktemp("own") / "photos"
    for label, name in enumerate(CLASSES[:3]):
        (root / name).mkdir(parents=True)
        for number in range(4):
            tiny_dataset[label]["image"].rotate(90 * number).save(root / name / f"{number}.png")
    return root


ALL_OPS = Augmentation(
    [RandomResizedCrop(24), RandomHorizontalFlip(), RandAugment(), RandomErasing(), MixUp(p=0.3), CutMix(p=0.3)]
)


@pytest.fixture(scope="session")
def tiny_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_dataset: datasets.Dataset, tiny_teacher: Teacher
) -> Path:
    """Folder of a "+" dataset with the one config `all_ops`: 4 views of 24x24, top 3, 3 shards of 5 rows. Read only."""
    folder = tmp_path_factory.mktemp("plus") / "tiny-plus"
    config = ReinforceConfig(str(folder), "all_ops", num_views=4, top_k=3, shard_size=5)
    reinforce(tiny_dataset, tiny_teacher, ALL_OPS, config)
    return folder


@pytest.fixture(scope="session")
def _tiny_plus(tiny_folder: Path) -> ReinforcedDataset:
    return load_reinforced(tiny_folder)


@pytest.fixture
def tiny_plus(_tiny_plus: ReinforcedDataset) -> ReinforcedDataset:
    """`tiny_folder`, opened; a fresh copy for each test, so that `set_epoch` stays its own affair."""
    return copy.copy(_tiny_plus)


@pytest.fixture(scope="session")
def edit() -> Callable[..., ReinforcedDataset]:
    """Returns `edit(plus, column, change)`: the dataset with one column changed, in memory.

    `change` gets a copy of the column, a NumPy array (rows,) or (rows, V, ...) or, for images, a list of undecoded cells,
    and returns what shall stand there.
    """

    def edit(plus: ReinforcedDataset, column: str, change: Callable[[Any], Any]) -> ReinforcedDataset:
        table = plus.plus.data.table
        place, kind = table.column_names.index(column), table.schema.field(column).type
        if pa.types.is_struct(kind):
            array = pa.array(change(table.column(column).to_pylist()), kind)
        else:
            values, shape = table.column(column).combine_chunks(), [len(table)]
            while pa.types.is_fixed_size_list(values.type):
                shape.append(values.type.list_size)
                values = values.flatten()
            new = np.asarray(change(values.to_numpy(zero_copy_only=False).reshape(shape).copy()))
            new = np.ascontiguousarray(new, values.type.to_pandas_dtype())
            array = pa.array(new) if new.ndim == 1 else list_array(new, np.ones(len(new), bool), kind)
        changed = table.set_column(place, table.schema.field(column), array)
        return ReinforcedDataset(datasets.Dataset(changed, info=plus.plus.info), plus.provenance)

    return edit


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each row whose image a "+" dataset decodes, in order."""
    names: list[str] = []
    decode = hf_dr.replay.dataset.decode_row

    def watched(value, name, *settings):
        names.append(name)
        return decode(value, name, *settings)

    monkeypatch.setattr(hf_dr.replay.dataset, "decode_row", watched)
    return names
