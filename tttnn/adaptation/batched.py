"""Many documents at once: their adapters in one forward and backward pass, each document as it would be alone."""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from transformers import TrainerControl
from transformers.utils import logging

from tttnn.adaptation import internals
from tttnn.adaptation.callbacks import dispatch
from tttnn.adaptation.episode import Episode
from tttnn.adaptation.scoring import next_token_loss
from tttnn.adaptation.stacked import ADVICE, StackedAdapters
from tttnn.adaptation.steps import Chunks, raise_not_finite
from tttnn.documents import Document
from tttnn.errors import StateError
from tttnn.records import DocumentRecord


if TYPE_CHECKING:
    from tttnn.adaptation.episodes import Episodes
    from tttnn.adaptation.trainer import TestTimeTrainer

logger = logging.get_logger(__name__)


class Plan:
    """The steps that one document takes: those of `Method.score_after`, known before the first is taken."""

    def __init__(self, trainer: "TestTimeTrainer", episode: Episode) -> None:
        args, start = trainer.args, perf_counter()
        self.episode = episode
        self.texts: dict[str, list[Chunks]] = {"neighbors": [], "query": []}
        if args.train_on != "query":
            self.texts["neighbors"] = [episode.chunks_of(neighbor) for neighbor in episode.neighbors]
        if args.train_on != "neighbors":
            self.texts["query"] = [[chunk] for chunk in episode.chunks_of_query()]
        weights = {"neighbors": episode.weights, "query": [1.0] * len(self.texts["query"])}
        self.chunks: list[list[int]] = []
        self.weights: list[float] = []
        self.rates: list[float] = []
        for name in self.texts:
            self.texts[name] *= int(args.num_train_epochs)
            for chunks, weight in zip(self.texts[name], weights[name] * int(args.num_train_epochs), strict=True):
                self.chunks += chunks
                self.weights += [weight] * len(chunks)
            # neighbors and query have a schedule each
            self.rates += internals.learning_rates(trainer, len(self.chunks) - len(self.rates))
        self.losses: list[float] = []  # of each step; NaN for one without a target
        episode.record.seconds["train"] += perf_counter() - start

    def finish(self) -> None:
        """Write the losses into the record, as means of the chunks of each text."""
        record, losses = self.episode.record, iter(self.losses)
        means: dict[str, list[float]] = {"neighbors": [], "query": []}
        for name, texts in self.texts.items():
            for chunks in texts:
                values = [loss for loss in islice(losses, len(chunks)) if not math.isnan(loss)]
                means[name].append(sum(values) / len(values) if values else math.nan)
        record.train_loss, record.query_train_loss = means["neighbors"], means["query"]
        record.num_trained_tokens += sum(map(len, self.chunks))


class DocumentBatches:
    """
    Documents in batches, each trained as it would be alone; `Episodes.run_all` uses it for `batch_documents`.

    The steps of a batch are taken together, the first of each document, then the second. A document that has taken all
    of its steps leaves the passes: nothing of it changes any more. Retrieving and scoring are those of the episode,
    document by document.

    Args:
        episodes (`Episodes`):
            Of a trainer that `check_batching` has found nothing against.
    """

    def __init__(self, episodes: "Episodes") -> None:
        self.episodes = episodes
        self.trainer = episodes.trainer
        self.size = self.trainer.args.documents_at_once

    def run(self, documents: Iterable[tuple[int, Document]]) -> Iterator[DocumentRecord]:
        """Run documents; give the record of each when it is finished."""
        documents = iter(documents)
        while batch := list(islice(documents, self.size)):
            yield from self._run_batch(batch)

    def _run_batch(self, documents: list[tuple[int, Document]]) -> Iterator[DocumentRecord]:
        batch = []
        for index, document in documents:
            batch.append(self.episodes.begin(document, index))
            self.episodes.add_total(batch[-1].record)
        rows = self.train([episode for episode in batch if episode.record.error is None])
        for episode in batch:
            if episode.record.error is None:
                episode.record.status = "trained"
                if id(episode) in rows:
                    rows.pop(id(episode))()
                elif self.trainer.args.train_on == "query":
                    episode.note_empty_query()
                self.trainer.method.score_adapted(episode)
            yield self.episodes.finish(episode)

    def train(self, batch: list[Episode]) -> dict[int, Callable[[], None]]:
        """Take the steps of documents, and note them; give what loads the adapter of each, by its episode's `id`."""
        plans = [Plan(self.trainer, episode) for episode in batch]
        rows = self._train([plan for plan in plans if plan.chunks])
        records = [episode.record for episode in batch]
        self.episodes.add_total(*records, shares=[record.seconds["train"] for record in records])
        for plan in plans:
            plan.finish()
        return rows

    def _train(self, plans: list[Plan]) -> dict[int, Callable[[], None]]:
        """Train as many at once as there is memory for; give what loads the adapter of each, by its episode."""
        # the longest first, so that those that have a step left are always the first ones
        groups, rows = [sorted(plans, key=lambda plan: -len(plan.chunks))], {}
        while groups:
            group = groups.pop(0)
            if not group:
                continue
            try:
                rows.update(self._train_group(group))
                continue
            except (RuntimeError, MemoryError) as error:
                if len(group) == 1 or not internals.is_out_of_memory(error):
                    raise
            # outside of `except`, where the error still holds the tensors
            half = -(-len(group) // 2)
            self.size = min(self.size, half)
            logger.warning(
                f"There is no memory for {len(group)} documents at once. They are trained again, and the next ones "
                f"too, with {half} at once; nothing is lost. Pass `batch_documents={half}` to begin so."
            )
            internals.empty_cache()
            groups = [group[:half], group[half:], *groups]
        return rows

    def _train_group(self, plans: list[Plan]) -> dict[int, Callable[[], None]]:
        trainer = self.trainer
        for plan in plans:
            plan.losses = []
        trainer.control = TrainerControl()
        for plan in reversed(plans):  # a bar shows the last, which has most steps
            dispatch(trainer, "on_steps_begin", record=plan.episode.record, num_steps=len(plan.chunks))
        stacked = StackedAdapters(trainer.model, len(plans))
        rows = list(stacked.rows)
        optimizer = internals.make_row_optimizer(trainer, rows)
        trainer.model.train()
        with stacked.in_place():
            for number in range(len(plans[0].chunks)):
                start = perf_counter()
                active = [plan for plan in plans if number < len(plan.chunks)]
                self._take_step(stacked, optimizer, rows, active, number)
                seconds = (perf_counter() - start) / len(active)
                for plan in active:
                    plan.episode.record.seconds["train"] += seconds
                    plan.episode.record.seconds["model"] += seconds
        stacked.drop_gradients()
        for row in rows:
            row.grad = None
        return {id(plan.episode): _loader(stacked, row) for plan, row in zip(plans, rows, strict=True)}

    def _take_step(
        self,
        stacked: StackedAdapters,
        optimizer: torch.optim.Optimizer,
        rows: list[torch.Tensor],
        plans: list[Plan],
        number: int,
    ) -> None:
        """Take one step of each document; without a gradient, the optimizer leaves a row and its moments alone."""
        trainer = self.trainer
        internals.fire(trainer, "on_step_begin")
        losses = self._add_gradients(stacked, plans, number)
        norms = stacked.clip(len(plans), trainer.args.max_grad_norm)
        internals.fire(trainer, "on_pre_optimizer_step")
        for place, (row, group) in enumerate(zip(rows, optimizer.param_groups, strict=True)):
            row.grad = stacked.grads[place] if place < len(plans) else None
            group["lr"] = plans[place].rates[number] if place < len(plans) else 0.0
        optimizer.step()
        internals.fire(trainer, "on_optimizer_step")
        for plan, loss in zip(plans, losses, strict=True):
            plan.losses.append(loss)
        trainer.state.global_step += 1
        internals.fire(trainer, "on_step_end")
        if trainer.control.should_log:
            values = [loss for loss in losses if not math.isnan(loss)]
            mean = sum(values) / len(values) if values else math.nan
            trainer.log({"loss": mean, "learning_rate": plans[0].rates[number], "grad_norm": norms.mean().item()})
        if trainer.control.should_training_stop:
            raise StateError(
                "A callback stopped the training of a document, and with `batch_documents` a step belongs to several. "
                f"Leave the callback out, or: {ADVICE}"
            )

    def _add_gradients(self, stacked: StackedAdapters, plans: list[Plan], number: int) -> list[float]:
        """Add up the gradients of one chunk of each document, and give the losses, NaN for one without a target."""
        trainer = self.trainer
        chunks = [plan.chunks[number] for plan in plans]
        places = [place for place, chunk in enumerate(chunks) if len(chunk) > 1]
        losses = [math.nan] * len(plans)
        if not places:
            stacked.grads.zero_()
            return losses
        with trainer.compute_loss_context_manager():
            logits = stacked.read(trainer.model, chunks)
            each = [
                next_token_loss(logits[place : place + 1, : len(chunks[place])], torch.tensor([chunks[place]]))
                for place in places
            ]
            values = torch.stack(each)
            weights = torch.tensor([plans[place].weights[number] for place in places], device=values.device)
        stacked.backward((values * weights).sum())
        for place, loss in zip(places, values.tolist(), strict=True):
            record = plans[place].episode.record
            if not math.isfinite(loss):
                raise_not_finite(f"training loss of document {record.index} ('{record.id}')", loss)
            losses[place] = loss
        return losses


def _loader(stacked: StackedAdapters, row: torch.Tensor) -> Callable[[], None]:
    return lambda: stacked.load(row)
