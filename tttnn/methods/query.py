"""Steps on the query alone: what is known of a document teaches the model before the rest is scored."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tttnn.adaptation import Method, TrainableArguments
from tttnn.errors import InputError


if TYPE_CHECKING:
    from tttnn.adaptation import Episode, TestTimeTrainer


@dataclass(frozen=True)
class Query(Method):
    """
    Takes a step on each chunk of the query, and then scores the rest of the document: `--method query`.

    It is the dynamic evaluation of the method's authors (their option `dynamic_eval`), for documents that are split.
    """

    name = "query"
    description = "a step on each chunk of the query; no neighbors"
    retrieves = False
    own_options = {"trainable": TrainableArguments}

    def prepared_for(self, trainer: "TestTimeTrainer") -> Method:
        """Refuse the whole document as a query: it would be trained on before it is scored."""
        if trainer.args.query == "document":
            raise InputError(
                "The method 'query' takes steps on the query, and `query` is 'document': that is the text to score. "
                "Pass `query='prefix'`, or the method 'dynamic'."
            )
        return super().prepared_for(trainer)

    def adapt(self, episode: "Episode") -> bool:
        """Train on the query."""
        return episode.train_on_query()

    def score_after(self, episode: "Episode") -> None:
        """Train on the query, if it has a token, and score."""
        if not episode.train_on_query():
            episode.note_empty_query()
        self.score_adapted(episode)
