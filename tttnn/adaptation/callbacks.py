"""Callbacks of test-time training: documents as events, early stopping, the journal and the progress bar."""

import glob
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.errors import StateError
from tttnn.journal import Journal
from tttnn.records import DocumentRecord


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
            raise StateError(
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
            raise StateError("The journal is not open.")
        return self.journal.path.with_name(f"{self.journal.path.stem}-optimizer-{index}.safetensors")
