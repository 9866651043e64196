"""The parts of transformers' Trainer that are not public and on which our trainers rely: here their next change shows."""

import inspect

import pytest
from transformers import Trainer
from transformers.trainer_utils import seed_worker

from hf_dr.training.distillation import OnlineDistillationTrainer
from hf_dr.training.resumable import ResumableTrainer
from hf_dr.training.student_trainer import StudentTrainer
from hf_dr.training.trainer import ReinforcedTrainer

OURS = (ResumableTrainer, StudentTrainer, ReinforcedTrainer, OnlineDistillationTrainer)
# Name -> the parameters without `self` that Trainer gives it. The reason stands at our method.
OVERRIDDEN = {
    "_save": ("output_dir", "state_dict"),
    "_run_epoch": (
        "model", "epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch", "trial",
        "ignore_keys_for_eval", "start_time", "resume_from_checkpoint", "epochs_trained", "steps_trained_in_current_epoch",
    ),
    "_set_signature_columns_if_needed": (),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_determine_best_metric": ("metrics", "trial"),
    "_save_checkpoint": ("model", "trial"),
}  # fmt: skip
CALLED = {
    "_prepare_inputs": ("inputs",),
    "_get_collator_with_removed_columns": ("data_collator", "description"),
    "_finish_current_push": (),
    "_get_train_sampler": ("train_dataset",),
}
# Attributes, by the method in which Trainer sets them, and where it uses each of our overridden methods.
ATTRIBUTES = {
    "_signature_columns": "__init__", "_train_batch_size": "__init__",
    "_tr_loss": "_inner_training_loop", "_total_loss_scalar": "_inner_training_loop",
}  # fmt: skip
CALLERS = {
    "_save": "save_model",
    "_run_epoch": "_inner_training_loop",
    "_set_signature_columns_if_needed": "_get_collator_with_removed_columns",
    "_push_from_checkpoint": "_save_checkpoint",
    "_load_best_model": "_finalize_training",
    "_load_from_checkpoint": "train",
    "_determine_best_metric": "_maybe_log_save_evaluate",
    "_save_checkpoint": "_maybe_log_save_evaluate",
}


def private_overrides(kind: type) -> set[str]:
    """The methods of a class that replace one of Trainer's that is not public."""
    return {
        name for name in vars(kind) if name.startswith("_") and not name.startswith("__") and hasattr(Trainer, name)
    }


def test_no_other_private_method_is_overridden():
    found = {name for kind in OURS for name in private_overrides(kind)}
    assert found == set(OVERRIDDEN), "prefer a public hook; else list the method here, and write the reason at it"


@pytest.mark.parametrize(("name", "parameters"), {**OVERRIDDEN, **CALLED}.items())
def test_trainer_still_has_what_we_override_or_call(name, parameters):
    """A method that Trainer no longer calls by its name would silently do nothing."""
    assert hasattr(Trainer, name), f"transformers has renamed or removed Trainer.{name}: find its successor"
    found = tuple(inspect.signature(getattr(Trainer, name)).parameters)[1:]
    assert found == parameters, f"Trainer.{name} takes {found} now, not {parameters}"


@pytest.mark.parametrize(("name", "caller"), CALLERS.items())
def test_trainer_still_calls_what_we_override(name, caller):
    assert f"self.{name}(" in inspect.getsource(getattr(Trainer, caller)), f"Trainer.{caller} no longer calls {name}"


@pytest.mark.parametrize(("name", "setter"), ATTRIBUTES.items())
def test_trainer_still_sets_the_attributes_that_we_use(name, setter):
    assert f"self.{name} =" in inspect.getsource(getattr(Trainer, setter)), f"{setter} no longer sets Trainer.{name}"


def test_the_losses_since_the_last_log_are_still_added_at_the_end():
    assert "self._total_loss_scalar += self._tr_loss.item()" in inspect.getsource(Trainer._finalize_training)


def test_workers_are_still_seeded_by_their_rank():
    assert tuple(inspect.signature(seed_worker).parameters) == ("worker_id", "num_workers", "rank")


@pytest.mark.parametrize("kind", OURS)
def test_our_methods_can_be_called_as_trainers(kind):
    for name, method in vars(kind).items():
        if name.startswith("__") or not inspect.isfunction(method) or not hasattr(Trainer, name):
            continue
        theirs = inspect.signature(getattr(Trainer, name)).parameters
        ours = inspect.signature(method).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in ours.values())
        assert takes_all or list(ours)[: len(theirs)] == list(theirs), f"Trainer.{name} takes {list(theirs)} now"


def test_a_missing_method_is_found():
    """The search itself finds what it should."""

    class Other(Trainer):
        def _get_train_sampler(self, train_dataset=None):
            return None

        def _ours(self):
            return None

    assert private_overrides(Other) == {"_get_train_sampler"}
