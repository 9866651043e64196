"""Findings tell of which run they speak; what is malformed, or speaks of another run, is refused."""

import json

import PIL.Image
import PIL.PngImagePlugin
import pytest

from hf_dr.errors import FormatError
from hf_dr.store.findings import Statistics, Students, Verification, has_contact_sheet, read_finding, save_finding
from hf_dr.store.schema import CONTACT_SHEET_FILE, PUBLISHED_FILES, STATISTICS_FILE, STUDENTS_FILE, VERIFICATION_FILE

FINDINGS = {
    STATISTICS_FILE: Statistics({"image": 5, "a": 0}, 0.5, 0.75, unmixed_views=3, agreement=0.5, ece=0.25, nll=2.0),
    VERIFICATION_FILE: Verification(True, 32, 8, None, 1e-9, 1e-8, 1.0),
    STUDENTS_FILE: Students(["who", "top-1"], [["erm", "1 ± 2"]]),
}


@pytest.mark.parametrize("file", FINDINGS)
def test_a_finding_comes_back(tmp_path, file):
    finding = FINDINGS[file]
    assert read_finding(tmp_path, "f1", type(finding)) is None
    assert save_finding(tmp_path, "f1", finding) == tmp_path / file
    assert read_finding(tmp_path, "f1", type(finding)) == finding
    assert [path.name for path in tmp_path.iterdir()] == [file]
    assert file in PUBLISHED_FILES


@pytest.mark.parametrize(("file", "command"), [(STATISTICS_FILE, "inspect"), (STUDENTS_FILE, "compare")])
def test_a_finding_of_another_run_is_refused(tmp_path, file, command):
    save_finding(tmp_path, "f1", FINDINGS[file])
    with pytest.raises(
        FormatError, match=f"must be of the run f2 .* found one of 'f1'.*hf-dr {command} --save.*delete"
    ):
        read_finding(tmp_path, "f2", type(FINDINGS[file]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_rows": -1}, "`num_rows` in .* must be greater than or equal to 0, found -1"),
        ({"num_rows": True}, "`num_rows` in .* must be a valid integer, found True"),
        ({"num_rows": 10**30}, "`num_rows` in .* must be less than 9223372036854775808, found 1000"),
        ({"kl_mean": float("nan")}, "`kl_mean` in .* must be a finite decimal number, found nan"),
        ({"kl_mean": "<b>"}, "`kl_mean` in .* must be a finite decimal number, found '<b>'"),
        ({"kl_mean": 1}, "`kl_mean` in .* must be a finite decimal number, found 1"),
        ({"kl_mean": 10**400}, r"`kl_mean` in .* must be a finite decimal number, found 1000\d+\.\.\.0+\."),
        ({"ok": 1}, "`ok` in .* must be a valid boolean, found 1"),
        ({"more": 1}, "must not have the field `more`, found 1"),
        ({"fingerprint": None}, "must be of the run f1"),
    ],
)
def test_malformed_fields_are_refused(tmp_path, change, message):
    path = save_finding(tmp_path, "f1", FINDINGS[VERIFICATION_FILE])
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=f"{message}.*hf-dr verify --save"):
        read_finding(tmp_path, "f1", Verification)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON, but"), ("[]", "must hold a JSON object, found list"), ("\udc80", "must be JSON, but"),
        ("[" * 200_000, "must be JSON, but"), ('{"fingerprint": "f1"}', "must have the field `ok`, found none"),
        ("9" * 5000, "must be JSON, but"),
    ],
)  # fmt: skip
def test_what_is_no_finding_is_refused(tmp_path, text, message):
    (tmp_path / VERIFICATION_FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FormatError, match=message):
        read_finding(tmp_path, "f1", Verification)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (Students, {"rows": [[1]]}, r"`rows\.0\.0` in .* must be a valid string, found 1\."),
        (Students, {"head": "ab"}, "`head` in .* must be a valid list, found 'ab'"),
        (Statistics, {"columns": {"a": -1}}, r"`columns\.a` in .* must be greater than or equal to 0, found -1\."),
        (Statistics, {"columns": {"a": {"b": {}}}}, r"`columns\.a` in .* must be a valid integer, found {'b': {}}\."),
    ],
)
def test_tables_hold_texts_and_counts(tmp_path, kind, change, message):
    finding = next(f for f in FINDINGS.values() if isinstance(f, kind))
    path = save_finding(tmp_path, "f1", finding)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match=message):
        read_finding(tmp_path, "f1", kind)


def test_contact_sheets(tmp_path):
    path = tmp_path / CONTACT_SHEET_FILE
    assert not has_contact_sheet(tmp_path, "f1")
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("fingerprint", "f1")
    PIL.Image.new("RGB", (2, 2)).save(path, pnginfo=text)
    assert has_contact_sheet(tmp_path, "f1")
    with pytest.raises(FormatError, match=r"must be of the run f2 .*hf-dr inspect --save"):
        has_contact_sheet(tmp_path, "f2")
    PIL.Image.new("RGB", (2, 2)).save(path, "JPEG")
    with pytest.raises(FormatError, match="must be a PNG, but"):
        has_contact_sheet(tmp_path, "f1")
