"""Progress bars: one over documents and, within a document, one over its steps; how long the rest takes."""

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments

from tttnn.adaptation.callbacks import TestTimeCallback
from tttnn.records import DocumentRecord


LONG_WORK = 120  # seconds from which on an estimate is worth a line


class DocumentProgressCallback(TestTimeCallback):
    """
    Progress bars: one over documents and, within a document, one over its steps.

    After the first document, one line says how long the others will take, if that is long. `adapt` shows the bar of
    steps only. Of several processes on a machine, the first one shows its bars; the bar of documents then counts those
    that any process has taken.
    """

    def __init__(self) -> None:
        self.records: dict[int, DocumentRecord] = {}
        self.num_steps = 0
        self.has_estimated = False
        self.document_bar: Any = None
        self.step_bar: Any = None

    def on_evaluation_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar of documents."""
        self.records, self.num_steps, self.has_estimated = kwargs["records"], 0, False
        if state.is_local_process_zero:
            self.document_bar = tqdm(total=len(kwargs["documents"]), desc="Documents", unit="document")

    def on_document_begin(self, *_: Any, record: DocumentRecord, **kwargs: Any) -> None:
        """Count the documents that are done, those of an earlier run included."""
        if self.document_bar is not None and self.document_bar.n < len(self.records):
            self.document_bar.initial = self.document_bar.n = len(self.records)
            self.document_bar.refresh()

    def on_steps_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, num_steps: int, **kwargs: Any
    ) -> None:
        """Show the bar of steps, at zero."""
        self.num_steps = num_steps
        if self.step_bar is not None:
            self.step_bar.reset(num_steps)
        elif state.is_local_process_zero:
            self.step_bar = tqdm(total=num_steps, desc="Steps on its neighbors", unit="step", leave=False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count a step."""
        if self.step_bar is not None:
            self.step_bar.update()

    def on_document_end(self, args: TrainingArguments, *_: Any, record: DocumentRecord, **kwargs: Any) -> None:
        """Count a document and show its score."""
        if self.document_bar is None:
            self._close()  # the steps of `adapt`
            return
        before, after = record.bits_per_byte(0), record.bits_per_byte(-1)
        self.document_bar.set_postfix_str(f"{before:.3f} -> {after:.3f} bits per byte", refresh=False)
        # documents are taken in their order, so that all before this one are taken too
        self.document_bar.update(max(1, record.index + 1 - self.document_bar.n) if args.world_size > 1 else 1)
        if not self.has_estimated and record.error is None:
            self.has_estimated = True
            left = self.document_bar.total - self.document_bar.n
            seconds = record.seconds["total"] * left / args.world_size
            if seconds >= LONG_WORK:
                self._write_estimate(seconds)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bars of episodes that ended without an evaluation."""
        if self.document_bar is None:
            self._close()

    def on_evaluation_end(self, *_: Any, **kwargs: Any) -> None:
        """Close both bars."""
        self._close()

    def _write_estimate(self, seconds: float) -> None:
        """Write a line that says how long the documents take that are left."""
        time = f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
        left = self.document_bar.total - self.document_bar.n
        work = f"{left} document{'s' * (left > 1)}" + (f" x {self.num_steps} steps" if self.num_steps else "")
        tqdm.write(f"About {time}: {work}, if each takes as long as the first one.", file=sys.stderr)

    def _close(self) -> None:
        for bar in (self.step_bar, self.document_bar):
            if bar is not None:
                bar.close()
        self.step_bar = self.document_bar = None
