"""The words of a command line: help with dashes, names with underscores, and suggestions."""

import argparse
from dataclasses import dataclass, field

import pytest
from transformers import HfArgumentParser

from tttnn import TestTimeTrainingArguments
from tttnn.evaluation import EvaluateArguments
from tttnn.helptext import HelpFormatter, OptionParser, asks_for_help, dashed, misspelled, suggestion


@dataclass
class Options:
    batch_size: int = field(default=8, metadata={"help": "Texts at once."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a text."})
    model: str = field(default="gpt2", metadata={"help": "A model."})


def test_options_of_dataclasses_are_shown_with_dashes_only(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = OptionParser([Options], prog="program")
    assert parser.format_help() == (
        "usage: program [-h] [--batch-size BATCH_SIZE] [--max-length MAX_LENGTH] [--model MODEL]\n\n"
        "options:\n"
        "  -h, --help            show this help message and exit\n"
        "  --batch-size BATCH_SIZE\n"
        "                        Texts at once. (default: 8)\n"
        "  --max-length MAX_LENGTH\n"
        "                        Tokens of a text.\n"
        "  --model MODEL         A model. (default: gpt2)\n"
    )


def described(parser):
    """What each option is, by its name with dashes; of `--no-NAME` only the names, for it has no help and default."""
    names = ("dest", "nargs", "const", "required", "choices", "default", "help")
    return {
        option: [getattr(action, name) for name in names[: 5 if option.startswith("--no-") else None]]
        for action in parser._actions
        for option in action.option_strings
        if "_" not in option
    }


@pytest.mark.parametrize("group", [Options, EvaluateArguments, TestTimeTrainingArguments])
def test_options_are_those_of_transformers_parser(group):
    options, expected = described(OptionParser([group])), described(HfArgumentParser(group))
    if "--debug" in expected:
        expected["--debug"][-2] = []  # which loses the default ""
    assert options == expected


@pytest.mark.parametrize(
    "line",
    [
        "",
        '--bf16 --learning-rate 3e-4 --lr-scheduler-kwargs {"num_cycles":2} --chunks-per-neighbor all',
        "--disable-dropout false --reset-optimizer no --disable-tqdm true --label-names a b --eval-steps 2",
        "--no-reset-optimizer --logging-strategy epoch --report-to tensorboard --include-num-input-tokens-seen yes",
    ],
)
def test_words_mean_what_they_mean_to_transformers_parser(line):
    words = [*line.split(), "--use-cpu"]
    parsed, rest = OptionParser([TestTimeTrainingArguments]).parse_groups(words)
    (expected,) = HfArgumentParser(TestTimeTrainingArguments).parse_args_into_dataclasses(words)
    assert rest == []
    assert parsed[TestTimeTrainingArguments].to_dict() == expected.to_dict()


def test_words_that_belong_to_no_option_are_given_back():
    assert OptionParser([Options]).parse_groups(["--batch-size", "2", "x"]) == ({Options: Options(2)}, ["x"])


@pytest.mark.parametrize(
    ("words", "expected"), [([], False), (["--limit", "3", "-h"], True), (["--help"], True), (["--", "--help"], False)]
)
def test_the_help_is_asked_for_before_two_dashes(words, expected):
    assert asks_for_help(words) is expected


def test_paragraphs_are_wrapped_and_indented_ones_are_kept(monkeypatch):
    monkeypatch.setenv("COLUMNS", "22")
    description = "\nOne paragraph of\nwords.\n\n    a command  with words\n\nThe last.\n"
    parser = argparse.ArgumentParser("p", description=description, formatter_class=HelpFormatter, add_help=False)
    expected = "One paragraph of\nwords.\n\n    a command  with words\n\nThe last.\n"
    assert parser.format_help() == "usage: p\n\n" + expected


def test_a_flag_has_no_default_in_the_help():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    assert "default" not in parser.format_help()


def test_commands_are_listed_without_a_line_above_them():
    parser = argparse.ArgumentParser(formatter_class=HelpFormatter)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    commands.add_parser("build", help="build it")
    commands.add_parser("search", help="search it")
    assert parser.format_help().endswith("commands:\n  build       build it\n  search      search it\n")


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--batch_size", "--batch-size"),
        ("--batch_size=a_b", "--batch-size=a_b"),
        ("--batch-size", "--batch-size"),
        ("a_b", "a_b"),
        ("-a_b", "-a_b"),
        ("--a_b c", "--a_b c"),
        ("--a_b\n", "--a_b\n"),
        ("--", "--"),
    ],
)
def test_the_name_of_an_option_gets_dashes_and_nothing_else(word, expected):
    assert dashed(["x_y", word, "x_y"]) == ["x_y", expected, "x_y"]


def test_words_after_two_dashes_stay_as_they_are():
    assert dashed(["--a_b", "--", "--a_b"]) == ["--a-b", "--", "--a_b"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "gpt2"], None),
        (["--model=gpt2"], None),
        (["--modle", "gpt2"], "--modle"),
        (["--modle=gpt2"], "--modle"),
        (["a", "--", "--modle"], None),
        (["--a value of words"], None),
        (["-5"], None),
    ],
)
def test_the_first_word_that_is_no_option_is_found(words, expected):
    assert misspelled(words, {"--model"}) == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--modle", " Did you mean `--model`?"),
        ("--num-neighbours", " Did you mean `--num-neighbors`?"),
        ("--neighbors", " Did you mean `--num-neighbors`?"),
        ("--colour", ""),
        ("--max-documents", ""),
    ],
)
def test_a_suggestion_is_the_nearest_option_with_dashes(word, expected):
    options = ["--model", "--num-neighbors", "--max-length", "--limit", "--label"]
    assert suggestion(word, options) == expected
