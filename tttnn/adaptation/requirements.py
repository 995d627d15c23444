"""What a model and its processes must be, checked before the first document."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.import_utils import is_peft_available

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.adaptation.text_checks import check_vocabulary, warn_of_dropped_text
from tttnn.adaptation.windows import prefix_token_id
from tttnn.errors import InputError, InputTypeError, StateError


logger = logging.get_logger(__name__)

PROBE_LENGTH = 16  # tokens
# Relative, by whether logits are in single precision: what a later token may change by rounding.
PROBE_TOLERANCE = {True: 1e-4, False: 2e-2}


def check_model(model: torch.nn.Module) -> None:
    """Make sure that a model can be adapted and restored; warn where adapting it would do little."""
    if not isinstance(model, torch.nn.Module):
        raise InputTypeError(
            f"`model` is {model!r:.100}, and a loaded model is needed. Pass "
            "`AutoModelForCausalLM.from_pretrained(..., dtype=torch.float32)`."
        )
    if isinstance(model, DistributedDataParallel | DataParallel):
        raise InputError(
            f"The model is wrapped in {type(model).__name__}, which keeps its copies equal; here each process adapts "
            "its own to its own documents. Pass `model.module`."
        )
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) != 1 or devices == ["meta"]:
        raise InputError(
            f"The model is spread over the devices {', '.join(devices)} (`device_map`), and must be whole on one. "
            "Load it without `device_map`."
        )
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if getattr(model, "is_quantized", False) and not (trainable and is_peft(model)):
        raise InputError(
            "The model is quantized, and quantized weights cannot be trained. Wrap it with PEFT adapters "
            "(`get_peft_model`), or load it without quantization."
        )
    if not trainable:
        raise InputError(
            "Every parameter of the model is frozen, so nothing can be adapted. Set `requires_grad` on some."
        )
    low = sorted({str(p.dtype) for p in trainable if p.dtype in (torch.bfloat16, torch.float16)})
    if low:
        logger.warning(
            f"The model is trained in {', '.join(low)}: at a small learning rate most updates round to nothing there. "
            "Load it with `dtype=torch.float32`, and set `bf16=True` for speed."
        )


def num_positions(model: torch.nn.Module) -> int | None:
    """Say how many positions a model has, virtual tokens included; `None` for a model without positions."""
    config = model.config.get_text_config()  # type: ignore[operator, union-attr]
    # the second is MPT's name for them, the third is Whisper's
    names = ("max_position_embeddings", "max_seq_len", "max_target_positions")
    positions = next((vars(config)[name] for name in names if name in vars(config)), None)
    if positions is None:
        positions = getattr(config, names[0], None)  # a class may map it to another name, as GPT-2's does
    # RoBERTa and models like it count from the padding token's id, and so lose the positions before it
    padded = [
        module.padding_idx
        for name, module in model.named_modules()
        if name.endswith("position_embeddings")
        and isinstance(module, torch.nn.Embedding)
        and module.padding_idx is not None
    ]
    if positions is None or positions < 1:  # XLNet says -1
        return None
    # ProphetNet, which predicts several tokens at once, embeds the position after the last token as well
    return cast(int, positions) - (padded[0] + 1 if padded else 0) - ("ngram" in vars(config))


def context_length(model: torch.nn.Module) -> int | None:
    """
    Say how many tokens a model reads at once.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.

    Returns:
        `int`: without the virtual tokens of prompt tuning; `None` for a model without positions.
    """
    context = num_positions(model)
    if context is not None and is_prompted(model):
        context -= cast(int, model.active_peft_config.num_virtual_tokens)  # type: ignore[union-attr]
    return context


def is_prompted(model: torch.nn.Module) -> bool:
    """Whether PEFT puts virtual tokens before what a model reads."""
    return is_peft(model) and bool(model.active_peft_config.is_prompt_learning)  # type: ignore[union-attr]


def check_reading(
    model: PreTrainedModel, processing_class: PreTrainedTokenizerBase, router_aux_loss: bool = False
) -> None:
    """Make sure, by two forward passes of a few tokens, that a model predicts each token from those before it."""
    kind = type(model.get_base_model() if is_peft(model) else model).__name__  # type: ignore[operator]
    if model.config.is_encoder_decoder:
        raise InputError(
            f"The model is a {kind}, an encoder-decoder: its encoder reads the whole text, the scored part included. "
            "Pass a decoder, a causal language model."
        )
    if router_aux_loss and "router_aux_loss_coef" not in model.config.get_text_config().to_dict():
        raise InputError(
            f"`router_aux_loss` is True, but the model, a {kind}, is no mixture of experts. Leave it out."
        )
    vocabulary = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if processing_class.vocab_size > vocabulary:
        raise InputError(
            f"The tokenizer has {processing_class.vocab_size} tokens, but the model's vocabulary has {vocabulary}. "
            "Pass the model's own tokenizer."
        )
    check_vocabulary(model, processing_class, [prefix_token_id(processing_class)])
    warn_of_dropped_text(processing_class)
    texts = probe_texts(model, processing_class)
    length = texts.shape[1]
    with evaluating(model):
        first, second = (_logits(model, text, kind) for text in texts[:, None])
    difference = (first - second)[:, :-1].abs().max() if length > 1 else torch.tensor(0.0)
    if difference > PROBE_TOLERANCE[first.dtype == torch.float32] * first.abs().max():
        raise InputError(
            f"The model is a {kind} and sees the tokens that it is to predict: a change of the last token changes "
            "what it says before. Pass a causal language model (for BERT and models like it: `is_decoder=True`, and "
            "weights that were trained so)."
        )


def hands_out_logits(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> bool:
    """
    Whether a model's logits are what its output layer gives, and nothing is done to them: no scale, cap or mask.

    The layer is a plain linear one, neither quantized nor with an adapter. In a forward pass it gives made-up values,
    from very small to very large, and the model must hand out these.
    """
    head, made_up = model.get_output_embeddings(), []

    def make_up(module: torch.nn.Module, args: object, logits: torch.Tensor) -> torch.Tensor:
        values = torch.linspace(-1e4, 1e4, logits.numel(), device=logits.device).view_as(logits).to(logits.dtype)
        made_up.append(values.clone())
        return values

    if type(head) is not torch.nn.Linear:
        return False
    handle = head.register_forward_hook(make_up)
    try:
        with evaluating(model):
            logits = model(input_ids=probe_texts(model, processing_class)[:1]).logits
    finally:
        handle.remove()
    return len(made_up) == 1 and torch.equal(logits.float(), made_up[0].float())


def longrope_limit(model: PreTrainedModel) -> int | None:
    """Say from how many tokens on a model reads a text with other positions (longrope); `None` if it never does."""
    config = vars(model.config.get_text_config())
    rope = config.get("rope_parameters") or {}
    for kind in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if kind.get("rope_type") == "longrope":
            return kind.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return None


def reads_in_parts(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> bool:
    """
    Whether a model reads a text part by part through a key-value cache as it reads it at once, by a probe.

    Mamba and RWKV have a state in its place, and PEFT puts its virtual tokens before every part. Where attention has a
    window, the cache drops what lies behind it, which Moshi without a cache still sees: too far for a probe. So is the
    length from which longrope has other positions.
    """
    config = vars(model.config.get_text_config())
    if any(config.get(name) is not None for name in ("sliding_window", "attention_chunk_size")):
        return False
    if longrope_limit(model) is not None:  # a part is read with the positions of its own length
        return False
    tokens = probe_texts(model, processing_class)[:1]
    length = tokens.shape[1]
    # every window begins with it; if it pads as well, RoBERTa counts positions in a later part otherwise
    tokens[0, 0] = prefix_token_id(processing_class)
    try:
        with evaluating(model):
            whole = model(input_ids=tokens).logits[:, -length:]
            first = model(input_ids=tokens[:, : length // 2], use_cache=True)
            past = first.get("past_key_values")
            if past is None:
                return False
            second = model(input_ids=tokens[:, length // 2 :], past_key_values=past, use_cache=True)
            parts = torch.cat([first.logits, second.logits], dim=1)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError, KeyError) as error:
        logger.info(f"The model is read at once, because it cannot be read in parts: {error!r:.300}")
        return False
    if parts.shape != whole.shape:
        return False
    return bool((parts - whole).abs().max() <= PROBE_TOLERANCE[whole.dtype == torch.float32] * whole.abs().max())


def probe_texts(model: PreTrainedModel, processing_class: PreTrainedTokenizerBase) -> torch.Tensor:
    """Make two texts of a few tokens, of shape `(2, tokens)`, that differ in the last."""
    length = min(PROBE_LENGTH, context_length(model) or PROBE_LENGTH)
    # XLM takes padding tokens for the end of the text, wherever they stand
    padding = {processing_class.pad_token_id, vars(model.config.get_text_config()).get("pad_token_id")}
    vocabulary = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    token_ids = [token_id for token_id in range(vocabulary) if token_id not in padding]
    text = [token_ids[7 * place % len(token_ids)] for place in range(length)]
    other = token_ids[(7 * (length - 1) + 1) % len(token_ids)]
    return torch.tensor([text, [*text[:-1], other]], device=model.device)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Put a model into eval mode inside, without gradients; each module has its mode of before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _logits(model: PreTrainedModel, tokens: torch.Tensor, kind: str) -> torch.Tensor:
    try:
        output = model(input_ids=tokens)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        raise InputError(
            f"The model is a {kind} and cannot read a text of {tokens.shape[1]} tokens alone ({error!r:.300}). Pass a "
            "causal language model that needs nothing but `input_ids`."
        ) from error
    if "logits" not in output:
        raise InputError(
            f"The model is a {kind}, which has no head that predicts tokens. Load it with `AutoModelForCausalLM`."
        )
    return output.logits


def check_precision(args: TestTimeTrainingArguments, has_autocast: bool) -> None:
    """Refuse mixed precision that the device does not have: numbers would be in float32, and named otherwise."""
    for name in ("fp16", "bf16"):
        if getattr(args, name) and not has_autocast:
            raise InputError(
                f"`{name}` is True, and there is no such mixed precision on {args.device.type}: the model would run "
                f"in float32. Leave it out{', or choose bf16' if name == 'fp16' else ''}."
            )


def check_lengths(max_length: int, window_length: int, stride: int | None, asked: int | None) -> None:
    """Make sure that chunks have a token to predict, that windows are those `asked` for, and leave no token out."""
    if max_length < 2:
        raise InputError(
            f"The model has room for {max_length} tokens beside its virtual ones, and two are the least of which one "
            "is predicted. Give its prompt fewer virtual tokens."
        )
    if asked is not None and asked > window_length:
        raise InputError(
            f"`window_length` is {asked}, and the model reads {window_length} tokens at once. Pass at most that, or "
            "leave it out."
        )
    if stride is not None and stride > window_length:
        raise InputError(
            f"`stride` is {stride}, but a window has {window_length} tokens, and some would never be scored. Pass a "
            "smaller stride."
        )


def check_adapters(model: torch.nn.Module, checkpoints_activations: bool) -> None:
    """Make sure that the adapters of a PEFT model can be trained."""
    if not is_peft(model):
        return
    from peft import PeftType
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(module, BaseTunerLayer) and module.merged for module in model.modules()):
        raise InputError(
            "An adapter of the model is merged into its weights, so that training it would change nothing. Call "
            "`model.unmerge_adapter()` first."
        )
    if checkpoints_activations and model.active_peft_config.peft_type == PeftType.PREFIX_TUNING:  # type: ignore[union-attr]
        raise InputError(
            "Prefix tuning keeps its prefix in the key-value cache, which activation checkpointing turns off. Leave "
            "out `activation_checkpointing`, or train other parameters."
        )


def is_peft(model: torch.nn.Module) -> bool:
    """Whether a model (`torch.nn.Module`) is wrapped by PEFT."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def check_processes(args: TestTimeTrainingArguments, sharded: bool) -> None:
    """Make sure that the processes that were launched found each other, and that the method allows several."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != args.world_size:
        raise StateError(
            f"The launcher set WORLD_SIZE={launched}, but {args.world_size} process takes part: each would score "
            "every document. Launch with `torchrun --nproc_per_node N` or `accelerate launch --multi_gpu "
            "--num_processes N`."
        )
    # accelerate sets the address of a process group only when asked for several processes, and on a CPU starts one
    if launched == 1 and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        logger.warning(
            "`accelerate launch` seems to have been asked for several processes, but one takes part and does every "
            "document. For several on CPUs launch with `torchrun --nproc_per_node N`."
        )
    if sharded:
        raise InputError(
            "The launcher set up FSDP or DeepSpeed, but each process adapts the whole model to its own documents. "
            "Launch without it."
        )
    if args.world_size > 1 and not args.reset_optimizer:
        raise InputError(
            f"`reset_optimizer` is False and {args.world_size} processes run, but a carried optimizer passes from "
            "each document to the next. Run one process, or reset the optimizer."
        )
