"""Progress bars."""

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState

from tttnn.adaptation.arguments import TestTimeTrainingArguments
from tttnn.adaptation.callbacks import TestTimeCallback
from tttnn.records import DocumentRecord


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
