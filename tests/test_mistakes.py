"""What users give in the wrong place is refused in words by each public function, not by an error from deep within."""

from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

import hf_dr
from hf_dr import (
    Augmentation,
    ConfigError,
    DataError,
    ExtendConfig,
    HfDrError,
    ReinforceConfig,
    ReinforcedDataset,
    ReinforcedLoader,
    ReinforcedLoss,
    ReinforcedSampler,
    ReinforcedTrainer,
    ReinforcedTrainingArguments,
    Teacher,
    build_student,
    calibrate,
    contact_sheet,
    extend,
    load_detector,
    load_reinforced,
    load_segmenter,
    ops,
    push_to_hub,
    reinforce,
    reinforced_kl,
    reinforced_loss,
    verify,
)

STUDENT = "timm:test_resnet"
ANYTHING = {
    "None": None,
    "number": -3,
    "empty": "",
    "path": Path("/nowhere/x"),
    "object": object(),
    "home": "~nosuchuser/x",
}
PARTS = {
    f"reinforced_loss {name}": lambda x, d, name=name: reinforced_loss(d.logits, {**d.batch, name: x})
    for name in ("teacher_ids", "teacher_logprobs", "reinforced", "labels")
}
# Function of one wrong argument, with what else it needs. `d` is the fixture `data`.
FUNCTIONS = {
    "Augmentation": lambda x, d: Augmentation(x),
    "Augmentation of": lambda x, d: Augmentation([x]),
    "Augmentation.named": lambda x, d: Augmentation.named(x),
    "Augmentation.from_list": lambda x, d: Augmentation.from_list(x),
    "evaluate": lambda x, d: hf_dr.evaluate(x, d.base),
    "evaluate sets": lambda x, d: hf_dr.evaluate("student", x),
    "evaluate folder": lambda x, d: hf_dr.evaluate("student", d.base, output_dir=x),
    "export": lambda x, d: hf_dr.export(x, "out"),
    "export folder": lambda x, d: hf_dr.export(d.plus.shards[0].parent.parent, x),
    "export size": lambda x, d: hf_dr.export(d.plus.shards[0].parent.parent, "out", shard_size=x),
    "export name": lambda x, d: hf_dr.export(d.plus.shards[0].parent.parent, "out", name=x),
    "export base": lambda x, d: hf_dr.export(d.plus.shards[0].parent.parent, "out", base=x),
    "ExtendConfig": lambda x, d: ExtendConfig(x),
    "ReinforceConfig": lambda x, d: ReinforceConfig(x),
    "ReinforceConfig name": lambda x, d: ReinforceConfig("out", x),
    "ReinforceConfig overlay": lambda x, d: ReinforceConfig("out", overlay=x),
    "ReinforceConfig disagreement": lambda x, d: ReinforceConfig("out", allow_disagreement=x),
    "ReinforceConfig files": lambda x, d: ReinforceConfig("out", files_from=x),
    "ReinforcedDataset": lambda x, d: ReinforcedDataset(x, d.plus.provenance),
    "ReinforcedDataset provenance": lambda x, d: ReinforcedDataset(d.plus.plus, x),
    "ReinforcedLoader": lambda x, d: ReinforcedLoader(x, 2),
    "ReinforcedLoader student": lambda x, d: ReinforcedLoader(d.plus, 2, student=x),
    "ReinforcedLoader normalization": lambda x, d: ReinforcedLoader(d.plus, 2, normalization=x),
    "ReinforcedLoader workers": lambda x, d: ReinforcedLoader(d.plus, 2, num_workers=x),
    "ReinforcedLoader batch": lambda x, d: ReinforcedLoader(d.plus, x),
    "ReinforcedLoader drop_last": lambda x, d: ReinforcedLoader(d.plus, 2, drop_last=x),
    "ReinforcedLoader seed": lambda x, d: ReinforcedLoader(d.plus, 2, seed=x),
    "ReinforcedLoss": lambda x, d: ReinforcedLoss(x),
    "ReinforcedLoss temperature": lambda x, d: ReinforcedLoss(d.plus, temperature=x),
    "ReinforcedLoss batch": lambda x, d: ReinforcedLoss(d.plus)(None, x),
    "ReinforcedSampler": lambda x, d: ReinforcedSampler(x),
    "ReinforcedSampler seed": lambda x, d: ReinforcedSampler(d.plus, seed=x),
    "ReinforcedSampler replicas": lambda x, d: ReinforcedSampler(d.plus, num_replicas=x, rank=0),
    "Teacher": lambda x, d: Teacher(x),
    "teach": lambda x, d: hf_dr.teach(x, "out"),
    "teach folder": lambda x, d: hf_dr.teach("photos", x),
    "teach setting": lambda x, d: hf_dr.teach("photos", "out", held_out=x),
    "Teacher classes": lambda x, d: Teacher(d.teacher.members, classes=x),
    "Teacher device": lambda x, d: Teacher(d.teacher.members, device=x),
    "Teacher temperature": lambda x, d: Teacher(d.teacher.members, temperature=x),
    "Teacher.from_model": lambda x, d: Teacher.from_model(x, "net"),
    "Teacher.from_model name": lambda x, d: Teacher.from_model(d.net, x, size=8, normalization=d.normalization),
    "Teacher.from_model size": lambda x, d: Teacher.from_model(d.net, "net", size=x, normalization=d.normalization),
    "Teacher.from_model normalization": lambda x, d: Teacher.from_model(d.net, "net", size=8, normalization=x),
    "Teacher.from_model processor": lambda x, d: Teacher.from_model(d.net, "net", size=8, processor=x),
    "Teacher.from_model classes": lambda x, d: Teacher.from_model(
        d.net, "net", size=8, normalization=d.normalization, class_names=x
    ),
    "Teacher views": lambda x, d: d.teacher(x),
    "Teacher.from_pretrained": lambda x, d: Teacher.from_pretrained(x),
    "build_student": lambda x, d: build_student(x, None, 3),
    "build_student classes": lambda x, d: build_student(STUDENT, x, 3),
    "build_student number": lambda x, d: build_student(STUDENT, None, x),
    "build_student model_args": lambda x, d: build_student(STUDENT, None, 3, model_args=x),
    "build_student normalization": lambda x, d: build_student(STUDENT, None, 3, normalization=x),
    "calibrate": lambda x, d: calibrate(x, d.teacher, "rrc"),
    "calibrate teacher": lambda x, d: calibrate(d.base, x, "rrc"),
    "calibrate augmentation": lambda x, d: calibrate(d.base, d.teacher, x),
    "calibrate image_column": lambda x, d: calibrate(d.base, d.teacher, "rrc", image_column=x),
    "calibrate label_column": lambda x, d: calibrate(d.base, d.teacher, "rrc", label_column=x),
    "contact_sheet": lambda x, d: contact_sheet(x, "sheet.png"),
    "contact_sheet path": lambda x, d: contact_sheet(d.plus, x),
    "contact_sheet rows": lambda x, d: contact_sheet(d.plus, "sheet.png", rows=x),
    "contact_sheet num_rows": lambda x, d: contact_sheet(d.plus, "sheet.png", num_rows=x),
    "extend": lambda x, d: extend(x, ExtendConfig("out", num_views=9)),
    "extend config": lambda x, d: extend(d.plus, x),
    "inspect": lambda x, d: hf_dr.inspect(x),
    "inspect name": lambda x, d: hf_dr.inspect(d.folder, x),
    "inspect revision": lambda x, d: hf_dr.inspect(d.folder, revision=x),
    "load_detector": lambda x, d: load_detector(x),
    "load_reinforced": lambda x, d: load_reinforced(x),
    "load_reinforced name": lambda x, d: load_reinforced(d.folder, x),
    "load_reinforced columns": lambda x, d: load_reinforced(d.folder, "plain", columns=x),
    "load_reinforced streaming columns": lambda x, d: load_reinforced(d.folder, "plain", streaming=True, columns=x),
    "load_reinforced streaming": lambda x, d: load_reinforced(d.folder, "plain", streaming=x),
    "load_reinforced unreinforced": lambda x, d: load_reinforced(d.folder, "plain", unreinforced=x),
    "load_reinforced check_images": lambda x, d: load_reinforced(d.folder, "plain", check_images=x),
    "load_reinforced seed": lambda x, d: load_reinforced(d.folder, "plain", seed=x),
    "load_segmenter": lambda x, d: load_segmenter(x),
    "push_to_hub": lambda x, d: push_to_hub(x, "me/plus", dry_run=True),
    "push_to_hub configs": lambda x, d: push_to_hub(d.folder, "me/plus", configs=x, dry_run=True),
    "reinforce teacher": lambda x, d: reinforce(d.base, x, "rrc", ReinforceConfig("out")),
    "reinforce augmentation": lambda x, d: reinforce(d.base, d.teacher, x, ReinforceConfig("out")),
    "reinforce config": lambda x, d: reinforce(d.base, d.teacher, "rrc", x),
    "reinforce base": lambda x, d: reinforce(d.base, d.teacher, "rrc", ReinforceConfig("out"), base=x),
    "reinforced_kl": lambda x, d: reinforced_kl(x, d.batch["teacher_ids"], d.batch["teacher_logprobs"]),
    "reinforced_kl ids": lambda x, d: reinforced_kl(d.logits, x, d.batch["teacher_logprobs"]),
    "reinforced_kl logprobs": lambda x, d: reinforced_kl(d.logits, d.batch["teacher_ids"], x),
    "reinforced_loss": lambda x, d: reinforced_loss(x, d.batch),
    "reinforced_loss batch": lambda x, d: reinforced_loss(d.logits, x),
    "reinforced_loss label_weight": lambda x, d: reinforced_loss(d.logits, d.batch, label_weight=x),
    "reinforced_loss label_smoothing": lambda x, d: reinforced_loss(d.logits, d.batch, label_smoothing=x),
    **PARTS,
    "select": lambda x, d: d.plus.select(x),
    "train_test_split": lambda x, d: d.plus.train_test_split(x),
    "train_test_split seed": lambda x, d: d.plus.train_test_split(seed=x),
    "set_epoch": lambda x, d: d.plus.set_epoch(x),
    "difficulties": lambda x, d: d.plus.difficulties(0, x),
    "stream shuffle": lambda x, d: d.stream.shuffle(x),
    "stream select": lambda x, d: d.stream.select(x),
    "stream split": lambda x, d: d.stream.train_test_split(x),
    "stream index": lambda x, d: d.stream[x],
    "stream ordered": lambda x, d: d.stream.ordered(seed=x),
    "stream split_by_node": lambda x, d: d.stream.split_by_node(0, x),
    "stream progress": lambda x, d: d.stream.split_by_node(0, 1).progress(x),
    "verify": lambda x, d: verify(x),
    "verify rows": lambda x, d: verify(d.plus, d.teacher, num_rows=x),
    "verify seed": lambda x, d: verify(d.plus, d.teacher, seed=x),
}  # fmt: skip
# What may be left out.
OPTIONAL = {
    "ReinforceConfig name", "ReinforcedLoader student", "ReinforcedLoader normalization", "Teacher classes", "Teacher device",
    "Teacher.from_model classes",
    "build_student classes", "build_student model_args", "build_student normalization", "calibrate image_column",
    "calibrate label_column", "export size", "export name", "export base",
    "contact_sheet rows", "inspect name", "inspect revision", "load_reinforced name", "push_to_hub configs", "reinforce base",
}  # fmt: skip
# What takes a value of a kind: a folder may be new, and what only keeps a text has not looked for it yet.
TAKEN = {
    "None": OPTIONAL,
    "path": {"ExtendConfig", "ReinforceConfig", "export folder"},
    "home": {"ExtendConfig", "ReinforceConfig", "Teacher.from_model name"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_dataset, tiny_teacher):
    folder = tmp_path_factory.mktemp("mistakes") / "plus"
    config = ReinforceConfig(str(folder), "plain", num_views=2, top_k=3)
    plus = reinforce(tiny_dataset, tiny_teacher, [ops.RandomResizedCrop(8)], config)
    stream = load_reinforced(folder, streaming=True)
    batch = torch.utils.data.default_collate([plus[row, 0] for row in range(4)])
    logits = torch.randn(4, plus.num_classes, generator=torch.Generator().manual_seed(0), requires_grad=True)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 8))
    return SimpleNamespace(
        plus=plus, stream=stream, teacher=tiny_teacher, base=tiny_dataset, folder=folder, batch=batch, logits=logits,
        net=net, normalization=([0.5] * 3, [0.5] * 3),
    )  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_anything_in_an_arguments_place_is_refused_in_words(function, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, value in ANYTHING.items():
        if function in TAKEN.get(kind, ()):
            continue
        with pytest.raises(HfDrError, match=r"[.!`)]"):
            FUNCTIONS[function](value, data)
        assert not list(tmp_path.iterdir()), kind


def test_each_public_function_is_here():
    """Classes of errors, and what is transformers' or timm's by its arguments, are not."""
    others = {
        "ReinforcedTask",
        "ReinforcedTrainer",
        "ReinforcedTrainingArguments",
        "__version__",
        "ops",
    }
    tried = {name.split()[0].partition(".")[0] for name in FUNCTIONS}
    assert {name for name in hf_dr.__all__ if not name.endswith("Error")} - others <= tried


def test_refusals_name_the_argument_and_say_what_to_give(data, tmp_path):
    with pytest.raises(ConfigError, match=r"`ReinforcedLoader` has no setting `sed`\. Did you mean `seed`\?"):
        ReinforcedLoader(data.plus, 2, sed=1)
    with pytest.raises(
        ConfigError, match=r"tails are stored with the signal `topk_image_tail`, but .* is `topk`\. Ask for"
    ):
        data.plus.image_tail(0)
    with pytest.raises(ConfigError, match=r"for the signal `topk`, got 'foo'\. Leave `tail` out"):
        ReinforcedLoss(data.plus, tail="foo")
    splits = data.plus.train_test_split(0.5)
    with pytest.raises(
        ConfigError, match=r"`train_dataset` must be one dataset, got several by name \(train, test\)\. Give"
    ):
        ReinforcedTrainer(data.net, ReinforcedTrainingArguments(str(tmp_path), use_cpu=True), train_dataset=splits)
    with pytest.raises(
        ConfigError, match=r"`model` must be a model, got the class Identity\. Make one of it: `Identity\("
    ):
        ReinforcedTrainer(torch.nn.Identity, train_dataset=data.plus)
    with pytest.raises(ConfigError, match=r"`name` must be a name or a path, got None\. Give one\."):
        build_student(None, None, 3)
    with pytest.raises(
        ConfigError, match=r"`class_names` must have a name for each of the 3 classes, got 2. Give `train"
    ):
        build_student(STUDENT, ["cat", "dog"], 3)
    with pytest.raises(ConfigError, match=r"`class_names` must be a list of names, got 'cat'\. Put it into a list\."):
        build_student(STUDENT, "cat", 3)
    with pytest.raises(
        ConfigError, match=r"`name` must be the name of an augmentation, got PosixPath. Give rrc or mixing or "
    ):
        Augmentation.named(Path("randaug"))
    with pytest.raises(
        ConfigError, match=r"a stream is in another order in each epoch .*, got a call of `shuffle`\. Leave"
    ):
        data.stream.shuffle(seed=0)
    with pytest.raises(
        ConfigError, match=r"a stream has no rows or columns to choose, got a call of `select`. Iterate"
    ):
        data.stream.select([0])
    with pytest.raises(
        ConfigError, match=r"`members` must be loaded members, got str. `Teacher.from_pretrained` takes name"
    ):
        Teacher("timm/resnet50.a1_in1k")
    with pytest.raises(ConfigError, match=r"`members` must be a list of loaded members, got Member\. "):
        Teacher(data.teacher.members[0])
    with pytest.raises(ConfigError, match=r"`output_dir` must be a name or a path, got \['a'\]"):
        ReinforceConfig(["a"])
    with pytest.raises(
        ConfigError, match=r"`logits` must be a tensor, got ImageClassifierOutput. Models of transformers"
    ):
        reinforced_loss(ImageClassifierOutput(), data.batch)
    with pytest.raises(ConfigError, match=r"`seed` must be a whole number from 0 to .*, got 0.5. Choose another"):
        verify(data.plus, data.teacher, seed=0.5)


def test_numbers_lists_and_mappings_of_other_libraries_are_taken(data, tmp_path):
    names = np.array(["cat", "dog", "cow"])
    for given in (names, tuple(names), dict.fromkeys(names).keys()):
        assert build_student(STUDENT, given, 3).config.id2label == {0: "cat", 1: "dog", 2: "cow"}
    size = MappingProxyType({"in_chans": 3})
    assert build_student(STUDENT, None, np.int64(3), model_args=size, normalization=torch.full((2, 3), 0.5))
    for number in (2, np.float32(2), np.int64(2)):
        assert ReinforcedLoss(data.plus, temperature=number).temperature == 2
        assert Teacher(data.teacher.members, temperature=number).temperature == 2
    assert Teacher(data.teacher.members, classes=dict.fromkeys([3, 1]).keys()).num_classes == 2
    assert contact_sheet(data.plus, tmp_path / "sheet.png", rows={0, 1}, num_views=1).exists()
    assert ReinforcedSampler(data.plus, num_replicas=np.int64(2), rank=np.int64(1))
    for side in (np.int64(8), [np.int64(8), 8]):
        of_net = Teacher.from_model(data.net, "net", size=side, normalization=data.normalization)
        assert of_net.provenance()["members"][0]["preprocessing"]["size"] == (8, 8)


WRONG_TENSORS = {
    "no dimension": torch.tensor(1.0),
    "one": torch.zeros(5),
    "three": torch.zeros(4, 3, 2),
    "another batch": torch.zeros(5, 3),
    "other classes": torch.zeros(4, 2),
    "no rows": torch.zeros(0, 3),
    "no classes": torch.zeros(4, 0),
    "whole": torch.zeros(4, dtype=torch.int32),
    "complex": torch.zeros(4, 3, dtype=torch.complex64),
    "NumPy's": np.zeros((4, 3)),
}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_refused_in_words(kind, data):
    for function in ("reinforced_kl", "reinforced_kl ids", "reinforced_kl logprobs", "reinforced_loss", *PARTS):
        with pytest.raises(ConfigError, match=r"must be .*, got "):
            FUNCTIONS[function](WRONG_TENSORS[kind], data)


@pytest.mark.parametrize("lost", ["teacher_ids", "teacher_logprobs", "reinforced", "labels"])
def test_a_batch_that_lacks_something_is_refused_in_words(lost, data):
    batch = {name: values for name, values in data.batch.items() if name != lost}
    with pytest.raises(ConfigError, match=rf"`{lost}`|but {lost} are not among .*{min(batch)}.*every key of the rows"):
        reinforced_loss(data.logits, batch)
    if lost == "labels":
        assert ReinforcedLoss(data.plus)(data.logits, batch) > 0, "they have no part in it"


def test_a_student_of_other_classes_is_refused_before_its_loss(data):
    ids, logprobs = data.batch["teacher_ids"], data.batch["teacher_logprobs"]
    with pytest.raises(ConfigError, match=r"over the \d+ classes .*, got 99\. Build it with num_labels=\d"):
        ReinforcedLoss(data.plus)(torch.zeros(4, 99), data.batch)
    for wrong in (ids + data.plus.num_classes, ids - data.plus.num_classes):
        with pytest.raises(
            ConfigError, match=r"`teacher_ids` must be of the \d+ classes .*, got \[.*\] in row 0\. A stu"
        ):
            reinforced_kl(data.logits, wrong, logprobs)
    assert torch.equal(reinforced_kl(data.logits, ids.int(), logprobs), reinforced_kl(data.logits, ids, logprobs))


WRONG_INDICES = {
    TypeError: [2.5, None, (1, 2, 3), (), ("a", 0), (0, "a"), [0, "a"], np.array(2.5), {}],
    KeyError: ["x"],
    IndexError: [99, -99, (0, 99), (99, 0), [0, 99]],
}


@pytest.mark.parametrize(
    ("error", "index"), [(error, index) for error in WRONG_INDICES for index in WRONG_INDICES[error]]
)
def test_an_index_that_is_none_is_refused_in_words_by_pythons_own_errors(error, index, data):
    """As those of a list and a mapping: whoever iterates by them is told the end so."""
    said = {
        TypeError: "expected a row, a pair",
        KeyError: "there is no column `x`. Known: ",
        IndexError: r" (of|from) ",
    }
    with pytest.raises(error, match=said[error]):
        data.plus[index]
    if error is TypeError and not isinstance(index, (list, tuple)):
        for of_row in (
            data.plus.example_image,
            data.plus.views_hash,
            lambda row: data.plus.difficulties(row, "entropy"),
        ):
            with pytest.raises(error, match=said[error]):
                of_row(index)


def test_seeds_of_arrays_without_dimensions_are_refused_in_words(data):
    for seed in (np.array(3), torch.tensor(3), np.array(2.5)):
        for function in (name for name in FUNCTIONS if name.endswith(" seed")):
            with pytest.raises(ConfigError, match=r"`seed` must be a whole number from 0 to .*Choose another"):
                FUNCTIONS[function](seed, data)
        with pytest.raises(ConfigError, match="`seed` must be a whole number of at least 0"):
            ReinforceConfig("out", seed=seed)


@pytest.mark.parametrize("array", [np.array(3), np.array("x"), torch.tensor(3)], ids=repr)
def test_arrays_without_dimensions_are_no_lists(array, data):
    for function in (
        "ReinforceConfig files",
        "Teacher classes",
        "Teacher.from_model classes",
        "build_student classes",
        "load_reinforced columns",
        "load_reinforced streaming columns",
        "push_to_hub configs",
    ):
        with pytest.raises(ConfigError, match="must be a list"):
            FUNCTIONS[function](array, data)


def test_a_list_in_the_place_of_one_name_is_refused_in_words(data, tmp_path):
    for call in (
        lambda: verify(data.folder, data.teacher, name=["plain"]),
        lambda: extend(data.folder, ExtendConfig(str(tmp_path / "more"), num_views=9), name=["plain"]),
        lambda: contact_sheet(data.folder, tmp_path / "sheet.png", name=["plain"]),
        lambda: hf_dr.export(data.folder, tmp_path / "out", name=["plain"]),
    ):
        with pytest.raises(
            ConfigError, match=r'`plus` must be one "\+" dataset .* got CombinedReinforcedDataset\. Open'
        ):
            call()
    with pytest.raises(DataError, match=r"`label_column` must name a column, got \['label'\]\. Did you mean `label`\?"):
        calibrate(data.base, data.teacher, "rrc", label_column=["label"])
    assert not list(tmp_path.iterdir())


def test_views_without_labels_are_not_ranked_by_them(data, tmp_path):
    config = ReinforceConfig(str(tmp_path / "plus"), num_views=2, top_k=3, label_column="none")
    plus = reinforce(data.base, data.teacher, [ops.RandomResizedCrop(8)], config)
    with pytest.raises(ConfigError, match=r"without labels are ranked by entropy, got cross_entropy\. Name entropy"):
        plus.difficulties(0, "cross_entropy")
