"""The settings of a training on reinforced data."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_dr.training.reinforced_settings import ReinforcedSettings
from hf_dr.training.resumable import ResumableArguments


@dataclass
class ReinforcedTrainingArguments(ReinforcedSettings, ResumableArguments):
    """`TrainingArguments` with the settings of reinforced training; defaults are the paper's (arXiv:2303.08983).

    Raises:
        ConfigError: A value is impossible.
    """

    hub_strategies = ("end", "every_save")

    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave losses that are not finite out of the logged mean. The device is then waited for at every step."
        },
    )
    nesterov: bool = field(default=True, metadata={"help": "Use Nesterov momentum with `--optim sgd`."})

    def __post_init__(self) -> None:
        ReinforcedSettings.__post_init__(self)
        ResumableArguments.__post_init__(self)
