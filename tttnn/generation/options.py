"""Options of a generation: settled for a prompt, and refused before or where transformers cannot take them."""

import copy
import inspect
import traceback
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from transformers import GenerationConfig
from transformers.utils import logging

from tttnn.adaptation import TestTimeTrainer, check_vocabulary, context_length
from tttnn.errors import InputError
from tttnn.generation.prompts import Prompt


logger = logging.get_logger(__name__)

LEAST_TEMPERATURE = 1e-4  # smaller ones overflow
MAX_NEW_TOKENS = 256  # where neither the call nor the model's generation config says how many


def settle_options(
    trainer: TestTimeTrainer,
    generation_config: GenerationConfig | None,
    generate_options: dict[str, Any],
    prompt: Prompt,
) -> tuple[GenerationConfig, dict[str, Any], int | None]:
    """Settle the config, what else `generate` gets, and how many tokens are left for neighbors."""
    config = copy.deepcopy(generation_config or trainer.model.generation_config or GenerationConfig())
    try:
        options = config.update(**generate_options)
    except (ValueError, TypeError) as error:
        raise InputError(f"The options of the generation cannot be: {error}") from error
    check_vocabulary(trainer.model, trainer.processing_class, prompt.token_ids)
    _check_numbers(config)
    if config.stop_strings is not None:
        options.setdefault("tokenizer", trainer.processing_class)
    number, limit = len(prompt.token_ids), context_length(trainer.model)
    if limit is not None and number >= limit:
        raise InputError(
            f"The prompt has {number} tokens, and the model reads {limit}: none is left to generate. Shorten the "
            "prompt, or choose a model with a longer context."
        )
    new = config.max_new_tokens
    if new is None:
        new = MAX_NEW_TOKENS if config.max_length is None else config.max_length - number
    if new < 1:
        raise InputError(
            f"At most {new} tokens would be generated after the {number} of the prompt. Pass a larger "
            "`max_new_tokens`."
        )
    if limit is not None and new > limit - number:
        logger.warning(
            f"At most {limit - number} new tokens instead of {new}: the prompt has {number}, and the model reads "
            f"{limit} in all."
        )
        new = limit - number
    config.max_new_tokens, config.max_length = new, None
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    return config, options, None if limit is None else limit - number - new


def is_of_options(error: Exception) -> bool:
    """Whether transformers raised it over options of `generate`, and not a streamer, a processor or the model."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return files[-1].parent == Path(inspect.getfile(GenerationConfig)).parent and files[-1].stem != "streamers"


def _check_numbers(config: GenerationConfig) -> None:
    """Refuse numbers that `generate` takes for something else, or ends over in the middle."""
    for name in ("num_beams", "num_return_sequences"):
        value = getattr(config, name)
        if value is not None and not (isinstance(value, Integral) and int(value) >= 1):
            raise InputError(f"`{name}` is {value!r}. Pass a whole number of at least 1.")
    if not config.do_sample:
        return
    for name, least, most in (("temperature", LEAST_TEMPERATURE, 1e6), ("top_p", 1e-9, 1.0)):
        value = getattr(config, name)
        if value is not None and not (isinstance(value, Real) and least <= float(value) <= most):
            raise InputError(f"`{name}` is {value!r}. Pass {least:g} to {most:g}, or `do_sample=False`.")
