"""Dataset Reinforcement for the Hugging Face ecosystem (Faghri et al., ICCV 2023, arXiv:2303.08983).

Improve a dataset once, and every model trained on it gets better at no extra training cost: `reinforce` stores, for V
augmented views of each image, the augmentation's parameters and a teacher's answer; `load_reinforced` replays them, and
`ReinforcedTrainer` learns from them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_dr.version import __version__

if TYPE_CHECKING:
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
    from hf_dr.generation.config import ReinforceConfig
    from hf_dr.generation.job import reinforce
    from hf_dr.generation.verify import verify
    from hf_dr.hub.push import push_to_hub
    from hf_dr.replay.dataset import ReinforcedDataset
    from hf_dr.replay.loading import load_reinforced
    from hf_dr.teacher.ensemble import Teacher
    from hf_dr.training.arguments import ReinforcedTrainingArguments
    from hf_dr.training.trainer import ReinforcedTrainer
    from hf_dr.views import ops
    from hf_dr.views.augmentation import Augmentation

# Public name -> the module that has it; the module, and with it torch, is imported when the name is first used (PEP 562).
_MODULES = {
    "Augmentation": "views.augmentation",
    "ConfigError": "errors",
    "DataError": "errors",
    "FingerprintMismatchError": "errors",
    "FormatError": "errors",
    "HfDrError": "errors",
    "HubError": "errors",
    "ReinforceConfig": "generation.config",
    "ReinforcedDataset": "replay.dataset",
    "ReinforcedTrainer": "training.trainer",
    "ReinforcedTrainingArguments": "training.arguments",
    "ReplayError": "errors",
    "Teacher": "teacher.ensemble",
    "TeacherError": "errors",
    "load_reinforced": "replay.loading",
    "ops": "views.ops",
    "push_to_hub": "hub.push",
    "reinforce": "generation.job",
    "verify": "generation.verify",
}

__all__ = [
    "Augmentation",
    "ConfigError",
    "DataError",
    "FingerprintMismatchError",
    "FormatError",
    "HfDrError",
    "HubError",
    "ReinforceConfig",
    "ReinforcedDataset",
    "ReinforcedTrainer",
    "ReinforcedTrainingArguments",
    "ReplayError",
    "Teacher",
    "TeacherError",
    "__version__",
    "load_reinforced",
    "ops",
    "push_to_hub",
    "reinforce",
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
