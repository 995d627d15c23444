"""
What a method is, and the library's own: test-time training on nearest neighbors.

The help of the command line reads methods: neither this file nor a method imports torch or transformers before it is
used.
"""

from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from tttnn.adaptation.options import (
    THROUGH_PEFT,
    NeighborStepArguments,
    RetrievalArguments,
    StepArguments,
    TrainableArguments,
)
from tttnn.errors import InputError


if TYPE_CHECKING:
    from tttnn.adaptation.arguments import TestTimeTrainingArguments
    from tttnn.adaptation.episode import Episode
    from tttnn.adaptation.trainer import TestTimeTrainer


@dataclass(frozen=True)
class Method:
    """
    How a document is scored: what is done for it between its first score and its last.

    A method is handed to `TestTimeTrainer`, which runs an episode for each document: neighbors are retrieved if the
    method `retrieves`, then it calls `score_before` and `score_after`, then restores the model. A subclass overrides
    what differs. No method takes a step on a token, or reads it, before that token is scored.

    Args:
        trainable (`TrainableArguments`, *optional*):
            What `make_trainable` made the model with. With `None` the model is trained as it was passed.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    retrieves: ClassVar[bool] = True
    trains: ClassVar[bool] = True
    # whether `start` changes the model
    starts: ClassVar[bool] = False
    # whether what it does changes the words that the model generates
    generates: ClassVar[bool] = True
    # whether it is left in float32 where the precision is open
    stays_in_float32: ClassVar[bool] = False
    # whether `candidates` may list several, to choose from on validation documents
    chooses: ClassVar[bool] = False
    # dataclasses of the options that are its own, by the name of its argument that takes them
    own_options: ClassVar[dict[str, type]] = {}

    trainable: TrainableArguments | None = None

    @classmethod
    def options(cls) -> list[type]:
        """
        List the dataclasses of all options that the method has a use for.

        Returns:
            `list[type]`: those for retrieving and for steps, then its own.
        """
        shared = [RetrievalArguments] * cls.retrieves + [StepArguments] * cls.trains
        both = [NeighborStepArguments] * (cls.retrieves and cls.trains)
        return [*shared, *both, *cls.own_options.values()]

    @classmethod
    def required_options(cls) -> list[str]:
        """
        List the own options without which the method cannot be made.

        Returns:
            `list[str]`: their names.
        """
        groups = cls.own_options.values()
        return [
            item.name
            for group in groups
            for item in fields(group)
            if item.default is MISSING and item.default_factory is MISSING
        ]

    def prepared_for(self, trainer: "TestTimeTrainer") -> "Method":
        """
        Check that the method suits a trainer's model and arguments; the trainer calls this when it is made.

        Args:
            trainer (`TestTimeTrainer`):
                With its model, arguments and `max_length`.

        Returns:
            `Method`: this one, or a copy in which what depends on the model is filled in.

        Raises:
            `ValueError`: If it does not suit them.
        """
        from tttnn.adaptation.requirements import is_peft

        if self.trainable is not None and (self.trainable.trainable in THROUGH_PEFT) != is_peft(trainer.model):
            raise InputError(
                f"`trainable` is {self.trainable.trainable!r}, but the model is a {type(trainer.model).__name__}. "
                "Pass what `make_trainable` made of it, with the same arguments."
            )
        return self

    def candidates(self) -> list["Method"]:
        """
        List the method with each of the settings that one pass scores, to choose from on validation documents.

        With several, a record has a score for each, in this order, after the score before. `settings` then has lists
        of the values to choose from, and the first of them varies fastest.

        Returns:
            `list[Method]`: by default this method alone.
        """
        return [self]

    def needs_neighbors(self, args: "TestTimeTrainingArguments") -> bool:
        """
        Whether neighbors are retrieved for a document.

        Args:
            args (`TestTimeTrainingArguments`):
                The trainer's arguments.

        Returns:
            `bool`: False for a method that would not use them.
        """
        return self.retrieves

    def settings(self) -> dict[str, Any]:
        """
        Say what the method's numbers depend on beside the trainer's arguments, for the journal.

        Returns:
            `dict[str, Any]`: `method`, and the method's own options by name.
        """
        return {"method": self.name, **(asdict(self.trainable) if self.trainable is not None else {})}

    def score_before(self, episode: "Episode") -> None:
        """
        Append the first score: that of the model without what the method adds.

        An untrained prefix changes what a model says, and takes room in its context, so adapters that
        `make_trainable` has just added are off, and windows have the base model's length.

        Args:
            episode (`Episode`):
                The document.
        """
        if self.trainable is None or self.trainable.trainable not in THROUGH_PEFT:
            episode.score()
            return
        from tttnn.adaptation.requirements import num_positions

        length = episode.trainer.window_length_within(num_positions(episode.model))
        with episode.model.disable_adapter():  # type: ignore[operator]
            episode.score(episode.scored_text.cut(length, episode.trainer.stride_within(length)))

    def start(self, episode: "Episode") -> None:
        """
        Change the model for a document before any step on it; `TestTimeTrainer.adapt` does so too.

        Args:
            episode (`Episode`):
                The document, with its neighbors.
        """

    def adapt(self, episode: "Episode") -> bool:
        """
        Do for a document what is done before its last score, without a score: `TestTimeTrainer.adapt` and generation.

        Args:
            episode (`Episode`):
                The document, with its neighbors.

        Returns:
            `bool`: whether the model was changed.
        """
        self.start(episode)
        changed, train_on = self.starts, episode.trainer.args.train_on
        if self.trains and train_on != "query":
            changed = any([is_step for _, is_step in episode.train_on_neighbors()]) or changed
        if self.trains and train_on != "neighbors":
            changed = episode.train_on_query() or changed
        return changed

    def lay_before(self, episode: "Episode", room: int | None) -> list[int]:
        """
        Lay out what is read before the prompt when text is generated.

        Args:
            episode (`Episode`):
                The prompt, with its neighbors.
            room (`int`, *optional*):
                Tokens that the model's context has left for it; `None` for a model without positions.

        Returns:
            `list[int]`: tokens, at most `room`; by default none.
        """
        return []

    def score_after(self, episode: "Episode") -> None:
        """
        Adapt to the document, and append the score or scores that this leads to.

        Args:
            episode (`Episode`):
                The document, with its neighbors.
        """
        self.start(episode)
        if not self.trains:
            self.score_adapted(episode)
            return
        args = episode.trainer.args
        for num_neighbors, changed in episode.train_on_neighbors() if args.train_on != "query" else ():
            if args.score_every_neighbor:
                # the score is the same between the neighbors of one step, and after neighbors without a token
                episode.repeat_score(num_neighbors - changed)
                if changed:
                    self.score_adapted(episode)
        changed = args.train_on != "neighbors" and episode.train_on_query()
        if args.train_on == "query" and not changed:
            episode.note_empty_query()
        if changed or not args.score_every_neighbor:
            self.score_adapted(episode)

    def score_adapted(self, episode: "Episode") -> None:
        """
        Append a score of the document as the method scores it.

        Args:
            episode (`Episode`):
                The document.
        """
        episode.score()


@dataclass(frozen=True)
class TestTimeTraining(Method):
    """
    A step on each neighbor of a document, nearest first, and then its score: `--method ttt`.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3.
    """

    __test__ = False  # pytest would collect it because of its name

    name = "ttt"
    description = "a step on each neighbor"
    own_options = {"trainable": TrainableArguments}

    def needs_neighbors(self, args: "TestTimeTrainingArguments") -> bool:
        """Retrieve none for steps on the query alone."""
        return args.train_on != "query"
