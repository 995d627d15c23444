"""`tttnn generate`: where the prompt comes from, what is shown, and what is refused."""

import io
import shutil

import pytest
from commands import run_main
from transformers import AutoModelForCausalLM

from tttnn import NeighborRetriever
from tttnn.cli.generate import GenerateArguments, _side_by_side
from tttnn.neighbors import PartialAnswer


@pytest.fixture
def generate(model_folder, index_folder, embedder_folder):
    """Run `tttnn generate` on tiny parts; gives the exit status."""

    def run(*words, method=("--num-neighbors", 2, "--max-length", 32)):
        parts = ["--model", model_folder, "--index", index_folder, "--embedder", embedder_folder, *method]
        options = ["--use-cpu", "--disable-tqdm", "true", "--max-new-tokens", 4, "--temperature", 0]
        return run_main("generate", *parts, *options, *words)

    return run


def test_the_text_goes_to_standard_output_and_the_rest_to_standard_error(generate, capsys):
    assert generate("The captain") == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) >= 1
    assert "seconds: retrieve" in output.err
    lines = [line for line in output.err.splitlines() if line.startswith("  ")]
    assert len(lines) == 2, "a line for each neighbor"


def test_shards_that_did_not_answer_are_told(generate, monkeypatch, capsys):
    find = NeighborRetriever.retrieve
    monkeypatch.setattr(NeighborRetriever, "retrieve", lambda *args: PartialAnswer(find(*args), [3, 5]))
    assert generate("The captain") == 0
    assert "Without the shards [3, 5], whose machines do not answer." in capsys.readouterr().err


def test_a_prompt_comes_from_words_a_file_or_standard_input(generate, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompt.txt").write_text("The captain")
    outputs = []
    for words in (["The", "captain"], ["--", "The captain"], ["--prompt-file", tmp_path / "prompt.txt"], []):
        monkeypatch.setattr("sys.stdin", io.StringIO("The captain"))
        assert generate("--raw", *words) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0].strip()
    assert len(set(outputs)) == 1


def test_two_prompts_are_refused(generate, tmp_path, capsys):
    assert generate("--prompt-file", tmp_path / "x", "The captain") == 1
    assert "A prompt and `--prompt-file` were passed" in capsys.readouterr().err


def test_a_comparison_shows_both_texts(generate, capsys):
    assert generate("--compare", "The captain") == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert header.split() == ["as", "it", "is", "adapted"]


def test_two_texts_stand_side_by_side(monkeypatch):
    monkeypatch.setenv("COLUMNS", "23")
    assert _side_by_side("one two three\n\nfour", "five").splitlines() == [
        "as it is     adapted",
        "----------   ----------",
        "one two      five",
        "three",
        "",
        "four",
    ]


def test_the_adapted_model_is_saved(generate, tmp_path, model_folder):
    folder = tmp_path / "adapted"
    assert generate("--save-adapted", folder, "The captain") == 0
    saved = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    base = AutoModelForCausalLM.from_pretrained(model_folder).state_dict()
    assert any(not saved[name].equal(base[name]) for name in base)


@pytest.mark.parametrize("kind", ["the model", "a file"])
def test_nothing_is_saved_over_what_is_there(generate, tmp_path, model_folder, kind, capsys):
    place = shutil.copytree(model_folder, tmp_path / "copy")
    if kind == "a file":
        place = place / "config.json"
    before = {path: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert generate("--save-adapted", place, "The captain") == 1
    assert "Pass a new folder" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == before


def test_a_comparison_shows_all_texts(generate, capsys):
    options = ["--generation-config", '{"num_return_sequences": 2, "num_beams": 2}']
    assert generate("--compare", *options, "The captain") == 0
    assert capsys.readouterr().out.count("as it is") == 2


def test_standard_input_that_is_no_text_is_refused(generate, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    assert generate() == 1
    assert "Standard input is not UTF-8 text" in capsys.readouterr().err


def test_nothing_that_changed_is_not_saved(generate, tmp_path, capsys):
    assert generate("--save-adapted", tmp_path / "x", "The", method=("--method", "context", "--num-neighbors", 2)) == 1
    assert "nothing changed the model" in capsys.readouterr().err


def test_a_conversation_goes_on_after_an_error(generate, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("The captain\n\nThe captain\n"))
    assert generate() == 0
    output = capsys.readouterr()
    assert "error: The prompt is empty" in output.err
    assert output.err.count("seconds: retrieve") == 2
    assert "An earlier adaptation to the same neighbors was used again." in output.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--system", "Be brief.", "x"], "`--system` is a message of a chat"),
        (["--index-fraction", "0.5", "--", "x"], "`--index-fraction` is for evaluations"),
        (["--generation-config", "[]", "x"], "Pass a JSON object"),
        (["--generation-config", "{", "x"], "is no JSON"),
        (["--temperature", "-1", "x"], "`temperature` is -1.0. Pass a number of at least 0"),
        (["--temperature", "nan", "x"], "`temperature` is nan. Pass a number of at least 0"),
        (["--temperature", "1e-320", "x"], "Pass 0.0001 to 1e+06, or `do_sample=False`"),
        (["--top-p", "nan", "x"], "`top_p` is nan. Pass a share"),
        (["--top-p", "2", "x"], "`top_p` is 2.0. Pass a share"),
        (["--seed", "-1", "x"], "`seed` is -1. Pass 0 to 4294967295"),
        (["--generation-config", '{"nosuch": 3}', "x"], "The options of the generation cannot be"),
        (["--generation-config", '{"num_beams": -1}', "x"], "`num_beams` is -1. Pass a whole number of at least 1"),
        (["--generation-config", '{"forced_eos_token_id": 9999}', "x"], "The options of the generation cannot be"),
        (["--learning-rates", "1e-3", "--", "x"], "is no option of the method"),
        (["--prompt-file", "/none"], "No such file"),
        ([""], "The prompt is empty"),
    ],
)
def test_what_cannot_be_is_refused(generate, words, message, capsys):
    assert generate(*words) == 1
    assert message in capsys.readouterr().err


def test_a_budget_chooses_a_method_that_generates(generate, capsys):
    assert generate("--budget", "fast", "The captain") == 0
    assert "Budget fast: context" in capsys.readouterr().err


def test_the_options_become_fields_of_the_generation_config():
    def fields(**options):
        return GenerateArguments(model="m", **options).fields()

    assert fields() == {}
    assert fields(max_new_tokens=3, generation_config='{"num_beams": 2}') == {"num_beams": 2, "max_new_tokens": 3}
    assert fields(temperature=0.0)["do_sample"] is False
    assert fields(temperature=0.5) == {"temperature": 0.5, "do_sample": True}
    assert fields(top_p=0.5) == {"top_p": 0.5, "do_sample": True}
