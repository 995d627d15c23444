"""One model, one queue: requests are answered one after another in a thread, and may be cancelled at any time."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from queue import Empty, Full, Queue
from time import monotonic
from typing import Any, NamedTuple

import torch
from transformers import StoppingCriteria, TextStreamer, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from tttnn.adaptation import Method, TestTimeCallback, TestTimeTrainer
from tttnn.errors import InputError, StateError
from tttnn.generation.generator import TestTimeGenerator


logger = logging.get_logger(__name__)

GENERATORS = 8  # of different settings that are kept; they share the model and the cache


class QueueFullError(StateError):
    """As many requests wait as may."""


class JobCancelledError(StateError):
    """Nobody waits for the answer any more."""


class JobTimeoutError(StateError):
    """A request took longer than it may."""


class Settings(NamedTuple):
    """How a request is adapted to, where it differs from the server; `None`: as the server does."""

    method: str | None = None
    num_neighbors: int | None = None
    learning_rate: float | None = None


class Job:
    """
    A request in the queue.

    Args:
        work (`Callable[[Job], Any]`):
            Answers it, in the thread of the engine.
        done (`Callable[[Any, BaseException | None], None]`):
            Is called in that thread with the answer, or with what went wrong.
        seconds (`float`):
            Until it is given up, from now on.
        settings (`Settings`, *optional*):
            How it is adapted to; `None`: not at all.
        read_queries (`Callable[[], list[str]]`, *optional*):
            Gives what it is adapted to, in that thread.
    """

    def __init__(
        self,
        work: "Callable[[Job], Any]",
        done: Callable[[Any, BaseException | None], None],
        seconds: float,
        settings: Settings | None = None,
        read_queries: Callable[[], list[str]] = list,
    ) -> None:
        self.work, self.done, self.seconds = work, done, seconds
        self.settings, self.read_queries = settings, read_queries
        self.is_learned = False  # its steps were taken with those of others
        self._deadline = monotonic() + seconds
        self._is_cancelled = threading.Event()

    def cancel(self) -> None:
        """Stop it at its next token or step."""
        self._is_cancelled.set()

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more, or not long enough."""
        return self._is_cancelled.is_set() or monotonic() > self._deadline

    def check(self) -> None:
        """Raise an error if it is to stop."""
        if self._is_cancelled.is_set():
            raise JobCancelledError("The request was cancelled.")
        if self.is_over:
            raise JobTimeoutError(
                f"The request took more than {self.seconds:g} seconds, with the time in the queue. Ask for fewer "
                "tokens or neighbors, or try again later."
            )


class Engine:
    """
    Answers requests one after another, with a generator for each of their settings.

    With `batch_documents`, the steps of requests that wait are taken together with those of the next one, if all are
    adapted to in the same way; what was learned for each lies in the cache until its turn.

    Args:
        generator (`TestTimeGenerator`):
            That of the server's own settings.
        methods (`Mapping[str, Method]`):
            Methods that a request may ask for, by name, beside the server's own.
        max_neighbors (`int`):
            The most neighbors that a request may ask for.
        max_waiting (`int`):
            Requests that may wait.

    Raises:
        `ValueError`: If the model cannot be trained in batches of documents, and `batch_documents` asks for them.
    """

    def __init__(
        self, generator: TestTimeGenerator, methods: Mapping[str, Method], max_neighbors: int, max_waiting: int
    ) -> None:
        trainer = generator.trainer
        self.trainer, self.cache = trainer, generator.cache
        self.methods = {**methods, trainer.method.name: trainer.method}
        self.max_neighbors, self.max_waiting = max_neighbors, max_waiting
        self.stops_between_steps = _StopBetweenSteps()
        trainer.add_callback(self.stops_between_steps)
        if trainer.args.documents_at_once > 1:
            trainer.learn_ahead([], self.cache)  # which says at once if it cannot
        self._generators: OrderedDict[Settings, TestTimeGenerator] = OrderedDict({Settings(): generator})
        self._queue: Queue[Job | None] = Queue(max_waiting)
        self._thread = threading.Thread(target=self._run, name="tttnn-engine", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return self._queue.qsize()

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Put a request into the queue."""
        if not self.is_alive:
            raise StateError("The server is shutting down.")
        try:
            self._queue.put_nowait(job)
        except Full:
            raise QueueFullError(
                f"{self.max_waiting} requests are waiting, and no more may. Try again later."
            ) from None

    def close(self) -> None:
        """Finish the request that is being answered, and give up those that wait."""
        waiting = []
        try:
            while True:
                waiting.append(self._queue.get_nowait())
        except Empty:
            self._queue.put(None)
        for job in waiting:
            if job is not None:
                job.done(None, StateError("The server is shutting down."))
        self._thread.join()

    def generator_of(self, settings: Settings) -> TestTimeGenerator:
        """Give the generator of a request's settings; called in the engine's thread."""
        if settings in self._generators:
            self._generators.move_to_end(settings)
            return self._generators[settings]
        base, method = self.trainer, self.trainer.method
        if settings.method is not None:
            if settings.method not in self.methods:
                raise InputError(
                    f"`method` is {settings.method!r}. This server has {', '.join(sorted(self.methods))}."
                )
            method = self.methods[settings.method]
        changed: dict[str, Any] = {} if method is base.method else {"batch_documents": 1}
        if settings.num_neighbors is not None:
            if not 1 <= settings.num_neighbors <= self.max_neighbors:
                raise InputError(
                    f"`num_neighbors` is {settings.num_neighbors}. This server takes 1 to {self.max_neighbors}."
                )
            changed |= {"num_neighbors": settings.num_neighbors, "top_k": None}
        if settings.learning_rate is not None:
            changed["learning_rate"] = settings.learning_rate
        trainer = TestTimeTrainer(
            model=base.model,
            args=replace(base.args, **changed),
            retriever=base.retriever if method.retrieves else None,
            method=method,
            processing_class=base.processing_class,
            callbacks=[self.stops_between_steps],
        )
        generator = TestTimeGenerator(trainer, self.cache)
        self._generators[settings] = generator
        if len(self._generators) > GENERATORS:
            self._generators.popitem(last=False)
        return generator

    def _run(self) -> None:
        """Answer requests until the end."""
        while (job := self._queue.get()) is not None:
            answer, failure = None, None
            try:
                self._learn_together(job)
                job.check()
                self.stops_between_steps.jobs = [job]
                answer = job.work(job)
            except Exception as error:  # noqa: BLE001 - whatever it is belongs to this request, and is told there
                failure = error
            finally:
                self.stops_between_steps.jobs = []
            if isinstance(failure, torch.cuda.OutOfMemoryError):
                torch.cuda.empty_cache()
            job.done(answer, failure)

    def _learn_together(self, first: Job) -> None:
        """Take the steps of a request together with those of others that wait, if there are any."""
        if first.settings is None or first.is_learned:
            return
        generator = self.generator_of(first.settings)
        number = generator.trainer.args.documents_at_once
        if number == 1:
            return
        with self._queue.mutex:
            waiting = [job for job in self._queue.queue if job is not None]
        jobs: list[Job] = []
        queries: dict[str, None] = {}
        for job in [first, *waiting]:
            if len(queries) < number and job.settings == first.settings and not (job.is_learned or job.is_over):
                job.is_learned = True
                jobs.append(job)
                with suppress(InputError):  # a chat that cannot be laid out is refused when its turn comes
                    queries |= dict.fromkeys(job.read_queries())
        if len(queries) < 2:
            return
        self.stops_between_steps.jobs = jobs
        try:
            generator.trainer.learn_ahead([*queries], self.cache)
        except Exception as error:  # noqa: BLE001 - whose error it is shows when each takes its own steps
            logger.warning(f"The steps of {len(queries)} prompts could not be taken at once ({error}).")


class _StopBetweenSteps(TestTimeCallback):
    """Looks after each step whether the requests that it is for are to stop, all of them."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise what stops it; the model is restored on the way out."""
        if self.jobs and all(job.is_over for job in self.jobs):
            self.jobs[0].check()


class StopAtToken(StoppingCriteria):
    """
    Looks after each token whether the request is to stop, or its text has come to one of its ends.

    Args:
        job (`Job`):
            The request.
        streamer (`TextPieces`, *optional*):
            What knows the text so far.
    """

    def __init__(self, job: Job, streamer: "TextPieces | None" = None) -> None:
        self.job, self.streamer = job, streamer

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Say of each row whether it ends here."""
        self.job.check()
        ends = self.streamer is not None and self.streamer.is_at_end
        return torch.full((len(input_ids),), ends, dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]


class TextPieces(TextStreamer):
    """
    Hands on the text while it is generated, up to the first of some ends, which is not part of it.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The tokenizer.
        stop (`list[str]`):
            Texts that end the text.
        hand_on (`Callable[[str], None]`):
            Gets each piece.
    """

    def __init__(self, processing_class: Any, stop: list[str], hand_on: Callable[[str], None]) -> None:  # noqa: ANN401
        super().__init__(processing_class, skip_prompt=True, skip_special_tokens=True)
        self.stop, self.hand_on = stop, hand_on
        self.is_at_end = False
        self._held = ""
        # so much may be the beginning of an end
        self._most_held = max([len(end) - 1 for end in stop], default=0)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on what cannot be a part of an end."""
        if self.is_at_end:
            return
        self._held += text
        cut = first_end(self._held, self.stop)
        if cut is not None:
            self.is_at_end, stream_end, self._held = True, True, self._held[:cut]
        number = len(self._held) if stream_end else max(len(self._held) - self._most_held, 0)
        if number:
            self.hand_on(self._held[:number])
            self._held = self._held[number:]


def first_end(text: str, stop: list[str]) -> int | None:
    """Say where the first of some ends begins in a text."""
    return min((place for end in stop if (place := text.find(end)) >= 0), default=None)
