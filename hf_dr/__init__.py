"""Dataset Reinforcement for the Hugging Face ecosystem (Faghri et al., ICCV 2023, arXiv:2303.08983).

Improve a dataset once, and every model trained on it gets better at no extra training cost: `reinforce` stores, for V
augmented views of each image, the augmentation's parameters and a teacher's answer; `load_reinforced` replays them, and
`ReinforcedTrainer` learns from them.
"""

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
from hf_dr.version import __version__
from hf_dr.views import ops
from hf_dr.views.augmentation import Augmentation

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
