"""Trained students as files: what transformers, timm and this package read back from them."""

import contextlib
import errno
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from loopback_hub import Fault
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import resolve_model_data_config
from torch import nn
from transformers import AutoImageProcessor, AutoModelForImageClassification, TimmWrapperConfig, ViTImageProcessor

from hf_dr.cli.main import main
from hf_dr.errors import ConfigError, FormatError, HubError, TeacherError
from hf_dr.generation.teachers import teacher_from_provenance
from hf_dr.teacher.ensemble import Teacher
from hf_dr.teacher.metrics import compute_metrics
from hf_dr.teacher.preprocessing import evaluation_augmentation
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.checkpoints import find_damage
from hf_dr.training.student_hub import export_student, push_student
from hf_dr.training.student_inputs import LabelledImages
from hf_dr.training.students import build_student
from hf_dr.training.trainer import ReinforcedTrainer
from training.helpers import pooled, transformers_student

SIZE = 24
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ARCHITECTURES: dict[str, dict[str, Any] | None] = {
    "test_vit": {"img_size": SIZE, "patch_size": 8},
    "test_resnet": None,
    "resnet10t": {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1], "stem_width": 8, "drop_path_rate": 0.1},
}


def train(folder: Path, model: nn.Module, plus: Any, **settings: Any) -> ReinforcedTrainer:
    """Trains for one step, with averaged weights, and saves."""
    args = ReinforcedTrainingArguments(
        str(folder), max_steps=1, per_device_train_batch_size=4, ema_decay=0.5, optim="sgd", learning_rate=0.05,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = ReinforcedTrainer(model, args, train_dataset=plus, **settings)
    trainer.train()
    trainer.save_model()
    return trainer


def timm_student(plus: Any, architecture: str) -> nn.Module:
    torch.manual_seed(0)
    names, model_args = plus.class_names, ARCHITECTURES[architecture]
    return build_student(f"timm:{architecture}", names, len(names), model_args=model_args, size=SIZE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, _tiny_plus) -> dict[str, Path]:
    """A trained student of each architecture. Read only."""
    root = tmp_path_factory.mktemp("students")
    for name in ARCHITECTURES:
        train(root / name, timm_student(_tiny_plus, name), _tiny_plus, normalization=(MEAN, STD))
    return {name: root / name for name in ARCHITECTURES}


def answer(model: Any) -> torch.Tensor:
    """The logits for fixed pixels. A kernel may round by where weights lie in memory: they are put where torch wants."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    pixels = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out = model.eval()(pixels)
    return out if isinstance(out, torch.Tensor) else out.logits


def equal_logits(folder: Path) -> torch.Tensor:
    """What transformers and timm answer from one folder, which must be the same to the last bit."""
    model, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    logits = answer(model)
    assert torch.equal(answer(timm.create_model(f"local-dir:{folder}", pretrained=True)), logits)
    return logits


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_and_timm_read_the_same_model(folders, tiny_plus, architecture):
    folder = folders[architecture]
    logits = equal_logits(folder)
    assert logits.std() > 0
    names = timm.create_model(architecture, num_classes=8, **(ARCHITECTURES[architecture] or {})).state_dict().keys()
    for file in ("model.safetensors", "ema.safetensors"):
        assert load_file(folder / file).keys() == names
    config = AutoModelForImageClassification.from_pretrained(folder).config
    assert [config.id2label[c] for c in range(8)] == tiny_plus.class_names
    native = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert native.num_classes == 8
    assert native.pretrained_cfg["label_names"] == tiny_plus.class_names


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_preprocess_as_the_student_was_trained(folders, architecture):
    processor = AutoImageProcessor.from_pretrained(folders[architecture], backend="pil")
    native = resolve_model_data_config(timm.create_model(f"local-dir:{folders[architecture]}", pretrained=True))
    for config in (processor.data_config, native):
        assert tuple(config["input_size"]) == (3, SIZE, SIZE)
        assert (tuple(config["mean"]), tuple(config["std"])) == (MEAN, STD)
        assert (config["crop_pct"], config["crop_mode"], config["interpolation"]) == (0.875, "center", "bilinear")


def test_timm_puts_another_head_on_it(folders):
    model = timm.create_model(f"local-dir:{folders['test_vit']}", pretrained=True, num_classes=3)
    weights = load_file(folders["test_vit"] / "model.safetensors")
    assert torch.equal(model.state_dict()["cls_token"], weights["cls_token"])
    assert model.head.weight.shape[0] == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_with_the_wrappers_names_is_still_read(folders, tmp_path, architecture):
    """As transformers itself writes it: the names prefixed, nothing that only timm needs."""
    model = AutoModelForImageClassification.from_pretrained(folders[architecture])
    config = json.loads((folders[architecture] / "config.json").read_text())
    config["pretrained_cfg"] = {key: config["pretrained_cfg"][key] for key in ("input_size", "mean", "std")}
    config["model_args"] = config["model_args"] or None
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    assert next(iter(load_file(tmp_path / "model.safetensors"))).startswith("timm_model.")
    old, new = (Teacher.from_pretrained(str(folder)) for folder in (tmp_path, folders[architecture]))
    assert old.members[0].weights_hash == new.members[0].weights_hash
    assert old.members[0].preprocessing.mean == new.members[0].preprocessing.mean == MEAN
    views = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(old(views), new(views))


def test_a_student_that_starts_from_another_has_its_own_classes(folders, tiny_plus, tmp_path):
    """transformers keeps the class names that it read, those of the former classes."""
    shutil.copytree(folders["test_resnet"], tmp_path / "start")
    config = json.loads((tmp_path / "start" / "config.json").read_text())
    config |= {"num_classes": 5, "label_names": list("abcde"), "label_descriptions": {"a": "the first"}}
    (tmp_path / "start" / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "start" / "model.safetensors")
    weights |= {"fc.weight": torch.zeros(5, weights["fc.weight"].shape[1]), "fc.bias": torch.zeros(5)}
    save_file(weights, tmp_path / "start" / "model.safetensors", {"format": "pt"})
    train(tmp_path / "out", build_student(str(tmp_path / "start"), tiny_plus.class_names, 8), tiny_plus)
    equal_logits(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (saved["num_classes"], saved["label_names"]) == (8, tiny_plus.class_names)
    assert not saved.get("label_descriptions")
    assert saved["pretrained_cfg"]["mean"] == list(MEAN), "it was trained with the mean that it had"


def test_a_config_without_pretrained_cfg_is_completed_for_the_views(tiny_plus, tmp_path):
    config = TimmWrapperConfig(architecture="test_resnet", num_labels=8)
    train(tmp_path, AutoModelForImageClassification.from_config(config), tiny_plus)
    equal_logits(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").data_config["input_size"] == (3, SIZE, SIZE)


def test_other_classifiers_are_saved_as_transformers_does(tiny_plus, tmp_path):
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})
    trainer = train(tmp_path, transformers_student("vit"), tiny_plus, processing_class=processor)
    model, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(answer(model), answer(trainer.model))
    assert AutoImageProcessor.from_pretrained(tmp_path, backend="pil").size["height"] == SIZE


def run_card(folder: Path, cwd: Path) -> list[str]:
    """Runs each piece of code in a student's card beside an `image.jpg`; returns what each prints."""
    Image.new("RGB", (40, 30), (200, 50, 50)).save(cwd / "image.jpg")
    printed = []
    for code in re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL):
        out = io.StringIO()
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out):
            exec(compile(code, "card", "exec"), {})
        printed.append(out.getvalue().strip())
    return printed


def test_the_code_of_the_card_runs(folders, tiny_plus, tmp_path):
    shutil.copytree(folders["test_resnet"], tmp_path / "student")
    trainer = train(tmp_path / "student", timm_student(tiny_plus, "test_resnet"), tiny_plus)
    trainer.create_model_card()
    text = (tmp_path / "student" / "README.md").read_text(encoding="utf-8").replace("hf-hub:", "local-dir:")
    (tmp_path / "student" / "README.md").write_text(text, encoding="utf-8")
    by_transformers, by_timm = run_card(tmp_path / "student", tmp_path)
    assert by_transformers == by_timm
    assert by_timm in tiny_plus.class_names


def test_results_are_those_of_the_saved_weights(tiny_plus, tiny_dataset, tmp_path):
    """Neither those of an earlier step, nor of another set."""
    shown = LabelledImages(tiny_dataset, evaluation_augmentation((SIZE, SIZE)))
    model = timm_student(tiny_plus, "test_resnet")
    trainer = train(tmp_path, model, tiny_plus, eval_dataset=shown, compute_metrics=compute_metrics)

    def card() -> ModelCard:
        trainer.create_model_card(evaluated_on={"id": "me/colours", "split": "test"})
        return ModelCard.load(tmp_path / "README.md")

    assert "## Results" not in card().text
    trainer.evaluate(LabelledImages(tiny_dataset.select(range(4)), evaluation_augmentation((SIZE, SIZE))))
    assert "## Results" not in card().text
    metrics = trainer.evaluate()
    values = {r.metric_name: r.metric_value for r in card().data.eval_results}
    assert values["Top-1 accuracy"] == metrics["eval_top1"]
    assert f"| ema_nll | {metrics['eval_ema_nll']:.4g} |" in card().text
    assert "runtime" not in card().text
    trainer.train()
    assert "## Results" not in card().text
    assert card().data.eval_results is None


# ------------------------------------------------------------------------------------------------------------- pushing

REPO = "me/student"
PUBLISHED = {"config.json", "model.safetensors", "README.md", "student.json", "eval_results.json"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_folder, tiny_dataset) -> Path:
    """`output_dir` of a whole training with averaged weights, evaluation and checkpoints. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_dataset.to_parquet(folder / "base.parquet")
    flags = {
        "--dataset": tiny_folder, "--student": "timm:test_vit", "--model_args": json.dumps(ARCHITECTURES["test_vit"]),
        "--output_dir": folder / "out", "--eval_dataset": folder / "base.parquet", "--eval_split": "train",
        "--per_device_train_batch_size": "4", "--max_steps": "2", "--save_strategy": "steps", "--save_steps": "1",
        "--ema_decay": "0.5", "--optim": "sgd", "--learning_rate": "0.5", "--disable_tqdm": "True",
    }  # fmt: skip
    assert main(["train", *(str(part) for flag in flags.items() for part in flag)]) == 0
    assert (folder / "out" / "training_args.bin").exists()
    return folder / "out"


def pushed(hub: Any, repo_id: str = REPO) -> dict[str, bytes]:
    files = hub.files(repo_id, repo_type="models")
    files.pop(".gitattributes", None)
    return files


def test_a_pushed_student_loads_from_the_hub(loopback_hub, trained, tiny_plus, tmp_path, caplog):
    push = push_student(trained, REPO)
    files = pushed(loopback_hub)
    assert files.keys() == PUBLISHED
    for name in ("model.safetensors", "student.json", "eval_results.json"):
        assert files[name] == (trained / name).read_bytes()
    assert (push.card, set(push.files)) == (files["README.md"].decode(), PUBLISHED - {"README.md"})
    assert loopback_hub.counts["commit"] == 1

    local = answer(AutoModelForImageClassification.from_pretrained(trained))
    assert torch.equal(answer(AutoModelForImageClassification.from_pretrained(REPO)), local)
    assert torch.equal(answer(timm.create_model(f"hf-hub:{REPO}", pretrained=True)), local)
    assert AutoImageProcessor.from_pretrained(REPO, backend="pil").data_config["input_size"] == (3, SIZE, SIZE)
    here, there = (Teacher.from_pretrained(name).members[0] for name in (str(trained), REPO))
    assert (here.preprocessing, here.weights_hash) == (there.preprocessing, there.weights_hash)
    assert (here.revision, there.revision) == (None, push.commit)
    (tmp_path / "README.md").write_bytes(files["README.md"])
    by_transformers, by_timm = run_card(tmp_path, tmp_path)
    assert by_transformers == by_timm
    assert by_timm in tiny_plus.class_names

    card = ModelCard(push.card)
    assert card.data.model_name == "student"
    metrics = json.loads(files["eval_results.json"])
    assert {r.metric_name: r.metric_value for r in card.data.eval_results}["Top-1 accuracy"] == metrics["eval_top1"]
    for content in files.values():
        assert loopback_hub.token.encode() not in content
        assert str(trained.parent).encode() not in content
    assert loopback_hub.token not in caplog.text
    assert not any(request.authorized for request in loopback_hub.log if request.kind in ("cdn", "lfs_put"))


def test_a_teacher_from_the_hub_is_pinned_to_its_commit(loopback_hub, folders, trained):
    first = push_student(trained, REPO)
    second = push_student(trained, REPO, ema=True)
    latest, pinned = (Teacher.from_pretrained(name).members[0] for name in (REPO, f"{REPO}@{first.commit}"))
    assert (latest.revision, pinned.revision) == (second.commit, first.commit)
    assert latest.weights_hash != pinned.weights_hash
    member = {**pinned.provenance(), "classes": None}
    provenance = SimpleNamespace(teacher={"members": [member], "num_classes": 8})
    again = teacher_from_provenance(provenance, device="cpu")
    assert again.members[0].weights_hash == pinned.weights_hash
    with pytest.raises(TeacherError, match="could not load"):
        Teacher.from_pretrained(f"{REPO}@nowhere")


def test_pushing_again_sends_nothing_and_keeps_what_people_wrote(loopback_hub, trained, tmp_path, caplog):
    push_student(trained, REPO)
    sent = loopback_hub.received("lfs_put")
    assert push_student(trained, REPO).commit == HfApi().model_info(REPO).sha
    assert (loopback_hub.counts["commit"], loopback_hub.received("lfs_put")) == (1, sent)
    files = loopback_hub.files(REPO, repo_type="models")
    more = {"README.md": files["README.md"] + b"\nThanks.\n", "notes.txt": b"mine", "pytorch_model.bin": b"former"}
    loopback_hub.put(REPO, {**files, **more}, repo_type="models")
    push = push_student(trained, REPO)
    there = pushed(loopback_hub)
    assert there.keys() == PUBLISHED | {"notes.txt"}
    assert push.deleted == ("pytorch_model.bin",)
    assert there["README.md"].endswith(b"\nThanks.\n")
    assert "not sent" not in caplog.text
    changed = Path(shutil.copytree(trained, tmp_path / trained.name))
    with (changed / "README.md").open("a") as card:
        card.write("\nNot for medical use.\n")
    push_student(changed, REPO)
    assert caplog.text.count("README.md of the folder has lines that the card of") == 1
    assert b"medical" not in pushed(loopback_hub)["README.md"]


def test_the_averaged_weights_are_pushed_on_request(loopback_hub, trained, capsys):
    assert main(["push", str(trained), REPO, "--ema"]) == 0
    assert capsys.readouterr().out.startswith(f"{loopback_hub.endpoint}/{REPO} at ")
    average = load_file(trained / "ema.safetensors")
    assert not torch.equal(average["cls_token"], load_file(trained / "model.safetensors")["cls_token"])
    model = AutoModelForImageClassification.from_pretrained(REPO)
    for name, tensor in model.timm_model.state_dict().items():
        assert torch.equal(tensor, average[name])
    assert torch.equal(answer(timm.create_model(f"hf-hub:{REPO}", pretrained=True)), answer(model))
    card = ModelCard(pushed(loopback_hub)["README.md"].decode())
    metrics = json.loads((trained / "eval_results.json").read_text())
    assert {r.metric_name: r.metric_value for r in card.data.eval_results}["Expected calibration error"] == (
        metrics["eval_ema_ece"]
    )
    assert "exponential moving average" in card.text


def test_one_process_pushes_a_student(loopback_hub, folders, monkeypatch):
    monkeypatch.setattr("hf_dr.cli.push.start_logging", lambda: None)
    monkeypatch.setattr("hf_dr.processes.process_state", lambda: SimpleNamespace(is_main_process=False))
    assert main(["push", str(folders["test_resnet"]), REPO]) == 0
    assert not loopback_hub.log


def test_a_dry_run_sends_nothing(loopback_hub, trained, capsys):
    assert main(["push", str(trained), REPO, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert f"to {REPO} at main" in shown
    assert '"hf-hub:me/student"' in shown
    assert not any(request.method == "POST" for request in loopback_hub.log)


@pytest.mark.parametrize("kind", ["500", "lost", "cut"])
def test_a_push_survives_a_fault(loopback_hub, trained, monkeypatch, kind):
    monkeypatch.setattr("hf_dr.hub.retry._sleep", lambda seconds: None)
    loopback_hub.faults.append(Fault(kind, at="commit"))
    push_student(trained, REPO)
    assert pushed(loopback_hub).keys() == PUBLISHED


def test_to_a_pull_request_or_a_branch(loopback_hub, trained):
    push = push_student(trained, REPO, create_pr=True, private=True)
    assert push.revision == "refs/pr/1"
    assert pushed(loopback_hub) == {}
    push_student(trained, REPO, revision="v1", tags=["first"])
    assert "refs/pr" not in push.card
    files = loopback_hub.files(REPO, "first", repo_type="models")
    assert files.keys() >= PUBLISHED
    card = files["README.md"].decode()
    assert card.count(f'from_pretrained("{REPO}", revision="v1")') == 2
    assert f'timm.create_model("hf-hub:{REPO}@v1", pretrained=True)' in card
    model = AutoModelForImageClassification.from_pretrained(REPO, revision="v1")
    assert torch.equal(answer(timm.create_model(f"hf-hub:{REPO}@v1", pretrained=True)), answer(model))
    assert HfApi().model_info(REPO).private


def test_folders_of_the_old_layout_and_checkpoints(loopback_hub, trained, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(trained)
    config = json.loads((trained / "config.json").read_text())
    config["pretrained_cfg"] = {
        key: config["pretrained_cfg"][key] for key in ("input_size", "crop_pct", "interpolation")
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    push_student(tmp_path, REPO)
    files = pushed(loopback_hub)
    assert files.keys() == {"config.json", "model.safetensors", "README.md"}
    whole = json.loads((trained / "config.json").read_text())
    del whole["use_cache"]  # Trainer's own
    assert json.loads(files["config.json"]) == whole
    assert files["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    push_student(trained / "checkpoint-2", "me/checkpoint")
    there = pushed(loopback_hub, "me/checkpoint")
    assert there.keys() == {"config.json", "model.safetensors", "README.md"}
    assert there["model.safetensors"] == files["model.safetensors"]


def test_other_classifiers_are_pushed_with_their_processor(loopback_hub, tmp_path, caplog):
    model = transformers_student("vit")
    model.save_pretrained(tmp_path)
    push_student(tmp_path, REPO)
    assert "has no image processor" in caplog.text
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path)
    push_student(tmp_path, REPO)
    assert AutoImageProcessor.from_pretrained(REPO, backend="pil").size["height"] == SIZE
    assert torch.equal(answer(AutoModelForImageClassification.from_pretrained(REPO)), answer(model))


def test_what_is_no_student(folders, tiny_folder, tmp_path, capsys):
    with pytest.raises(
        FormatError, match=r"must hold a trained student, config.json and model.safetensors, found none"
    ):
        export_student(tmp_path, tmp_path / "out")
    (tmp_path / "begun" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(FormatError, match=r"found only checkpoints of a training that has not ended\. Run the same"):
        export_student(tmp_path / "begun", tmp_path / "out")
    save_file({"a": torch.zeros(1)}, tmp_path / "begun" / "model.safetensors")
    with pytest.raises(
        FormatError,
        match=r"that transformers loads, but its weights have no config\.json\. Train a model of .* with `--push_to_hub` added",
    ):
        export_student(tmp_path / "begun", tmp_path / "out")
    copy = Path(shutil.copytree(folders["test_resnet"], tmp_path / "copy"))
    (copy / "ema.safetensors").unlink()
    with pytest.raises(FormatError, match=r"must hold ema.safetensors for `ema`, found none. Train with `ema_decay`"):
        export_student(copy, tmp_path / "out", ema=True)
    save_file({"fc.bias": torch.zeros(8)}, copy / "ema.safetensors")
    with pytest.raises(FormatError, match=r"ema.safetensors in .* must fit its model, but: "):
        export_student(copy, tmp_path / "out", ema=True)
    weights = load_file(copy / "model.safetensors")
    save_file({**weights, "more": torch.zeros(1)}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(FormatError, match=r"must be those of its config.json, but timm_model.more is not"):
        export_student(copy, tmp_path / "out")
    (copy / "config.json").write_text("{}")
    with pytest.raises(FormatError, match="must hold an image classifier that transformers loads, but ValueError"):
        export_student(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for folder, flags, message in (
        (folders["test_vit"], ["--overwrite"], '`overwrite` must come with a "+" dataset, got it with a student'),
        (tiny_folder, ["--ema"], '`ema` must come with a student, got it with a "+" dataset'),
    ):
        assert main(["push", str(folder), REPO, *flags]) == 2
        assert message in capsys.readouterr().err


def test_a_checkpoint_that_would_run_code_is_refused(folders, tmp_path):
    copy = Path(shutil.copytree(folders["test_resnet"], tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForImageClassification": "code.M"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(FormatError, match="must hold an image classifier that transformers loads, but"):
        export_student(copy, tmp_path / "out")


@pytest.fixture
def pushing(tiny_plus, tmp_path) -> Callable[..., ReinforcedTrainer]:
    """Makes a trainer that saves and pushes each of its two steps; what else is given wins."""
    usual = {
        "output_dir": str(tmp_path / "out"), "max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "steps",
        "save_steps": 1, "report_to": "none", "disable_tqdm": True, "push_to_hub": True, "hub_model_id": REPO,
    }  # fmt: skip

    def make(**settings: Any) -> ReinforcedTrainer:
        args = ReinforcedTrainingArguments(**{**usual, **settings})
        return ReinforcedTrainer(timm_student(tiny_plus, "test_resnet"), args, train_dataset=tiny_plus)

    return make


# What Trainer does about the client's progress bars.
@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_trainers_own_push_brings_the_student_only(loopback_hub, pushing, tmp_path, monkeypatch):
    one = pushing(hub_always_push=True)
    one.train()
    assert loopback_hub.counts["commit"] == 2, "one for each checkpoint"
    assert pushed(loopback_hub).keys() == PUBLISHED - {"eval_results.json"}
    one.push_to_hub(dataset="tiny-plus", tags=["mine"])
    logits = equal_logits(tmp_path / "out")
    assert torch.equal(answer(timm.create_model(f"hf-hub:{REPO}", pretrained=True)), logits)
    assert "`tiny-plus`" in pushed(loopback_hub)["README.md"].decode()
    assert "mine" in ModelCard(pushed(loopback_hub)["README.md"].decode()).data.tags
    later = one.push_to_hub("Later", blocking=False).result()
    assert later.commit == HfApi().model_info(REPO).sha
    monkeypatch.setattr(one, "is_world_process_zero", lambda: False)
    del one.push_in_progress  # as on other ranks
    commits = loopback_hub.counts["commit"]
    one._push_from_checkpoint("nowhere")
    assert one.push_to_hub() is None
    assert loopback_hub.counts["commit"] == commits
    with pytest.raises(ConfigError, match=r"`hub_strategy` must be end or every_save, got checkpoint: .*pickles"):
        pushing(hub_strategy="checkpoint")


def test_a_trainer_that_was_not_told_to_push_makes_its_repository(loopback_hub, pushing):
    trainer = pushing(push_to_hub=False)
    assert trainer.hub_model_id is None
    trainer.push_in_progress = SimpleNamespace(is_done=lambda: False)
    trainer._push_from_checkpoint("nowhere")  # left out while another push is under way
    del trainer.push_in_progress
    trainer.push_to_hub(private=True)
    assert HfApi().model_info(REPO).private
    assert pushed(loopback_hub).keys() == PUBLISHED - {"eval_results.json"}


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_a_push_that_fails_during_the_training_does_not_end_it(loopback_hub, pushing, monkeypatch, caplog):
    trainer = pushing(max_steps=1)
    monkeypatch.setattr("hf_dr.hub.retry._sleep", lambda seconds: None)
    loopback_hub.faults.append(Fault("500", at="commit", count=1000))
    trainer.train()
    assert "A push during the training failed: " in caplog.text
    with pytest.raises(HubError):
        trainer.push_to_hub()
    loopback_hub.faults.clear()
    trainer.push_to_hub()
    assert pushed(loopback_hub).keys() >= {"model.safetensors", "README.md"}


# What Trainer does about the client's progress bars.
@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_a_push_that_cannot_begin_leaves_whole_checkpoints(loopback_hub, pushing, tmp_path, monkeypatch, caplog):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = pushing()
    monkeypatch.setattr("hf_dr.training.student_hub.export_student", full)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert trainer.train().global_step == 2
    assert "A push during the training failed: [Errno 28] No space left on device" in caplog.text
    for step in (1, 2):
        assert find_damage(tmp_path / "out" / f"checkpoint-{step}") is None
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "copies are not left behind"


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_a_model_that_nobody_could_load_is_not_pushed(loopback_hub, tiny_plus, tmp_path, strategy):
    settings = {"output_dir": str(tmp_path), "report_to": "none", "hub_model_id": REPO}
    asked = ReinforcedTrainingArguments(push_to_hub=True, hub_strategy=strategy, **settings)
    message = r"`model` must be a model of transformers to be pushed \(`push_to_hub`\), got Pooled\. Build it with"
    with pytest.raises(ConfigError, match=message):
        ReinforcedTrainer(pooled(), asked, train_dataset=tiny_plus)
    trainer = ReinforcedTrainer(pooled(), ReinforcedTrainingArguments(**settings), train_dataset=tiny_plus)
    with pytest.raises(ConfigError, match=message):
        trainer.push_to_hub()
    assert not loopback_hub.counts["commit"]
