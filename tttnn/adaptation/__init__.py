"""Adapting a model to a document: steps on its neighbors, scores before and after, the weights as they were."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.adaptation.adaptation_cache import AdaptationCache
    from tttnn.adaptation.arguments import TestTimeTrainingArguments
    from tttnn.adaptation.callbacks import JournalCallback, TestTimeCallback
    from tttnn.adaptation.episode import Episode
    from tttnn.adaptation.episodes import Episodes
    from tttnn.adaptation.method import Method, TestTimeTraining
    from tttnn.adaptation.mixture import mix_online
    from tttnn.adaptation.ngram_cache import NgramCache
    from tttnn.adaptation.options import (
        SIZES,
        THROUGH_PEFT,
        NeighborStepArguments,
        RetrievalArguments,
        RunArguments,
        ScoringArguments,
        StepArguments,
        TrainableArguments,
    )
    from tttnn.adaptation.precision import PrecisionChoice, choose_precision
    from tttnn.adaptation.presets import PRESETS, preset_settings
    from tttnn.adaptation.progress import DocumentProgressCallback
    from tttnn.adaptation.requirements import context_length
    from tttnn.adaptation.restore import random_states_kept, restored
    from tttnn.adaptation.scoring import ScoredText, TokenNll, lay_out_context, next_token_loss, score
    from tttnn.adaptation.settings import run_settings, tokenizer_digest, weights_digest
    from tttnn.adaptation.steps import NotFiniteError, in_model
    from tttnn.adaptation.stopping import NeighborEarlyStoppingCallback
    from tttnn.adaptation.text_checks import check_vocabulary, warn_of_counted_ids
    from tttnn.adaptation.trainable import make_trainable
    from tttnn.adaptation.trainer import TestTimeTrainer
    from tttnn.adaptation.tuning import CurveRow, Tuning, read_tuning
    from tttnn.adaptation.windows import Window, prefix_token_id, scoring_windows, split_document

__all__ = [
    "AdaptationCache",
    "CurveRow",
    "DocumentProgressCallback",
    "Episode",
    "Episodes",
    "JournalCallback",
    "Method",
    "NeighborEarlyStoppingCallback",
    "NeighborStepArguments",
    "NgramCache",
    "NotFiniteError",
    "RunArguments",
    "PRESETS",
    "PrecisionChoice",
    "RetrievalArguments",
    "SIZES",
    "ScoredText",
    "ScoringArguments",
    "StepArguments",
    "THROUGH_PEFT",
    "TestTimeCallback",
    "TestTimeTrainer",
    "TestTimeTraining",
    "TestTimeTrainingArguments",
    "TokenNll",
    "TrainableArguments",
    "Tuning",
    "Window",
    "check_vocabulary",
    "choose_precision",
    "context_length",
    "in_model",
    "lay_out_context",
    "make_trainable",
    "mix_online",
    "next_token_loss",
    "prefix_token_id",
    "preset_settings",
    "random_states_kept",
    "read_tuning",
    "restored",
    "run_settings",
    "score",
    "scoring_windows",
    "split_document",
    "tokenizer_digest",
    "warn_of_counted_ids",
    "weights_digest",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "AdaptationCache": "adaptation_cache",
        "CurveRow": "tuning",
        "DocumentProgressCallback": "progress",
        "Episode": "episode",
        "Episodes": "episodes",
        "JournalCallback": "callbacks",
        "Method": "method",
        "NeighborEarlyStoppingCallback": "stopping",
        "NgramCache": "ngram_cache",
        "NotFiniteError": "steps",
        "PRESETS": "presets",
        "PrecisionChoice": "precision",
        "SIZES": "options",
        "THROUGH_PEFT": "options",
        "ScoredText": "scoring",
        "TestTimeCallback": "callbacks",
        "TestTimeTrainer": "trainer",
        "TestTimeTraining": "method",
        "TestTimeTrainingArguments": "arguments",
        "TokenNll": "scoring",
        "TrainableArguments": "options",
        "Tuning": "tuning",
        "Window": "windows",
        "check_vocabulary": "text_checks",
        "choose_precision": "precision",
        "context_length": "requirements",
        "in_model": "steps",
        "lay_out_context": "scoring",
        "make_trainable": "trainable",
        "mix_online": "mixture",
        "next_token_loss": "scoring",
        "prefix_token_id": "windows",
        "preset_settings": "presets",
        "random_states_kept": "restore",
        "read_tuning": "tuning",
        "restored": "restore",
        "run_settings": "settings",
        "score": "scoring",
        "scoring_windows": "windows",
        "split_document": "windows",
        "tokenizer_digest": "settings",
        "warn_of_counted_ids": "text_checks",
        "weights_digest": "settings",
        "NeighborStepArguments": "options",
        "RunArguments": "options",
        "RetrievalArguments": "options",
        "ScoringArguments": "options",
        "StepArguments": "options",
    },
)
