"""Dataset Reinforcement for the Hugging Face ecosystem (Faghri et al., ICCV 2023, arXiv:2303.08983).

Improve a dataset once, and train many models on it at no extra cost in each training: `reinforce` stores, for V
augmented views of each image, the augmentation's parameters and a teacher's answer; `load_reinforced` replays them, and
`ReinforcedTrainer` learns from them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_dr.version import __version__ as __version__

if TYPE_CHECKING:  # `as` says that a name is public
    from hf_dr.cli.teach import teach as teach
    from hf_dr.errors import ConfigError as ConfigError
    from hf_dr.errors import DataError as DataError
    from hf_dr.errors import FingerprintMismatchError as FingerprintMismatchError
    from hf_dr.errors import FormatError as FormatError
    from hf_dr.errors import HfDrError as HfDrError
    from hf_dr.errors import HubError as HubError
    from hf_dr.errors import ReplayError as ReplayError
    from hf_dr.errors import TeacherError as TeacherError
    from hf_dr.evaluation.evaluate import evaluate as evaluate
    from hf_dr.generation.calibration import calibrate as calibrate
    from hf_dr.generation.config import ExtendConfig as ExtendConfig
    from hf_dr.generation.config import ReinforceConfig as ReinforceConfig
    from hf_dr.generation.contact_sheet import contact_sheet as contact_sheet
    from hf_dr.generation.export import export as export
    from hf_dr.generation.extend import extend as extend
    from hf_dr.generation.inspection import inspect as inspect
    from hf_dr.generation.job import reinforce as reinforce
    from hf_dr.generation.verify import verify as verify
    from hf_dr.hub.push import push_to_hub as push_to_hub
    from hf_dr.replay.dataset import ReinforcedDataset as ReinforcedDataset
    from hf_dr.replay.loading import load_reinforced as load_reinforced
    from hf_dr.replay.sampling import ReinforcedSampler as ReinforcedSampler
    from hf_dr.teacher.ensemble import Teacher as Teacher
    from hf_dr.training.arguments import ReinforcedTrainingArguments as ReinforcedTrainingArguments
    from hf_dr.training.loader import ReinforcedLoader as ReinforcedLoader
    from hf_dr.training.losses import ReinforcedLoss as ReinforcedLoss
    from hf_dr.training.losses import reinforced_kl as reinforced_kl
    from hf_dr.training.losses import reinforced_loss as reinforced_loss
    from hf_dr.training.students import build_student as build_student
    from hf_dr.training.task import ReinforcedTask as ReinforcedTask
    from hf_dr.training.trainer import ReinforcedTrainer as ReinforcedTrainer
    from hf_dr.transfer.detection import load_detector as load_detector
    from hf_dr.transfer.segmentation import load_segmenter as load_segmenter
    from hf_dr.views import ops as ops
    from hf_dr.views.augmentation import Augmentation as Augmentation

# Public name -> the module that has it; the module, and with it torch, is imported when the name is first used (PEP 562).
_MODULES = {
    "Augmentation": "views.augmentation",
    "ConfigError": "errors",
    "DataError": "errors",
    "ExtendConfig": "generation.config",
    "FingerprintMismatchError": "errors",
    "FormatError": "errors",
    "HfDrError": "errors",
    "HubError": "errors",
    "ReinforceConfig": "generation.config",
    "ReinforcedDataset": "replay.dataset",
    "ReinforcedLoader": "training.loader",
    "ReinforcedLoss": "training.losses",
    "ReinforcedSampler": "replay.sampling",
    "ReinforcedTask": "training.task",
    "ReinforcedTrainer": "training.trainer",
    "ReinforcedTrainingArguments": "training.arguments",
    "ReplayError": "errors",
    "Teacher": "teacher.ensemble",
    "TeacherError": "errors",
    "build_student": "training.students",
    "calibrate": "generation.calibration",
    "contact_sheet": "generation.contact_sheet",
    "evaluate": "evaluation.evaluate",
    "export": "generation.export",
    "extend": "generation.extend",
    "inspect": "generation.inspection",
    "load_detector": "transfer.detection",
    "load_reinforced": "replay.loading",
    "load_segmenter": "transfer.segmentation",
    "ops": "views.ops",
    "push_to_hub": "hub.push",
    "reinforce": "generation.job",
    "reinforced_kl": "training.losses",
    "reinforced_loss": "training.losses",
    "teach": "cli.teach",
    "verify": "generation.verify",
}

if not TYPE_CHECKING:  # type checkers understand only a list that is written out, and have the imports
    __all__ = list(_MODULES)
    __all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `hf_dr` has no attribute `{name}`")
    value = importlib.import_module(f"hf_dr.{_MODULES[name]}")
    if name != "ops":  # itself a module
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_MODULES, "__version__"])
