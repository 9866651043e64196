"""What launches at scale: accelerate's own class reads the YAML files, the shells read the scripts, two processes do run."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import accelerate.commands.launch
import children
import datasets
import pytest
import timm
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import save_file

from hf_dr import processes
from hf_dr.cli.launch import guarded
from hf_dr.cli.main import main

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = {"one_gpu": (1, 1), "one_node": (1, 8), "nodes": (2, 16), "cpu": (1, 2)}
SCRIPTS = sorted((RECIPES / "slurm").glob("*.sbatch"))
# Stands in for a program: prints its arguments, one a line.
ECHO = '#!/bin/bash\nprintf "%s\\n" "$(basename "$0")" "$@"\n'


@pytest.mark.parametrize(
    "words", [["train", "--student", "timm:resnet10t"], ["reinforce", "--teacher", "x"]], ids=" ".join
)
def test_processes_that_cannot_connect_are_no_fault_of_the_settings(tmp_path, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1]), "WORLD_SIZE": "2", "RANK": "0"}
        words = [*words, "--dataset", "nowhere", "--output_dir", str(tmp_path / "out")]
        child = children.start(main, words, log=tmp_path / "log", LOCAL_RANK="0", **group)
        assert child.wait(300) == 2
    assert re.search(
        r"^\[rank 0\] error: The server socket has failed .* address already in use\. The processes of this launch cannot "
        "connect: let it take another port",
        child.text,
        re.MULTILINE,
    )


def meet(seconds: float | None = None) -> int:
    """Meets the other process, for which it waits so long, and says how long it would then wait for its work."""
    if seconds is not None:
        processes.MEETING = timedelta(seconds=seconds)

    def run() -> int:
        state = processes.process_state()
        processes.on_main(state, lambda: None)
        print(torch.distributed.distributed_c10d._get_default_store().timeout.days)
        return 0

    return guarded(run)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_no_other_meets_ends_soon(tmp_path, rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
    child = children.start(meet, 0.5, log=tmp_path / "log", **group)
    assert child.wait(300) == 2
    said = "[Tt]imed out after .*(clients|connect to).*The processes of this launch cannot connect: .*MASTER_ADDR"
    assert re.search(said, child.text)


def test_processes_that_have_met_wait_a_week_for_each_other(tmp_path):
    said = children.run(meet, two=True, log=tmp_path / "log")
    # In lines of their own, because older versions of gloo tell of their connections, too.
    assert re.findall(r"^\d+$", said, re.MULTILINE) == ["7", "7"]


def test_the_page_on_costs_has_the_numbers_of_the_benchmarks():
    page = (RECIPES.parent / "docs" / "imagenet.md").read_text(encoding="utf-8")
    results = RECIPES.parent / "benchmarks" / "results"
    storage, generation = (json.loads((results / f"{name}.json").read_text()) for name in ("storage", "generation"))
    rows = 1_281_167
    for views in (50, 100, 400):
        sizes = [f"{storage[name] * rows * views / 1e9:.3g} GB" for name in ("randaug", "randaug_mixing")]
        assert f"| {views} | {rows * views:,} | {sizes[0]} | {sizes[1]} |" in page
        if views != 100:  # that has another K
            assert f"| V = {views}, K = 10 | {sizes[0]} |" in page
    assert f"`randaug` {storage['randaug']} and `randaug_mixing` {storage['randaug_mixing']} a view" in page
    rest = sum(value for name, value in generation.items() if name.startswith("cpu_ms_") and name != "cpu_ms_teacher")
    assert f"{generation['cpu_ms_teacher']:.1f} ms of a core for a view" in page
    assert f"{rest:.2f} ms. That is" in page
    hours = [rows * 400 * ms / 3.6e6 for ms in (generation["cpu_ms_teacher"], rest)]
    assert f"{hours[0]:,.0f} and {hours[1]:.0f} core-hours" in page
    assert f"{generation['two_processes']:.2f} times what one\ndoes" in page


@pytest.fixture(scope="module")
def cost():
    spec = importlib.util.spec_from_file_location("cost", RECIPES.parent / "benchmarks" / "cost.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_page_has_the_table_of_costs_that_its_command_makes(cost, capsys):
    results = json.loads((RECIPES.parent / "benchmarks" / "results" / "cost.json").read_text())
    page = (RECIPES.parent / "docs" / "imagenet.md").read_text(encoding="utf-8")
    inputs, billions = results["inputs"], results["billions"]
    assert cost.table(billions, inputs["hours_per_view"], inputs["price"]) in page
    for name, views in (("mini", 50), ("small", 100), ("full", 400)):
        hours = inputs["hours_per_view"] * views
        assert f"{hours:,.0f} A100-hours, ${hours * inputs['price']:,.0f}" in page, name
    assert list(billions) == list(cost.teachers())
    light = cost.LIGHT[0]
    assert round(cost.multiply_adds([light]), 1) == billions[light]
    # A teacher that takes 1 ms a view takes 1,281,167 x 50 ms for mini.
    cost.main(["--teacher", "x", "--ms_per_view", "1", "--price", "10"])
    assert capsys.readouterr().out.splitlines() == ["x", "mini: 18, $180", "small: 36, $360", "full: 142, $1,420"]
    with pytest.raises(SystemExit):
        cost.main(["--teacher", "x"])
    assert "--teacher and --ms_per_view go together" in capsys.readouterr().err


def test_the_client_has_the_flags_of_jobs():
    texts = [path.read_text(encoding="utf-8") for path in [*RECIPES.parent.glob("docs/*.md"), *RECIPES.rglob("*.yaml")]]
    commands = [found for text in texts for found in re.findall(r"hf jobs (?:uv )?run .*", text)]
    assert len(commands) >= 2
    for command in commands:
        words = command.split()
        kind = words[1 : words.index("run") + 1]
        client = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()", *kind, "--help"]
        shown = subprocess.run(client, check=True, capture_output=True, text=True).stdout
        flags = [word for word in words if re.fullmatch(r"-v|--[a-z-]+", word)]
        assert {"--flavor", "--timeout"} <= set(flags)
        if "--attempts" not in shown:
            pytest.skip("an older client has fewer flags")
        for flag in flags:
            assert re.search(rf"(?<![\w-]){flag}\b", shown), f"{flag} of {command}"
        assert words[words.index("--flavor") + 1] in re.sub(r"\s+", "", shown)


def test_all_files_are_known():
    assert {path.stem for path in (RECIPES / "accelerate").glob("*.yaml")} == FILES.keys()
    assert [path.stem for path in SCRIPTS] == ["reinforce", "train"]


@pytest.mark.parametrize("name", FILES)
def test_accelerate_reads_its_configuration(name):
    config = load_config_from_file(str(RECIPES / "accelerate" / f"{name}.yaml"))  # refuses unknown keys
    assert (config.num_machines, config.num_processes) == FILES[name]
    assert config.distributed_type == ("NO" if name == "one_gpu" else "MULTI_GPU")
    assert config.mixed_precision == "no"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_shell_reads_a_script(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.fixture
def submit(tmp_path):
    """Runs a script as SLURM would, with stand-ins for the programs; returns the words of the command that it ends in."""
    for program in ("accelerate", "scontrol"):
        (tmp_path / program).write_text(ECHO if program == "accelerate" else "#!/bin/bash\nprintf 'a1\\na2\\n'\n")
    (tmp_path / "srun").write_text('#!/bin/bash\nshift\nexport SLURM_NODEID=1\nexec "$@"\n')
    for path in tmp_path.iterdir():
        path.chmod(0o755)

    def run(name: str, *arguments: str, **variables: str) -> list[str]:
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(RECIPES.parent), **variables}
        script = RECIPES / "slurm" / f"{name}.sbatch"
        done = subprocess.run(["bash", script, *arguments], check=True, env=environment, capture_output=True, text=True)
        return done.stdout.splitlines()

    return run


def test_a_task_of_an_array_takes_its_part(submit):
    array = {
        f"SLURM_ARRAY_TASK_{name}": value for name, value in (("ID", "5"), ("MIN", "3"), ("MAX", "6"), ("COUNT", "4"))
    }
    words = submit("reinforce", "--config", "a file.yaml", **array, SLURM_GPUS_ON_NODE="4")
    assert words == [
        *("accelerate", "launch", "--config_file", "recipes/accelerate/one_node.yaml", "--num_processes", "4"),
        *("recipes/reinforce.py", "--config", "a file.yaml", "--part", "2/4"),
    ]
    assert submit("reinforce")[-2:] == ["--part", "0/1"]
    with pytest.raises(subprocess.CalledProcessError) as refused:  # --array=3,5,6,8 of a run of 3-8
        submit("reinforce", **{**array, "SLURM_ARRAY_TASK_MAX": "8"})
    assert refused.value.returncode == 2
    assert "the array's numbers must follow each other, as in --array=0-3" in refused.value.stderr


def test_training_launches_each_node_with_its_rank(submit):
    assert submit("train", "--config", "x")[3:] == [
        *("recipes/accelerate/one_node.yaml", "--num_processes", "8", "recipes/train.py", "--config", "x"),
    ]
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_NODELIST": "a[1-2]", "SLURM_JOB_ID": "41"}
    assert submit("train", "--config", "a file.yaml", **job) == [
        *("accelerate", "launch", "--config_file", "recipes/accelerate/nodes.yaml", "--num_machines", "2"),
        *("--num_processes", "16", "--main_process_ip", "a1", "--main_process_port", "20041", "--machine_rank", "1"),
        *("recipes/train.py", "--config", "a file.yaml"),
    ]


def test_the_cpu_configuration_reinforces_in_two_processes(tmp_path, tiny_dataset):
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=8).state_dict(), tmp_path / "t.safetensors")
    tiny_dataset.to_parquet(tmp_path / "base.parquet")
    launcher = ["--config_file", str(RECIPES / "accelerate" / "cpu.yaml"), str(RECIPES / "reinforce.py")]
    settings = {
        "--dataset": tmp_path / "base.parquet", "--teacher": f"timm:test_resnet@{tmp_path / 't.safetensors'}",
        "--size": 24, "--num_views": 2, "--top_k": 3, "--shard_size": 3, "--output_dir": tmp_path / "plus",
    }  # fmt: skip
    flags = [str(part) for flag in settings.items() for part in flag]
    script = Path(accelerate.commands.launch.__file__)
    assert "in 2 process(es)" in children.run(children.run_script, script, [*launcher, *flags], log=tmp_path / "log")
    assert len(datasets.load_dataset(str(tmp_path / "plus"), "randaug", split="train")) == len(tiny_dataset)
