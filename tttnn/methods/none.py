"""Nothing trained and nothing read beside the document: what every method is compared with."""

from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from tttnn.adaptation import Method
from tttnn.errors import InputError


if TYPE_CHECKING:
    from tttnn.adaptation import Episode, TestTimeTrainer


@dataclass(frozen=True)
class NoAdaptation(Method):
    """
    Scores the model as it was loaded, once, and retrieves nothing: `--method none`.

    With `mix="cache"` there is a second score, of the model with the n-grams of the query and the earlier text.
    """

    name = "none"
    description = "the model as it comes"
    retrieves = False
    trains = False

    def prepared_for(self, trainer: "TestTimeTrainer") -> Method:
        """Refuse to mix the model with itself."""
        if trainer.args.mix in ("unadapted", "both"):
            raise InputError(
                f"`mix` is {trainer.args.mix!r}, and the method {self.name} adapts nothing: the model would be mixed "
                "with itself. Pass 'cache' or 'none', or choose another method."
            )
        return super().prepared_for(trainer)

    def score_after(self, episode: "Episode") -> None:
        """Leave the score before as the last one, unless it is to be mixed."""
        if episode.trainer.args.mix != "none":
            episode.add_score(episode.token_nll, perf_counter())


@dataclass(frozen=True)
class Prefix(NoAdaptation):
    """
    Scores the model as it was loaded after it has read the query: `--method prefix`.

    What a user has typed is in the context of every model that completes it, so this is what a method must beat.
    """

    name = "prefix"
    description = "the prompt in context, nothing trained: what a method must beat"

    def prepared_for(self, trainer: "TestTimeTrainer") -> Method:
        """Refuse to leave the prompt out."""
        if trainer.args.prompt != "context":
            raise InputError(
                "The method 'prefix' reads the prompt, and `prompt` is 'none'. Pass `prompt='context'` (and "
                "`query='prefix'`), or the method 'none'."
            )
        return super().prepared_for(trainer)
