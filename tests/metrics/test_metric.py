"""The `evaluate` module of bits per byte, its card, and that both work from a separate folder."""

import ast
import doctest
import math
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import evaluate
import pytest
from huggingface_hub import SpaceCard


ROOT = Path(__file__).parents[2]
METRIC = ROOT / "tttnn" / "metrics" / "bits_per_byte"
CARD = ROOT / "hub_cards" / "bits_per_byte" / "README.md"


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Point the caches of `evaluate` at a temporary folder; it has read its environment variables long ago."""
    cache = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(cache / "modules"))
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(cache / "metrics"))
        patch.setattr(sys, "path", list(sys.path))
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
            patch.delitem(sys.modules, name)
        yield


@pytest.fixture
def bits_per_byte(caches: None, tmp_path: Path) -> evaluate.Metric:
    # A separate folder, or it waits a second for the lock of a metric that an earlier test left in an error.
    return evaluate.load(str(METRIC), cache_dir=str(tmp_path))


def test_one_bit_per_byte_scores_one(bits_per_byte: evaluate.Metric) -> None:
    result = bits_per_byte.compute(predictions=[-8 * math.log(2)], references=["8 bytes!"])
    assert result == pytest.approx({"bits_per_byte": 1.0, "byte_perplexity": 2.0}, rel=1e-15)


def test_equally_likely_bytes_take_eight_bits_each(bits_per_byte: evaluate.Metric) -> None:
    result = bits_per_byte.compute(predictions=[3 * math.log(1 / 256)], references=["abc"])
    assert result == pytest.approx({"bits_per_byte": 8.0, "byte_perplexity": 256.0})


def test_characters_of_several_bytes_count_as_their_utf8_bytes(bits_per_byte: evaluate.Metric) -> None:
    # 1 + 2 + 3 + 4 bytes, and one of NUL.
    result = bits_per_byte.compute(predictions=[-11 * math.log(2)], references=["aé€😀\0"])
    assert result["bits_per_byte"] == pytest.approx(1.0)


def test_sums_are_pooled_and_not_ratios_averaged(bits_per_byte: evaluate.Metric) -> None:
    # 1 bit for 1 byte and 27 bits for 9: 28 / 10 pooled, where the mean of the ratios is (1 + 3) / 2 = 2.
    result = bits_per_byte.compute(predictions=[-math.log(2), -27 * math.log(2)], references=["a", "123456789"])
    assert result["bits_per_byte"] == pytest.approx(2.8)


def test_an_empty_text_among_others_adds_its_log_likelihood_and_no_bytes(bits_per_byte: evaluate.Metric) -> None:
    result = bits_per_byte.compute(predictions=[0.0, -4 * math.log(2)], references=["", "ab"])
    assert result["bits_per_byte"] == pytest.approx(2.0)


def test_a_certain_text_takes_no_bits(bits_per_byte: evaluate.Metric) -> None:
    result = bits_per_byte.compute(predictions=[0.0], references=["a"])
    assert result == {"bits_per_byte": 0.0, "byte_perplexity": 1.0}
    assert math.copysign(1, result["bits_per_byte"]) == 1


def test_log_likelihoods_keep_double_precision(bits_per_byte: evaluate.Metric) -> None:
    # 32-bit floats near 16 million are whole numbers: the quarter would be lost.
    result = bits_per_byte.compute(predictions=[-16777217.25], references=["a"])
    assert result["bits_per_byte"] == 16777217.25 / math.log(2)


def test_a_byte_perplexity_too_large_for_a_float_is_infinite(bits_per_byte: evaluate.Metric) -> None:
    result = bits_per_byte.compute(predictions=[-1000.0 * math.log(2)], references=["a"])
    assert result["bits_per_byte"] == pytest.approx(1000.0)
    bits_per_byte.add(prediction=-1000.0, reference="a")
    assert bits_per_byte.compute()["byte_perplexity"] == math.inf


def test_batches_and_single_rows_give_the_result_of_one_call(bits_per_byte: evaluate.Metric) -> None:
    log_likelihoods = [-3.5, -0.25, -7.0, -1.0]
    texts = ["über", "a", "drei mal", "€"]
    bits_per_byte.add_batch(predictions=log_likelihoods[:2], references=texts[:2])
    bits_per_byte.add(prediction=log_likelihoods[2], reference=texts[2])
    bits_per_byte.add_batch(predictions=log_likelihoods[3:], references=texts[3:])
    # 11.75 nats on 5 + 1 + 8 + 3 bytes.
    assert bits_per_byte.compute()["bits_per_byte"] == pytest.approx(11.75 / 17 / math.log(2))


def test_each_compute_starts_from_nothing(bits_per_byte: evaluate.Metric) -> None:
    bits_per_byte.compute(predictions=[-50.0], references=["first"])
    result = bits_per_byte.compute(predictions=[-2 * math.log(2)], references=["ab"])
    assert result["bits_per_byte"] == pytest.approx(1.0)


def test_two_metrics_at_once_do_not_mix(caches: None) -> None:
    before = evaluate.load(str(METRIC))
    after = evaluate.load(str(METRIC))
    before.add(prediction=-6 * math.log(2), reference="ab")
    after.add(prediction=-2 * math.log(2), reference="ab")
    before.add(prediction=-6 * math.log(2), reference="ab")
    assert after.compute()["bits_per_byte"] == pytest.approx(1.0)
    assert before.compute()["bits_per_byte"] == pytest.approx(3.0)


def test_combined_metrics_take_single_rows(caches: None) -> None:
    metrics = {"before": evaluate.load(str(METRIC)), "after": evaluate.load(str(METRIC))}
    combined = evaluate.combine(metrics)
    combined.add(prediction=-2 * math.log(2), reference="ab")
    result = combined.compute()
    assert result["before_bits_per_byte"] == result["after_bits_per_byte"] == pytest.approx(1.0)


def test_the_result_equals_that_of_lm_evaluation_harness(bits_per_byte: evaluate.Metric) -> None:
    from lm_eval.api.metrics import bits_per_byte as lm_eval_bits_per_byte
    from lm_eval.api.metrics import weighted_perplexity

    generator = random.Random(0)
    texts = ["plain", "naïve café", "日本語のテキスト", "🙂" * 7, "tabs\tand\nlines\n", ""]
    log_likelihoods = [-generator.uniform(0, 30) for _ in texts]
    items = [(value, len(text.encode("utf-8"))) for value, text in zip(log_likelihoods, texts, strict=True)]
    result = bits_per_byte.compute(predictions=log_likelihoods, references=texts)
    assert result["bits_per_byte"] == pytest.approx(lm_eval_bits_per_byte(items), rel=1e-12)
    assert result["byte_perplexity"] == pytest.approx(weighted_perplexity(items), rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e-9, None, "-8"])
def test_a_log_likelihood_that_is_positive_or_not_finite_is_an_error_that_names_the_row(
    bits_per_byte: evaluate.Metric, value: float | None
) -> None:
    with pytest.raises(ValueError, match=rf"log-likelihood of row 1 is {value}.*finite and never above 0"):
        bits_per_byte.compute(predictions=[-1.0, value], references=["a", "b"])


def test_a_lone_surrogate_is_an_error_that_names_the_row(bits_per_byte: evaluate.Metric) -> None:
    with pytest.raises(ValueError, match=r"text of row 1 has the lone surrogate '\\ud800' at character 2"):
        bits_per_byte.compute(predictions=[-1.0, -1.0], references=["a", "ab\ud800c"])


def test_rows_are_named_by_their_place_among_all_batches(bits_per_byte: evaluate.Metric) -> None:
    bits_per_byte.add_batch(predictions=[-1.0, -1.0], references=["a", "b"])
    bits_per_byte.add(prediction=-1.0, reference="c")
    with pytest.raises(ValueError, match="text of row 4"):
        bits_per_byte.add_batch(predictions=[-1.0, -1.0], references=["d", "\udfff"])


def test_a_refused_batch_leaves_what_was_added_before(bits_per_byte: evaluate.Metric) -> None:
    bits_per_byte.add_batch(predictions=[-2 * math.log(2)], references=["ab"])
    with pytest.raises(ValueError, match="row 2"):
        bits_per_byte.add_batch(predictions=[-9.0, math.nan], references=["a", "b"])
    assert bits_per_byte.compute()["bits_per_byte"] == pytest.approx(1.0)


def test_a_text_that_is_no_string_is_a_type_error(bits_per_byte: evaluate.Metric) -> None:
    with pytest.raises(TypeError, match="text of row 1 is of type `bytes`"):
        bits_per_byte.compute(predictions=[-1.0, -1.0], references=["a", b"b"])


def test_different_numbers_of_predictions_and_references_are_an_error(bits_per_byte: evaluate.Metric) -> None:
    with pytest.raises(ValueError, match=r"number of predictions \(1\) and references \(2\)"):
        bits_per_byte.compute(predictions=[-1.0], references=["a", "b"])


def test_missing_texts_are_an_error(bits_per_byte: evaluate.Metric) -> None:
    with pytest.raises(ValueError, match="both `predictions`.*and `references`"):
        bits_per_byte.compute(predictions=[-1.0])


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_texts_without_bytes_are_an_error_after_which_the_metric_still_works(
    bits_per_byte: evaluate.Metric, texts: list[str]
) -> None:
    with pytest.raises(ValueError, match=rf"rows: {len(texts)}\) hold no bytes"):
        bits_per_byte.compute(predictions=[-1.0] * len(texts), references=texts)
    result = bits_per_byte.compute(predictions=[-2 * math.log(2)], references=["ab"])
    assert result["bits_per_byte"] == pytest.approx(1.0)


def test_loading_and_computing_open_no_connection(caches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    metric = evaluate.load(str(METRIC))
    assert metric.name == "bits_per_byte"
    assert metric.compute(predictions=[-math.log(2)], references=["a"])["bits_per_byte"] == pytest.approx(1.0)


def test_the_docstring_examples_run(bits_per_byte: evaluate.Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    results = doctest.testmod(sys.modules[type(bits_per_byte).__module__])
    assert results.attempted > 0
    assert results.failed == 0


def test_help_on_compute_and_on_the_class_shows_the_arguments(bits_per_byte: evaluate.Metric) -> None:
    assert "predictions (`list[float]`)" in bits_per_byte.compute.__doc__
    assert "predictions (`list[float]`)" in type(bits_per_byte).__doc__
    assert "2305.18466" in bits_per_byte.citation


def test_the_file_imports_only_evaluate_datasets_and_the_standard_library() -> None:
    source = (METRIC / "bits_per_byte.py").read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {str(name).split(".")[0] for name in modules} - sys.stdlib_module_names == {"evaluate", "datasets"}
    # `evaluate` finds imports with a regular expression: one module a line, where a comment would be a URL.
    lines = [line for line in source.splitlines() if re.match("(import|from) ", line)]
    assert len(lines) == len(imports)
    assert not any(re.search("[,#(]", line) for line in lines)


def test_the_front_matter_is_that_of_a_gradio_space() -> None:
    data = SpaceCard.load(CARD).data
    assert (data.title, data.sdk) == ("Bits per Byte", "gradio")
    assert {"evaluate", "metric"} <= set(data.tags)
    assert (data.app_file or "app.py") == "app.py"
    assert (CARD.parent / "app.py").is_file()


def test_the_example_of_the_card_prints_its_numbers_beside_a_copy_of_the_folder_and_without_tttnn(
    tmp_path: Path,
) -> None:
    shutil.copytree(CARD.parent, tmp_path / "bits_per_byte")
    card = CARD.read_text(encoding="utf-8")
    example, output = re.findall(r"```python\n(.*?)```\n\nprints\n\n```text\n(.*?)```", card, flags=re.DOTALL)[0]
    script = f"{example}\nimport sys\nassert 'tttnn' not in sys.modules\n"
    run = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == output
    assert card.count("```python") == 1
