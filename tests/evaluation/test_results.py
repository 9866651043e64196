"""Results pages: numbers against those in the runs' own files, what may stand together, what is listed with a reason."""

import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import timm
import torch
from safetensors.torch import save_file

from hf_dr.cli.main import main
from hf_dr.errors import DataError
from hf_dr.evaluation.gathering import (
    WHILE_TRAINING,
    find_results,
    read_evaluation,
    read_trained,
    read_training,
    read_transferred,
)
from hf_dr.evaluation.pages import _times, figures, to_dict, to_html, to_markdown
from hf_dr.evaluation.results import gather
from hf_dr.evaluation.tables import cell, gains

ROOT = Path(__file__).parents[2]
RUNS = ("erm-0", "erm-1", "reinforced-0", "reinforced-1", "kd-0")


@pytest.fixture(scope="session")
def _trained(tmp_path_factory, tiny_folder, tiny_dataset) -> Path:
    folder = tmp_path_factory.mktemp("results")
    tiny_dataset.to_parquet(folder / "base.parquet")
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet", num_classes=8).state_dict(), folder / "t.safetensors")
    for name in RUNS:
        objective, seed = name.split("-")
        flags = {
            "--dataset": tiny_folder, "--student": "timm:test_resnet", "--output_dir": folder / "runs" / name,
            "--objective": objective, "--seed": seed, "--eval_dataset": folder / "base.parquet", "--eval_split": "train",
            "--num_train_epochs": 2, "--eval_strategy": "epoch", "--save_strategy": "no", "--report_to": "none",
            "--per_device_train_batch_size": 4, "--optim": "sgd", "--learning_rate": 0.05, "--disable_tqdm": True,
        }  # fmt: skip
        more = ["--teacher", f"timm:test_resnet@{folder / 't.safetensors'}"] if objective == "kd" else []
        assert main(["train", *(str(part) for flag in flags.items() for part in flag), *more]) == 0
    models = [f"{name}={folder / 'runs' / name}" for name in RUNS[:3]]
    evaluate = ["evaluate", "--models", *models, f"other=timm:test_resnet@{folder / 't.safetensors'}"]
    sets = ["--sets", f"test={folder / 'base.parquet'}:train", "--corrupt", "test"]
    grid = [
        "--corruptions",
        "fog",
        "snow",
        "--severities",
        "1",
        "5",
        "--size",
        "24",
        "--output_dir",
        str(folder / "evaluated"),
    ]
    assert main([*evaluate, *sets, *grid]) == 0
    (folder / "runs").rename(folder / "kept")
    return folder


@pytest.fixture
def trained(_trained, tmp_path) -> Path:
    """Runs and their evaluation, to be changed at will; they have moved since they were evaluated."""
    shutil.copytree(_trained / "kept", tmp_path / "all" / "evaluated")
    shutil.copy(_trained / "evaluated" / "evaluation.json", tmp_path / "all" / "evaluated")
    return tmp_path / "all"


def of(folder: Path, name: str, key: str, file: str = "all_results.json") -> float:
    return json.loads((folder / "evaluated" / name / file).read_text())[key]


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def seconds_of(folder: Path, name: str) -> float:
    """Of training: what the Trainer measured, less its evaluations after each of the two epochs."""
    history = json.loads((folder / "evaluated" / name / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "eval_runtime" in entry] == [3, 6, 6]  # the last one after training
    evaluations = [entry["eval_runtime"] for entry in history if "eval_runtime" in entry]
    return of(folder, name, "train_runtime") - sum(evaluations[:2])


@pytest.mark.parametrize(
    ("history", "seconds"),
    [
        ([{"eval_runtime": 2.5, "step": 100}, {"eval_runtime": 3.0, "step": 200}], 14.5),
        ([{"eval_a_runtime": 1.0, "step": 200}, {"eval_b_runtime": 2.0, "step": 200}], 17.0),
        ([{"loss": 1.0, "step": 100}], 20.0),
        ([{"eval_runtime": 2.5, "step": 0}], 17.5),
        # Made longer, from a checkpoint that was saved after its training.
        ([{"train_runtime": 9.0, "step": 100}, {"eval_runtime": 3.0, "step": 150}], 17.0),
    ],
)
def test_training_seconds_are_without_the_evaluations_on_the_way(tmp_path, history, seconds):
    (tmp_path / "all_results.json").write_text(json.dumps({"train_runtime": 20.0}))
    after = [{"train_runtime": 20.0, "step": 200}, {"eval_runtime": 7.0, "step": 200}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 200, "log_history": history + after}))
    assert read_training(tmp_path, "erm", 0).seconds == seconds


def test_cells_and_gains():
    values = pd.DataFrame(
        [("erm", "0", 0.25), ("erm", "1", 0.5), ("kd", "1", 0.625), ("reinforced", "2", 1.0)],
        columns=["objective", "seed", "value"],
    )
    assert gains(values, "kd").tolist() == [0.125]  # of the seed that both have
    assert gains(values, "reinforced").tolist() == [0.625]  # of the means: 1 - 0.375
    assert gains(values[values.objective != "erm"], "kd").tolist() == []
    assert cell(values.value[:2], 2, 100) == "37.50 ± 17.68 (2)"
    assert cell(values.value[:1], 1, 100, sign=True) == "+25.0"


def test_each_number_is_that_of_the_runs_files(trained):
    results = gather([trained])
    assert not results.left_out
    (row,) = to_dict(results, "all")["accuracy"]
    assert (row["epochs"], row["data"], row["evaluated_on"]) == (2, "tiny-plus/all_ops", "base.parquet:train")
    top1 = {name: of(trained, name, "eval_top1") for name in RUNS}
    for objective in ("erm", "reinforced"):
        pair = [top1[f"{objective}-{seed}"] for seed in (0, 1)]
        assert row[objective] == {"mean": np.mean(pair), "std": pytest.approx(np.std(pair, ddof=1)), "seeds": 2}
    gains = [top1[f"reinforced-{seed}"] - top1[f"erm-{seed}"] for seed in (0, 1)]
    assert row["gains"]["reinforced"]["mean"] == pytest.approx(np.mean(gains))
    assert row["gains"]["kd"] == {"mean": top1["kd-0"] - top1["erm-0"], "seeds": 1}

    page, cell = to_markdown(results, "all"), 100 * top1["kd-0"]
    assert f"| {cell:.2f} |" in page
    assert f"{100 * np.mean(gains):+.2f} ± {100 * np.std(gains, ddof=1):.2f} (2)" in page
    seconds = [[seconds_of(trained, f"{name}-{seed}") for seed in (0, 1)] for name in ("erm", "reinforced")]
    assert f"| {np.mean(seconds[1]) / np.mean(seconds[0]):.2f} |\n" in page
    assert f"| {seconds_of(trained, 'kd-0'):.1f} |" in page
    ece = [100 * of(trained, f"erm-{seed}", "eval_ece") for seed in (0, 1)]
    calibration = page.split("## Calibration")[1].split("##")[0]
    # The set of the evaluations on the way was evaluated afterwards, too: its numbers are shown once.
    assert calibration.count(f"| {np.mean(ece):.2f} ± {np.std(ece, ddof=1):.2f} (2) |") == 1


def test_evaluations_find_their_runs_and_other_checkpoints_stand_by_themselves(trained):
    results = gather([trained])
    evaluation = json.loads((trained / "evaluated" / "evaluation.json").read_text())
    found = {(r["model"], r["corrupted"]): r for r in evaluation["results"]}
    page = to_markdown(results, "all")
    mce = [100 * found[f"erm-{seed}", True]["mce"] for seed in (0, 1)]
    assert f"{np.mean(mce):.2f} ± {np.std(mce, ddof=1):.2f} (2) |" in page
    other, (name,) = found["other", True], results.others
    assert name.startswith("other = timm:test_resnet@")
    assert f"| {name} |  |  |  | {100 * found['other', False]['top1']:.2f} | {100 * other['mce']:.2f} |" in page
    errors = [f"{100 * other['errors'][kind]:.2f}" for kind in ("fog", "snow")]
    assert f"| {name} |  |  |  | {errors[0]} | {errors[1]} |" in page
    (plus,) = results.of(results.settings[0], "reinforced")[:1]
    assert plus.evaluations["test"]["nll"] == found["reinforced-0", False]["nll"]
    assert plus.evaluations[WHILE_TRAINING]["nll"] == pytest.approx(of(trained, "reinforced-0", "eval_nll"))
    (kd,) = results.of(results.settings[0], "kd")
    assert kd.evaluations.keys() == {WHILE_TRAINING}


@pytest.mark.parametrize(
    "place",
    [
        "ROOT/elsewhere/erm-0",  # it is there, and none of the runs
        "ROOT/all/evaluated/erm-1/checkpoint-2",
        "/gone/erm-1",
        "/gone/erm-0/checkpoint-2",
        "microsoft/resnet-50",
    ],
)
def test_an_evaluation_is_not_that_of_a_run_that_is_only_called_like_the_model(trained, tmp_path, place):
    place = place.replace("ROOT", str(tmp_path))
    shutil.copytree(trained / "evaluated" / "erm-0", tmp_path / "elsewhere" / "erm-0")
    (trained / "evaluated" / "erm-1" / "checkpoint-2").mkdir()

    def change(content):
        models = content["settings"]["models"]
        content["settings"]["models"] = [f"erm-0={place}", *models[1:]]

    edit(trained / "evaluated" / "evaluation.json", change)
    results = gather([trained])
    (run,) = (run for run in results.runs if run.folder.name == "erm-0")
    assert run.evaluations.keys() == {WHILE_TRAINING}
    assert f"erm-0 = {place}" in results.others


def project(folder: Path, trained: Path, name: str) -> None:
    """Makes a folder with the run `name`, called `student`, and its evaluation, in which it is named from that folder."""
    shutil.copytree(trained / "evaluated" / name, folder / "student")
    (folder / "evaluation").mkdir()
    content = json.loads((trained / "evaluated" / "evaluation.json").read_text())
    content["settings"]["models"] = ["student"]
    content["models"] = {"student": content["models"][name]}
    content["results"] = [{**found, "model": "student"} for found in content["results"] if found["model"] == name]
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(content))


@pytest.mark.parametrize("unknown", [False, True])
@pytest.mark.parametrize("here", ["erm-0", "reinforced-0", ""])
def test_a_name_is_that_of_the_folder_in_which_it_was_given(trained, tmp_path, monkeypatch, here, unknown):
    for name in ("erm-0", "reinforced-0"):
        project(tmp_path / "projects" / name, trained, name)
        if unknown:  # which weights were evaluated, because the model was given loaded
            edit(
                tmp_path / "projects" / name / "evaluation" / "evaluation.json",
                lambda content: content["models"]["student"].update(weights_of_files=None),
            )
    monkeypatch.chdir(tmp_path / "projects" / here)
    results = gather([tmp_path / "projects"])
    assert (results.others, results.left_out) == ({}, {})
    for run in results.runs:
        (found,) = (
            found["nll"]
            for found in json.loads((run.folder.parent / "evaluation" / "evaluation.json").read_text())["results"]
            if not found["corrupted"]
        )
        assert run.evaluations["test"]["nll"] == found


def test_weights_that_changed_since_are_not_those_that_were_evaluated(trained, tmp_path):
    project(tmp_path / "project", trained, "erm-0")
    weights = tmp_path / "project" / "student" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    results = gather([tmp_path / "project"])
    (run,) = results.runs
    assert run.evaluations.keys() == {WHILE_TRAINING}
    reasons = {where.rpartition(": ")[2]: reason for where, reason in results.left_out.items()}
    assert reasons.keys() == {"student on test", "student on test, corrupted"}
    for reason in reasons.values():
        assert reason.startswith("the weights in its folder are not those that were evaluated: it was trained or")
    weights.unlink()  # to save space
    (run,) = gather([tmp_path / "project"]).runs
    assert "test" in run.evaluations


def test_the_command_writes_three_files_and_the_page_needs_no_other(trained, tmp_path, capsys):
    arguments = ["report", str(trained), "--output_dir", str(tmp_path / "report"), "--title", "a <title>"]
    assert main(arguments) == 0
    assert "| erm | kd | reinforced | gain of kd | gain of reinforced |" in capsys.readouterr().out
    page = (tmp_path / "report" / "results.html").read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "a &lt;title&gt;" in page
    assert "src=" not in page.replace('src="data:', "")
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"results.md", "results.json", "results.html"}
    content = json.loads((tmp_path / "report" / "results.json").read_text())
    curve = next(run["accuracy"] for run in content["runs"] if run["objective"] == "kd")
    assert [time for time, _ in curve] == pytest.approx([t * seconds_of(trained, "kd-0") for t in (0.5, 1)])


def test_the_script_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "recipes" / "report.py"), run_name="__main__")
    assert "usage: python recipes/report.py" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda run: (run / "all_results.json").unlink(), "must hold a finished training, but No such file"),
        (lambda run: (run / "student.json").unlink(), "must hold the student.json of `hf-dr train`, found none"),
        (
            lambda run: (run / "trainer_state.json").write_text("{"),
            "must hold what `hf-dr train` writes, but: JSONDecodeError.*Train it again",
        ),
        (
            lambda run: (run / "trainer_state.json").write_text("{}"),
            "must hold what `hf-dr train` writes, but: KeyError: 'global_step'",
        ),
        (
            lambda run: edit(run / "student.json", lambda s: s["settings"].pop("seed")),
            "must hold objective, seed and epochs",
        ),
        (lambda run: edit(run / "student.json", lambda s: s.pop("model")), "student.json must have the field `model`"),
        (
            lambda run: edit(run / "student.json", lambda s: s["settings"].update(learning_rate="9")),
            "differs in learning_rate",
        ),
        (
            lambda run: edit(run / "student.json", lambda s: s["settings"].update(seed="0")),
            "it repeats seed 0 of .*erm-0",
        ),
    ],
)
def test_a_run_that_cannot_stand_in_a_table_is_listed_with_the_reason(trained, damage, reason):
    damage(trained / "evaluated" / "erm-1")
    results = gather([trained])
    (place,) = results.left_out
    assert place.endswith("erm-1")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(results.left_out[place])
    page = to_markdown(results, "all")
    assert f"- {place}: " in page
    assert f"<td>{place}</td>" in to_html(results, "all")
    (row,) = to_dict(results, "all")["accuracy"]
    assert row["erm"]["seeds"] == 1


def test_an_unfinished_training_is_told_by_its_checkpoints(trained):
    (trained / "stopped" / "checkpoint-3").mkdir(parents=True)
    (trained / "stopped" / "checkpoint-3" / "trainer_state.json").write_text("{}")
    (trained / "nothing").mkdir()
    left_out = gather([trained]).left_out
    assert {Path(place).name: reason[:35] for place, reason in left_out.items()} == {
        "stopped": "must hold a finished training, but ", "nothing": "it holds no training and no evaluat",
    }  # fmt: skip


def test_runs_of_another_length_or_dataset_stand_in_rows_of_their_own(trained):
    edit(trained / "evaluated" / "erm-1" / "all_results.json", lambda r: r.update(epoch=4.0))
    edit(trained / "evaluated" / "reinforced-1" / "student.json", lambda s: s["dataset"].update(fingerprint="f"))
    results = gather([trained])
    assert sorted(setting.epochs for setting in results.settings) == [2, 2, 4]
    assert len(figures(results)) == 2
    longer = next(setting for setting in results.settings if setting.epochs == 4)
    (row,) = (row for row in to_dict(results, "all")["accuracy"] if row["epochs"] == 4)
    assert row["gains"]["reinforced"] is None
    assert len(results.of(longer, "erm")) == 1


def test_a_run_evaluated_once_is_seen_in_the_plot(trained):
    folder = trained / "evaluated" / "erm-1"
    state = json.loads((folder / "trainer_state.json").read_text())
    last = [entry for entry in state["log_history"] if "eval_top1" in entry][-1]
    edit(folder / "trainer_state.json", lambda s: s.update(log_history=[last]))
    edit(folder / "all_results.json", lambda r: r.update(epoch=4.0))  # a row of its own, not a mean with the others
    lines = [
        line for figure in figures(gather([trained])) for line in figure.axes[0].lines if line.get_linewidth() == 2
    ]
    assert {line.get_marker() for line in lines if len(line.get_xdata()) == 1} == {"o"}
    assert {line.get_marker() for line in lines if len(line.get_xdata()) > 1} == {"None"}


def test_runs_on_the_base_stand_next_to_those_on_its_plus_dataset(trained):
    expected = to_dict(gather([trained]), "all")["accuracy"]
    base = {"id": "base", "config": None, "revision": None, "fingerprint": "b", "reinforced": False}
    for name in ("erm-0", "erm-1"):
        edit(trained / "evaluated" / name / "student.json", lambda s: s["dataset"].update(base))
    results = gather([trained])
    assert to_dict(results, "all")["accuracy"] == expected
    assert len(figures(results)) == 1
    edit(trained / "evaluated" / "erm-1" / "student.json", lambda s: s["settings"].update(num_rows=11))
    results = gather([trained])  # of another base
    assert [(s.data, s.num_rows) for s in results.settings] == [("base", 11), ("tiny-plus/all_ops", 12)]
    shutil.copytree(trained / "evaluated" / "reinforced-0", trained / "more")
    edit(trained / "more" / "student.json", lambda s: s["settings"].update(reinforced_probability=0.0, num_rows=11))
    results = gather([trained])
    assert [[len(results.of(setting, "erm")) for setting in results.settings]] == [[1, 1, 1]]


def test_plain_runs_are_lent_to_the_plus_dataset_of_their_images_alone(trained):
    """Whatever each seed has drawn, they are one setting; with other settings they are none."""
    base = {"id": "base", "config": None, "revision": None, "fingerprint": "b", "reinforced": False}

    def told(name, **changes):
        edit(trained / "evaluated" / name / "student.json", lambda s: s["dataset"].update(changes))

    for name in RUNS:
        plain = base if name.startswith("erm") else {}
        told(name, **plain, images="one")
        if plain:
            drawn = f"with seed {name[-1]}"
            note = trained / "evaluated" / name / "student.json"
            edit(note, lambda s, drawn=drawn: s["settings"].update(dataset_fingerprint=drawn))
    results = gather([trained])
    assert not results.left_out
    assert [[len(results.of(setting, "erm")) for setting in results.settings]] == [[2]]

    told("erm-1", images="others")
    results = gather([trained])
    assert [len(results.of(setting, "erm")) for setting in results.settings if setting.reinforced] == [1]

    told("erm-1", images="one", fingerprint="of another augmentation")
    (reason,) = gather([trained]).left_out.values()
    assert "it differs in augmentation from " in reason
    assert 'which stands in the row of the "+" dataset of its images' in reason
    edit(trained / "evaluated" / "erm-1" / "student.json", lambda s: s["settings"].update(weight_decay=0.5))
    (reason,) = gather([trained]).left_out.values()
    assert "it differs in weight_decay, augmentation from" in reason
    for name in ("reinforced-0", "reinforced-1", "kd-0"):
        shutil.rmtree(trained / "evaluated" / name)
    results = gather([trained])
    assert [name for name in results.left_out if "erm" in name] == [], "they are rows of their own"
    assert len(results.settings) == 2


def test_a_link_that_leads_back_is_passed_over(trained):
    expected = [str(run.folder) for run in gather([trained]).finished]
    (trained / "again").symlink_to(trained, target_is_directory=True)
    assert [str(run.folder) for run in gather([trained]).finished] == expected


def test_gains_without_a_common_seed_are_those_of_the_means(trained):
    for name, seed in (("erm-0", "7"), ("erm-1", "8")):
        edit(trained / "evaluated" / name / "student.json", lambda s, seed=seed: s["settings"].update(seed=seed))
    results = gather([trained])
    top1 = {name: of(trained, name, "eval_top1") for name in RUNS}
    expected = (top1["reinforced-0"] + top1["reinforced-1"] - top1["erm-0"] - top1["erm-1"]) / 2
    (row,) = to_dict(results, "all")["accuracy"]
    assert row["gains"]["reinforced"] == {"mean": pytest.approx(expected), "seeds": 1}


def test_a_calibrated_student_stands_in_a_row_of_its_own(trained):
    of = {"id": "photos", "config": None, "split": "validation"}
    at = {"temperature": 1.1, "num_held_out": 4, "of": of}
    edit(trained / "evaluated" / "reinforced-1" / "student.json", lambda s: s.update(calibration=at))
    results = gather([trained])
    assert not results.left_out
    named = [setting.model for setting in results.settings]
    assert named[1] == f"{named[0]}, calibrated by photos:validation"
    assert [run.folder.name for run in results.of(results.settings[1], "reinforced")] == ["reinforced-1"]


def test_sets_of_one_name_are_told_apart_and_contradictions_listed(trained):
    there = trained / "evaluated" / "evaluation.json"
    edit(there, lambda e: e["settings"].update(models=[f"{name}={trained / 'evaluated' / name}" for name in RUNS[:3]]))
    for name, change in (
        ("f_elsewhere", lambda e: e["sets"]["test"].update(dataset="far/away")),
        ("g_fewer", lambda e: (e["sets"]["test"].update(dataset="far/away"), e["settings"].update(max_examples=3))),
        ("h_contradicting", lambda e: e["results"][0].update(top1=0.123)),
        ("i_damaged", lambda e: e["results"][0].update(top1="high")),
    ):
        (trained / name).mkdir()
        shutil.copy(there, trained / name / "evaluation.json")
        edit(trained / name / "evaluation.json", change)
    results = gather([trained])
    (erm, _) = results.of(results.settings[0], "erm")
    assert erm.evaluations["test (away:train)"] == erm.evaluations["test"]
    assert "test (away:train), corrupted" in erm.evaluations
    reasons = {place.removeprefix(f"{trained}/"): reason for place, reason in results.left_out.items()}
    again = "`test (away:train)` was evaluated in another way before. Report one of them at a time."
    assert reasons.pop("g_fewer/evaluation.json: erm-0 on test") == again
    assert "it was evaluated before, with other results" in reasons.pop(
        "h_contradicting/evaluation.json: erm-0 on test"
    )
    assert "TypeError: the metrics of erm-0 are no numbers. Evaluate again" in reasons.pop("i_damaged/evaluation.json")
    assert all(place.startswith("g_fewer") for place in reasons)


def test_corrupted_images_stand_under_the_name_of_their_own_set(trained):
    """Those of a slice, where another evaluation has measured the whole split and corrupted nothing."""
    there = trained / "evaluated" / "evaluation.json"
    edit(there, lambda e: e["settings"].update(models=[f"{name}={trained / 'evaluated' / name}" for name in RUNS[:3]]))
    (trained / "f_slice").mkdir()
    shutil.copy(there, trained / "f_slice" / "evaluation.json")
    edit(
        trained / "f_slice" / "evaluation.json",
        lambda e: e["sets"]["test"].update(dataset="far/away", split="test[:9]"),
    )
    edit(there, lambda e: e.update(results=[r for r in e["results"] if not r["corrupted"]]))
    (erm, _) = (results := gather([trained])).of(results.settings[0], "erm")
    own = "test (away:test[:9])"
    assert [*erm.evaluations] == ["while training", "test", own, f"{own}, corrupted"]


@pytest.fixture(scope="session")
def segmenter(_trained, tmp_path_factory) -> Path:
    """A segmenter on the student of `erm` and seed 0."""
    folder, rng = tmp_path_factory.mktemp("transferred"), np.random.default_rng(0)
    for name, channels in (("images", (3,)), ("masks", ())):
        (folder / name).mkdir()
        for n in range(2):
            pixels = rng.integers(2, size=(32, 32, *channels), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(folder / name / f"{n}.png")
    flags = {
        "--images": folder / "images", "--masks": folder / "masks", "--eval_images": folder / "images",
        "--eval_masks": folder / "masks", "--student": _trained / "kept" / "erm-0", "--output_dir": folder / "out",
        "--crop_size": 32, "--head_channels": 8, "--max_steps": 1, "--per_device_train_batch_size": 2, "--save_steps": 1,
        "--report_to": "none", "--disable_tqdm": True, "--seed": 0,
    }  # fmt: skip
    assert main(["segment", *(str(part) for flag in flags.items() for part in flag), "--class_names", "a", "b"]) == 0
    return folder / "out"


IOUS = {"erm-0": 0.25, "erm-1": 0.5, "reinforced-0": 0.5, "reinforced-1": 0.625, "kd-0": 0.75}


@pytest.fixture
def transferred(segmenter, trained, tmp_path) -> Path:
    """Detectors and segmenters on each student: that one, with the others' identities and made-up metrics."""
    for name, value in IOUS.items():
        for task, metrics in (
            ("image-segmentation", {"mean_iou": value, "iou_a": 0.1}),
            ("object-detection", {"box_map": value / 2, "mask_map": value / 4}),
        ):
            folder = tmp_path / "transfers" / f"{task}-{name}"
            shutil.copytree(segmenter, folder, ignore=shutil.ignore_patterns("checkpoint-*"))
            student = json.loads((trained / "evaluated" / name / "student.json").read_text())

            def change(content, name=name, task=task, metrics=metrics, student=student):
                content["student"].update(objective=name.split("-")[0], settings=student["settings"], id=name)
                content.update(task=task, **({"metrics": metrics} if "metrics" in content else {}))

            edit(folder / "transfer_results.json", change)
            edit(folder / "transfer.json", change)
    return tmp_path / "transfers"


def test_a_student_trained_for_so_many_steps_has_their_epochs(transferred):
    for path in transferred.glob("*/transfer_results.json"):
        # With `view_order` its settings tell the epochs over which views are spread, too, which is a whole number.
        edit(path, lambda c: c["student"]["settings"].update(training_steps="3", train_batch_size="6", num_epochs=2))
        edit(path, lambda c: c["student"]["settings"].pop("total_train_batch_size", None))
    assert {row["epochs"] for row in to_dict(gather([transferred]), "all")["transfer"]} == {1.5}


def test_transfers_stand_by_their_students_and_objectives(transferred, trained):
    results = gather([transferred, trained])
    assert not results.left_out
    assert len(results.runs) == len(RUNS)
    rows = {row["metric"]: row for row in to_dict(results, "all")["transfer"]}
    assert rows.keys() == {"box_map", "mask_map", "mean_iou"}
    for metric, share in (("mean_iou", 1), ("box_map", 0.5), ("mask_map", 0.25)):
        row = rows[metric]
        assert (row["model"], row["epochs"], row["data"]) == ("test_resnet", 2, "tiny-plus/all_ops")
        assert row["erm"] == {
            "mean": 0.375 * share,
            "std": pytest.approx(np.std([0.25, 0.5], ddof=1) * share),
            "seeds": 2,
        }
        assert row["gains"]["reinforced"]["mean"] == 0.1875 * share
        assert row["gains"]["reinforced"]["seeds"] == 2
        assert row["gains"]["kd"] == {"mean": 0.5 * share, "seeds": 1}
    page = to_markdown(results, "all")
    assert (
        "| student | data | epochs | transferred to | metric | erm | kd | reinforced | gain of kd | gain of reinf"
        in page
    )
    row = "| test_resnet | tiny-plus/all_ops | 2 | image-segmentation on images, 1 epochs | mIoU "
    cells = [r"37.50 ± 17.68 \(2\)", "75.00", r"56.25 ± 8.84 \(2\)", r"\+50.00", r"\+18.75 ± 8.84 \(2\)"]
    assert re.search(re.escape(row).replace(r"\.\*", ".*") + "".join(rf"\| {cell} " for cell in cells), page)
    assert "<td>mask mAP</td>" in to_html(results, "all")


def test_a_segmenter_tells_all_that_its_row_needs(segmenter, trained):
    found, student = read_transferred(segmenter), read_trained(trained / "evaluated" / "erm-0")
    assert replace(found.setting, evaluated_on="") == replace(student.setting, evaluated_on="", model="test_resnet")
    assert (found.objective, found.seeds) == ("erm", (0, 0))
    assert gather([segmenter]).transfers == [found]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(lambda out: (out / "transfer_results.json").unlink(), "must hold a finished training with its transfer_results.json"),
     (lambda out: (out / "transfer.json").unlink(), "must hold a model that `hf-dr detect` or `segment` trained"),
     (lambda out: edit(out / "transfer_results.json", lambda r: r.update(metrics={})), "must have been evaluated, found none"),
     (lambda out: edit(out / "transfer_results.json", lambda r: r["student"].update(objective=None)), "tells no objective"),
     (lambda out: edit(out / "transfer_results.json", lambda r: r["student"]["settings"].pop("num_rows")),
      "of a student with its settings, but: KeyError: 'num_rows'. Train it again"),
     (lambda out: (out / "transfer_results.json").write_text("[]"), "writes, .*TypeError"),
     (lambda out: edit(out / "transfer.json", lambda d: d["segmenter"].update(dropout=0.5)), "differs in segmenter from"),
     (lambda out: edit(out / "transfer_results.json", lambda r: r["training"].update(weight_decay=0.5)),
      "differs in weight_decay from .*image-segmentation-erm-0"),
     (lambda out: edit(out / "transfer_results.json", lambda r: r["training"].update(lr_decay=0.5, warmup_steps=9)),
      "differs in lr_decay, warmup_steps from"),
     (lambda out: edit(out / "transfer_results.json", lambda r: r["student"]["settings"].update(learning_rate="9")),
      "differs in the student's learning_rate from"),
     (lambda out: edit(out / "transfer_results.json", lambda r: r["student"]["settings"].update(seed="0")),
      "it repeats seed 0 on the student of seed 0 of .*image-segmentation-erm-0")],
)  # fmt: skip
def test_a_transfer_that_cannot_stand_in_the_table_is_listed_with_the_reason(transferred, damage, reason):
    damage(transferred / "image-segmentation-erm-1")
    results = gather([transferred])
    assert list(results.left_out) == [str(transferred / "image-segmentation-erm-1")]
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(results.left_out[str(transferred / "image-segmentation-erm-1")])
    seeds = {row["metric"]: row["erm"]["seeds"] for row in to_dict(results, "all")["transfer"]}
    assert seeds == {"box_map": 2, "mask_map": 2, "mean_iou": 1}


def test_a_transfer_that_was_stopped_is_told_by_its_checkpoint(segmenter, transferred):
    shutil.copytree(segmenter / "checkpoint-1", transferred / "stopped" / "checkpoint-1")
    assert "must hold a finished training with its tra" in gather([transferred]).left_out[str(transferred / "stopped")]


def test_other_settings_for_another_objective_are_no_gain(transferred):
    for name in ("reinforced-0", "reinforced-1"):
        edit(transferred / f"image-segmentation-{name}" / "transfer.json", lambda d: d.update(augmentation={}))
    results = gather([transferred])
    assert {Path(place).name for place in results.left_out} == {f"image-segmentation-reinforced-{n}" for n in (0, 1)}
    assert all("differs in augmentation from" in reason for reason in results.left_out.values())


def test_transfers_of_students_on_the_base_stand_next_to_those_on_its_plus_dataset(transferred):
    expected = to_dict(gather([transferred]), "all")["transfer"]
    base = {"id": "base", "config": None, "revision": None, "fingerprint": "b", "reinforced": False}
    for path in transferred.glob("*-erm-*/transfer_results.json"):
        edit(path, lambda r: r["student"]["dataset"].update(base))
    assert to_dict(gather([transferred]), "all")["transfer"] == expected
    for path in transferred.glob("*-erm-*/transfer_results.json"):
        edit(path, lambda r: r["training"].update(epochs=2.0))
    rows = to_dict(gather([transferred]), "all")["transfer"]  # transferred for longer: in rows of their own
    assert [row["data"] for row in rows] == ["base"] * 3 + ["tiny-plus/all_ops"] * 3
    assert all(row["gains"]["reinforced"] is None for row in rows)


def test_what_is_no_report(tmp_path):
    with pytest.raises(
        DataError, match=r"a report must be of folders with runs, found none at .*nowhere. Check the path"
    ):
        list(find_results(tmp_path / "nowhere"))
    with pytest.raises(
        DataError, match=r"at least one finished run or evaluation, found none. Train first:\n.*holds no"
    ):
        gather([tmp_path])
    with pytest.raises(DataError, match="must hold a finished training"):
        read_trained(tmp_path)
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(DataError, match=r"must hold what `hf-dr evaluate` writes, but: AttributeError.*Evaluate again"):
        read_evaluation(tmp_path / "evaluation.json")
    assert main(["report", str(tmp_path)]) == 2


def test_times_are_compared_by_their_means():
    lines = pd.DataFrame({"objective": ["erm", "kd", "kd"], "value": [2.0, 3.0, 5.0], "metric": "seconds"})
    assert _times(lines, "kd").value.tolist() == [2.0]
