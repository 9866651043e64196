"""The card of a student: what it says, what it leaves out, and the text of people in it."""

import dataclasses
import json
import re

import pytest
from huggingface_hub import ModelCard

from hf_dr.errors import FormatError
from hf_dr.store.card import is_noncommercial
from hf_dr.teacher.architectures import ADDED
from hf_dr.training.student_card import STUDENT_FILE, Student, update_student_card
from hf_dr.training.student_hub import push_student

STUDENT = Student(
    model="resnet18 of 11,689,512 parameters, over 100 classes",
    objective="stored views and a teacher's stored answers",
    dataset={"id": "me/cifar100-plus", "config": "randaug", "revision": "v1", "fingerprint": "ab" * 32},
    origin="That is 50,000 examples of uoft-cs/cifar100, whose views, 8 of each, were labelled by timm/a, facebook/b.",
    timm=True,
    teachers=[
        {"id": "timm/a", "revision": "c0ffee", "license": "apache-2.0"},
        {"id": "facebook/b", "revision": None, "license": "cc-by-nc-4.0"},
        {"id": "x|y<b>\n`z`", "revision": None, "license": None},
    ],
    evaluated_on={"id": "uoft-cs/cifar100", "config": None, "split": "test", "revision": "main"},
    metrics={"loss": 1.5, "top1": 0.75, "ece": 0.02, "ema_top1": 0.8},
    settings={"learning_rate": 0.1},
    metadata={"license": "mit", "tags": ["mine"], "datasets": ["me/cifar100-plus"]},
)


def test_metadata_and_text():
    card = ModelCard(update_student_card(None, STUDENT, "me/student"))
    data = card.data
    assert (data.license, data.datasets, data.library_name) == ("mit", ["me/cifar100-plus"], "transformers")
    assert data.tags == ["mine", "dataset-reinforcement", "arxiv:2303.08983", "timm"]
    assert data.model_name == "student"
    assert {(r.metric_type, r.metric_value) for r in data.eval_results} == {("accuracy", 0.75), ("ece", 0.02)}
    for result in data.eval_results:
        assert (result.dataset_type, result.dataset_split) == ("uoft-cs/cifar100", "test")
        assert (result.task_type, result.dataset_revision) == ("image-classification", "main")
    for part in (
        "# student\n", "dataset `me/cifar100-plus` at `v1`, configuration `randaug` (", "| timm/a at `c0ffee` | apache-2.0 |",
        "Measured on `uoft-cs/cifar100` at `main`, split `test`.", "The weights of its teacher facebook/b (cc-by-nc-4.0) are",
        r"| x\|y&lt;b&gt; \`z\` | unknown |", "| top1 | 0.75 |", "@inproceedings{faghri2023reinforce,", '"hf-hub:me/student"',
    ):  # fmt: skip
        assert part in card.text, part


def test_the_code_of_an_architecture_that_timm_lacks_brings_it():
    name = next(iter(ADDED))
    text = update_student_card(None, dataclasses.replace(STUDENT, model=f"{name} of 3 parameters"), "me/student")
    assert text.count("import hf_dr.teacher.architectures  # timm itself has no such architecture") == 2


def test_a_branch_that_timm_cannot_name_has_no_line_for_timm():
    text = update_student_card(None, STUDENT, "me/student", revision="v1@home")
    assert 'from_pretrained("me/student", revision="v1@home")' in text
    assert "timm.create_model" not in text


def test_the_averaged_weights_have_their_own_numbers():
    card = ModelCard(update_student_card(None, STUDENT, "me/student", ema=True))
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results] == [("accuracy", 0.8)]
    assert "exponential moving average" in card.text


def test_what_is_not_known_is_not_there():
    plain = {"teachers": STUDENT.teachers[:1], "timm": False, "metadata": {}}
    for missing in ({"metrics": {}}, {"evaluated_on": None}):
        student = dataclasses.replace(STUDENT, **plain, **missing)
        card = ModelCard(update_student_card(None, student, "me/student"))
        assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
        assert ("## Results" in card.text) == bool(student.metrics)
        for part in ("Measured on", "commercial", "timm.create_model", "exponential"):
            assert part not in card.text
    nameless = dataclasses.replace(STUDENT, dataset={"id": None, "config": "randaug"})
    assert 'the "+" dataset configuration `randaug` (' in update_student_card(None, nameless, "s")


def test_what_people_wrote_stays():
    written = update_student_card(None, STUDENT, "student")
    written = written.replace("license: mit", "license: mit\nmy_key: 1").replace(
        "<!-- hf_dr: student -->", "Hello.\n\n<!-- hf_dr: student -->"
    )
    written = written.replace("tags:\n", "tags:\n- theirs\n") + "\n## Thanks\n"
    better = dataclasses.replace(STUDENT, metrics={"top1": 0.9}, metadata={})
    again = update_student_card(written, better, "me/student")
    card = ModelCard(again)
    assert card.data.to_dict()["my_key"] == 1
    assert card.data.license == "mit"
    assert card.data.tags[0] == "theirs"
    assert [r.metric_value for r in card.data.eval_results] == [0.9]
    assert card.text.startswith("Hello.\n\n<!-- hf_dr: student -->\n# student\n")
    assert card.text.endswith("\n## Thanks\n")
    assert again.count("## Results") == 1
    assert update_student_card(again, better, "me/student") == again
    again = again.replace("my_key: 1", "my_key: 1  # one")
    unmeasured = update_student_card(again, dataclasses.replace(better, metrics={}), "me/student")
    assert "model-index" not in unmeasured, "the numbers were of other weights"
    assert "\nmy_key: 1  # one\n" in unmeasured
    assert update_student_card(unmeasured, better, "me/student") == again
    appended = update_student_card("Just words.", STUDENT, "student")
    assert ModelCard(appended).text.startswith("\nJust words.\n\n<!-- hf_dr: student -->")


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ("---\na: [1\n---\n", "the card's YAML must be plain `key: value` lines"),
        ("---\n- a\n---\n", "the card's YAML must be `key: value` lines, found list"),
        ("<!-- hf_dr: student -->", "must be followed by `<!-- hf_dr: end -->`"),
        ("<!-- hf_dr: end -->\n<!-- hf_dr: student -->", "`<!-- hf_dr: end -->` must end a part"),
    ],
)
def test_a_damaged_card(existing, message):
    with pytest.raises(FormatError, match=re.escape(message)):
        update_student_card(existing, STUDENT, "student")


def test_written_and_read_back(tmp_path):
    assert Student.read(tmp_path) is None
    STUDENT.write(tmp_path)
    assert Student.read(tmp_path) == STUDENT
    content = json.loads((tmp_path / STUDENT_FILE).read_text())
    assert f'from_pretrained("{tmp_path.name}")' in (tmp_path / "README.md").read_text()
    for bad, message in (
        ("{", "must be JSON, but reading it failed"),
        ("[]", "must hold a JSON object, found list"),
        (json.dumps({**content, "more": 1}), "must not have the field `more`, found 1. Train again, or remove"),
        (json.dumps({**content, "metrics": None}), "`metrics` in .* must be a valid dictionary, found None"),
        (json.dumps({**content, "teachers": [1]}), r"`teachers\.0` in .* must be a valid dictionary, found 1"),
    ):
        (tmp_path / STUDENT_FILE).write_text(bad)
        with pytest.raises(FormatError, match=message):
            Student.read(tmp_path)


@pytest.mark.parametrize(
    ("license", "expected"),
    [("cc-by-nc-4.0", True), ("CC BY-NC-SA", True), ("non-commercial", True), ("apache-2.0", False), (None, False),
     ("license-nce", False)],
)  # fmt: skip
def test_licences_that_forbid_commercial_use(license, expected):
    assert is_noncommercial(license) is expected


@pytest.mark.parametrize("share", [None, "0.5"])
def test_settings_that_do_not_tell_the_objective_are_an_error(share):
    student = dataclasses.replace(STUDENT, settings={"reinforced_probability": share})
    with pytest.raises(FormatError, match=r"must hold the number `reinforced_probability`, found .* Train again"):
        _ = student.objective_name


def test_line_ends_of_people_stay(tmp_path):
    own = "---\r\nlicense: mit\r\n---\r\n\r\n# Mine\r\n\r\nMy words.\r\n"
    (tmp_path / "README.md").write_bytes(own.encode())
    STUDENT.write(tmp_path)
    text = (tmp_path / "README.md").read_bytes().decode()
    assert "\r\n# Mine\r\n\r\nMy words.\r\n" in text
    assert text.count("\n") == text.count("\r\n")


def test_a_card_that_is_no_utf8_is_refused_and_stays(tmp_path):
    (tmp_path / "README.md").write_bytes("# Müller".encode("latin-1"))
    with pytest.raises(FormatError, match=r"README.md must be UTF-8, but: .*\. Fix it, or move it away"):
        STUDENT.write(tmp_path)
    with pytest.raises(FormatError, match=r"README.md must be UTF-8, but"):
        push_student(tmp_path, "me/student", dry_run=True)
    assert (tmp_path / "README.md").read_bytes() == b"# M\xfcller"
