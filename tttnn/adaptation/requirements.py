"""What a model and its processes must be, checked before the first document."""

import os
from typing import cast

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers.utils import logging
from transformers.utils.import_utils import is_peft_available

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.errors import InputError, InputTypeError, StateError


logger = logging.get_logger(__name__)


def check_model(model: torch.nn.Module) -> None:
    """
    Make sure that a model can be adapted and restored; warn where adapting it would do little.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.

    Raises:
        `TypeError`: If it is no model, a name say.
        `ValueError`: If it is wrapped for several devices, spread over them, quantized without adapters, or frozen.
    """
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
    """
    Say how many positions a model has, virtual tokens included.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model.

    Returns:
        `int`: `None` for a model without positions.
    """
    return cast("int | None", getattr(model.config, "max_position_embeddings", None))  # which its config then lacks


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
    if context is not None and is_peft(model) and model.active_peft_config.is_prompt_learning:  # type: ignore[union-attr]
        context -= cast(int, model.active_peft_config.num_virtual_tokens)  # type: ignore[union-attr]
    return context


def is_peft(model: torch.nn.Module) -> bool:
    """Whether a model (`torch.nn.Module`) is wrapped by PEFT."""
    if not is_peft_available():
        return False
    from peft import PeftModel

    return isinstance(model, PeftModel)


def check_processes(args: TestTimeTrainingArguments, sharded: bool) -> None:
    """
    Make sure that the processes of this run are those that were launched, and that the method allows several.

    Args:
        args (`TestTimeTrainingArguments`):
            The trainer's arguments.
        sharded (`bool`):
            Whether the launcher set up FSDP or DeepSpeed.

    Raises:
        `RuntimeError`: If the launcher named more processes than found each other.
        `ValueError`: If the model would be sharded, or a carried optimizer meets several processes.
    """
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
