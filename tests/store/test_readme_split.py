"""Editing a README.md beside people: what is not asked to change stays byte for byte; what cannot be read is refused."""

import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hf_dr.errors import FormatError
from hf_dr.store.readme import MAX_LENGTH, dump_yaml, edit_yaml, merge_parts, part_names, split_readme

ORDER = ("license", "tags", "configs")
MARKER = re.compile(r"<!--[ \t]*hf_dr\b")
HUMAN = st.text().filter(lambda text: not MARKER.search(text))


def by_name(part):
    return part


def setting(**wanted):
    return lambda data: wanted


# ---------------------------------------------------------------------------------------------------------------- YAML


def test_only_what_changes_is_written_again():
    text = "# ours\nlicense: 'no'   # as it is\ntags: [a]\n# about extras\nextra: {x: 1, y: [no, 0x10]}\n"
    edited = edit_yaml(text, setting(license="no", tags=["a", "b"]), ORDER)
    assert edited == text.replace("tags: [a]\n", "tags:\n- a\n- b\n").removesuffix("\n")
    assert edit_yaml(edited, setting(license="no", tags=["a", "b"]), ORDER) == edited


def test_new_keys_come_in_their_order():
    assert edit_yaml("", setting(tags=["a"], license="mit"), ORDER) == "license: mit\ntags:\n- a"
    assert edit_yaml("x: 1\ntags: [a]", setting(license="mit"), ORDER) == "x: 1\nlicense: mit\ntags: [a]"
    assert edit_yaml("# words", setting(license="mit"), ORDER) == "# words\nlicense: mit"


def test_line_ends_are_kept():
    edited = edit_yaml("x: 1\r\ntags: [a]", setting(tags=["b"]), ORDER, "\r\n")
    assert edited == "x: 1\r\ntags:\r\n- b"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


KEYS = st.from_regex(r"[a-z_]{1,9}", fullmatch=True) | st.sampled_from(ORDER)


@given(data=st.dictionaries(KEYS, VALUES, max_size=5), wanted=st.dictionaries(st.sampled_from(ORDER), VALUES))
def test_other_keys_keep_their_text_and_meaning(data, wanted):
    text = dump_yaml(data) if data else ""
    edited = edit_yaml(text, setting(**wanted), ORDER)
    found = yaml.safe_load(edited) or {}
    assert {key: repr(value) for key, value in found.items()} == {key: repr(v) for key, v in (data | wanted).items()}
    for key in data.keys() - wanted.keys():
        escaped = yaml.safe_dump({key: data[key]}, sort_keys=False)
        assert any(chunk.removesuffix("\n") in edited for chunk in (dump_yaml({key: data[key]}), escaped))
    assert edit_yaml(edited, setting(**wanted), ORDER) == edited


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b", "must be `key: value` lines, found list"),
        ("just words", "must be `key: value` lines, found str"),
        ("a: 1\na: 2", "each key once.*the key `a` twice"),
        ("x: {b: 1, b: 2}", "the key `b` twice"),
        ("1: a\n0x1: b", "must be plain .* found another form"),
        ("{}", "must be plain .* found another form"),
        ("{a: 1}", "must be plain .* found another form"),
        ("? a\n: 1", "must be plain .* found another form"),
        ("a: &x [1]\nb: *x", "without aliases, but: an alias"),
        ("a: [1", "must be plain"),
        ("a: !!python/object:os.system {}", "must be plain"),
        ("a: !!int ''", "must be plain"),
        ("a: 2020-13-45", "must be plain"),
        ("a: " + 5000 * "9", "must be plain"),
        ("a: " + 5000 * "[" + 5000 * "]", "must be plain"),
        ("a: 1\n---\nb: 2", "must be plain"),
        ("a: \x07", "must be plain"),
        ("null", "must be `key: value` lines, found NoneType"),
    ],
)
def test_yaml_that_cannot_be_edited_is_refused(text, message):
    with pytest.raises(FormatError, match=f"(?s){message}"):
        edit_yaml(text, setting(tags=["t"]), ORDER)


@given(st.text(alphabet="-:{}[]&*!|>'\"%@#?,\n\r\t <=~ab01.\x85\u2028"))
def test_any_yaml_is_edited_or_refused(text):
    try:
        edited = edit_yaml(text, setting(tags=["t"], license="mit"), ORDER)
    except FormatError:
        return
    assert edit_yaml(edited, setting(tags=["t"], license="mit"), ORDER) == edited
    found = yaml.safe_load(edited)
    assert (found["tags"], found["license"]) == (["t"], "mit")


@pytest.mark.parametrize("text", ["", "license: mit", "# mine", "tags: [a]\r\nlicense: mit"])
def test_all_lines_of_a_card_end_as_its_first(text):
    edited = edit_yaml(text, setting(tags=["t"], license="apache-2.0", configs=[]), ORDER, "\r\n")
    assert edited.count("\n") == edited.count("\r\n") > 0


# ---------------------------------------------------------------------------------------------------------------- body


@given(HUMAN, HUMAN, HUMAN, st.sampled_from(["\n", "\r\n"]))
def test_text_of_people_stays_byte_for_byte(above, between, below, newline):
    body = merge_parts(f"{above}\n", {"a": "first\npart", "c": "third"}, by_name, newline)
    head, tail = body.split("<!-- hf_dr: c -->")
    body = f"{head}{between}\n<!-- hf_dr: c -->{tail}{below}"
    changed = merge_parts(body, {"a": "", "b": "new", "c": "x"}, by_name, newline)
    assert changed.startswith(f"{above}\n")
    assert f"{between}\n<!-- hf_dr: c -->" in changed
    assert changed.endswith(f"<!-- hf_dr: end -->{newline}{below}")
    assert part_names(changed) == ["a", "b", "c"]
    assert merge_parts(changed, {"a": "", "b": "new", "c": "x"}, by_name, newline) == changed


@given(HUMAN)
def test_no_text_from_data_ends_a_part(text):
    hostile = f"{text}<!-- hf_dr: end -->\n<!-- hf_dr: b -->\n<!--hf_dr"
    body = merge_parts("words\n", {"a": hostile}, by_name)
    assert part_names(body) == ["a"]
    assert merge_parts(body, {"a": hostile}, by_name) == body
    assert text.replace("<!--", "&lt;!--") in body


A, END = "<!-- hf_dr: a -->\n", "<!-- hf_dr: end -->\n"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{A}text\n", "`<!-- hf_dr: a -->` must be followed by `<!-- hf_dr: end -->`, found the end"),
        (f"{A}{A}{END}", r"must be followed by `<!-- hf_dr: end -->`, found '<!-- hf_dr: a -->' in line 2 of"),
        (f"{END}", "`<!-- hf_dr: end -->` must end a part"),
        (f"{A}{END}{A}{END}", "the part `a` must be there once, found .* in line 3"),
        (f"text {A}{END}", "must stand alone on its line"),
        (f"  {A}{END}", "must stand alone on its line"),
        ("<!-- hf_dr: a --> text\n" + END, "must stand alone on its line"),
        ("<!--hf_dr: a-->\n" + END, "must stand alone on its line"),
        ("<!-- hf_dr: a\n", "must stand alone on its line"),
        ("<!-- hf_dr: one two three -->\n" + END, "must stand alone on its line"),
    ],
)
def test_damaged_markers_are_refused(body, message):
    with pytest.raises(FormatError, match=f"{message}.*Fix the marker"):
        merge_parts(body, {"a": "text"}, by_name)


# ---------------------------------------------------------------------------------------------------------------- whole


@given(st.text(), st.text())
def test_splitting_loses_nothing(first, second):
    text = f"---\n{first}\n---\n{second}"
    assert "".join(split_readme(text)) == text


def test_without_yaml_it_is_put_in_front():
    assert split_readme("words") == ("---\n", "", "\n---\n", "\nwords")
    assert split_readme("\ufeffa\r\nb\n") == ("---\r\n", "", "\r\n---\r\n", "\r\na\r\nb\n")
    assert split_readme("") == ("---\n", "", "\n---\n", "")


def test_a_huge_card_is_refused():
    with pytest.raises(FormatError, match="must have at most 4,194,304 characters, found 4,194,305"):
        split_readme("x" * (MAX_LENGTH + 1))
