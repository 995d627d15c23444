"""One document while a method works on it: its query, its neighbors, steps on them, its scores."""

import math
from collections.abc import Iterator, Sequence, Sized
from time import perf_counter
from typing import TYPE_CHECKING, cast

import numpy as np
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from tttnn.adaptation.beginnings import encode_beginning
from tttnn.adaptation.mixture import mix_online
from tttnn.adaptation.ngram_cache import NgramCache
from tttnn.adaptation.options import RetrievalArguments
from tttnn.adaptation.scoring import ScoredText, TokenNll, score
from tttnn.adaptation.steps import Chunks, in_model, raise_not_finite, train_on
from tttnn.adaptation.text_checks import check_vocabulary
from tttnn.adaptation.windows import Window, encode, split_document, token_texts, training_chunks
from tttnn.documents import Document, check_text
from tttnn.errors import InputError, InputTypeError, StateError
from tttnn.neighbors import Embedded, Neighbor, PartialAnswer, Retriever
from tttnn.records import DocumentRecord, digest


if TYPE_CHECKING:
    from tttnn.adaptation.trainer import TestTimeTrainer

logger = logging.get_logger(__name__)


class Episode:
    """
    One document while a method works on it.

    Args:
        trainer (`TestTimeTrainer`):
            Whose model, arguments and retriever are used.
        document (`Document`):
            The test document.
        index (`int`):
            Its position in the data set, which seeds it.
        query (`str`, *optional*):
            `"prefix"` or `"document"`. By default `args.query`.

    Attributes:
        record (`DocumentRecord`): what has happened so far.
        query (`str`): the part of the text that finds neighbors.
        scored_text (`ScoredText`): the part that is scored, in windows.
        neighbors (`list[Neighbor]`): the selected neighbors, in the order of training.
        weights (`list[float]`): a factor for the loss of each neighbor.
        changed (`bool`): whether the model was changed for it, once it was adapted without a score.
        reused (`bool`): whether what had been learned before was taken from a cache.
        unadapted_nll (`TokenNll`): the first score of each token; set by `add_score`, as the next.
        token_nll (`TokenNll`): the last score of each token, before the mixture.
    """

    unadapted_nll: TokenNll
    token_nll: TokenNll

    def __init__(self, trainer: "TestTimeTrainer", document: Document, index: int, query: str | None = None) -> None:
        self.trainer = trainer
        self.document = document
        self.seed = int(np.random.SeedSequence([trainer.args.seed, index]).generate_state(1)[0])
        set_seed(self.seed)
        tokenizer = trainer.processing_class
        args, query = trainer.args, query or trainer.args.query
        self.query, self.text = split_document(tokenizer, document.text, query, args.cut)
        prompt = self.query if args.prompt == "context" and query == "prefix" else None
        self.scored_text = ScoredText.from_text(self.text, tokenizer, trainer.window_length, prompt, args.stride)
        check_vocabulary(trainer.model, tokenizer, [*self.scored_text.prompt_ids, *self.scored_text.token_ids])
        counts = self.scored_text.num_bytes, self.scored_text.num_words
        self.record = DocumentRecord(index, digest(document.text), document.id, document.metadata, *counts)
        self.neighbors: list[Neighbor] = []
        self.weights: list[float] = []
        self.changed = self.reused = False
        self.ahead_seconds = 0.0  # of steps that were taken with those of other texts
        self._predictions: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def model(self) -> PreTrainedModel:
        """The trainer's model."""
        return self.trainer.model

    @property
    def distinct_neighbors(self) -> list[Neighbor]:
        """Each neighbor once, also one that is trained on several times."""
        return _distinct(self.neighbors)

    def retrieve(self) -> None:
        """
        Retrieve candidates by the query, and select the neighbors among them.

        Raises:
            `RuntimeError`: If the trainer has no retriever.
            `ConnectionError`, `TimeoutError`: If the retriever fails.
            `ValueError`: If the selector needs vectors and the retriever gives none, or gives weights that cannot be.
        """
        retriever, start = self.trainer.retriever, perf_counter()
        if retriever is None:
            raise StateError("The trainer has no retriever. Pass it `retriever=`, for example a NeighborRetriever.")
        try:
            self._retrieve(retriever)
        finally:  # a report knows by the seconds that a document's neighbors were looked for
            self.record.seconds["retrieve"] += perf_counter() - start

    def _retrieve(self, retriever: Retriever) -> None:
        args = self.trainer.args
        answer = retriever.retrieve([self.query], num_candidates(args, retriever)) or [[]]
        candidates = answer[0]
        if isinstance(answer, PartialAnswer):
            self.record.missing_shards = answer.missing_shards
        for neighbor in candidates:
            if not isinstance(neighbor, Neighbor):
                raise InputTypeError(
                    f"The retriever gave a {type(neighbor).__name__} as a neighbor. Let `retrieve` give a list of "
                    "`Neighbor` for each text."
                )
            check_text(neighbor.text, f"neighbor {neighbor.id}")
        selection = self.trainer.selector(
            candidates,
            self.document,
            self.text,
            num_neighbors=args.num_neighbors,
            order=args.order,
            seed=self.seed,
            vectors=self.vectors,
            max_distance=args.max_distance,
            exclude=args.exclude,
            drop_near_copies=args.drop_near_copies,
            distinct=args.distinct,
        )
        selection.check()
        record, self.neighbors = self.record, selection.neighbors
        self.weights, record.weights = selection.weights or [1.0] * len(self.neighbors), selection.weights or []
        record.neighbor_ids = [neighbor.id for neighbor in selection.neighbors]
        record.distances = [neighbor.distance for neighbor in selection.neighbors]
        record.overlaps, record.near_copies = selection.overlaps, selection.near_copies
        record.own_neighbors = selection.own

    def vectors(self, neighbors: list[Neighbor]) -> tuple[np.ndarray, np.ndarray]:
        """
        Give the vectors of the query and of neighbors, for selectors and methods that compare them.

        Args:
            neighbors (`list[Neighbor]`):
                Of the retriever; may be none.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: float32 of shape `(dimension,)` and `(len(neighbors), dimension)`.

        Raises:
            `ValueError`: If the retriever gives none, or none that can be.
        """
        retriever = self.trainer.retriever
        if not isinstance(retriever, Embedded):
            raise InputError(
                f"Vectors are needed, and {type(retriever).__name__} has no method `vectors`. Add one (see "
                "`tttnn.neighbors.Embedded`), or choose a selector and a method that need none."
            )
        query, vectors = retriever.vectors(self.query, neighbors)
        if np.shape(vectors) != (len(neighbors), *np.shape(query)) or np.ndim(query) != 1:
            raise InputError(
                f"The retriever gave vectors of shape {np.shape(vectors)} for {len(neighbors)} neighbors, and one of "
                f"shape {np.shape(query)} for the query. Let it give a row for each neighbor, as long as the query's."
            )
        if not (np.isfinite(query).all() and np.isfinite(vectors).all()):
            raise InputError("The retriever gave a vector that is not finite. Check its embedder.")
        return query, vectors

    def chunks_of(self, neighbor: Neighbor) -> Chunks:
        """
        Cut a neighbor into the chunks that are trained on, or read.

        Args:
            neighbor (`Neighbor`):
                One neighbor.

        Returns:
            `list[list[int]]`: tokens of at most `chunks_per_neighbor` chunks.
        """
        trainer = self.trainer
        number = cast("int | None", trainer.args.chunks_per_neighbor)
        if number is None:
            token_ids = encode(trainer.processing_class, neighbor.text)
        else:
            num_tokens = number * trainer.max_length
            token_ids = encode_beginning(
                trainer.processing_class, neighbor.text, num_tokens, trainer.can_cut_at_spaces
            )
        check_vocabulary(trainer.model, trainer.processing_class, token_ids)
        return training_chunks(token_ids, trainer.max_length, number)

    def chunks_of_query(self) -> list[list[int]]:
        """
        Cut the query into the chunks that are trained on.

        Returns:
            `list[list[int]]`: none for an empty query.
        """
        token_ids = encode(self.trainer.processing_class, self.query)
        check_vocabulary(self.trainer.model, self.trainer.processing_class, token_ids)
        return training_chunks(token_ids, self.trainer.max_length, None)

    def lay_before(self, token_ids: Sequence[int], room: int | None) -> list[int]:
        """
        Lay out what the method reads before a prompt, and part it from the prompt.

        Args:
            token_ids (`Sequence[int]`):
                The prompt, at least one token.
            room (`int`, *optional*):
                Tokens that the model's context has left; `None` for a model without positions.

        Returns:
            `list[int]`: at most `room` tokens; none for a method that reads nothing.
        """
        context, prefix_id = self.trainer.method.lay_before(self, room), self.scored_text.prefix_id
        if context and token_ids[0] != prefix_id:
            # as between two neighbors; where one token is missing for it, the last is left out
            context = [*context[: None if room is None or len(context) < room else -1], prefix_id]
        return context

    def train_on_neighbors(self) -> Iterator[tuple[int, bool]]:
        """
        Take a step on each neighbor.

        Yields:
            `tuple[int, bool]`: after each neighbor, or group of neighbors that share a step, how many they were and
            whether a step was taken: none is taken for neighbors without a token.
        """
        start = perf_counter()
        chunks = [self.chunks_of(neighbor) for neighbor in self.neighbors]
        self.record.seconds["train"] += perf_counter() - start
        yield from self.train_on(chunks, self.weights)
        for field in (self.record.weights, self.record.neighbor_ids, self.record.distances, self.record.overlaps):
            del field[len(self.record.train_loss) :]  # a callback stopped before these

    def train_on_query(self) -> bool:
        """
        Take a step on each chunk of the query.

        Returns:
            `bool`: whether there was any: the query of a document of one token is empty.
        """
        record, number = self.record, len(self.record.train_loss)
        chunks = self.chunks_of_query()
        for _ in self.train_on([[chunk] for chunk in chunks]):
            pass
        record.query_train_loss, record.train_loss[number:] = record.train_loss[number:], []
        return bool(chunks)

    def note_empty_query(self) -> None:
        """Say in the record that there was nothing to train on."""
        self.record.status = "untrained"
        self.record.error = "the query is empty: the document has one token, or none"

    def train_on(self, chunks: list[Chunks], weights: list[float] | None = None) -> Iterator[tuple[int, bool]]:
        """
        Take steps on texts that are cut into chunks.

        Args:
            chunks (`list[list[list[int]]]`):
                The chunks of each text, each chunk a list of tokens.
            weights (`list[float]`, *optional*):
                A factor for the loss of each text. By default each counts once.

        Yields:
            `tuple[int, bool]`: as `train_on_neighbors`.
        """
        return train_on(self.trainer, chunks, weights or [1.0] * len(chunks), self.record)

    def score(self, scored_text: ScoredText | None = None) -> None:
        """
        Append a score of the model as it is now.

        Args:
            scored_text (`ScoredText`, *optional*):
                The same text in other windows. By default `self.scored_text`.
        """
        start, scored_text = perf_counter(), scored_text or self.scored_text
        self.add_score(self.read(scored_text.windows), start, scored_text)

    def read(self, windows: list[Window], context: Sequence[int] = ()) -> TokenNll:
        """
        Score the targets of windows with the model as it is now; record only the time in it and the tokens read.

        Args:
            windows (`list[Window]`):
                Of a `ScoredText`.
            context (`Sequence[int]`, *optional*):
                Tokens that stand before each.

        Returns:
            `TokenNll`: of each token, in nats; of the prompt's tokens only if there is a mixture.
        """
        trainer = self.trainer
        rolls = trainer.args.prompt == "none" and not context
        batch_size = trainer.args.per_device_eval_batch_size if rolls else 1
        in_parts = trainer.reads_in_parts and not rolls
        self.record.num_read_tokens += len(context) * (min(len(windows), 1) if in_parts else len(windows))
        self.record.num_read_tokens += sum(len(window.input_ids) for window in windows)
        if trainer.args.mix == "none":  # a mixture alone needs the prompt's tokens
            windows = [
                window._replace(target_ids=window.target_ids[window.num_known :], num_known=0) for window in windows
            ]
        with trainer.compute_loss_context_manager(), in_model(self.record):
            return score(self.model, windows, batch_size, context=context, in_parts=in_parts, head=trainer.head)

    def add_score(self, nll: TokenNll, start: float, scored_text: ScoredText | None = None) -> None:
        """
        Append a score. Every one but the first is mixed as `mix` asks for.

        Args:
            nll (`TokenNll`):
                Of each token, by the model as the method uses it.
            start (`float`):
                `time.perf_counter()` when scoring began.
            scored_text (`ScoredText`, *optional*):
                What was scored. By default `self.scored_text`.

        Raises:
            `RuntimeError`: If it is not finite.
        """
        self.append_score(nll)
        record = self.record
        record.num_scored_tokens += len((scored_text or self.scored_text).token_ids)
        record.seconds["score"] += perf_counter() - start

    def append_score(self, nll: TokenNll) -> None:
        """
        Append a score as `add_score`, and count no token and no second for it.

        Args:
            nll (`TokenNll`):
                Of each token, by the model as the method uses it.

        Raises:
            `RuntimeError`: If it is not finite.
        """
        record = self.record
        if not math.isfinite(nll.total):
            raise_not_finite(f"score of document {record.index} ('{record.id}')", nll.total)
        self.token_nll = nll
        if not record.nll:
            self.unadapted_nll = nll
        if self.trainer.args.mix != "none":
            record.unmixed_nll.append(nll.total)
        scored = self.mixed(nll) if record.nll else nll
        record.nll.append(scored.total)
        if self.trainer.args.save_tokens:
            self._save_tokens(scored)

    def _save_tokens(self, nll: TokenNll) -> None:
        """Write the bits of each token into the record: of the first score, and of the last one."""
        record = self.record
        if not record.tokens:
            record.tokens = token_texts(self.trainer.processing_class, self.scored_text.token_ids)
        bits = [round(value, 4) for value in (np.asarray(nll.scored) / math.log(2)).tolist()]
        record.token_bits = [*record.token_bits[:1], bits]

    def repeat_score(self, times: int) -> None:
        """
        Append the last score again: nothing was trained since.

        Args:
            times (`int`):
                How often.
        """
        for scores in (self.record.nll, self.record.unmixed_nll):
            scores += scores[-1:] * times

    def mixed(self, nll: TokenNll) -> TokenNll:
        """
        Mix what `mix` names into a score of the adapted model.

        Args:
            nll (`TokenNll`):
                Of each token, by the model as the method uses it.

        Returns:
            `TokenNll`: of each token, by the mixture. Of the prompt, those that every part has read. Without a mixture
            `nll` itself.
        """
        mix, mixed, num_known = self.trainer.args.mix, np.concatenate(nll), len(nll.known)
        if mix == "none":
            return nll
        if mix in ("cache", "both"):
            # a prompt longer than the window is read in part; the cache has read all of it
            log_probabilities, match_lengths = (values[len(values) - len(mixed) :] for values in self._cached())
            mixed = mix_online(mixed, log_probabilities, match_lengths, num_known)
        if mix in ("unadapted", "both"):
            # neighbors in the context may leave less of the window to the prompt
            num_known = min(num_known, len(self.unadapted_nll.known))
            number = num_known + len(nll.scored)
            before, mixed = (values[len(values) - number :] for values in (np.concatenate(self.unadapted_nll), mixed))
            mixed = mix_online(before, -mixed, np.zeros(number, dtype=np.int64), num_known)
        return TokenNll(mixed[:num_known], mixed[num_known:])

    def _cached(self) -> tuple[np.ndarray, np.ndarray]:
        """Predict prompt and scored text, each token before it is counted, by the n-grams of neighbors and of both."""
        # in a curve those that are trained on by now; a second pass brings none
        number = min(len(self.record.train_loss) or len(self.neighbors), len(self.neighbors))
        if number not in self._predictions:
            cache = NgramCache(len(self.model.get_input_embeddings().weight))  # type: ignore[arg-type]
            for neighbor in _distinct(self.neighbors[:number]):
                cache.add(encode(self.trainer.processing_class, neighbor.text))
            token_ids = [*self.scored_text.prompt_ids, *self.scored_text.token_ids]
            self._predictions[number] = cache.read([], token_ids)
        return self._predictions[number]


def _distinct(neighbors: list[Neighbor]) -> list[Neighbor]:
    return [*{id(neighbor): neighbor for neighbor in neighbors}.values()]


def num_candidates(args: RetrievalArguments, retriever: Retriever) -> int:
    """Say how many candidates are asked for: where `top_k` is left open, a small corpus has none to spare."""
    if args.top_k is None and isinstance(retriever, Sized):
        return max(args.num_neighbors, min(args.num_candidates, len(retriever)))
    return args.num_candidates
