"""Flags and YAML: files set defaults, flags win, nothing unknown is ignored."""

from dataclasses import dataclass, field

import pytest
from transformers import HfArgumentParser

from hf_dr.cli.config import parse
from hf_dr.cli.flag_parser import Parser, add_fields
from hf_dr.errors import ConfigError
from hf_dr.evaluation.config import as_arguments
from hf_dr.settings import OpsOrName, Whole


@dataclass
class Run:
    """A run."""

    name: str = field(metadata={"help": "Its name."})
    views: int = field(default=8, metadata={"help": "How many."})
    dry_run: bool = field(default=False, metadata={"help": "Only look."})
    mode: str = field(default="fast", metadata={"help": "How.", "choices": ["fast", "slow"]})


@dataclass
class Ops:
    """Ops."""

    teachers: list[str] = field(default_factory=list, metadata={"help": "Who."})
    augmentation: OpsOrName = field(default="randaug", metadata={"help": "What."})


def read(argv, text=None, tmp_path=None):
    if text is not None:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        argv = [*argv, "--config", str(path)]
    return parse([Run, Ops], argv, prog="x", description="d")


def test_flags():
    run, ops = read(["--name", "a", "--views", "3", "--teachers", "x", "y", "--dry_run"])
    assert run == Run("a", 3, True)
    assert ops.teachers == ["x", "y"]


def test_a_file_sets_defaults_and_flags_win(tmp_path):
    text = "name: b\nviews: 5\nteachers: [x]\naugmentation:\n  - Flip: {p: 1}\n"
    run, ops = read(["--views", "7"], text, tmp_path)
    assert run == Run("b", 7)
    assert ops.teachers == ["x"]
    assert ops.augmentation == [{"Flip": {"p": 1}}]
    assert read(["--augmentation", "rrc"], text, tmp_path)[1].augmentation == "rrc"
    given = ["--views", "8", "--mode", "fast", "--augmentation", "randaug", "--dry_run", "false"]
    words = f"{text}mode: slow\ndry_run: true\n"
    assert read(given, words, tmp_path) == [Run("b"), Ops(["x"])], "also those that are the built-in defaults"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("veiws: 3", "has the unknown key `veiws`. Did you mean `views`?"),
        ("mode: quick", "`mode` in .* must be one of fast, slow, got 'quick'"),
        ("- a", r"must hold a mapping .*found a list\. Write such lines"),
        ("# only a comment", r"must hold a mapping .*found nothing\. Write such lines"),
        ("views: three", r"`views` in .*c\.yaml must be a whole number, got 'three'\. Change it"),
        ("dry_run: maybe", r"`dry_run` in .*c\.yaml must be true or false, got 'maybe'\. Change it"),
        ("views: 010", "must be YAML, but: 010 must be written in decimal digits, or in quotes"),
        ("views: 28:00", "must be YAML, but: 28:00 must be written in decimal digits, or in quotes"),
        ("views: 3\nviews: 4", "must be YAML, but: the key `views` stands twice"),
        ("views: [1]", r"`views` in .* must be a whole number, got \[1\]. Change it"),
        ("views: 2.5", "`views` in .* must be a whole number, got 2.5. Change it"),
        ("views: true", "`views` in .* must be a whole number, got True. Change it"),
        ("views:", "`views` in .* must be a whole number, got None. Leave the key out"),
        ("name: 5", "`name` in .* must be text, got 5. Put it in quotes"),
        ("name: no", "`name` in .* must be text, got False. Put it in quotes"),
        ("name:", "`name` in .* must be text, got None. Leave the key out"),
        ("name: [a]", r"`name` in .* must be text, got \['a'\]"),
        ("dry_run: 5", "`dry_run` in .* must be true or false, got 5. Change it"),
        ("teachers: {a: b}", "`teachers` in .* must be a list, each item text, got {'a': 'b'}. Change it"),
        ("teachers: [5]", r"`teachers` in .* must be a list, each item text, got \[5\]. Change it"),
        ("teachers:", "`teachers` in .* must be a list, each item text, got None. Leave the key out"),
        ("augmentation: {a: b}", "`augmentation` in .* must be text or a list, got {'a': 'b'}. Change it"),
        ("a: [", "must be YAML, but"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(["--name", "a"], text, tmp_path)


def test_a_file_may_be_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("views: 0\n")
    (tmp_path / "own.yaml").write_text("extends: ~/base.yaml\nname: a\n")
    assert read(["--config", "~/own.yaml"])[0] == Run("a", 0)


def test_one_item_in_a_file_is_a_list_of_it(tmp_path):
    assert read(["--name", "a"], "teachers: x", tmp_path)[1].teachers == ["x"]


def test_what_must_be_given_is_not_empty():
    with pytest.raises(ConfigError, match=r"`name` must be given, got an empty text\. Name one"):
        read(["--name", ""])


def test_unknown_flags_and_files(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown argument `--veiws`\. Did you mean `--views`\?"):
        read(["--name", "a", "--veiws", "3"])
    with pytest.raises(ConfigError, match=r"`--config` must name a readable file, but .*No such file"):
        read(["--config", str(tmp_path / "no.yaml")])
    with pytest.raises(ConfigError, match=r"No such file or directory\. `hf-dr recipes copy cifar100` puts it there\."):
        read(["--config", str(tmp_path / "recipes" / "cifar100" / "teacher.yaml")])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: --name"),
        (["--name", "a", "--mode", "quick"], "argument --mode: invalid choice: 'quick' (choose from"),
        (["--name", "a", "--views", "many"], "argument --views: invalid int value: 'many'"),
    ],
)
def test_wrong_values_end_with_one_line(argv, message):
    with pytest.raises(ConfigError) as found:
        read(argv)
    (line,) = str(found.value).splitlines()
    assert line.startswith(message)
    assert line.endswith(". See `x --help`.")


def test_help_tells_each_default_once(capsys):
    with pytest.raises(SystemExit):
        read(["--help"])
    out = capsys.readouterr().out
    assert "How many. Default: 8." in out
    assert "Only look.\n" in out


def test_help_tells_a_list_as_it_is_written_after_its_flag(capsys):
    @dataclass
    class Chosen:
        """What."""

        seeds: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "Which."})
        ratios: list[str] = field(default_factory=lambda: ["5%"], metadata={"help": "Of what."})
        none: list[str] = field(default_factory=list, metadata={"help": "Nothing."})

    with pytest.raises(SystemExit):
        parse([Chosen], ["--help"], prog="x", description="d")
    out = capsys.readouterr().out
    assert "Which. Default: 0 1.\n" in out
    assert "Of what. Default: 5%.\n" in out
    assert "Nothing.\n" in out


def test_the_help_of_a_negation_does_not_say_the_opposite(capsys):
    @dataclass
    class Keep:
        keep: bool = field(default=True, metadata={"help": "Keep it."})

    with pytest.raises(SystemExit):
        parse([Keep], ["--help"], prog="x", description="d")
    out = capsys.readouterr().out
    assert out.count("Keep it.") == 1
    assert "--no_keep " in out
    assert "The opposite of --keep." in out
    assert not parse([Keep], ["--no_keep"], prog="x", description="d")[0].keep


def test_an_empty_value_takes_back_what_a_file_sets(tmp_path):
    @dataclass
    class Where:
        revision: str | None = field(default=None, metadata={"help": "h"})

    file = tmp_path / "where.yaml"
    file.write_text("revision: v1")
    words = ["--config", str(file)]
    assert parse([Where], words, prog="x", description="d")[0].revision == "v1"
    assert parse([Where], [*words, "--revision", ""], prog="x", description="d")[0].revision is None
    assert read(["--name", "a", "--augmentation", ""], "augmentation: rrc", tmp_path) == read(["--name", "a"])


def test_an_empty_value_takes_back_a_list(tmp_path):
    """Not a list of one empty text: as a folder, that is the present one."""
    assert read(["--name", "a", "--teachers", ""], "teachers: [x, y]", tmp_path)[1].teachers == []


def test_settings_written_as_words_are_read_as_they_were(tmp_path):
    written = as_arguments({"name": "a", "teachers": [], "views": 3})
    assert read(written, "teachers: [x, y]", tmp_path) == read(["--name", "a", "--views", "3"])


@pytest.fixture
def files(tmp_path):
    """Writes YAML files, by name, into one folder."""

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return [str(tmp_path / f"{name}.yaml") for name in texts]

    return write


def test_of_several_files_later_ones_win_and_flags_over_all(files):
    first, second = files(a="name: a\nviews: 5\nmode: slow", b="views: 6")
    for argv in (["--config", first, second], ["--config", first, "--config", second]):
        assert read(argv)[0] == Run("a", 6, False, "slow")
    assert read(["--config", second, first])[0].views == 5
    assert read(["--config", first, second, "--views", "9"])[0].views == 9


def test_a_file_extends_one_other(files, tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    files(base="name: a\nviews: 5\nteachers: [x, y]", **{"deep/own": "extends: ../base.yaml\nviews: 6"})
    monkeypatch.chdir(tmp_path.parent)  # the path is relative to the file, not to where one stands
    run, ops = read(["--config", str(tmp_path / "deep" / "own.yaml")])
    assert (run, ops.teachers) == (Run("a", 6), ["x", "y"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"own": "extends: no.yaml"}, r"readable file, but .*no\.yaml: No such file"),
        ({"own": "extends: [a, b]"}, r"`extends` in .*own\.yaml must be the path of one file, found \['a', 'b'\]"),
        ({"own": "extends: b.yaml", "b": "extends: c.yaml"},
         r"b\.yaml, which .*own\.yaml extends, must not extend another, found `extends: c\.yaml`"),
        ({"own": "extends: b.yaml", "b": "veiws: 3"}, r"b\.yaml has the unknown key `veiws`\. Did you mean `views`"),
        ({"own": "extends: b.yaml\nveiws: 3", "b": "name: a"}, r"own\.yaml has the unknown key `veiws`"),
    ],
)  # fmt: skip
def test_bad_extensions(files, texts, message):
    with pytest.raises(ConfigError, match=message):
        read(["--name", "a", "--config", files(**texts)[0]])


def test_print_config_can_be_read_back(files, tmp_path, capsys):
    (file,) = files(a="name: 'no'\nteachers: [x]\nmode: slow\naugmentation:\n  - Flip: {p: 1.0e-5}\n")
    argv = ["--config", file, "--dry_run", "--views", "3"]
    with pytest.raises(SystemExit) as stop:
        read([*argv, "--print_config"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert set(text.split("# Defaults:")[0].split()) >= {"name:", "'no'", "slow", "views:", "dry_run:"}
    assert read([], text, tmp_path) == read(argv)


def test_print_config_lists_what_was_set_and_nothing_else(capsys):
    @dataclass
    class Foreign:
        counted: bool = field(default="no", metadata={"help": "As transformers has one."})

    with pytest.raises(SystemExit):
        parse([Foreign, Run], ["--name", "a", "--print_config"], prog="x", description="d")
    assert capsys.readouterr().out.split("# Defaults:\n")[0] == "name: a\n"


@dataclass
class Everything:
    """A field of each kind that commands have."""

    name: str = field(metadata={"help": "A text."})
    count: int = field(default=8, metadata={"help": "A number.", "type": Whole(1)})
    share: float | None = field(default=None, metadata={"help": "None, or a number."})
    mode: str = field(default="a", metadata={"help": "One of two.", "choices": ["a", "b"]})
    all_names: list[str] = field(default_factory=list, metadata={"help": "Texts.", "metavar": "NAME"})
    seeds: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "Numbers."})
    dry_run: bool = field(default=False, metadata={"help": "No."})
    keep_all: bool = field(default=True, metadata={"help": "Yes."})
    own: int = field(default=3, init=False)


def described(parser):
    """All that an argument is, but how a text becomes a bool."""
    return [
        {key: value for key, value in vars(action).items() if key not in ("container", "type", "help")}
        | {"type": getattr(action.type, "__name__", None)}
        for action in parser._actions
    ]


def test_flags_are_those_of_transformers_parser():
    """It is not used for our own settings, because importing it takes seconds."""
    parser = Parser()
    add_fields(parser, Everything)
    assert described(parser) == described(HfArgumentParser([Everything]))


@pytest.mark.parametrize(("word", "value"), [("true", True), ("Y", True), ("1", True), ("no", False), ("FALSE", False)])
def test_a_flag_may_be_given_its_value(word, value):
    assert read(["--name", "a", "--dry_run", word])[0].dry_run is value


def test_a_flag_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(ConfigError, match="argument --dry_run/--dry-run: expected true or false, got 'maybe'"):
        read(["--name", "a", "--dry_run", "maybe"])
