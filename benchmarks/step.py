"""What a training step costs on a reinforced batch, beside a step on labels and one with the teacher in the loop.

    python benchmarks/step.py --weights WEIGHTS

A step is forward, loss, backward and optimizer (SGD with momentum) of MobileNetV3-small at 224x224, batch 32, over 1,000
classes, on a batch that is loaded and normalised already. The losses are the trainers' own `compute_loss` at their
defaults:

`reinforced`: `ReinforcedTrainer` on stored answers, over cross-entropy on the labels of the same images. `kd`:
`OnlineDistillationTrainer`, where EfficientNet-Lite0 labels the batch in the step, over the same. `*_ms`: medians.

The steps are timed in turns, one after the other; ratios are medians over the rounds.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import Any

import common
import synthetic
import torch
import torch.nn.functional as F
from transformers import default_data_collator

from hf_dr.replay.loading import load_reinforced
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation

SIDE = 224
TARGETS = {"reinforced": 1.02}


class ErmTrainer(ReinforcedTrainer):
    """Cross-entropy on the labels; all else is as for the others, so that nothing but the loss differs."""

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        return F.cross_entropy(self._logits_of(model, inputs)["logits"], inputs["labels"])


def step(trainer: ReinforcedTrainer, optimizer: torch.optim.Optimizer, inputs: dict[str, Any]) -> None:
    """One step; zeroing the gradients is part of it."""
    assert isinstance(trainer.model, torch.nn.Module)
    optimizer.zero_grad()
    trainer.compute_loss(trainer.model, inputs).backward()
    optimizer.step()


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, help="Steps of each kind. Default: 60, or 5 with --quick.")
    flags = parser.parse_args()
    batch, rounds = (8, flags.rounds or 5) if flags.quick else (32, flags.rounds or 60)
    images, data = common.photos(flags.data, batch)
    teacher, who = common.lite0(flags.weights)
    torch.manual_seed(0)
    # One model for all: other weights would lie elsewhere in memory.
    model = build_student("timm:mobilenetv3_small_100", None, 1000, size=SIDE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    with common.working_folder() as folder:
        base = synthetic.with_numbers(images)
        plus = load_reinforced(synthetic.write(base, Augmentation.named("randaug", SIDE), 2, folder))
        arguments = partial(ReinforcedTrainingArguments, str(folder / "run"), use_cpu=True, report_to="none")
        settings: dict[str, Any] = {"model": model, "args": arguments(), "train_dataset": plus}
        # The teacher labels what is drawn in the training.
        online = {**settings, "args": arguments(reinforced_probability=0)}
        trainers = {
            "erm": ErmTrainer(**settings),
            "reinforced": ReinforcedTrainer(**settings),
            "kd": OnlineDistillationTrainer(teacher=teacher, **online),
        }
        loaded = default_data_collator(plus.__getitems__([(row, 0) for row in range(batch)]))
        inputs = {name: trainer._prepare_inputs(trainer._student_inputs(loaded)) for name, trainer in trainers.items()}
        assert "views" in inputs["kd"], "which the teacher answers"
        works = {name: partial(step, trainer, optimizer, inputs[name]) for name, trainer in trainers.items()}
        times = common.in_turns(
            {name: partial(common.seconds, work) for name, work in works.items()}, rounds, warm_up=3
        )
        print(f"{rounds} steps of each kind done", file=sys.stderr)
    result: dict[str, Any] = {"data": data, "teacher": who, "batch": batch, "rounds": rounds}
    result |= {name: common.median_ratio(times[name], times["erm"]) for name in ("reinforced", "kd")}
    result |= {f"{name}_ms": 1e3 * statistics.median(taken) for name, taken in times.items()}
    print(f"data: {data}, batch {batch}; teacher: {who}\n")
    rows = [[name, result[f"{name}_ms"], result.get(name, 1.0), TARGETS.get(name, "-")] for name in times]
    common.table(rows, ["step", "ms", "ratio", "at most"])
    common.finish(result, flags)


if __name__ == "__main__":
    main()
