"""The command `tttnn`: its help, its words, and how it ends."""

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points

import httpx2
import pytest
from commands import QUERY, help_of, run_main
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from test_layout import heavy_modules_of

from tttnn import NeighborRetriever
from tttnn.cli import main
from tttnn.errors import HubError, InputError, InputTypeError, StateError
from tttnn.methods import METHODS


COMMANDS = [
    *("build-index", "add", "import-tttlm", "push", "pull", "info", "retrieve", "cluster", "tune", "train-experts"),
    *("evaluate", "report", "generate", "serve", "demo", "lm-eval"),
]
OURS = [command for command in COMMANDS if command != "lm-eval"]  # whose options are those of another program


def test_the_entry_point_is_this_command():
    (script,) = entry_points(group="console_scripts", name="tttnn")
    assert script.load() is main


def test_help_names_every_command(capsys, monkeypatch):
    text = help_of("", capsys, monkeypatch)
    assert re.findall(r"^  ([a-z][a-z-]+)  +\S+ \S+", text, re.MULTILINE) == COMMANDS


@pytest.mark.parametrize("command", OURS)
def test_help_explains_every_option(command, capsys, monkeypatch):
    text = help_of(command, capsys, monkeypatch)
    blocks = re.split(r"\n(?=  \S)", re.split(r"\noptions:\n", text)[1].split("\n\n")[0])
    assert len(blocks) >= 2
    for block in blocks:
        # flags and their values come first, and at least two blanks or a line end part them from what they mean
        _, *explanation = re.split(r"\s{2,}", block.strip(), maxsplit=1)
        assert len(re.sub(r"\(default: .*\)", "", " ".join(explanation)).split()) >= 2, block


@pytest.mark.parametrize("command", OURS)
def test_help_writes_options_with_dashes(command, capsys, monkeypatch):
    assert re.findall(r"--\w+_\w+", help_of(command, capsys, monkeypatch)) == []


def test_help_loads_no_heavy_library():
    light = [[], *([command] for command in COMMANDS), *(["evaluate", "--method", method] for method in METHODS)]
    program = "import io\nfrom contextlib import redirect_stdout, suppress\nfrom tttnn.cli import main\n"
    program += f"for words in {light}:\n"
    program += "    with suppress(SystemExit), redirect_stdout(io.StringIO()):\n        main([*words, '--help'])\n"
    assert heavy_modules_of(f"exec({program!r})") == []


def test_help_names_no_default_where_there_is_none(capsys, monkeypatch):
    text = help_of("evaluate", capsys, monkeypatch)
    assert "(default: 20)" in text
    assert "(default: None)" not in text


def test_help_shows_our_options_and_the_chosen_ones_of_trainer(capsys, monkeypatch):
    text = help_of("evaluate", capsys, monkeypatch)
    shown = {name.replace("-", "_") for name in re.findall(r"^  --([\w-]+)", text, re.MULTILINE)}
    assert {"model", "index", "dataset", "preset", "limit", "num_neighbors", "exclude", "output_dir"} <= shown
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
        (["adapt"], "there is no command `adapt`."),
        (["build-index", "a", "--output", "b", "--batch-size", "many"], "invalid int value: 'many'"),
        (
            ["build-index", "a", "--output", "b", "--preset", "hnsw"],
            "invalid choice: 'hnsw' (choose from 'flat', 'ivf'",
        ),
        (
            ["build-index", "a", "--output", "b", "--preset", "ivf", "--factory", "SQ8"],
            "not allowed with argument --preset",
        ),
        (["add", "an-index"], "required: SOURCE"),
        (["push", "an-index"], "required: REPO_ID"),
        (["pull", "user/index"], "required: --output"),
        (["pull", "user/index", "--output", "a", "--shards", "first"], "invalid int value: 'first'"),
        (["import-tttlm", "--output", "a"], "required: --index-files, --data-files"),
        (["retrieve", "an-index"], "required: TEXT"),
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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build-idx"], "there is no command `build-idx`. Did you mean `build-index`?"),
        (["evalute"], "there is no command `evalute`. Did you mean `evaluate`?"),
        (["adapt"], "there is no command `adapt`."),
        (["build-index", "a", "--outptu", "b"], "there is no option `--outptu`. Did you mean `--output`?"),
        (["build-index", "a", "--embeder=c"], "there is no option `--embeder`. Did you mean `--embedder`?"),
        (["push", "a", "b", "--licence", "mit"], "there is no option `--licence`. Did you mean `--license`?"),
        (["retrieve", "a", "b", "--topk", "3"], "there is no option `--topk`. Did you mean `--top-k`?"),
        (["report", "a", "--group_bye", "id"], "there is no option `--group-bye`. Did you mean `--group-by`?"),
        (["push", "a", "b", "--colour"], "there is no option `--colour`."),
        (["push", "a", "b", "--priv"], "there is no option `--priv`. Did you mean `--private`?"),
    ],
)
def test_a_misspelled_word_gets_a_suggestion(words, message, capsys):
    with pytest.raises(SystemExit) as exit_status:
        run_main(*words)
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f": error: {message}")


@pytest.mark.parametrize("words", [["--top_k", 1], ["--top_k=1"], ["--top-k", 1]])
def test_an_option_may_have_underscores(words, index_folder, capsys):
    assert run_main("retrieve", index_folder, QUERY, *words) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_value_may_look_like_an_option_after_two_dashes(index_folder, capsys):
    assert run_main("retrieve", "--top_k", 1, "--json", "--", index_folder, "--my_query") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


# --- how it ends ---


@pytest.fixture
def fail(monkeypatch, index_folder):
    """Let `tttnn retrieve` fail by an error; gives the exit status."""

    def run(error):
        def from_pretrained(*arguments, **options):
            raise error

        monkeypatch.setattr(NeighborRetriever, "from_pretrained", from_pretrained)
        return run_main("retrieve", index_folder, QUERY)

    return run


@pytest.mark.parametrize(
    "error",
    [
        InputError("in\n  two lines"),
        InputTypeError("in two lines"),
        StateError("in two lines"),
        HubError("in two lines"),
        HfHubHTTPError("in two lines", response=httpx2.Response(404, request=httpx2.Request("GET", "http://hub"))),
        FileNotFoundError("in two lines"),
        ImportError("in two lines"),
        SafetensorError("in two lines"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_input_is_one_line_with_exit_status_1(error, fail, capsys):
    assert fail(error) == 1
    assert capsys.readouterr().err == "tttnn retrieve: error: in two lines\n"


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, KeyError, AssertionError])
def test_an_error_of_the_code_keeps_its_traceback(error, fail):
    with pytest.raises(error, match="a fault"):
        fail(error("a fault"))


def test_an_interrupt_is_one_line_with_exit_status_130(fail, capsys):
    assert fail(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "tttnn retrieve: interrupted\n"


def test_a_pipe_that_breaks_elsewhere_is_told(fail, capfd):
    assert fail(BrokenPipeError("a worker is gone")) == 1
    assert capfd.readouterr().err == "tttnn retrieve: error: a worker is gone\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_stops_reading_is_no_error(unbuffered, index_folder):
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    words = [sys.executable, "-m", "tttnn", "info", str(index_folder)]
    with os.fdopen(write) as output:
        run = subprocess.run(words, env=environment, stdout=output, stderr=subprocess.PIPE)
    assert (run.returncode, run.stderr) == (141, b"")
