"""The format's contract: the columns' types, the provenance, its fingerprint, and how a damaged file is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Features, List, Value
from hypothesis import given
from hypothesis import strategies as st
from samples import every_op, op_id, quick

from hf_dr.errors import FormatError
from hf_dr.store.features import combine_hashes, reinforcement_features
from hf_dr.store.provenance import Provenance, check_columns
from hf_dr.store.schema import PROVENANCE_FILE, SCHEMA_VERSION, is_reserved, is_safe_name, shard_name
from hf_dr.views.augmentation import Augmentation
from hf_dr.views.ops.geometry import CenterCrop, RandomErasing, RandomHorizontalFlip, RandomResizedCrop
from hf_dr.views.ops.mixing import MixUp
from hf_dr.views.resizing import PILLOW_13

# As version 1 has it: without a word on the passes of the resize.
AUGMENTATION = Augmentation([RandomResizedCrop(passes=PILLOW_13, size=8), RandomHorizontalFlip(), MixUp()])

PROVENANCE = Provenance(
    config_name="randaug",
    split="train",
    augmentation=AUGMENTATION.to_list(),
    num_views=4,
    top_k=3,
    num_classes=100,
    seed=7,
    shard_size=1000,
    num_rows=2500,
    overlay=False,
    image_column="image",
    label_column="label",
    mixing_scope="dataset",
    on_bad_image="skip",
    base={"id": "org/base", "config": "default", "revision": "abc", "content_hash": "c0ffee"},
    teacher={
        "num_classes": 100,
        "members": [
            {"id": "org/teacher", "revision": "def", "license": "mit", "weights_hash": "beef", "size": [224, 224]},
            {"id": "org/other", "revision": None, "license": None, "weights_hash": "f00d", "size": [160, 160]},
        ],
    },
    library_versions={"numpy": "2.4", "pillow": "13.0"},
    created_with="0.1.0",
    skipped_rows=[5, 17],
    schema_version=1,
)

OPTIONAL = {"candidates", "signal"}
FIELDS = [field.name for field in dataclasses.fields(Provenance) if field.name not in OPTIONAL]
DESCRIPTIVE = {"created_with", "skipped_rows"}


def content(**changes: Any) -> dict[str, Any]:
    """What the file of PROVENANCE holds, with the fingerprint of the unchanged."""
    return {**copy.deepcopy(PROVENANCE.to_dict()), "fingerprint": PROVENANCE.fingerprint, **changes}


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return value[:-1]
    if isinstance(value, dict):
        return {key: v for key, v in value.items() if key != next(reversed(value))}
    raise AssertionError(value)


# ------------------------------------------------------------------------------------------------------------- columns


def test_columns_have_the_documented_types() -> None:
    """The table of the format, written out."""
    augmentation = Augmentation.named("randaug_mixing", 8)

    def views(value: Any) -> List:
        return List(value, length=4)

    box = List(Value("uint16"), length=4)
    assert reinforcement_features(augmentation, num_views=4, top_k=3, num_classes=1000) == Features(
        {
            "source_index": Value("int64"),
            "image_hash": Value("uint64"),
            "views_hash": Value("uint64"),
            "teacher_ids": views(List(Value("uint16"), length=3)),
            "teacher_logprobs": views(List(Value("float16"), length=3)),
            "aug_crop_box": views(box),
            "aug_flip": views(Value("bool")),
            "aug_rand_augment_op": views(List(Value("uint8"), length=2)),
            "aug_rand_augment_level": views(List(Value("int8"), length=2)),
            "aug_erasing_box": views(box),
            "aug_mixup_lam": views(Value("float16")),
            "aug_cutmix_box": views(box),
            "aug_partner": views(Value("int32")),
        }
    )


def test_columns_come_in_the_documented_order() -> None:
    names = list(reinforcement_features(AUGMENTATION, 2, 1, 10))
    assert names[:5] == ["source_index", "image_hash", "views_hash", "teacher_ids", "teacher_logprobs"]
    assert names[5:] == [f"aug_{name}" for name in AUGMENTATION.params]


@pytest.mark.parametrize(("classes", "dtype"), [(65_535, "uint16"), (65_536, "uint32")])
def test_ids_are_wider_above_65535_classes(classes: int, dtype: str) -> None:
    ids = reinforcement_features(AUGMENTATION, 2, 3, classes)["teacher_ids"]
    assert ids == List(List(Value(dtype), length=3), length=2)


@pytest.mark.parametrize("op", every_op(), ids=op_id)
def test_every_parameter_of_every_op_has_a_column(op: Any) -> None:
    augmentation = Augmentation([CenterCrop(8), op] if op.mixes else [op, CenterCrop(8)])
    features = reinforcement_features(augmentation, 3, 1, 10)
    for name, param in op.params.items():
        column = "_".join(filter(None, ("aug", op.name, name)))
        value = Value(param.dtype)
        assert features[column] == List(value if param.length is None else List(value, length=param.length), length=3)


def test_every_column_of_the_reinforcement_is_reserved() -> None:
    assert all(is_reserved(name) for name in reinforcement_features(AUGMENTATION, 2, 3, 10))
    assert not any(is_reserved(name) for name in ("image", "label", "augmented", "source", "teacher", "hash"))


# --------------------------------------------------------------------------------------------------------------- names


def test_shard_names_sort_like_shards() -> None:
    assert shard_name("train", 0, 12) == "train-00000-of-00012.parquet"
    names = [shard_name("train", i, 12) for i in range(12)]
    assert sorted(names) == names


@pytest.mark.parametrize(
    ("rows", "size", "ranges"),
    [
        (2500, 1000, [range(1000), range(1000, 2000), range(2000, 2500)]),
        (2000, 1000, [range(1000), range(1000, 2000)]),
        (1, 1000, [range(1)]),
        (3, 1, [range(1), range(1, 2), range(2, 3)]),
    ],
)
def test_shards_divide_the_rows(rows: int, size: int, ranges: list[range]) -> None:
    provenance = dataclasses.replace(PROVENANCE, num_rows=rows, shard_size=size)
    assert [provenance.shard_range(i) for i in range(provenance.num_shards)] == ranges
    assert provenance.shard_names == [f"train-{i:05d}-of-{len(ranges):05d}.parquet" for i in range(len(ranges))]


@pytest.mark.parametrize("name", ["train", "randaug", "a", "v1.0", "my-config_2", "0", "a" * 96])
def test_plain_names_are_safe(name: str) -> None:
    assert is_safe_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../a", "a..b", ".hidden", "-flag", "_x", "a b", "a\n", "a\0", "ä", "C:", "a\\b", "a" * 97],
)
def test_names_that_could_leave_the_folder_are_not_safe(name: str) -> None:
    assert not is_safe_name(name)


# ---------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_column": None, "skipped_rows": []},
        {"schema_version": 3, "signal": "sampled"},
        {"schema_version": 3, "candidates": {"num": 9, "keep": "high_entropy"}},
    ],
)
def test_provenance_survives_its_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    provenance = dataclasses.replace(PROVENANCE, **changes)
    provenance.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PROVENANCE_FILE]  # nothing temporary stays
    assert Provenance.read(tmp_path) == provenance
    assert json.loads((tmp_path / PROVENANCE_FILE).read_text())["fingerprint"] == provenance.fingerprint


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PROVENANCE.write(tmp_path)
    with pytest.raises(TypeError):
        dataclasses.replace(PROVENANCE, base={"id": object()}).write(tmp_path)
    monkeypatch.setattr(Path, "replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        dataclasses.replace(PROVENANCE, seed=8).write(tmp_path)
    assert Provenance.read(tmp_path) == PROVENANCE


def test_fields_of_a_later_minor_version_are_ignored() -> None:
    assert Provenance.from_dict(content(novelty=1), "x") == PROVENANCE


# --------------------------------------------------------------------------------------------------------- fingerprint


@pytest.mark.parametrize("field", [name for name in FIELDS if name not in DESCRIPTIVE])
def test_every_determining_field_changes_the_fingerprint(field: str) -> None:
    """Found by enumeration: a new field is determining unless it is listed as descriptive."""
    other = dataclasses.replace(PROVENANCE, **{field: changed(getattr(PROVENANCE, field))})
    assert other.fingerprint != PROVENANCE.fingerprint
    lines = PROVENANCE.differences(other)
    assert lines
    assert all(line.startswith(field) for line in lines)


@pytest.mark.parametrize("field", sorted(DESCRIPTIVE))
def test_descriptive_fields_leave_the_fingerprint_alone(field: str) -> None:
    other = dataclasses.replace(PROVENANCE, **{field: changed(getattr(PROVENANCE, field))})
    assert other != PROVENANCE
    assert other.fingerprint == PROVENANCE.fingerprint
    assert PROVENANCE.differences(other) == []


@pytest.mark.parametrize("key", ["id", "config", "revision"])
def test_the_base_may_be_called_by_another_name(key: str) -> None:
    """The same rows from a mirror or a local folder: the content's hash decides."""
    other = dataclasses.replace(PROVENANCE, base={**PROVENANCE.base, key: "elsewhere"})
    assert other.fingerprint == PROVENANCE.fingerprint
    assert PROVENANCE.differences(other) == []


@pytest.mark.parametrize(
    ("key", "same"), [("id", True), ("revision", True), ("license", True), ("weights_hash", False), ("size", False)]
)
def test_a_teacher_is_its_weights_and_preprocessing(key: str, same: bool) -> None:
    teacher = copy.deepcopy(PROVENANCE.teacher)
    teacher["members"][1][key] = "another"
    other = dataclasses.replace(PROVENANCE, teacher=teacher)
    assert (other.fingerprint == PROVENANCE.fingerprint) is same
    assert (PROVENANCE.differences(other) == []) is same


def test_the_order_of_keys_does_not_matter_and_that_of_ops_does() -> None:
    turned = {key: PROVENANCE.base[key] for key in reversed(PROVENANCE.base)}
    assert dataclasses.replace(PROVENANCE, base=turned).fingerprint == PROVENANCE.fingerprint
    ops = PROVENANCE.augmentation
    swapped = dataclasses.replace(PROVENANCE, augmentation=[ops[1], ops[0], ops[2]])
    assert swapped.fingerprint != PROVENANCE.fingerprint


def test_the_fingerprint_never_changes() -> None:
    """Frozen: another value would refuse to resume or read every dataset that exists."""
    written = [{"RandomHorizontalFlip": {"p": 0.5}}, {"CenterCrop": {"size": 8}}]  # not as today's ops write themselves
    assert (
        dataclasses.replace(PROVENANCE, augmentation=written).fingerprint
        == "746fb14517c7c782573fdd3ecccf1d852dae2bb331b9cfe44655dd038d816902"
    )


# --------------------------------------------------------------------------------------------------------- differences


def test_differences_are_told_field_by_field() -> None:
    teacher = copy.deepcopy(PROVENANCE.teacher)
    teacher["members"][1]["weights_hash"] = "dead"
    augmentation = Augmentation([RandomResizedCrop(16, passes=PILLOW_13), RandomHorizontalFlip(), MixUp()]).to_list()
    other = dataclasses.replace(PROVENANCE, num_views=8, teacher=teacher, augmentation=augmentation, label_column=None)
    assert PROVENANCE.differences(other) == [
        "augmentation.0.RandomResizedCrop.size: 8 there, 16 here",
        "label_column: label there, None here",
        "num_views: 4 there, 8 here",
        "teacher.members.1.weights_hash: f00d there, dead here",
    ]
    assert PROVENANCE.differences(PROVENANCE) == []


def test_an_added_op_is_told() -> None:
    longer = Augmentation([RandomResizedCrop(8), RandomHorizontalFlip(), RandomErasing(p=0.5), MixUp()]).to_list()
    lines = PROVENANCE.differences(dataclasses.replace(PROVENANCE, augmentation=longer))
    assert "augmentation.2.RandomErasing.p: absent there, 0.5 here" in lines


@pytest.mark.parametrize(
    ("there", "here", "line"),
    [
        ({}, {"threads": 1}, "base.threads: absent there, 1 here"),
        ({"x": {}}, {}, "base.x: {} there, absent here"),
        ({"x": 1}, {"x": 1.0}, "base.x: 1 there, 1.0 here"),
        ({"x": 1}, {"x": True}, "base.x: 1 there, True here"),
        ({"x": [1, 2]}, {"x": [1]}, r"base.x: [1, 2] there, [1] here"),
    ],
)
def test_whatever_changes_the_fingerprint_is_told(there: dict[str, Any], here: dict[str, Any], line: str) -> None:
    """A refusal to resume without a field to blame would leave the user helpless."""
    a, b = (dataclasses.replace(PROVENANCE, base={"content_hash": "c", **extra}) for extra in (there, here))
    assert a.fingerprint != b.fingerprint
    assert line in a.differences(b)


texts = st.text(st.characters(), max_size=5) | st.just("\udc80")  # half of a pair, as JSON may write it
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts | st.just(10**400),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*"abcx", "\udc80"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@quick
@given(a=json_values, b=json_values)
def test_there_are_differences_exactly_where_fingerprints_differ(a: Any, b: Any) -> None:
    one, other = (dataclasses.replace(PROVENANCE, base={"value": value}) for value in (a, b))
    assert (one.fingerprint == other.fingerprint) == (one.differences(other) == [])


# ----------------------------------------------------------------------------------------------------------- refusals


def test_a_folder_without_provenance_is_no_plus_dataset(tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=rf'a "\+" dataset must hold {PROVENANCE_FILE}, found none in .*Name the folder'
    ):
        Provenance.read(tmp_path)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "must be JSON, but reading it failed: Expecting value"),
        (b"{", "must be JSON, but reading it failed: Expecting property name"),
        (b'{"schema_version": 1', "must be JSON, but reading it failed: Expecting ',' delimiter"),
        (b"\xff\xfe{}", "must be JSON, but reading it failed: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "must be JSON, but reading it failed: (maximum recursion depth|Stack overflow)"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "must be JSON, but reading it failed: Exceeds the limit"),
        (b"[]", "must hold a JSON object, found list"),
        (b"null", "must hold a JSON object, found NoneType"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:12]),
)
def test_files_that_are_not_json_objects_are_refused(raw: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / PROVENANCE_FILE).write_bytes(raw)
    with pytest.raises(FormatError, match=message):
        Provenance.read(tmp_path)


@pytest.mark.parametrize("version", [None, 0, SCHEMA_VERSION + 1, "1", True, 1.0, 1.5])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(FormatError, match=r"must be (of schema version 1 to 4|a valid integer), found "):
        Provenance.from_dict(content(schema_version=version), "x")


def test_a_later_version_asks_for_a_later_hf_dr() -> None:
    with pytest.raises(
        FormatError, match=r"found 99\. A later version needs a later hf_dr: pip install -U 'hf-dr @ git\+URL' "
    ):
        Provenance.from_dict(content(schema_version=99), "x")


@pytest.mark.parametrize(
    ("version", "scope"), [(1, "stored"), (2, "dataset"), (2, "shard"), (1, "elsewhere"), (3, "stored")]
)
def test_a_version_has_its_mixing_scopes(version: int, scope: str) -> None:
    later = {"signal": "sampled"} if version == 3 else {}
    with pytest.raises(
        FormatError, match=rf"`mixing_scope` in x must be .* in schema version {version}, found '{scope}'"
    ):
        Provenance.from_dict(content(schema_version=version, mixing_scope=scope, **later), "x")


def test_signal_and_candidates_determine_the_bytes() -> None:
    drawn = dataclasses.replace(PROVENANCE, schema_version=3, signal="sampled")
    assert drawn.differences(PROVENANCE) == ["schema_version: 3 there, 1 here", "signal: sampled there, absent here"]
    one, other = (
        dataclasses.replace(PROVENANCE, schema_version=3, candidates={"num": 9, "keep": f"{order}_entropy"})
        for order in ("high", "low")
    )
    assert one.fingerprint != other.fingerprint
    assert one.differences(other) == ["candidates.keep: high_entropy there, low_entropy here"]


def test_datasets_of_the_former_signal_keep_their_fingerprint() -> None:
    """Frozen: what it was before there was another."""
    assert "signal" not in PROVENANCE.to_dict()
    assert PROVENANCE.fingerprint == "c8dfdb40ab4f2a7843d9668a07c4dc6cd6edbf08d930ba1f1ebc1bdc2826f4d2"


VERSION_4 = {"schema_version": 4, "candidates": None, "signal": "topk"}


def test_version_4_says_everything() -> None:
    provenance = dataclasses.replace(PROVENANCE, schema_version=4)
    assert provenance.to_dict().keys() >= OPTIONAL
    assert Provenance.from_dict({**provenance.to_dict(), "fingerprint": provenance.fingerprint}, "x") == provenance
    for name in OPTIONAL:
        with pytest.raises(FormatError, match=f"x must have the field `{name}`, found none"):
            Provenance.from_dict({key: v for key, v in content(**VERSION_4).items() if key != name}, "x")


def test_a_run_may_begin_to_skip_bad_images() -> None:
    """Finished shards hold none, or the run would have stopped; in versions before, the setting is part of the fingerprint."""
    for version, same in ((4, True), (1, False)):
        stops = dataclasses.replace(PROVENANCE, schema_version=version, on_bad_image="error")
        skips = dataclasses.replace(stops, on_bad_image="skip")
        assert (stops.fingerprint == skips.fingerprint) is same
        assert (not stops.differences(skips)) is same


def test_the_passes_of_a_resize_follow_the_version() -> None:
    items = [{"RandomResizedCrop": {"size": 8}}]
    for version, passes in ((1, "pillow13"), (3, "pillow13"), (4, "horizontal")):
        provenance = dataclasses.replace(PROVENANCE, augmentation=items, schema_version=version)
        assert provenance.build_augmentation().ops[0].passes == passes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**VERSION_4, "signal": "other"}, "`signal` in x must be topk or topk_image_tail or sampled, found 'other'"),
        (
            {**VERSION_4, "candidates": {"num": 2, "keep": "low_entropy"}},
            "`candidates` in x must be a `num` above 4 and a `keep`",
        ),
        (
            {**VERSION_4, "mixing_scope": "elsewhere"},
            "`mixing_scope` in x must be dataset or shard or stored in schema version 4",
        ),
        (
            {"schema_version": 1, "signal": "sampled"},
            "schema version 3 if it has the field .* found version 1 with signal",
        ),
        (
            {"schema_version": 2, "signal": "topk", "mixing_scope": "stored"},
            "schema version 3 if it has the field .* found version 2 with signal",
        ),
        ({"schema_version": 3, "signal": "topk"}, "`signal` in x must be topk_image_tail or sampled, found 'topk'"),
        ({"schema_version": 3, "signal": ["sampled"]}, r"`signal` in x must be .*, found \['sampled'\]"),
    ],
)
def test_a_signal_belongs_to_version_3(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Provenance.from_dict(content(**changes), "x")


def test_an_image_tail_has_a_cell_for_each_row() -> None:
    plain = reinforcement_features(AUGMENTATION, 4, 3, 1000)
    tailed = reinforcement_features(AUGMENTATION, 4, 3, 1000, signal="topk_image_tail")
    assert {name: tailed[name] for name in plain} == plain
    assert {name: tailed[name] for name in tailed if name not in plain} == {
        "tail_ids": List(Value("uint16"), length=100),
        "tail_logprobs": List(Value("float16"), length=100),
    }
    assert all(is_reserved(name) for name in tailed)
    assert reinforcement_features(AUGMENTATION, 4, 3, 70_000, signal="topk_image_tail")["tail_ids"].feature == Value(
        "uint32"
    )
    assert reinforcement_features(AUGMENTATION, 4, 3, 1000, signal="sampled") == plain


@pytest.mark.parametrize(
    ("version", "candidates", "message"),
    [
        (1, {"num": 9, "keep": "low_entropy"}, "schema version 3 if it has .*, found version 1 with candidates"),
        (2, {"num": 9, "keep": "low_entropy"}, "schema version 3 if it has .*, found version 2 with candidates"),
        (
            3,
            None,
            "schema version 3 if it has the field 'candidates' or 'signal', and only then, found version 3 with none",
        ),
        (
            3,
            {"num": 4, "keep": "low_entropy"},
            "`candidates` in x must be a `num` above 4 and a `keep` of low_entropy, ",
        ),
        (3, {"num": True, "keep": "low_entropy"}, "`candidates` in x must be a `num` above 4"),
        (3, {"num": 9, "keep": "best"}, "and a `keep` of low_entropy, .* found .'keep': 'best', 'num': 9"),
        (3, {"num": 9, "keep": ["low_entropy"]}, "and a `keep` of low_entropy, "),
        (3, {"num": 9}, "and a `keep` of low_entropy, "),
        (3, {"num": 9, "keep": "low_entropy", "why": 1}, "and a `keep` of low_entropy, "),
        (3, [9], "`candidates` in x must be a valid dictionary, found "),
    ],
)
def test_candidates_are_of_version_3(version: int, candidates: Any, message: str) -> None:
    changes = {"num_views": 4, "schema_version": version, "mixing_scope": "stored" if version == 2 else "dataset"}
    with pytest.raises(FormatError, match=message):
        Provenance.from_dict(content(**changes, **({} if candidates is None else {"candidates": candidates})), "x")


def test_mixed_views_have_no_candidates() -> None:
    features = reinforcement_features(AUGMENTATION, 4, 3, 100)
    chosen = dataclasses.replace(
        PROVENANCE, augmentation=AUGMENTATION.to_list(), num_views=4, top_k=3, num_classes=100, schema_version=3,
        candidates={"num": 9, "keep": "high_entropy"},
    )  # fmt: skip
    with pytest.raises(
        FormatError, match=r"x must have no `candidates` where views mix, found .*matched by view number"
    ):
        check_columns(features, chosen, "x")


def test_stored_partners_have_a_column_for_each_of_their_parameters() -> None:
    plain = reinforcement_features(AUGMENTATION, 4, 3, 100)
    stored = reinforcement_features(AUGMENTATION, 4, 3, 100, stored_partners=True)
    assert {name: stored[name] for name in plain} == plain
    assert {name.replace("partner_", ""): stored[name] for name in stored if name not in plain} == {
        name: plain[name] for name in ("aug_crop_box", "aug_flip")
    }


def test_without_mixing_there_is_no_partner_to_store() -> None:
    alone = Augmentation([RandomResizedCrop(8)])
    assert reinforcement_features(alone, 4, 3, 100, stored_partners=True) == reinforcement_features(alone, 4, 3, 100)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_is_required(field: str) -> None:
    damaged = content()
    del damaged[field]
    message = f"must have the field `{field}`, found none" if field != "schema_version" else "found None"
    with pytest.raises(FormatError, match=message):
        Provenance.from_dict(damaged, "x")


@pytest.mark.parametrize("field", [name for name in FIELDS if name != "schema_version"])
def test_every_field_has_a_type(field: str) -> None:
    value = getattr(PROVENANCE, field)
    wrong: list[Any] = [1.0, None, 3 if isinstance(value, (str, list, dict, bool)) else "3", {} if value != {} else []]
    if isinstance(value, dict):
        wrong[-1] = []
    if field == "label_column":
        wrong.remove(None)
    for bad in [*wrong, *([True] if type(value) is int else [])]:
        with pytest.raises(
            FormatError, match=rf"`{field}` in x must be a valid (string|integer|boolean|dictionary|list), found "
        ):
            Provenance.from_dict(content(**{field: bad}), "x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_views": 0}, "`num_views` in x must be greater than or equal to 1, found 0"),
        ({"top_k": 101}, "`top_k` in x must be at most the 100 classes, found 101"),
        ({"top_k": -1}, "`top_k` in x must be greater than or equal to 1, found -1"),
        ({"num_classes": 0}, "`num_classes` in x must be greater than or equal to 1, found 0"),
        ({"shard_size": 0}, "`shard_size` in x must be greater than or equal to 1, found 0"),
        ({"num_rows": 2**41}, "`num_rows` in x must be less than or equal to 1099511627776, found 2199"),
        (
            {"num_rows": 2**40, "shard_size": 1},
            "`shard_size` in x must be at least 10995227 for 1099511627776 rows, found 1",
        ),
        ({"config_name": "../elsewhere"}, "`config_name` in x must be a plain name, found '../elsewhere'"),
        ({"split": "a/b"}, "`split` in x must be a plain name, found 'a/b'"),
        ({"skipped_rows": [2500]}, r"`skipped_rows` in x must be rows below 2500, found \[2500\]"),
        ({"skipped_rows": ["5"]}, r"`skipped_rows\.0` in x must be a valid integer, found '5'"),
        ({"skipped_rows": [-1]}, r"`skipped_rows\.0` in x must be greater than or equal to 0, found -1"),
        ({"skipped_rows": [5, 5]}, r"`skipped_rows` in x must be rows, each once and in order, found \[5, 5\]"),
        ({"skipped_rows": [True]}, r"`skipped_rows\.0` in x must be a valid integer, found True"),
        ({"seed": 2**63}, "`seed` in x must be less than 9223372036854775808, found 9223372036854775808"),
        ({"augmentation": [{}]}, r"`augmentation\.0` in x must be .*at least 1 item"),
        ({"augmentation": [{"Flip": 1}]}, r"`augmentation\.0\.Flip` in x must be a valid dictionary, found 1"),
        ({"library_versions": {"numpy": 2.4}}, r"`library_versions\.numpy` in x must be a valid string, found 2\.4"),
        ({"teacher": {"members": [1]}}, "`teacher` in x must be a teacher with a list of members, found {'members': "),
        ({"teacher": {}}, "`teacher` in x must be a teacher with a list of members, found {}"),
        (
            {"teacher": {"members": [{}, {}], "extended_from": {"num_members": 2}}},
            "`teacher` in x must be a teacher whose `extended_from` has fewer members each time, found ",
        ),
        ({"seed": 8}, r"x does not match its own fingerprint: it was edited or damaged\. Restore it\."),
        ({"fingerprint": "0" * 64}, "x does not match its own fingerprint"),
        ({"fingerprint": None}, "x does not match its own fingerprint"),
    ],
)
def test_impossible_or_edited_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Provenance.from_dict(content(**changes), "x")


@pytest.mark.parametrize("field", [*FIELDS, "candidates"])
def test_deep_nesting_is_refused_where_another_type_is_expected(field: str) -> None:
    """The message shows what was found, but not to its end."""
    with pytest.raises(FormatError, match=r"^(x|`.*` in x) must "):
        Provenance.from_dict(content(**{field: deep()}), "x")


def deep() -> dict[str, Any]:
    """5,000 objects, each in the next."""
    value: dict[str, Any] = {}
    for _ in range(5000):
        value = {"a": value}
    return value


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(FormatError, match="x must not be nested that deeply"):
        Provenance.from_dict(content(base=deep()), "x")


@quick
@given(field=st.sampled_from([*FIELDS, "fingerprint"]), value=json_values)
def test_a_damaged_field_is_refused_with_a_format_error(field: str, value: Any) -> None:
    """Only FormatError comes out, and whatever is accepted has the fingerprint that it claims."""
    try:
        read = Provenance.from_dict(content(**{field: value}), "x")
    except FormatError:
        return
    assert read.fingerprint == PROVENANCE.fingerprint


@quick
@given(value=json_values | st.dictionaries(st.sampled_from([*FIELDS, "fingerprint"]), json_values))
def test_arbitrary_json_is_refused_with_a_format_error(value: Any) -> None:
    with pytest.raises(FormatError, match=r"^x "):
        Provenance.from_dict(value, "x")


# -------------------------------------------------------------------------------------------------------------- hashes


def test_the_hash_of_a_rows_views_depends_on_each_and_on_their_order() -> None:
    hashes = np.array([1, 2, 2**64 - 1], np.uint64)
    combined = {
        combine_hashes(hashes),
        combine_hashes(hashes[::-1]),
        combine_hashes(hashes[:2]),
        combine_hashes(hashes + np.uint64(1)),
    }
    assert len(combined) == 4
    assert all(0 <= value < 2**64 for value in combined)


def test_the_hash_of_a_rows_views_is_the_same_on_every_machine() -> None:
    """Frozen, and independent of the byte order in memory."""
    hashes = np.array([1, 2, 2**64 - 1], "<u8")
    assert combine_hashes(hashes) == combine_hashes(hashes.astype(">u8")) == 0xAF7ECBC741873824


def test_a_setting_of_an_op_counts_whatever_its_name(tiny_plus):
    """An op of somebody's own may call a setting as the provenance calls what only describes."""
    prints = set()
    for number in (1, 3):
        augmentation = [{"Mine": {"revision": number, "id": "x"}}]
        prints.add(dataclasses.replace(tiny_plus.provenance, augmentation=augmentation).fingerprint)
    assert len(prints) == 2
