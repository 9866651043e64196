"""The settings of a training on reinforced data."""

from __future__ import annotations

import logging
from dataclasses import MISSING, dataclass, fields

from transformers import TrainingArguments

from hf_dr.errors import ConfigError
from hf_dr.settings import Real, documented, flag
from hf_dr.training.checkpoints import plain
from hf_dr.training.reinforced_settings import ReinforcedSettings
from hf_dr.training.resumable_arguments import ResumableArguments, lower_is_better

logger = logging.getLogger(__name__)

NEVER_RISING = ("constant", "reduce_lr_on_plateau", "greedy")
"""Values of `lr_scheduler_type` by which transformers warms up for no step."""


@documented
@dataclass
class ReinforcedTrainingArguments(ReinforcedSettings, ResumableArguments):
    """`TrainingArguments` with the settings of reinforced training; defaults are the paper's (arXiv:2303.08983).

    Raises:
        ConfigError: A value is impossible.
    """

    hub_strategies = ("end", "every_save")

    logging_nan_inf_filter: bool = flag(
        "Leave losses that are not finite out of the logged mean. The device is then waited for at every step.",
        default=False,
    )
    nesterov: bool = flag("Use Nesterov momentum with `--optim sgd`.", default=True)
    warmup_epochs: float = flag(
        "Epochs, or a fraction of one, over which the learning rate rises, however long the training is. 0: what "
        "--warmup_steps says, a number of steps or a share of the training.",
        default=0.0,
        type=Real(0),
    )
    decay_biases_and_norms: bool = flag(
        "Weight decay also of biases and normalisations, the parameters of one dimension. What the architecture "
        "itself excludes, such as position embeddings, never decays.",
        default=False,
    )

    def check(self) -> None:
        """Same as the parent's; and if `warmup_epochs` is given, no other setting may say how long the learning rate rises."""
        super().check()
        if not self.warmup_epochs:
            return
        if self.warmup_steps:
            raise ConfigError(
                "only one of `warmup_epochs` and `warmup_steps` must say how long the learning rate rises, got "
                f"{self.warmup_epochs} and {self.warmup_steps}. Set the other to 0."
            )
        schedule = plain(self.lr_scheduler_type)
        if schedule in NEVER_RISING:
            raise ConfigError(
                f"`warmup_epochs` needs a schedule in which the learning rate rises, got {self.warmup_epochs} and "
                f"`lr_scheduler_type` {schedule}, in which it never does. Take `constant_with_warmup`, or set `warmup_epochs` "
                "to 0."
            )


def as_reinforced(args: TrainingArguments | None) -> ReinforcedTrainingArguments:
    """Returns transformers' own settings with those that reinforced training adds; what nobody chose has our defaults."""
    if args is None:
        return ReinforcedTrainingArguments("trainer_output")
    if isinstance(args, ReinforcedTrainingArguments):
        return args
    if type(args) is not TrainingArguments:
        raise ConfigError(
            f"`args` must be ReinforcedTrainingArguments or TrainingArguments, got {type(args).__name__}. Build one of them."
        )
    values = {f: getattr(args, f.name) for f in fields(args) if f.init}
    chosen = {f.name: value for f, value in values.items() if f.default is MISSING or value != f.default}
    metric = args.metric_for_best_model
    if args.greater_is_better and lower_is_better(metric) and not str(metric).endswith("loss"):
        # Transformers writes True here for all names but losses, and nobody wants the highest of these.
        logger.info("The best checkpoint is that of the lowest %s.", metric)
        del chosen["greater_is_better"]
    return ReinforcedTrainingArguments(**chosen)
