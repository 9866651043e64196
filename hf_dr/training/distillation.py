"""Online distillation, the cost that reinforcement saves: the teacher is in memory and answers at every step."""

from __future__ import annotations

import hashlib
from typing import Any

import torch.nn.functional as F
from torch import nn

from hf_dr.errors import ConfigError
from hf_dr.replay.augmented import AugmentedDataset
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.settings import check_kind
from hf_dr.store.provenance import hash_of
from hf_dr.teacher.ensemble import Teacher
from hf_dr.training.losses import label_cross_entropy
from hf_dr.training.student_card import with_labels
from hf_dr.training.trainer import ReinforcedTrainer


class OnlineDistillationTrainer(ReinforcedTrainer):
    """Minimises KL to a teacher that labels newly drawn views as they come (Hinton et al., arXiv:1503.02531).

    Give it `reinforced_probability=0`, so that every view is new. Settings are those of `ReinforcedTrainer`; `temperature` and
    `label_weight` apply, `tail` does not: the answer is whole. As next to stored answers, labels are not smoothed. Where
    batches are mixed (`mixup_alpha`, `cutmix_alpha`) the teacher sees the mix and answers for it (Beyer et al.,
    arXiv:2106.05237); `label_weight` is then that of the mixed labels.

    All other arguments are those of `ReinforcedTrainer`.

    Args:
        teacher: Answers over the dataset's classes, on the device of training.

    Raises:
        ConfigError: Stored views would be shown, or the teacher is one for each fold; or see `ReinforcedTrainer`.
        TeacherError: The teacher has other classes than the dataset.
    """

    def __init__(self, *args: Any, teacher: Teacher, **settings: Any) -> None:
        check_kind("teacher", teacher, Teacher, "a Teacher", "`Teacher.from_pretrained` makes one of a name.")
        if teacher.num_folds > 1:
            raise ConfigError(
                "a teacher in memory must be one that answers for all images, got one for each fold. Use them with `hf-dr "
                "reinforce`, which knows which of them has not seen an image."
            )
        train = settings.get("train_dataset")
        if isinstance(train, ReinforcedData) and train.class_names is not None:
            teacher.check_classes(train.class_names)
        elif isinstance(train, ReinforcedData) and train.num_classes != teacher.num_classes:
            raise ConfigError(
                f"the teacher must answer over the dataset's {train.num_classes} classes, got {teacher.num_classes}. "
                "Name another teacher, or pass `classes`."
            )
        super().__init__(*args, **settings)
        self.teacher = teacher
        if self.args.reinforced_probability and not isinstance(train, AugmentedDataset):
            raise ConfigError(
                f"`reinforced_probability` must be 0 with a teacher in memory, which labels newly drawn views, got "
                f"{self.args.reinforced_probability}. Set it to 0."
            )

    @property
    def _objective(self) -> str:
        return with_labels("newly drawn views", "the answers of a teacher in memory", self.args.label_weight)

    @property
    def _teacher_members(self) -> list[dict[str, Any]]:
        return self.teacher.provenance()["members"]

    @property
    def _online_teacher(self) -> str:
        names = []
        for member in self._teacher_members:
            classes = member["classes"]
            subset = "" if classes is None else f", classes {hashlib.sha256(str(classes).encode()).hexdigest()[:12]}"
            names.append(f"{member['id']} ({member['weights_hash'][:12]}{subset})")
        return ", ".join(names)

    def run_settings(self) -> dict[str, Any] | None:
        """Same as `ReinforcedTrainer`'s, and what determines the teacher's answers."""
        settings = super().run_settings()
        if settings is None:
            return None
        members = [{"preprocessing": m["preprocessing"], "weights": m["weights_hash"]} for m in self._teacher_members]
        answers = {"members": members, "precision": self.teacher.precision, "temperature": self.teacher.temperature}
        return {**settings, "teacher_answers": hash_of(answers)}

    def _student_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._student_inputs(inputs)
        if "teacher_ids" in prepared:  # a batch of reinforced data, whose views the teacher is shown as they are
            prepared = {**prepared, "views": inputs["pixel_values"]}
        return prepared

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, *args: Any, **settings: Any
    ) -> Any:
        """Returns KL(teacher || student) times the temperature's square, and with `label_weight` the labels' cross-entropy."""
        if "views" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, *args, **settings)
        outputs = self._logits_of(model, inputs)
        temperature = self.args.temperature
        student_BC = (outputs["logits"].float() / temperature).log_softmax(-1)
        answers_BC = self.teacher(inputs["views"]).to(student_BC.device)  # the teacher may be on another
        target_BC = (answers_BC / temperature).log_softmax(-1)
        loss = F.kl_div(student_BC, target_BC, reduction="batchmean", log_target=True) * temperature**2
        weight = self.args.label_weight
        if weight:
            label_B = label_cross_entropy(outputs["logits"], inputs)
            loss = (1 - weight) * loss + weight * label_B.mean()
        return (loss, outputs) if return_outputs else loss
