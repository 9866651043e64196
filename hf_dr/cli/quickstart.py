"""The command that does everything once: from a folder of photos to a reinforced student and a report."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_dr.cli.config import parse
from hf_dr.cli.flag_parser import one_dataset, split_words
from hf_dr.cli.launch import launch, start_logging
from hf_dr.cli.teach import TEACHER_FILE, TeachArguments, hashes_of, temperature_flag
from hf_dr.cli.yaml_files import own_recipes, read_yaml
from hf_dr.errors import ConfigError, FormatError
from hf_dr.evaluation.config import as_arguments, check_each_once
from hf_dr.files import absolute, check_apart, check_writable, expanded, placeless, write_json, write_whole
from hf_dr.settings import FILES_FROM_HELP, Real, Whole, check_settings, flag, unlike_names

logger = logging.getLogger(__name__)

_DONE_FILE = "quickstart.json"
_AGAIN = f"Delete {_DONE_FILE} and run the same command again: all steps are then done again."
_IMAGES = "images and labels"
# Of a teacher that was fitted to the same few photos; measured by benchmarks/small_sets.py.
_LABEL_WEIGHT = 0.5
# A few of the suite, so that a small machine has them in a minute.
_CORRUPTIONS = ("gaussian_noise", "defocus_blur", "contrast", "jpeg_compression")


@dataclass
class QuickstartArguments:
    """Which models, and how much of everything."""

    output_dir: str | None = flag("Folder of all results. Default: the dataset's name and -quickstart.", default=None)
    teacher: str = flag(
        "Pretrained classifier that is fine-tuned to be the teacher, as --model of teach.", default=TeachArguments.model
    )
    student: str = flag(
        "Model that is trained twice, on the labels and on the teacher's answers: a Hub id, a folder, or "
        "timm:ARCHITECTURE@FILE.safetensors to fine-tune; timm:ARCHITECTURE for fresh weights.",
        default="timm/mobilenetv3_large_100.ra_in1k",
    )
    dataset_config: str | None = flag("Configuration of the dataset, where it has several.", default=None)
    files_from: list[str] = flag(FILES_FROM_HELP, default=[], metavar="DIR")
    size: int = flag("Side in pixels of the views.", default=224, type=Whole(1))
    num_views: int | None = flag(
        "Stored views of each image. Default: one for each epoch. With fewer a student sees less than one that "
        "learns from the labels, which gets a new view in each.",
        default=None,
        type=Whole(1),
    )
    num_train_epochs: int = flag("Epochs of each training.", default=20, type=Whole(1))
    teacher_learning_rate: float | None = flag(
        "Peak learning rate of the teacher. Default: that of teach.yaml, 5e-4, which suits convolutional networks; a vision "
        "transformer needs about a tenth of it.",
        default=None,
        type=Real(0, above=True),
    )
    learning_rate: float | None = flag(
        "Peak learning rate of the students. Default: as for the teacher, 5e-4.", default=None, type=Real(0, above=True)
    )
    dataloader_drop_last: bool = flag(
        "Leave out the last batch of each epoch where it is not full. For models that cannot learn from a batch of one image.",
        default=False,
    )
    seeds: list[int] = flag(
        "Seeds of the students. One seed shows large gains only; take three or more to be sure.",
        default=[0],
        type=Whole(0),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        check_each_once("seeds", self.seeds)  # the comparison would refuse them when the teacher is trained already


def quickstart_command(argv: Sequence[str], prog: str) -> int:
    """Makes a teacher, a "+" dataset, a student and a report from a folder of photos."""
    words, flags = split_words(argv)
    (chosen,) = parse(
        [QuickstartArguments],
        flags,
        prog=f"{prog} DATASET",
        description="From a folder of photos, with a folder for each class (or any dataset with labels), to a student that "
        "learns from a teacher's stored answers, and a report that compares it with one that learns from the labels. Each "
        "step is a command, which is printed and can be repeated alone. The same command again goes on after the last "
        "finished step.",
        examples="hf-dr quickstart photos/\n"
        "hf-dr quickstart photos/ --teacher timm:resnet50@r50.safetensors --student timm:resnet18@r18.safetensors",
    )
    # The steps are compared with those that were done before, perhaps from another folder.
    dataset = _from_root(one_dataset(words))
    chosen.teacher, chosen.student = map(_from_root, (chosen.teacher, chosen.student))
    chosen.files_from = [*map(_from_root, chosen.files_from)]
    out = absolute(chosen.output_dir or f"{expanded(dataset).resolve().name}-quickstart")
    check_writable(out, "output_dir")
    check_apart(out, [dataset], [chosen.teacher, chosen.student])
    done = out / _DONE_FILE
    start_logging()
    from hf_dr.store.json_files import read_object  # imports pydantic, which reading the arguments does not need

    finished = read_object(done, _AGAIN) if done.exists() else {}
    images = {_IMAGES: hashes_of(dataset, chosen.dataset_config, chosen.files_from)}
    if "compare" not in finished:
        from hf_dr.training.students import build_student

        build_student(chosen.student, None, 2, size=chosen.size)  # a wrong name is found before hours of work
    kept: dict[str, Any] = {}
    for command, arguments, inputs in _steps(dataset, images, chosen, out):
        kept[command] = [arguments, inputs]
        before = finished.get(command)
        if before == kept[command]:
            print(f"\n{command}: finished before")
            continue
        if before is not None:
            _check_fits(command, out, before, kept[command])
        print(f"\n$ {shlex.join(['hf-dr', command, *arguments])}\n", flush=True)
        status = launch(command, arguments, f"hf-dr {command}")
        if status == 2 and command == "reinforce":  # not where it was stopped
            logger.error(
                "If the teacher was refused, it has learned too little of these images: give it more `num_train_epochs`, or "
                "name a pretrained `teacher`. To use it as it is, run the printed command with --allow_disagreement, then this."
            )
        if status:
            return status
        finished.clear()  # the steps after one that was done again are done again, too
        write_json(done, kept)
    print(f"\nteacher: {out / 'teacher'}\ndataset: {out / 'plus'}\nreport: {out / 'comparison' / 'report.html'}")
    return 0


def _from_root(name: str) -> str:
    """Returns the name of a file or folder, also of a `timm:ARCHITECTURE@FILE`, from the root on, and another as it is."""
    start, at, place = name.partition("@") if name.startswith("timm:") else ("", "", name)
    return f"{start}{at}{absolute(place)}" if place and expanded(place).exists() else name


def _check_fits(command: str, out: Path, before: list[Any], now: list[Any]) -> None:
    """Raises a ConfigError if a step was finished in another way; a comparison adds the seeds that it lacks."""
    (there, inputs_there), (here, inputs) = before, now
    if not isinstance(inputs_there, dict):
        raise FormatError(f"{out / _DONE_FILE} must tell what `{command}` has read, found {inputs_there}. {_AGAIN}")
    found = [f"settings: {shlex.join(there)} there, {shlex.join(here)} here"] if there != here else []
    for key in [] if found else unlike_names(inputs_there, inputs, but=["seeds", "title"]):
        both: Any = inputs_there.get(key), inputs.get(key)
        found += unlike_names(*both) if all(isinstance(each, dict) for each in both) else [key]
    if found:
        raise ConfigError(
            f"`{command}` in {out} was finished with other {', '.join(found)}, and what was made of it would not fit. Restore "
            "them, at the paths where they were: only `seeds` may change; or choose another `output_dir`."
        )


def _steps(
    dataset: str, images: dict[str, Any], chosen: QuickstartArguments, out: Path
) -> Iterator[tuple[str, list[str], dict[str, Any]]]:
    """Yields command, arguments and what they read, one step after the other: each reads what the last one left."""
    from hf_dr.store.json_files import read_object

    teacher = out / "teacher"
    plus = out / "plus"
    size = ["--size", str(chosen.size)]
    epochs = ["--num_train_epochs", str(chosen.num_train_epochs)]
    files = ["--files_from", *chosen.files_from] if chosen.files_from else []
    dropped = ["--dataloader_drop_last"] if chosen.dataloader_drop_last else []
    rate = as_arguments({"learning_rate": chosen.teacher_learning_rate} if chosen.teacher_learning_rate else {})
    training = [*size, *epochs, *rate, *dropped, "--output_dir", str(teacher)]
    yield "teach", [dataset, *_config_flag(chosen.dataset_config), *files, "--model", chosen.teacher, *training], images
    if not (teacher / TEACHER_FILE).is_file():
        raise FormatError(f"{teacher} must hold the {TEACHER_FILE} of `hf-dr teach`, found none. {_AGAIN}")
    learned = read_object(teacher / TEACHER_FILE, _AGAIN)
    for key in ("temperature", "folded", "dataset", "dataset_config", "split", "eval_split"):
        if key not in learned:
            raise FormatError(f"{teacher / TEACHER_FILE} must have the field `{key}`, found none. {_AGAIN}")
    num_views = str(chosen.num_views or chosen.num_train_epochs)
    views = [*size, "--num_views", num_views]
    asked = ["--teacher", str(teacher), *temperature_flag(learned)]
    base = [learned["dataset"], *_config_flag(learned["dataset_config"]), *files, "--split", learned["split"]]
    yield "reinforce", [*base, *asked, *views, "--output_dir", str(plus)], {}
    yield "inspect", [str(plus), "--save"], {}
    config = out / "compare.yaml"
    settings = _comparison(expanded(dataset).resolve().name, chosen, learned, out)
    write_whole(config, yaml.safe_dump(settings, sort_keys=False))
    yield "compare", ["--config", str(config)], settings


def _config_flag(name: str | None) -> list[str]:
    return [] if name is None else ["--dataset_config", name]


def _comparison(name: str, chosen: QuickstartArguments, learned: dict[str, Any], out: Path) -> dict[str, Any]:
    """Returns the settings of `hf-dr compare`: the students train as the teacher did."""
    trainer = {key: value for key, value in read_yaml(own_recipes() / "teach.yaml").items() if key != "augmentation"}
    dataset, split = learned["dataset"], learned["eval_split"]
    config = learned["dataset_config"]
    named = {} if config is None else {"eval_config": config}
    files = {"files_from": chosen.files_from} if chosen.files_from else {}
    dropped = {"dataloader_drop_last": True} if chosen.dataloader_drop_last else {}
    rate = {} if chosen.learning_rate is None else {"learning_rate": chosen.learning_rate}
    return {
        "title": f"{name}, {placeless(chosen.student).split('@')[0]}",
        "output_dir": str(out / "comparison"),
        "objectives": ["erm", "reinforced"],
        "seeds": chosen.seeds,
        "pictures": [str(out / "plus" / "randaug" / "contact_sheet.png")],
        "save": True,
        "train": {
            "dataset": str(out / "plus"),
            "student": chosen.student,
            "eval_dataset": dataset,
            **named,
            "eval_split": split,
            **files,
            **trainer,
            **rate,
            **dropped,
            "num_train_epochs": chosen.num_train_epochs,
            "label_weight": _LABEL_WEIGHT,
        },
        "evaluate": {
            "sets": [f"held_out={dataset}:{split}" + ("" if config is None else f",config={config}")],
            **files,
            "corrupt": ["held_out"],
            "corruptions": list(_CORRUPTIONS),
            "severities": [3],
        },
    }
