"""Adapters that were trained ahead of time, one for each part of a corpus, merged for each document."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from tttnn.adaptation import Method, TrainableArguments
from tttnn.errors import InputError
from tttnn.methods.expert_files import Experts, read_experts
from tttnn.neighbors import describe_retriever


if TYPE_CHECKING:
    import torch

    from tttnn.adaptation import Episode, TestTimeTrainer


@dataclass
class ExpertArguments:
    """
    Which experts there are, and how many are merged.

    Args:
        experts (`str`):
            Folder that `tttnn train-experts` wrote.
        num_experts (`int`, *optional*, defaults to `3`):
            The nearest that are merged for a document.
        expert_temperature (`float`, *optional*, defaults to `0.1`):
            An expert weighs exp(-d / temperature), with d the squared L2 distance of the query from the center of its
            part; the weights of a document are scaled to 1.

    Raises:
        `ValueError`: If a value is out of range.
    """

    experts: str = field(metadata={"help": "Folder that `tttnn train-experts` wrote."})
    num_experts: int = field(default=3, metadata={"help": "Nearest experts that are merged for a document."})
    expert_temperature: float = field(
        default=0.1, metadata={"help": "An expert weighs exp(-d / N), with d the squared distance from its center."}
    )

    def __post_init__(self) -> None:
        if self.num_experts < 1:
            raise InputError(f"`num_experts` is {self.num_experts}. Pass at least 1.")
        if not 0 < self.expert_temperature < float("inf"):
            raise InputError(f"`expert_temperature` is {self.expert_temperature}. Pass a temperature above 0.")


@dataclass(frozen=True)
class MergedExperts(Method):
    """
    Scores a document with its nearest experts merged into the model, and takes no step: `--method experts`.

    An expert is a LoRA adapter, trained on one part of the index by `tttnn train-experts`. The merged change of a
    weight is exactly the weighted sum of the experts' changes: their matrices stand side by side in one adapter of the
    summed rank.

    Args:
        experts (`ExpertArguments`):
            Which, and how many are merged.

    Source: TTMM, [arXiv 2505.14136](https://huggingface.co/papers/2505.14136).
    """

    name = "experts"
    description = "adapters that were trained ahead of time, merged; no step"
    trains = False
    starts = True
    own_options = {"experts": ExpertArguments}

    experts: ExpertArguments | None = None
    # what the folder holds; read when the method is made, because the model's adapter takes its rank from it
    files: Experts | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.experts is None:
            raise InputError(
                f"The method '{self.name}' needs experts. Pass `experts=ExpertArguments(FOLDER)`; `tttnn "
                "train-experts` writes the folder."
            )
        if self.trainable is not None and self.trainable.trainable not in ("full", "lora"):
            raise InputError(f"Experts are LoRA, and `trainable` is {self.trainable.trainable!r}. Leave it out.")
        files = self.files or read_experts(self.experts.experts)
        if self.experts.num_experts > len(files):
            raise InputError(
                f"`num_experts` is {self.experts.num_experts}, and '{files.folder}' has {len(files)}. Pass at most "
                "that."
            )
        rank = files.lora_rank * self.experts.num_experts
        object.__setattr__(self, "files", files)
        object.__setattr__(self, "trainable", TrainableArguments("lora", lora_rank=rank))

    def prepared_for(self, trainer: "TestTimeTrainer") -> Method:
        """Check that the experts are of this model and index, and that no rule on neighbors would be broken."""
        method, files = super().prepared_for(trainer), self.files
        assert files is not None
        files.check(trainer.model, describe_retriever(trainer.retriever)["index"])
        for name in ("exclude", "drop_near_copies", "max_distance"):
            if getattr(trainer.args, name):
                raise InputError(
                    f"`{name}` keeps neighbors away, and experts were trained on all parts of the index. Leave it "
                    "out, or choose a method that trains on neighbors."
                )
        return replace(method, files=files.loaded(trainer.model))  # type: ignore[call-arg]

    def settings(self) -> dict[str, Any]:
        """Name the method, its options and the content of the experts' folder."""
        assert self.experts is not None
        assert self.files is not None
        options = {name: value for name, value in vars(self.experts).items() if name != "experts"}
        return {**super().settings(), **options, "experts": self.files.digest}

    def start(self, episode: "Episode") -> None:
        """Write the merged experts into the adapter."""
        start, (chosen, weights) = perf_counter(), self.choose(episode)
        assert self.files is not None
        self.files.merge_into(episode.model, chosen, weights)
        episode.record.seconds["train"] += perf_counter() - start

    def choose(self, episode: "Episode") -> tuple[list[int], list[float]]:
        """
        Choose the experts of a document by its query.

        Args:
            episode (`Episode`):
                The document.

        Returns:
            `tuple[list[int], list[float]]`: numbers of the experts, nearest first, and their weights, of sum 1.
        """
        assert self.experts is not None
        assert self.files is not None
        query, _ = episode.vectors([])
        distances = np.square(self.files.centers - query).sum(axis=1, dtype=np.float64)
        chosen = np.argsort(distances, kind="stable")[: self.experts.num_experts]
        weights = np.exp((distances[chosen[0]] - distances[chosen]) / self.experts.expert_temperature)
        return chosen.tolist(), (weights / weights.sum()).tolist()

    def score_after(self, episode: "Episode") -> None:
        """Score with the merged experts; the adapter is as before afterwards."""
        with _kept(episode.model):
            self.start(episode)
            self.score_adapted(episode)


@dataclass(frozen=True)
class ExpertsAndTraining(MergedExperts):
    """Takes a step on each neighbor, from the merged experts on, and then scores: `--method experts+ttt`."""

    name = "experts+ttt"
    description = "the same, then a step on each neighbor"
    trains = True

    def score_after(self, episode: "Episode") -> None:
        """Merge, train and score."""
        Method.score_after(self, episode)


@contextmanager
def _kept(model: "torch.nn.Module") -> Iterator[None]:
    """Bring the adapter back to the bit."""
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    copies = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_([*parameters], copies)
