"""Bad input: a clear error that says what was given, what is true and what to do, or a result that counts it."""

import copy
import logging
import math
from types import SimpleNamespace

import datasets
import pytest
import torch
from conftest import GivenRetriever
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace, WhitespaceSplit
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainingArguments

from tttnn import Document, JournalCallback, TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation.requirements import check_processes
from tttnn.adaptation.text_checks import warn_of_dropped_text


NEIGHBORS = ["The white whale was seen.", "import json", "Let x be a rational number."]
DOCUMENT = "The captain saw the whale from the boat."


@pytest.fixture
def make(make_trainer):
    def make(texts=NEIGHBORS, **overrides):
        return make_trainer(**{"retriever": GivenRetriever(texts), **overrides})

    return make


@pytest.fixture
def build(model, tokenizer, tmp_path):
    """Make a trainer of parts that may be wrong."""

    def build(**parts):
        args = TestTimeTrainingArguments(str(tmp_path), use_cpu=True, disable_tqdm=True, max_length=32)
        parts = {"model": model, "args": args, "processing_class": tokenizer, **parts}
        return TestTimeTrainer(retriever=GivenRetriever(NEIGHBORS), **parts)

    return build


@pytest.fixture
def unchanged(model):
    """After the test the model is as it was before it."""
    before = copy.deepcopy(model.state_dict())
    yield
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# --- data sets ---


@pytest.mark.parametrize("dataset", [[], (), datasets.Dataset.from_dict({"text": []}), iter([])], ids=type)
@pytest.mark.parametrize("action", ["evaluate", "predict"])
def test_a_data_set_without_a_document_is_refused(make, dataset, action):
    with pytest.raises(ValueError, match=r"holds no document. Pass at least one"):
        getattr(make(), action)(dataset)


def test_mixed_precision_that_the_device_does_not_have_is_refused(make):
    with pytest.raises(ValueError, match="`fp16` is True, and there is no such mixed precision on cpu.*bf16"):
        make(fp16=True)


@pytest.mark.parametrize(
    ("dataset", "exclude", "is_warned"),
    [
        ([DOCUMENT], "id", True),
        ([{"text": DOCUMENT, "id": "a"}], "id", False),
        ([{"text": DOCUMENT, "source": "a"}], "source", False),
    ],
)
def test_excluding_by_ids_that_count_rows_is_warned_of(make, monkeypatch, dataset, exclude, is_warned):
    warnings = []
    monkeypatch.setattr("tttnn.adaptation.text_checks.logger.warning", warnings.append)
    make(exclude=exclude).evaluate(dataset)
    assert ["'row 0' count rows" in warning for warning in warnings] == [True] * is_warned


def test_a_tokenizer_that_drops_text_is_warned_of(tokenizer, monkeypatch):
    warnings = []
    monkeypatch.setattr("tttnn.adaptation.text_checks.logger.warning_once", warnings.append)
    warn_of_dropped_text(tokenizer)
    assert warnings == []
    words = Tokenizer(BPE({"a": 0, "b": 1}, []))  # nothing stands for other letters
    words.pre_tokenizer = Whitespace()
    warn_of_dropped_text(PreTrainedTokenizerFast(tokenizer_object=words))
    (warning,) = warnings
    assert "drops text (tried: z, 7, " in warning and "line breaks)" in warning


def test_a_schedule_that_lacks_what_it_needs_is_refused(make):
    with pytest.raises(ValueError, match="`lr_scheduler_type` is .*, and it cannot be made: .*min_lr"):
        make(lr_scheduler_type="cosine_with_min_lr").evaluate([DOCUMENT])


def test_an_evaluation_without_a_data_set_is_refused(make):
    with pytest.raises(ValueError, match=r"nothing to evaluate on. Pass `eval_dataset`"):
        make().evaluate()


@pytest.mark.parametrize(
    "dataset",
    [
        [{"text": "good"}, {"content": "x", "label": 1}],
        datasets.Dataset.from_dict({"content": ["x"], "label": [1]}),
    ],
    ids=["rows", "dataset"],
)
def test_a_missing_text_column_is_named_with_the_columns_there_are(make, dataset):
    retriever = GivenRetriever(NEIGHBORS)
    with pytest.raises(ValueError, match=r"row \d has no column `text`; its columns are \['content', 'label'\]"):
        make(retriever=retriever).evaluate(dataset)
    assert retriever.queries == [], "before the first document, not after hours"


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (None, "NoneType"),
        (3, "int"),
        (b"bytes", "bytes"),
        (["a"], "list"),
        ({"text": None}, "NoneType"),
        ({"text": 1.5}, "float"),
        ({"text": ["a", "b"]}, "list"),
        (Document("d", None), "NoneType"),
    ],
    ids=str,
)
def test_a_row_that_is_no_string_is_named_with_its_type(make, row, kind):
    retriever = GivenRetriever(NEIGHBORS)
    with pytest.raises(TypeError, match=rf"text of row 1 is {kind}, not a string. Convert or drop it"):
        make(retriever=retriever).evaluate(["good", row])
    assert retriever.queries == []


@pytest.mark.parametrize("action", ["evaluate", "predict"])
def test_one_text_in_the_place_of_a_data_set_is_refused(make, action):
    with pytest.raises(TypeError, match=r"one string was given. Put it into a list"):
        getattr(make(), action)(DOCUMENT)


def test_the_name_of_a_data_set_that_there_is_not_is_refused(make):
    with pytest.raises((KeyError, ValueError), match="poetry"):
        make(eval_dataset={"prose": [DOCUMENT]}).evaluate("poetry")


def test_a_data_set_without_rows_to_iterate_over_is_refused(make):
    with pytest.raises(TypeError):
        make().evaluate(3)


@pytest.mark.parametrize("row", ["a \ud800 b", {"text": "a \ud800 b"}, Document("d", "a \ud800 b")], ids=type)
def test_a_lone_surrogate_in_a_document_is_named_with_its_row_and_place(make, row):
    retriever = GivenRetriever(NEIGHBORS)
    message = r"text of row 1 holds the lone surrogate U\+D800 at character 2.*encode\('utf-8', 'replace'\)"
    with pytest.raises(ValueError, match=message):
        make(retriever=retriever).evaluate(["good", row])
    assert retriever.queries == []


def test_excluding_by_a_field_that_a_document_lacks_is_refused(make):
    retriever = GivenRetriever(NEIGHBORS)
    message = r"`exclude` is 'sauce', but document 'b' has no such field. Choose one of id, source"
    with pytest.raises(ValueError, match=message):
        make(retriever=retriever, exclude="sauce").evaluate(
            [{"text": DOCUMENT, "id": "a", "sauce": "x"}, {"text": DOCUMENT, "id": "b", "source": "x"}]
        )
    assert retriever.queries == []


# --- documents that are odd but legal ---


@pytest.mark.parametrize("query", ["prefix", "document"])
def test_empty_documents_are_counted_and_scored_as_they_can_be(make, query):
    trainer = make(query=query)
    metrics = trainer.evaluate(["", DOCUMENT])
    empty, full = trainer.records
    assert (empty.num_bytes, empty.num_words) == (0, 1)
    assert set(empty.nll) == {0.0}
    assert math.isnan(empty.bits_per_byte())
    assert metrics["eval_num_documents"] == 2
    assert metrics["eval_bits_per_byte"] == pytest.approx(full.nll[-1] / full.num_bytes / math.log(2))


def test_empty_documents_have_neighbors_of_the_real_retriever_and_a_progress_bar(make_trainer, capsys):
    trainer = make_trainer(disable_tqdm=False, callbacks=[JournalCallback()])
    trainer.evaluate(["", "  ", DOCUMENT])
    assert [len(record.neighbor_ids) for record in trainer.records] == [4, 4, 4]
    assert "3/3" in capsys.readouterr().err


def test_whitespace_is_scored_over_its_bytes(make, tokenizer):
    trainer = make(query="document")
    trainer.evaluate([" \n\t ", " "])
    assert [record.num_bytes for record in trainer.records] == [4, 1]
    # split at runs of white space, "" stands before and after
    assert [record.num_words for record in trainer.records] == [2, 2]
    assert all(score > 0 for record in trainer.records for score in record.nll)


@pytest.mark.parametrize("texts", [[""], ["", "", ""]])
def test_only_empty_documents_have_no_bits_per_byte(make, unchanged, texts):
    with pytest.raises(ValueError, match=rf"The {len(texts)} documents have no byte to score.*not empty"):
        make().evaluate(texts)


def words_only(words):
    """A tokenizer that knows whole words: white space is no token, though it has bytes."""
    vocabulary = {word: number for number, word in enumerate(["<eos>", "<unk>", *words])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>")


def test_bytes_that_the_tokenizer_drops_are_no_division_by_zero(make_trainer):
    trainer = make_trainer(retriever=GivenRetriever(["a b"]), processing_class=words_only("ab"), query="document")
    metrics = trainer.evaluate(["   "])
    assert metrics["eval_num_bytes"] == 3
    assert metrics["eval_bits_per_byte"] == 0.0
    assert math.isnan(metrics["eval_bits_per_byte_ratio"])


def test_a_document_of_one_token_has_an_empty_query(make, tokenizer):
    retriever = GivenRetriever(NEIGHBORS)
    trainer = make(retriever=retriever)
    assert len(tokenizer("e")["input_ids"]) == 1
    trainer.evaluate(["e"])
    assert retriever.queries == [""]
    assert trainer.records[0].num_bytes == 1


def test_nul_bytes_are_bytes(make, make_trainer):
    trainer = make(["neighbor \x00 with \x00"], query="document")
    metrics = trainer.evaluate(["\x00", "a\x00b\x00"])
    assert [record.num_bytes for record in trainer.records] == [1, 4]
    assert math.isfinite(metrics["eval_bits_per_byte"])
    make_trainer().evaluate(["a\x00b\x00" * 5])  # and the real retriever embeds them


def test_a_document_of_5_mb_is_scored_over_all_its_tokens(model, make_trainer):
    """By a model that gives every token the same probability: each costs the logarithm of the vocabulary."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    long_words = ["white" * 10, "whale" * 10]
    tokenizer = words_only(long_words)
    num_tokens = 100_000
    text = " ".join(long_words * (num_tokens // 2))
    assert len(text) == 51 * num_tokens - 1 >= 5_000_000
    retriever = GivenRetriever([long_words[0] * 2])
    settings = {"learning_rate": 0.0, "per_device_eval_batch_size": 64, "max_length": 64}
    trainer = make_trainer(retriever=retriever, processing_class=tokenizer, **settings)
    trainer.evaluate([text])
    query = 1024
    assert retriever.queries == [" ".join(long_words * (query // 2))]
    expected = (num_tokens - query) * math.log(model.config.vocab_size)
    assert trainer.records[0].nll == pytest.approx([expected, expected], rel=1e-6)
    # the scored text begins with the space after the query, before which the harness counts an empty word
    assert trainer.records[0].num_bytes == 51 * (num_tokens - query)
    assert trainer.records[0].num_words == num_tokens - query + 1


# --- neighbors ---


def test_a_lone_surrogate_in_a_neighbor_is_named_and_restores_the_model(make, unchanged):
    trainer = make(["good", "a \udfff"])
    with pytest.raises(ValueError, match=r"text of neighbor 1 holds the lone surrogate U\+DFFF at character 2"):
        trainer.evaluate([DOCUMENT])
    with pytest.raises(ValueError, match="text of neighbor 1"), trainer.adapt(DOCUMENT):
        pytest.fail("nothing was adapted")


@pytest.mark.parametrize("text", [None, 3, b"bytes"], ids=str)
def test_a_neighbor_that_is_no_string_is_named_and_restores_the_model(make, unchanged, text):
    trainer = make(["good", text])
    with pytest.raises(TypeError, match=rf"text of neighbor 1 is {type(text).__name__}, not a string"):
        trainer.evaluate([DOCUMENT])
    with pytest.raises(TypeError, match="text of neighbor 1"), trainer.adapt(DOCUMENT, neighbors=["good", text]):
        pytest.fail("nothing was adapted")


def test_one_text_in_the_place_of_neighbors_is_refused(make, unchanged):
    """A string is a sequence of strings: its characters would be trained on, one by one."""
    with pytest.raises(TypeError, match="list"), make().adapt(DOCUMENT, neighbors="The white whale"):
        pytest.fail("adapted to the characters")


@pytest.mark.parametrize("text", [None, 3, ["a text"]], ids=str)
def test_adapting_to_what_is_no_string_is_refused(make, text):
    with pytest.raises(TypeError, match=rf"`text` is {type(text).__name__}, not a string"), make().adapt(text):
        pytest.fail("nothing was adapted")


def test_adapting_to_a_lone_surrogate_is_refused(make):
    with pytest.raises(ValueError, match=r"`text` holds the lone surrogate U\+DC80"), make().adapt("\udc80"):
        pytest.fail("nothing was adapted")


def test_asking_an_index_for_more_neighbors_than_it_holds_is_refused(make_trainer, unchanged):
    trainer = make_trainer(num_neighbors=11, callbacks=[JournalCallback()])  # it holds 10
    with pytest.raises(ValueError, match=r"`top_k` is 11, but the index holds 10 documents. Pass .*at most 10"):
        trainer.evaluate([DOCUMENT])


def test_a_trainer_without_a_retriever_says_so(make):
    with pytest.raises(RuntimeError, match=r"no retriever. Pass (it )?`retriever="):
        make(retriever=None).evaluate([DOCUMENT])


# --- tokenizers and models ---


def bare(tokenizer, **special):
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, **special)


def test_a_tokenizer_without_bos_and_eos_is_refused(build, tokenizer):
    with pytest.raises(ValueError, match=r"neither a BOS nor an EOS token.*Set `tokenizer.bos_token`"):
        build(processing_class=bare(tokenizer))


def test_a_tokenizer_with_either_serves(build, tokenizer):
    scores = []
    for special in ({"bos_token": "<|endoftext|>"}, {"eos_token": "<|endoftext|>"}):
        trainer = build(processing_class=bare(tokenizer, **special))
        trainer.evaluate([DOCUMENT])
        scores.append(trainer.records[0].nll)
    assert scores[0] == scores[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_model_in_low_precision_warns_with_what_to_do(build, model, caplog, dtype):
    build(model=model.to(dtype))
    (warning,) = [record for record in caplog.records if record.name.startswith("tttnn")]
    assert warning.levelno == logging.WARNING
    assert f"trained in {dtype}" in warning.message
    assert "dtype=torch.float32" in warning.message


def test_a_model_in_single_precision_does_not_warn(build, caplog):
    build()
    assert [record for record in caplog.records if record.name.startswith("tttnn")] == []


def test_a_frozen_model_in_low_precision_under_adapters_in_single_does_not_warn(build, model, caplog):
    for parameter in model.to(torch.bfloat16).parameters():
        parameter.requires_grad = False
    model.adapter = torch.nn.Linear(1, 1)
    build(model=model)
    assert [record for record in caplog.records if record.name.startswith("tttnn")] == []


def test_a_model_in_bfloat16_is_evaluated_and_restored(make, model):
    model.to(torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    trainer = make(learning_rate=0.05)
    trainer.evaluate([DOCUMENT])
    first, last = trainer.records[0].nll
    assert first != last
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_wrapped_for_several_processes_is_refused(build, model, process_group):
    with pytest.raises(ValueError, match=r"wrapped in DistributedDataParallel.*Pass `model.module`"):
        build(model=DistributedDataParallel(model))


def test_a_model_wrapped_for_several_devices_is_refused(build, model):
    with pytest.raises(ValueError, match=r"wrapped in DataParallel.*Pass `model.module`"):
        build(model=DataParallel(model))


def test_a_model_spread_over_devices_is_refused(build, model):
    model.lm_head.to("meta")
    with pytest.raises(ValueError, match=r"spread over the devices cpu, meta.*without `device_map`"):
        build()


def test_a_model_without_weights_is_refused(build):
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ValueError, match=r"on the devices? meta|over the devices meta"):
        build(model=model)


def test_a_frozen_model_is_refused(build, model):
    for parameter in model.parameters():
        parameter.requires_grad = False
    with pytest.raises(ValueError, match=r"Every parameter of the model is frozen.*Set `requires_grad`"):
        build()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_quantized_model_is_refused_with_what_to_do(build, model, frozen):
    model.is_quantized = True
    for parameter in model.parameters():
        parameter.requires_grad = not frozen
    with pytest.raises(ValueError, match=r"quantized.*Wrap it with PEFT adapters.*or load it without quantization"):
        build()


def test_a_quantized_model_with_adapters_serves(model):
    from peft import LoraConfig, get_peft_model

    from tttnn.adaptation.requirements import check_model

    model.is_quantized = True
    check_model(get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)))


@pytest.mark.parametrize(
    "args", [TrainingArguments("out", use_cpu=True, report_to="none"), {"num_neighbors": 3}, "out"], ids=type
)
def test_arguments_of_another_class_are_refused(build, args):
    with pytest.raises(TypeError, match=rf"`args` are {type(args).__name__}. Pass `TestTimeTrainingArguments`"):
        build(args=args)


# --- processes ---


def launched(monkeypatch, world_size):
    """As if a launcher had set it; set in truth, it would have torch wait for the other processes."""
    monkeypatch.setattr("tttnn.adaptation.requirements.os", SimpleNamespace(environ={"WORLD_SIZE": str(world_size)}))


def test_a_world_of_two_with_one_process_is_refused(build, monkeypatch):
    """Two launched processes that did not find each other would each score every document."""
    launched(monkeypatch, 2)
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2, but 1 process takes part.*torchrun --nproc_per_node"):
        build()


def two_processes(monkeypatch, **settings):
    args = TestTimeTrainingArguments("out", use_cpu=True, **settings)
    launched(monkeypatch, 2)
    monkeypatch.setattr(TestTimeTrainingArguments, "world_size", 2)
    return args


def test_two_processes_serve(monkeypatch):
    check_processes(two_processes(monkeypatch), sharded=False)


def test_a_carried_optimizer_with_two_processes_is_refused(monkeypatch):
    args = two_processes(monkeypatch, reset_optimizer=False)
    with pytest.raises(ValueError, match=r"`reset_optimizer` is False and 2 processes run.*Run one process, or reset"):
        check_processes(args, sharded=False)


def test_sharded_models_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="FSDP or DeepSpeed.*without it"):
        check_processes(two_processes(monkeypatch), sharded=True)


def test_a_launcher_that_started_one_process_of_several_is_warned_of(make, monkeypatch, caplog):
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process that it starts."""
    logger = logging.getLogger("tttnn.adaptation.requirements")
    logger.addHandler(caplog.handler)
    try:
        make()
        assert "several processes" not in caplog.text
        for name, value in (("MASTER_ADDR", "127.0.0.1"), ("ACCELERATE_MIXED_PRECISION", "no")):
            monkeypatch.setenv(name, value)
        make()
        assert "one takes part and does every document" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("model", "gpt2", "`model` is 'gpt2', and a loaded model is needed"),
        ("processing_class", None, "`processing_class` is None, and the model's tokenizer is needed"),
        ("processing_class", "gpt2", "`processing_class` is 'gpt2', and the model's tokenizer is needed"),
    ],
)
def test_a_name_in_the_place_of_a_part_is_a_type_error_that_says_what_to_pass(make_trainer, part, value, message):
    with pytest.raises(TypeError, match=message):
        make_trainer(**{part: value})
