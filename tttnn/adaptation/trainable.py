"""Which parameters are trained: all of them, some of the model's own, or those of a PEFT adapter."""

import warnings
from typing import Any

import torch
from transformers import PreTrainedModel

from tttnn.adaptation.options import TRAINABLE, TrainableArguments
from tttnn.adaptation.requirements import num_positions
from tttnn.errors import InputError


def make_trainable(model: PreTrainedModel, arguments: TrainableArguments, seed: int = 0) -> Any:  # noqa: ANN401
    """
    Freeze a model but for the parameters that a method trains.

    Args:
        model (`PreTrainedModel`):
            A causal language model without adapters; its flags `requires_grad` change.
        arguments (`TrainableArguments`):
            Which parameters.
        seed (`int`, *optional*, defaults to `0`):
            Of the adapter's initial weights.

    Returns:
        `PreTrainedModel` or `PeftModel`: the model, with a new adapter where PEFT is used.

    Raises:
        `ValueError`: If the model has no such parameter, or a prefix leaves no room for a text.
        `ImportError`: If PEFT is missing.
    """
    kind = arguments.trainable
    if kind == "full":
        return model
    if kind == "bias":
        chosen = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    elif kind == "last-layers":
        blocks = _blocks(model)
        if arguments.num_last_layers > len(blocks):
            raise InputError(
                f"`num_last_layers` is {arguments.num_last_layers}, and this {type(model).__name__} has {len(blocks)} "
                "blocks. Pass at most that."
            )
        chosen = [parameter for block in blocks[-arguments.num_last_layers :] for parameter in block.parameters()]
    else:
        return _with_adapter(model, arguments, seed)
    if not chosen:
        raise InputError(
            f"`trainable` is {kind!r}, but this {type(model).__name__} has no such parameter. Choose another of "
            f"{', '.join(name for name in TRAINABLE if name != kind)}."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in chosen:
        parameter.requires_grad_(True)
    return model


def _blocks(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Find the transformer blocks: the list of modules with as many as the config has layers, or else none."""
    number = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return list(next((module for module in lists if len(module) == number), []))


def _with_adapter(model: PreTrainedModel, arguments: TrainableArguments, seed: int) -> Any:  # noqa: ANN401
    try:
        import peft
    except ImportError:
        raise ImportError(
            f"`trainable={arguments.trainable!r}` needs PEFT. Install it: `pip install tttnn[peft]`."
        ) from None
    context = num_positions(model)
    if arguments.trainable == "prefix" and context is not None and arguments.num_virtual_tokens > context - 2:
        raise InputError(
            f"`num_virtual_tokens` is {arguments.num_virtual_tokens}, and the model reads {context} tokens: no two "
            f"are left for a text. Pass at most {context - 2}."
        )
    norms = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_norm(module)})
    rank = arguments.lora_rank
    configs: dict[str, peft.PeftConfig] = {
        "lora": peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"),
        "ia3": peft.IA3Config(task_type="CAUSAL_LM"),
        "layernorm": peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=norms),
        "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=arguments.num_virtual_tokens),
    }
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(seed)
        # of normalizations it warns that it does not know their types, which it copies and trains all the same
        warnings.filterwarnings("ignore", "Unsupported layer type")
        # of GPT-2's layers, which lie transposed, it warns that it has seen so
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
        adapted = peft.get_peft_model(model, configs[arguments.trainable])
    if arguments.trainable == "prefix":
        # not from random keys and values, which would disturb the model: from tokens that say nothing
        config = model.config.get_text_config()
        tokens = [token for token in (config.bos_token_id, config.eos_token_id, 0) if token is not None]
        input_ids = torch.full((1, arguments.num_virtual_tokens), tokens[0], device=model.device)
        with torch.no_grad(), adapted.disable_adapter():
            past = adapted.eval()(input_ids=input_ids, use_cache=True).past_key_values
        peft.initialize_kv_prefix_from_past_key_values(adapted, past_key_values=past)
    return adapted


def _is_norm(module: torch.nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))
