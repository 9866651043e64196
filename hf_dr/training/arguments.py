"""The settings of a training on reinforced data."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_dr.errors import ConfigError
from hf_dr.settings import Real
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
    warmup_epochs: float = field(
        default=0.0,
        metadata={
            "help": "Epochs, or a fraction of one, over which the learning rate rises, however long the training is. 0: what "
            "--warmup_steps says, a number of steps or a share of the training.",
            "type": Real(0),
        },
    )
    decay_biases_and_norms: bool = field(
        default=False,
        metadata={
            "help": "Weight decay also of biases and normalisations, the parameters of one dimension. What the architecture "
            "itself excludes, such as position embeddings, never decays."
        },
    )

    def __post_init__(self) -> None:
        if self.warmup_epochs and self.warmup_steps:
            raise ConfigError(
                "only one of `warmup_epochs` and `warmup_steps` must say how long the learning rate rises, got "
                f"{self.warmup_epochs} and {self.warmup_steps}. Set the other to 0."
            )
        ResumableArguments.__post_init__(self)
