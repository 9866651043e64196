"""What can be known of a teacher before any training: the signs that the docs compare with what students gain.

    python benchmarks/signs.py --data DATA --weights WEIGHTS --work WORK --json signs.json
    python benchmarks/signs.py --sets fashion_mnist                  # without --data and --weights

Makes teachers and "+" datasets as benchmarks/accuracy.py does, and trains no student. Keys: `<set>_` with what `inspect` says
of the "+" dataset, `agreement` (share of views whose most probable class is the label), `ece`, `nll` (nats), `entropy` (nats)
and `classes`; `held_out`, the share of the test images of which the teacher's most probable class is the label, of one view of
each, drawn as those of the "+" dataset; and `held_out_top1` and `held_out_mce`, the accuracy on the test images themselves and
the error on them under the corruptions of accuracy.py, measured as those of students are, means over the teachers of an
ensemble. What is in the --json file stays there: a stopped command goes on, set after set.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import accuracy
import common

from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.run import run_evaluation
from hf_dr.generation.calibration import held_out_answers
from hf_dr.generation.inspection import inspect
from hf_dr.teacher.ensemble import Teacher


def held_out(name: str, case: accuracy.Case, flags: Any) -> float:
    """Returns how often a set's teacher is right on views of the test images."""
    teacher = Teacher.from_pretrained(accuracy.teacher_of(name, case, flags, folds=False))
    images = common.parquet(accuracy.base_of(name, flags), "test")
    answers, labels = held_out_answers(images, teacher, accuracy.views_of(case))
    return float((answers.argmax(1) == labels).mean())


def corrupted(name: str, case: accuracy.Case, flags: Any) -> dict[str, float]:
    """Returns what a set's teachers reach on the test images and on corrupted ones, as shares."""
    teachers = accuracy.teacher_of(name, case, flags, folds=False)
    config = EvaluateConfig(
        models=[f"{number}={teacher}" for number, teacher in enumerate(teachers)],
        output_dir=str(flags.work),
        **accuracy.evaluated(name, case, flags),
    )
    results = run_evaluation(config).results
    clean = [result.metrics["top1"] for result in results if result.mce is None]
    errors = [result.mce for result in results if result.mce is not None]
    return {"held_out_top1": mean(clean), "held_out_mce": mean(errors)}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--work", type=Path, help="Folder of the datasets; kept. Default: a temporary one.")
    parser.add_argument("--sets", nargs="+", choices=list(accuracy.CASES), default=["fashion_mnist"])
    parser.add_argument("--teachers", choices=accuracy.TEACHERS, help="As for accuracy.py.")
    parser.add_argument("--small", action="store_true", help="As for accuracy.py.")
    parser.set_defaults(**accuracy.USUAL)  # as the students in accuracy.json had it
    flags = parser.parse_args()
    result = common.earlier(flags)
    with common.working_folder(flags.work) as flags.work:
        for name in flags.sets:
            case = accuracy.case_of(name, flags)
            prefix = f"{name}{accuracy.suffix(flags)}"
            if f"{prefix}_held_out" not in result:
                result[f"{prefix}_held_out"] = held_out(name, case, flags)
                common.finish(result, flags)
            if f"{prefix}_held_out_mce" not in result:
                result |= {f"{prefix}_{key}": value for key, value in corrupted(name, case, flags).items()}
                common.finish(result, flags)
            if f"{prefix}_agreement" in result:
                continue
            plus, _ = accuracy.reinforced(name, case, flags)
            found = inspect(plus)
            assert found.labels is not None
            result[f"{prefix}_classes"] = found.provenance.num_classes
            result[f"{prefix}_entropy"] = found.entropy
            for key in ("agreement", "ece", "nll"):
                result[f"{prefix}_{key}"] = getattr(found.labels, key)
            common.finish(result, flags)  # after each: a stopped run keeps what it has


if __name__ == "__main__":
    main()
