"""`hf_dr.evaluate`: in Python, what `hf-dr evaluate` measures."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import datasets

from hf_dr.errors import ConfigError, DataError, did_you_mean
from hf_dr.evaluation.config import HOW, REPORT_FILE, EvaluateConfig, named_model
from hf_dr.evaluation.gathering import read_evaluation
from hf_dr.evaluation.images import open_set
from hf_dr.evaluation.report import Report
from hf_dr.evaluation.run import checked_sets, hash_of_set, run_evaluation
from hf_dr.evaluation.sets import NAME_PATTERN, PRESETS, EvaluationSet, parse_set
from hf_dr.evaluation.unfinished import Unfinished
from hf_dr.files import check_writable, expanded
from hf_dr.processes import refuse_several
from hf_dr.settings import are_alike, check_kind
from hf_dr.store.base_dataset import checked_origin
from hf_dr.teacher.ensemble import Teacher, is_teacher
from hf_dr.teacher.members import Member


class EvaluateSettings(TypedDict, total=False):
    """Those of `EvaluateConfig` that are settings of `evaluate`."""

    files_from: list[str]
    corrupt: list[str]
    corruptions: list[str]
    severities: list[int]
    max_examples: int | None
    batch_size: int
    num_workers: int
    device: str | None
    precision: str
    seed: int
    size: int | None
    crop: float | None
    mean: list[float]
    std: list[float]


Name = str | os.PathLike[str]
Classifier = Name | Teacher
_LOAD = "Load it with `datasets.load_dataset(NAME, split=SPLIT)`."


def evaluate(
    models: Classifier | Sequence[Classifier] | Mapping[str, Classifier],
    sets: datasets.Dataset | str | Sequence[str] | Mapping[str, datasets.Dataset | str],
    *,
    output_dir: Name | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    **settings: Unpack[EvaluateSettings],
) -> Report:
    """Measures classifiers on labelled images: accuracy, likelihood, calibration and, with `corrupt`, robustness.

    Each model takes the images with its own preprocessing (resize, centre crop, mean and standard deviation), on the
    accelerator if there is one.

    Examples:
        ```python
        import hf_dr

        report = hf_dr.evaluate({"plus": "out", "erm": "out-erm"}, "test=uoft-cs/cifar100:test,label=fine_label")
        print(report)
        ```

    Args:
        models: A transformers folder (as `save_model` writes it), a Hub id, or `timm:ARCHITECTURE@FILE.safetensors`; or, for
            a model in memory, what `Teacher.from_model` makes of it; several of them; or a mapping from the names that the
            table shows.
        sets: A loaded dataset of one split, which the table calls `test`; a text as `hf-dr evaluate --sets` takes it
            (`test=uoft-cs/cifar100:test,label=fine_label`, or a preset such as `imagenet-r`), or several; or a mapping from
            names to either, the texts without `NAME=`.
        output_dir: Folder for evaluation.md, evaluation.json and reliability.png; an evaluation with corruptions that was
            stopped goes on from there. Default: nothing is written.
        image_column: Column of the images of loaded datasets. Default: the only Image column.
        label_column: Column of their labels. Default: `label`, else the only ClassLabel column.
        **settings: Those of `hf-dr evaluate`: `corrupt`, `corruptions`, `severities`, `max_examples`, `batch_size`,
            `num_workers`, `device`, `precision`, `seed`, `size`, `crop`, `mean`, `std`, `files_from`.

    Returns:
        A report. `print` shows its tables, as a notebook does by itself; `results` has the metrics of each model on each set,
        shares from 0 to 1 but `nll` (nats) and `brier` (0 to 2); `to_dict()` gives all of it in JSON types, and `save(folder)`
        writes what `output_dir` would have.

    Raises:
        ConfigError: A setting is unknown or impossible, a name stands twice, a model's classes are not the set's, or
            `output_dir` holds results of other models or sets.
        DataError: A set cannot be loaded, or lacks images or labels.
        TeacherError: A model cannot be loaded.
    """
    known = EvaluateSettings.__annotations__.keys()
    for name in settings.keys() - known:
        advice = did_you_mean(name, {*known, "output_dir", "image_column", "label_column"})
        raise ConfigError(f"`evaluate` has no setting `{name}`.{advice}")
    folder = "" if output_dir is None else output_dir
    check_kind("output_dir", folder, (str, os.PathLike), "a folder", "Name one.")
    named = _named(models)
    config = EvaluateConfig([text for text, _ in named], [], os.fspath(folder), **settings)
    chosen = _sets(sets, config, image_column, label_column)
    for name, given in (("models", config.models), ("sets", chosen)):
        if not given:
            raise ConfigError(f"`{name}` must be given, got none. Name one.")
    columns = [name for name, given in (("image", image_column), ("label", label_column)) if given is not None]
    if columns and all(spec.loaded is None for spec in chosen):
        raise ConfigError(
            f"`{columns[0]}_column` must be of a loaded dataset, got texts only. Write ,{columns[0]}=COLUMN into the text."
        )
    return evaluated(config, chosen, {named_model(text)[0]: member for text, member in named if member is not None})


def evaluated(
    config: EvaluateConfig, sets: Sequence[EvaluationSet] | None = None, loaded: Mapping[str, Member] | None = None
) -> Report:
    """Evaluates as `run_evaluation` does, and writes the report into `output_dir`, if there is one."""
    refuse_several("evaluate")
    if not config.output_dir:
        return run_evaluation(config, sets=sets, loaded=loaded)
    folder = expanded(config.output_dir)
    check_writable(folder, "output_dir")
    whole = replace(config, max_examples=None)
    sets = [
        spec if spec.loaded is None else replace(spec, digest=hash_of_set(open_set(spec, whole)))
        for spec in checked_sets(config, sets)
    ]
    _check_kept(folder, config, sets)
    unfinished = Unfinished(folder)
    report = run_evaluation(config, unfinished, sets=sets, loaded=loaded)
    report.save(folder)
    unfinished.done()
    return report


def _check_kept(folder: Path, config: EvaluateConfig, sets: Sequence[EvaluationSet]) -> None:
    """Refuses to write over results that the evaluation does not measure again; a ConfigError."""
    file = folder / REPORT_FILE
    if not file.exists():
        return
    advice = "Choose another folder, or remove the file."
    try:
        there = read_evaluation(file)
    except DataError as error:
        raise ConfigError(f"`output_dir` must not hold a file of that name, but {error} {advice}") from error
    places = dict(map(named_model, config.models))
    specs = {spec.name: spec.to_dict() for spec in sets}
    corrupted = {*config.corrupt, *(spec.name for spec in sets if spec.published_corrupted)}
    for result in there.results:
        model, name = result["model"], result["set"]
        place, spec = there.places.get(model), there.sets[name]
        known = specs.get(name, {})
        # Which column of labels it will be, where none is named, is not known before the set is opened.
        same_set = are_alike(known, spec, but=["label"] if known.get("label") is None else [])
        again = places.get(model) == place and same_set and (not result["corrupted"] or name in corrupted)
        lost = _lost(result, there.how, config) if again else ", corrupted" if result["corrupted"] else ""
        if lost or not again:
            what = f"`{model}` ({place}) on `{name}` ({spec.get('dataset')}){lost}"
            raise ConfigError(
                f"`output_dir` must not hold other results, which would be lost, but {file} has those of {what}. {advice}"
            )


def _lost(result: Mapping[str, Any], how: Mapping[str, Any], config: EvaluateConfig) -> str:
    """Says what of a result another evaluation of the same model and set would not measure; empty if it measures all."""
    for name in (*HOW, *(["seed"] if result["corrupted"] else [])):
        value = getattr(config, name)
        more = name == "max_examples" and (value is None or result["examples"] <= value)
        if not more and not are_alike(how[name], value):
            return f", with {name} {how[name]}"
    measured = {(kind, str(severity)) for kind, severity in config.corruption_keys()}
    for kind, severities in result.get("by_corruption", {}).items():
        for severity in severities:
            if (kind, severity) not in measured:
                return f", under {kind} at severity {severity}"
    return ""


def _named(models: Any) -> list[tuple[str, Member | None]]:
    """Returns models as the command names them, with those that are loaded already."""
    if isinstance(models, Mapping):
        return [(f"{_checked(name)}={_place(model)}", _loaded(model)) for name, model in models.items()]
    return [(_place(model), _loaded(model)) for model in _listed(models)]


def _loaded(model: Any) -> Member | None:
    """Returns the classifier of a teacher; None of a name."""
    if not is_teacher(model):
        return None
    told = model.provenance()
    if len(model.members) > 1 or told["members"][0]["classes"] is not None or "temperature" in told:
        raise ConfigError(
            f"`models` must be single classifiers as they are, got {model}, which has several members, a temperature or chosen "
            "classes. Give `Teacher([member])` for each of its `members`; `hf_dr.calibrate` measures a teacher as it is."
        )
    (member,) = model.members
    # A copy: the teacher may be on another device, and in another memory format, on which its answers depend.
    return replace(member, model=copy.deepcopy(member.model))


def _place(model: Any) -> str:
    if is_teacher(model):
        return model.members[0].id
    advice = "`Teacher.from_model` makes a Teacher of a model in memory."
    check_kind("models", model, (str, os.PathLike), "names of checkpoints, or Teachers", advice)
    text = os.fspath(model)
    # What stands before an equals sign is a name in a text only.
    return text if isinstance(model, str) or "=" not in text else os.path.join(os.curdir, text)  # noqa: PTH118


def _listed(given: Any) -> list[Any]:
    """Returns what is given as a list: also one thing alone, whatever it is."""
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _checked(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"a name in the table must be of letters, digits, `.`, `_` or `-`, got {name!r:.80}. Rename it."
        )
    return name


def _sets(sets: Any, config: EvaluateConfig, image_column: str | None, label_column: str | None) -> list[EvaluationSet]:
    """Returns what is evaluated on: texts are read, and of loaded datasets the columns are chosen."""
    if isinstance(sets, datasets.Dataset):
        sets = {"test": sets}
    if not isinstance(sets, Mapping) or isinstance(sets, datasets.DatasetDict):
        for text in _listed(sets):
            check_kind("sets", text, str, "texts, or a mapping from names to loaded datasets of one split", _LOAD)
        return [parse_set(text) for text in _listed(sets)]
    found = []
    for name, given in sets.items():
        if isinstance(given, str):
            preset = PRESETS.get(given)
            named = parse_set(f"{_checked(name)}={given}") if preset is None else replace(preset, name=_checked(name))
            found.append(named)
            continue
        check_kind("sets", given, datasets.Dataset, "datasets of one split, or texts", _LOAD)
        origin = checked_origin(given, config.files_from)
        found.append(
            EvaluationSet(
                name=_checked(name),
                dataset=origin["id"] or "a loaded dataset",
                split=str(given.split or ""),
                config=origin["config"],
                image=image_column,
                label=label_column,
                revision=origin["revision"],
                loaded=given,
            )
        )
    return found
