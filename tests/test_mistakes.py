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
    ExtendConfig,
    HfDrError,
    ReinforceConfig,
    ReinforcedDataset,
    ReinforcedLoader,
    ReinforcedLoss,
    ReinforcedSampler,
    Teacher,
    build_student,
    contact_sheet,
    extend,
    load_detector,
    load_reinforced,
    load_segmenter,
    ops,
    push_to_hub,
    reinforce,
    reinforced_loss,
    verify,
)

STUDENT = "timm:test_resnet"
ANYTHING = {"None": None, "number": -3, "empty": "", "path": Path("/nowhere/x"), "object": object()}
# Function of one wrong argument, with what else it needs. `d` has `plus`, `stream`, `teacher`, `base` and `folder`.
FUNCTIONS = {
    "Augmentation": lambda x, d: Augmentation(x),
    "Augmentation of": lambda x, d: Augmentation([x]),
    "Augmentation.named": lambda x, d: Augmentation.named(x),
    "Augmentation.from_list": lambda x, d: Augmentation.from_list(x),
    "ExtendConfig": lambda x, d: ExtendConfig(x),
    "ReinforceConfig": lambda x, d: ReinforceConfig(x),
    "ReinforceConfig name": lambda x, d: ReinforceConfig("out", x),
    "ReinforceConfig files": lambda x, d: ReinforceConfig("out", files_from=x),
    "ReinforcedDataset": lambda x, d: ReinforcedDataset(x, d.plus.provenance),
    "ReinforcedDataset provenance": lambda x, d: ReinforcedDataset(d.plus.plus, x),
    "ReinforcedLoader": lambda x, d: ReinforcedLoader(x, 2),
    "ReinforcedLoader student": lambda x, d: ReinforcedLoader(d.plus, 2, student=x),
    "ReinforcedLoader normalization": lambda x, d: ReinforcedLoader(d.plus, 2, normalization=x),
    "ReinforcedLoader workers": lambda x, d: ReinforcedLoader(d.plus, 2, num_workers=x),
    "ReinforcedLoader seed": lambda x, d: ReinforcedLoader(d.plus, 2, seed=x),
    "ReinforcedLoss": lambda x, d: ReinforcedLoss(x),
    "ReinforcedLoss temperature": lambda x, d: ReinforcedLoss(d.plus, temperature=x),
    "ReinforcedLoss batch": lambda x, d: ReinforcedLoss(d.plus)(None, x),
    "ReinforcedSampler": lambda x, d: ReinforcedSampler(x),
    "ReinforcedSampler seed": lambda x, d: ReinforcedSampler(d.plus, seed=x),
    "ReinforcedSampler replicas": lambda x, d: ReinforcedSampler(d.plus, num_replicas=x, rank=0),
    "Teacher": lambda x, d: Teacher(x),
    "Teacher classes": lambda x, d: Teacher(d.teacher.members, classes=x),
    "Teacher device": lambda x, d: Teacher(d.teacher.members, device=x),
    "Teacher temperature": lambda x, d: Teacher(d.teacher.members, temperature=x),
    "Teacher.from_pretrained": lambda x, d: Teacher.from_pretrained(x),
    "build_student": lambda x, d: build_student(x, None, 3),
    "build_student classes": lambda x, d: build_student(STUDENT, x, 3),
    "build_student number": lambda x, d: build_student(STUDENT, None, x),
    "build_student model_args": lambda x, d: build_student(STUDENT, None, 3, model_args=x),
    "build_student normalization": lambda x, d: build_student(STUDENT, None, 3, normalization=x),
    "contact_sheet": lambda x, d: contact_sheet(x, "sheet.png"),
    "contact_sheet path": lambda x, d: contact_sheet(d.plus, x),
    "contact_sheet rows": lambda x, d: contact_sheet(d.plus, "sheet.png", rows=x),
    "contact_sheet num_rows": lambda x, d: contact_sheet(d.plus, "sheet.png", num_rows=x),
    "extend": lambda x, d: extend(x, ExtendConfig("out", num_views=9)),
    "extend config": lambda x, d: extend(d.plus, x),
    "load_detector": lambda x, d: load_detector(x),
    "load_reinforced": lambda x, d: load_reinforced(x),
    "load_reinforced name": lambda x, d: load_reinforced(d.folder, x),
    "load_reinforced columns": lambda x, d: load_reinforced(d.folder, "plain", columns=x),
    "load_reinforced streaming columns": lambda x, d: load_reinforced(d.folder, "plain", streaming=True, columns=x),
    "load_reinforced seed": lambda x, d: load_reinforced(d.folder, "plain", seed=x),
    "load_segmenter": lambda x, d: load_segmenter(x),
    "push_to_hub": lambda x, d: push_to_hub(x, "me/plus", dry_run=True),
    "push_to_hub configs": lambda x, d: push_to_hub(d.folder, "me/plus", configs=x, dry_run=True),
    "reinforce teacher": lambda x, d: reinforce(d.base, x, "rrc", ReinforceConfig("out")),
    "reinforce augmentation": lambda x, d: reinforce(d.base, d.teacher, x, ReinforceConfig("out")),
    "reinforce config": lambda x, d: reinforce(d.base, d.teacher, "rrc", x),
    "reinforce base": lambda x, d: reinforce(d.base, d.teacher, "rrc", ReinforceConfig("out"), base=x),
    "reinforced_loss": lambda x, d: reinforced_loss(x, {"teacher_ids": None, "teacher_logprobs": None}),
    "stream shuffle": lambda x, d: d.stream.shuffle(x),
    "stream select": lambda x, d: d.stream.select(x),
    "stream split": lambda x, d: d.stream.train_test_split(x),
    "stream index": lambda x, d: d.stream[x],
    "stream ordered": lambda x, d: d.stream.ordered(seed=x),
    "stream split_by_node": lambda x, d: d.stream.split_by_node(0, x),
    "stream progress": lambda x, d: d.stream.progress(x),
    "verify": lambda x, d: verify(x),
    "verify rows": lambda x, d: verify(d.plus, d.teacher, num_rows=x),
    "verify seed": lambda x, d: verify(d.plus, d.teacher, seed=x),
}  # fmt: skip
# What may be left out.
OPTIONAL = {
    "ReinforceConfig name", "ReinforcedLoader student", "ReinforcedLoader normalization", "Teacher classes", "Teacher device",
    "build_student classes", "build_student model_args", "build_student normalization", "contact_sheet rows",
    "load_reinforced name", "push_to_hub configs", "reinforce base",
}  # fmt: skip
PATHS = {"ExtendConfig", "ReinforceConfig"}


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_dataset, tiny_teacher):
    folder = tmp_path_factory.mktemp("mistakes") / "plus"
    config = ReinforceConfig(str(folder), "plain", num_views=2, top_k=3)
    plus = reinforce(tiny_dataset, tiny_teacher, [ops.RandomResizedCrop(8)], config)
    stream = load_reinforced(folder, streaming=True)
    return SimpleNamespace(plus=plus, stream=stream, teacher=tiny_teacher, base=tiny_dataset, folder=folder)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_anything_in_an_arguments_place_is_refused_in_words(function, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, value in ANYTHING.items():
        if (kind == "None" and function in OPTIONAL) or (kind == "path" and function in PATHS):
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
        "reinforced_kl",
    }
    tried = {name.split()[0].partition(".")[0] for name in FUNCTIONS}
    assert {name for name in hf_dr.__all__ if not name.endswith("Error")} - others <= tried


def test_refusals_name_the_argument_and_say_what_to_give(data):
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
        reinforced_loss(ImageClassifierOutput(), {"teacher_ids": None, "teacher_logprobs": None})
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
