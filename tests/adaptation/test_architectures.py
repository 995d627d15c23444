"""Every class of transformers' causal mapping that a small config can build: right, or refused in a sentence."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXTS, GivenRetriever
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tttnn import TestTimeTrainer, TestTimeTrainingArguments
from tttnn.adaptation import ScoredText, score
from tttnn.adaptation.windows import encode, scoring_windows, split_document


KINDS = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind in CONFIG_MAPPING]
LENGTH = 16
DOCUMENT, NEIGHBORS = TEXTS[3] + TEXTS[4], [TEXTS[0], TEXTS[2]]

# What the configs of most architectures have, at a size that takes milliseconds.
SIZES = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "embed_dim", "emb_dim", "model_dim", "embedding_size"], 32),
    **dict.fromkeys(["word_embed_proj_dim", "attention_hidden_size", "lru_width"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"], 2),
    **dict.fromkeys(["num_key_value_heads", "encoder_attention_heads", "linear_num_key_heads"], 2),
    **dict.fromkeys(["linear_num_value_heads", "num_experts_per_tok", "moe_k", "expand"], 2),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_ff"], 48),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "head_dim", "d_kv"], 16),
    **dict.fromkeys(["q_lora_rank", "kv_lora_rank", "mamba_d_head", "sliding_window"], 16),
    **dict.fromkeys(["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "state_size", "mamba_d_state"], 8),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim", "window_size", "chunk_size", "rotary_dim"], 8),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "conv_kernel"], 4),
    **dict.fromkeys(["time_step_rank", "mamba_n_heads"], 4),
    **dict.fromkeys(["n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "encoder_layers"], 1),
    **dict.fromkeys(["mamba_n_groups", "n_groups"], 1),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions"], 64),
    **dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"], 0),
}
# Where that is not enough.
MORE = {
    "codegen": {"n_embd": 64, "n_head": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_embds": False,
        "local_attn_chunk_length": 8,
    },
    **{kind: {"head_dim": 8} for kind in ("axk1", "deepseek_v3", "longcat_flash", "youtu")},
}
# Kinds that see the future unless they are told that they decode.
TOLD = ["bert", "roberta", "xlm-roberta", "camembert", "electra", "big_bird", "megatron-bert", "roformer", "rembert"]
TOLD += ["data2vec-text", "ernie", "xlm-roberta-xl", "roberta-prelayernorm", "bert-generation", "roc_bert"]
DAILY = ["gpt2", "llama", "opt", "bloom", "mpt", "rwkv", "bart", "bert", "roberta", "mixtral", "gemma3", "mamba"]


def small_config(kind, vocab_size, **overrides):
    """A config of a kind with small sizes, those of the text model in a multimodal one too."""
    config_class = CONFIG_MAPPING[kind]
    default = config_class()

    def sizes_of(config):
        names = {**vars(config), **config.attribute_map}
        sizes = {name: value for name, value in {**SIZES, "vocab_size": vocab_size}.items() if name in names}
        is_settable = not isinstance(vars(type(config)).get("layer_types"), property)
        if names.get("layer_types") and is_settable:
            sizes["layer_types"] = [*dict.fromkeys(config.layer_types)][:2]
            sizes["num_hidden_layers"] = len(sizes["layer_types"])
        return sizes

    parts = {name: sizes_of(getattr(default, name)) for name in config_class.sub_configs if vars(default).get(name)}
    told = {"is_decoder": True} if kind in TOLD else {}
    return config_class(**{**sizes_of(default), **parts, **told, **MORE.get(kind, {}), **overrides})


def small_model(kind, vocab_size, **overrides):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(kind, vocab_size, **overrides))
    if sum(parameter.numel() for parameter in model.parameters()) > 20_000_000:
        pytest.skip("no size makes it small")
    return model.eval()


def nll_of(model, input_ids, target_ids):
    """One forward pass without anything of tttnn, in double precision after the logits."""
    with torch.no_grad():
        logits = model(torch.tensor([input_ids])).logits[0, -len(target_ids) :].double()
    return F.cross_entropy(logits, torch.tensor(target_ids), reduction="sum").item()


def check_prompt(model, tokenizer, trainer):
    """The score after a prompt, read part by part if the trainer found that it can be, is that of one pass."""
    ready = ScoredText.from_text(DOCUMENT[40:80], tokenizer, 60, DOCUMENT[:40])
    (window,) = ready.windows
    expected = nll_of(model, window.input_ids, ready.token_ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tttnn.adaptation.scoring.READ_LENGTH", 7)
        found = score(model, ready.windows, in_parts=trainer.reads_in_parts)
    assert found.total == pytest.approx(expected, rel=1e-4), "the score after a prompt is another"


def check(kind, tokenizer, tmp_path, **overrides):
    try:
        model = small_model(kind, len(tokenizer), **overrides)
    except Exception as error:
        pytest.skip(f"no small config builds it: {error!r:.150}")
    args = TestTimeTrainingArguments(
        output_dir=str(tmp_path),
        num_neighbors=2,
        max_length=LENGTH,
        prompt="none",
        learning_rate=1e-3,
        use_cpu=True,
        disable_tqdm=True,
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = {"processing_class": tokenizer, "retriever": GivenRetriever(NEIGHBORS)}
    try:
        trainer = TestTimeTrainer(model=model, args=args, **parts)
    except ValueError as error:
        return str(error)
    trainer.evaluate([DOCUMENT])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"`{name}` was not restored"
    (record,) = trainer.records
    model.eval()
    windows = scoring_windows(encode(tokenizer, split_document(tokenizer, DOCUMENT, "prefix")[1]), 0, LENGTH)
    expected = math.fsum(nll_of(model, window.input_ids, window.target_ids) for window in windows)
    assert record.nll[0] == pytest.approx(expected, rel=1e-5)
    assert record.nll[1] != record.nll[0]
    check_prompt(model, tokenizer, trainer)
    chunk = encode(tokenizer, NEIGHBORS[0])[:LENGTH]
    shifted = nll_of(model, chunk[:-1], chunk[1:]) / (len(chunk) - 1)
    assert record.train_loss[0] == pytest.approx(shifted, rel=1e-4), "the loss is not that of the next token"
    return None


@pytest.mark.parametrize("kind", DAILY)
def test_an_unlike_architecture_is_right(kind, tokenizer, tmp_path):
    assert check(kind, tokenizer, tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in DAILY])
def test_an_architecture_is_right_or_refused_in_a_sentence(kind, tokenizer, tmp_path):
    refusal = check(kind, tokenizer, tmp_path)
    assert refusal is None or refusal.startswith("The model is a ")


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "xlnet"])
def test_a_model_that_sees_the_answer_is_refused(kind, tokenizer, tmp_path):
    """As `AutoModelForCausalLM` gives it by default, without `is_decoder=True`."""
    refusal = check(kind, tokenizer, tmp_path, **({} if kind == "xlnet" else {"is_decoder": False}))
    assert "sees the tokens that it is to predict" in refusal
    assert "`is_decoder=True`" in refusal


def test_an_encoder_decoder_is_refused(tokenizer, tmp_path):
    from transformers import BartForConditionalGeneration

    config = small_config("bart", len(tokenizer), is_encoder_decoder=True)
    args = TestTimeTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="BartForConditionalGeneration, an encoder-decoder"):
        TestTimeTrainer(BartForConditionalGeneration(config), args, processing_class=tokenizer)


def test_a_model_without_a_head_is_refused(tiny_models, tokenizer, tmp_path):
    args = TestTimeTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="has no head that predicts tokens. Load it with `AutoModelForCausalLM`"):
        TestTimeTrainer(tiny_models["gpt2"].transformer, args, processing_class=tokenizer)


@pytest.mark.parametrize("place", ["document", "query", "neighbor", "BOS"])
def test_a_token_that_was_added_to_the_tokenizer_only_is_refused(tiny_models, tokenizer, tmp_path, place):
    own = copy.deepcopy(tokenizer)
    number, size = own.add_tokens(["[NEW]"]), len(tokenizer)
    assert number == 1
    texts = {name: "The captain wrote in the log." for name in ("document", "query", "neighbor")}
    texts["document"] += " The [NEW] captain." if place == "document" else ""
    texts["query"] = ("[NEW] " if place == "query" else "") + texts["query"]
    texts["neighbor"] += " The [NEW] captain." if place == "neighbor" else ""
    query, scored = split_document(own, texts["query"] + texts["document"], "prefix")
    assert ("[NEW]" in query, "[NEW]" in scored) == (place == "query", place == "document")
    args = TestTimeTrainingArguments(str(tmp_path), use_cpu=True, max_length=16, prompt="none", train_on="both")
    if place == "BOS":
        own.bos_token = "[NEW]"
    message = rf"'\[NEW\]' is token {size} of the tokenizer, but the model's vocabulary has {size}. Call"
    with pytest.raises(ValueError, match=message):
        trainer = TestTimeTrainer(tiny_models["gpt2"], args, GivenRetriever([texts["neighbor"]]), processing_class=own)
        trainer.evaluate([texts["query"] + texts["document"]])


def test_a_vocabulary_smaller_than_that_of_the_tokenizer_is_refused(tokenizer, tmp_path):
    args = TestTimeTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="The tokenizer has .* tokens, but the model's vocabulary has 50"):
        TestTimeTrainer(small_model("gpt2", 50), args, processing_class=tokenizer)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("gpt2", 64), ("mpt", 64), ("roberta", 63), ("gemma3", 64), ("mamba", None)],
)
def test_the_context_of_an_architecture(kind, expected, tokenizer):
    """RoBERTa loses the positions up to that of its padding token, here one."""
    from tttnn.adaptation import context_length

    pad = {"pad_token_id": 0} if kind != "roberta" else {"pad_token_id": 1}
    model = small_model(kind, len(tokenizer), **pad)
    assert context_length(model) == (62 if kind == "roberta" else expected)


@pytest.mark.parametrize("kind", ["mamba", "rwkv"])
def test_neighbors_go_before_a_text_in_a_model_without_a_key_value_cache(kind, tokenizer, tmp_path):
    from tttnn.methods import Context, ContextArguments

    model = small_model(kind, len(tokenizer))
    args = TestTimeTrainingArguments(
        output_dir=str(tmp_path), num_neighbors=2, max_length=LENGTH, prompt="none", use_cpu=True, disable_tqdm=True
    )
    parts = {"processing_class": tokenizer, "retriever": GivenRetriever(NEIGHBORS)}
    trainer = TestTimeTrainer(model, args, method=Context(context=ContextArguments(20)), **parts)
    trainer.evaluate([DOCUMENT])
    chunks = [encode(tokenizer, text)[:LENGTH] for text in NEIGHBORS]
    context = [0, *chunks[1][: 20 - 1 - len(chunks[0]) - 1], 0, *chunks[0]]
    windows = scoring_windows(encode(tokenizer, split_document(tokenizer, DOCUMENT, "prefix")[1]), 0, LENGTH)
    model.eval()
    expected = 0.0
    for number, window in enumerate(windows):
        between = [0] if number else []
        expected += nll_of(model, [*context, *between, *window.input_ids], window.target_ids)
    assert trainer.records[0].nll[1] == pytest.approx(expected, rel=1e-4)


def test_every_kind_of_the_causal_mapping_is_tried():
    assert {*DAILY, *TOLD, *MORE} <= {*KINDS}
    assert len(KINDS) > 150
