"""The model card of a trained student: README.md, generated from `student.json`, next to what people write into it.

The generated part stands between two markers on lines of their own; text outside of them, and YAML keys that are not
generated, stay as they are:

    <!-- hf_dr: student -->
    <!-- hf_dr: end -->
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from transformers.modelcard import extract_hyperparameters_from_trainer

from hf_dr.errors import FormatError
from hf_dr.files import expanded, write_json, write_whole
from hf_dr.replay.reinforced_data import ReinforcedData
from hf_dr.store.card import CARD_FILE, TAGS, is_noncommercial, read_card
from hf_dr.store.card_texts import CITATION
from hf_dr.store.json_files import read_object, validated
from hf_dr.store.readme import Data, edit_yaml, merge_parts, newline_of, revision_argument, split_readme
from hf_dr.teacher.architectures import ADDED
from hf_dr.teacher.folds import fold_in_config
from hf_dr.text import code, inline, markdown_table
from hf_dr.training.calibrating import Calibration
from hf_dr.training.checkpoints import plain
from hf_dr.training.student_inputs import is_timm

STUDENT_FILE = "student.json"
"""What is known about a student; of this its card is made, in the folder and again when it is published."""

_NOT_TOLD = ("rows", "shuffled_shards", "normalization", "model_args", "teacher_answers")
"""What a checkpoint knows of the training, but nobody reads in a card."""
_SPEED = "train_samples_per_second"
# Measure -> (type, name) in the card's model-index.
_MEASURES = {
    "top1": ("accuracy", "Top-1 accuracy"),
    "top5": ("top_5_accuracy", "Top-5 accuracy"),
    "nll": ("nll", "Negative log-likelihood (nats)"),
    "ece": ("ece", "Expected calibration error"),
}
_KEYS = (
    "language", "license", "library_name", "pipeline_tag", "base_model", "datasets", "tags", "model-index",
)  # fmt: skip
GENERATED_KEYS = tuple(key for key in _KEYS if key != "license")
"""Those of the metadata that nobody writes by hand."""
_RESULTS = re.compile(r"^model-index:.*\n?(?:(?:[ \-]|\r?\n).*\n?)*", re.MULTILINE)


@dataclass(frozen=True)
class Student:
    """What is known about a trained student.

    Attributes:
        model: Architecture and size.
        objective: What it learned from, as the end of "It learned from".
        dataset: The "+" dataset: its `id` where that is known, and `config`, `revision`, `fingerprint`; `reinforced`
            is False for a base dataset without stored views. `left_out` is the fold whose images were left out, if one was.
        origin: What that dataset is, as one sentence.
        start: What it was fine-tuned from, or None.
        timm: Whether timm loads it as well as transformers.
        teachers: Those that it learned from: `id`, `revision`, `license` of each.
        evaluated_on: `id`, and `config`, `split`, `revision`, of the dataset of the metrics; None where it has no name.
        calibration: The `temperature` that the weights have taken in, `ema_temperature` of the averaged ones, and to how many
            images it was fitted, `num_held_out`, `of` which dataset, as `evaluated_on`; None where they have taken none.
        metrics: The last evaluation of just these weights; metrics of the averaged weights begin with `ema_`.
        settings: The settings of the training.
        metadata: More of the card's YAML.
    """

    model: str
    objective: str
    dataset: dict[str, Any]
    origin: str
    timm: bool
    teachers: list[dict[str, Any]]
    start: str | None = None
    evaluated_on: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, name: str | None = None) -> None:
        """Writes `student.json` and the card, which is called by `name` or else after the folder."""
        write_json(folder / STUDENT_FILE, asdict(self))
        path = folder / CARD_FILE
        write_whole(path, update_student_card(read_card(path), self, name or folder.resolve().name))

    @property
    def objective_name(self) -> str:
        """The training's `--objective`: `reinforced`, `erm` or `kd`; a FormatError if the settings do not tell."""
        if self.settings.get("online_teacher"):
            return "kd"
        share = self.settings.get("reinforced_probability")
        if not isinstance(share, (int, float)):
            raise FormatError(
                f"`settings` in {STUDENT_FILE} must hold the number `reinforced_probability`, found {share!r:.80}. Train again."
            )
        return "reinforced" if share > 0 else "erm"

    @classmethod
    def read(cls, folder: Path) -> Student | None:
        """Reads `student.json`; None where there is none, a FormatError if it is malformed."""
        path = folder / STUDENT_FILE
        if not path.is_file():
            return None
        advice = "Train again, or remove it."
        return validated(cls, read_object(path, advice), str(path), advice)


def student_of_training(trainer: Any, train: ReinforcedData, card: Mapping[str, Any]) -> Student:
    """Returns what is known about the student of a `StudentTrainer`; `card` are the arguments of `create_model_card`."""
    args = trainer._args_of_steps
    source = train.origin
    base = source.base
    views = " + ".join(map(str, source.num_views))
    labellers = ", ".join(dict.fromkeys(member["id"] for member in source.teacher_members))
    examples = f"That is {source.num_examples:,} examples" + (f" of {base['id']}" if base.get("id") else "")
    # A local folder is called by its name: the card is published, and paths of this machine are nobody's business.
    start = card.get("finetuned_from")
    local = start is not None and expanded(start).is_dir()
    tags = card.get("tags") or []
    speeds = [entry[_SPEED] for entry in trainer.state.log_history if _SPEED in entry]
    fold = fold_in_config(trainer._model_summary, getattr(trainer.model, "config", None))
    listed = extract_hyperparameters_from_trainer(SimpleNamespace(args=args))
    hyperparameters = {k: " ".join(str(v).split()) for k, v in listed.items()}
    settings = {
        key: value for key, value in trainer.run_settings().items() if value is not None and key not in _NOT_TOLD
    }
    return Student(
        model=f"{trainer._model_summary}, over {train.num_classes} classes",
        start=expanded(start).resolve().name if start and local else start,
        objective=trainer._objective,
        dataset={
            "id": card.get("dataset"),
            "revision": card.get("dataset_revision"),
            "config": " + ".join(source.configs) or base.get("config"),
            "fingerprint": source.fingerprint,
            "images": base.get("content_hash"),
            **({} if labellers else {"reinforced": False}),
            **({} if fold is None else {"left_out": {"number": fold.number, "of": fold.of}}),
        },
        origin=f"{examples}, whose views, {views} of each, were labelled by {labellers}."
        if labellers
        else f"{examples}.",
        timm=is_timm(trainer.model),
        teachers=[
            {key: member.get(key) for key in ("id", "revision", "license")} for member in trainer._teacher_members
        ],
        evaluated_on=card.get("evaluated_on"),
        calibration=_described(trainer._calibration, card.get("calibrated_on")),
        metrics=dict(trainer._measured),
        settings={
            **settings,
            **hyperparameters,
            **optimization(args),
            "warmup_epochs": args.warmup_epochs,
            "decay_biases_and_norms": args.decay_biases_and_norms,
            "ema_decay": args.ema_decay or 0.0,  # not None: that would be a setting that is not known
            **({_SPEED: speeds[-1], "processes": args.world_size} if speeds else {}),
        },
        metadata={
            "base_model": None if local else start,
            "datasets": card.get("dataset_tags"),
            "language": card.get("language"),
            "license": card.get("license"),
            "tags": [tags] if isinstance(tags, str) else tags,
        },
    )


def with_labels(views: str, answers: str, label_weight: float) -> str:
    """Returns what a student of a teacher's answers learns from, as its card says it."""
    labels = f" and, at weight {label_weight:.4g}, the labels"
    return f"{views}, {answers}{labels}" if label_weight else f"{views} and {answers}"


def optimization(args: Any) -> dict[str, Any]:
    """Returns what decides the steps of a training of this package's and is not among what Trainer lists, for JSON."""
    momentum = {"momentum": args.momentum, "nesterov": args.nesterov} if plain(args.optim) == "sgd" else {}
    return {
        "weight_decay": args.weight_decay,
        **momentum,
        "max_grad_norm": args.max_grad_norm,
        "lr_scheduler_kwargs": plain(args.lr_scheduler_kwargs or {}),
        "mixed_precision": args.mixed_precision,
    }


def _described(calibration: Calibration | None, images: Any) -> dict[str, Any] | None:
    if calibration is None:
        return None
    temperatures = {"temperature": calibration.temperature, "ema_temperature": calibration.ema_temperature}
    known = {key: value for key, value in temperatures.items() if value is not None}
    return {**known, "num_held_out": len(calibration.labels), "of": images}


def update_student_card(
    existing: str | None, student: Student, name: str, *, revision: str | None = None, ema: bool = False
) -> str:
    """Returns the whole text of a student's card; what people wrote into the existing one stays.

    Args:
        existing: The card as it is; None where there is none.
        student: What is known.
        name: Hub id, or the folder's name, as it stands in the code to copy.
        revision: The branch at the Hub, as it stands there too; None for `main`.
        ema: Whether the weights are the averaged ones; then the metrics in the metadata are theirs.

    Raises:
        FormatError: The existing card's YAML or markers are damaged.
    """
    opening, text, closing, body = split_readme(existing or "")
    newline = newline_of(existing or "")
    new = _metadata(student, name, ema)

    def change(data: Data) -> Data:
        there = data.get("tags") or []
        return {**new, "tags": list(dict.fromkeys([*([there] if isinstance(there, str) else there), *new["tags"]]))}

    text = edit_yaml(_RESULTS.sub("", text), change, _KEYS, newline)  # results are of these weights or of none
    return opening + text + closing + merge_parts(body, {"student": _body(student, name, revision, ema)}, str, newline)


def _metadata(student: Student, name: str, ema: bool) -> dict[str, Any]:
    on = student.evaluated_on
    prefix = "ema_" if ema else ""
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=on["id"],
            dataset_name=on["id"],
            dataset_config=on.get("config"),
            dataset_split=on.get("split"),
            dataset_revision=on.get("revision"),
            metric_type=kind,
            metric_name=title,
            metric_value=student.metrics[prefix + measure],
        )
        for measure, (kind, title) in _MEASURES.items()
        if on is not None and prefix + measure in student.metrics
    ]
    plus = TAGS if student.dataset.get("reinforced", True) else ()
    tags = [*student.metadata.get("tags", ()), *plus, *(["timm"] if student.timm else [])]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-classification",
        model_name=name.rpartition("/")[2],
        eval_results=results or None,
        **student.metadata | {"tags": list(dict.fromkeys(tags))},
    ).to_dict()
    card.pop("model_name", None)  # stands in the index
    return card


def _body(student: Student, name: str, revision: str | None, ema: bool) -> str:
    start = f", fine-tuned from {code(student.start)}" if student.start else ""
    plus = student.dataset.get("reinforced", True)
    of = 'the "+" dataset' if plus else "the dataset"
    learned = f"It learned from {inline(student.objective)}, of {of} {_dataset(student.dataset)}"
    paper = " ([Dataset Reinforcement](https://arxiv.org/abs/2303.08983))" if plus else ""
    parts = [
        f"# {inline(name.rpartition('/')[2])}",
        f"{inline(student.model)}{start}. {learned}{paper}. {inline(student.origin)}",
    ]
    if ema:
        parts.append(
            "The weights are an exponential moving average of those during the training; `ema_*` measures them."
        )
    limited = [
        f"{inline(t['id'])} ({inline(t['license'])})" for t in student.teachers if is_noncommercial(t["license"])
    ]
    if limited:
        parts.append(
            f"> **Not for commercial use without further thought.** The weights of its teacher {', '.join(limited)} are "
            "licensed for non-commercial use only. Whether that licence reaches a student that learned from their answers "
            "is for you to settle before any commercial use."
        )
    if student.calibration:
        parts.append(_calibrated(student.calibration, ema))
    if student.metrics:
        where = [f"Measured on {_dataset(student.evaluated_on)}."] if student.evaluated_on else []
        parts += ["## Results", *where, _table("measure", student.metrics)]
    first = "```python\n"
    if student.model.partition(" ")[0] in ADDED:
        first += "import hf_dr.teacher.architectures  # timm itself has no such architecture\n"
    parts += ["## Use", first + _TRANSFORMERS.replace("NAME", json.dumps(name) + revision_argument(revision))]
    # timm takes an @ for the beginning of a revision, and allows one.
    if student.timm and "@" not in (revision or ""):
        place = f"hf-hub:{name}" if "/" in name else f"local-dir:{name}"
        place += f"@{revision}" if revision else ""
        parts += ["or, without transformers,", first + _TIMM.replace("NAME", json.dumps(place))]
    parts += ["## Training", _table("setting", student.settings)]
    if student.teachers:
        rows = [(inline(t["id"]) + _at(t.get("revision")), inline(t["license"] or "unknown")) for t in student.teachers]
        parts.append(markdown_table(("teacher", "licence"), rows))
    parts += [CITATION] if plus else []
    return "\n\n".join(parts)


def _calibrated(calibration: dict[str, Any], ema: bool) -> str:
    divisor = calibration["ema_temperature" if ema else "temperature"]
    of = f" of {_dataset(calibration['of'])}" if calibration["of"] else ""
    return (
        f"It is calibrated: its last layer divides the logits by {divisor:.4g}, the temperature that fits "
        f"{calibration['num_held_out']:,} images{of} best."
    )


def _dataset(dataset: dict[str, Any]) -> str:
    parts = [code(dataset["id"]) + _at(dataset.get("revision"))] if dataset["id"] else []
    parts += [f"configuration {code(dataset['config'])}"] if dataset.get("config") else []
    parts += [f"split {code(dataset['split'])}"] if dataset.get("split") else []
    parts += [fold_left_out(dataset)] if dataset.get("left_out") else []
    return ", ".join(parts)


def fold_left_out(dataset: Mapping[str, Any]) -> str:
    """Tells which fold of a dataset was left out, empty where none was; a KeyError or TypeError if it is malformed."""
    fold = dataset.get("left_out")
    return "" if fold is None else f"without fold {int(fold['number'])} of {int(fold['of'])}"


def _at(revision: str | None) -> str:
    return f" at {code(revision)}" if revision else ""


def _table(title: str, rows: dict[str, Any]) -> str:
    shown = (
        (inline(name), f"{value:.4g}" if isinstance(value, float) else inline(value)) for name, value in rows.items()
    )
    return markdown_table((title, "value"), shown)


_TRANSFORMERS = """\
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(NAME).eval()
processor = AutoImageProcessor.from_pretrained(NAME)
image = Image.open("image.jpg").convert("RGB")
logits = model(**processor(image, return_tensors="pt")).logits
print(model.config.id2label[logits.argmax().item()])
```"""

_TIMM = """\
import timm
from PIL import Image

model = timm.create_model(NAME, pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
image = Image.open("image.jpg").convert("RGB")
logits = model(transform(image)[None])
print(model.pretrained_cfg["label_names"][logits.argmax().item()])
```"""
