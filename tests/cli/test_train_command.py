"""`hf-dr train`, called as its users call it: objectives, what is written, running again, refusals."""

import itertools
import json
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from samples import one_pixel_off
from transformers import AutoModelForImageClassification, ViTConfig, ViTImageProcessor

from hf_dr import files
from hf_dr.cli.main import main
from hf_dr.cli.train import _card_settings
from hf_dr.errors import HfDrError
from hf_dr.evaluation.gathering import read_training
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.hub.push import push_to_hub
from hf_dr.store.base_dataset import load_base
from hf_dr.teacher.metrics import compute_metrics
from hf_dr.training import student_hub
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.checkpoints import SETTINGS_FILE, write_checksums
from hf_dr.training.resumable import _Bars
from hf_dr.training.student_inputs import load_processor
from hf_dr.training.totals import TOTALS_FILE
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import RandomResizedCrop

SIZE, ROWS, BATCH = 24, 12, 4
CALIBRATED = ["--save_strategy", "no", "--eval_split", "train[4:]", "--calibrate_split", "train[:4]"]
STEPS = ROWS // BATCH  # of an epoch


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_dataset) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.parquet"
    tiny_dataset.to_parquet(path)
    return path


@pytest.fixture(scope="module")
def others(tiny_dataset) -> datasets.Dataset:
    """As many images, of which no "+" dataset has any."""
    return tiny_dataset.map(lambda row: {"image": one_pixel_off(row["image"])})


@pytest.fixture(scope="module")
def held_out(tmp_path_factory, others) -> str:
    path = tmp_path_factory.mktemp("others") / "others.parquet"
    others.to_parquet(path)
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "t.safetensors"
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet", num_classes=8).state_dict(), path)
    return f"timm:test_resnet@{path}"


@pytest.fixture
def call(tmp_path, tiny_folder, base):
    """Runs the command in a fresh folder; more flags win. Returns its status."""

    def run(*more: str, dataset: Path = tiny_folder, out: str = "out") -> int:
        flags = {
            "--dataset": dataset, "--student": "timm:test_resnet", "--output_dir": tmp_path / out,
            "--eval_dataset": base, "--eval_split": "train", "--per_device_train_batch_size": BATCH,
            "--num_train_epochs": 2, "--save_strategy": "epoch", "--optim": "sgd", "--learning_rate": 0.05,
        }  # fmt: skip
        return main(["train", *(str(part) for flag in flags.items() for part in flag), *more])

    return run


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("objective", ["reinforced", "erm", "kd"])
def test_an_objective_leaves_model_metrics_checkpoints_and_a_card(
    call, tmp_path, tiny_plus, teacher, objective, capsys, monkeypatch
):
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    more = ["--teacher", teacher] if objective == "kd" else []
    assert call("--objective", objective, "--ema_decay", "0.5", *more) == 0
    assert "training: 100 %, 6 of 6, " in capsys.readouterr().err
    out = tmp_path / "out"
    trained, evaluated = read(out / "train_results.json"), read(out / "eval_results.json")
    assert trained["epoch"] == 2
    assert trained["train_samples_per_second"] > 0
    assert {f"eval_{m}" for m in ("loss", "top1", "top5", "nll", "brier", "ece", "ema_top1")} <= evaluated.keys()
    assert {p.name for p in out.glob("checkpoint-*")} == {f"checkpoint-{STEPS}", f"checkpoint-{2 * STEPS}"}
    model = AutoModelForImageClassification.from_pretrained(out)
    assert [model.config.id2label[c] for c in range(8)] == tiny_plus.class_names
    kept = read(out / "checkpoint-3" / "reinforced_training.json")
    assert kept["reinforced_probability"] == (0.99 if objective == "reinforced" else 0.0)
    assert (kept["online_teacher"] is not None) == (objective == "kd")

    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "image-classification"
    assert "dataset-reinforcement" in card.data.tags
    assert {
        "reinforced": "stored views and a teacher's stored answers (0.99 of the samples",
        "erm": "newly drawn views and their labels",
        "kd": "newly drawn views and the answers of a teacher in memory",
    }[objective] in card.text
    for part in ("# out", "test_resnet of ", "`tiny-plus`", "labelled by colours", "| learning_rate | 0.05 |",
                 f"| top1 | {evaluated['eval_top1']:.4g} |", f"| dataset_fingerprint | {tiny_plus.provenance.fingerprint}",
                 f"| train_samples_per_second | {trained['train_samples_per_second']:.4g} |",
                 "Measured on `base.parquet`, split `train`."):  # fmt: skip
        assert part in card.text
    found = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert found == {
        "Top-1 accuracy": evaluated["eval_top1"], "Top-5 accuracy": evaluated["eval_top5"],
        "Negative log-likelihood (nats)": evaluated["eval_nll"], "Expected calibration error": evaluated["eval_ece"],
    }  # fmt: skip
    assert {(r.dataset_name, r.dataset_split) for r in card.data.eval_results} == {("base.parquet", "train")}
    learnt_from = {"reinforced": "| colours | ", "kd": "| timm:test_resnet@t.safetensors | "}
    for name, row in learnt_from.items():
        assert (row in card.text) == (name == objective)
    assert str(tmp_path) not in card.content, "no paths of this machine"


def test_objectives_differ_in_nothing_but_the_target(call, tmp_path, teacher):
    for objective, more in (("reinforced", []), ("erm", []), ("kd", ["--teacher", teacher])):
        assert call("--objective", objective, "--max_steps", "1", *more, out=objective) == 0
    found = [load_file(tmp_path / name / "model.safetensors") for name in ("reinforced", "erm", "kd")]
    for first, second in itertools.combinations(found, 2):
        assert not all(torch.equal(first[name], second[name]) for name in first if name.endswith("weight"))


def test_running_again_resumes(call, tmp_path, caplog):
    assert call(out="whole") == 0
    assert call() == 0
    whole, out = tmp_path / "whole", tmp_path / "out"
    shutil.rmtree(out / f"checkpoint-{2 * STEPS}")
    for name in ("model.safetensors", "train_results.json"):
        (out / name).unlink()
    with caplog.at_level("INFO", "hf_dr"):
        assert call() == 0
    assert f"Resuming from {out / f'checkpoint-{STEPS}'}" in caplog.text
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    results = (out / "train_results.json").read_text()
    assert read(out / "train_results.json")["train_loss"] > 0
    took = read(out / "all_results.json")["train_runtime"]
    (out / "all_results.json").unlink()
    assert call() == 0
    assert (out / "train_results.json").read_text() == results, "a finished run keeps its metrics"
    assert read(out / "all_results.json")["train_runtime"] == took


@pytest.mark.parametrize(("at", "objective"), [(2, "reinforced"), (2, "kd"), (STEPS, "erm"), (2 * STEPS, "reinforced")])
def test_ctrl_c_loses_no_step_and_no_evaluation(
    call, tmp_path, caplog, monkeypatch, interrupted, teacher, at, objective
):
    settings = ["--save_strategy", "no", "--eval_strategy", "epoch", "--objective", objective]
    settings += ["--teacher", teacher] if objective == "kd" else []
    assert call(*settings, out="whole") == 0
    steps = interrupted(at)
    before = signal.getsignal(signal.SIGINT)
    assert call(*settings) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "Stopping: a checkpoint is saved after this step. Ctrl-C again stops at once, without it." in caplog.messages
    assert f"Stopped at step {at} of 6: the same command goes on from checkpoint-{at}." in caplog.messages
    kept = read(tmp_path / "out" / f"checkpoint-{at}" / "trainer_state.json")["log_history"]
    assert [entry["step"] for entry in kept if "eval_top1" in entry] == list(range(STEPS, at + 1, STEPS))
    logged: list[dict[str, float]] = []  # on the terminal, and by what `report_to` names
    monkeypatch.setattr(_Bars, "on_log", lambda *_, logs, **settings: logged.append({**logs}))
    assert call(*settings) == 0
    assert next(steps) == 2 * STEPS + 1
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (read(tmp_path / name / "trainer_state.json")["log_history"] for name in ("whole", "out"))
    assert [entry.get("eval_top1") for entry in one] == [entry.get("eval_top1") for entry in two]
    one, two = (read(tmp_path / name / "train_results.json") for name in ("whole", "out"))
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-6)
    assert two["train_runtime"] > read(tmp_path / "out" / f"checkpoint-{at}" / TOTALS_FILE)["seconds"] > 0
    assert two["train_steps_per_second"] == pytest.approx(2 * STEPS / two["train_runtime"], rel=1e-3)
    assert two["train_samples_per_second"] == pytest.approx(2 * ROWS / two["train_runtime"], rel=1e-3)
    (told,) = (entry for entry in logged if "train_runtime" in entry)
    assert told == two


@pytest.mark.parametrize("at", [2, STEPS, STEPS + 1, 2 * STEPS])
@pytest.mark.parametrize(
    "more",
    [["--save_strategy", "best"], ["--save_strategy", "epoch", "--save_total_limit", "1"]],
    ids=["best", "one is kept"],
)
def test_ctrl_c_loses_no_step_where_few_checkpoints_are_kept(call, tmp_path, caplog, interrupted, at, more):
    settings = ["--eval_strategy", "epoch", "--load_best_model_at_end", "--metric_for_best_model", "eval_nll", *more]
    assert call(*settings, out="whole") == 0
    steps = interrupted(at)
    assert call(*settings) == 130
    assert f"Stopped at step {at} of 6: the same command goes on from checkpoint-{at}." in caplog.messages
    assert call(*settings) == 0
    assert next(steps) == 2 * STEPS + 1
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("evaluation", [1, 2])
def test_ctrl_c_in_an_evaluation_saves_what_was_learned(call, caplog, monkeypatch, evaluation):
    evaluations = itertools.count(1)
    evaluate = ReinforcedTrainer.evaluation_loop

    def pressed(*arguments, **settings):
        if next(evaluations) == evaluation:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **settings)

    monkeypatch.setattr(ReinforcedTrainer, "evaluation_loop", pressed)
    assert call("--save_strategy", "no", "--eval_strategy", "epoch") == 130
    at = evaluation * STEPS
    assert f"Stopped at step {at} of 6: the same command goes on from checkpoint-{at}." in caplog.messages


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("strategy", "number", "status"),
    [("no", signal.SIGINT, 130), ("no", signal.SIGTERM, 143), ("epoch", signal.SIGINT, 130)],
)
def test_ctrl_c_after_the_last_step_does_not_train_again(call, tmp_path, caplog, monkeypatch, strategy, number, status):
    steps = []
    training_step, evaluate = ReinforcedTrainer.training_step, ReinforcedTrainer.evaluation_loop

    def counted(*arguments, **settings):
        steps.append(1)
        return training_step(*arguments, **settings)

    def pressed(*arguments, **settings):
        signal.raise_signal(number)

    def saved(*arguments, **settings):
        terminating.append(signal.getsignal(signal.SIGTERM))
        return save(*arguments, **settings)

    terminating = []
    save = ReinforcedTrainer._save_checkpoint
    monkeypatch.setattr(ReinforcedTrainer, "_save_checkpoint", saved)
    monkeypatch.setattr(ReinforcedTrainer, "training_step", counted)
    monkeypatch.setattr(ReinforcedTrainer, "evaluation_loop", pressed)
    assert call("--save_strategy", strategy) == status
    if number == signal.SIGTERM:
        assert terminating == [signal.SIG_IGN], "a second one must not stop what saves the checkpoint"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert f"Stopped after the training: the same command goes on from checkpoint-{2 * STEPS}." in caplog.messages
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    seconds = read(tmp_path / "out" / "train_results.json")
    monkeypatch.setattr(ReinforcedTrainer, "evaluation_loop", evaluate)
    assert call("--save_strategy", strategy) == 0
    assert len(steps) == 2 * STEPS
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == weights
    assert read(tmp_path / "out" / "train_results.json") == seconds
    assert read(tmp_path / "out" / "eval_results.json")["eval_top1"] >= 0


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("flag", "saved"), [("--bf16_full_eval", 1), ("--save_only_model", 0)])
def test_ctrl_c_after_the_last_step_saves_its_weights_or_none(call, tmp_path, monkeypatch, flag, saved):
    """An evaluation in half precision does not change them, and from weights alone no training goes on."""
    predict = ReinforcedTrainer.prediction_step

    def pressed(trainer, model, *arguments, **settings):
        dtypes.update(weight.dtype for weight in model.parameters())
        signal.raise_signal(signal.SIGINT)
        return predict(trainer, model, *arguments, **settings)

    dtypes = set()
    monkeypatch.setattr(ReinforcedTrainer, "prediction_step", pressed)
    assert call("--save_strategy", "no", flag) == 130
    assert dtypes == {torch.bfloat16 if saved else torch.float32}
    final = load_file(tmp_path / "out" / "model.safetensors")
    assert {weight.dtype for weight in final.values()} <= {torch.float32, torch.int64}
    checkpoints = list((tmp_path / "out").glob("checkpoint-*"))
    assert len(checkpoints) == saved
    for checkpoint in checkpoints:
        kept = load_file(checkpoint / "model.safetensors")
        assert all(torch.equal(kept[name], final[name]) for name in final)


@pytest.mark.parametrize(
    ("damage", "message"),
    [(lambda state: state.write_text("{"), "is damaged (trainer_state.json is not what was written)"),
     (lambda state: state.unlink(), "is damaged (trainer_state.json is missing)"),
     (lambda state: (state.parent / "checksums.json").unlink(), "was not written completely (it has no checksums.json)")],
    ids=["cut", "deleted", "not finished"],
)  # fmt: skip
def test_a_damaged_checkpoint_that_is_named_is_refused(call, tmp_path, capsys, damage, message):
    assert call() == 0
    checkpoint = tmp_path / "out" / f"checkpoint-{STEPS}"
    damage(checkpoint / "trainer_state.json")
    assert call("--resume_from_checkpoint", str(checkpoint)) == 2
    assert (
        f"`resume_from_checkpoint` must name a whole checkpoint, but {checkpoint} {message}" in capsys.readouterr().err
    )


def test_ctrl_c_twice_stops_at_once(call, caplog, interrupted):
    interrupted(2, times=2)
    assert call("--save_strategy", "no") == 130
    assert "Stopped at step 1 of 6: no checkpoint was saved." in caplog.messages


def test_sigterm_stops_as_ctrl_c_does_however_often_it_comes(call, tmp_path, caplog, interrupted):
    assert call("--save_strategy", "no", out="whole") == 0
    steps = interrupted(2, times=2, number=signal.SIGTERM)
    assert call("--save_strategy", "no") == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "Stopped at step 2 of 6: the same command goes on from checkpoint-2." in caplog.messages
    assert call("--save_strategy", "no") == 0
    assert next(steps) == 2 * STEPS + 1
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "out"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_ctrl_c_is_not_for_a_training_in_the_background(call, interrupted):
    interrupted(2)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert call("--save_strategy", "no") == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted(monkeypatch, ctrl_c):
    """Has Ctrl-C pressed, or another signal sent, in a step, once or several times; returns the steps."""

    def press(at: int, times: int = 1, number: int = signal.SIGINT):
        steps = itertools.count(1)
        training_step = ReinforcedTrainer.training_step

        def pressed(*arguments, **settings):
            for _ in range(times if next(steps) == at else 0):
                signal.raise_signal(number)
            return training_step(*arguments, **settings)

        monkeypatch.setattr(ReinforcedTrainer, "training_step", pressed)
        return steps

    return press


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")  # what Trainer does about the client's
@pytest.mark.usefixtures("loopback_hub")
def test_a_training_that_is_stopped_ends_after_the_push_of_its_checkpoint(call, monkeypatch, interrupted):
    """Which loads the student in a thread, and could not any more while Python ends."""
    pushed = []

    def slowly(folder, repo_id, **settings):
        time.sleep(0.5)
        pushed.append(settings["commit_message"])

    monkeypatch.setattr(student_hub, "push_student", slowly)
    interrupted(2)
    assert call("--push_to_hub", "--hub_strategy", "every_save", "--hub_model_id", "me/student") == 130
    assert pushed == ["Training in progress, step 2"]


@pytest.mark.parametrize("name", ["all_results.json", "train_results.json", "eval_results.json"])
def test_metrics_that_find_no_room_are_written_the_next_time(call, tmp_path, capsys, monkeypatch, name):
    written_whole = files.written_whole

    def full(path):
        if path.name == name:
            raise HfDrError(f"could not write {path}")
        return written_whole(path)

    monkeypatch.setattr(files, "written_whole", full)
    assert call() == 2
    assert f"could not write {tmp_path / 'out' / name}" in capsys.readouterr().err
    monkeypatch.setattr(files, "written_whole", written_whole)
    (tmp_path / "out" / "all_results.json").touch()  # as a machine that goes down may leave it
    assert call() == 0
    found = [read(tmp_path / "out" / f"{part}_results.json") for part in ("train", "eval", "all")]
    assert {**found[0], **found[1]} == found[2]


def test_a_run_that_was_stopped_between_its_last_step_and_its_metrics_is_finished(call, tmp_path, caplog):
    assert call() == 0
    out = tmp_path / "out"
    weights, trained = (out / "model.safetensors").read_bytes(), read(out / "train_results.json")
    for name in (
        "model.safetensors",
        "train_results.json",
        "eval_results.json",
        "all_results.json",
        "trainer_state.json",
    ):
        (out / name).unlink()
    assert call() == 0
    assert (out / "model.safetensors").read_bytes() == weights
    assert read_training(out, "reinforced", 0).steps == 2 * STEPS
    found = read(out / "train_results.json")
    assert found["train_loss"] == pytest.approx(trained["train_loss"], rel=1e-6)
    assert found["train_runtime"] >= read(out / f"checkpoint-{2 * STEPS}" / TOTALS_FILE)["seconds"]


def test_a_longer_run_that_is_stopped_in_its_last_step_has_its_own_metrics(call, tmp_path, interrupted):
    assert call() == 0
    interrupted(STEPS)
    assert call("--num_train_epochs", "3") == 130
    assert call("--num_train_epochs", "3") == 0
    assert read(tmp_path / "out" / "train_results.json")["epoch"] == 3


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (TOTALS_FILE, "must have the field `seconds`, found none"),
        (SETTINGS_FILE, "must hold per_device_train_batch_size, .*, found no devices, gradient_accumulation_steps, "),
    ],
)
def test_a_checkpoint_that_does_not_tell_what_its_training_took_is_refused(call, tmp_path, capsys, file, said):
    assert call() == 0
    checkpoint = tmp_path / "out" / f"checkpoint-{2 * STEPS}"
    (checkpoint / file).unlink()
    write_checksums(checkpoint, resumable=True)
    assert call("--num_train_epochs", "3") == 2
    assert re.search(f"{checkpoint / file} {said}.*Resume from another checkpoint", capsys.readouterr().err)


def test_a_kill_while_a_checkpoint_is_written_costs_that_checkpoint_only(call, tmp_path, caplog):
    assert call(out="whole") == 0
    assert call() == 0
    out = tmp_path / "out"
    for name, text in (("checkpoint-4", None), (f"checkpoint-{2 * STEPS}", '{"global_st')):
        (out / name).mkdir(exist_ok=True)
        state = out / name / "trainer_state.json"
        state.unlink(missing_ok=True) if text is None else state.write_text(text)
    assert call() == 0
    assert f"Skipping {out / f'checkpoint-{2 * STEPS}'}" in caplog.text
    assert f"Skipping {out / 'checkpoint-4'}" in caplog.text
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_run_that_ended_within_an_epoch_is_finished_too(call, tmp_path):
    more = ["--max_steps", "2", "--save_strategy", "steps", "--save_steps", "1"]
    assert call(*more) == 0
    names = "model.safetensors", "train_results.json"
    weights, results = ((tmp_path / "out" / name).read_bytes() for name in names)
    assert call(*more) == 0
    assert not (tmp_path / "out" / "checkpoint-3").exists()
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == [weights, results]


def test_another_objective_or_student_does_not_resume_this_one(call, teacher, capsys):
    assert call("--objective", "erm") == 0
    for more, message in (
        (["--objective", "reinforced"], "differs in reinforced_probability: 0.0 there, 0.99 here"),
        (["--objective", "kd", "--teacher", teacher], "differs in online_teacher: None there, "),
        (["--objective", "erm", "--student", "timm:test_vit", "--model_args", '{"img_size": 24, "patch_size": 8}'],
         "differs in model: test_resnet of "),
    ):  # fmt: skip
        capsys.readouterr()
        assert call(*more) == 2
        assert message in capsys.readouterr().err


def test_a_config_file(call, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("max_steps: 1\ntemperature: 1.25\nmodel_args:\n  drop_rate: 0.1\n")
    assert call("--config", str(config)) == 0
    assert read(tmp_path / "out" / "checkpoint-1" / "reinforced_training.json")["temperature"] == 1.25
    assert read(tmp_path / "out" / "config.json")["model_args"] == {"drop_rate": 0.1}


def test_an_overlay_needs_its_base(call, tmp_path, tiny_dataset, tiny_teacher, base, capsys):
    config = ReinforceConfig(str(tmp_path / "overlay"), num_views=2, top_k=2, overlay=True)
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(SIZE)]), config)
    assert call(dataset=tmp_path / "overlay") == 2
    assert "is an overlay without images. Pass `base`" in capsys.readouterr().err
    assert call("--base", str(base), "--max_steps", "1", dataset=tmp_path / "overlay") == 0


def test_rows_without_stored_views_are_trained_on(call, tmp_path, tiny_dataset, tiny_teacher, base):
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=2, top_k=3, overlay=True, max_examples=8)
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(SIZE)]), config)
    assert call("--base", str(base), "--unreinforced", dataset=tmp_path / "plus") == 0
    assert read(tmp_path / "out" / "checkpoint-3" / "reinforced_training.json")["num_rows"] == ROWS
    assert "new views of the rows that have none stored" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_fine_tuning_keeps_the_students_own_processor(call, tmp_path):
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = AutoModelForImageClassification.from_config(ViTConfig(image_size=SIZE, patch_size=8, num_labels=3, **tiny))
    folder = tmp_path / "vit"
    model.save_pretrained(folder)
    assert load_processor(str(folder), SIZE) is None
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        folder
    )
    assert call("--student", str(folder), "--max_steps", "1") == 0
    assert read(tmp_path / "out" / "preprocessor_config.json")["image_std"] == [0.25] * 3
    assert "fine-tuned from `vit`" in (tmp_path / "out" / "README.md").read_text()
    # The same first step with ImageNet's mean and std has another loss.
    losses = [read(tmp_path / "out" / "train_results.json")["train_loss"]]
    for name in ("preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink(missing_ok=True)
    assert call("--student", str(folder), "--max_steps", "1", out="other") == 0
    losses.append(read(tmp_path / "other" / "train_results.json")["train_loss"])
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temprature", "2"], "unknown argument `--temprature`. Did you mean `--temperature`?"),
        (["--temperature", "0"], "`temperature` must be a number above 0, got 0"),
        (["--reinforced_probability", "1.5"], "`reinforced_probability` must be between 0 and 1, got 1.5"),
        (
            ["--objective", "erm", "--reinforced_probability", "0.5"],
            "`reinforced_probability` must be left out with `objective` erm, which learns from the labels of newly drawn views",
        ),
        *(
            (
                ["--objective", *objective, f"--{name}", value],
                f"`{name}` must be left out with `objective` {objective[0]}, which",
            )
            for objective, name, value in (
                (["erm"], "temperature", "2"),
                (["erm"], "label_weight", "0.5"),
                (["erm"], "view_order", "easy_first"),
                (["erm"], "tail", "bucket"),
                (["kd", "--teacher", "x"], "view_difficulty", "cross_entropy"),
                (["kd", "--teacher", "x"], "tail", "bucket"),
            )
        ),
        (["--mixup_alpha", "0.2"], "`mixup_alpha` and `cutmix_alpha` must be 0 where stored views are replayed"),
        (["--cutmix_alpha", "-1"], "`cutmix_alpha` must be between 0 and 1000, got -1"),
        (["--mixup_switch_prob", "2"], "`mixup_switch_prob` must be between 0 and 1, got 2"),
        (["--num_views", "0"], "`num_views` must be between 1 and the 4 stored views, got 0"),
        (["--num_views", "5"], "`num_views` must be between 1 and the 4 stored views, got 5"),
        (["--objective", "kd"], "`teacher` must be given for `objective` kd and only then, got none with kd. Name one"),
        (
            ["--teacher", "x"],
            "`teacher` must be given for `objective` kd and only then, got ['x'] with reinforced. Leave it out",
        ),
        (["--teacher_classes", "by_name"], "`teacher_classes` must come with a teacher, got 'by_name'"),
        (["--model_args", "{depth"], "`model_args` must be JSON"),
        (["--model_args", "[1]"], "`model_args` must hold names and values, e.g. '{\"img_size\": 32}', got '[1]'"),
        (["--eval_crop", "2"], "`eval_crop` must be above 0 and at most 1, got 2.0"),
        (["--eval_dataset", "", "--eval_on_start"], "`eval_on_start` needs an `eval_dataset`, got none"),
        (["--report_to", "wandb"], "requires wandb to be installed"),
        (["--accelerator_config", "nowhere.json"], "No such file or directory: 'nowhere.json'"),
        (
            ["--lr_scheduler_type", "cosine_with_min_lr"],
            "`lr_scheduler_type` cosine_with_min_lr must take their settings",
        ),
        (["--lr_scheduler_kwargs", '{"bends": 1}'], "must take their settings, but: "),
        (["--push_to_hub"], "expected to make the repository of the model (`hub_model_id`), but"),
        (["--push_to_hub", "--hub_model_id", "me/a--b"], "the Hub has no such names (Cannot have -- or .. in repo_id"),
        (["--student", "timm:test_resnett"], "timm has no architecture `test_resnett`. Did you mean `test_resnet"),
        (["--student", "./nowhere"], "the student './nowhere' must be a folder, but there is none. Train it first"),
        (["--dataset", "./nowhere"], 'expected the folder of a "+" dataset or a Hub id, found neither'),
        (["--name", "all_opps"], "has no configuration `all_opps`. Did you mean `all_ops`?"),
        (["--eval_split", "tset"], "could not load split `tset`"),
        (["--calibrate_split", "tset"], "could not load split `tset`"),
        (
            ["--calibrate_split", "train[:6]"],
            "`calibrate_split` must have other images than `eval_split` train, but 6 of its 6 are the same",
        ),
        (
            ["--calibrate_split", "train", "--eval_dataset", ""],
            "`calibrate_split` must come with the `eval_dataset` of which it is a split, got 'train' alone. Name both",
        ),
        (
            ["--eval_revision", "v1", "--eval_dataset", ""],
            "`eval_revision` must come with the `eval_dataset` of which it is a revision, got 'v1' alone. Name both",
        ),
        (
            ["--files_from", "photos", "--eval_dataset", "", "--eval_strategy", "no"],
            "`files_from` must come with the name of a base, got ['photos'] without. Leave it out",
        ),
        (["--load_best_model_at_end", "--eval_strategy", "no"], "--load_best_model_at_end requires the save and eval"),
        (
            ["--resume_from_checkpoint", "nowhere"],
            "must name a whole checkpoint, but nowhere is no folder. Name an earlier",
        ),
    ],
    ids=str,
)
def test_wrong_calls_end_with_one_clear_line_and_status_2(call, tmp_path, capsys, arguments, message):
    assert call(*arguments) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("objective", ["reinforced", "erm", "kd"])
def test_a_student_is_calibrated_by_images_that_are_not_tested(
    call, tmp_path, others, held_out, tiny_plus, teacher, objective, capsys, monkeypatch
):
    more = ["--objective", objective, *(["--teacher", teacher] if objective == "kd" else [])]
    # Within their bounds, which are powers of two, temperatures of model and average would often be the same.
    monkeypatch.setattr("hf_dr.teacher.calibration.TEMPERATURES", (1e-6, 1e6))
    more += ["--student", "timm:test_vit", "--model_args", '{"img_size": 24, "patch_size": 8}']
    more += ["--ema_decay", "0.5", *CALIBRATED, "--eval_dataset", held_out, "--save_strategy", "epoch"]
    assert call(*more) == 0
    printed = capsys.readouterr().out
    assert "of 4 images of `train[:4]`" in printed
    assert ", in the weights" in printed
    out = tmp_path / "out"
    found = read(out / "student.json")["calibration"]
    assert (found["num_held_out"], found["of"]["id"], found["of"]["split"]) == (4, "others.parquet", "train[:4]")
    assert found["temperature"] != found["ema_temperature"]
    trained = out / f"checkpoint-{2 * STEPS}"
    for name, temperature in (("model", "temperature"), ("ema", "ema_temperature")):
        before, after = (load_file(folder / f"{name}.safetensors") for folder in (trained, out))
        assert {key for key in before if not torch.equal(before[key], after[key])} == {"head.weight", "head.bias"}
        torch.testing.assert_close(after["head.weight"] * found[temperature], before["head.weight"])

    # The temperature that whoever loads the checkpoint finds, and the metrics of whoever loads the student.
    tested, to_calibrate = others.select(range(4, ROWS)), others.select(range(4))
    before, after = (
        ReinforcedTrainer(
            AutoModelForImageClassification.from_pretrained(folder), ReinforcedTrainingArguments(str(tmp_path / "other")),
            train_dataset=tiny_plus, eval_dataset=tested, compute_metrics=compute_metrics,
        )
        for folder in (trained, out)
    )  # fmt: skip
    assert before.calibrate(to_calibrate, fold=False).temperature == pytest.approx(found["temperature"], rel=1e-4)
    evaluated = after.evaluate()
    written = read(out / "eval_results.json")
    for name in ("eval_top1", "eval_nll", "eval_ece"):
        assert evaluated[name] == pytest.approx(written[name], rel=1e-4)

    card = (out / "README.md").read_text()
    assert f"divides the logits by {found['temperature']:.4g}, the temperature that fits 4 images of" in card
    assert f"| nll | {written['eval_nll']:.4g} |" in card
    kept = (out / "model.safetensors").read_bytes()
    assert call(*more) == 0
    assert (out / "model.safetensors").read_bytes() == kept, "not twice"


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("pressed_in", [1, 2])
def test_ctrl_c_saves_a_checkpoint_without_the_temperature(call, tmp_path, held_out, monkeypatch, pressed_in):
    """While held-out images are answered, and in the evaluation after it."""
    more = [*CALIBRATED, "--eval_dataset", held_out]
    assert call(*more, out="whole") == 0
    evaluations = itertools.count(1)
    evaluate = ReinforcedTrainer.evaluation_loop

    def pressed(*arguments, **settings):
        if next(evaluations) == pressed_in:
            signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **settings)

    monkeypatch.setattr(ReinforcedTrainer, "evaluation_loop", pressed)
    assert call(*more) == 130
    whole, out = tmp_path / "whole", tmp_path / "out"
    if pressed_in == 2:  # the weights are saved with a card of theirs
        assert read(out / "student.json")["calibration"] == read(whole / "student.json")["calibration"]
        assert "| top1 |" not in (out / "README.md").read_text()
    assert call(*more) == 0
    assert read(out / "student.json")["calibration"] == read(whole / "student.json")["calibration"]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_held_out_image_that_cannot_be_read_costs_no_training(call, tmp_path, others, capsys):
    def damage(row, n):
        return {"image": {"bytes": b"none", "path": None}} if n == 2 else row

    undecoded = others.cast_column("image", datasets.Image(decode=False))
    undecoded.map(damage, with_indices=True).cast(others.features).to_parquet(tmp_path / "damaged.parquet")
    assert call(*CALIBRATED, "--eval_dataset", str(tmp_path / "damaged.parquet")) == 2
    assert "row 2" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_images_that_are_learned_calibrate_nobody(call, tmp_path, tiny_dataset, capsys):
    """The same pixels in other files, which are known by the hashes of the "+" dataset."""
    tiny_dataset.map(lambda row: {"image": row["image"]}).to_parquet(tmp_path / "copies.parquet")
    assert call(*CALIBRATED, "--eval_dataset", str(tmp_path / "copies.parquet")) == 2
    assert "`calibrate_split` must have images that are not learned, but 4 of its 4 are" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_folder_of_images_is_no_place_for_a_student(call, tmp_path, photos, capsys):
    folder = shutil.copytree(photos, tmp_path / "out")
    before = sorted(folder.rglob("*"))
    assert call() == 2
    assert "`output_dir` must be new, or the folder of this command from before, got" in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before
    shutil.rmtree(folder)
    (folder / "logs").mkdir(parents=True)
    (folder / "notes.txt").touch()
    assert call("--max_steps", "1") == 0
    (folder / "plot.png").touch()
    assert call("--max_steps", "1") == 0, "one of its own"


def test_labels_of_held_out_images_are_looked_at_before(call, tmp_path, others, capsys):
    labels = [9 if n == 2 else label for n, label in enumerate(others["label"])]
    numbered = others.remove_columns("label").add_column("label", labels)
    numbered.to_parquet(tmp_path / "numbered.parquet")
    assert call(*CALIBRATED, "--eval_dataset", str(tmp_path / "numbered.parquet")) == 2
    assert "the labels of `calibrate_split` must be from 0 to 7 in every row, found 9" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_one_that_was_trained_before_is_calibrated_by_the_same_command(call, tmp_path, held_out, caplog):
    """And without the flag it is as it was."""
    split = ["--eval_dataset", held_out, "--eval_split", "train[4:]"]
    out = tmp_path / "out"
    assert call(*split) == 0
    shutil.copytree(out, tmp_path / "plain")  # a file that is written again in place changes what was loaded of it
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    assert call(*split, "--calibrate_split", "train[:4]") == 0
    assert f"Resuming from {out}/checkpoint-{2 * STEPS}" in caplog.text
    assert read(out / "student.json")["calibration"] is not None
    assert not torch.equal(load_file(out / "model.safetensors")["fc.weight"], plain["fc.weight"])
    assert "was calibrated. Without" not in caplog.text
    assert call(*split) == 0
    assert (
        f"The student in {out} was calibrated. Without `calibrate_split` it will be as it was trained." in caplog.text
    )
    assert read(out / "student.json")["calibration"] is None
    assert torch.equal(load_file(out / "model.safetensors")["fc.weight"], plain["fc.weight"])


def test_nothing_is_written_into_what_is_read(call, tmp_path, tiny_folder, base, teacher, capsys):
    for out in (tiny_folder, tiny_folder / "student"):
        assert call("--output_dir", str(out)) == 2
        assert f"`output_dir` must not lie in a folder that is read, got {out} with" in capsys.readouterr().err
    words = ["--dataset", str(base.parent), "--teacher", teacher, "--output_dir", str(base.parent / "plus")]
    assert main(["reinforce", *words]) == 2
    assert f"`output_dir` must not lie in a folder that is read, got {base.parent / 'plus'}" in capsys.readouterr().err


def test_an_unknown_objective(call, capsys):
    assert call("--objective", "magic") == 2
    assert "invalid choice: 'magic'" in capsys.readouterr().err


def test_the_evaluation_is_of_its_revision(call, monkeypatch, tiny_dataset, base):
    asked = []

    def load(name, *rest, **settings):
        asked.append((name, settings["split"], settings["revision"]))
        return load_base(name, *rest, **{**settings, "revision": None})

    monkeypatch.setattr("hf_dr.cli.train.load_base", load)
    assert call("--eval_revision", "abc", "--max_steps", "1") == 0
    assert asked == [(str(base), "train", "abc")]


def test_classes_of_evaluation_in_another_order(call, tmp_path, tiny_dataset, capsys):
    names = tiny_dataset.features["label"].names
    features = tiny_dataset.features.copy()
    features["label"] = datasets.ClassLabel(names=[*names[1:], names[0]])
    tiny_dataset.cast(features).to_parquet(tmp_path / "turned.parquet")
    assert call("--eval_dataset", str(tmp_path / "turned.parquet")) == 2
    assert "but class 0 is 'blue' there and 'black' in the" in capsys.readouterr().err


def test_without_labels_only_the_teacher_is_left(call, tmp_path, tiny_dataset, tiny_teacher, capsys):
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=2, top_k=2, label_column="none")
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(SIZE)]), config)
    assert call("--objective", "erm", dataset=tmp_path / "plus") == 2
    assert "`objective` must be reinforced for a dataset without labels, got erm" in capsys.readouterr().err
    assert call("--reinforced_probability", "1", "--max_steps", "1", dataset=tmp_path / "plus") == 0


def test_a_teacher_of_more_classes(call, tmp_path, tiny_plus, capsys):
    torch.manual_seed(1)
    weights = timm.create_model("test_resnet", num_classes=10).state_dict()
    save_file(weights, tmp_path / "t.safetensors")
    ids = [9, 3, 5, 7, 0, 1, 2, 4]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    kd = ["--objective", "kd", "--max_steps", "1"]
    teacher = ["--teacher", f"timm:test_resnet@{tmp_path / 't.safetensors'}"]
    assert call(*kd, *teacher) == 2
    assert "over the dataset's 8 classes, but it has 10. Name another teacher, or pass `classes` (--teacher_cl" in (
        capsys.readouterr().err
    )
    assert call(*kd, *teacher, "--teacher_classes", str(tmp_path / "ids.json"), out="subset") == 0
    # As a teacher with just these classes teaches.
    weights |= {name: weights[name][ids] for name in ("fc.weight", "fc.bias")}
    save_file(weights, tmp_path / "own.safetensors")
    assert call(*kd, "--teacher", f"timm:test_resnet@{tmp_path / 'own.safetensors'}", out="own") == 0
    subset, own = (load_file(tmp_path / out / "model.safetensors") for out in ("subset", "own"))
    for name, tensor in own.items():
        torch.testing.assert_close(subset[name], tensor)

    turned = [*ids[1:], ids[0]]
    (tmp_path / "ids.json").write_text(json.dumps(turned))
    assert call(*kd, *teacher, "--teacher_classes", str(tmp_path / "ids.json"), out="turned") == 0
    assert not torch.allclose(load_file(tmp_path / "turned" / "model.safetensors")["fc.bias"], own["fc.bias"])
    assert call(*kd, *teacher, "--teacher_classes", str(tmp_path / "ids.json"), "--max_steps", "2", out="subset") == 2
    assert "differs in online_teacher: timm:test_resnet@t.safetensors (" in capsys.readouterr().err


def test_a_teacher_by_the_names_of_its_classes(call, tmp_path, tiny_plus, capsys):
    names = [*tiny_plus.class_names[::-1], "grey"]
    tiny = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: c for c, name in enumerate(names)}}
    vit = ViTConfig(image_size=SIZE, patch_size=8, **labels, **tiny)
    AutoModelForImageClassification.from_config(vit).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "vit")
    kd = ["--objective", "kd", "--max_steps", "1", "--teacher", str(tmp_path / "vit")]
    assert call(*kd, "--teacher_classes", "by_name") == 0
    (tmp_path / "ids.json").write_text("[0, 1, 2, 3, 4, 5, 6, 7]")
    assert call(*kd, "--teacher_classes", str(tmp_path / "ids.json")) == 2
    assert "the teacher's classes must be in the dataset's order, but class 0 is 'black'" in capsys.readouterr().err


def test_a_teacher_of_other_classes(call, tmp_path, capsys):
    save_file(timm.create_model("test_resnet", num_classes=5).state_dict(), tmp_path / "t.safetensors")
    assert call("--objective", "kd", "--teacher", f"timm:test_resnet@{tmp_path / 't.safetensors'}") == 2
    assert "the teacher must answer over the dataset's 8 classes, but it has 5" in capsys.readouterr().err


@pytest.fixture(scope="module")
def crops(tmp_path_factory, tiny_dataset, tiny_teacher) -> Path:
    """A "+" dataset of the same base as `tiny_folder`, without mixing."""
    folder = tmp_path_factory.mktemp("crops") / "crops-plus"
    config = ReinforceConfig(str(folder), "rrc", num_views=2, top_k=2, shard_size=5)
    reinforce(tiny_dataset, tiny_teacher, Augmentation([RandomResizedCrop(SIZE)]), config)
    return folder


def test_a_stream(call, tmp_path, crops, tiny_folder, capsys):
    assert call("--streaming", "--dataloader_num_workers", "1", dataset=crops) == 0
    (stretch,) = read(tmp_path / "out" / "checkpoint-6" / "stream_progress.json")["stretches"]
    assert (stretch["world_size"], stretch["num_workers"]) == (1, 1)
    assert call("--streaming", "--objective", "erm", dataset=crops, out="erm") == 0
    assert call("--streaming", dataset=tiny_folder, out="other") == 2
    assert "error: a streamed view must find its partner in its own shard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("signal", "rule"), [("topk", "uniform"), ("topk_image_tail", "image"), ("sampled", "renormalize")]
)
def test_every_signal_from_its_making_to_a_student(call, base, teacher, tmp_path, capsys, signal, rule):
    flags = {
        "--dataset": base, "--teacher": teacher, "--augmentation": "rrc", "--size": SIZE, "--num_views": 2, "--top_k": 2,
        "--output_dir": tmp_path / "plus", "--signal": signal,
    }  # fmt: skip
    command = ["reinforce", *(str(part) for flag in flags.items() for part in flag)]
    assert main([*command, "--dry_run"]) == 0
    assert main(command) == 0
    assert main(["verify", str(tmp_path / "plus"), "--teacher", teacher]) == 0
    assert main(["inspect", str(tmp_path / "plus"), "--save"]) == 0
    told = (tmp_path / "plus" / "README.md").read_text()
    assert (f"| Signal | `{signal}` |" in told) == (signal != "topk")
    assert ("| images' tails |" in told) == (signal == "topk_image_tail")
    assert call(dataset=tmp_path / "plus") == 0
    assert read(tmp_path / "out" / "checkpoint-6" / "reinforced_training.json")["tail"] == rule
    assert call("--tail", "bucket", dataset=tmp_path / "plus", out="other") == (2 if signal == "sampled" else 0)
    if signal == "sampled":
        assert "error: `tail` must be one of renormalize, zero for the signal `sampled`" in capsys.readouterr().err


def test_several_datasets_at_once(call, tmp_path, crops, tiny_folder, tiny_plus):
    assert call("--dataset", str(tiny_folder), str(crops), "--name", "all_ops", "rrc") == 0
    kept = read(tmp_path / "out" / "checkpoint-6" / "reinforced_training.json")
    assert kept["num_views"] == 6
    assert kept["dataset_fingerprint"].startswith(f"{tiny_plus.provenance.fingerprint} ")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "tiny-plus + crops-plus" in card.text
    assert "all_ops + rrc" in card.text
    assert str(tmp_path) not in card.content


def test_the_card_names_the_commit_of_a_dataset_from_the_hub(loopback_hub, call, tmp_path, tiny_folder):
    push = push_to_hub(tiny_folder, "me/tiny-plus")
    assert call("--num_train_epochs", "1", dataset="me/tiny-plus") == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert f"`me/tiny-plus` at `{push.commit}`" in card.text
    assert card.data.datasets == ["me/tiny-plus"]


@pytest.mark.parametrize("objective", ["erm", "kd"])
def test_a_base_dataset_needs_no_reinforcement(call, tmp_path, base, teacher, objective):
    more = ["--teacher", teacher] if objective == "kd" else []
    flags = ["--objective", objective, "--augmentation", "rrc", "--size", str(SIZE), "--split", "train", *more]
    flags += ["--mixup_alpha", "0.2", "--cutmix_alpha", "1"]
    assert call(*flags, dataset=base) == 0
    out = tmp_path / "out"
    assert read(out / "train_results.json")["epoch"] == 2
    assert read(out / "eval_results.json")["eval_top1"] >= 0
    card = ModelCard.load(out / "README.md")
    assert ("of the dataset `base.parquet`" in card.text, "of each, were labelled" in card.text) == (True, False)
    assert "dataset-reinforcement" not in card.data.tags
    shutil.rmtree(out / f"checkpoint-{2 * STEPS}")  # it goes on from the checkpoint before, but not on other views
    (out / "train_results.json").unlink()
    assert call(*flags, "--label_column", "label", dataset=base) == 0
    assert (out / "train_results.json").is_file()


def test_views_of_other_data_or_size_do_not_resume_plain_training(call, base, tiny_folder, capsys):
    flags = ["--objective", "erm", "--augmentation", "rrc", "--size", str(SIZE)]
    assert call(*flags, dataset=base) == 0
    for more, message in (
        (
            ["--augmentation", "randaug"],
            "differs in dataset_fingerprint .of the images, their labels, their size and their au",
        ),
        (
            ["--size", "16"],
            "differs in dataset_fingerprint .of the images, their labels, their size and their augmentation.: ",
        ),
        (["--augmentation", "mixing"], "must not mix images"),
        (["--label_column", "none"], "`objective` erm needs labels, got `label_column` none. Name"),
        (["--objective", "reinforced"], "`augmentation` must come with `objective` erm or kd, got reinforced"),
        (["--streaming"], "`streaming` is for a .+ dataset, which is read without `augmentation`, got True"),
        (["--name", "a", "b"], "`dataset` must be one base dataset with `augmentation`, got .*base.parquet, a, b"),
    ):
        capsys.readouterr()
        assert call(*flags, *more, dataset=base) == 2
        assert re.search(message, capsys.readouterr().err), message
    for more, message in (
        (["--split", "train"], "`split` is for a base dataset, which is read with `augmentation`, got 'train'"),
        (["--size", "0"], "`size` must be a whole number of at least 1, got 0. Raise `size`."),
        (["--size", "32"], "`size` must be that of the stored views, 24x24, got 32"),
    ):
        assert call(*more, dataset=tiny_folder) == 2
        assert message in capsys.readouterr().err


def test_the_card_of_plain_training_names_the_revision_of_its_dataset():
    student = SimpleNamespace(dataset=["org/photos"], plain=True, revision="v1", student="org/net", name=None)
    assert _card_settings(student) == {
        "dataset": "org/photos", "dataset_tags": ["org/photos"], "dataset_revision": "v1", "finetuned_from": "org/net"
    }  # fmt: skip
