"""Callbacks of test-time training: documents as events, and the journal."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState

from tttnn.adaptation import internals
from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.documents import Document
from tttnn.errors import StateError
from tttnn.journal import Journal, check_same
from tttnn.records import DocumentRecord


if TYPE_CHECKING:
    from tttnn.adaptation.trainer import TestTimeTrainer


class TestTimeCallback(TrainerCallback):
    """
    Base class of callbacks that follow test-time training document by document.

    The events of `TrainerCallback` fire for every inner step: `on_step_begin`, `on_pre_optimizer_step`,
    `on_optimizer_step`, `on_substep_end`, `on_step_end` and `on_log`, between one `on_train_begin` and `on_train_end`
    per evaluation. `control.should_training_stop` ends the training of the current document only. With
    `batch_documents`, the documents of a batch begin one after another, take their steps together, and end one after
    another; a stop is an error then. This class adds five events, and `settings`. `kwargs` hold `model`,
    `processing_class` and `optimizer`.
    """

    __test__ = False  # pytest would collect it because of its name

    def settings(self) -> dict[str, Any]:
        """
        Say how the callback changes numbers, for the journal.

        Returns:
            `dict[str, Any]`: JSON-able; nothing if it only watches.
        """
        return {}

    def on_evaluation_begin(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        metric_key_prefix: str,
        documents: Sequence[Document],
        records: dict[int, DocumentRecord],
        settings: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """
        Before the first document of `evaluate` or `predict`.

        `metric_key_prefix` is `"eval"`, `"test"`, or what was passed; `documents` are all, of which each process takes
        the next that nobody has; `settings` are what the numbers depend on. `records` holds the documents that are
        done, by their place among all: a callback that knows some from an earlier run adds them, and they are not run
        again. It fills up as this process finishes documents.
        """

    def on_evaluation_end(
        self, args: TestTimeTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """After the last document of `evaluate` or `predict`, or after an error."""

    def on_document_begin(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """Before a document is retrieved for, scored and trained on; `record` fills up as the document proceeds."""

    def on_steps_begin(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        record: DocumentRecord,
        num_steps: int,
        **kwargs: Any,
    ) -> None:
        """Before the first step on a document; `num_steps` are taken unless a callback stops before."""

    def on_document_end(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """After the last score of a document, while the model is still adapted to it; `record` is complete."""


def dispatch(trainer: "TestTimeTrainer", event: str, **kwargs: Any) -> None:
    """Send one of our events to the callbacks that know it; `CallbackHandler.call_event` fails on the others."""
    for callback in internals.callbacks(trainer):
        if isinstance(callback, TestTimeCallback):
            getattr(callback, event)(
                trainer.args,
                trainer.state,
                trainer.control,
                model=trainer.model,
                processing_class=trainer.processing_class,
                optimizer=trainer.optimizer,
                **kwargs,
            )


class JournalCallback(TestTimeCallback):
    """
    Write each finished document to a journal; the same evaluation resumes from it when it is started again.

    `evaluate()` writes `journal-eval.jsonl`, `predict()` `journal-test.jsonl`. A journal of other settings, another
    model, index or data set is refused, not mixed; what a retriever or callback of your own depends on is known from
    its `describe` or `settings`. With a carried optimizer (`reset_optimizer=False`) its state is kept beside the
    journal, in safetensors, so that a resumed run is exact.

    Args:
        folder (`str` or `Path`, *optional*):
            Where the journal goes. By default `args.output_dir`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = folder
        self.journal: Journal | None = None

    def on_evaluation_begin(
        self,
        args: TestTimeTrainingArguments,
        *_: Any,
        metric_key_prefix: str,
        documents: Sequence[Document],
        records: dict[int, DocumentRecord],
        settings: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        """Open the journal, add the documents that it holds, and bring back the state of a carried optimizer."""
        folder = Path(self.folder or args.output_dir or ".")
        self.journal = Journal(folder / f"journal-{metric_key_prefix}.jsonl", args.process_index)
        done = self.journal.open(settings)
        for index, document in enumerate(documents):
            if index in done:
                check_same(done[index], document, args.exclude)
                records[index] = done[index]
        if 0 < len(records) < len(documents) and not args.reset_optimizer:
            self._load_optimizer(kwargs["optimizer"], max(records))

    def on_evaluation_end(self, *_: Any, **kwargs: Any) -> None:
        """Close the journal."""
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    def on_document_end(self, args: TestTimeTrainingArguments, *_: Any, record: DocumentRecord, **kwargs: Any) -> None:
        """Write the document, and the state of a carried optimizer before it."""
        if self.journal is None:
            return
        if not args.reset_optimizer:
            self._save_optimizer(kwargs["optimizer"], record.index)
        self.journal.append(record)
        for path in self.journal.path.parent.glob(f"{glob.escape(self.journal.path.stem)}-optimizer-*.safetensors"):
            if path != self._optimizer_path(record.index):
                path.unlink()

    def _save_optimizer(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        """Keep the state under the document's number: a kill before its line leaves the pair before it whole."""
        tensors = {
            f"{parameter}.{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
            for parameter, values in optimizer.state_dict()["state"].items()
            for key, value in values.items()
            if value is not None
        }
        path = self._optimizer_path(index)
        try:
            save_file(tensors, path.with_suffix(".unfinished"))
        except SafetensorError as error:
            raise OSError(
                f"'{path}' could not be written ({error}). The finished documents are kept: make room and start again "
                "to resume"
            ) from error
        os.replace(path.with_suffix(".unfinished"), path)

    def _load_optimizer(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        path = self._optimizer_path(index)
        if not path.is_file():
            raise StateError(
                f"The journal ends with document {index}, but the optimizer's state after it, '{path}', is missing. "
                "With a carried optimizer the run cannot be resumed: remove the journal and start again."
            )
        state = optimizer.state_dict()
        state["state"] = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                parameter, _, key = name.partition(".")
                state["state"].setdefault(int(parameter), {})[key] = file.get_tensor(name)
        optimizer.load_state_dict(state)

    def _optimizer_path(self, index: int) -> Path:
        if self.journal is None:
            raise StateError("The journal is not open.")
        return self.journal.path.with_name(f"{self.journal.path.stem}-optimizer-{index}.safetensors")
