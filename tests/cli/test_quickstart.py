"""`hf-dr quickstart`: from a folder of photos to a report, in steps that are commands, each of which is done once."""

import json
import shlex
import shutil

import datasets
import pytest
import yaml

from hf_dr.cli.launch import COMMANDS, launch
from hf_dr.cli.main import main
from hf_dr.cli.quickstart import QuickstartArguments, _comparison
from hf_dr.cli.yaml_files import own_recipes, read_yaml
from hf_dr.store.configs import find_config
from hf_dr.store.provenance import Provenance

STEPS = ["teach", "reinforce", "inspect", "compare"]
TINY = ["--teacher", "timm:test_resnet", "--student", "timm:test_resnet", "--size", "24", "--num_train_epochs", "1"]


def quickstart(photos, out, *more: str) -> int:
    return main(["quickstart", str(photos), "--output_dir", str(out), "--num_views", "2", *TINY, *more])


def printed_commands(text: str) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("$ hf-dr ")]


def test_from_photos_to_a_report_and_again(photos, tmp_path, capsys):
    out = tmp_path / "a folder, 12:30"
    assert quickstart(photos, out) == 0
    shown = capsys.readouterr().out
    commands = printed_commands(shown)
    assert [command for command, *_ in commands] == STEPS
    report = out / "comparison" / "report.html"
    assert report.stat().st_size > 10_000
    assert shown.endswith(f"report: {report}\n")
    assert "reinforced: gain over erm" in (out / "plus" / "README.md").read_text()
    assert (out / "plus" / "randaug" / "contact_sheet.png").is_file()
    comparison = json.loads((out / "comparison" / "comparison.json").read_text())
    assert {result["model"] for result in comparison["evaluation"]["results"]} == {"erm-0", "reinforced-0"}

    # A second start repeats nothing, and each printed command can be run alone.
    before = report.stat().st_mtime_ns
    assert quickstart(photos, out) == 0
    shown = capsys.readouterr().out
    assert not printed_commands(shown)
    assert [f"{command}: finished before" in shown for command in STEPS] == [True] * 4
    assert report.stat().st_mtime_ns == before
    command, *arguments = commands[2]
    assert launch(command, arguments, "hf-dr") == 0


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """Puts stand-ins in the place of the steps; returns which have run, which shall fail, and the teacher.json."""
    ran: list[str] = []
    fails: set[str] = set()
    learned = {
        "dataset": "d",
        "dataset_config": None,
        "split": "train",
        "eval_split": "test",
        "num_classes": 3,
        "temperature": 1.25,
        "folded": True,
    }

    def stand_in(name):
        def run(argv, prog):
            ran.append(name)
            (tmp_path / "out" / "teacher").mkdir(parents=True, exist_ok=True)
            (tmp_path / "out" / "teacher" / "teacher.json").write_text(json.dumps(learned))
            return 2 if name in fails else 0

        return run

    for name in STEPS:
        monkeypatch.setattr(f"hf_dr.cli.{COMMANDS[name].module}.{name}_command", stand_in(name))
    return ran, fails, learned


def test_a_failed_step_ends_it_and_is_where_it_goes_on(recorded, photos, tmp_path, capsys):
    ran, fails, _ = recorded
    fails.add("inspect")
    assert quickstart(photos, tmp_path / "out") == 2
    assert ran == STEPS[:3]
    fails.clear()
    ran.clear()
    assert quickstart(photos, tmp_path / "out") == 0
    assert ran == STEPS[2:]


def test_a_teacher_that_is_refused_is_told_from_other_teachers(recorded, photos, tmp_path, caplog):
    _, fails, _ = recorded
    fails.add("reinforce")
    assert quickstart(photos, tmp_path / "out") == 2
    assert "If the teacher was refused, it has learned too little of these images: give it more" in caplog.text


@pytest.mark.usefixtures("recorded")
def test_a_teacher_is_not_called_refused_where_reinforcing_was_stopped(photos, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("hf_dr.cli.make.reinforce_command", lambda argv, prog: 130)
    assert quickstart(photos, tmp_path / "out") == 130
    assert "If the teacher was refused" not in caplog.text


def test_the_last_batch_can_be_left_out_by_all_trainings(recorded, photos, tmp_path, capsys):
    assert quickstart(photos, tmp_path / "out", "--dataloader_drop_last") == 0
    (taught,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("$ hf-dr teach"))
    assert "--dataloader_drop_last" in taught
    assert read_yaml(tmp_path / "out" / "compare.yaml")["train"]["dataloader_drop_last"] is True


def test_teacher_and_students_have_learning_rates_of_their_own(recorded, photos, tmp_path, capsys):
    def rates(*given: str) -> list[object]:
        assert quickstart(photos, tmp_path / "out", *given) == 0
        taught, *_ = printed_commands(capsys.readouterr().out)
        students = read_yaml(tmp_path / "out" / "compare.yaml")["train"]["learning_rate"]
        shutil.rmtree(tmp_path / "out")
        return [taught[taught.index("--learning_rate") + 1] if "--learning_rate" in taught else "default", students]

    usual = read_yaml(own_recipes() / "teach.yaml")["learning_rate"]
    assert usual == 5e-4, "as the help says"
    assert rates() == ["default", usual]
    assert rates("--teacher_learning_rate", "0.001", "--learning_rate", "0.002") == ["0.001", 0.002]


def test_only_the_seeds_of_what_is_finished_may_change(recorded, photos, tmp_path, capsys):
    ran, *_ = recorded
    assert quickstart(photos, tmp_path / "out") == 0
    ran.clear()
    for command, change in (("teach", "--size"), ("reinforce", "--num_views")):
        assert quickstart(photos, tmp_path / "out", change, "33") == 2
        shown = capsys.readouterr().err
        assert f"`{command}` in {tmp_path / 'out'} was finished with other settings" in shown
        assert f"{change} 33" in shown
        assert "or choose another `output_dir`" in shown
    assert ran == [], "a teacher that is trained further is not the one of the stored answers"
    assert quickstart(photos, tmp_path / "out", "--seeds", "0", "1") == 0
    assert ran == STEPS[3:]


@pytest.mark.parametrize(
    ("before", "after"),
    [("black/3.png", "photos/blue/+.png"), ("green", "photos/greenish"), ("green/3.png", "3.png")],
    ids=["of another class in the same place", "class of another name", "fewer"],
)
def test_photos_that_changed_are_noticed(recorded, photos, tmp_path, capsys, before, after):
    ran, *_ = recorded
    own = shutil.copytree(photos, tmp_path / "photos")
    out = tmp_path / "out"
    assert quickstart(own, out) == 0
    ran.clear()
    (own / before).rename(tmp_path / after)
    assert quickstart(own, out) == 2
    message = (
        f"`teach` in {out} was finished with other images and labels, and what was made of it would not fit. Restore"
    )
    assert message in capsys.readouterr().err
    assert ran == []


def test_photos_that_are_links_are_read_by_every_step(recorded, photos, tmp_path, capsys):
    place = tmp_path / "photos"
    for file in photos.rglob("*.png"):
        link = place / file.relative_to(photos)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
    assert quickstart(place, tmp_path / "out") == 2
    assert f", a link to '{photos}" in capsys.readouterr().err
    assert quickstart(place, tmp_path / "out", "--files_from", str(photos)) == 0
    commands = printed_commands(capsys.readouterr().out)
    assert [words[1:4] == [words[1], "--files_from", str(photos)] for words in commands[:2]] == [True] * 2
    settings = yaml.safe_load((tmp_path / "out" / "compare.yaml").read_text())
    assert settings["train"]["files_from"] == settings["evaluate"]["files_from"] == [str(photos)]


def test_a_slash_at_the_end_of_the_folder_is_no_other_dataset(recorded, photos, tmp_path):
    ran, *_ = recorded
    assert quickstart(photos, tmp_path / "out") == 0
    ran.clear()
    assert quickstart(f"{photos}/", tmp_path / "out") == 0
    assert ran == []


def test_it_goes_on_from_another_folder(recorded, photos, tmp_path, monkeypatch):
    ran, *_ = recorded
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "a@b").touch()
    monkeypatch.chdir(tmp_path)
    more = ["--files_from", "photos", "--teacher"]
    assert quickstart("photos", "out", *more, "timm:test_vit@weights/a@b") == 0
    ran.clear()
    monkeypatch.chdir(tmp_path / "photos")
    more[1] = "."
    assert quickstart("../photos", "../out", *more, "timm:test_vit@../weights/a@b") == 0
    assert ran == []
    assert yaml.safe_load((tmp_path / "out" / "compare.yaml").read_text())["output_dir"] == f"{tmp_path}/out/comparison"


def test_the_title_of_the_report_tells_no_path_of_this_machine(recorded, tmp_path):
    (tmp_path / "weights").mkdir()
    for student, named in ((str(tmp_path / "weights"), "weights"), (f"timm:test_vit@{tmp_path}/w", "timm:test_vit")):
        settings = _comparison("photos", QuickstartArguments(student=student), recorded[2], tmp_path)
        assert settings["train"]["student"] == student
        assert settings["title"] == f"photos, {named}"


@pytest.mark.usefixtures("recorded")
def test_another_student_is_named(photos, tmp_path, capsys):
    assert quickstart(photos, tmp_path / "out") == 0
    assert quickstart(photos, tmp_path / "out", "--student", "timm:test_vit") == 2
    assert "`compare` in" in (shown := capsys.readouterr().err)
    assert "was finished with other student, and" in shown


def test_a_teacher_that_is_not_calibrated_by_its_weights_is_by_a_flag(recorded, photos, tmp_path, capsys):
    *_, learned = recorded
    assert quickstart(photos, tmp_path / "out") == 0
    assert "--teacher_temperature" not in capsys.readouterr().out
    learned["folded"] = False
    (tmp_path / "out" / "quickstart.json").unlink()
    assert quickstart(photos, tmp_path / "out") == 0
    assert "--teacher_temperature 1.25" in capsys.readouterr().out


def test_what_the_steps_left_is_looked_at(recorded, photos, tmp_path, capsys):
    assert quickstart(photos, tmp_path / "out") == 0
    advice = "Delete quickstart.json and run the same command again: all steps are then done again."
    told = tmp_path / "out" / "teacher" / "teacher.json"
    told.write_text("{}")
    assert quickstart(photos, tmp_path / "out") == 2
    assert f"teacher.json must have the field `temperature`, found none. {advice}" in capsys.readouterr().err
    told.unlink()
    assert quickstart(photos, tmp_path / "out") == 2
    assert f"teacher must hold the teacher.json of `hf-dr teach`, found none. {advice}" in capsys.readouterr().err
    done = tmp_path / "out" / "quickstart.json"
    done.write_text(json.dumps({"teach": [[], None]}))
    assert quickstart(photos, tmp_path / "out") == 2
    assert f"quickstart.json must tell what `teach` has read, found None. {advice}" in capsys.readouterr().err
    done.write_text("{")
    assert quickstart(photos, tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "quickstart.json must be JSON, but reading it failed" in shown
    assert advice in shown


def test_a_wrong_student_is_refused_before_the_teacher_is_trained(recorded, photos, tmp_path, capsys):
    ran, *_ = recorded
    assert quickstart(photos, tmp_path / "out", "--student", "timm:test_resnt") == 2
    assert "timm has no architecture `test_resnt`. Did you mean `test_resnet`?" in capsys.readouterr().err
    assert ran == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one dataset before the flags, got none"),
        (["./phtos"], "expected a folder, a file or a Hub id, found none at './phtos'. Check the path."),
        (["photos", "--num_views", "0"], "`num_views` must be a whole number of at least 1, got 0"),
        (["photos", "--seeds", "0", "-1"], "`seeds` must be a whole number of at least 0, got -1"),
        (["photos", "--seeds", "0", "1", "0"], "`seeds` must not name one twice, got [0, 1, 0]. Leave one out."),
        (["photos", "--studnet", "x"], "unknown argument `--studnet`. Did you mean `--student`?"),
    ],
)
def test_refusals(words, message, capsys):
    assert main(["quickstart", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_dataset_with_several_configurations(photos, tmp_path):
    whole = datasets.load_dataset(str(photos), split="train").shuffle(0)
    folder = tmp_path / "photos"
    for name, held_out in (("a", 3), ("b", 5)):
        (folder / name).mkdir(parents=True)
        whole.select(range(held_out)).to_parquet(folder / name / "test.parquet")
        whole.select(range(held_out, 12)).to_parquet(folder / name / "train.parquet")
    configs = [{"config_name": name, "data_dir": name} for name in ("a", "b")]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    out = tmp_path / "out"
    assert quickstart(folder, out, "--dataset_config", "b", "--files_from", str(photos)) == 0
    assert json.loads((out / "teacher" / "teacher.json").read_text())["num_held_out"] == 5
    provenance = Provenance.read(find_config(out / "plus"))
    assert (provenance.base["config"], provenance.num_rows) == ("b", 7)
    compared = json.loads((out / "comparison" / "comparison.json").read_text())["evaluation"]
    assert {result["examples"] for result in compared["results"]} == {5}
    for student in ("erm-0", "reinforced-0"):
        told = json.loads((out / "comparison" / student / "student.json").read_text())["evaluated_on"]
        assert (told["config"], told["split"]) == ("b", "test")
