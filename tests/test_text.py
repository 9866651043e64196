"""What is shown of the texts of others, and what is never shown."""

import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.font_manager import fontManager

from hf_dr.evaluation.gathering import Run
from hf_dr.evaluation.pages import to_html, to_markdown
from hf_dr.evaluation.plots import accuracy_figure, as_png, reliability_figure
from hf_dr.evaluation.report import Report, Result
from hf_dr.evaluation.results import Results
from hf_dr.teacher.metrics import reliability
from hf_dr.text import MAX_TEXT, code, fonts_for, inline, shown_text, text_table, two_columns, without_secrets
from hf_dr.training.student_card import Student, update_student_card

HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "link": "[x](javascript:alert(1))",
    "formula": "$$\\frac{",
    "table": "a | b\n| c |",
    "marker": "<!-- hf_dr: end -->",
    "surrogate": "a\ud800b",
    "escape": "\x1b]0;owned\x07\x1b[2J",
    "direction": "abc\u202egnp.exe",
    "long": "x" * 1_000_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_shown_text_is_one_short_printable_line(text):
    shown = shown_text(text)
    assert shown.isprintable()
    assert len(shown) <= MAX_TEXT
    assert shown.encode().decode() == shown
    assert shown_text("name", 4) == "name"
    assert shown_text("names", 4) == "nam…"


def test_shown_text_leaves_words_and_says_what_it_replaced():
    assert shown_text("Füße  und\n猫 👩\u200d🔬") == "Füße und 猫 👩\u200d🔬"
    assert shown_text("a\x1b[1mb\ud800\u202e") == "a\\x1b[1mb\\ud800\\u202e"


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_no_text_of_others_acts_anywhere(text):
    """Markdown, HTML, terminal and figures."""
    metrics = dict.fromkeys(("top1", "top5", "nll", "brier", "ece"), 0.5)
    report = Report([Result(text, text, 3, metrics, None)], {}, {}, {})
    results = Results(left_out={text: text}, others={text: {text: {"top1": 0.5, "ece": 0.1}}})
    member = {"id": text, "license": text, "revision": text}
    settings = {"metrics": {text: text}, "settings": {text: text}, "evaluated_on": {"id": text, "config": text}}
    student = Student(text, text, {"id": text, "config": text}, text, True, [member], text, **settings)
    card = update_student_card(None, student, "me/student")
    assert update_student_card(card, student, "me/student") == card
    body = card.split("\n---\n", 1)[1].replace("<!-- hf_dr: student -->", "").replace("<!-- hf_dr: end -->", "", 1)
    tables = (text_table(["name"], [[text]]), two_columns([(text, text)]))
    for shown in (inline(text), report.to_markdown(), to_markdown(results, text), *tables):
        assert all(c.isprintable() or c == "\n" for c in shown)
    for shown in (inline(text), report.to_markdown(), to_markdown(results, text), to_html(results, text), body):
        shown.encode()
        assert not any(part in shown.replace("`" + code(text)[1:], "") for part in ("<script", "<img src=x", "\x1b"))
    for shown in (inline(text), report.to_markdown(), to_markdown(results, text)):
        assert re.search(r"(?<!\\)\]\(", shown) is None
        assert "$$" not in shown
    diagram = reliability(np.log([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]))
    as_png(reliability_figure({text: [diagram]}))
    as_png(accuracy_figure(text, [Run("erm", 0, Path(), 1.0, 2, ((1.0, 0.5),))]))


def test_text_of_others_is_shown_as_it_is():
    """Without emphasis; names stay readable."""
    for text, shown in (
        ("__plus__", r"\_\_plus\_\_"),
        ("_erm_", r"\_erm\_"),
        ("~~old~~", r"\~\~old\~\~"),
        ("ema_top1 of lr_scheduler_type", "ema_top1 of lr_scheduler_type"),
        ("größe_2_é", "größe_2_é"),
        ("a/_b", r"a/\_b"),
    ):
        assert inline(text) == shown


def test_letters_of_plots_have_fonts_or_are_told_once(caplog, monkeypatch):
    shipped = [font for font in fontManager.ttflist if mpl.get_data_path() in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", shipped)
    with fonts_for(["a", "b\n"]) as families:
        assert families == [], "no font is looked for"
    with fonts_for(["a", "\U0001d7fb"]) as families:
        assert families
        assert not any(family.startswith("Last Resort") for family in families)
    assert not caplog.text
    figure = accuracy_figure("写犬真", [Run("erm", 0, Path(), 1.0, 2, ((1.0, 0.5),))])
    assert as_png(figure).startswith(b"\x89PNG")
    assert caplog.text.count("No font of this machine has 写犬真: boxes are drawn.") == 1


def test_what_is_hidden_and_what_is_not():
    assert without_secrets("https://me:secret@hub.org/x?a=1&X-Amz-Signature=ab%2F&b=2") == (
        "https://hub.org/x?a=1&X-Amz-Signature=***&b=2"
    )
    assert without_secrets("authorization: Bearer abc.def-1, hf_AbCdEf123456") == "authorization: Bearer ***, hf_***"
    for plain in ("Train the basic recipe; bearer of bad news", "Basic tests"):
        assert without_secrets(plain) == plain
    for secret in ("Basic dXNlcjpwYXNz", "bearer 0123", "Basic+ab%3Dc", "Bearer abcdefghijklmnopqrst"):
        assert re.sub(r"[ +]\S+", "", secret) + " ***" == without_secrets(secret)
    same = "hf_dr at /home/me/hf_datasets, hf_transformers, mail me@x.org, Basic tests"
    assert without_secrets(same.replace("Basic tests", "basics")) == same.replace("Basic tests", "basics")
    assert json.loads(without_secrets(json.dumps({"token": "hf_A1b2C3d4E5"}))) == {"token": "hf_***"}
