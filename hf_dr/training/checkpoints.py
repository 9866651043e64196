"""Checkpoints that a run may go on from: whole ones, and made with the settings that shape its weights.

The checksums of all files are written last. A run goes on with the same settings, or is refused, or says what changes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from safetensors import safe_open
from transformers import PreTrainedModel, Trainer, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_dr.errors import ConfigError
from hf_dr.files import TEMPORARY, sha256_of, write_json
from hf_dr.settings import are_alike, unlike_names
from hf_dr.training.evaluated import weights_are_sharded
from hf_dr.training.student_inputs import is_timm

logger = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"
"""The last file of a checkpoint: the SHA-256 of each other one, and whether a run can go on from it."""
SETTINGS_FILE = "training_settings.json"
"""The settings, in each checkpoint."""

# Whatever is in none of these lists is compared: a new argument of transformers' is, too.
NOT_COMPARED = frozenset({
    # Of reporting:
    "logging_strategy", "logging_steps", "logging_first_step", "log_on_each_node", "logging_nan_inf_filter",
    "include_num_input_tokens_seen", "log_level", "log_level_replica", "disable_tqdm", "report_to", "run_name", "project",
    "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug", "skip_memory_metrics",
    # Of measuring:
    "per_device_eval_batch_size", "prediction_loss_only", "eval_on_start", "eval_do_concat_batches", "eval_use_gather_object",
    "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics", "bf16_full_eval", "fp16_full_eval",
    # Of saving:
    "output_dir", "save_only_model", "save_on_each_node", "save_total_limit", "enable_jit_checkpoint", "push_to_hub",
    "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push", "hub_revision",
    # Of the machine:
    "use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "dataloader_num_workers", "dataloader_pin_memory",
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "torch_empty_cache_steps", "do_train", "do_eval", "do_predict", "resume_from_checkpoint",
    "restore_callback_states_from_checkpoint", "batch_size",  # which is `per_device_train_batch_size` divided
})  # fmt: skip
"""What shapes no weights."""
OF_THE_BEST = frozenset({
    "metric_for_best_model", "greater_is_better", "eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps",
})  # fmt: skip
"""What shapes weights only where evaluations choose the best ones, or the learning rate."""
SAID = ("num_train_epochs", "max_steps", "device")
"""What may change; it is said that it does."""
OF_A_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps", "devices", "processes")
"""What may change where a step has as many rows as before, so that steps and learning rates stay; that is said, too."""


def write_checksums(checkpoint: Path, *, resumable: bool) -> None:
    """Completes a checkpoint, to which nothing else is written any more, with the checksums of all its files.

    `resumable` is whether it holds the optimizer's state, not only the model.
    """
    files = {
        path.relative_to(checkpoint).as_posix(): sha256_of(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != CHECKSUMS_FILE and not path.name.endswith(TEMPORARY)
    }
    write_json(checkpoint / CHECKSUMS_FILE, {"resumable": resumable, "sha256": files})


def find_damage(checkpoint: Path, *, to_go_on: bool = True) -> str | None:
    """Returns what is wrong with a checkpoint, as the end of a sentence that begins with it; None where it can be used.

    With `to_go_on` it must hold the state of the optimizer, so that a run can go on from it.
    """
    if not checkpoint.is_dir():
        return "is no folder"
    try:
        content = json.loads((checkpoint / CHECKSUMS_FILE).read_text(encoding="utf-8"))
        files = dict(content["sha256"])
        resumable = content["resumable"]
    except FileNotFoundError:
        return f"was not written completely (it has no {CHECKSUMS_FILE})"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return f"is damaged ({CHECKSUMS_FILE} cannot be read)"
    if to_go_on and not resumable:
        return "holds the model only, without the state of its optimizer (`save_only_model`)"
    for name, digest in files.items():
        path = checkpoint / name
        try:
            found = sha256_of(path)
        except FileNotFoundError:
            return f"is damaged ({name} is missing)"
        except OSError as error:
            return f"is damaged ({name} cannot be read: {error.strerror})"
        if found != digest:
            return f"is damaged ({name} is not what was written)"
    return None


def whole_checkpoint(named: str | bool | None, output_dir: str) -> str | None:
    """Returns the checkpoint to go on from: the one that is named, or for True the last whole one of `output_dir`.

    Raises:
        ConfigError: A run cannot go on from it, or there is none.
    """
    if not named:
        return None
    if named is True:
        found = last_checkpoint(output_dir)
        if found is None:
            raise ConfigError(
                f"`resume_from_checkpoint` must find a whole checkpoint in `output_dir`, but {output_dir} has none. Leave it "
                "out to start a new run."
            )
        return found
    reason = find_damage(Path(named))
    if reason is not None:
        raise ConfigError(
            f"`resume_from_checkpoint` must name a whole checkpoint, but {named} {reason}. Name an earlier one, or let "
            "it be True: the last whole checkpoint of `output_dir` is found."
        )
    return str(named)


def last_checkpoint(folder: str) -> str | None:
    """Returns the last checkpoint in a folder from which a run can go on, with a warning of those that are skipped, or None."""
    for _, checkpoint in reversed(_by_step(Path(folder))):
        reason = find_damage(checkpoint)
        if reason is None:
            return str(checkpoint)
        logger.warning("Skipping %s, which %s.", checkpoint, reason)
    return None


def keep_checkpoints(folder: Path, limit: int | None, step: int, best: str | None) -> None:
    """Deletes checkpoints of earlier steps, the earliest first, until `limit` of them and that of `step` are left.

    Steps count, not the times of files: a run may go on at a machine whose clock is behind. Those of later steps, of another
    run from there, are not counted and stay. The best one counts, and stays.
    """
    if limit is None:
        return
    kept = [path for number, path in _by_step(folder) if number <= step]
    deletable = [path for path in kept[:-1] if best is None or path.name != Path(best).name]
    for path in deletable[: max(0, len(kept) - limit)]:
        shutil.rmtree(path, ignore_errors=True)


def _by_step(folder: Path) -> list[tuple[int, Path]]:
    """Returns steps and folders of checkpoints; other folders are somebody's own, such as `checkpoint-best1`."""
    found = ((re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-([0-9]+)", path.name), path) for path in folder.glob("*/"))
    return sorted((int(step[1]), path) for step, path in found if step is not None)


def found_batch_size(checkpoint: Path, args: TrainingArguments) -> int | None:
    """Returns what `auto_find_batch_size` had found where a checkpoint was saved; None without this setting."""
    if not args.auto_find_batch_size:
        return None
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).train_batch_size


def steers_the_rate(args: TrainingArguments) -> bool:
    """Whether the learning rate follows what evaluations measure."""
    return plain(args.lr_scheduler_type) in ("reduce_lr_on_plateau", "greedy")


def follows_a_metric(args: TrainingArguments) -> bool:
    """Whether `metric_for_best_model` chooses the best weights, or the learning rate."""
    return args.load_best_model_at_end or plain(args.save_strategy) == "best" or steers_the_rate(args)


def kept_settings(args: TrainingArguments) -> dict[str, Any]:
    """Returns the settings that shape the weights of a training, for JSON, the length and the kind of device included."""
    chosen = follows_a_metric(args)
    names = [field.name for field in dataclasses.fields(args) if field.name not in NOT_COMPARED]
    settings = {name: plain(getattr(args, name)) if chosen or name not in OF_THE_BEST else None for name in names}
    devices = max(1, args.n_gpu)  # of a process
    of_machine = {"devices": devices, "processes": args.world_size, "device": args.device.type}
    # Which accelerate's configuration may say where `bf16` and `fp16` do not.
    return {**settings, **of_machine, "mixed_precision": args.mixed_precision}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """Returns, for each setting that differs, both values as words. One that is not known there is of a later version."""
    found = {}
    for name, value in here.items():
        if name in there and not are_alike(there[name], value, _OF_NO_WEIGHT):
            before, now = there[name], value
            if isinstance(before, Mapping) and isinstance(now, Mapping):
                names = unlike_names(before, now, _OF_NO_WEIGHT)
                before, now = ({key: kept.get(key) for key in names} for kept in (before, now))
            found[name] = f"{before!s:.80} there, {now!s:.80} here"
    return found


_OF_NO_WEIGHT = ("evaluated_on", "license")
"""What is told of data that shapes no weights."""
_ABOUT = {
    "dataset_fingerprint": " (of the images, their labels, their size and their augmentation)",
    "rows": " (a hash of which rows of the base these are, and of their labels)",
    "shuffled_shards": " (of a stream; None where the dataset is loaded)",
    "teacher_answers": " (a hash of what determines them)",
}
"""What the name of a setting alone does not say."""


def in_words(found: Mapping[str, str]) -> str:
    """Returns what `differences` found, for a message."""
    return "; ".join(f"{name}{_ABOUT.get(name, '')}: {values}" for name, values in found.items())


def check_processes_alike(args: TrainingArguments, checkpoint: str | None, run_settings: dict[str, Any] | None) -> None:
    """Checks that no process would go on at another step, or train on other data or with other settings; all call it.

    Raises:
        ConfigError: One would; in all processes.
    """
    place = "the beginning" if checkpoint is None else Path(checkpoint).name
    processes = gather_object([(place, {**kept_settings(args), **(run_settings or {})})])
    places = sorted({place for place, _ in processes})
    if len(places) > 1:
        raise ConfigError(
            f"all processes must go on at the same place, found {', '.join(places)}. `output_dir` must be one folder that "
            "all nodes share."
        )
    for rank, (_, settings) in enumerate(processes):
        if differing := differences(processes[0][1], settings):
            raise ConfigError(
                f"all processes must train alike, but process {rank} (here) and process 0 (there) differ in "
                f"{in_words(differing)}. Give all nodes the same command and the same data."
            )


def check_saved_whole(accelerator: Accelerator) -> None:
    """Raises a ConfigError if weights would be saved only in parts, from which Trainer makes no model at the end."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.state_dict_type.name != "FULL_STATE_DICT":
        raise ConfigError(
            f"FSDP must save whole weights, got the state_dict_type {plugin.state_dict_type.name}, with which Trainer saves no "
            "model at the end. Set it to FULL_STATE_DICT: `fsdp_state_dict_type` in the file of accelerate's configuration, or "
            "`state_dict_type` in `fsdp_config`."
        )


def load_renamed(trainer: Trainer, checkpoint: Path) -> bool:
    """Loads the weights of a checkpoint, if they have other names in its file than in the trainer's model.

    transformers writes the weights of ViT, Swin, DINOv2 and others by the names of earlier versions. Its Trainer looks for them
    by the model's own names, passes over those that it does not find, and would go on with weights that were never trained.

    Returns:
        Whether it did. Names of which only some are in the file, such as those of tied weights, are left to Trainer, and so is
        what FSDP and DeepSpeed have saved.

    Raises:
        ConfigError: A weight is in the file or in the model alone.
    """
    file = checkpoint / SAFE_WEIGHTS_NAME
    model: Any = trainer.model
    if weights_are_sharded(trainer) or not isinstance(model, PreTrainedModel) or is_timm(model) or not file.is_file():
        return False
    with safe_open(file, "pt") as saved:
        names = set(saved.keys())
    if names <= model.state_dict().keys():
        return False
    kind: Any = type(model)
    loaded, report = kind.from_pretrained(
        checkpoint,
        config=copy.deepcopy(model.config),
        dtype=model.dtype,
        ignore_mismatched_sizes=True,  # told below
        output_loading_info=True,
    )
    wrong = sorted(str(name) for found in report.values() for name in found)
    if wrong:
        raise ConfigError(
            f"the weights in {checkpoint} must be those of the model that is trained, but {wrong[0]} is not. Give the model of "
            "that training, or begin a new one."
        )
    model.load_state_dict(loaded.state_dict())
    return True


def read_settings(path: Path) -> dict[str, Any]:
    """Reads settings that were written with a checkpoint, {} where there are none; a ConfigError if they cannot be read."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            f"{path} must hold the settings of its checkpoint, but it cannot be read: {error!s:.100}. Resume from another one."
        ) from error


def compare_settings(
    checkpoint: Path, there: Mapping[str, Any], here: Mapping[str, Any], args: TrainingArguments, *, loud: bool
) -> dict[str, Any]:
    """Compares the settings of a checkpoint with those of the run that goes on from it, and says what changes.

    `there` is what the trainer itself wrote down with the checkpoint, and `here` the same for the run that goes on; where these
    say what comes of an argument, they count alone. `loud` is whether this process says what changes.

    Returns:
        The settings that took the steps, for `arguments_of_steps`, where no step is taken any more; else {}.

    Raises:
        ConfigError: A setting that shapes the weights differs.
    """
    before, now = read_settings(checkpoint / SETTINGS_FILE), kept_settings(args)
    if lacking := set(OF_A_STEP) - before.keys():
        raise ConfigError(
            f"{checkpoint / SETTINGS_FILE} must hold {', '.join(OF_A_STEP)}, found no {', '.join(sorted(lacking))}. Resume "
            "from another checkpoint."
        )
    of_arguments = differences(before, now)
    said = {name: of_arguments.pop(name) for name in SAID if name in of_arguments}
    finished = not said and _is_finished(checkpoint)
    if finished:
        of_arguments.pop("processes", None)  # no step is taken any more: others may evaluate it
    if _can_be_divided_again(args) and _rows_of_a_step(before) == _rows_of_a_step(now):
        shared_out = {name: of_arguments.pop(name) for name in OF_A_STEP if name in of_arguments}
        said.update({} if finished else shared_out)
    found = differences(there, here)
    found.update({name: values for name, values in of_arguments.items() if name not in there or name not in here})
    if found:
        raise ConfigError(
            f"a run must be resumed with its own settings, but {checkpoint} differs in {in_words(found)}. Restore them, or "
            "start a new run in another `output_dir`."
        )
    if said and loud:
        changes = "; ".join(f"{name}: {values}" for name, values in said.items())
        logger.warning(
            "Going on from %s with %s. From there on the learning rate follows a new length, another device rounds otherwise, "
            "and other processes share out a step's rows otherwise: the weights are not those of one uninterrupted run.",
            checkpoint, changes,
        )  # fmt: skip
    if args.ignore_data_skip and loud:
        logger.warning("With `ignore_data_skip` the epoch of %s begins again: some of its rows come twice.", checkpoint)
    return before if finished else {}


def arguments_of_steps(args: TrainingArguments, before: Mapping[str, Any]) -> Any:
    """Returns arguments that tell of the steps what took them, by `before`, which `compare_settings` returned."""
    if not before:
        return args
    told: Any = copy.copy(args)
    told.per_device_train_batch_size = before["per_device_train_batch_size"]
    told.gradient_accumulation_steps = before["gradient_accumulation_steps"]
    told._n_gpu = before["devices"]  # Trainer's own properties make of these what it lists
    processes = before["processes"]
    kind = DistributedType.NO if processes == 1 else DistributedType.MULTI_GPU
    told.distributed_state = SimpleNamespace(num_processes=processes, distributed_type=kind)
    return told


def _can_be_divided_again(args: TrainingArguments) -> bool:
    """Whether another number of processes would take as many steps in an epoch, and could read the states that were saved."""
    # Each process drops its own incomplete batch, and `split_batches` divides each batch among the processes.
    shared = getattr(args.accelerator_config, "split_batches", False)
    return not (args.dataloader_drop_last or shared or args.fsdp or args.deepspeed)


def _rows_of_a_step(settings: Mapping[str, Any]) -> int:
    return math.prod(settings[name] for name in OF_A_STEP)


def _is_finished(checkpoint: Path) -> bool:
    """Whether a run of the same length takes no step any more."""
    path = checkpoint / TRAINER_STATE_NAME
    if not path.is_file():
        return False
    state = TrainerState.load_from_json(str(path))
    return state.global_step >= state.max_steps


def plain(value: Any) -> Any:
    """Returns a setting as JSON gives it back."""
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    # Without the place of a function in memory, which is another in each process.
    return re.sub(r" at 0x[0-9a-fA-F]+", "", str(value))
