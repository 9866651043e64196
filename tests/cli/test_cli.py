"""The command line, called as its users call it."""

import errno
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from torch._inductor.exc import InductorError, InvalidCxxCompiler

from hf_dr.cli import early, push
from hf_dr.cli import launch as launching
from hf_dr.cli.arguments import build_augmentation, read_classes
from hf_dr.cli.early import COMMON
from hf_dr.cli.launch import COMMANDS, start_logging
from hf_dr.cli.main import main
from hf_dr.cli.yaml_files import RECIPES
from hf_dr.errors import ConfigError
from hf_dr.generation.config import ReinforceConfig
from hf_dr.generation.job import reinforce_job
from hf_dr.text import progress_bar

# How torch tells of an error in a loader's worker: with the lines of the sources, whatever words stand in them.
IN_A_WORKER = (
    "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
    + 9 * '  File "hf_dr/views/maker.py", line 1, in decode  # until it is out of memory\n'
)


@pytest.fixture(scope="module")
def named(tmp_path_factory, tiny_dataset):
    """Arguments that name a dataset and a teacher on disk."""
    folder = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=tiny_dataset.features["label"].num_classes)
    save_file(model.state_dict(), folder / "t.safetensors")
    tiny_dataset.to_parquet(folder / "base.parquet")
    return ["--dataset", str(folder / "base.parquet"), "--teacher", f"timm:test_resnet@{folder / 't.safetensors'}"]


@pytest.fixture(scope="module")
def plus(tmp_path_factory, named):
    folder = tmp_path_factory.mktemp("plus")
    assert (
        main(["reinforce", *named, "--output_dir", str(folder), "--size", "24", "--num_views", "3", "--top_k", "4"])
        == 0
    )
    return folder


def test_reinforce_then_load_dataset(plus):
    loaded = datasets.load_dataset(str(plus), "randaug", split="train")
    assert len(loaded[0]["teacher_ids"]) == 3


def test_verify(plus, named, capsys):
    assert main(["verify", str(plus), *named[2:], "--num_rows", "4"]) == 0
    assert main(["verify", str(plus), "--no_teacher", "--device"]) == 0
    assert main(["verify", str(plus)]) == 2
    assert "error: " in capsys.readouterr().err


def test_inspect(plus, tmp_path, capsys):
    sheet, file = tmp_path / "sheet.png", tmp_path / "i.json"
    assert main(["inspect", str(plus), "--contact_sheet", str(sheet), "--json", str(file)]) == 0
    assert sheet.stat().st_size > 10_000
    assert json.loads(file.read_text())
    assert "randaug" in capsys.readouterr().out


def test_where_findings_go_and_classes_without_a_teacher(plus, tmp_path, capsys):
    assert main(["inspect", str(plus), "--json", str(tmp_path / "new" / "i.json")]) == 0
    assert main(["inspect", str(plus), "--json", str(tmp_path)]) == 2
    assert f"could not write {tmp_path}: " in capsys.readouterr().err
    for words in (["verify"], ["extend", "--num_views", "9", "--output_dir", str(tmp_path / "more")]):
        assert main([words[0], str(plus), *words[1:], "--teacher_classes", "by_name"]) == 2
        assert "`teacher_classes` must come with a teacher, got 'by_name' without" in capsys.readouterr().err


def test_verify_tells_of_damage_by_its_exit_status(plus, tmp_path, named):
    shutil.copytree(plus, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*.parquet"):
        table = pq.read_table(path)
        flips = table.column("aug_flip").combine_chunks()
        inverted = type(flips).from_arrays(pc.invert(flips.values), 3)
        table = table.set_column(table.column_names.index("aug_flip"), table.field("aug_flip"), inverted)
        marker = {b"hf_dr": pq.read_metadata(path).metadata[b"hf_dr"]}
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **marker}), path)
    assert main(["verify", str(tmp_path / "copy"), "--no_teacher"]) == 1


def test_a_dry_run_writes_nothing(named, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reinforce", *named, "--output_dir", str(out), "--size", "24", "--top_k", "4", "--dry_run"]) == 0
    assert not out.exists()
    shown = capsys.readouterr().out
    assert "nothing written" in shown
    assert "hours" in shown


def test_what_is_missing_is_named(plus, tmp_path, capsys):
    assert main(["verify", str(plus)]) == 2
    message = capsys.readouterr().err
    assert "(--teacher)" in message
    assert "(--no_teacher)" in message
    words = ["--student", "timm:test_resnet", "--output_dir", str(tmp_path / "out")]
    (tmp_path / "images").mkdir()
    assert main(["train", "--dataset", str(tmp_path / "images"), "--objective", "erm", *words]) == 2
    assert "To train by erm on a base dataset, which is not reinforced, pass --augmentation." in capsys.readouterr().err
    assert main(["train", "--dataset", str(tmp_path / "images"), *words]) == 2
    assert "--augmentation" not in capsys.readouterr().err
    assert main(["compare", "--title", "t", "--train", "x.yaml", "--output_dir", str(tmp_path / "out")]) == 2
    message = "argument --train: it is a mapping of settings, which stands in the YAML file of --config, got 'x.yaml'"
    assert message in capsys.readouterr().err


def test_a_config_file_with_an_augmentation(named, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(
        f"output_dir: {tmp_path / 'out'}\nnum_views: 2\ntop_k: 2\nconfig_name: mine\n"
        "augmentation:\n  - Resize: {size: [16, 16]}\n  - RandomHorizontalFlip: {p: 1}\n"
    )
    assert main(["reinforce", *named, "--config", str(config)]) == 0
    assert all(datasets.load_dataset(str(tmp_path / "out"), "mine", split="train")[0]["aug_flip"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reinforce"], "--dataset"),
        (["--config"], "error: argument --config: expected at least one argument. See `hf-dr reinforce --help`."),
        (["--num_viwes", "3"], "unknown argument `--num_viwes`. Did you mean `--num_views`?"),
        (["--augmentation", "randaugh"], "no augmentation is called `randaugh`. Did you mean `randaug`?"),
        (["--num_views", "0"], "`num_views` must be a whole number of at least 1, got 0"),
        (["--top_k", "128"], "`top_k` must be between 1 and the teacher's 8 classes, got 128"),
        (["--label_column", "lable"], "`label_column` must name a column, got 'lable'. Did you mean `label`?"),
        (["--dataset", "./nowhere.parquet"], "./nowhere.parquet"),
        (["--teacher", "timm:nothing@x"], "timm has no architecture 'nothing'"),
        (["--teacher_classes", "nowhere.json"], "`teacher_classes` must be `by_name`"),
        (["--split", "tset"], "could not load split `tset`"),
    ],
)
def test_wrong_calls_end_with_one_clear_line_and_status_2(named, tmp_path, capsys, arguments, message):
    argv = ["reinforce", *named, "--output_dir", str(tmp_path / "o"), *arguments]
    assert main(arguments if arguments == ["reinforce"] else argv) == 2
    captured = capsys.readouterr().err
    assert message in captured
    assert "Traceback" not in captured
    assert not (tmp_path / "o").exists()


LONG = "x" * 300
PRIVATE = "priv/x"


@pytest.mark.parametrize(
    "words",
    [
        ["reinforce", "BASE", "--teacher", "TEACHER", "--output_dir", "PLACE"],
        ["reinforce", "PLACE", "--teacher", "TEACHER", "--output_dir", "out"],
        ["train", "PLUS", "--student", "timm:test_resnet", "--output_dir", "PLACE"],
        ["train", "PLACE", "--student", "timm:test_resnet", "--output_dir", "out"],
        ["verify", "PLACE"],
        ["inspect", "PLACE"],
        ["extend", "PLACE", "--num_views", "9", "--output_dir", "out"],
        ["extend", "PLUS", "--teacher", "TEACHER", "--num_views", "9", "--output_dir", "PLACE"],
        ["export", "PLUS", "--format", "webdataset", "--output_dir", "PLACE"],
        ["push", "PLACE", "me/x"],
        ["evaluate", "a=PLACE", "--sets", "test=BASE:train", "--output_dir", "out"],
        ["report", "PLACE"],
        ["quickstart", "PLACE", "--output_dir", "out"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("place", [LONG, PRIVATE])
def test_a_place_that_cannot_be_entered_is_told_in_words(words, place, plus, named, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def guarded(call, path, *more, **settings):  # root may enter every folder
        if isinstance(path, (str, os.PathLike)) and PRIVATE in os.fspath(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return call(path, *more, **settings)

    for call in (os.stat, os.mkdir):
        monkeypatch.setattr(os, call.__name__, partial(guarded, call))
    for name, value in {"PLACE": place, "PLUS": str(plus), "BASE": named[1], "TEACHER": named[3]}.items():
        words = [word.replace(name, value) for word in words]
    assert main(words) == 2
    shown = capfd.readouterr().err
    assert re.search(rf"^error: .*{place}", shown, re.MULTILINE)
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "x"),
            "could not use the disk: No space left on device. Correct the path, its permissions or",
        ),
        (OSError(errno.EROFS, "x", "a/b"), "could not use a/b: Read-only file system. "),
        (PermissionError(errno.EACCES, "x", "a/b"), "could not use a/b: Permission denied. "),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "DataLoader worker (pid 7) is killed by signal: Killed. A worker that is killed has often used too much memory",
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
            "DataLoader worker (pid(s) 7, 8) exited un",
        ),
        (
            RuntimeError(
                "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:10177"
            ),
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:10177. Another process",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has. Take smaller batches, in a training by a larger",
        ),
        (
            RuntimeError("The client socket has timed out after 60000ms while trying to connect to (a1, 29500)."),
            "The client socket has timed out after 60000ms while trying to connect to (a1, 29500). The processes of this",
        ),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
            "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes. Take smaller batches",
        ),
        (
            RuntimeError(f"{IN_A_WORKER}RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried"),
            "DefaultCPUAllocator: can't allocate memory: you tried. Take smaller batches",
        ),
        (MemoryError(), "no memory is left. Take smaller batches"),
        (pa.ArrowMemoryError("malloc of size 64 failed"), "malloc of size 64 failed. Take smaller batches"),
        (
            RuntimeError(
                IN_A_WORKER.replace("RuntimeError", "_ArrayMemoryError")
                + "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3.00 GiB for an array with"
            ),
            "Unable to allocate 3.00 GiB for an array with. Take smaller batches",
        ),
        (
            InductorError(InvalidCxxCompiler(), None),
            f"InvalidCxxCompiler: {InvalidCxxCompiler()}. torch could not compile the model, for which it needs a compiler",
        ),
        (
            InductorError(torch.OutOfMemoryError("CUDA out of memory. Tried"), None),
            "OutOfMemoryError: CUDA out of memory. Tried. Take smaller batches",
        ),
        (
            RuntimeError("Unrecognized mode=fast, should be one of: default, lite"),
            "Unrecognized mode=fast, should be one of: default, lite. Choose another `torch_compile_mode`.",
        ),
        (OSError(errno.EFBIG, "x", "a/b"), "could not use a/b: File too large. "),
        (RuntimeError(f"{IN_A_WORKER}RuntimeError: another"), None),
        (RuntimeError("another"), None),
        (PermissionError(errno.EACCES, "x"), None),
        (FileNotFoundError(errno.ENOENT, "x", "a/b"), None),
    ],
)
def test_what_the_system_says_of_a_path_or_disk_is_no_traceback(error, message, capsys, monkeypatch):
    def inspect(*_, **__):
        raise error

    monkeypatch.setattr("hf_dr.generation.inspection.inspect", inspect)
    if message is None:
        with pytest.raises(type(error)):
            main(["inspect", "somewhere"])
        return
    assert main(["inspect", "somewhere"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["inspect", "somewhere"]) == 2
    assert f"[rank 1] error: {message}" in capsys.readouterr().err


def test_usage(capsys):
    assert main(["--help"]) == 0
    assert "reinforce" in capsys.readouterr().out
    assert main([]) == 2
    assert main(["bake"]) == 2
    assert "expected a command, got bake" in capsys.readouterr().err


def test_classes(tmp_path):
    assert read_classes(None, None) is None
    assert read_classes("by_name", ["a", "b"]) == ["a", "b"]
    assert len(read_classes("imagenet-r", None)) == 200
    (tmp_path / "c.json").write_text("[3, 1]")
    assert read_classes(str(tmp_path / "c.json"), None) == [3, 1]
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(ConfigError, match="must hold a JSON list"):
        read_classes(str(tmp_path / "d.json"), None)
    with pytest.raises(ConfigError, match=r"`teacher_classes` must be `by_name`, .* or a JSON file"):
        read_classes("no\0name.json", None)
    with pytest.raises(ConfigError, match="needs a ClassLabel column"):
        read_classes("by_name", None)


def test_an_augmentation_file(tmp_path):
    (tmp_path / "a.yaml").write_text("augmentation: [{RandomResizedCrop: {size: 8}}, RandomHorizontalFlip]")
    assert [type(op).__name__ for op in build_augmentation(str(tmp_path / "a.yaml"), None).ops] == [
        "RandomResizedCrop", "RandomHorizontalFlip"
    ]  # fmt: skip


def test_a_size_and_a_list_of_ops_must_agree():
    ops = [{"RandomResizedCrop": {"size": 8}}]
    assert build_augmentation(ops, 8).size == (8, 8)
    with pytest.raises(
        ConfigError, match=r"`size` must be that of the views of a list of ops, 8x8, got 24\. Leave it out"
    ):
        build_augmentation(ops, 24)
    assert build_augmentation("rrc", None).size == (224, 224)


def test_an_augmentation_file_without_its_key(tmp_path):
    path = Path(tmp_path / "a.yaml")
    path.write_text("ops: []")
    with pytest.raises(ConfigError, match="must have the key `augmentation`, found ops"):
        build_augmentation(str(path), 24)
    with pytest.raises(ConfigError, match=r"`augmentation` must name a readable file, but no\.yaml: No such file"):
        build_augmentation("no.yaml", 24)


def test_datasets_of_the_hub_serve_like_folders(loopback_hub, plus, tmp_path, named, capsys):
    files = {p.relative_to(plus).as_posix(): p.read_bytes() for p in plus.rglob("*.*") if p.name[0] != "."}
    loopback_hub.put("org/plus", files)
    tag = ["--revision", loopback_hub.repo("org/plus").refs["main"].sha]
    assert main(["verify", "org/plus", *tag, "--no_teacher", "--num_rows", "2"]) == 0
    assert main(["inspect", "org/plus", *tag, "--contact_sheet", str(tmp_path / "sheet.png")]) == 0
    assert "randaug" in capsys.readouterr().out
    assert main(["verify", "org/none", "--no_teacher"]) == 2
    assert "log in with `hf auth login`" in capsys.readouterr().err


def test_an_overlay_of_the_hub_over_a_moved_base(loopback_hub, named, tmp_path, tiny_dataset, capsys):
    overlay, base = tmp_path / "overlay", tmp_path / "moved.parquet"
    tiny_dataset.shuffle(seed=5).to_parquet(base)
    assert main(["reinforce", *named, "--output_dir", str(overlay), "--size", "24", "--top_k", "4", "--overlay"]) == 0
    for file in (overlay / "randaug").glob("[!.]*"):
        loopback_hub.put("org/overlay", {f"randaug/{file.name}": file.read_bytes()})
    assert main(["verify", "org/overlay", "--no_teacher", "--base", str(base)]) == 0
    assert main(["verify", "org/overlay", "--no_teacher"]) == 2
    assert "is an overlay without images. Pass `base`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["reinforce", "--help"], 0),
        (["extend", "--help"], 0),
        (["verify", "--help"], 0),
        (["inspect", "--help"], 0),
        (["push", "--help"], 0),
        (["import-ml-dr", "--help"], 0),
        (["compare", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["report", "--help"], 0),
        (["recipes", "list"], 0),
        (["quickstart", "--help"], 0),
        (["train", "--help"], 0),
        (["teach", "--help"], 0),
        (["train", "--btch_size", "3", "--dataset", "d", "--student", "s"], 2),
        (["train", "--lr", "3"], 2),
        (["reinforce", "--num_veiws", "3"], 2),
        (["reinforce", "--dataset", "d", "--teacher", "t", "--output_dir", "o", "--num_views", "0"], 2),
        (["extend", "--output_dir", "o"], 2),
        (["verify"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_arguments_are_read_without_torch(words, status):
    """Help and a mistake take a fifth of a second; what `-X importtime` lists is what was imported."""
    command = [sys.executable, "-X", "importtime", "-m", "hf_dr", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert done.returncode == status, done.stderr[-2000:]
    assert imported.isdisjoint({"torch", "transformers", "datasets", "numpy", "accelerate", "pydantic"})
    assert done.stdout or any("error" in line for line in lines)


def test_the_help_of_a_training_is_short_and_in_groups_and_can_be_whole(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    short = capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help_all"])
    whole = capsys.readouterr().out
    assert len(short.splitlines()) < len(whole.splitlines()) / 2
    for words in (
        "Who learns what",
        "Reinforced training",
        "--help_all shows all",
        "Also --lr",
        "examples:\n  hf-dr train",
    ):
        assert words in short
    assert "--torch_compile_mode" in whole
    for setting in COMMON:
        assert f"--{setting}" in whole, "transformers has it"


def test_the_help_tells_the_defaults_that_hold(capsys):
    for command, told in (
        ("train", "Also --epochs. Default: 3."),
        ("teach", "Also --epochs. Default: 20, by teach.yaml."),
    ):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert told in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "Did you mean `train`?"),
        (["--versoin"], "Did you mean `--version`?"),
        (["help"], "Did you mean `--help`?"),
        (["teach", "photos", "--bathc_size", "3"], "unknown argument `--bathc_size`. Did you mean `--batch_size`?"),
        (["reinforce", "--datset", "x"], "unknown argument `--datset`. Did you mean `--dataset`?"),
        (["reinforce", "photos", "--batch", "3"], "unknown argument `--batch`. Did you mean `--batch_size`?"),
        (["train", "--studnet", "s"], "unknown argument `--studnet`. Did you mean `--student`?"),
        (["train", "--learning_rat", "3"], "unknown argument `--learning_rat`. Did you mean `--learning_rate`?"),
        (["train", "--xyzzyx", "3"], "unknown argument `--xyzzyx`. --help_all shows all."),
        (["evaluate", "--model", "x"], "unknown argument `--model`. Did you mean `--models`?"),
        (["compare", "--confg", "x"], "unknown argument `--confg`. Did you mean `--config`?"),
        (["verify", "--no_techer"], "unknown argument `--no_techer`. Did you mean `--no_teacher`?"),
        (["verify", "nowhere", "--num_rows", "0"], "`num_rows` must be a whole number of at least 1, got 0."),
        (
            ["verify", "nowhere", "--teacher", "x", "--no_teacher"],
            "`teacher` must be left out with `no_teacher`, got both.",
        ),
        (["verify", "nowhere", "--teacher_classes", "cat"], "`teacher_classes` must come with a teacher, got 'cat'"),
        (["verify", "x", "--device", "cpu"], "unknown argument `cpu`. `--device` takes no value: leave it out."),
        (["inspect", "x", "--contact-shet", "y"], "unknown argument `--contact-shet`. Did you mean `--contact_sheet`?"),
        (["push", "x", "--private_repo"], "unknown argument `--private_repo`. Did you mean `--private`?"),
        (["report", "x", "--out", "y"], "unknown argument `--out`. Did you mean `--output_dir`?"),
        (["recipes", "list", "--nme"], "unknown argument `--nme`. Known: --help"),
        (
            ["verify", "x", "y"],
            "unknown argument `y`. Leave it out, write its flag before it, or, if it is the dataset, write it before all",
        ),
        (["reinforce", "photos", "--dataset", "x"], "expected the dataset once, got photos and `--dataset`."),
        (["calibrate", "photos", "--dataset=x"], "expected the dataset once, got photos and `--dataset`."),
        (["evaluate", "a", "b", "--models", "x"], "expected the models once, got a b and `--models`."),
        (["compare", "x.yaml", "--config", "y.yaml"], "expected the config once, got x.yaml and `--config`."),
        (["compare", "missing.yaml"], "missing.yaml"),
        (
            ["import-ml-dr", "--base", "x", "--output_dir", "y"],
            "expected folders or archives of ml-dr before the flags",
        ),
        (["calibrate", "photos"], "the following arguments are required: --teacher. See"),
        (["evaluate", "a", "b"], "the following arguments are required: --sets, --output_dir/--output-dir. See"),
        (["train", "photos-plus", "--student", "s"], "are required: --output_dir/--output-dir. See"),
        (["teach", "photos"], "the following arguments are required: --output_dir/--output-dir. See"),
        (
            ["train", "d", "--student", "s", "--output_dir", ""],
            "`output_dir` must be given, got an empty text. Name a folder.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistyped_word_is_named_before_what_is_missing(words, message, capsys):
    """In each command, also where the mistyped flag is a required one; words before the flags are not missing."""
    assert main(words) == 2
    assert message in capsys.readouterr().err


class ReachedError(Exception):
    pass


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_each_help_are_read(command, tmp_path, monkeypatch, capsys):
    """Up to where torch is imported: what is missing after that are the datasets of the examples."""

    def reached():
        raise ReachedError

    for module in {command.module for command in COMMANDS.values()}:
        monkeypatch.setattr(f"hf_dr.cli.{module}.start_logging", reached, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(RECIPES)
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    lines = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line.replace("accelerate launch -m hf_dr", "hf-dr"))
        assert words[:2] == ["hf-dr", command]
        if command == "recipes":
            assert main(words[1:]) == 0
        else:
            with pytest.raises(ReachedError):
                main(words[1:])


def test_bars_share_a_thread():
    first = progress_bar(range(2))
    assert type(progress_bar(range(2))) is type(first), "tqdm starts one for each class"


def test_the_dataset_may_stand_first(capsys):
    for words in (["reinforce", "d", "--teacher", "t"], ["train", "d", "--student", "s"]):
        with pytest.raises(SystemExit, match="0"):
            main([*words, "--output_dir", "o", "--print_config"])
        chosen = yaml.safe_load(capsys.readouterr().out.partition("# Defaults:")[0])
        assert chosen["dataset"] in ("d", ["d"])


def test_what_people_type_is_understood(capsys):
    words = ["--dataset", "d", "--student", "s", "--output_dir", "o", "--print_config"]
    with pytest.raises(SystemExit, match="0"):
        main(["train", *words, "--tail", "bucket", "--lr", "0.25", "--epochs", "7", "--batch_size", "5"])
    chosen = yaml.safe_load(capsys.readouterr().out.partition("# Defaults:")[0])
    assert [chosen[name] for name in ("learning_rate", "num_train_epochs", "batch_size")] == [0.25, 7, 5]


def test_no_log_shows_a_token(monkeypatch):
    """The Hub's client logs addresses as they are, with whoever logs in within them."""
    root = logging.getLogger()
    handler = logging.StreamHandler(stream := io.StringIO())
    monkeypatch.setattr(root, "handlers", [handler])
    start_logging()
    logging.getLogger("elsewhere").warning("'%s' thrown while requesting PUT %s", "refused", "http://me:pass@hub/x")
    assert stream.getvalue() == "'refused' thrown while requesting PUT http://hub/x\n"


@pytest.mark.parametrize("words", [["--help"], ["recipes", "list"]], ids=" ".join)
def test_a_program_without_output_ends_as_it_should(words):
    """As a daemon, whose stdout is closed, and in a pipe that nobody reads."""
    command = [sys.executable, "-m", "hf_dr", *words]
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *command], check=False, capture_output=True, text=True)
    assert (closed.returncode, closed.stderr) == (0, "")
    pipe = subprocess.run(
        ["sh", "-c", '{ "$@"; echo $? >&2; } | true', "sh", *command], check=False, capture_output=True, text=True
    )
    assert pipe.stderr in ("0\n", "141\n"), pipe.stderr


def test_names_that_a_terminal_cannot_show_are_written_in_other_words(tmp_path):
    (tmp_path / "rec\xfc").mkdir()
    words = [sys.executable, "-m", "hf_dr", "recipes", "copy", "cifar100", str(tmp_path / "rec\xfc")]
    ended = subprocess.run(words, check=False, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0, ended.stderr
    assert rb"rec\xfc/cifar100/reinforce.yaml" in ended.stdout


def test_paths_in_a_locale_that_has_no_utf8_are_refused(tmp_path):
    where = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-m", "hf_dr", "inspect", str(tmp_path / "\xfc")]
    ended = subprocess.run(words, check=False, capture_output=True, text=True, env={**os.environ, **where})
    assert ended.returncode == 2
    assert (
        "paths with other characters than ASCII need UTF-8, but this locale has ascii. Set PYTHONUTF8=1" in ended.stderr
    )


def test_output_that_nobody_reads_ends_quietly():
    """`hf-dr ... | head`."""
    read, write = os.pipe()
    os.close(read)
    words = ["reinforce", "--dataset", "x", "--teacher", "x", "--output_dir", "y", "--print_config"]
    done = subprocess.run(
        [sys.executable, "-m", "hf_dr", *words], check=False, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_whether_anybody_reads_is_known(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert not launching._nobody_reads()
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert launching._nobody_reads()
        pipe.write("thrown away")


def test_without_the_source_of_transformers_its_settings_are_not_known(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin="/nowhere/transformers.zip"))
    assert early._names_of_transformers.__wrapped__() == set()


def test_a_broken_pipe_of_another_kind_is_not_hidden(monkeypatch):
    """A worker's, for example."""

    def fails(argv, prog):
        raise BrokenPipeError

    monkeypatch.setattr(push, "push_command", fails)
    monkeypatch.setattr(launching, "_nobody_reads", lambda: False)
    with pytest.raises(BrokenPipeError):
        main(["push"])


def test_where_results_go_is_tried_first(tmp_path, capsys, plus):
    """Before a model is loaded: none of these exist."""
    (tmp_path / "taken").touch()
    place = tmp_path / "taken" / "o"
    for command in (
        ["evaluate", "--models", "none", "--sets", "e=none:test", "--output_dir", str(place)],
        ["report", "none", "--output_dir", str(place)],
        ["inspect", str(plus), "--json", str(place / "x.json")],
        ["inspect", str(plus), "--contact_sheet", str(place / "x.png")],
    ):
        assert main(command) == 2
        shown = capsys.readouterr()
        assert "must be where files can be written, but" in shown.err
        assert not shown.out


HOSTILE_YAML = (
    "size: !!int ''",
    "size: 2024-13-45",
    "size: !!float x",
    "size: " + "[" * 3000,
    "? [a]\n: b",
    "size: !!binary x",
    "a: \x00",
)


@pytest.mark.parametrize("text", HOSTILE_YAML, ids=lambda text: text[:16])
def test_any_yaml_is_one_clear_error(text, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(text)
    assert main(["reinforce", "--config", str(tmp_path / "c.yaml")]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: .*c.yaml must be YAML, but: .+ Correct it.\n", shown)


def test_labels_that_are_not_used_or_not_named_are_said(tmp_path, tiny_dataset, tiny_teacher, caplog, monkeypatch):
    numbers = tiny_dataset.cast_column("label", datasets.Value("int64"))
    monkeypatch.setattr(tiny_teacher, "labels", tuple((f"class {c}",) for c in range(tiny_teacher.num_classes)))
    augmentation = build_augmentation("rrc", 24)
    settings = {"num_views": 1, "top_k": 2, "output_dir": str(tmp_path)}
    for dataset, said in (
        (numbers, r"[0-9]+ label numbers of `label`, which have no names, .* 0 is 'class 0', 1 is 'class 1'"),
        (
            numbers.rename_column("label", "labels"),
            "No column is taken for labels, among labels[.] Name .*by `label_column`",
        ),
        (numbers.rename_column("label", "kind").cast_column("kind", datasets.Value("string")), "among kind"),
        (numbers.select_columns(["image"]), "among no others"),
    ):
        caplog.clear()
        reinforce_job(dataset, tiny_teacher, augmentation, ReinforceConfig(**settings))
        assert re.search(said, caplog.text)
    caplog.clear()
    reinforce_job(
        numbers.rename_column("label", "cls"),
        tiny_teacher,
        augmentation,
        ReinforceConfig(label_column="none", **settings),
    )
    assert "label" not in caplog.text


@pytest.fixture
def bars(monkeypatch):
    """Bars are shown, and lines of them at once."""
    for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("hf_dr.text.SECONDS_BETWEEN_LINES", 0.0)


@pytest.mark.parametrize("name", ["TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"])
def test_bars_can_be_switched_off(name, bars, capsys, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert list(progress_bar(range(3), desc="counting")) == [0, 1, 2]
    assert not capsys.readouterr().err


def _lines(capsys, **settings):
    """The lines of a bar of single steps, without the time left and the rate."""
    with progress_bar(**settings) as bar:
        for _ in range((3 if settings["total"] is None else settings["total"]) - settings.get("initial", 0)):
            bar.update()
        bar.write("a text of others")
        bar.set_postfix_str("8 shards", refresh=False)
    said = capsys.readouterr()
    assert said.out == "a text of others\n"
    return [re.sub(r", [^,]+ left, [^,]+", "", line) for line in said.err.splitlines()]


@pytest.mark.parametrize("desc", ["few", "all: 100 %, of them", "99 %"])
@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize(("total", "initial"), [(3, 0), (3, 2), (3, 3), (1, 0), (0, 0)])
def test_bars_are_lines_without_a_terminal(desc, leave, total, initial, bars, capsys):
    percents = [100 * n // total for n in range(initial, total)]
    lines = [f"{desc}: {p} %, {n} of {total}" for n, p in enumerate(percents, start=initial)]
    last = f"{desc}: 100 %, {total} of {total}, 8 shards"
    assert _lines(capsys, total=total, initial=initial, desc=desc, leave=leave) == [*lines, last]


def test_lines_of_bars_of_many_steps(bars, capsys, monkeypatch):
    lines = _lines(capsys, total=1999, desc="many", miniters=1)
    assert lines[:2] == ["many: 0 %, 0 of 1,999", "many: 0 %, 1 of 1,999"]
    assert lines[-2:] == ["many: 99 %, 1,998 of 1,999", "many: 100 %, 1,999 of 1,999, 8 shards"]
    assert _lines(capsys, total=None, desc="endless")[0] == "endless: 0 %, 0 of ?"
    monkeypatch.setattr("hf_dr.text.SECONDS_BETWEEN_LINES", 30.0)
    assert _lines(capsys, total=3, desc="few") == ["few: 0 %, 0 of 3", "few: 100 %, 3 of 3, 8 shards"]
    assert not _lines(capsys, total=3, desc="one of many", leave=False), "a short one"
    with progress_bar(total=3, desc="stopped") as bar:
        bar.update(1)
    assert "100 %" not in capsys.readouterr().err


def test_bars_of_a_terminal(bars, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for total in (78, 1999):
        assert len(list(progress_bar(range(total), desc="counting", ncols=100))) == total
        last = capsys.readouterr().err.strip().split("\r")[-1]
        assert re.fullmatch(rf"counting: 100%\|█+\| {total:,}/{total:,} \[00:\d\d<00:\d\d, .*it/s\]", last)
    assert list(progress_bar(range(3), desc="one of many", leave=False)) == [0, 1, 2]
    assert not capsys.readouterr().err, "a short step flashes no bar"
    monkeypatch.setattr("hf_dr.text.SECONDS_BEFORE_BAR", 0.0)
    assert list(progress_bar(range(3), desc="one of many", leave=False)) == [0, 1, 2]
    assert "one of many:   0%" in capsys.readouterr().err


class _Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ConfigError("the image of row 0 must be readable.\nFix it.")


def test_an_error_of_a_loaders_worker_is_told_without_its_traceback():
    with pytest.raises(ConfigError) as caught:
        next(iter(torch.utils.data.DataLoader(_Broken(), num_workers=1)))
    assert "Original Traceback" in str(caught.value)
    assert launching._without_traceback(str(caught.value)) == "the image of row 0 must be readable.\nFix it."
    assert launching._without_traceback("what is said") == "what is said"
