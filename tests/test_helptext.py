"""The words of a command line: help with dashes, names with underscores, and suggestions."""

import argparse
from dataclasses import dataclass, field

import pytest
from transformers import HfArgumentParser

from tttnn.helptext import HelpFormatter, dashed, misspelled, suggestion


@dataclass
class Options:
    batch_size: int = field(default=8, metadata={"help": "Texts at once."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a text."})
    model: str = field(default="gpt2", metadata={"help": "A model."})


def test_options_of_dataclasses_are_shown_with_dashes_only(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    parser = HfArgumentParser(Options, prog="program", formatter_class=HelpFormatter)
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
    options = ["--model", "--num_neighbors", "--num-neighbors", "--max-length", "--limit", "--label"]
    assert suggestion(word, options) == expected
