"""In which precision a model is run, if that is left open: bf16 where it is faster and scores alike, else float32."""

import statistics
from itertools import cycle, islice
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from tttnn.adaptation import internals
from tttnn.adaptation.head import head_loss, last_row_only
from tttnn.adaptation.requirements import context_length, evaluating, hands_out_logits
from tttnn.adaptation.restore import restored
from tttnn.adaptation.scoring import next_token_loss
from tttnn.adaptation.windows import encode, prefix_token_id


if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tttnn.adaptation.arguments import TestTimeTrainingArguments


MIN_PARAMETERS = 20_000_000  # of a model that is probed: a smaller one gains little, and its times say little
TIMED_LENGTH = 128  # tokens of a timed step; casting the weights takes a larger share of a shorter one
PAIRS = 3
MIN_GAIN = 1.1  # in speed, for which results may differ in their last digits
HOPELESS = 3.0  # times as slow in the first pair, as on a CPU that only emulates bf16
SCORED_LENGTH = 512  # tokens of the document
SCORED_CHARACTERS = 10_000  # of it that are tokenized
# Relative, of the score of a document. With SmolLM2-135M-Instruct the scores of 18 texts (two of each domain of
# docs/results.md, at most 512 tokens) changed by at most 1.6e-3, by 5.6e-4 in the mean, in both directions.
TOLERANCE = 5e-3


class PrecisionChoice(NamedTuple):
    """
    What `choose_precision` chose.

    Args:
        precision (`str`):
            `"float32"` or `"bf16"`, for `TestTimeTrainingArguments(precision=...)`.
        reason (`str`):
            What was chosen and why, in one line.
    """

    precision: str
    reason: str


class Probe(NamedTuple):
    """What is timed: a model, tokens, whether a step is taken, and the output layer that is computed by rows."""

    model: "PreTrainedModel"
    token_ids: list[int]
    trains: bool
    head: torch.nn.Linear | None


def choose_precision(
    model: "PreTrainedModel",
    processing_class: "PreTrainedTokenizerBase",
    args: "TestTimeTrainingArguments",
    text: str,
    *,
    trains: bool = True,
) -> PrecisionChoice:
    """
    Choose between float32 and bf16 autocast for a model on its device.

    bf16 is chosen if the device is able, a forward and backward pass of 128 tokens is at least 1.1 times as
    fast in it (the median of three pairs, in turns), and the score of a text changes by at most 0.5 %. The model is
    left as it was, but for its gradients, which are dropped as by `restored`.

    Args:
        model (`PreTrainedModel`):
            The model. With weights in another precision than float32, float32 is chosen: no autocast.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        args (`TestTimeTrainingArguments`):
            How it will be run: the device and `max_length`.
        text (`str`):
            The first document; its beginning, at most 512 tokens, is scored in both precisions.
        trains (`bool`, *optional*, defaults to `True`):
            Whether steps are taken. If not, only the forward pass is timed.

    Returns:
        `PrecisionChoice`: the precision, and why.

    Example:

    ```python
    from dataclasses import replace

    from tttnn import TestTimeTrainingArguments
    from tttnn.adaptation import choose_precision

    args = TestTimeTrainingArguments()
    choice = choose_precision(model, tokenizer, args, "def parse_args(argv): return argv")
    args = replace(args, precision=choice.precision)
    ```
    """
    reason = _obstacle(model, args.device)
    if reason is not None:
        return PrecisionChoice("float32", f"Precision float32: {reason}.")
    encoded = encode(processing_class, text[:SCORED_CHARACTERS])
    limit = min(context_length(model) or SCORED_LENGTH, SCORED_LENGTH)
    token_ids = [prefix_token_id(processing_class), *encoded][:limit]
    if len(token_ids) < 2:
        return PrecisionChoice("float32", "Precision float32: there is no text on which bf16 could be checked.")
    length, device = min(args.max_length, limit, TIMED_LENGTH), model.device
    try:
        with restored(model):
            try:
                model.to(args.device)  # type: ignore[arg-type]
                head = model.get_output_embeddings() if hands_out_logits(model, processing_class) else None
                with evaluating(model):
                    return _compare(Probe(model, list(islice(cycle(token_ids), length)), trains, head), token_ids)
            finally:
                model.to(device)  # type: ignore[arg-type]
    except (RuntimeError, MemoryError) as error:  # an operation without bf16, or no memory for the probe
        if internals.is_out_of_memory(error):
            internals.empty_cache()
        return PrecisionChoice("float32", f"Precision float32: the probe of bf16 failed ({error!r:.200}).")


def _compare(probe: Probe, token_ids: list[int]) -> PrecisionChoice:
    """Choose by the speed of what is timed, and by the score of a text."""
    gain = _gain(probe)
    if not gain >= MIN_GAIN:
        return PrecisionChoice("float32", f"Precision float32: bf16 is {gain:.2f} times as fast here.")
    scored = probe._replace(token_ids=token_ids, trains=False)
    plain, mixed = (_loss(scored, bf16).item() for bf16 in (False, True))
    if not abs(mixed - plain) <= TOLERANCE * abs(plain):  # NaN is not
        return PrecisionChoice(
            "float32",
            f"Precision float32: the first document has {plain:.4f} nats per token in it, and {mixed:.4f} in bf16.",
        )
    return PrecisionChoice(
        "bf16",
        f"Precision bf16 (autocast): {gain:.2f} times as fast as float32 here, and the first document has {mixed:.4f} "
        f"nats per token in it, {plain:.4f} in float32. To force float32: `--precision float32`.",
    )


def seconds_of(probe: Probe, bf16: bool) -> float:
    """Time a forward pass, and with steps a backward pass; no gradient is kept."""
    _synchronize(probe.model)
    start = perf_counter()
    with torch.set_grad_enabled(probe.trains):
        loss = _loss(probe, bf16)
        if probe.trains:
            trained = [weight for weight in probe.model.parameters() if weight.requires_grad]
            torch.autograd.grad(loss, trained, allow_unused=True)
    _synchronize(probe.model)
    return perf_counter() - start


def _obstacle(model: "PreTrainedModel", device: torch.device) -> str | None:
    """Say why bf16 is not tried; `None` if it is."""
    weights = list(model.parameters())
    dtypes = sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})
    if getattr(model, "is_quantized", False) or dtypes != ["float32"]:
        return f"the model is left in the precision that it was loaded in ({', '.join(dtypes)})"
    number = sum(weight.numel() for weight in weights)
    if number < MIN_PARAMETERS:
        return f"a model of {number:,} parameters gains nothing that matters in bf16"
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "the GPU does not compute in bf16"
    if device.type == "xpu" and not torch.xpu.is_bf16_supported():
        return "the GPU does not compute in bf16"
    if device.type not in ("cpu", "cuda", "xpu"):
        return f"bf16 is not tried on the device {device.type}"
    return None


def _gain(probe: Probe) -> float:
    """Say how many times as fast bf16 is, by the median of pairs in turns."""
    first = [seconds_of(probe, bf16) for bf16 in (False, True)]  # which also warms up
    if first[1] > HOPELESS * first[0]:
        return first[0] / first[1]
    ratios = []
    for pair in range(PAIRS):
        order = (False, True) if pair % 2 == 0 else (True, False)
        seconds = {bf16: seconds_of(probe, bf16) for bf16 in order}
        ratios.append(seconds[False] / seconds[True])
    return statistics.median(ratios)


def _loss(probe: Probe, bf16: bool) -> torch.Tensor:
    """Give the mean nll per token, by the trainer's way to it: in float32 without all logits at once."""
    model, inputs = probe.model, torch.tensor([probe.token_ids], device=probe.model.device)
    head = None if bf16 or not probe.trains else probe.head
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16), last_row_only(head) as seen:
        logits = model(input_ids=inputs).logits
        return head_loss(head, seen[0], inputs) if head is not None and seen else next_token_loss(logits, inputs)


def _synchronize(model: "PreTrainedModel") -> None:
    if model.device.type != "cpu":
        torch.accelerator.synchronize()
