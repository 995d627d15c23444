"""What the server answers: texts, numbers of tokens, neighbors, and what went wrong."""

import json
import math
from dataclasses import replace
from typing import Any

import torch
from fastapi.responses import JSONResponse, Response
from transformers.utils import logging

from tttnn.errors import InputError
from tttnn.generation.engine import JobCancelledError, JobTimeoutError, QueueFullError, first_end
from tttnn.generation.generator import Generation
from tttnn.neighbors import Neighbor


logger = logging.get_logger(__name__)

RETRY_AFTER = "1"
SHOWN = 200  # characters of a neighbor


def cut_at_ends(generation: Generation, ends: list[str]) -> Generation:
    """Cut the texts before the first of some ends."""
    texts, reasons = list(generation.texts), list(generation.finish_reasons)
    for number, text in enumerate(texts):
        cut = first_end(text, ends)
        if cut is not None:
            texts[number], reasons[number] = text[:cut], "stop"
    return replace(generation, texts=texts, finish_reasons=reasons)


def described(generation: Generation) -> dict[str, Any]:
    """Give the extension of an answer: the neighbors, and the seconds by phase."""
    return {
        "is_adapted": generation.is_adapted,
        "is_reused": generation.is_reused,
        "seed": generation.seed,
        "neighbors": [_neighbor(neighbor) for neighbor in generation.neighbors],
        "seconds": {name: round(value, 4) for name, value in generation.seconds.items()},
        "missing_shards": generation.missing_shards,
        "error": None if generation.record is None else generation.record.error,
    }


def _neighbor(neighbor: Neighbor) -> dict[str, Any]:
    distance = float(neighbor.distance)
    return {
        "id": neighbor.id,
        "document": str(neighbor.metadata.get("id", neighbor.id)),
        "distance": distance if math.isfinite(distance) else None,
        "text": neighbor.text[:SHOWN],
    }


def usage_of(generations: list[Generation]) -> dict[str, int]:
    """Count the tokens of prompts and texts; those of neighbors are in neither."""
    prompt = sum(generation.num_prompt_tokens for generation in generations)
    new = sum(sum(generation.num_new_tokens) for generation in generations)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def failure_status(error: BaseException) -> int:
    """Give the HTTP status of an error."""
    if isinstance(error, InputError):
        return 400
    if isinstance(error, QueueFullError):
        return 429
    if isinstance(error, JobCancelledError):
        return 499  # nobody reads it
    if isinstance(error, JobTimeoutError | ConnectionError | TimeoutError | torch.cuda.OutOfMemoryError):
        return 503
    return 500


def failure_of(error: BaseException) -> Response:
    """Make an answer of an error; what nobody foresaw is logged with its traceback."""
    status = failure_status(error)
    if status == 500:
        logger.error("A request failed.", exc_info=error)
        return failure(status, f"The request failed ({type(error).__name__}). The server's log says more.")
    return failure(status, str(error))


def failure(status: int, message: str) -> JSONResponse:
    """Make an answer that says what is wrong, in OpenAI's form."""
    headers = {"Retry-After": RETRY_AFTER} if status in (429, 503) else None
    return JSONResponse({"error": error_body(status, message)}, status, headers)


def error_body(status: int, message: str) -> dict[str, Any]:
    """Say what is wrong, in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": None, "code": status}


def event_of(content: dict[str, Any]) -> str:
    """Write an event of a stream."""
    return f"data: {json.dumps(content)}\n\n"
