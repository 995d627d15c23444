"""Callbacks of test-time training: documents as events, early stopping, the journal and the progress bar."""

import glob
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState

from tttnn.journal import Journal
from tttnn.records import DocumentRecord
from tttnn.training_args import TestTimeTrainingArguments


class TestTimeCallback(TrainerCallback):
    """
    Base class of callbacks that follow test-time training document by document.

    The events of `TrainerCallback` fire for every inner step: `on_step_begin`, `on_pre_optimizer_step`,
    `on_optimizer_step`, `on_substep_end`, `on_step_end` and `on_log`, between one `on_train_begin` and `on_train_end`
    per evaluation. `control.should_training_stop` ends the training of the current document only. This class adds two
    events.
    """

    __test__ = False  # for pytest, which would collect it for its name

    def on_document_begin(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """Before a document is retrieved for, scored and trained on; `record` fills up as the document proceeds."""

    def on_document_end(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """After the last score of a document, while the model is still adapted to it; `record` is complete."""


class NeighborEarlyStoppingCallback(TestTimeCallback):
    """
    Stop training on a document when the training loss of its neighbors stops falling.

    Args:
        patience (`int`, *optional*, defaults to `3`):
            Neighbors in a row whose loss may fail to be the lowest so far.
        min_delta (`float`, *optional*, defaults to `0.0`):
            Nats per token by which a loss must undercut the lowest to count.
    """

    def __init__(self, patience: int = 3, min_delta: float = 0.0) -> None:
        if patience < 1:
            raise ValueError(f"`patience` is {patience}, but at least one neighbor must be tried. Pass 1 or more.")
        self.patience = patience
        self.min_delta = min_delta
        self.record: DocumentRecord | None = None

    def on_document_begin(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """Look at the losses of this document from here on."""
        self.record = record

    def on_step_end(
        self,
        args: TestTimeTrainingArguments,  # type: ignore[override]
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Stop where no loss has been the lowest for `patience` neighbors."""
        if self.record is None:  # a step of `train`
            return
        losses = [loss for loss in self.record.train_loss if not math.isnan(loss)]
        best = 0
        for position, loss in enumerate(losses):
            if loss < losses[best] - self.min_delta:
                best = position
        if len(losses) - 1 - best >= self.patience:
            control.should_training_stop = True

    def on_document_end(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """Forget the document."""
        self.record = None


class JournalCallback(TestTimeCallback):
    """
    Write each finished document to a journal, and go on with the journal when the same evaluation is started again.

    `evaluate()` writes `journal-eval.jsonl`, `predict()` `journal-test.jsonl`. A journal of other settings, another
    model, index or data set is refused, not mixed; what a retriever or callback of your own does cannot be seen. With
    a carried optimizer (`reset_optimizer=False`) its state is kept beside the journal, in safetensors, so that going
    on is exact.

    Args:
        folder (`str` or `Path`, *optional*):
            Where the journal goes. By default `args.output_dir`.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = folder
        self.journal: Journal | None = None

    def open(
        self, args: TestTimeTrainingArguments, prefix: str, settings: dict[str, Any]
    ) -> dict[int, DocumentRecord]:
        """
        Open the journal of an evaluation; `TestTimeTrainer` calls this.

        Args:
            args (`TestTimeTrainingArguments`):
                The trainer's arguments.
            prefix (`str`):
                `"eval"` or `"test"`.
            settings (`dict[str, Any]`):
                What the numbers depend on.

        Returns:
            `dict[int, DocumentRecord]`: the documents that are done, by index.

        Raises:
            `ValueError`: If the journal there is of other settings.
        """
        folder = Path(self.folder or args.output_dir or ".")
        self.journal = Journal(folder / f"journal-{prefix}.jsonl", args.process_index)
        return self.journal.open(settings)

    def close(self) -> None:
        """Close the journal; documents after this are not written."""
        if self.journal is not None:
            self.journal.close()
            self.journal = None

    def load_optimizer(self, optimizer: torch.optim.Optimizer, index: int) -> None:
        """
        Bring back the optimizer's state after a document; `TestTimeTrainer` calls this.

        Args:
            optimizer (`torch.optim.Optimizer`):
                The optimizer to fill.
            index (`int`):
                The last document that is done.

        Raises:
            `RuntimeError`: If no state was kept for that document.
        """
        path = self._optimizer_path(index)
        if not path.is_file():
            raise RuntimeError(
                f"The journal ends with document {index}, but the optimizer's state after it, '{path}', is missing. "
                "With a carried optimizer the run cannot go on: remove the journal and start anew."
            )
        state = optimizer.state_dict()
        state["state"] = {}
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                parameter, _, key = name.partition(".")
                state["state"].setdefault(int(parameter), {})[key] = file.get_tensor(name)
        optimizer.load_state_dict(state)

    def on_document_end(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """Write the document, and the state of a carried optimizer before it."""
        if self.journal is None:
            return
        if not args.reset_optimizer:
            # the state first, under the document's number: a kill between the two leaves the pair before whole
            tensors = {
                f"{parameter}.{key}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
                for parameter, values in kwargs["optimizer"].state_dict()["state"].items()
                for key, value in values.items()
                if value is not None
            }
            path = self._optimizer_path(record.index)
            try:
                save_file(tensors, path.with_suffix(".unfinished"))
            except SafetensorError as error:
                raise OSError(
                    f"'{path}' could not be written ({error}). The finished documents are kept: make room and start "
                    "again to go on"
                ) from error
            os.replace(path.with_suffix(".unfinished"), path)
        self.journal.append(record)
        for path in self.journal.path.parent.glob(f"{glob.escape(self.journal.path.stem)}-optimizer-*.safetensors"):
            if path != self._optimizer_path(record.index):
                path.unlink()

    def _optimizer_path(self, index: int) -> Path:
        if self.journal is None:
            raise RuntimeError("The journal is not open.")
        return self.journal.path.with_name(f"{self.journal.path.stem}-optimizer-{index}.safetensors")


class DocumentProgressCallback(TestTimeCallback):
    """Progress bars: one over documents and, within a document, one over its steps."""

    def __init__(self) -> None:
        self.document_bar: Any = None
        self.step_bar: Any = None

    def open(self, num_documents: int, done: int) -> None:
        """
        Begin the bars; `TestTimeTrainer` calls this.

        Args:
            num_documents (`int`):
                Documents of this process.
            done (`int`):
                How many of them a journal held.
        """
        self.document_bar = tqdm(total=num_documents, initial=done, desc="Documents", unit="document")
        self.step_bar = tqdm(desc="Steps on its neighbors", unit="step", leave=False)

    def close(self) -> None:
        """Close both bars."""
        for bar in (self.step_bar, self.document_bar):
            if bar is not None:
                bar.close()
        self.step_bar = self.document_bar = None

    def on_step_end(
        self,
        args: TestTimeTrainingArguments,  # type: ignore[override]
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        """Count a step."""
        if self.step_bar is not None:
            self.step_bar.update()

    def on_document_begin(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """Begin to count the steps of a document."""
        if self.step_bar is not None:
            self.step_bar.reset()

    def on_document_end(
        self,
        args: TestTimeTrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        record: DocumentRecord,
        **kwargs: Any,
    ) -> None:
        """Count a document and show its score."""
        if self.document_bar is not None:
            before, after = record.bits_per_byte(0), record.bits_per_byte(-1)
            self.document_bar.set_postfix_str(f"{before:.3f} -> {after:.3f} bits per byte", refresh=False)
            self.document_bar.update()
