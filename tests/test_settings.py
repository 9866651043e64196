"""The bounds in a field's metadata are checked, and transformers' own parser still reads such a class."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import pytest
from transformers import HfArgumentParser

from hf_dr.errors import ConfigError
from hf_dr.evaluation.config import EvaluateConfig
from hf_dr.evaluation.evaluate import EvaluateSettings
from hf_dr.generation.config import ExtendConfig, ReinforceConfig
from hf_dr.generation.job import reinforce
from hf_dr.replay import loading
from hf_dr.replay.loading import load_reinforced
from hf_dr.replay.sampling import OrderSettings, check_order
from hf_dr.settings import Real, Whole, check_settings
from hf_dr.teacher.ensemble import Teacher, TeacherSettings
from hf_dr.training.arguments import ReinforcedTrainingArguments


@dataclass
class Settings:
    """One field of each kind."""

    rows: int = field(default=1, metadata={"help": "Rows.", "type": Whole(1, 9)})
    most: int | None = field(default=None, metadata={"help": "At most.", "type": Whole(0)})
    share: float = field(default=0.5, metadata={"help": "A share.", "type": Real(0, 1)})
    crop: float = field(default=0.5, metadata={"help": "A crop.", "type": Real(0, 1, above=True)})
    decay: float = field(default=0.5, metadata={"help": "A decay.", "type": Real(0, 1, above=True, below=True)})
    temperature: float = field(default=1.0, metadata={"help": "A temperature.", "type": Real(0, above=True)})
    mode: str = field(default="a", metadata={"help": "A mode.", "choices": ["a", "b"]})
    levels: list[int] = field(
        default_factory=list, metadata={"help": "Levels.", "type": Whole(1), "choices": [1, 2, 3]}
    )
    free: Any = field(default=None, metadata={"help": "Anything."})


def check(**values: Any) -> None:
    check_settings(Settings(**values))


@pytest.mark.parametrize(
    "values",
    [
        {}, {"rows": 9}, {"most": 0}, {"share": 0}, {"share": 1.0}, {"crop": 1}, {"decay": 0.999}, {"temperature": 1e9},
        {"mode": "b"}, {"levels": [1, 3]}, {"free": 1j},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_within_its_bounds_passes(values: dict[str, Any]) -> None:
    check(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows": 0}, "`rows` must be a whole number of at least 1, got 0. Raise `rows`."),
        ({"rows": 10}, "`rows` must be at most 9, got 10. Lower `rows`."),
        ({"rows": True}, "`rows` must be a whole number of at least 1, got True."),
        ({"rows": 1.0}, "`rows` must be a whole number of at least 1, got 1.0."),
        ({"rows": None}, "`rows` must be a whole number of at least 1, got None."),
        ({"most": -1}, "`most` must be a whole number of at least 0, got -1."),
        ({"share": 1.5}, "`share` must be between 0 and 1, got 1.5. Change `share`."),
        ({"share": math.nan}, "`share` must be between 0 and 1, got nan."),
        ({"share": "1"}, "`share` must be between 0 and 1, got '1'."),
        ({"crop": 0}, "`crop` must be above 0 and at most 1, got 0."),
        ({"decay": 1}, "`decay` must be above 0 and below 1, got 1."),
        ({"temperature": 0.0}, "`temperature` must be a number above 0, got 0.0."),
        ({"temperature": math.inf}, "`temperature` must be a number above 0, got inf."),
        ({"mode": "c"}, "`mode` must be a or b, got 'c'."),
        ({"levels": [1, 0]}, "`levels` must be a whole number of at least 1, got 0."),
        ({"levels": [4]}, "`levels` must be one of 1, 2, 3, got 4."),
    ],
    ids=str,
)
def test_what_is_out_of_its_bounds_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(**values)
    assert str(caught.value).startswith(message)


def test_a_bound_without_an_end_is_told_as_such() -> None:
    assert str(Real(0)) == "a number of at least 0"


def test_transformers_reads_such_a_class() -> None:
    (config,) = HfArgumentParser([ReinforceConfig]).parse_args_into_dataclasses(
        ["--output_dir", "x", "--num_views", "3"]
    )
    assert config == ReinforceConfig("x", num_views=3)


@pytest.mark.parametrize("overlay", ["no", 0, 1, None, 0.0])
def test_a_switch_is_true_or_false(overlay: Any) -> None:
    with pytest.raises(ConfigError, match=rf"`overlay` must be True or False, got {overlay!r}\. Change `overlay`\."):
        ReinforceConfig("out", overlay=overlay)


def test_scalars_of_numpy_become_pythons() -> None:
    config = ReinforceConfig("out", num_views=np.int64(2), seed=np.uint8(3), overlay=np.bool_(True), top_k=np.int32(4))
    json.dumps(dataclasses.asdict(config))
    assert (config.num_views, config.seed, config.overlay, config.top_k) == (2, 3, True, 4)
    assert EvaluateConfig(["a"], ["b"], "", mean=np.float32([0.5, 0.25, 1]).tolist(), std=(0.5, np.float64(1), 1)).std == [
        0.5, 1.0, 1,
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"`num_views` must be a whole number of at least 1, got 2\.5\. Change"):
        ReinforceConfig("out", num_views=np.float64(2.5))


def test_a_list_is_one() -> None:
    for mean in (0.5, "abc", {"a": 1}):
        with pytest.raises(
            ConfigError, match=rf"`mean` must be a list, got {re.escape(repr(mean))}\. Put it into a list\."
        ):
            EvaluateConfig(["a"], ["b"], "", mean=mean)


def test_settings_that_were_changed_are_checked_again(tmp_path, tiny_dataset, tiny_teacher) -> None:
    for change, message in (
        ({"num_views": 0}, "`num_views` must be a whole number of at least 1, got 0. Raise `num_views`."),
        ({"num_view": 3}, "ReinforceConfig has no setting `num_view`. Did you mean `num_views`?"),
    ):
        config = ReinforceConfig(str(tmp_path / "plus"))
        vars(config).update(change)
        with pytest.raises(ConfigError, match=re.escape(message)):
            reinforce(tiny_dataset, tiny_teacher, "rrc", config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (ReinforceConfig, ("output_dir", "keep", "mixing_scope", "files_from", "on_bad_image", "augment_on")),
        (ExtendConfig, ("num_views", "batch_size")),
        (
            ReinforcedTrainingArguments,
            ("decay_biases_and_norms", "reinforced_probability", "label_weight", "batch_size"),
        ),
    ],
)
def test_help_in_python_explains_each_setting(kind: type, names: tuple[str, ...]) -> None:
    text = kind.__doc__ or ""
    for own in fields(kind):
        if own.name in names:
            assert f"\n    {own.name}: {own.metadata['help'][:30]}" in text
    assert "\n    lr_scheduler_type: " not in text, "which is transformers'"
    assert text.index("Args:") < text.index("Raises:\n    ConfigError: A value is impossible.")


def parameters(function, *others):
    return inspect.signature(function).parameters.keys() - {"self", *others}


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        (EvaluateSettings, {field.name for field in fields(EvaluateConfig)} - {"models", "sets", "output_dir"}),
        (OrderSettings, parameters(check_order, "data")),
        (TeacherSettings, parameters(Teacher.__init__, "members")),
        (loading._Settings, parameters(load_reinforced, "path", "name", "streaming")),
    ],
    ids=["evaluate", "order", "Teacher", "load_reinforced"],
)
def test_settings_with_types_are_those_that_are_taken(typed, taken):
    assert typed.__annotations__.keys() == taken
