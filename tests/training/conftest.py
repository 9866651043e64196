"""Data and settings of tiny trainings."""

import copy
import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay.dataset import ReinforcedDataset
from hf_dr.replay.loading import load_reinforced
from hf_dr.teacher.metrics import compute_metrics
from hf_dr.teacher.preprocessing import evaluation_augmentation
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.student_inputs import LabelledImages
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import MixUp
from training.helpers import SIZE, VIEWS, settings_in


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    """Torch gives persistent workers of a loader in a reference cycle, as any Trainer's is, 5 s before it ends them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
        yield
        gc.collect()


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., ReinforcedTrainingArguments]:
    return partial(settings_in, tmp_path / "out")


@pytest.fixture(scope="session")
def _plain(tmp_path_factory: pytest.TempPathFactory, tiny_dataset, tiny_teacher) -> ReinforcedDataset:
    folder = tmp_path_factory.mktemp("plain")
    augmentation = Augmentation([RandomResizedCrop(SIZE), RandomHorizontalFlip()])
    reinforce(tiny_dataset, tiny_teacher, augmentation, ReinforceConfig(str(folder), num_views=VIEWS, top_k=3))
    return load_reinforced(folder)


@pytest.fixture
def plain(_plain: ReinforcedDataset) -> ReinforcedDataset:
    """A "+" dataset that does not mix."""
    return copy.copy(_plain)


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, tiny_dataset, tiny_teacher) -> ReinforcedDataset:
    folder = tmp_path_factory.mktemp("unlabelled")
    config = ReinforceConfig(str(folder), num_views=VIEWS, top_k=3, label_column="none")
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(SIZE)]), config)
    return load_reinforced(folder)


@pytest.fixture(scope="session")
def pictures(tiny_dataset) -> LabelledImages:
    return LabelledImages(tiny_dataset, evaluation_augmentation((SIZE, SIZE)))


@pytest.fixture
def trainer_of(plain: ReinforcedDataset, pictures: LabelledImages) -> Callable[..., ReinforcedTrainer]:
    """Makes a trainer that learns `plain` and measures this package's metrics on `pictures`; what else is given wins."""
    data = {"train_dataset": plain, "eval_dataset": pictures, "compute_metrics": compute_metrics}
    return lambda model, args, **more: ReinforcedTrainer(model, args, **{**data, **more})


@pytest.fixture(scope="session")
def in_shards(tmp_path_factory: pytest.TempPathFactory, tiny_dataset, tiny_teacher) -> dict[str, Path]:
    """Folders of "+" datasets of 3 shards: one that mixes within them, one that does not."""
    folders = {}
    for seed, name, augmentation in (
        (0, "plain", Augmentation([RandomResizedCrop(SIZE), RandomHorizontalFlip()])),
        (1, "mixing", Augmentation([RandomResizedCrop(SIZE), MixUp(p=1.0)])),
    ):
        folders[name] = tmp_path_factory.mktemp(name)
        config = {"num_views": VIEWS, "top_k": 3, "shard_size": 5, "mixing_scope": "shard", "seed": seed}
        reinforce(tiny_dataset, tiny_teacher, augmentation, ReinforceConfig(str(folders[name]), name, **config))
    return folders
