"""The command `tttnn`: its help, its words, and how it ends."""

import re
from importlib.metadata import entry_points

import pytest
from commands import help_of, run_main

from tttnn.cli import main
from tttnn.evaluation.options import SHOWN


COMMANDS = ["build-index", "add", "import-tttlm", "push", "pull", "info", "retrieve", "evaluate", "report"]


def test_the_entry_point_is_this_command():
    (script,) = entry_points(group="console_scripts", name="tttnn")
    assert script.load() is main


def test_help_names_every_command(capsys, monkeypatch):
    text = help_of("", capsys, monkeypatch)
    assert re.findall(r"^  ([a-z][a-z-]+)  +\S+ \S+", text, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys, monkeypatch):
    text = help_of(command, capsys, monkeypatch)
    blocks = re.split(r"\n(?=  \S)", re.split(r"\noptions:\n", text)[1].split("\n\n")[0])
    assert len(blocks) >= 4
    for block in blocks:
        # flags and their values come first, and at least two blanks or a line end part them from what they mean
        _, *explanation = re.split(r"\s{2,}", block.strip(), maxsplit=1)
        assert len(re.sub(r"\(default: .*\)", "", " ".join(explanation)).split()) >= 2, block


def test_help_names_no_default_where_there_is_none(capsys, monkeypatch):
    text = help_of("evaluate", capsys, monkeypatch)
    assert "(default: 20)" in text
    assert "(default: None)" not in text


def test_help_shows_our_options_and_the_chosen_ones_of_trainer(capsys, monkeypatch):
    text = help_of("evaluate", capsys, monkeypatch)
    shown = set(re.findall(r"^  --(\w+)", text, re.MULTILINE))
    assert {"model", "index", "dataset", "preset", "limit", "num_neighbors", "exclude", *SHOWN} <= shown
    assert not {"save_steps", "push_to_hub", "no_reset_optimizer"} & shown


def test_a_version_is_told(capsys):
    with pytest.raises(SystemExit) as exit_status:
        run_main("--version")
    assert exit_status.value.code == 0
    assert re.fullmatch(r"tttnn \d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: COMMAND"),
        (["adapt"], f"invalid choice: 'adapt' (choose from {', '.join(map(repr, COMMANDS))})"),
        (["build-index"], "required: source, --output"),
        (["build-index", "a", "--output", "b", "--batch-size", "many"], "invalid int value: 'many'"),
        (
            ["build-index", "a", "--output", "b", "--preset", "hnsw"],
            "invalid choice: 'hnsw' (choose from 'flat', 'ivf'",
        ),
        (
            ["build-index", "a", "--output", "b", "--preset", "ivf", "--factory", "SQ8"],
            "not allowed with argument --preset",
        ),
        (["add", "an-index"], "required: source"),
        (["push", "an-index"], "required: repo_id"),
        (["pull", "user/index"], "required: --output"),
        (["pull", "user/index", "--output", "a", "--shards", "first"], "invalid int value: 'first'"),
        (["import-tttlm", "--output", "a"], "required: --index-files, --data-files"),
        (["retrieve", "an-index"], "required: text"),
        (["retrieve", "an-index", "x", "--texts", "far"], "invalid choice: 'far' (choose from 'local', 'remote')"),
        (["evaluate"], "required: --model, --dataset, --index"),
        (
            ["evaluate", "--model", "m", "--index", "i", "--dataset", "d", "--order", "sideways"],
            "invalid choice: 'sideways' (choose from 'nearest', 'farthest', 'random')",
        ),
    ],
)
def test_a_wrong_use_is_told_with_exit_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_status:
        run_main(*arguments)
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err
