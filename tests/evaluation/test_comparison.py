"""Comparing objectives: the table, the gains, going on where it stopped."""

import contextlib
import dataclasses
import itertools
import json
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import children
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from samples import one_pixel_off
from scipy import stats

from hf_dr.cli.launch import COMMANDS
from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, DataError, FormatError
from hf_dr.evaluation import comparing
from hf_dr.evaluation.comparing import compare, is_finished, run_comparison, training_flags
from hf_dr.evaluation.comparison import Comparison, t_quantile
from hf_dr.evaluation.config import CompareConfig, as_arguments
from hf_dr.evaluation.gathering import RUN_NOTE, Run, read_run
from hf_dr.evaluation.report import Report, Result
from hf_dr.processes import process_state
from hf_dr.teacher.metrics import reliability
from hf_dr.training.trainer import ReinforcedTrainer


def made_up() -> Comparison:
    """Two objectives by two seeds, with known numbers."""
    runs, results = [], []
    diagram = reliability(np.eye(3), np.arange(3))
    for seed in (0, 1):
        for objective, top1 in (("erm", 0.5), ("reinforced", 0.6 + 0.1 * seed)):
            run = Run(objective, seed, Path("none"), 10.0 + seed, 100, [(0.5, 0.3), (1.0, top1)])
            metrics = {"top1": top1, "top5": 1.0, "nll": 2 - top1, "brier": 0.5, "ece": 0.1 + top1 / 10}
            hits = np.arange(20) < 20 * top1
            results.append(Result(run.name, "test", 20, metrics, diagram, hits=hits))
            corrupted = {"fog": {3: {**metrics, "top1": top1 / 2}}}
            results.append(Result(run.name, "test", 3, metrics, None, corrupted))
            runs.append(run)
    return Comparison("made up", runs, Report(results, {}, {}, {}))


def test_gains_are_changes_for_the_better_seed_by_seed():
    comparison = made_up()
    assert comparison.gains("reinforced", "top1").tolist() == pytest.approx([0.1, 0.2])
    assert comparison.gains("reinforced", "nll").tolist() == pytest.approx([0.1, 0.2])
    assert comparison.gains("reinforced", "ece").tolist() == pytest.approx([-0.01, -0.02])
    assert comparison.gains("reinforced", "mce").tolist() == pytest.approx([0.05, 0.1])  # error 75 % -> 70 %, 65 %
    flat = comparison.to_dict("a_b")
    assert flat["a_b_top1_gain"] == pytest.approx(0.15)
    assert flat["a_b_top1_gain_std"] == pytest.approx(np.std([0.1, 0.2], ddof=1))
    assert flat["a_b_reinforced_top1_std"] == pytest.approx(np.std([0.6, 0.7], ddof=1))
    assert flat["a_b_seeds"] == 2
    assert flat["a_b_erm_seconds"] == pytest.approx(10.5)


def test_one_seed_has_no_standard_deviation():
    both = made_up()
    of_one = Report([r for r in both.report.results if r.model.endswith("-0")], {}, {}, {})
    flat = Comparison("made up", [run for run in both.runs if run.seed == 0], of_one).to_dict("a")
    assert flat["a_seeds"] == 1
    assert flat["a_reinforced_top1"] == pytest.approx(0.6)
    assert flat["a_top1_gain"] == pytest.approx(0.1)
    assert [key for key in flat if key.endswith("_std")] == []


def test_each_objective_has_its_gain():
    comparison = made_up()
    for n, run in enumerate(comparison.runs):
        if run.objective == "reinforced":
            comparison.runs[n] = dataclasses.replace(run, objective="kd")
    for n, result in enumerate(comparison.report.results):
        comparison.report.results[n] = dataclasses.replace(result, model=result.model.replace("reinforced", "kd"))
    flat = comparison.to_dict("c")
    assert flat["c_kd_top1_gain"] == pytest.approx(0.15)
    assert "c_top1_gain" not in flat


def test_the_table_and_the_report(tmp_path):
    table = made_up().to_markdown()
    assert "| erm | 50.00 ± 0.00 | 1.5000 ± 0.0000 |" in table
    assert "| reinforced: gain over erm | +15.00 ± 7.07 |" in table
    page = made_up().save(tmp_path).read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "+15.00 ± 7.07" in page
    assert made_up().verdicts[0] in page
    assert "from stored answers of the teacher, kd from a teacher in memory. Mean" in page
    unseen = dataclasses.replace(made_up(), runs=[dataclasses.replace(run, accuracy=[]) for run in made_up().runs])
    assert unseen.save(tmp_path).read_text(encoding="utf-8").count("data:image/png;base64,") == 1
    weighted = dataclasses.replace(made_up(), label_weight=0.5).save(tmp_path).read_text(encoding="utf-8")
    assert "from stored answers of the teacher and, at weight 0.5, the labels, kd from" in weighted
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["comparison_seeds"] == 2
    low, high = written["top1_gain_95_percent_intervals"]["reinforced"]
    assert low < 0.15 < high


def seeds_of(hits: dict[str, list[list[bool]]]) -> Comparison:
    """A comparison of which only the hits matter: objective -> seed -> image."""
    runs = [Run(name, seed, Path("none"), 1.0, 1, []) for name, seeds in hits.items() for seed in range(len(seeds))]
    right = [np.array(hits[r.objective][r.seed]) for r in runs]
    results = [Result(r.name, "test", 9, {"top1": own.mean()}, hits=own) for r, own in zip(runs, right, strict=True)]
    return Comparison("hits", runs, Report(results, {}, {}, {}))


def test_a_comparison_on_clean_images_alone_has_no_column_of_corruptions(tmp_path):
    comparison = made_up()
    comparison.report.results[:] = [result for result in comparison.report.results if not result.by_corruption]
    assert comparison.students.head == ["made up, 2 seeds", "top-1 %", "NLL", "ECE %", "training s"]
    assert "c_reinforced_mce" not in comparison.to_dict("c")
    assert comparison.save(tmp_path).is_file()


def test_the_interval_of_a_gain_is_that_of_paired_images_and_of_seeds():
    alone = seeds_of({"erm": [[False] * 10], "reinforced": [[True] * 5 + [False] * 5]})
    half = stats.t.ppf(0.975, 9) * np.sqrt(np.var([1] * 5 + [0] * 5, ddof=1) / 10)
    assert alone.top1_interval("reinforced") == pytest.approx((0.5 - half, 0.5 + half))
    # Both are right on the same images: only seeds differ, and then images as well.
    alike = seeds_of({"erm": [[False] * 4] * 2, "reinforced": [[True] * 4, [False] * 4]})
    assert alike.top1_interval("reinforced") == (-1, 1), "of two seeds more than there is"
    alike = seeds_of({"erm": [[False] * 100] * 2, "reinforced": [[True] * 100, [True] * 96 + [False] * 4]})
    images, seeds = np.var([1] * 96 + [0.5] * 4, ddof=1) / 100, np.var([1, 0.96], ddof=1) / 2
    half = stats.t.ppf(0.975, (images + seeds) ** 2 / (images**2 / 99 + seeds**2)) * np.sqrt(images + seeds)
    assert alike.top1_interval("reinforced")[0] == pytest.approx(0.98 - half, rel=1e-3)


@pytest.mark.parametrize("freedom", [1, 1.01, 1.7, 2, 3.3, 9, 59, 1999, 1e6])
def test_quantiles_are_those_of_the_t_distribution(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-4)


@pytest.mark.parametrize(("seeds", "spread", "lowest"), [(1, 0.0, 0.92), (3, 0.03, 0.93), (2, 0.03, 0.91)])
def test_the_interval_holds_the_truth_as_often_as_it_says(seeds, spread, lowest):
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(500):  # both are right on 80 % of all images, some seeds on more, and on 200 sampled ones by chance
        right = 0.8 + spread * rng.standard_normal((2, seeds, 1))
        hits = dict(zip(("erm", "reinforced"), (rng.random((2, seeds, 200)) < right).tolist(), strict=True))
        low, high = seeds_of(hits).top1_interval("reinforced")
        inside += low <= 0 <= high
    assert lowest < inside / 500 < 0.99


@pytest.mark.parametrize(("differing", "shown"), [(5, False), (6, True)])
def test_a_verdict_is_one_of_the_exact_test_too(differing, shown):
    images = np.arange(2000)
    (verdict,) = seeds_of({"erm": [images < 0], "reinforced": [images < differing]}).verdicts
    assert (stats.binomtest(differing, differing).pvalue < 0.05) == shown
    assert verdict.endswith("more accurate.") == shown


def test_the_gain_in_a_verdict_is_that_of_the_table():
    """Not the middle of the bounds as they are rounded."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        found = seeds_of({name: (rng.random((3, 77)) < 0.8).tolist() for name in ("erm", "reinforced")})
        expected = round(100 * found.gains("reinforced", "top1").mean(), 1) + 0.0
        assert found.verdicts[0].startswith(f"reinforced gains {expected:+.1f} points")


def test_no_conclusion_is_drawn_from_four_images():
    images = np.arange(60)
    few = seeds_of({"erm": [(images < 53).tolist()], "reinforced": [((images < 48) | (images == 59)).tolist()]})
    (verdict,) = few.verdicts
    assert verdict == (
        "reinforced gains -6.7 points of top-1 over erm, 95 % interval -14.7 to +1.4 by 9 images and 1 seed: no difference is "
        "shown. More held-out images or seeds may show one."
    )
    clear = {"erm": [(images < 30).tolist()] * 2, "reinforced": [(images < 50).tolist()] * 2, "kd": [[False] * 60] * 2}
    more, less = seeds_of(clear).verdicts
    assert more.endswith("by 9 images and 2 seeds: more accurate.")
    assert less.startswith("kd gains -50.0 points")
    assert less.endswith("less accurate.")


def test_a_single_seed_has_no_spread():
    alone = dataclasses.replace(made_up(), runs=made_up().runs[:2])
    table = alone.to_markdown()
    assert table.startswith("| made up, 1 seed |")
    assert "| reinforced: gain over erm | +10.00 | +0.1000 |" in table
    assert alone.verdicts[0] in table


def test_a_run_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"erm-0 must hold a finished training, but No such file.*Train it"):
        read_run(tmp_path, "erm", 0)
    with pytest.raises(DataError, match="reinforced-3 must hold a finished training"):
        compare(CompareConfig("a", str(tmp_path), {"dataset": "x"}, {"sets": ["test=nowhere"]}, ["reinforced"], [3]))


@pytest.fixture
def config(tmp_path, tiny_folder, tiny_dataset) -> Path:
    tiny_dataset.to_parquet(tmp_path / "base.parquet")
    tiny_folder = shutil.copytree(tiny_folder, tmp_path / "tiny-plus")
    settings = {
        "title": "tiny",
        "save": True,
        "output_dir": str(tmp_path / "out"),
        "seeds": [0, 1],
        "train": {
            "dataset": str(tiny_folder), "student": "timm:test_resnet", "eval_dataset": str(tmp_path / "base.parquet"),
            "eval_split": "train", "eval_strategy": "epoch", "num_train_epochs": 2, "save_strategy": "no",
            "per_device_train_batch_size": 4, "report_to": "none", "disable_tqdm": True, "view-order": "random",
        },
        "evaluate": {
            "sets": [f"test={tmp_path / 'base.parquet'}:train"], "corrupt": ["test"], "corruptions": ["fog"],
            "severities": [1],
        },
    }  # fmt: skip
    path = tmp_path / "compare.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_a_comparison_end_to_end_goes_on_where_it_stopped(config, tmp_path, capsys):
    assert main(["compare", "--config", str(config)]) == 0
    table = capsys.readouterr().out
    assert "| tiny, 2 seeds |" in table
    assert "| reinforced: gain over erm |" in table
    card = (tmp_path / "tiny-plus" / "README.md").read_text()
    assert "### Students\n\n| tiny, 2 seeds |" in card
    assert next(line for line in table.splitlines() if line.startswith("| reinforced: gain over erm |")) in card
    out = tmp_path / "out"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<td>settings</td><td>view_order random</td>" in page
    assert str(tmp_path) not in page
    first = read_run(out, "erm", 0)
    assert first.steps == 6
    assert [share for share, _ in first.accuracy] == [0.5, 1.0]
    assert first.seconds > 0
    (out / "erm-1" / "all_results.json").unlink()
    for name in ("trainer_state.json", "student.json"):  # as if stopped while it was evaluated
        (out / "reinforced-1" / name).unlink()
    written = (out / "erm-0" / "all_results.json").stat().st_mtime_ns
    assert main(["compare", "--config", str(config)]) == 0
    assert (out / "erm-0" / "all_results.json").stat().st_mtime_ns == written
    assert (out / "erm-1" / "all_results.json").exists()
    assert (out / "reinforced-1" / "student.json").exists()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_the_comparison_and_loses_no_step(config, tmp_path, monkeypatch, capsys, caplog, number, status):
    steps = itertools.count(1)
    training_step = ReinforcedTrainer.training_step

    def interrupted(*arguments, **settings):
        if next(steps) == 2:
            signal.raise_signal(number)
        return training_step(*arguments, **settings)

    monkeypatch.setattr(ReinforcedTrainer, "training_step", interrupted)
    words = ["compare", "--config", str(config), "--seeds", "0", "--objectives", "erm", "reinforced"]
    assert main(words) == status
    assert "Stopped at step 2 of 6: the same command goes on from checkpoint-2." in caplog.messages
    assert "must succeed" not in capsys.readouterr().err
    assert main(words) == 0
    assert next(steps) == 2 * 6 + 1
    assert read_run(tmp_path / "out", "erm", 0).steps == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [({"train": [1]}, r"`train` must be a mapping with `dataset`, got \[1\]"),
     ({"train": {"student": "x"}}, "`train` must be a mapping with `dataset`, got {'student': 'x'}"),
     ({"evaluate": {}}, "`evaluate` must be a mapping with `sets`, got {}. Add it"),
     ({"train": {"dataset": "x", "seed": 3}}, "`train` must leave `seed` to the comparison, got 3. Set `seeds` next to it"),
     ({"train": {"dataset": "x", "objective": "kd"}}, "`train` must leave `objective` to the comparison, got 'kd'. Set `obj"),
     ({"train": {"dataset": "x", "output_dir": "y"}}, "`train` must leave `output_dir` to the comparison, got 'y'"),
     ({"seeds": []}, "`seeds` must be at least one, got none. Leave it out for the default"),
     ({"seeds": [-1]}, "`seeds` must be a whole number of at least 0, got -1"),
     ({"seeds": [1, 1]}, r"`seeds` must not name one twice, got \[1, 1\]. Leave one out"),
     ({"objectives": []}, "`objectives` must be at least one, got none"),
     ({"objectives": ["erm", "reinforcd"]}, "`objectives` in .* must be one of erm, reinforced, kd, got 'reinforcd'"),
     ({"objectives": ["erm", "kd"]}, "`teacher` must be given for `objective` kd and only then, got none with kd. Name one"),
     ({"evaluate": {"sets": ["a=b"], "corupt": ["a"]}}, "`evaluate` has the unknown key `corupt`. Did you mean `corrupt`"),
     ({"evaluate": {"sets": ["a=b", "c=d"]}}, r"`sets` in `evaluate` must be a list of one set of clean images, got \['a=b'"),
     ({"evaluate": {"sets": "a=b"}}, "`sets` in `evaluate` must be a list of one set of clean images, got a=b"),
     ({"evaluate": {"sets": ["a=b"], "mean": 3}}, r"`mean` must be a list, got 3\. Put it into a list\."),
     ({"evaluate": {"sets": ["a=b"], "corrupt": ["c"]}}, "`corrupt` must name sets with clean images, got `c`. Known: a"),
     ({"evaluate": {"sets": ["a=./none.parquet"]}}, "none.parquet"),
     ({"train": {"dataset": 5}}, "`dataset` in `train` must be a text or several, got 5"),
     ({"train": {"dataset": []}}, r"`dataset` in `train` must be a text or several, got \[\]"),
     ({"evaluate": {"sets": ["imagenet-c"]}}, "`sets` in `evaluate` must be a list of one set of clean images, got"),
     ({"evaluate": {"sets": ["a=b"], "severities": [9]}}, "`severities` must be at most 5, got 9")],
)  # fmt: skip
def test_settings_are_looked_at_before(config, tmp_path, capsys, change, message):
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **change}), encoding="utf-8")
    assert main(["compare", "--config", str(config)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists(), "nothing was trained"


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mixup_alpha": 0.2}, "`mixup_alpha` and `cutmix_alpha` must be 0 where stored views are replayed, .*, got 0.2 and 0.0"),
     ({"augmentation": "randaug"}, "`augmentation` must come with `objective` erm or kd, got reinforced"),
     ({"label_weight": 0.5}, "`label_weight` must be 0 where stored views are mixed, got 0.5"),
     ({"learning_rat": 1}, "learning_rat"),
     ({"learning_rate": -1}, "`learning_rate` must be a number of at least 0, got -1")],
)  # fmt: skip
def test_what_one_objective_refuses_is_known_before_another_is_trained(config, tmp_path, capsys, settings, message):
    content = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**content, "train": {**content["train"], **settings}}), encoding="utf-8")
    with contextlib.suppress(SystemExit):
        assert main(["compare", "--config", str(config)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_students_are_not_calibrated_by_images_on_which_they_are_compared(config, tmp_path, tiny_dataset, capsys):
    others = tiny_dataset.map(lambda row: {"image": one_pixel_off(row["image"])})
    others.to_parquet(tmp_path / "others.parquet")
    content = yaml.safe_load(config.read_text().replace("base.parquet", "others.parquet"))
    content["train"] |= {"eval_split": "train[6:]", "calibrate_split": "train[:6]", "max_steps": 1}
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["compare", "--config", str(config)]) == 2
    assert "`calibrate_split` must have other images than the set `test`, but 6 of its 6" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "nothing was trained"
    content["evaluate"]["sets"] = [f"{content['evaluate']['sets'][0]}[6:]"]
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["compare", "--config", str(config)]) == 0
    calibration = json.loads((tmp_path / "out" / "erm-0" / "student.json").read_text())["calibration"]
    assert calibration["num_held_out"] == 6
    # Images in a column of another name, next to small copies.
    both = others.map(lambda row: {"thumb": row["image"]})
    both.to_parquet(tmp_path / "both.parquet")
    content["train"]["eval_dataset"] = str(tmp_path / "both.parquet")
    content["train"]["calibrate_split"] = "train[:7]"
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert main(["compare", "--config", str(config)]) == 2
    assert "`calibrate_split` must have other images than the set `test`, but 1 of its 7" in capsys.readouterr().err


def test_the_page_tells_no_place_of_a_model(config, tmp_path):
    content = yaml.safe_load(config.read_text()) | {"objectives": ["kd"]}
    (tmp_path / "large").mkdir()
    named = [
        str(tmp_path / "large"),
        f"timm:resnet18@{tmp_path / 'r18.safetensors'}",
        "timm/resnet18.a1_in1k",
        "me/net@v1",
    ]
    content["train"] |= {"student": named[0], "model_args": "{}"}
    facts = dict(comparing._facts(CompareConfig(**content, teacher=named), 1, made_up().report))
    assert facts["student"] == "large {}"
    assert facts["teacher of kd"] == "large + timm:resnet18@r18.safetensors + timm/resnet18.a1_in1k + me/net@v1"


def test_a_setting_that_only_one_objective_heeds_is_for_that_one(config):
    content = yaml.safe_load(config.read_text())
    content["train"] |= {"teacher": ["t"], "teacher_classes": "c", "reinforced_probability": 0.5, "tail": "zero"}
    content["train"] |= {"temperature": 2.0, "label_weight": 0.25}
    given = CompareConfig(**{**content, "objectives": ["erm", "reinforced", "kd"]})
    flags = {objective: training_flags(given, objective, 0) for objective in given.objectives}
    assert [name for name in flags if "teacher" in flags[name] or "teacher_classes" in flags[name]] == ["kd"]
    assert training_flags(dataclasses.replace(given, teacher=["u"]), "kd", 0)["teacher"] == ["u"]
    for name in ("reinforced_probability", "tail"):
        assert [objective for objective in flags if name in flags[objective]] == ["reinforced"]
    for name in ("temperature", "label_weight"):
        assert [objective for objective in flags if name in flags[objective]] == ["reinforced", "kd"]


def test_each_run_is_pushed_to_a_repository_of_its_own(config):
    content = yaml.safe_load(config.read_text())
    content["train"] |= {"push_to_hub": True, "hub_model_id": "me/photos"}
    given = CompareConfig(**content)
    pushed = [
        training_flags(given, objective, seed)["hub_model_id"] for objective in ("erm", "reinforced") for seed in (0, 1)
    ]
    assert pushed == ["me/photos-erm-0", "me/photos-erm-1", "me/photos-reinforced-0", "me/photos-reinforced-1"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seeds": ["0"]}, "`seeds` must be a whole number of at least 0, got '0'"),
     ({"objectives": ["kd"]}, "`teacher` must be given for `objective` kd and only then, got none with kd. Name one"),
     ({"save": "no"}, "`save` must be True or False, got 'no'"),
     ({"pictures": "a.png"}, "`pictures` must be a list of names, got 'a.png'"),
     ({"objectives": "erm"}, "`objectives` must be a list of names, got 'erm'. Put it into a list"),
     ({"objectives": ["erm", "reinforcd"]}, "`objectives` must be one of erm, reinforced, kd, got 'reinforcd'")],
)  # fmt: skip
def test_settings_are_looked_at_in_python_too(config, change, message):
    with pytest.raises(ConfigError, match=message):
        CompareConfig(**{**yaml.safe_load(config.read_text()), **change})


def test_a_setting_is_found_by_whatever_name_it_was_given(config, tmp_path):
    """The report left out the epochs of `epochs`, and settings with hyphens were passed over where they are looked up."""
    content = yaml.safe_load(config.read_text())
    train = content["train"]
    epochs = train.pop("num_train_epochs")
    order = {"view_order": train.pop("view-order")}
    content["train"] = {**train, "epochs": epochs, "lr": 0.1, "label-weight": 0.5, "view-order": order["view_order"]}
    given = CompareConfig(**content)
    assert given.train == {**train, **order, "num_train_epochs": epochs, "learning_rate": 0.1, "label_weight": 0.5}
    assert "label_weight" not in training_flags(given, "erm", 0)

    run = tmp_path / "out" / "erm-0"
    flags = {"dataset": train["dataset"], "num_train_epochs": 2, "seed": 0}
    assert not is_finished(run, flags)
    note = run / RUN_NOTE
    note.write_text(note.read_text().replace("num_train_epochs", "epochs"))
    assert not is_finished(run, flags), "a run that was begun by the alias goes on"
    for change, message in (
        (
            {"lr": 0.1, "learning-rate": 0.2},
            "`learning_rate` must be set once, got `lr` and `learning-rate`. Leave one out",
        ),
        ({"output-dir": "out"}, "`train` must leave `output_dir` to the comparison, got 'out'"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            CompareConfig(**{**content, "train": {**train, **change}})


def test_the_dataset_may_be_a_path(config):
    settings = yaml.safe_load(config.read_text())
    settings["train"]["dataset"] = Path(settings["train"]["dataset"])
    assert CompareConfig(**settings).train["dataset"] == settings["train"]["dataset"]


def test_a_mapping_of_settings_is_given_on_as_json():
    assert as_arguments({"model_args": {"img_size": 32}}) == ["--model_args", '{"img_size": 32}']


def test_save_needs_a_folder(config, capsys):
    settings = yaml.safe_load(config.read_text())
    for dataset, found in (("me/nowhere", "me/nowhere"), ([settings["train"]["dataset"]] * 2, "2 datasets")):
        settings["train"]["dataset"] = dataset
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        assert main(["compare", "--config", str(config)]) == 2
        assert f"`save` needs one dataset in a folder, got {found}." in capsys.readouterr().err


def test_runs_of_other_settings_are_not_mixed_in(config, tmp_path, capsys):
    settings = yaml.safe_load(config.read_text())
    flags = {**settings["train"], "objective": "erm", "seed": 0, "output_dir": tmp_path / "out" / "erm-0"}
    assert not is_finished(tmp_path / "out" / "erm-0", flags)
    assert main(["compare", "--config", str(config), "--seeds", "0", "--objectives", "kd"]) == 2
    assert "`teacher` must be given for `objective` kd" in capsys.readouterr().err
    settings["train"]["num_train_epochs"] = 3
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["compare", "--config", str(config)]) == 2
    assert "erm-0 must be a run of the same settings, but it differs in num_train_epochs" in capsys.readouterr().err


def test_what_a_comparison_needs_is_looked_at_before_it_trains(tiny_folder, tiny_dataset, tmp_path, monkeypatch):
    tiny_dataset.to_parquet(tmp_path / "base.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    trained = []

    def train(arguments):
        trained.append(arguments[arguments.index("--output_dir") + 1])
        return 2

    def settings(evaluate=(), **more):
        train = {"dataset": str(tiny_folder)}
        sets = [f"a={tmp_path / 'base.parquet'}:train"]
        return CompareConfig("t", "~/out", train, {"sets": sets, **dict(evaluate)}, seeds=[0], **more)

    for picture in ("no.png", "base.parquet"):
        message = rf"`pictures` must be PNG files, found none at .*/{picture}\. Correct it"
        with pytest.raises(ConfigError, match=message):
            run_comparison(settings(pictures=[f"~/{picture}"]), train)
    with pytest.raises(
        DataError, match=r"the set `a` must have at least 2 images to compare on, found 1\. Take another"
    ):
        run_comparison(settings({"max_examples": 1}), train)
    assert not trained
    with pytest.raises(ConfigError, match="out/erm-0 must succeed, but it ended with status 2"):
        run_comparison(settings(), train)
    assert trained == [str(tmp_path / "out" / "erm-0")]
    (tmp_path / "out" / "erm-0" / "comparison_run.json").write_text("{")
    with pytest.raises(
        FormatError, match=r"comparison_run\.json must be JSON, .* Remove the folder, or choose another"
    ):
        run_comparison(settings(), train)


def compare_together(plus: str, base: str, out: str) -> None:
    """Two processes, of which the first is slow."""
    state = process_state()
    seen = []

    def train(arguments):
        folder = Path(arguments[arguments.index("--output_dir") + 1])
        assert (folder / "comparison_run.json").is_file()
        assert not (folder / "trained").is_file()
        state.wait_for_everyone()
        if state.is_main_process:
            time.sleep(0.5)
            (folder / "trained").touch()
        return 0

    def read(folder, objective, seed):
        assert (folder / f"{objective}-{seed}" / "trained").is_file(), "before the first process has saved it"
        seen.append(objective)
        return Run(objective, seed, folder, 1.0, 1, [])

    comparing.read_run = read
    comparing.compare = lambda *settings: (_ for _ in ()).throw(SystemExit(0))  # the first process is done here
    sets = {"sets": [f"a={base}:train"]}
    found = comparing.run_comparison(CompareConfig("t", out, {"dataset": plus}, sets, seeds=[0]), train)
    assert found is None
    assert state.process_index == 1
    assert seen == ["erm", "reinforced"]


def test_two_processes_train_together_and_one_compares(tiny_folder, tiny_dataset, tmp_path):
    tiny_dataset.to_parquet(tmp_path / "base.parquet")
    given = str(tiny_folder), str(tmp_path / "base.parquet"), str(tmp_path / "out")
    children.run(compare_together, *given, two=True, log=tmp_path / "log")


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if not command.shared])
def test_one_process_is_enough_for_the_others(command, monkeypatch, capsys):
    state = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr("hf_dr.processes.process_state", lambda: state)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command, "photos"]) == 2
    assert f"`{command}` takes one process, got 2. Leave accelerate out." in capsys.readouterr().err


def test_a_run_on_several_datasets_is_of_all(tmp_path, tiny_folder, tiny_plus):
    flags = {"dataset": [str(tiny_folder), str(tiny_folder)], "name": "all_ops", "seed": 0}
    assert not is_finished(tmp_path / "run", flags)
    note = json.loads((tmp_path / "run" / "comparison_run.json").read_text())
    assert note["fingerprint"] == " ".join(2 * [tiny_plus.provenance.fingerprint])
    with pytest.raises(ConfigError, match="must be a run of the same settings, but it differs in dataset, fingerprint"):
        is_finished(tmp_path / "run", {**flags, "dataset": [str(tiny_folder)]})


def test_a_run_stays_one_where_a_folder_is_written_otherwise_or_has_moved(tmp_path, tiny_folder):
    flags = {"name": "all_ops", "seed": 0}
    plus = shutil.copytree(tiny_folder, tmp_path / "plus")
    assert not is_finished(tmp_path / "run", {**flags, "dataset": str(plus), "output_dir": "run"})
    assert not is_finished(tmp_path / "run", {**flags, "dataset": f"{plus}/", "output_dir": tmp_path / "run"})
    with pytest.raises(ConfigError, match="differs in dataset"):  # a copy may have other labels
        is_finished(tmp_path / "run", {**flags, "dataset": str(tiny_folder)})
    moved = plus.rename(tmp_path / "moved")
    assert not is_finished(tmp_path / "run", {**flags, "dataset": moved})


def test_the_note_of_a_run_holds_no_token(tmp_path, tiny_folder):
    flags = {"dataset": [str(tiny_folder)], "name": "all_ops", "seed": 0}
    assert not is_finished(tmp_path / "run", {**flags, "hub-token": "hf_first"})
    assert "hf_first" not in (tmp_path / "run" / "comparison_run.json").read_text()
    assert not is_finished(tmp_path / "run", {**flags, "hub_token": "hf_second"})


@pytest.mark.parametrize(
    "name", ["all_results.json", "trainer_state.json", "student.json", "config.json", "model.safetensors"]
)
def test_a_run_that_lacks_a_file_is_trained_to_its_end_again(tmp_path, tiny_folder, name):
    """Of a run without its weights the comparison ended with an error, whatever checkpoint it had."""
    flags = {"dataset": [str(tiny_folder)], "name": "all_ops", "seed": 0, "objective": "erm"}
    assert not is_finished(tmp_path, flags)
    (tmp_path / "all_results.json").write_text(json.dumps({"train_runtime": 1.0}))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 1, "log_history": []}))
    for other in ("student.json", "config.json"):
        (tmp_path / other).touch()
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    assert is_finished(tmp_path, flags)
    if name in ("all_results.json", "trainer_state.json", "model.safetensors"):
        (tmp_path / name).write_text("")  # as a machine that went down may leave it
        assert not is_finished(tmp_path, flags)
    (tmp_path / name).unlink()
    assert not is_finished(tmp_path, flags)
