"""`TestTimeTrainer`: a step on each neighbor of a document, a score before and after, the weights as they were."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.data.data_collator import default_data_collator
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction
from transformers.utils import logging

from tttnn.adaptation import internals
from tttnn.adaptation.adaptation_cache import AdaptationCache
from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.adaptation.batching import check_batching, check_reading_together
from tttnn.adaptation.beginnings import can_cut_at_spaces
from tttnn.adaptation.callbacks import dispatch
from tttnn.adaptation.card import model_card
from tttnn.adaptation.episode import Episode, num_candidates
from tttnn.adaptation.episodes import Episodes
from tttnn.adaptation.head import head_loss, is_last_row, last_row_only
from tttnn.adaptation.method import Method, TestTimeTraining
from tttnn.adaptation.options import MAX_WINDOW_LENGTH, THROUGH_PEFT
from tttnn.adaptation.output import evaluation_output
from tttnn.adaptation.progress import DocumentProgressCallback
from tttnn.adaptation.requirements import (
    check_adapters,
    check_lengths,
    check_model,
    check_precision,
    check_processes,
    check_reading,
    context_length,
    hands_out_logits,
    reads_in_parts,
)
from tttnn.adaptation.restore import Snapshot, prepared_for_training, restored, undisturbed
from tttnn.adaptation.scoring import next_token_loss
from tttnn.adaptation.settings import run_settings, selector_name, tokenizer_digest
from tttnn.adaptation.sharing import share
from tttnn.adaptation.steps import NotFiniteError, OptimizerState
from tttnn.adaptation.text_checks import warn_of_counted_ids
from tttnn.adaptation.windows import default_stride, prefix_token_id
from tttnn.documents import Document, as_documents
from tttnn.errors import InputError, InputTypeError, StateError
from tttnn.neighbors import Neighbor, Prepared, Retriever, Selector, describe_retriever
from tttnn.records import DocumentRecord
from tttnn.selection import SELECTORS, check_exclude


logger = logging.get_logger(__name__)


class TestTimeTrainer(Trainer):
    """
    Adapts a causal language model to each test document and restores it: test-time training on nearest neighbors.

    Each document is an episode: retrieve its neighbors, score it, take one optimizer step on each neighbor, score it
    again, restore the model to the bit. `evaluate` and `predict` do so for a data set, data-parallel over documents
    if several processes run; `episodes` runs documents one by one; `adapt` hands out the model adapted to one text;
    `train` is that of `Trainer`. Another `method` does something else for a document between its two scores.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            A causal language model of transformers, PEFT-wrapped or not, whole on one device.
        args (`TestTimeTrainingArguments`, *optional*):
            How to train and score.
        retriever (`Retriever`, *optional*):
            A `NeighborRetriever`, or anything with its method `retrieve` (see `tttnn.neighbors.Retriever`). `adapt`
            with `neighbors` needs none.
        method (`Method`, *optional*):
            How a document is scored: one of `tttnn.methods`. By default `TestTimeTraining()`, a step on each neighbor.
        selector (`Selector`, *optional*):
            Chooses the neighbors among the candidates, and may weigh them (see `tttnn.neighbors.Selector`). By default
            the one of `tttnn.selection.SELECTORS` that `args.selector` names. Another one gets as many candidates as
            `args.num_candidates` says.
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
        `ValueError`: If the model, the tokenizer or the processes cannot serve, or the arguments are from a file of
            `tttnn tune` that was measured with another model or index.
        `TypeError`: If `args` are not `TestTimeTrainingArguments`.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466).
    """

    __test__ = False  # pytest would collect it because of its name

    args: TestTimeTrainingArguments
    model: PreTrainedModel
    processing_class: PreTrainedTokenizerBase
    optimizer: torch.optim.Optimizer
    _running: "weakref.ref[OptimizerState] | None" = None

    def __init__(
        self,
        model: PreTrainedModel,
        args: TestTimeTrainingArguments | None = None,
        retriever: Retriever | None = None,
        *,
        processing_class: PreTrainedTokenizerBase,
        method: Method | None = None,
        selector: Selector | None = None,
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
        if args.precision == "auto":
            raise InputError(
                "`precision` is 'auto', and is to be settled before a trainer is made. Pass the precision that "
                "`tttnn.adaptation.choose_precision` gives, or 'float32' or 'bf16'."
            )
        check_model(model)
        prefix_token_id(processing_class)
        config = dict(vars(model.config))
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
        internals.restore_use_cache(model, config)
        self.retriever: Retriever | None = retriever
        if args.tuning is not None:
            args.tuning.check(model.config._name_or_path, describe_retriever(retriever)["index"])
        if selector is not None and args.selector != "nearest":
            raise InputError(f"`args.selector` is {args.selector!r}, and `selector` is passed too. Pass one of them.")
        self.selector: Selector = selector or SELECTORS[args.selector]
        self.selector_name = selector_name(self.selector)  # now: it may count while it selects
        self.records: list[DocumentRecord] = []
        self.adaptation: DocumentRecord | None = None  # inside of `adapt`: what the model is adapted by
        self.made_optimizer_of: object = None  # of which arguments and parameters; of none if it was passed
        check_processes(args, internals.is_sharded(self))
        check_precision(args, internals.has_autocast(self))
        check_reading(self.model, processing_class, args.router_aux_loss)
        check_adapters(self.model, bool(args.activation_checkpointing))
        self._context_length = context_length(model)
        self.tokenizer_digest = tokenizer_digest(processing_class)
        check_lengths(self.max_length, self.window_length, args.stride, args.window_length)
        self.reads_in_parts = reads_in_parts(model, processing_class)
        self.can_cut_at_spaces = can_cut_at_spaces(processing_class)
        self.hands_out_logits = hands_out_logits(model, processing_class)
        self.method = (method or TestTimeTraining()).prepared_for(self)
        self._reads_together = False  # until it was tried
        if args.batch_documents != 1:
            check_batching(self)
        if not args.disable_tqdm:
            self.add_callback(DocumentProgressCallback)

    def __repr__(self) -> str:
        num_parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"TestTimeTrainer(model={type(self.model).__name__} with {num_parameters:,} parameters, "
            f"method='{self.method.name}', retriever={self.retriever!r}, num_neighbors={self.args.num_neighbors}, "
            f"learning_rate={self.args.learning_rate:g})"
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:  # noqa: ANN401
        """
        Check a data set and give its documents; `evaluation_loop` shares them among the processes.

        Args:
            eval_dataset (`Dataset`, `list` or `str`, *optional*):
                Test documents, or the name of one of several data sets. By default `self.eval_dataset`.

        Returns:
            `DataLoader`: of pairs of index and `Document`, all of them, in the order of the data set.

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
        # ids of rows and texts may be made here
        if self.args.exclude == "id" and not all(isinstance(item, Document) for item in eval_dataset):
            warn_of_counted_ids(documents, self.args.exclude)
        return DataLoader(list(enumerate(documents)), batch_size=None, collate_fn=lambda item: item)  # type: ignore[arg-type]

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:  # noqa: ANN401
        """Same as `get_eval_dataloader`; `predict` calls it."""
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

        Of several processes, each takes the next document that nobody has.

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
            `ValueError`: If the processes have different documents or settings.
        """
        internals.show_dataloader(self, dataloader)
        if self.method.needs_neighbors(self.args) and isinstance(self.retriever, Prepared):
            self.retriever.prepare(num_candidates(self.args, self.retriever))
        failure: NotFiniteError | None = None
        try:
            records = self._evaluate_shared(dataloader, metric_key_prefix)
        except NotFiniteError as error:
            failure, records = error, []
        # all processes must raise this error together: one that continued alone would wait for the others forever
        messages = [message for message in gather_object([failure and str(failure)]) if message]
        if messages:
            raise failure or NotFiniteError(f"In another process: {messages[0]}")
        self.records = sorted(gather_object(records), key=lambda record: record.index)
        return evaluation_output(self.records, self.compute_metrics, metric_key_prefix)

    def _evaluate_shared(self, dataloader: DataLoader[Any], prefix: str) -> list[DocumentRecord]:
        """Run the documents that this process takes and no callback has a record of."""
        documents = [document for _, document in dataloader.dataset]  # type: ignore[attr-defined]
        records: dict[int, DocumentRecord] = {}
        share_of_all = -(-len(documents) // self.args.world_size)
        with self.episodes(share_of_all) as episodes, ExitStack() as stack:
            settings = run_settings(self)
            shared = share(documents, settings, self.args.world_size)
            stack.callback(dispatch, self, "on_evaluation_end")
            dispatch(
                self,
                "on_evaluation_begin",
                metric_key_prefix=prefix,
                documents=documents,
                records=records,
                settings=settings,
            )
            taken = ((index, documents[index]) for index in shared if index not in records)
            try:
                for record in episodes.run_all(taken):
                    records[record.index] = record
            except NotFiniteError:
                shared.close()  # the other processes need not go on
                raise
        return [records[index] for index in shared.taken]

    @contextmanager
    def episodes(self, num_documents: int = 1) -> Iterator[Episodes]:
        """
        Run documents one by one, each from the weights that the model has now.

        Args:
            num_documents (`int`, *optional*, defaults to `1`):
                How many there will be, for logging intervals that are given as a share of all steps.

        Yields:
            `Episodes`: its `run` takes a document and gives a `DocumentRecord`.

        Raises:
            `RuntimeError`: If an episode of this trainer is running already.

        Example:

        ```python
        with trainer.episodes() as episodes:
            record = episodes.run("def parse_args(argv): return ArgumentParser().parse_args(argv)")
        ```
        """
        self._check_free()
        with restored(self.model) as snapshot, self._ready_to_train(snapshot, num_documents) as optimizer:
            yield Episodes(self, snapshot, optimizer)

    @contextmanager
    def adapt(self, text: str, neighbors: Sequence[Neighbor | str] | None = None) -> Iterator[PreTrainedModel]:
        """
        Adapt the model to a text, to generate with it or to save it; restore it on the way out.

        Steps are taken on its neighbors, on the text itself or on both, as `args.train_on` says.

        Args:
            text (`str`):
                The whole of it is the query.
            neighbors (`Sequence[Neighbor | str]`, *optional*):
                Neighbors that were found elsewhere, trained on in their order. By default they are retrieved and
                selected.

        Yields:
            `PreTrainedModel`: the model itself, adapted, in eval mode. `model.save_pretrained(folder)` inside keeps a
            copy.

        Raises:
            `ValueError`: If there is no neighbor to train on, or none has a token; or the trainer's method takes no
                step on neighbors.
            `RuntimeError`: If there is no retriever, a loss is not finite, or an episode of this trainer is running.
            `ConnectionError`, `TimeoutError`: If retrieving fails.

        Example:

        ```python
        with trainer.adapt("def parse_args("):
            model.generate(...)
        ```
        """
        method = self.method
        if not (method.retrieves and (method.trains or method.starts)):
            raise InputError(
                f"`adapt` takes steps on neighbors, and the method '{method.name}' does not. Pass the trainer one "
                "that does, such as `TestTimeTraining()`; with a budget, `with_budget(..., method='ttt')`."
            )
        with self.adapted_episode(text, neighbors) as episode:
            if not episode.changed:
                if method.needs_neighbors(self.args) and not episode.neighbors:
                    raise InputError("There is no neighbor to train on: the retriever or `neighbors=` gave none.")
                raise InputError("There is nothing to train on: the neighbors, or the text, have no token.")
            yield self.model

    @contextmanager
    def adapted_episode(
        self, text: str, neighbors: Sequence[Neighbor | str] | None = None, cache: AdaptationCache | None = None
    ) -> Iterator[Episode]:
        """
        Do for a text what the method does, and hand out the episode; restore the model on the way out.

        Same as `adapt`, but for every method, one that only reads its neighbors too, and also if there is none:
        `TestTimeGenerator` stands on it.

        Args:
            text (`str`):
                The whole of it is the query.
            neighbors (`Sequence[Neighbor | str]`, *optional*):
                As in `adapt`.
            cache (`AdaptationCache`, *optional*):
                Adaptations of earlier texts. One with the same neighbors is taken again, without a step.

        Yields:
            `Episode`: its `neighbors`, its `record`, and whether the model was `changed` or an adaptation `reused`.

        Raises:
            `ValueError`: If `neighbors` are passed to a method that does not use them.
            `RuntimeError`: If there is no retriever, a loss is not finite, or an episode of this trainer is running.
            `ConnectionError`, `TimeoutError`: If retrieving fails.
        """
        self._check_free()
        with restored(self.model) as snapshot, ExitStack() as stack:
            stack.callback(setattr, self, "adaptation", None)
            with self._ready_to_train(snapshot, 1) as optimizer:
                episode = Episodes(self, snapshot, optimizer).prepare(text, neighbors, cache)
                self.adaptation = episode.record if episode.changed else None
            snapshot.restore_random_states()
            self.model.eval()
            yield episode

    def learn_ahead(self, texts: Sequence[str], cache: AdaptationCache) -> None:
        """
        Take the steps of several texts at once, and keep what was learned for each in a cache.

        `adapted_episode` with that cache then takes no step for them. The results are those of one by one, up to
        rounding (`batch_documents`). A text whose adaptation is in the cache already takes no part.

        Args:
            texts (`Sequence[str]`):
                Each is a query, as a whole.
            cache (`AdaptationCache`):
                With room for all of them.

        Raises:
            `ValueError`: If the method, the arguments or the model have no batches of documents, or a text is empty.
            `RuntimeError`: If there is no retriever, a loss is not finite, or an episode of this trainer is running.
            `ConnectionError`, `TimeoutError`: If retrieving fails.
        """
        self._check_free()
        check_batching(self)
        with restored(self.model) as snapshot, self._ready_to_train(snapshot, max(len(texts), 1)) as optimizer:
            if not self._reads_together:
                check_reading_together(self)
                self._reads_together = True
            Episodes(self, snapshot, optimizer).learn_ahead(texts, cache)

    @contextmanager
    def unadapted(self) -> Iterator[PreTrainedModel]:
        """
        Have the model before any adapting inside, in eval mode: an untrained prefix changes what it says, and is off.

        Yields:
            `PreTrainedModel`: the model itself.
        """
        model, trainable = self.model, self.method.trainable
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()
            if trainable is not None and trainable.trainable in THROUGH_PEFT:
                with model.disable_adapter():  # type: ignore[operator]
                    yield model
            else:
                yield model
        finally:
            for module, mode in modes:
                module.training = mode

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """
        Write the card of the model into `args.output_dir`; `push_to_hub` calls this.

        The card says which model this is and what changed its weights: `adapt`, inside of its block, or `train`. It
        holds no results. The arguments are those of `Trainer`; `tasks` and `dataset_args`, which belong to results,
        are not used.
        """
        if not self.is_world_process_zero():
            return
        path = Path(self.args.output_dir or ".", "README.md")
        names = dataset or dataset_tags
        card = model_card(
            self,
            model_name or path.parent.absolute().name,
            names if names is None or isinstance(names, str) else ", ".join(names),
            language=language,
            license=license,
            tags=[tags] if isinstance(tags, str) else tags or [],
            base_model=finetuned_from,
            datasets=dataset_tags,
        )
        path.write_text(card, encoding="utf-8")

    @property
    def head(self) -> torch.nn.Linear | None:
        """The layer whose results are the model's logits; `None` if more is done to them, or it is no plain layer."""
        head = self.model.get_output_embeddings() if self.hands_out_logits else None
        return head if type(head) is torch.nn.Linear else None

    @property
    def max_length(self) -> int:
        """Tokens in a training chunk: `args.max_length`, or the model's context."""
        limit = self._context_length
        return self.args.max_length if limit is None else min(self.args.max_length, limit)

    @property
    def window_length(self) -> int:
        """Tokens in a scoring window: with the prompt in context the model's context, else `max_length`."""
        return self.window_length_within(self._context_length)

    def window_length_within(self, limit: int | None) -> int:
        """
        Say how many tokens a scoring window has for a model of another context than `model` has now.

        Args:
            limit (`int`, *optional*):
                Tokens that it reads at once; `None` for a model without positions.

        Returns:
            `int`: at most `limit`.
        """
        length = self.args.max_length
        if self.args.prompt == "context":
            length = self.args.window_length or MAX_WINDOW_LENGTH
        return length if limit is None else min(length, limit)

    def stride_within(self, window_length: int) -> int:
        """
        Say how many tokens each scoring window after the first predicts.

        Args:
            window_length (`int`):
                Tokens in a window.

        Returns:
            `int`: `args.stride`; by default half of the window with the prompt in context, else all of it.
        """
        if self.args.prompt == "none":
            return window_length
        return self.args.stride or default_stride(window_length)

    @property
    def _is_running(self) -> bool:
        return self._running is not None and self._running() is not None

    def _check_free(self) -> None:
        if self._is_running:
            raise StateError(
                "An episode is running: `adapt`, `episodes`, `evaluate` and `predict` cannot be called from its "
                "callbacks, because they share one optimizer. Call them before or after it."
            )

    @contextmanager
    def _ready_to_train(self, snapshot: Snapshot, num_documents: int) -> Iterator[OptimizerState]:
        """Make steps possible inside; outside, the optimizer is fresh and the model's settings are as before."""
        args = self.args
        internals.prepare_optimizer(self)
        optimizer = OptimizerState(self)
        if self.method.trains:
            internals.prepare_scheduler(self, 1)  # one that cannot be made is refused before the work
        steps = num_documents * args.num_neighbors * int(args.chunks_per_neighbor or 1) * int(args.num_train_epochs)
        with ExitStack() as stack:
            stack.callback(setattr, self, "_running", None)
            # weakly: an interrupt between two lines cannot leave the mark behind
            self._running = weakref.ref(optimizer)
            stack.callback(undisturbed, optimizer.close)
            stack.enter_context(internals.training_state(self, steps))
            stack.enter_context(torch.inference_mode(False))  # which turns gradients on as well
            stack.enter_context(prepared_for_training(self.model, args.disable_dropout))
            stack.enter_context(internals.activation_checkpointing(self))
            internals.fire(self, "on_train_begin")
            yield optimizer
            internals.fire(self, "on_train_end")

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Give the names of all parameters: the method decays every one."""
        return [name for name, _ in model.named_parameters()]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401
        """
        Give the mean loss of the next token, computed from the logits: the loss of some models is not shifted.

        `train` has the loss of the model itself, as `Trainer`.
        """
        if not self._is_running:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels, weight = inputs.pop("labels"), inputs.pop("loss_weight")
        options = {"output_router_logits": True} if self.args.router_aux_loss else {}
        head = self.head
        if head is not None and (
            return_outputs or head.weight.dtype != torch.float32 or torch.is_autocast_enabled(head.weight.device.type)
        ):
            head = None
        with last_row_only(head) as seen:
            outputs = model(**inputs, **options)
        if head is None or not seen:
            loss = next_token_loss(outputs.logits, labels)
        elif is_last_row(head, seen[0], outputs.logits):
            loss = head_loss(head, seen[0], labels)
        else:  # a hook of the user's, or a model that does something else in training
            self.hands_out_logits = False
            outputs = model(**inputs, **options)
            loss = next_token_loss(outputs.logits, labels)
        if self.args.router_aux_loss:
            loss = loss + self.model.config.get_text_config().router_aux_loss_coef * outputs.aux_loss
        loss = loss * weight
        return (loss, outputs) if return_outputs else loss

    def compute_loss_context_manager(self) -> ExitStack:
        """Enter the context of mixed precision, if `bf16` or `fp16` ask for it."""
        return internals.autocast(self, super().compute_loss_context_manager())
