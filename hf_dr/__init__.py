"""Dataset Reinforcement for the Hugging Face ecosystem (Faghri et al., ICCV 2023, arXiv:2303.08983).

Improve a dataset once, and train many models on it at no extra cost in each training: `reinforce` stores, for V
augmented views of each image, the augmentation's parameters and a teacher's answer; `load_reinforced` replays them, and
`ReinforcedTrainer` learns from them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_dr.version import __version__

if TYPE_CHECKING:
    from hf_dr.cli.teach import teach
    from hf_dr.errors import (
        ConfigError,
        DataError,
        FingerprintMismatchError,
        FormatError,
        HfDrError,
        HubError,
        ReplayError,
        TeacherError,
    )
    from hf_dr.evaluation.evaluate import evaluate
    from hf_dr.generation.calibration import calibrate
    from hf_dr.generation.config import ExtendConfig, ReinforceConfig
    from hf_dr.generation.contact_sheet import contact_sheet
    from hf_dr.generation.export import export
    from hf_dr.generation.extend import extend
    from hf_dr.generation.inspection import inspect
    from hf_dr.generation.job import reinforce
    from hf_dr.generation.verify import verify
    from hf_dr.hub.push import push_to_hub
    from hf_dr.replay.dataset import ReinforcedDataset
    from hf_dr.replay.loading import load_reinforced
    from hf_dr.replay.sampling import ReinforcedSampler
    from hf_dr.teacher.ensemble import Teacher
    from hf_dr.training.arguments import ReinforcedTrainingArguments
    from hf_dr.training.loader import ReinforcedLoader
    from hf_dr.training.losses import ReinforcedLoss, reinforced_kl, reinforced_loss
    from hf_dr.training.students import build_student
    from hf_dr.training.task import ReinforcedTask
    from hf_dr.training.trainer import ReinforcedTrainer
    from hf_dr.transfer.detection import load_detector
    from hf_dr.transfer.segmentation import load_segmenter
    from hf_dr.views import ops
    from hf_dr.views.augmentation import Augmentation

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

__all__ = [
    "Augmentation",
    "ConfigError",
    "DataError",
    "ExtendConfig",
    "FingerprintMismatchError",
    "FormatError",
    "HfDrError",
    "HubError",
    "ReinforceConfig",
    "ReinforcedDataset",
    "ReinforcedLoader",
    "ReinforcedLoss",
    "ReinforcedSampler",
    "ReinforcedTask",
    "ReinforcedTrainer",
    "ReinforcedTrainingArguments",
    "ReplayError",
    "Teacher",
    "TeacherError",
    "__version__",
    "build_student",
    "calibrate",
    "contact_sheet",
    "evaluate",
    "export",
    "extend",
    "inspect",
    "load_detector",
    "load_reinforced",
    "load_segmenter",
    "ops",
    "push_to_hub",
    "reinforce",
    "reinforced_kl",
    "reinforced_loss",
    "teach",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module `hf_dr` has no attribute `{name}`")
    value = importlib.import_module(f"hf_dr.{_MODULES[name]}")
    if name != "ops":  # itself a module
        value = getattr(value, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
