"""Every recipe parses and runs: in a rehearsal, on tiny data of its dataset's columns, and on what it is stacked with."""

import gc
import importlib.util
import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import scipy.io
import timm
import torch
import torchvision
import yaml

from hf_dr.cli import smoke
from hf_dr.cli.arguments import build_augmentation
from hf_dr.cli.config import parse
from hf_dr.cli.flags import BaseArguments, RunArguments, SmokeArguments, TeacherArguments
from hf_dr.cli.main import main
from hf_dr.cli.smoke import Described, Rehearsal
from hf_dr.cli.train import StudentArguments
from hf_dr.cli.yaml_files import read_configs, read_yaml
from hf_dr.errors import ConfigError
from hf_dr.evaluation.config import CompareConfig
from hf_dr.generation.config import ReinforceConfig
from hf_dr.training.arguments import ReinforcedTrainingArguments
from hf_dr.views.rng import view_rng

ROOT = Path(__file__).parents[1]
SETS = sorted(path.parent for path in ROOT.glob("recipes/*/reinforce.yaml"))
REINFORCE = sorted(ROOT.glob("recipes/*/reinforce*.yaml"))
TRAIN = sorted(
    path for path in ROOT.glob("recipes/*/*.yaml")
    if path.stem in ("teacher", "kd", "plus", "finetune", "finetune_plus") or path.stem.startswith("erm")
)  # fmt: skip
STUDENTS = sorted(ROOT.glob("recipes/students/*.yaml"))
COMPARE = sorted(ROOT.glob("recipes/*/compare.yaml"))
TINY = ["--student", "timm:test_resnet", "--model_args", "{}"]


def name(path):
    return path.relative_to(ROOT / "recipes").as_posix()


@pytest.fixture(autouse=True, scope="module")
def _short_collections():
    """Each training collects garbage, which takes as long as the rest where it looks at all that the imports have made."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)  # paths in recipes start there


REINFORCING = [BaseArguments, TeacherArguments, RunArguments, SmokeArguments, ReinforceConfig]
TRAINING = [StudentArguments, SmokeArguments, ReinforcedTrainingArguments]


def settings(kinds, argv):
    return parse(kinds, argv, prog="x", description="d")


def reinforcing(path, *more):
    return settings(REINFORCING, ["--config", str(path), *more])


def training(*argv):
    return settings(TRAINING, list(argv))


def test_there_are_all():
    assert [path.name for path in SETS] == ["cifar100", "fashion_mnist", "flowers102", "food101", "imagenet"]
    for path in SETS:
        names = {"reinforce", "erm", "kd", "plus", "finetune", "finetune_plus", "features"}
        own = {file.stem for file in path.glob("*.yaml")}
        assert names <= own
        assert ("teacher" in own) == (path.name != "imagenet")  # whose teachers are on the Hub
    assert len(STUDENTS) == 30


def kinds_of(path):
    if path in COMPARE:
        return [CompareConfig, SmokeArguments]
    return TRAINING if path in TRAIN else REINFORCING


def plain(parsed):
    return [each.to_dict() if isinstance(each, ReinforcedTrainingArguments) else each for each in parsed]


@pytest.mark.parametrize("path", [*REINFORCE, *TRAIN, *COMPARE], ids=name)
def test_a_printed_recipe_is_the_recipe(path, tmp_path, capsys):
    argv = ["--config", str(path)]
    if path in TRAIN:
        argv += ["recipes/students/vit_b.yaml", "--num_train_epochs", "300"]
    with pytest.raises(SystemExit):
        settings(kinds_of(path), [*argv, "--print_config"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    printed = settings(kinds_of(path), ["--config", str(tmp_path / "printed.yaml")])
    assert plain(printed) == plain(settings(kinds_of(path), argv))


def test_what_is_printed_first_is_what_was_chosen(capsys):
    argv = ["--config", "recipes/students/vit_b.yaml", "recipes/imagenet/erm.yaml", "--num_train_epochs", "300"]
    with pytest.raises(SystemExit):
        training(*argv, "--print_config")
    chosen, rest = capsys.readouterr().out.split("# Defaults:")
    assert yaml.safe_load(chosen).items() >= {"num_train_epochs": 300, "weight_decay": 0.05}.items()
    assert yaml.safe_load(rest).items() >= {"size": None, "seed": 42}.items()


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: path.stem)
def test_a_student_is_one_of_timms_at_the_size_of_its_views(path):
    student, _, args = training("--config", str(path), "recipes/imagenet/plus.yaml")
    assert args.weight_decay > 0
    assert args.batch_size == 1024
    assert 8 * args.gradient_accumulation_steps <= 32, "at least 32 images on each of 8 GPUs"
    size = student.size or 224
    architecture = student.student.removeprefix("timm:")
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=1000, **yaml.safe_load(student.model_args))
        assert model(torch.empty(1, 3, size, size)).shape == (1, 1000)


def test_biases_and_normalisations_decay_where_they_do_in_the_source():
    decaying = {
        path.stem
        for path in STUDENTS
        if training("--config", str(path), "recipes/imagenet/plus.yaml")[2].decay_biases_and_norms
    }
    assert {name.rstrip("0123456789d") for name in decaying} == {"resnet", "mobilevit", "mobilevit_xs", "mobilevit_xxs"}
    for folder in SETS:
        args = training("--config", "recipes/students/vit_b.yaml", str(folder / "erm.yaml"))[2]
        assert args.decay_biases_and_norms == (folder.name in ("cifar100", "flowers102", "food101"))


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: path.stem)
def test_a_student_warms_up_for_epochs(path):
    family = Path(read_yaml(path)["extends"]).stem
    epochs = {"resnet": 5, "vit": 5, "swin": 20, "mobile": 6, "mobilevit": 16, "efficientnet": 4.8}
    for folder in SETS:
        args = training("--config", str(path), str(folder / "plus.yaml"))[2]
        assert args.warmup_epochs == ({"imagenet": epochs[family], "fashion_mnist": 0.4}.get(folder.name, 0))


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.yaml")), ids=name)
def test_a_recipe_names_its_source(path):
    """A file or a table of somebody's, or that the choice is ours."""
    if path.name == "features.yaml" or path.parent.name == "accelerate":
        return
    comments = " ".join(re.findall(r"#(.*)", path.read_text(encoding="utf-8")))
    named = r"[\w}*]\.(yaml|py|md)|README|arXiv:|table|our choice|references/detection"
    assert re.search(named, re.sub(r"\s+", " ", comments), re.IGNORECASE)


@pytest.mark.parametrize("path", REINFORCE, ids=name)
def test_a_page_of_the_hubs_viewer_can_be_shown(path):
    """100 rows as JSON: docs/scale.md has what the viewer does with larger ones."""
    _, teaching, _, _, config = reinforcing(path)
    augmentation = build_augmentation(teaching.augmentation, teaching.size)
    rng = np.random.default_rng(0)
    of_views = 0
    for view in range(20):
        drawn = augmentation.sample(view_rng(0, 0, view), (500, 667))
        answer = np.log(rng.random(config.top_k)).astype(np.float16), rng.integers(1000, size=config.top_k)
        cells = [np.asarray(value).tolist() for value in (*drawn.values(), *answer)]
        of_views += len(json.dumps(cells, separators=(",", ":")))
    assert 100 * config.num_views * of_views / 20 < 25e6


def test_flowers102_plus_is_of_the_authors_eight_runs():
    config = reinforcing(ROOT / "recipes/flowers102/reinforce.yaml")[-1]
    for recipe in ("plus", "finetune_plus"):
        student = training("--config", f"recipes/flowers102/{recipe}.yaml", *TINY)[0]
        assert len(student.name) * config.num_views == 8000
        assert config.config_name == student.name[0]
    card = (ROOT / "hub_cards/flowers102-plus/README.md").read_text(encoding="utf-8")
    sections = re.findall(r"config (randaug_\d) -->.*?\| Seed \| (\d) \|", card, re.DOTALL)
    assert sections == [(name, name[-1]) for name in student.name]


def test_online_teachers_are_those_of_the_reinforcement():
    for folder in SETS:
        assert read_yaml(folder / "kd.yaml")["teacher"] == read_yaml(folder / "reinforce.yaml")["teacher"]


def test_sizes_and_augmentations_of_imagenet_plus():
    found = {}
    for path in REINFORCE:
        if path.parent.name == "imagenet":
            _, teaching, _, _, config = reinforcing(path)
            found[config.config_name or teaching.augmentation] = (config.num_views, config.top_k, len(teaching.teacher))
    assert found == {
        "randaug": (400, 10, 4), "rrc": (400, 10, 4), "mixing": (400, 10, 4), "randaug_mixing": (400, 10, 4),
        "mini": (50, 10, 4), "small": (100, 5, 4), "randaug_384": (400, 10, 4), "free": (400, 10, 4),
        "image_tail": (400, 5, 4),
    }  # fmt: skip
    for path, free in (("reinforce", False), ("reinforce_free", True)):
        for member in reinforcing(ROOT / f"recipes/imagenet/{path}.yaml")[1].teacher:
            license = timm.get_pretrained_cfg(member.removeprefix("timm/")).license
            assert (license in ("apache-2.0", "mit")) == free
            assert timm.is_model(member.removeprefix("timm/"))


@pytest.mark.parametrize("folder", SETS, ids=lambda path: path.name)
def test_a_description_is_of_the_recipes_dataset(folder, tmp_path):
    described = Described.find([str(folder / "erm.yaml")])
    base, _, _, _, config = reinforcing(folder / "reinforce.yaml")
    assert described.dataset == base.dataset
    described.generate(tmp_path / "base")
    for split in described.splits:
        rows = datasets.load_dataset(str(tmp_path / "base"), split=split)
        assert rows.features == described.features
        image = rows[0][config.image_column or "image"]
        assert (image.mode, image.size) == (
            described.images["mode"],
            (described.images["width"], described.images["height"]),
        )
    if (ROOT / base.dataset).is_dir():  # the one that can be looked at
        splits = datasets.load_dataset(str(ROOT / base.dataset))
        assert {split: len(rows) for split, rows in splits.items()} == described.splits
        real = splits["train"]
        assert real.features == described.features
        assert (real[0]["image"].mode, real[0]["image"].size, real[0]["image"].format) == (
            image.mode,
            image.size,
            image.format,
        )


@pytest.mark.parametrize("path", REINFORCE, ids=name)
def test_reinforcing_runs(path):
    argv = ["--config", str(path)]
    small = ["--size", "64"] if isinstance(read_configs(argv)["augmentation"], str) else []  # a list of ops has its own
    assert main(["reinforce", *argv, "--smoke", *small]) == 0


@pytest.mark.parametrize("path", TRAIN, ids=name)
def test_training_runs(path):
    argv = ["--config", str(path)]
    assert main(["train", *argv, *([] if "student" in read_configs(argv) else TINY), "--smoke"]) == 0


def test_flowers102_is_pinned_to_a_copy_with_the_original_splits():
    base = reinforcing(ROOT / "recipes/flowers102/reinforce.yaml")[0]
    described = read_yaml("recipes/flowers102/features.yaml")
    assert described["dataset"] == base.dataset
    assert described["splits"] == {"train": 1020, "validation": 1020, "test": 6149}
    assert described["columns"]["label"] == torchvision.datasets.Flowers102.classes
    for name in ("erm", "kd", "teacher", "finetune"):
        recipe = read_configs(["--config", f"recipes/flowers102/{name}.yaml"])
        found = {key: recipe[key][0] for key in ("dataset", "revision", "eval_dataset", "eval_revision")}
        assert found == {
            "dataset": [base.dataset], "revision": base.revision, "eval_dataset": base.dataset,
            "eval_revision": base.revision,
        }  # fmt: skip


def test_the_order_of_the_authors_flowers102_is_torchvisions(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("order", ROOT / "recipes/flowers102/order.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    ids = np.array([[6765, 6755, 3, 8188, 41]], dtype=np.uint16)  # (1, images), as the original's
    scipy.io.savemat(folder / "setid.mat", {"trnid": ids, "valid": ids[:, :1], "tstid": ids[:, 1:3]})
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.ones((1, 8189), np.uint8)})
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    theirs = [path.name for path in torchvision.datasets.Flowers102(tmp_path, split="train")._image_files]

    script.main([str(folder / "setid.mat"), str(tmp_path / "names.txt")])
    assert (tmp_path / "names.txt").read_text().split() == theirs
    script.main([str(folder / "setid.mat"), str(tmp_path / "rows.txt"), "--rows"])
    in_file_order = sorted(theirs)
    assert [in_file_order[int(row)] for row in (tmp_path / "rows.txt").read_text().split()] == theirs
    assert "5 images" in capsys.readouterr().out
    scipy.io.savemat(tmp_path / "other.mat", {"x": ids})
    with pytest.raises(SystemExit, match="must hold `trnid`, found"):
        script.main([str(tmp_path / "other.mat"), str(tmp_path / "names.txt")])


@pytest.mark.parametrize("path", STUDENTS, ids=lambda path: path.stem)
def test_students_have_a_baseline_at_their_size(path):
    family = Path(read_yaml(path)["extends"]).stem
    size = training("--config", str(path), "recipes/imagenet/plus.yaml")[0].size or 224
    name = {"mobile": "erm_small", "mobilevit": "erm_small", "vit": "erm_transformers", "swin": "erm_transformers"}
    baseline = name.get(family, "erm") + ("" if size == 224 else f"_{size}")
    student = training("--config", str(path), f"recipes/imagenet/{baseline}.yaml")[0]
    assert build_augmentation(student.augmentation, student.size or 224).size == (size, size)


def test_baselines_have_the_filters_and_magnitudes_of_their_sources():
    for path in TRAIN:
        augmentation = read_configs(["--config", str(path)]).get("augmentation", (None,))[0]
        if path.parent.name == "fashion_mnist" or not isinstance(augmentation, list):
            continue  # ours, or stored views
        found = [op["RandAugment"] for op in augmentation if "RandAugment" in op]
        if path.stem.startswith("erm_transformers"):  # timm's rand-m9-mstd0.5-inc1
            (own,) = [op["RandAugmentIncreasing"] for op in augmentation if "RandAugmentIncreasing" in op]
            assert (own["p"], own["magnitude"], own["magnitude_std"], own["interpolation"]) == (0.5, 90, 5.0, "bicubic")
        elif path.stem == "erm_vit":
            assert {"AutoAugment": {"interpolation": "bilinear"}} in augmentation
        else:
            assert [(op["num_ops"], op["p"], op["magnitude"], op["interpolation"]) for op in found] == [
                (2, 1.0, 9, "bilinear")
            ]


def test_detection_runs():
    recipe = "recipes/coco/detect.yaml"
    assert main(["detect", "--config", recipe, "--smoke"]) == 0
    categories = Described.find([recipe]).columns["objects"]
    assert (len(categories), max(categories)) == (80, 90)


def test_segmentation_runs():
    recipe = "recipes/ade20k/segment.yaml"
    assert main(["segment", "--config", recipe, "--smoke"]) == 0
    assert len(read_yaml(recipe)["class_names"]) == Described.find([recipe]).columns["mask"]["greatest"] == 150


def test_a_student_is_stacked_on_a_dataset():
    argv = ["--config", "recipes/students/mobilenetv3.yaml", "recipes/cifar100/erm.yaml"]
    student, _, args = training(*argv)
    assert (student.student, args.learning_rate) == ("timm:mobilenetv3_large_100", 0.2)  # the dataset's own rate
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("cosine", None)  # and end of it
    _, _, args = training("--config", "recipes/students/mobilenetv3.yaml", "recipes/imagenet/erm_small.yaml")
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr": 0.0002})


def test_a_stacked_student_trains():
    argv = ["--config", "recipes/students/vit_ti.yaml", "recipes/imagenet/erm_transformers.yaml"]
    assert main(["train", *argv, *TINY, "--smoke"]) == 0
    argv = ["--config", "recipes/students/swin_t.yaml", "recipes/fashion_mnist/erm.yaml"]
    assert main(["train", *argv, *TINY, "--name", "fine", "--smoke"]) == 0  # the images are generated without any


def test_a_calibration_is_rehearsed(tmp_path):
    folder = tmp_path / "recipe"
    shutil.copytree(ROOT / "recipes/fashion_mnist", folder)
    content = yaml.safe_load((folder / "compare.yaml").read_text())
    content["train"] |= {"eval_split": "test[1000:]", "calibrate_split": "test[:1000]"}
    content["evaluate"]["sets"] = ["test=hf_dr/assets/fashion_mnist:test[1000:]"]
    (folder / "compare.yaml").write_text(yaml.safe_dump(content))
    assert main(["compare", "--config", str(folder / "compare.yaml"), "--smoke"]) == 0
    argv = ["--config", "recipes/students/swin_t.yaml", "recipes/fashion_mnist/erm.yaml", "--smoke"]
    assert main(["train", *argv, *TINY, "--eval_dataset", "any", "--calibrate_split", "test[:1000]"]) == 0


def test_comparing_and_evaluating_run(tmp_path):
    assert main(["compare", "--config", str(COMPARE[0]), "--smoke"]) == 0
    recipe = tmp_path / "evaluate.yaml"
    recipe.write_text(yaml.safe_dump({"models": ["a", "b=c"], "sets": ["imagenet", "imagenet-c"], "output_dir": "x"}))
    (tmp_path / "features.yaml").write_text((ROOT / "recipes/imagenet/features.yaml").read_text())
    assert main(["evaluate", "--config", str(recipe), "--corrupt", "imagenet", "--size", "64", "--smoke"]) == 0
    assert not Path("x").exists()


def test_what_a_rehearsal_puts_in_the_place_of_settings(tmp_path, monkeypatch):
    rehearsal = Rehearsal(["--config", "recipes/cifar100/erm.yaml"], tmp_path)
    plain = {"dataset": ["x"], "augmentation": "rrc", "student": "timm:x", "dataloader_prefetch_factor": 2}
    assert rehearsal.train(plain)["dataloader_num_workers"] == 1, "what it needs"
    named = {**plain, "name": ["fine"], "base_config": "fine", "eval_config": "fine"}
    put = rehearsal.train(named)
    assert [put[name] for name in ("name", "base_config", "eval_config")] == [None] * 3, "none are generated"
    assert rehearsal.reinforce({"teacher": ["x"], "num_views": 2})["dataset_config"] is None
    (path,) = rehearsal.compare({"train": plain, "evaluate": {"sets": []}, "teacher": ["a", "b"]}).values()
    assert yaml.safe_load(path.read_text())["teacher"] == rehearsal.teachers(2)
    monkeypatch.setattr(smoke, "launch", lambda *_: 2)
    message = r'reinforce\.yaml must make the "\+" dataset, but it ended with status 2\. See above'
    with pytest.raises(ConfigError, match=message):
        rehearsal.train({**plain, "augmentation": None})


def test_a_rehearsal_needs_a_description(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("dataset: x\nteacher: [y]\noutput_dir: z")
    assert main(["reinforce", "--config", str(recipe), "--smoke"]) == 2
    assert "`smoke` needs a --config in a folder with a features.yaml" in capsys.readouterr().err
    (tmp_path / "features.yaml").write_text("dataset: x\nsplit: [train]\n3: y")
    with pytest.raises(ConfigError, match="have the keys columns, dataset, images, splits, found dataset, split, 3"):
        Described.find([str(recipe)])


def test_a_description_is_found_from_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    content = {"dataset": "x", "splits": {"train": 1}, "images": {}, "columns": {}}
    (tmp_path / "features.yaml").write_text(yaml.safe_dump(content))
    assert Described.find(["~/recipe.yaml"]).folder == tmp_path


def test_the_splits_of_a_description_have_sizes(tmp_path):
    assert {folder.name: read_yaml(folder / "features.yaml")["splits"] for folder in SETS} == {
        "imagenet": {"train": 1281167, "validation": 50000, "test": 100000},
        "cifar100": {"train": 50000, "test": 10000},
        "flowers102": {"train": 1020, "validation": 1020, "test": 6149},
        "food101": {"train": 75750, "validation": 25250},
        "fashion_mnist": {"train": 10000, "test": 2000},
    }
    (tmp_path / "features.yaml").write_text("dataset: x\nsplits: [train]\nimages: {}\ncolumns: {}")
    with pytest.raises(ConfigError, match=r"`splits` in .* must say how many rows each split has, found \['train'\]"):
        Described.find([str(tmp_path / "r.yaml")])


@pytest.fixture
def other_splits(tmp_path):
    """A copy of the embedded Fashion-MNIST with some of its training images missing."""
    for split, rows in (("train", 9000), ("test", 2000)):
        part = datasets.load_dataset(str(ROOT / "hf_dr/assets/fashion_mnist"), split=f"{split}[:{rows}]")
        part.to_parquet(tmp_path / f"copy/{split}-00000-of-00001.parquet")
    return str(tmp_path / "copy")


def test_a_base_with_other_splits_than_the_recipe_says_is_refused(other_splits, tmp_path, capsys):
    out = ["--output_dir", str(tmp_path / "out")]
    reinforce = ["reinforce", "--config", "recipes/fashion_mnist/reinforce.yaml", *out]
    train = ["train", "--config", "recipes/fashion_mnist/erm.yaml", "--max_steps", "1", *out]
    found = (
        "must have 10,000 rows, as recipes/fashion_mnist/features.yaml says of hf_dr/assets/fashion_mnist, found 9,000"
    )
    for argv in (reinforce, train):
        assert main([*argv, "--dataset", other_splits]) == 2
        assert f"the split `train` of {other_splits} {found}" in capsys.readouterr().err
    assert main([*train, "--eval_dataset", other_splits, "--eval_split", "train"]) == 2
    assert f"the split `train` of {other_splits} {found}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

    recipe = [*reinforce, "--dataset", other_splits, "--num_views", "1", "--dry_run"]
    assert main([*recipe, "--split", "train[:64]"]) == 0, "a part on purpose"
    own = tmp_path / "own.yaml"
    own.write_text(Path("recipes/fashion_mnist/reinforce.yaml").read_text())
    assert main([recipe[0], "--config", str(own), *recipe[3:], "--split", "test"]) == 0, "no recipe's folder"


def test_a_plus_dataset_of_more_images_than_the_recipe_says_is_refused(tiny_folder, tmp_path, capsys):
    """As one of a copy of Flowers-102 whose training images are the test images of the others."""
    described = {"dataset": "me/tiny", "splits": {"train": 11}, "images": {}, "columns": {}}
    (tmp_path / "features.yaml").write_text(yaml.safe_dump(described))
    (tmp_path / "plus.yaml").write_text(yaml.safe_dump({"dataset": str(tiny_folder), "objective": "reinforced"}))
    argv = ["--config", str(tmp_path / "plus.yaml"), *TINY, "--max_steps", "1", "--output_dir", str(tmp_path / "out")]
    assert main(["train", *argv]) == 2
    found = f"must have 11 rows, as {tmp_path / 'features.yaml'} says of me/tiny, found 12"
    assert f"the split `train` of the base, reinforced in {tiny_folder}, {found}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "features.yaml").write_text(yaml.safe_dump({**described, "splits": {"train": 13}}))
    assert main(["train", *argv]) == 0, "a part on purpose (`max_examples`)"


def test_a_rehearsal_is_of_one_process(monkeypatch, capsys):
    class Two:
        num_processes, process_index, is_main_process = 2, 0, True

    monkeypatch.setattr("hf_dr.processes.process_state", Two)
    assert main(["reinforce", "--config", "recipes/cifar100/reinforce.yaml", "--smoke"]) == 2
    assert "`smoke` takes one process, got 2" in capsys.readouterr().err
