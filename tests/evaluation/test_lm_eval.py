"""The model type `tttnn` of lm-evaluation-harness: HFLM with `method=none`, and else adapted to each question."""

import copy
import json

import lm_eval
import pytest
import torch
from commands import write_rows
from conftest import TEXTS
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tttnn import NeighborRetriever, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.evaluation import TestTimeLM, harness_results, read_harness_run
from tttnn.evaluation.lm_eval_requests import halves, hash_of
from tttnn.methods import TrainableArguments, make_trainable
from tttnn.neighbors import PartialAnswer


TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {kind}
{more}
"""
CHOICES = """doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
"""
ROLLING = """doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
"""
OPTIONS = {"num_neighbors": 2, "neighbor_length": 32, "learning_rate": 0.05, "method": "ttt"}


def requests_of(kind, *arguments, doc_ids=None):
    return [
        Instance(kind, {"text": item[0]}, item, 0, ("task", doc_ids[place] if doc_ids else place, 1))
        for place, item in enumerate(arguments)
    ]


def numbers(answers):
    return [value for value, _ in answers]


def state(model):
    return copy.deepcopy(model.state_dict())


@pytest.fixture
def harness_model(model_folder, index_folder):
    """Make the model type of tiny parts."""

    def make(method="ttt", kind=TestTimeLM, **options):
        if kind is HFLM:
            return HFLM(str(model_folder), device="cpu", dtype="float32", **options)
        index = {"index": str(index_folder)} if method not in ("none", "prefix", "query") else {}
        defaults = dict(OPTIONS) if index else {}
        if method in ("context", "experts"):
            del defaults["learning_rate"]
        return TestTimeLM(str(model_folder), device="cpu", **{**defaults, **index, **options, "method": method})

    return make


QUESTIONS = [("The captain wrote", " in the log"), ("The captain wrote", " a song"), ("import json", "\nimport sys")]
PROMPTS = [("The captain", {"until": ["\n"], "max_gen_toks": 6}), ("import", {"until": ["x"], "max_gen_toks": 5})]
WHOLE = [(" ".join(TEXTS[:4]),), ("short",), ("",)]


def test_without_a_method_every_answer_is_that_of_hflm(harness_model):
    ours, theirs = harness_model("none"), harness_model(kind=HFLM)
    for kind, arguments in [
        ("loglikelihood", [*QUESTIONS, ("", "alone")]),
        ("loglikelihood_rolling", WHOLE[:2]),
        ("generate_until", PROMPTS),
    ]:
        requests = requests_of(kind, *arguments)
        assert getattr(ours, kind)(requests) == getattr(theirs, kind)(requests)


def test_answers_are_those_of_hflm_on_the_adapted_model(harness_model, model_folder, index_folder):
    """Adapted by the trainer's own door, and scored by HFLM."""
    ours, theirs = harness_model(), harness_model(kind=HFLM)
    args = TestTimeTrainingArguments(num_neighbors=2, max_length=32, learning_rate=0.05, use_cpu=True)
    retriever = NeighborRetriever.from_pretrained(index_folder)
    trainer = TestTimeTrainer(theirs.model, args, retriever, processing_class=theirs.tokenizer)
    requests = requests_of("loglikelihood", *QUESTIONS, doc_ids=[0, 0, 1])
    before = [value for value, _ in theirs.loglikelihood(requests)]
    with trainer.adapt("The captain wrote"):
        expected = [value for value, _ in theirs.loglikelihood(requests[:2])]
    with trainer.adapt("import json"):
        expected += [value for value, _ in theirs.loglikelihood(requests[2:])]
    assert [value for value, _ in ours.loglikelihood(requests)] == pytest.approx(expected, abs=1e-5)
    assert expected != pytest.approx(before, abs=1e-2), "or the test shows nothing"


def test_generated_text_is_that_of_the_adapted_model(harness_model, index_folder):
    ours, theirs = harness_model(), harness_model(kind=HFLM)
    args = TestTimeTrainingArguments(num_neighbors=2, max_length=32, learning_rate=0.05, use_cpu=True)
    retriever = NeighborRetriever.from_pretrained(index_folder)
    trainer = TestTimeTrainer(theirs.model, args, retriever, processing_class=theirs.tokenizer)
    requests = requests_of("generate_until", PROMPTS[0])
    before = theirs.generate_until(requests)
    with trainer.adapt("The captain"):
        expected = theirs.generate_until(requests)
    assert ours.generate_until(requests) == expected
    assert before != expected, "or the test shows nothing"


def test_the_choices_of_a_question_share_one_adaptation(harness_model):
    model = harness_model()
    model.loglikelihood(requests_of("loglikelihood", *QUESTIONS, doc_ids=[0, 0, 1]))
    assert model.counts["adapted"] == 2


def test_the_model_is_as_before_after_every_request_type(harness_model):
    model = harness_model()
    before = state(model.model)
    model.loglikelihood(requests_of("loglikelihood", *QUESTIONS))
    model.loglikelihood_rolling(requests_of("loglikelihood_rolling", *WHOLE[:2]))
    model.generate_until(requests_of("generate_until", *PROMPTS))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())


def test_choices_in_the_context_are_no_part_of_the_query(harness_model):
    """As in WinoGrande: the option stands in the context, and the continuation is the same."""
    model = harness_model()
    pairs = [("The crew saw the whale", " at dawn"), ("The crew saw the captain", " at dawn")]
    together = model.loglikelihood(requests_of("loglikelihood", *pairs, doc_ids=[0, 0]))
    assert model.counts["adapted"] == 1
    with model.trainer.adapt("The crew saw the "):
        expected = HFLM.loglikelihood(model, requests_of("loglikelihood", *pairs))
    assert numbers(together) == pytest.approx(numbers(expected), abs=1e-5)


def test_a_choice_without_its_question_has_the_adaptation_of_the_question(harness_model):
    """`acc_mutual_info` scores each choice with an empty context too."""
    model = harness_model()
    pairs = [("The captain wrote", " a song"), ("", " a song")]
    answers = model.loglikelihood(requests_of("loglikelihood", *pairs, doc_ids=[0, 0]))
    with model.trainer.adapt("The captain wrote"):
        expected = HFLM.loglikelihood(model, requests_of("loglikelihood", *pairs))
    assert numbers(answers) == pytest.approx(numbers(expected), abs=1e-5)


def test_without_a_context_the_model_answers_as_it_is(harness_model):
    model, plain = harness_model(), harness_model(kind=HFLM)
    requests = requests_of("loglikelihood", ("", "The captain"), ("", "The whale"), doc_ids=[0, 0])
    assert numbers(model.loglikelihood(requests)) == pytest.approx(numbers(plain.loglikelihood(requests)), abs=1e-5)
    assert model.counts["without_query"] == 1


@pytest.mark.parametrize("place", [0, 1])
def test_the_first_half_of_a_rolling_text_is_scored_before_it_is_adapted_to(harness_model, place):
    """Worked by hand: the halves are two continuations, the second after the first."""
    model, plain = harness_model(), harness_model(kind=HFLM)
    text = (TEXTS[2], " ".join(TEXTS[2:4]))[place]
    token_ids = plain.tok_encode(text)
    assert (len(token_ids) > model.max_length) == bool(place), "one window, or two"
    half = len(token_ids) // 2
    # the windows of the harness, of 64 tokens each; the last one is filled from before
    windows = [([0], token_ids[:64])]
    if place:
        windows.append((token_ids[len(token_ids) - 65 : 64], token_ids[64:]))
    before = [(None, windows[0][0], windows[0][1][:half])]
    after = [(None, [*windows[0][0], *windows[0][1][:half]], windows[0][1][half:])]
    if place:
        assert 64 < len(token_ids) <= 128
        assert half < 64
        after.append((None, *windows[1]))
    expected = sum(value for value, _ in plain._loglikelihood_tokens(before))
    with model.trainer.adapt(plain.tok_decode(token_ids[:half])):
        expected += sum(value for value, _ in HFLM._loglikelihood_tokens(model, after))
    answer = model.loglikelihood_rolling(requests_of("loglikelihood_rolling", (text,)))
    assert answer == pytest.approx([expected], abs=1e-4)
    unadapted = plain.loglikelihood_rolling(requests_of("loglikelihood_rolling", (text,)))
    assert answer != pytest.approx(unadapted, abs=1e-2), "or the test shows nothing"


def test_a_rolling_score_depends_on_earlier_text_only(harness_model):
    """Flip the last token: what is scored before it, in both halves, stays."""
    model = harness_model()
    texts = ["The whale was seen by the crew a", "The whale was seen by the crew b"]
    rolls = [model.tok_encode(text) for text in texts]
    assert len(rolls[0]) == len(rolls[1])
    assert rolls[0][:-1] == rolls[1][:-1]
    seen = []
    original = model._loglikelihood_tokens

    def spy(requests, **options):
        answers = original(requests, **options)
        seen.append((requests, answers))
        return answers

    model._loglikelihood_tokens = spy
    for text in texts:
        model.loglikelihood_rolling(requests_of("loglikelihood_rolling", (text,)))
    (first, score), (second, _), (third, other), (fourth, _) = seen
    assert first == third
    assert score == other
    halves = [part[0][2] for part in (second, fourth)]
    assert halves[0][:-1] == halves[1][:-1] and halves[0] != halves[1]


def test_rolling_without_adapting_and_with_the_whole_text_as_query(harness_model):
    plain = harness_model(kind=HFLM)
    requests = requests_of("loglikelihood_rolling", WHOLE[0])
    unadapted = plain.loglikelihood_rolling(requests)
    assert harness_model(rolling="none").loglikelihood_rolling(requests) == pytest.approx(unadapted, abs=1e-5)
    model = harness_model(rolling="document")
    with model.trainer.adapt(WHOLE[0][0]):
        expected = HFLM.loglikelihood_rolling(model, requests)
    assert model.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("rolling", "text"),
    [("prefix", "naïve café 東京 " * 20), ("document", "naïve café 東京 " * 20), ("prefix", "a b " * 200)],
    ids=["words in two parts", "words", "letters in two parts"],
)
def test_a_text_that_repeats_itself_is_scored_as_hflm_does(harness_model, rolling, text):
    """Windows that overlap have the same tokens, and predict others of them."""
    ours, theirs = harness_model(rolling=rolling, learning_rate=1e-14, weight_decay=0.0), harness_model(kind=HFLM)
    requests = requests_of("loglikelihood_rolling", (text,))
    (expected,) = theirs.loglikelihood_rolling(requests)
    if rolling == "prefix":  # in two parts, whose windows are others
        token_ids = theirs.tok_encode(text)
        windows = [*sum(halves(token_ids, len(token_ids) // 2, theirs.prefix_token_id, theirs.max_length), [])]
        expected = sum(theirs._loglikelihood_tokens([window], disable_tqdm=True)[0][0] for window in windows)
    assert ours.loglikelihood_rolling(requests) == pytest.approx([expected], abs=1e-3)


def test_neighbors_that_are_read_stand_before_the_context(harness_model, tokenizer):
    """By hand: prefix token, farther neighbor, prefix token, nearer one, prefix token, question."""
    model, plain = harness_model("context", num_neighbors=2, neighbor_length=8), harness_model(kind=HFLM)
    neighbors = model.trainer.retriever.retrieve(["The captain wrote"], 2)[0]
    laid = []
    for neighbor in reversed(neighbors):
        laid += [0, *tokenizer(neighbor.text)["input_ids"][:8]]
    context, continuation = tokenizer("The captain wrote")["input_ids"], tokenizer(" a song")["input_ids"]
    expected = plain._loglikelihood_tokens([(None, [*laid, 0, *context], continuation)])
    answer = model.loglikelihood(requests_of("loglikelihood", ("The captain wrote", " a song")))
    assert numbers(answer) == pytest.approx(numbers(expected), abs=1e-5)
    prompt = requests_of("generate_until", ("The captain wrote", {"until": ["\n\n"], "max_gen_toks": 6}))
    inputs = torch.tensor([[*laid, 0, *context]])
    output = plain.model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=6, do_sample=False)
    assert model.generate_until(prompt) == [tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True)]


def test_adapters_are_off_where_nothing_is_adapted(harness_model):
    model, plain = harness_model(trainable="prefix", num_virtual_tokens=4), harness_model(kind=HFLM)
    requests = requests_of("loglikelihood", ("", "The captain"))
    assert numbers(model.loglikelihood(requests)) == pytest.approx(numbers(plain.loglikelihood(requests)), abs=1e-5)


def test_lora_answers_are_those_of_the_trainer(harness_model, index_folder):
    model, plain = harness_model(trainable="lora", lora_rank=2), harness_model(kind=HFLM)
    args = TestTimeTrainingArguments(num_neighbors=2, max_length=32, learning_rate=0.05, use_cpu=True)
    wrapped = make_trainable(plain.model, TrainableArguments("lora", lora_rank=2), args.seed)
    retriever = NeighborRetriever.from_pretrained(index_folder)
    trainer = TestTimeTrainer(wrapped, args, retriever, processing_class=plain.tokenizer)
    plain._model = wrapped
    requests = requests_of("loglikelihood", QUESTIONS[0])
    with trainer.adapt("The captain wrote"):
        expected = plain.loglikelihood(requests)
    assert numbers(model.loglikelihood(requests)) == pytest.approx(numbers(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_neighbours": 3}, "num-neighbours"),
        ({"rolling": "half"}, "`rolling` is 'half'"),
        ({"mix": "both"}, "`mix` is 'both'"),
        ({"method": "knn-lm"}, "'knn-lm', which changes scores"),
        ({"num_neighbors": -1}, "num_neighbors"),
        ({"method": "nothing"}, "An option of `--model_args` cannot be read"),
        (
            {"method": "none", **dict.fromkeys(OPTIONS.keys() - {"method"})},
            "'--index' is no option of the method none",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(model_folder, index_folder, options, message):
    whole = {**OPTIONS, "index": str(index_folder), **options}
    if options.get("method") == "knn-lm":
        del whole["learning_rate"]
    with pytest.raises(ValueError, match=message):
        TestTimeLM(str(model_folder), device="cpu", **whole)


def test_reading_is_refused_for_rolling_texts(harness_model):
    model = harness_model("context", num_neighbors=2)
    with pytest.raises(ValueError, match="'context' reads its neighbors"):
        model.loglikelihood_rolling(requests_of("loglikelihood_rolling", WHOLE[0]))


def test_several_processes_are_refused(harness_model, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="Start one process"):
        harness_model()


@pytest.fixture
def tasks(tmp_path):
    """Two tasks with local data; one question stands in the corpus word for word."""
    questions = [
        {"question": TEXTS[2], "choices": [" yes", " no"], "answer": 0},
        {"question": "The captain wrote", "choices": [" a song", " in the log"], "answer": 1},
        {"question": "import json", "choices": ["\nimport sys", " whale"], "answer": 0},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions))
    texts = write_rows(tmp_path / "texts.jsonl", ["The whale, the white whale.", "Let x be a number."])
    folder = tmp_path / "tasks"
    folder.mkdir()
    task = TASK.format(name="questions", data=path, kind="multiple_choice", more=CHOICES)
    (folder / "questions.yaml").write_text(task)
    (folder / "texts.yaml").write_text(
        TASK.format(name="texts", data=texts, kind="loglikelihood_rolling", more=ROLLING)
    )
    return folder


def evaluate(model, tasks, **options):
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate(model, tasks=["questions", "texts"], task_manager=manager, **options)


def test_near_copies_of_items_are_reported(harness_model, tasks):
    results = evaluate(harness_model(), tasks)
    info = results["config"]["tttnn"]
    copied = [sample["doc_hash"] for sample in results["samples"]["questions"] if sample["doc_id"] == 0]
    assert info["near_copies"] == {"questions": copied}
    assert info["counts"]["adapted"] == 5
    assert info["settings"]["num_neighbors"] == 2


def test_items_answered_without_some_shards_are_named(harness_model, monkeypatch):
    model = harness_model()
    find = model.trainer.retriever.retrieve
    monkeypatch.setattr(
        model.trainer.retriever, "retrieve", lambda *args, **options: PartialAnswer(find(*args, **options), [1])
    )
    (request,) = requests_of("loglikelihood", ("The captain wrote", " a song"))
    model.loglikelihood([request])
    assert model.get_model_info()["tttnn"]["partial"] == {"task": [hash_of(request.doc)]}


def test_a_cache_of_answers_is_resumed_and_one_of_other_settings_refused(harness_model, tasks, tmp_path):
    path = str(tmp_path / "answers")
    first = evaluate(harness_model(), tasks, use_cache=path)
    again = harness_model()
    second = evaluate(again, tasks, use_cache=path)
    assert first["results"] == second["results"]
    assert not again.counts, "every answer was in the cache"
    assert first["config"]["tttnn"]["near_copies"], "or the next line says nothing"
    assert second["config"]["tttnn"]["near_copies"] == first["config"]["tttnn"]["near_copies"]
    with pytest.raises(ValueError, match="other settings"):
        evaluate(harness_model(num_neighbors=1), tasks, use_cache=path)
    plain = str(tmp_path / "plain")
    evaluate(harness_model(kind=HFLM), tasks, use_cache=plain)
    with pytest.raises(ValueError, match="another model"):
        evaluate(harness_model(), tasks, use_cache=plain)
    evaluate(harness_model("none"), tasks, use_cache=plain)  # the answers are the same


@pytest.mark.parametrize("change", ["weights", "tokenizer"])
def test_a_cache_of_another_model_at_the_same_place_is_refused(
    harness_model, model_folder, tasks, tmp_path, monkeypatch, change
):
    evaluate(harness_model("none"), tasks, use_cache=str(tmp_path / "answers"))
    other = harness_model("none")
    if change == "weights":
        next(other.model.parameters()).data += 1.0
    else:
        other.tokenizer.add_tokens(["captain"])
    with pytest.raises(ValueError, match="another model"):
        evaluate(other, tasks, use_cache=str(tmp_path / "answers"))


@pytest.mark.parametrize("options", [{"add_bos_token": True}, {"dtype": "bfloat16"}, {"prefix_token_id": 7}])
@pytest.mark.parametrize("method", ["none", "ttt"])
def test_a_cache_of_another_way_to_load_the_model_is_refused(harness_model, tasks, tmp_path, method, options):
    evaluate(harness_model(method), tasks, use_cache=str(tmp_path / "answers"))
    with pytest.raises(ValueError, match="other settings"):
        evaluate(harness_model(method, **options), tasks, use_cache=str(tmp_path / "answers"))


def test_a_cache_is_refused_where_answers_depend_on_other_choices(harness_model, tmp_path):
    from lm_eval.api.model import CachingLM

    cached = CachingLM(harness_model(), str(tmp_path / "answers.db"))
    pairs = [("The crew saw the whale", " at dawn"), ("The crew saw the captain", " at dawn")]
    with pytest.raises(ValueError, match="--use_cache"):
        cached.loglikelihood(requests_of("loglikelihood", *pairs, doc_ids=[0, 0]))


# the files of the harness


def write_run(folder, values, near_copies=(), metric="acc", aggregation="mean", total=None):
    """What the harness writes, by hand."""
    folder.mkdir()
    mean = sum(values) / len(values) if total is None else total
    config = {"metric_list": [{"metric": metric, "aggregation": aggregation}]}
    content = {
        "results": {"task": {f"{metric},none": mean}},
        "configs": {"task": config},
        "config": {"tttnn": {"near_copies": {"task": list(near_copies)}}},
    }
    (folder / "results_2026-01-01.json").write_text(json.dumps(content))
    rows = [
        {"doc_hash": f"h{place}", "filter": "none", "metrics": [metric], metric: value}
        for place, value in enumerate(values)
    ]
    (folder / "samples_task_2026-01-01.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_run_is_shown_without_near_copies(tmp_path):
    run = read_harness_run(write_run(tmp_path / "run", [1, 0, 1, 1], near_copies=["h0", "h1"]))
    (result,) = harness_results(run)
    assert (result.num_items, result.value) == (4, 0.75)
    assert result.without_near_copies.num_items == 2
    assert result.without_near_copies.value == 1.0
    assert result.without_near_copies.interval == (1.0, 1.0), "both items are 1"


def test_a_difference_is_paired_by_item(tmp_path):
    """Each item gains exactly 0.5, so every draw does, however the values spread."""
    base = read_harness_run(write_run(tmp_path / "base", [0, 10, 20]))
    run = read_harness_run(write_run(tmp_path / "run", [0.5, 10.5, 20.5]))
    (result,) = harness_results(run, base)
    assert result.interval == pytest.approx((0.5, 0.5))
    assert (result.baseline, result.value) == (10, 10.5)


def test_sums_of_a_rolling_metric_are_pooled(tmp_path):
    """1 bit a byte is a log-likelihood of -8 ln 2 on 8 bytes; pooled with 0 bits on 8 more, it is half a bit."""
    values = [[-8 * 0.6931471805599453, 8], [0.0, 8]]
    run = read_harness_run(write_run(tmp_path / "run", values, metric="bits_per_byte", aggregation="x", total=0.5))
    (result,) = harness_results(run)
    assert result.value == pytest.approx(0.5)
    assert result.interval == pytest.approx((0.0, 1.0)), "one of the two twice"


def test_other_items_are_refused(tmp_path):
    base = read_harness_run(write_run(tmp_path / "base", [0, 1]))
    run = read_harness_run(write_run(tmp_path / "run", [0, 1, 1]))
    with pytest.raises(ValueError, match="other items of task: 3 and 2, of which 2 are the same"):
        harness_results(run, base)


def test_samples_of_another_run_are_refused(tmp_path):
    folder = write_run(tmp_path / "run", [0, 1], total=0.9)
    with pytest.raises(ValueError, match="they are of two runs"):
        read_harness_run(folder)


def test_a_folder_without_results_or_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        read_harness_run(tmp_path)
    folder = write_run(tmp_path / "run", [0, 1])
    (folder / "samples_task_2026-01-01.jsonl").unlink()
    with pytest.raises(ValueError, match="--log_samples"):
        read_harness_run(folder)
