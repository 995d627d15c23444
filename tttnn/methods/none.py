"""No adaptation: the model as it was loaded."""

from dataclasses import dataclass

from tttnn.adaptation import Episode, Method


@dataclass(frozen=True)
class NoAdaptation(Method):
    """Scores the model as it was loaded, once, and retrieves nothing: `--method none`."""

    name = "none"
    description = "the model as it comes"
    retrieves = False
    trains = False

    def score_after(self, episode: Episode) -> None:
        """Leave the score before as the last one."""
