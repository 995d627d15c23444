"""Adapting a model to a document: steps on its neighbors, scores before and after, the weights as they were."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.adaptation.arguments import TestTimeTrainingArguments
    from tttnn.adaptation.callbacks import JournalCallback, TestTimeCallback
    from tttnn.adaptation.presets import PRESETS
    from tttnn.adaptation.progress import DocumentProgressCallback
    from tttnn.adaptation.restore import restored
    from tttnn.adaptation.stopping import NeighborEarlyStoppingCallback
    from tttnn.adaptation.trainable import TrainableArguments, make_trainable
    from tttnn.adaptation.trainer import TestTimeTrainer

__all__ = [
    "DocumentProgressCallback",
    "JournalCallback",
    "NeighborEarlyStoppingCallback",
    "PRESETS",
    "TestTimeCallback",
    "TestTimeTrainer",
    "TestTimeTrainingArguments",
    "TrainableArguments",
    "make_trainable",
    "restored",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "DocumentProgressCallback": "progress",
        "JournalCallback": "callbacks",
        "NeighborEarlyStoppingCallback": "stopping",
        "PRESETS": "presets",
        "TestTimeCallback": "callbacks",
        "TestTimeTrainer": "trainer",
        "TestTimeTrainingArguments": "arguments",
        "TrainableArguments": "trainable",
        "make_trainable": "trainable",
        "restored": "restore",
    },
)
