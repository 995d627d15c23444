"""Requests turned into jobs of the engine, and what comes of them into answers."""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tttnn.adaptation import context_length
from tttnn.errors import InputError
from tttnn.generation.answers import (
    cut_at_ends,
    described,
    error_body,
    event_of,
    failure,
    failure_of,
    failure_status,
    usage_of,
)
from tttnn.generation.api import ChatRequest, CompletionRequest, Request
from tttnn.generation.engine import Engine, Job, StopAtToken, TextPieces
from tttnn.generation.generator import Generation
from tttnn.generation.options import MAX_NEW_TOKENS
from tttnn.generation.prompts import Prompt, read_prompt


POLL = 0.5  # seconds between two looks whether the client is still there


@dataclass(frozen=True)
class Limits:
    """
    What one request may ask for.

    Args:
        max_tokens (`int`, *optional*, defaults to `1024`):
            New tokens; a request for more is refused.
        max_body_bytes (`int`, *optional*, defaults to 1 MiB):
            Of a request.
        max_prompts (`int`, *optional*, defaults to `32`):
            Prompts of a completion.
        seconds (`float`, *optional*, defaults to `600`):
            Until a request is given up, with its time in the queue.

    Raises:
        `ValueError`: If a limit leaves nothing.
    """

    max_tokens: int = 1024
    max_body_bytes: int = 1 << 20
    max_prompts: int = 32
    seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_body_bytes", "max_prompts", "seconds"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"`{name}` is {getattr(self, name)}. Pass more than 0.")


class Metrics:
    """Counts for Prometheus."""

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("tttnn_requests", "Requests.", ["path", "status"], registry=registry)
        self.tokens = Counter("tttnn_tokens", "Tokens read and generated.", ["kind"], registry=registry)
        self.adaptations = Counter(
            "tttnn_adaptations", "Prompts adapted to, by steps or from the cache.", ["kind"], registry=registry
        )
        self.seconds = Histogram(
            "tttnn_phase_seconds",
            "Seconds of a prompt by phase.",
            ["phase"],
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
            registry=registry,
        )
        Gauge("tttnn_waiting", "Requests in the queue.", registry=registry).set_function(lambda: engine.num_waiting)
        Gauge("tttnn_cache_bytes", "Bytes of kept adaptations.", registry=registry).set_function(
            lambda: engine.cache.num_bytes
        )

    def count(self, generation: Generation) -> None:
        """Count what was done for a prompt."""
        self.tokens.labels("prompt").inc(generation.num_prompt_tokens)
        self.tokens.labels("new").inc(sum(generation.num_new_tokens))
        kind = "none"
        if generation.is_adapted:
            kind = "reused" if generation.is_reused else "made"
        self.adaptations.labels(kind).inc()
        for phase, seconds in generation.seconds.items():
            self.seconds.labels(phase).observe(seconds)


class Service:
    """Turns requests into jobs, and what comes of them into answers."""

    def __init__(self, engine: Engine, model_name: str, limits: Limits, metrics: Metrics) -> None:
        self.engine, self.model_name, self.limits, self.metrics = engine, model_name, limits, metrics
        self.created = int(time.time())

    async def complete(self, request: CompletionRequest, http: HttpRequest) -> Response:
        """Answer a completion."""
        try:
            prompts = request.prompts()
            if len(prompts) > self.limits.max_prompts:
                raise InputError(f"There are {len(prompts)} prompts. Pass at most {self.limits.max_prompts}.")
            if len(prompts) > 1 and request.stream:
                raise InputError("`stream` is true, and there are several prompts. Pass one of them.")
            self._check(request, request.max_tokens)
            texts = [self._as_prompt(prompt) for prompt in prompts]
        except InputError as error:
            return failure(400, str(error))
        head = self._head("cmpl", "text_completion")

        def choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
            return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

        if request.echo:
            return await self._scores(request, [self._as_tokens(prompt) for prompt in prompts], head, http)
        if request.stream:
            return await self._stream(request, texts[0], request.max_tokens, http, head, choice)
        return await self._whole(request, texts, request.max_tokens, http, head, choice)

    async def chat(self, request: ChatRequest, http: HttpRequest) -> Response:
        """Answer a chat."""
        number = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        try:
            self._check(request, number)
            if number == 0:
                raise InputError("`max_tokens` is 0. Pass at least 1.")
        except InputError as error:
            return failure(400, str(error))

        def choice(index: int, text: str, reason: str | None) -> dict[str, Any]:
            message = {"role": "assistant", "content": text}
            return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

        def piece(index: int, text: str, reason: str | None) -> dict[str, Any]:
            delta = {"role": "assistant", "content": text} if reason is None else {}
            return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}

        if request.stream:
            head = self._head("chatcmpl", "chat.completion.chunk")
            return await self._stream(request, request.messages, number, http, head, piece)
        head = self._head("chatcmpl", "chat.completion")
        return await self._whole(request, [request.messages], number, http, head, choice)

    def _check(self, request: Request, max_tokens: int | None) -> None:
        """Refuse another model, and more tokens than may be asked for."""
        if request.model != self.model_name:
            raise InputError(f"`model` is {request.model!r}. This server has {self.model_name!r}.")
        if max_tokens is not None and max_tokens > self.limits.max_tokens:
            raise InputError(f"`max_tokens` is {max_tokens}. Pass at most {self.limits.max_tokens}.")

    def _head(self, kind: str, name: str) -> dict[str, Any]:
        identity = f"{kind}-{uuid.uuid4().hex}"
        return {"id": identity, "object": name, "created": int(time.time()), "model": self.model_name}

    def _as_prompt(self, prompt: str | list[int]) -> str | Prompt:
        """Give a prompt that may be tokens: they are continued as they are, and their text finds the neighbors."""
        if isinstance(prompt, str):
            return prompt
        tokenizer, size = self.engine.trainer.processing_class, self._vocab_size()
        if any(not 0 <= token < size for token in prompt):
            raise InputError(f"A token of the prompt is not in the vocabulary of {size}. Pass its text.")
        return Prompt(str(tokenizer.decode(prompt, skip_special_tokens=True)), list(prompt))

    def _as_tokens(self, prompt: str | list[int]) -> list[int]:
        """Give the tokens of a prompt that may be a text."""
        if isinstance(prompt, str):
            return list(self.engine.trainer.processing_class(prompt, verbose=False)["input_ids"])
        return prompt

    def _vocab_size(self) -> int:
        return len(self.engine.trainer.model.get_input_embeddings().weight)  # type: ignore[arg-type]

    def _job(
        self,
        request: Request,
        prompts: list[Any],
        max_tokens: int | None,
        done: Callable[[Any, BaseException | None], None],
        hand_on: Callable[[str], None] | None = None,
    ) -> Job:
        """Make the job of a request; the text of its last prompt is handed on while it comes."""
        asked, ends = request.tttnn, request.ends()

        def read_queries() -> list[str]:
            tokenizer = self.engine.trainer.processing_class
            queries = [asked.query or read_prompt(tokenizer, prompt).query for prompt in prompts]
            return [query for query in queries if query.strip()]

        def generate(job: Job, prompt: Any) -> Generation:  # noqa: ANN401
            generator = self.engine.generator_of(asked.settings())
            options = request.generate_options(MAX_NEW_TOKENS if max_tokens is None else max_tokens)
            streamer = None
            if request.n == 1 and (ends or hand_on is not None):
                streamer = TextPieces(generator.trainer.processing_class, ends, hand_on or (lambda text: None))
                options["streamer"] = streamer
            generation = generator(
                prompt,
                query=asked.query,
                adapts=asked.adapts,
                seed=request.seed,
                stopping_criteria=[StopAtToken(job, streamer)],
                **options,
            )
            self.metrics.count(generation)
            return cut_at_ends(generation, ends)

        def work(job: Job) -> list[Generation]:
            return [generate(job, prompt) for prompt in prompts]

        return Job(work, done, self.limits.seconds, asked.settings() if asked.adapts else None, read_queries)

    async def _whole(
        self,
        request: Request,
        prompts: list[Any],
        max_tokens: int | None,
        http: HttpRequest,
        head: dict[str, Any],
        choice: Callable[[int, str, str | None], dict[str, Any]],
    ) -> Response:
        """Answer when everything is there."""
        generations = await self._answer(partial(self._job, request, prompts, max_tokens), http)
        if isinstance(generations, Response):
            return generations
        choices = [
            choice(number * request.n + place, text, generation.finish_reasons[place])
            for number, generation in enumerate(generations)
            for place, text in enumerate(generation.texts)
        ]
        extension = [described(generation) for generation in generations]
        return JSONResponse(
            {
                **head,
                "choices": choices,
                "usage": usage_of(generations),
                "tttnn": extension[0] if len(extension) == 1 else extension,
            }
        )

    async def _answer(self, make_job: Callable[[Callable[..., None]], Job], http: HttpRequest) -> Any:  # noqa: ANN401
        """Wait for a job, or for its client to go away; gives a response if something went wrong."""
        loop, answer = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def done(result: Any, error: BaseException | None) -> None:  # noqa: ANN401
            loop.call_soon_threadsafe(_settle, answer, result, error)

        job = make_job(done)
        try:
            self.engine.submit(job)
            while not answer.done():
                await asyncio.wait([answer], timeout=POLL)
                if not answer.done() and await http.is_disconnected():
                    job.cancel()
            return answer.result()
        except asyncio.CancelledError:
            job.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - each becomes an answer with its status
            return failure_of(error)

    async def _stream(
        self,
        request: Request,
        prompt: Any,  # noqa: ANN401
        max_tokens: int | None,
        http: HttpRequest,
        head: dict[str, Any],
        piece: Callable[[int, str, str | None], dict[str, Any]],
    ) -> Response:
        """Answer with a stream of events, once the first is there: an error before it has its status."""
        loop, events = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(event: Any) -> None:  # noqa: ANN401
            with suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(events.put_nowait, event)

        def done(result: Any, error: BaseException | None) -> None:  # noqa: ANN401
            put(result[0] if error is None else error)

        job = self._job(request, [prompt], max_tokens, done, put)
        try:
            self.engine.submit(job)
            first = await self._next(events, job, http)
        except asyncio.CancelledError:
            job.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return failure_of(error)
        if isinstance(first, BaseException):
            return failure_of(first)
        wants_usage = request.stream_options is not None and request.stream_options.include_usage

        async def lines() -> AsyncIterator[str]:
            event = first
            try:
                while isinstance(event, str):
                    yield event_of({**head, "choices": [piece(0, event, None)]})
                    event = await self._next(events, job, http)
                if isinstance(event, BaseException):
                    yield event_of({"error": error_body(failure_status(event), str(event))})
                    return
                end = {**head, "choices": [piece(0, "", event.finish_reasons[0])], "tttnn": described(event)}
                yield event_of(end)
                if wants_usage:
                    yield event_of({**head, "choices": [], "usage": usage_of([event])})
                yield "data: [DONE]\n\n"
            finally:
                job.cancel()

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def _next(self, events: "asyncio.Queue[Any]", job: Job, http: HttpRequest) -> Any:  # noqa: ANN401
        """Wait for the next event, and look meanwhile whether the client is still there."""
        while True:
            try:
                return await asyncio.wait_for(events.get(), POLL)
            except TimeoutError:
                if await http.is_disconnected():
                    job.cancel()

    async def _scores(
        self, request: CompletionRequest, prompts: list[list[int]], head: dict[str, Any], http: HttpRequest
    ) -> Response:
        """
        Answer with the log-probabilities of texts, as lm-evaluation-harness asks for them, by the model as it is.

        Nothing tells the context of such a text from what is to be scored, so it must not be adapted to: with steps on
        neighbors of its answer, it would be scored after it was known.
        """
        if request.max_tokens not in (0, 1):
            return failure(400, "`echo` is supported with `max_tokens` 0 or 1 only.")
        if request.tttnn.model_fields_set:
            return failure(
                400,
                "`echo` scores a text by the model as it is: it cannot be told which part of it may be adapted to. "
                "Leave `tttnn` out; `tttnn lm-eval` adapts to the context of each request.",
            )
        limit = context_length(self.engine.trainer.model)
        choices, read = [], 0
        for number, token_ids in enumerate(prompts):
            if not token_ids or (limit is not None and len(token_ids) > limit):
                return failure(400, f"A text has {len(token_ids)} tokens. Pass 1 to {limit}.")
            work = partial(self._score, token_ids, request)
            answer = await self._answer(partial(Job, work, seconds=self.limits.seconds), http)
            if isinstance(answer, Response):
                return answer
            choices.append({"index": number, **answer})
            read += len(token_ids)
        new = len(prompts) * (request.max_tokens or 0)
        usage = {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}
        return JSONResponse({**head, "choices": choices, "usage": usage, "tttnn": {"is_adapted": False}})

    def _score(self, token_ids: list[int], request: CompletionRequest, job: Job) -> dict[str, Any]:
        """Give the log-probability of each token of a text, and of the likeliest one after it."""
        trainer = self.engine.trainer
        tokenizer, model, number = trainer.processing_class, trainer.model, max(request.logprobs or 1, 1)
        inputs = torch.tensor([token_ids], device=model.device)
        with torch.no_grad(), trainer.unadapted(), trainer.compute_loss_context_manager():
            logits = model(input_ids=inputs).logits[0].float()
        log_probabilities = logits.log_softmax(-1)
        tops = log_probabilities.topk(number)
        everything = [*token_ids, int(tops.indices[-1, 0])] if request.max_tokens else token_ids
        places = range(1, len(everything))
        pieces = [str(tokenizer.decode([token])) for token in everything]
        of_tokens = [None, *(float(log_probabilities[place - 1, everything[place]]) for place in places)]
        top: list[dict[str, float] | None] = [None]
        for place in places:
            values, indices = tops.values[place - 1].tolist(), tops.indices[place - 1].tolist()
            best = {str(tokenizer.decode([token])): value for token, value in zip(indices, values, strict=True)}
            top.append(best)
        offsets = [0]
        for piece in pieces[:-1]:
            offsets.append(offsets[-1] + len(piece))
        logprobs = {"tokens": pieces, "token_logprobs": of_tokens, "top_logprobs": top, "text_offset": offsets}
        return {"text": str(tokenizer.decode(everything)), "logprobs": logprobs, "finish_reason": "length"}


def _settle(answer: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:  # noqa: ANN401
    """Put the outcome of a job where it is waited for, unless nobody does any more."""
    if answer.done():
        return
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)
