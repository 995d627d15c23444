"""`TestTimeTrainer`: a step on each neighbor of a document, a score before and after, the weights as they were."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.data.data_collator import default_data_collator
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction
from transformers.utils import logging

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.adaptation.callbacks import JournalCallback
from tttnn.adaptation.episode import EpisodeTrainer
from tttnn.adaptation.progress import DocumentProgressCallback
from tttnn.adaptation.requirements import check_model, check_processes, context_length
from tttnn.adaptation.restore import restored
from tttnn.adaptation.settings import run_settings
from tttnn.adaptation.steps import NotFiniteError, raise_not_finite
from tttnn.adaptation.stopping import NeighborEarlyStoppingCallback
from tttnn.adaptation.windows import prefix_token_id
from tttnn.documents import Document, as_documents, check_text
from tttnn.errors import InputError, InputTypeError
from tttnn.journal import check_same
from tttnn.neighbors import Neighbor, Retriever, Selection, as_neighbors
from tttnn.records import DocumentRecord, digest, nll_matrix, summarize
from tttnn.retrieval.retriever import NeighborRetriever
from tttnn.selection.nearest import check_exclude


logger = logging.get_logger(__name__)


class TestTimeTrainer(EpisodeTrainer):
    """
    Adapts a causal language model to each test document and restores it: test-time training on nearest neighbors.

    Each document is an episode: retrieve its neighbors, score it, take one optimizer step on each neighbor, score it
    again, restore the model to the bit. `evaluate` and `predict` do so for a data set, data-parallel over documents
    where several processes run; `adapt` hands out the model adapted to one text; `train` is that of `Trainer`.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model of transformers, PEFT-wrapped or not, whole on one device.
        args (`TestTimeTrainingArguments`, *optional*):
            How to train and score.
        retriever (`Retriever`, *optional*):
            A `NeighborRetriever`, or anything with its method `retrieve`. `adapt` with neighbors of its own needs
            none.
        processing_class (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        eval_dataset (`Dataset` or `list`, or a `dict` of them, *optional*):
            Test documents: a `datasets` data set, or a list of texts, rows or `Document` items. Columns beside the
            text become metadata of the records.
        train_dataset (`Dataset`, *optional*):
            For `train`.
        data_collator (`Callable`, *optional*):
            Makes the model's inputs of a list with one chunk, `{"input_ids": ..., "labels": ...}`.
        compute_metrics (`Callable`, *optional*):
            Further metrics, from an `EvalPrediction` as `predict` returns it.
        callbacks (`list[TrainerCallback]`, *optional*):
            Callbacks; see `TestTimeCallback` for the events.
        optimizers (`tuple`, *optional*):
            An optimizer of your own, and `None`.
        optimizer_cls_and_kwargs (`tuple`, *optional*):
            Class and keyword arguments of an optimizer of your own.

    Raises:
        `ValueError`: If the model, the tokenizer or the processes cannot serve.
        `TypeError`: If `args` are not `TestTimeTrainingArguments`.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466).
    """

    __test__ = False  # for pytest, which would collect it for its name

    def __init__(
        self,
        model: PreTrainedModel,
        args: TestTimeTrainingArguments | None = None,
        retriever: Retriever | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        eval_dataset: Any = None,  # noqa: ANN401
        train_dataset: Any = None,  # noqa: ANN401
        data_collator: Callable[[list[Any]], dict[str, Any]] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, None] = (None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
    ) -> None:
        args = TestTimeTrainingArguments() if args is None else args
        if not isinstance(args, TestTimeTrainingArguments):
            raise InputTypeError(f"`args` are {type(args).__name__}. Pass `TestTimeTrainingArguments`.")
        check_model(model)
        prefix_token_id(processing_class)
        use_cache = model.config.use_cache
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or default_data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        model.config.use_cache = use_cache  # Trainer switches it off for good
        self.args: TestTimeTrainingArguments = args
        self.retriever: Retriever | None = retriever
        self.records: list[DocumentRecord] = []
        check_processes(args, self.is_fsdp_enabled or self.is_deepspeed_enabled)
        context = context_length(model)
        self.max_length = args.max_length if context is None else min(args.max_length, context)
        if self.max_length < 2:
            raise InputError(
                f"The model has room for {context} tokens beside its virtual ones, and two are the least of which one "
                "is predicted. Give its prompt fewer virtual tokens."
            )
        if not args.disable_tqdm:
            self.add_callback(DocumentProgressCallback)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:  # noqa: ANN401
        """
        Check a data set and give this process its documents.

        Args:
            eval_dataset (`Dataset`, `list` or `str`, *optional*):
                Test documents, or the name of one of several data sets. By default `self.eval_dataset`.

        Returns:
            `DataLoader`: of pairs of index and `Document`, every `world_size`-th from this process's rank.

        Raises:
            `ValueError`: If there is no document, a text column is missing, or a text cannot be encoded.
            `TypeError`: If a text is not a string.
        """
        if isinstance(eval_dataset, str) and isinstance(self.eval_dataset, dict):
            eval_dataset = self.eval_dataset[eval_dataset]
        eval_dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if eval_dataset is None:
            raise InputError("There is nothing to evaluate on. Pass `eval_dataset` here or to the trainer.")
        documents = list(as_documents(eval_dataset, self.args.text_column))
        if not documents:
            raise InputError("The data set holds no document. Pass at least one.")
        check_exclude(documents, self.args.exclude)
        mine = range(self.args.process_index, len(documents), self.args.world_size)
        return DataLoader(list(enumerate(documents)), batch_size=None, sampler=mine, collate_fn=lambda item: item)  # type: ignore[arg-type]

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:  # noqa: ANN401
        """Do what `get_eval_dataloader` does, for `predict`."""
        return self.get_eval_dataloader(test_dataset)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """
        Run the episode of every document; `evaluate` and `predict` call this.

        Args:
            dataloader (`DataLoader`):
                What `get_eval_dataloader` gives.
            description (`str`):
                Not used, as `prediction_loss_only` and `ignore_keys`.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
                Begins the name of every metric.

        Returns:
            `EvalLoopOutput`: `predictions` are the scores in nats, float64 of shape `(documents, points)`: before
            training, then after each neighbor where every one is scored, else after the last; shorter rows carry
            their last value forward. `label_ids` are the bytes scored, int64 of shape `(documents,)`. `metrics` pool
            sums over all documents. `self.records` holds the details.

        Raises:
            `RuntimeError`: If there is no retriever, or a loss or score is not finite.
        """
        self.callback_handler.eval_dataloader = dataloader
        if self.retrieves and isinstance(self.retriever, NeighborRetriever):
            self.retriever.prepare(self._num_candidates())
        indices = list(dataloader.sampler)
        failure: NotFiniteError | None = None
        try:
            records = self._evaluate_each(dataloader, indices, metric_key_prefix)
        except NotFiniteError as error:
            failure, records = error, {}
        # whoever catches this error, all processes must: one that went on alone would wait for the others for ever
        told = [message for message in gather_object([failure and str(failure)]) if message]
        if told:
            raise failure or NotFiniteError(f"In another process: {told[0]}")
        self.records = sorted(gather_object(list(records.values())), key=lambda record: record.index)
        return self._output(metric_key_prefix)

    def _evaluate_each(
        self, dataloader: DataLoader[Any], indices: list[int], prefix: str
    ) -> dict[int, DocumentRecord]:
        """Run the episodes of this process's documents, but for those that a journal holds."""
        bars = [c for c in self.callback_handler.callbacks if isinstance(c, DocumentProgressCallback)]
        with self._episodes(len(indices)) as snapshot, ExitStack() as opened:
            records = self._open_journals(opened, prefix, indices)
            for bar in bars if self.is_local_process_zero() else ():
                opened.callback(bar.close)
                bar.open(len(indices), sum(index in records for index in indices))
            self._clock = perf_counter()
            for index, document in dataloader:
                if index in records:
                    check_same(records[index], document)
                    continue
                records[index] = self._run_episode(index, document)
                if self.trains:
                    snapshot.restore()
                    if self.args.reset_optimizer:
                        self._reset_optimizer()
                else:
                    snapshot.restore_random_states()
        return {index: records[index] for index in indices}

    def _open_journals(self, opened: ExitStack, prefix: str, indices: list[int]) -> dict[int, DocumentRecord]:
        """Open the journals until `opened` closes, and give the documents that they hold."""
        callbacks = self.callback_handler.callbacks
        stops = [(c.patience, c.min_delta) for c in callbacks if isinstance(c, NeighborEarlyStoppingCallback)]
        records: dict[int, DocumentRecord] = {}
        for journal in [c for c in callbacks if isinstance(c, JournalCallback)]:
            parts = (self.args, self.model, self.processing_class, self.retriever, self.optimizer)
            opened.callback(journal.close)
            settings = {**self.method_settings(), **run_settings(*parts, stops)}
            records |= journal.open(self.args, prefix, settings)
            done = [index for index in indices if index in records]
            if 0 < len(done) < len(indices) and not self.args.reset_optimizer:
                journal.load_optimizer(self.optimizer, done[-1])
        return records

    @contextmanager
    def adapt(self, text: str, neighbors: Sequence[Neighbor | str] | None = None) -> Iterator[PreTrainedModel]:
        """
        Adapt the model to a text, to generate with it or to save it; restore it on the way out.

        Args:
            text (`str`):
                The whole of it is the query.
            neighbors (`Sequence[Neighbor | str]`, *optional*):
                Neighbors found elsewhere, trained on as they come. By default they are retrieved and selected.

        Yields:
            `PreTrainedModel`: the model itself, adapted, in eval mode. `model.save_pretrained(folder)` inside keeps a
            copy.

        Raises:
            `ValueError`: If there is no neighbor to train on, or none has a token.
            `RuntimeError`: If there is no retriever, or a loss is not finite.
            `ConnectionError`, `TimeoutError`: If retrieving fails.

        Example:

        ```python
        with trainer.adapt("def parse_args("):
            model.generate(...)
        ```
        """
        document = Document("adapt", check_text(text, "`text`"))
        record = DocumentRecord(0, digest(text), document.id, {}, len(text.encode("utf-8")), 0)
        with ExitStack() as training, restored(self.model) as snapshot:
            training.enter_context(self._episodes(1, snapshot))
            set_seed(self._seed(0))
            self._dispatch("on_document_begin", record)
            selection = Selection(as_neighbors(neighbors or []))
            if neighbors is None:
                selection = self._retrieve(document, text, text, record)
            if not selection.neighbors:
                raise InputError("There is no neighbor to train on: the retriever or `neighbors=` gave none.")
            if not any([changed for _, changed in self._train_on(selection.neighbors, record)]):
                raise InputError("There is nothing to train on: the neighbors have no token.")
            norm = torch.stack(torch._foreach_norm([weight.detach() for weight in snapshot.parameters])).norm()
            if not norm.isfinite():
                raise_not_finite("norm of the adapted weights", norm.item())
            self._dispatch("on_document_end", record)
            training.close()
            snapshot.restore_random_states()
            self.model.eval()
            yield self.model

    def _output(self, prefix: str) -> EvalLoopOutput:
        records = self.records
        untrained = [record.index for record in records if record.status == "untrained"]
        if untrained:
            logger.warning(f"{len(untrained)} of {len(records)} documents stay untrained, and count so: {untrained}.")
        copies = sum(bool({*record.near_copies} & {*record.neighbor_ids}) for record in records)
        if copies:
            logger.warning(
                f"{copies} of {len(records)} documents have a near-copy of the scored text among the neighbors that "
                "are used. Set `drop_near_copies`, or report the result without these documents too."
            )
        predictions = nll_matrix(records)
        label_ids = np.array([record.num_bytes for record in records], dtype=np.int64)
        metrics: dict[str, Any] = dict(summarize(records))
        if self.compute_metrics is not None:
            metrics |= self.compute_metrics(EvalPrediction(predictions=predictions, label_ids=label_ids))
        metrics = {name if name.startswith(f"{prefix}_") else f"{prefix}_{name}": v for name, v in metrics.items()}
        return EvalLoopOutput(predictions, label_ids, metrics, len(records))
