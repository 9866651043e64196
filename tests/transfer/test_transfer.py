"""Students as backbones, and what the trainer of detection and segmentation does by itself, on a task of one number."""

import functools
import itertools
import json
import shutil
from dataclasses import asdict

import pytest
import timm
import torch
from huggingface_hub import HfApi
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from samples import MAY_CHANGE, quick
from torch import nn
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification

from hf_dr.errors import ConfigError, FormatError, TeacherError
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.training.checkpoints import write_checksums
from hf_dr.training.student_hub import push_student
from hf_dr.training.students import build_student, complete_config, native_names
from hf_dr.training.trainer import ReinforcedTrainer
from hf_dr.transfer.backbone import Backbone, BackboneSpec, backbone, describe_backbone
from hf_dr.transfer.trainer import (
    TRANSFER_FILE,
    EpochSampler,
    TransferArguments,
    TransferTrainer,
    load_trained,
    load_weights,
    read_description,
)


@pytest.fixture(scope="module")
def save(tmp_path_factory):
    """Saves a fresh student of an architecture as a training does; returns its folder, to be read only, and the student."""

    @functools.cache
    def save(architecture):
        torch.manual_seed(0)
        normalization = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        student = build_student(f"timm:{architecture}", None, 7, normalization=normalization)
        complete_config(student)
        folder = tmp_path_factory.mktemp("student") / architecture
        student.save_pretrained(folder, state_dict=native_names(student.state_dict()))
        return folder, student.eval()

    return save


@pytest.mark.parametrize(
    ("architecture", "reductions"),
    [("test_resnet", [4, 8, 16, 32]), ("mobilenetv2_035", [4, 8, 16, 32]), ("mobilevit_xxs", [4, 8, 16, 32]),
     ("test_vit", [16]), ("test_convnext", [4, 8, 16, 32])],
)  # fmt: skip
def test_features_are_what_the_classifier_sees(save, architecture, reductions):
    folder, student = save(architecture)
    side = student.timm_model.pretrained_cfg["input_size"][-1]
    built, identity = backbone(str(folder))
    built.eval()
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = built(pixels)
        expected = student.timm_model.forward_intermediates(
            pixels, indices=list(built.spec.out_indices), intermediates_only=True
        )
        other = built(torch.zeros(1, 3, 64, 96))
    assert built.reductions == reductions
    assert [f.shape for f in other] == [
        (1, c, 64 // r, 96 // r) for c, r in zip(built.channels, reductions, strict=True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert (built.spec.mean, built.spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (identity["id"], identity["architecture"], identity["objective"]) == (architecture, architecture, None)
    assert BackboneSpec.from_dict(json.loads(json.dumps(describe_backbone(built)["backbone"]))) == built.spec


@pytest.mark.parametrize("architecture", ["test_resnet", "mobilenetv3_small_050", "efficientnet_b0", "mobilevit_xxs"])
def test_dilation_keeps_the_weights_and_refines_the_last_features(save, architecture):
    folder, student = save(architecture)
    built, _ = backbone(str(folder), output_stride=16)
    assert built.reductions == [4, 8, 16]
    assert [f.shape[-2:] for f in built.eval()(torch.zeros(1, 3, 64, 96))] == [(16, 24), (8, 12), (4, 6)]
    weights = {name.removeprefix("model."): tensor for name, tensor in built.net.state_dict().items()}
    original = student.timm_model.state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in weights.items())
    last = [name for name in original if name.startswith(("layer4", "blocks.5", "blocks.6", "final_conv"))]
    assert last
    assert all(name in weights for name in last)


def test_a_student_tells_who_it_is(tiny_plus, tmp_path, loopback_hub):
    student = build_student("timm:test_resnet", tiny_plus.class_names, tiny_plus.num_classes)
    arguments = ReinforcedTrainingArguments(
        str(tmp_path / "plus-student"), max_steps=1, disable_tqdm=True, report_to="none", save_strategy="no"
    )
    trainer = ReinforcedTrainer(student, arguments, train_dataset=tiny_plus)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(dataset="org/tiny-plus")
    built, identity = backbone(arguments.output_dir)
    assert identity["id"] == "plus-student"
    assert identity["objective"] == "reinforced"
    assert identity["dataset"]["id"] == "org/tiny-plus"
    assert identity["dataset"]["fingerprint"] == tiny_plus.provenance.fingerprint
    assert identity["settings"]["seed"] == "42"
    commit = push_student(arguments.output_dir, "me/student").commit
    published, again = backbone("me/student")
    assert again == {**identity, "id": "me/student", "revision": commit}
    HfApi().delete_file("student.json", "me/student")
    _, unknown = backbone("me/student")
    assert (unknown["objective"], unknown["weights_hash"]) == (None, identity["weights_hash"])
    assert all(torch.equal(a, b) for a, b in zip(built.parameters(), published.parameters(), strict=True))


def test_names_of_timm(tmp_path):
    torch.manual_seed(0)
    built, identity = backbone("timm:test_resnet", out_indices=(2, 4))
    assert built.reductions == [8, 32]
    assert (identity["weights_hash"], identity["settings"]) == (None, {})
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    built, identity = backbone(f"timm:test_resnet@{tmp_path / 'w.safetensors'}")
    assert identity["id"] == "timm:test_resnet@w.safetensors"
    assert torch.equal(
        built.net.state_dict()["model.conv1.0.weight"], load_file(tmp_path / "w.safetensors")["conv1.0.weight"]
    )


def test_what_is_no_backbone(save, tmp_path):
    with pytest.raises(ConfigError, match=r"timm has no architecture `test_resnett`. Did you mean `test_resnet`"):
        backbone("timm:test_resnett")
    with pytest.raises(
        ConfigError, match=r"must take .*output_stride, but: .*Leave `output_stride` out, or choose another"
    ):
        backbone("timm:test_vit", output_stride=8)
    with pytest.raises(ConfigError, match=r"must give features of test_resnet .*out_indices=.*Choose another"):
        backbone("timm:test_resnet", out_indices=(9,))
    with pytest.raises(
        ConfigError, match=r"must take images of all sizes, but timm's mixer_s32_224 takes those of one size"
    ):
        backbone("timm:mixer_s32_224")
    vit = ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=4, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4
        )
    )
    vit.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}})
    )
    with pytest.raises(ConfigError, match="must be of one of timm's architectures, found ViTForImageClassification"):
        backbone(str(tmp_path / "vit"))
    folder, _ = save("test_resnet")
    with pytest.raises(ConfigError, match="`model_args` must come with `timm:ARCHITECTURE`"):
        backbone(str(folder), model_args={"drop_path_rate": 0.1})


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_weights_must_be_those_of_the_student(save, tmp_path, change):
    folder = shutil.copytree(save("test_resnet")[0], tmp_path / "student")
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["layer2.0.conv1.weight"]
    else:
        weights["layer9.weight"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    AutoModelForImageClassification.from_pretrained(folder)  # by itself it takes what is there
    message = {
        "missing": "has no .*layer2.0.conv1.weight",
        "extra": "must hold only its model.s weights, but it also holds .*layer9.weight",
    }
    with pytest.raises(TeacherError, match=message[change]):
        backbone(str(folder))
    built, _ = backbone("timm:test_resnet")
    with pytest.raises(ConfigError, match=r"need all weights of their classifier, but `model.conv1.0.weight`"):
        built.load_classifier({})
    others = {name.removeprefix("model."): torch.zeros(7) for name in built.net.state_dict()}
    with pytest.raises(ConfigError, match=r"the weights must fit test_resnet with \{\}, but: .* Check `model_args`"):
        built.load_classifier(others)


def test_frozen_normalisations_stay(save):
    folder, _ = save("test_resnet")
    for freeze in (True, False):
        built, _ = backbone(str(folder), freeze_norm=freeze)
        before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
        built.train()
        optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=0.1)
        sum(f.square().mean() for f in built(torch.randn(2, 3, 64, 64))).backward()
        optimizer.step()
        norms = {n for n, m in built.named_modules() if isinstance(m, nn.BatchNorm2d)}
        changed = {name for name, tensor in built.state_dict().items() if not torch.equal(tensor, before[name])}
        assert any(name.rpartition(".")[0] in norms for name in changed) != freeze
        assert any("conv" in name for name in changed)


class Rows:
    """Row r of epoch e is the number r + 100 e."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        row, epoch = index if isinstance(index, tuple) else (index, 0)
        return float(row + 100 * epoch)

    def is_doubtful(self, row):
        return False


class Line(nn.Module):
    """A backbone, and a weight that is drawn from the global generator's noise: what must come back after a restart."""

    def __init__(self):
        super().__init__()
        self.backbone, _ = backbone("timm:test_resnet", out_indices=(0,), freeze_norm=True)
        self.weight = nn.Parameter(torch.zeros(3, 3))
        self.seen = []

    def forward(self, numbers):
        self.seen.append(numbers.tolist())
        device = self.weight.device
        features = self.backbone(torch.ones(1, 3, 32, 32, device=device))[0]
        noise = torch.rand(3, 3).to(device)
        return {"loss": ((self.weight + noise - numbers.mean()) ** 2).mean() + features.square().mean()}


class Sum:
    names = ("sum", "count")

    def __init__(self):
        self.rows = []

    def update(self, model, batch):
        self.rows += batch["numbers"].tolist()

    def compute(self):
        return {"sum": sum(self.rows), "count": len(self.rows)}


def collated(numbers):
    return {"numbers": torch.tensor(numbers)}


def line_trainer(out, **more):
    """A trainer of a Line for 8 steps, 3 to an epoch."""
    torch.manual_seed(0)
    model = Line()
    settings = {
        "learning_rate": 0.05, "optim": "sgd", "save_steps": 3, "max_steps": 8, "save_total_limit": 3, "report_to": "none",
        "per_device_train_batch_size": 2, "disable_tqdm": True, "logging_steps": 1, **more,
    }  # fmt: skip
    return TransferTrainer(
        model, TransferArguments(str(out), **settings),
        description={"task": "line", "student": {"id": "s"}, "dataset": {"id": "d"}, **describe_backbone(model.backbone)},
        meter=Sum, train_dataset=Rows(5), eval_dataset=Rows(7),
        data_collator=collated,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished training with checkpoints after 3, 6 and 8 steps."""
    trainer = line_trainer(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


@pytest.fixture
def short(tmp_path):
    """A finished training of one epoch."""
    trainer = line_trainer(tmp_path, max_steps=3, per_device_eval_batch_size=3, hub_model_id="me/line")
    trainer.train()
    return trainer


def test_a_resumed_run_is_the_same_run(whole, tmp_path):
    again = line_trainer(tmp_path)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    assert whole.model.seen[3:] == again.model.seen
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), again.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert sorted(itertools.chain(*whole.model.seen[:3])) == [0, 1, 2, 3, 4]
    assert sorted(itertools.chain(*whole.model.seen[3:6])) == [100, 101, 102, 103, 104]


@pytest.mark.parametrize("name", sorted(MAY_CHANGE.keys() - TransferArguments.without_part.keys()))
def test_an_argument_that_may_change_shapes_no_weights(whole, tmp_path, name):
    again = line_trainer(tmp_path, **{name: MAY_CHANGE[name]})
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "changes",
    [
        {"lr_decay": 0.5, "lr_milestones": [0.5]},
        {"lr_milestones": [0.5]},
        {"learning_rate": 0.1},
        {"momentum": 0.5},
        {"seed": 1},
    ],
    ids=str,
)
def test_an_argument_that_shapes_the_weights_is_refused(whole, tmp_path, changes):
    name = next(iter(changes))
    with pytest.raises(ConfigError, match=rf"must be resumed with its own settings, but .*-3 differs in .*\b{name}: "):
        line_trainer(tmp_path, **changes).train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-3")


@pytest.mark.parametrize(
    ("changes", "variable", "shown"),
    [({}, None, True), ({"disable_tqdm": True}, None, False), ({}, "TQDM_DISABLE", False)],
    ids=["shown", "disable_tqdm", "TQDM_DISABLE"],
)
def test_without_a_terminal_the_bars_of_a_training_are_lines(tmp_path, capsys, monkeypatch, changes, variable, shown):
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "1")
    settings = {"disable_tqdm": False, "eval_strategy": "steps", "eval_steps": 4, **changes}
    line_trainer(tmp_path, max_steps=8, save_strategy="no", **settings).train()
    lines = capsys.readouterr().err.splitlines()
    if not shown:
        assert not lines
        return
    assert lines[0].startswith("training: 0 %, 0 of 8")
    assert lines[-1].startswith("training: 100 %, 8 of 8")
    assert sum(line.startswith("training: ") for line in lines) <= 3
    assert not any(line.startswith("evaluating") for line in lines), "short ones"
    assert all(line.isprintable() for line in lines)


def test_a_run_that_ended_within_an_epoch_takes_no_further_step(whole, tmp_path):
    again = line_trainer(tmp_path)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-8")
    assert (again.state.global_step, again.model.seen) == (8, [])


def test_a_run_is_resumed_only_under_its_own_description(whole, tmp_path):
    checkpoint = shutil.copytree(f"{whole.args.output_dir}/checkpoint-3", tmp_path / "checkpoint-3")
    path = checkpoint / TRANSFER_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "task": "curve"}))
    write_checksums(checkpoint, resumable=True)
    with pytest.raises(ConfigError, match=r"differs in task: curve there, line here\. Restore them"):
        line_trainer(tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))
    path.unlink()
    write_checksums(checkpoint, resumable=True)
    with pytest.raises(FormatError, match=r"checkpoint-3 must hold a model that .* trained, with its transfer.json"):
        line_trainer(tmp_path / "out").train(resume_from_checkpoint=str(checkpoint))


def test_an_evaluation_takes_its_arguments_by_place_as_trainers_does(short):
    found = short.evaluation_loop(short.get_eval_dataloader(), "Prediction", None, None, "test")
    assert found.metrics.items() >= {"test_sum": 21, "test_count": 7}.items()


def test_evaluation_sees_each_image_once_and_results_tell_of_what(short, tmp_path):
    assert short.evaluate().items() >= {"eval_sum": 21, "eval_count": 7}.items()
    short.save_model()
    short.write_results()
    found = json.loads((tmp_path / "transfer_results.json").read_text())
    assert found["metrics"] == {"sum": 21, "count": 7}
    assert (found["task"], found["student"], found["dataset"]) == ("line", {"id": "s"}, {"id": "d"})
    assert found["training"] == {
        "seed": 42, "epochs": 1.0, "steps": 3, "batch_size": 2, "learning_rate": 0.05, "lr_schedule": "linear",
        "optim": "sgd", "weight_decay": 0.0, "momentum": 0.9, "nesterov": False, "max_grad_norm": 1.0, "warmup_steps": 0,
        "lr_scheduler_kwargs": {}, "lr_decay": 0.1, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
        "optim_args": None, "mixed_precision": "no",
    }  # fmt: skip
    model = Line()
    load_weights(model, tmp_path)
    assert torch.equal(model.weight, short.model.weight.cpu())
    assert read_description(tmp_path)["task"] == "line"


@pytest.mark.parametrize(
    "changes",
    [
        {"momentum": 0.5}, {"nesterov": True}, {"max_grad_norm": 2.0}, {"warmup_steps": 1}, {"adam_beta2": 0.9},
        {"lr_scheduler_kwargs": {"num_cycles": 2}}, {"weight_decay": 0.1}, {"seed": 1},
    ],
    ids=str,
)  # fmt: skip
def test_results_tell_what_decides_the_steps(tmp_path, changes):
    for name, own in (("one", {}), ("two", changes)):
        trainer = line_trainer(tmp_path / name, **own)
        (tmp_path / name).mkdir(exist_ok=True)
        trainer.write_results()
    one, two = (json.loads((tmp_path / n / "transfer_results.json").read_text())["training"] for n in ("one", "two"))
    assert {key for key in one if one[key] != two[key]} == changes.keys()


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
@pytest.mark.parametrize(
    ("images", "said"),
    [("a`<b>`", "Trained on `a'<b>'`, on the backbone `s`."), (None, "Trained on the backbone `s`.")],
)
def test_names_in_the_card_are_only_names(short, loopback_hub, images, said):
    short._description["dataset"]["id"] = images
    short.push_to_hub()
    assert said in loopback_hub.files("me/line", repo_type="models")["README.md"].decode()


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_the_card_loads_from_the_branch_that_was_pushed_to(short, loopback_hub):
    short._description["task"] = "object-detection"
    for revision, place in (("v2", '"me/line", revision="v2"'), (None, '"me/line"')):
        short.args.hub_revision = revision
        card = short.push_to_hub().card
        assert f"model = load_detector(snapshot_download({place}))" in card


# What Trainer does about the client's progress bars.
@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_what_is_pushed_has_no_state_of_the_training(short, loopback_hub, monkeypatch):
    short.evaluate()
    push = short.push_to_hub()
    names = {"model.safetensors", TRANSFER_FILE, "transfer_results.json"}
    assert set(push.files) == names
    files = loopback_hub.files("me/line", repo_type="models")
    assert files.keys() - {".gitattributes"} == names | {"README.md"}
    assert "pipeline_tag: line" in files["README.md"].decode()
    assert "Trained on `d`, on the backbone `s`." in files["README.md"].decode()
    assert json.loads(files["transfer_results.json"])["metrics"] == {"sum": 21, "count": 7}
    # Another one, pushed to the same place: its card tells of it, and what people wrote stays.
    card = files["README.md"].decode() + "\nWritten by a person.\n"
    loopback_hub.put("me/line", {**files, "README.md": card.encode()}, repo_type="models")
    short._description["student"]["id"] = "another"
    short.push_to_hub()
    card = loopback_hub.files("me/line", repo_type="models")["README.md"].decode()
    assert "on the backbone `another`." in card
    assert "`s`" not in card
    assert "Written by a person." in card
    monkeypatch.setattr(short, "is_world_process_zero", lambda: False)
    assert short.push_to_hub() is None


EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}


@pytest.mark.parametrize(
    "changes",
    [{"metric_for_best_model": "summ"}, {"metric_for_best_model": "eval_loss", "save_strategy": "best"},
     {"load_best_model_at_end": True, "save_steps": 1}, {"save_strategy": "best"},
     {"lr_scheduler_type": "reduce_lr_on_plateau"}],
    ids=str,
)  # fmt: skip
def test_a_metric_that_is_not_measured_is_refused_before_training(tmp_path, changes):
    wanted = changes.get("metric_for_best_model", "loss")
    trainer = line_trainer(tmp_path, **EACH_STEP, **changes)
    with pytest.raises(
        ConfigError, match=f"`metric_for_best_model` must be one of count, sum, .* got '{wanted}'. Name"
    ):
        trainer.train()
    assert not trainer.model.seen


def test_a_metric_that_an_evaluation_leaves_out_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Sum, "compute", lambda self: {"count": len(self.rows)})
    settings = {"metric_for_best_model": "sum", **EACH_STEP}
    with pytest.raises(ConfigError, match=r"must be one of count, runtime, .* which evaluations measure, got 'sum'"):
        line_trainer(tmp_path, **settings).train()
    assert line_trainer(tmp_path, **settings).evaluate()["eval_count"] == 7, "an evaluation alone chooses nothing"


@pytest.mark.parametrize(
    ("changes", "named", "greater"),
    [({"load_best_model_at_end": True, "save_steps": 1}, "mean_iou", True), ({"save_strategy": "best"}, "mean_iou", True),
     ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "mean_iou", True),
     ({"save_strategy": "best", "greater_is_better": False}, "mean_iou", False),
     ({"save_strategy": "best", "metric_for_best_model": "iou_a"}, "iou_a", True), ({}, None, None)],
    ids=str,
)  # fmt: skip
def test_a_task_names_its_own_metric_where_one_is_needed(tmp_path, monkeypatch, changes, named, greater):
    monkeypatch.setattr(Sum, "names", ("iou_a", "mean_iou"))
    args = line_trainer(tmp_path, **EACH_STEP, **changes).args
    assert (args.metric_for_best_model, args.greater_is_better) == (named, greater)


@pytest.mark.parametrize(
    ("changes", "mode"),
    [
        ({}, "max"),
        ({"greater_is_better": False}, "min"),
        ({"lr_scheduler_kwargs": {"mode": "min", "patience": 3}}, "min"),
    ],
    ids=str,
)
def test_a_rate_that_follows_a_metric_falls_when_the_metric_gets_no_better(tmp_path, changes, mode):
    settings = {"metric_for_best_model": "sum", "lr_scheduler_type": "reduce_lr_on_plateau", **EACH_STEP, **changes}
    trainer = line_trainer(tmp_path, **settings)
    given = trainer.args.lr_scheduler_kwargs
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(2)
    assert scheduler.mode == mode
    assert scheduler.patience == (3 if "lr_scheduler_kwargs" in changes else 10)
    assert trainer.args.lr_scheduler_kwargs is given


def test_what_is_read_must_be_a_trained_model(tmp_path):
    with pytest.raises(FormatError, match=r"must hold a model that .* trained, with its transfer.json"):
        read_description(tmp_path)
    (tmp_path / TRANSFER_FILE).write_text("{}")
    with pytest.raises(FormatError, match=r"must hold task, student, dataset and backbone, found \{}"):
        read_description(tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError, match=r"model.safetensors must hold the weights of its model"):
        load_weights(Line(), tmp_path)
    spec = BackboneSpec("test_resnett", {}, (2, 4), None, (0.5,) * 3, (0.5,) * 3)
    content = {"task": "line", "student": {}, "dataset": {}, "backbone": asdict(spec), "freeze_norm": False}
    (tmp_path / TRANSFER_FILE).write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"timm must give features of test_resnett .* Unknown model"):
        load_trained(tmp_path, "line", lambda body, described: body)


def test_the_rate_falls_at_its_milestones(tmp_path):
    trainer = line_trainer(tmp_path, max_steps=10, lr_milestones=[0.5, 0.8], lr_decay=0.5, warmup_steps=1)
    trainer.create_optimizer()
    scheduler = trainer.create_scheduler(10)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr()[0] / 0.05)
        trainer.optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25])


def test_what_decays(tmp_path):
    trainer = line_trainer(tmp_path)
    names = set(trainer.get_decay_parameter_names(trainer.model))
    assert "weight" in names
    assert not any("bn" in name or "bias" in name for name in names)
    vit, _ = backbone("timm:test_vit")
    assert {"net.model.pos_embed", "net.model.cls_token"} >= vit.no_weight_decay() > set()
    assert isinstance(vit, Backbone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"momentum": 1.0}, "`momentum` must be at least 0 and below 1, got 1.0"),
     ({"lr_decay": 0.0, "lr_milestones": [0.5]}, "`lr_decay` must be above 0 and at most 1, got 0.0"),
     ({"lr_decay": 0.5}, "`lr_decay` needs `lr_milestones`, at which the rate changes, got 0.5 alone. Give both"),
     ({"lr_milestones": [0.8, 0.5]}, "`lr_milestones` must be ascending shares between 0 and 1, got 0.8, 0.5"),
     ({"lr_milestones": [16.0]}, "`lr_milestones` must be ascending shares"),
     ({"lr_milestones": [float("nan")]}, "`lr_milestones` must be ascending shares between 0 and 1, got nan"),
     ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` has no part in this training, got 0.1. Leave it out"),
     ({"train_sampling_strategy": "group_by_length"}, "`train_sampling_strategy` has no part in this training"),
     ({"gradient_checkpointing": True}, "`gradient_checkpointing` has no part in this training, got True"),
     ({"bf16_full_eval": True}, "`bf16_full_eval` has no part in this training, got True"),
     ({"push_to_hub": True, "hub_strategy": "every_save"}, "`hub_strategy` must be end, got every_save: the model is ")],
)  # fmt: skip
def test_impossible_settings(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        TransferArguments(str(tmp_path), **settings)


@quick
@given(st.integers(1, 50), st.integers(0, 2**32), st.integers(0, 9))
def test_an_epoch_has_each_row_once(count, seed, epoch):
    sampler = EpochSampler(count, seed)
    sampler.set_epoch(epoch)
    first = list(sampler)
    assert sorted(first) == [(row, epoch) for row in range(count)]
    assert first == list(sampler)
    assert len(sampler) == count
