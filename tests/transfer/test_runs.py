"""Detectors and segmenters that are trained by their commands: what they learn, leave, resume and measure."""

import itertools
import json
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import children
import datasets
import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import PartialState
from conftest import as_cell
from safetensors.torch import load_file
from samples import RESUMED_TOGETHER
from toys import (
    CLASSES,
    detection_flags,
    objects_dataset,
    read_coco,
    read_masks,
    rectangles,
    segmentation_flags,
    write_coco,
    write_masks,
)

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, FormatError
from hf_dr.store import base_dataset
from hf_dr.transfer.coco_metrics import CocoMeter
from hf_dr.transfer.detection import load_detector
from hf_dr.transfer.detection_data import DetectionImages
from hf_dr.transfer.detection_data import collate as collate_objects
from hf_dr.transfer.segmentation import collate as collate_masks
from hf_dr.transfer.segmentation import load_segmenter
from hf_dr.transfer.segmentation_data import ConfusionMeter, SegmentationImages
from hf_dr.transfer.trainer import RESULTS_FILE, TRANSFER_FILE, TransferTrainer


@dataclass
class Run:
    """A finished training.

    Attributes:
        command: Of the command line.
        task: What its results call it.
        data: Folder of the data.
        out: Folder of the training.
        make_flags: Takes `data`, a folder to write to and other settings.
        load: Loads the model.
        examples: What it is evaluated on.
        meter: Starts a measurement.
        collate: Makes a batch.
        middle: The step of its first checkpoint.
    """

    command: str
    task: str
    data: Path
    out: Path
    make_flags: Callable[..., list[str]]
    load: Callable[[Path], torch.nn.Module]
    examples: Any
    meter: Callable[[], Any]
    collate: Callable[[list[Any]], dict[str, Any]]
    middle: int

    def words(self, out: Path, **more: Any) -> list[str]:
        return [self.command, *self.make_flags(self.data, out, **more)]

    def read(self, name: str) -> Any:
        return json.loads((self.out / name).read_text())

    def measured(self, out: Path) -> dict[str, float]:
        """The metrics of the model in a folder, loaded again."""
        meter = self.meter()
        with torch.no_grad():
            meter.update(self.load(out), self.collate([self.examples[row] for row in range(len(self.examples))]))
        return meter.compute()


@pytest.fixture(scope="module")
def detection(tmp_path_factory) -> Run:
    data = tmp_path_factory.mktemp("objects")
    out = tmp_path_factory.mktemp("detector") / "out"
    write_coco(data)
    run = Run(
        "detect", "object-detection", data, out, detection_flags, load_detector,
        DetectionImages(read_coco(data), train=False), lambda: CocoMeter(read_coco(data), masks=True), collate_objects, 20,
    )  # fmt: skip
    assert main(run.words(out)) == 0
    return run


@pytest.fixture(scope="module")
def segmentation(tmp_path_factory) -> Run:
    data = tmp_path_factory.mktemp("masks")
    out = tmp_path_factory.mktemp("segmenter") / "out"
    write_masks(data)
    run = Run(
        "segment", "image-segmentation", data, out, segmentation_flags, load_segmenter,
        SegmentationImages(read_masks(data)), lambda: ConfusionMeter(CLASSES.names), collate_masks, 50,
    )  # fmt: skip
    assert main(run.words(out)) == 0
    return run


@pytest.fixture(params=["detection", "segmentation"])
def run(request) -> Run:
    return request.getfixturevalue(request.param)


def test_a_toy_set_is_detected(detection):
    results = detection.read(RESULTS_FILE)
    assert results["metrics"]["box_map_50"] > 0.8
    assert results["metrics"]["mask_map_50"] > 0.8
    assert (results["dataset"]["id"], results["dataset"]["evaluated_on"]["id"]) == ("a.json", "a.json")


def test_a_toy_set_is_segmented(segmentation):
    results = segmentation.read(RESULTS_FILE)
    assert results["metrics"]["mean_iou"] > 0.7
    assert results["metrics"].keys() == {"mean_iou", "pixel_accuracy", *(f"iou_{name}" for name in CLASSES.names)}
    assert (results["dataset"]["id"], results["dataset"]["evaluated_on"]["id"]) == ("images", "images")
    assert segmentation.read(TRANSFER_FILE)["backbone"]["output_stride"] == 8


def test_results_are_of_the_last_evaluation(run):
    results = run.read(RESULTS_FILE)
    assert results["task"] == run.task
    assert results["student"]["architecture"] == "test_resnet"
    evaluated = run.read("eval_results.json")
    assert results["metrics"] == {name: evaluated[f"eval_{name}"] for name in results["metrics"]}


def test_a_trained_model_is_loaded_again(run, tmp_path):
    assert run.measured(run.out) == pytest.approx(run.read(RESULTS_FILE)["metrics"], abs=1e-6)
    (tmp_path / TRANSFER_FILE).write_text(json.dumps({**run.read(TRANSFER_FILE), "task": "other"}))
    with pytest.raises(ConfigError, match=f"must hold a model of {run.task}, found one of other"):
        run.load(tmp_path)
    (tmp_path / TRANSFER_FILE).write_text(
        json.dumps({**run.read(TRANSFER_FILE), "backbone": {"architecture": "resnet18"}})
    )
    with pytest.raises(FormatError, match=r"transfer\.json must say what builds the model, but: .*Train again"):
        run.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [("detection", {"flip": 0.1}, "differs in flip: 0.5 there, 0.1 here. Restore them"),
     ("segmentation", {"aux_weight": 0.5}, "differs in segmenter: ")],
)  # fmt: skip
def test_a_killed_run_goes_on_as_if_nothing_were(request, tmp_path, caplog, capsys, name, change, message):
    run = request.getfixturevalue(name)
    out = tmp_path / "out"
    checkpoint = f"checkpoint-{run.middle}"
    shutil.copytree(run.out / checkpoint, out / checkpoint)
    with caplog.at_level("INFO", "hf_dr"):
        assert main(run.words(out)) == 0
    assert f"Resuming from {out / checkpoint}" in caplog.text
    whole, again = (load_file(folder / "model.safetensors") for folder in (run.out, out))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert main(run.words(out, **change)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_loses_no_step(run, tmp_path, caplog, monkeypatch):
    settings = {"max_steps": 3, "save_strategy": "no"}
    assert main(run.words(tmp_path / "whole", **settings)) == 0
    steps = itertools.count(1)
    training_step = TransferTrainer.training_step

    def pressed(*arguments, **more):
        if next(steps) == 2:
            signal.raise_signal(signal.SIGINT)
        return training_step(*arguments, **more)

    monkeypatch.setattr(TransferTrainer, "training_step", pressed)
    assert main(run.words(tmp_path / "out", **settings)) == 130
    assert "Stopped at step 2 of 3: the same command goes on from checkpoint-2." in caplog.messages
    assert main(run.words(tmp_path / "out", **settings)) == 0
    assert next(steps) == 4
    for name in ("model.safetensors", RESULTS_FILE):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("name", "metric"), [("detection", "box_map"), ("segmentation", "mean_iou")])
def test_the_best_weights_are_those_of_the_tasks_own_metric(request, tmp_path, capsys, name, metric):
    run = request.getfixturevalue(name)
    best = {
        "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True,
    }  # fmt: skip
    assert main(run.words(tmp_path / "mistyped", **best, metric_for_best_model=f"{metric}s")) == 2
    error = capsys.readouterr().err
    assert f"got '{metric}s'. Name one of them." in error
    assert all(measured in error for measured in run.read(RESULTS_FILE)["metrics"])
    assert not list((tmp_path / "mistyped").glob("checkpoint-*"))
    assert main(run.words(tmp_path / "out", **best)) == 0
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    seen = [entry[f"eval_{metric}"] for entry in state["log_history"] if f"eval_{metric}" in entry]
    assert state["best_metric"] == max(seen[:2])


def run_all(commands: list[list[str]]) -> int:
    """Runs commands of hf-dr in one of two processes."""
    assert PartialState(cpu=True).num_processes == 2
    return max(map(main, commands))


@pytest.fixture(scope="module")
def by_two(detection, segmentation, tmp_path_factory) -> Path:
    """Of each task what two processes make of it: in `measured` the finished model, in `trained` one of their own."""
    folder = tmp_path_factory.mktemp("two")
    commands = []
    for run in (detection, segmentation):
        out = shutil.copytree(run.out, folder / "measured" / run.task)
        (out / "eval_results.json").unlink()
        more = {"max_steps": 3, "per_device_train_batch_size": 2}
        commands += [run.words(out), run.words(folder / "trained" / run.task, **more)]
    children.run(run_all, commands, two=True, log=folder / "log")
    return folder


@RESUMED_TOGETHER
def test_two_processes_measure_what_one_does(run, by_two):
    one = {f"eval_{name}": value for name, value in run.read(RESULTS_FILE)["metrics"].items()}
    assert len(one) >= 5
    two = json.loads((by_two / "measured" / run.task / "eval_results.json").read_text())
    assert {name: two[name] for name in one} == pytest.approx(one, abs=1e-9)


@RESUMED_TOGETHER
def test_two_processes_measure_the_weights_that_they_save(run, by_two):
    """Each has seen other images, of which it has kept running statistics of its own."""
    trained = by_two / "trained" / run.task
    measured = json.loads((trained / RESULTS_FILE).read_text())["metrics"]
    assert run.measured(trained) == pytest.approx(measured, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "spoilt", "message"),
    [("detection", "images", "the image of row 3 .* must be readable"),
     ("segmentation", "masks", "the mask of row 3 .* expected one channel of whole numbers, found mode RGB")],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_found_before_training(request, tmp_path, capsys, name, spoilt, message):
    run = request.getfixturevalue(name)
    shutil.copytree(run.data, tmp_path / "data")
    file = tmp_path / "data" / spoilt / "3.png"
    if spoilt == "masks":
        PIL.Image.open(file).convert("RGB").save(file)
    else:
        file.write_bytes(b"no image")
    assert main(run.words(tmp_path / "out", **{f"eval_{spoilt}": tmp_path / "data" / spoilt})) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err)
    assert "loss" not in captured.out


@pytest.mark.parametrize(
    ("name", "spoilt"), [("detection", "images"), ("segmentation", "images"), ("segmentation", "masks")]
)
@pytest.mark.parametrize("how", ["empty", "another size", "a page"])
def test_each_file_of_an_evaluation_is_opened_before_training(
    request, tmp_path, capsys, monkeypatch, name, spoilt, how
):
    run = request.getfixturevalue(name)
    monkeypatch.setattr(base_dataset, "_SAMPLED_ROWS", 1)
    shutil.copytree(run.data, tmp_path / "data")
    file = tmp_path / "data" / spoilt / "3.png"
    if how == "another size":
        with PIL.Image.open(file) as image:
            image.resize((image.width - 1, image.height), PIL.Image.Resampling.NEAREST).save(file)
    else:
        file.write_bytes(b"" if how == "empty" else b"<html></html>")
    assert main(run.words(tmp_path / "out", **{f"eval_{spoilt}": tmp_path / "data" / spoilt})) == 2
    assert "of row 3 " in capsys.readouterr().err


def test_without_masks_it_is_a_faster_rcnn(detection, tmp_path, caplog):
    with caplog.at_level("INFO", "hf_dr"):
        assert main(detection.words(tmp_path / "out", masks=False, max_steps=1)) == 0
    assert "Faster R-CNN, without masks, on 6 images with 2 categories" in caplog.text
    found = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())["metrics"]
    assert "box_map" in found
    assert "mask_map" not in found


@pytest.mark.parametrize("by_accelerate", [False, True])
def test_a_detector_is_not_compiled(detection, tmp_path, capsys, monkeypatch, by_accelerate):
    settings = {} if by_accelerate else {"torch_compile_backend": "eager"}
    if by_accelerate:
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    assert main(detection.words(tmp_path / "out", max_steps=1, **settings)) == 2
    assert "error: `torch_compile` is not for detectors: they find another number of boxes" in capsys.readouterr().err


# What Trainer does about the client's progress bars.
@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_a_detector_trains_on_a_dataset_and_is_pushed(tmp_path, capsys, loopback_hub):
    objects_dataset([[[2, 3, 20, 20]]] * 4, [[0], [1], [0], [1]]).to_parquet(tmp_path / "d.parquet")
    more = {"dataset": tmp_path / "d.parquet", "eval_split": "train", "max_steps": 1, "save_strategy": "no"}
    words = ["detect", *detection_flags(tmp_path, tmp_path / "out", **more)]
    assert main([*words, "--push_to_hub", "--hub_model_id", "org/detector"]) == 0
    files = loopback_hub.files("org/detector", repo_type="models")
    assert {"model.safetensors", TRANSFER_FILE, RESULTS_FILE} <= files.keys()
    loaded: dict[str, Any] = {}
    exec(re.search(r"```python\n(.*?)```", files["README.md"].decode(), re.DOTALL)[1], loaded)  # as the card says
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in loaded["model"].state_dict().items())
    found = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert found["dataset"]["id"] == "d.parquet"
    assert found["dataset"]["evaluated_on"]["split"] == "train"
    assert main([*words, "--masks", "true"]) == 2
    assert (
        "`masks` needs segmentations of all objects, but 4 of the 4 objects of d.parquet have none"
        in capsys.readouterr().err
    )


def test_a_segmenter_trains_on_a_dataset_and_a_student_that_cannot_be_dilated(tmp_path, caplog):
    rng = np.random.default_rng(0)
    pairs = [rectangles(rng, (64, 64)) for _ in range(4)]
    columns = {"image": [as_cell(image) for image, _ in pairs], "annotation": [as_cell(mask) for _, mask in pairs]}
    features = datasets.Features({name: datasets.Image() for name in columns})
    datasets.Dataset.from_dict(columns, features).to_parquet(tmp_path / "d.parquet")
    more = {
        "dataset": tmp_path / "d.parquet", "eval_split": "train", "max_steps": 1, "save_strategy": "no",
        "student": "timm:test_vit", "per_device_train_batch_size": 2,
    }  # fmt: skip
    with caplog.at_level("INFO", "hf_dr"):
        assert main(["segment", *segmentation_flags(tmp_path, tmp_path / "out", **more)]) == 0
    assert "test_vit cannot be dilated to `output_stride` 8: its features keep the stride 16" in caplog.text
    found = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert found["dataset"]["evaluated_on"]["split"] == "train"
    assert "mean_iou" in found["metrics"]
