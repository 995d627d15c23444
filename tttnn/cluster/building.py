"""An index built on the machines of a cluster: each takes the next shard that nobody has."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from tttnn.cluster.connection import connect, first_line
from tttnn.cluster.groups import cause_of, compute_nodes
from tttnn.documents import Corpus
from tttnn.embedding import Embedder
from tttnn.errors import ClusterError, StateError
from tttnn.index import IndexSettings, build_shards, finish_index


logger = logging.get_logger(__name__)

TRIES = 3
PAUSE_SECONDS = 2.0  # until a shard is asked for again that another process was at


class ShardBuilder:
    """
    Builds shards in one process of a cluster: what an actor of Ray runs.

    Args:
        make_embedder (`Callable`):
            Makes the embedder, on the device that the process was given.
        corpus (`Corpus`):
            On files that all machines see, or on the Hub.
        folder (`str`):
            That all machines see.
        settings (`IndexSettings`):
            Of the index.
        batch_size (`int`, *optional*):
            Texts in one forward pass.
        sources (`Sequence[str]`):
            What the corpus is called.
    """

    def __init__(
        self,
        make_embedder: Callable[[], Embedder],
        corpus: Corpus,
        folder: str,
        settings: IndexSettings,
        batch_size: int | None,
        sources: Sequence[str],
    ) -> None:
        self._make_embedder = make_embedder
        self.corpus, self.folder, self.settings = corpus, folder, settings
        self.batch_size, self.sources = batch_size, sources

    @cached_property
    def embedder(self) -> Embedder:
        """Loaded at the first shard: an actor whose making fails is gone, and nobody hears why."""
        return self._make_embedder()

    def ready(self) -> None:
        """Answer when the process runs."""

    def build(self, number: int) -> bool:
        """Build a shard; gives whether it is built now. It is not if another process is at it."""
        progress = build_shards(
            self.corpus,
            self.embedder,
            self.folder,
            self.settings,
            slice(number, number + 1),
            self.batch_size,
            sources=self.sources,
        )
        return number not in progress.missing

    def finish(self) -> None:
        """Make the index, together with the other processes."""
        finish_index(self.folder, self.embedder)


def build_on_cluster(
    address: str,
    corpus: Corpus,
    make_embedder: Callable[[], Embedder],
    folder: str | Path,
    settings: IndexSettings | None = None,
    batch_size: int | None = None,
    *,
    sources: Sequence[str] = (),
    show_progress_bar: bool = False,
) -> bool:
    """
    Build an index on the machines of a Ray cluster; the files are those of `build_index`.

    There is a process for each GPU; without any, for each machine. Each takes the next shard that nobody has. A shard
    whose process or machine is lost is tried three times. All processes then share the work of `finish_index`.

    Args:
        address (`str`):
            Of the cluster, as in `ray.init`.
        corpus (`Corpus`):
            On files that all machines see at the same path, or on the Hub.
        make_embedder (`Callable`):
            Makes the embedder; it runs in each process, and must be picklable.
        folder (`str` or `Path`):
            That all machines see at the same path: new, empty, or of the same build.
        settings (`IndexSettings`, *optional*):
            As `build_index` takes them.
        batch_size (`int`, *optional*):
            Texts in one forward pass of the embedder.
        sources (`Sequence[str]`, *optional*):
            What the corpus is called, for the index card.
        show_progress_bar (`bool`, *optional*, defaults to `False`):
            Whether to count the shards on a bar.

    Returns:
        `bool`: whether there was something to build.

    Raises:
        `ImportError`: If Ray is missing.
        `RuntimeError`: If there is no cluster, or an error ends each of the three tries of a shard.
        `ConnectionError`: If the machines of a shard are lost three times.
        `FileExistsError`: If the folder holds something else.
        `ValueError`: If there is no document, or corpus or settings are not those of the build.
    """
    ray, settings, folder = connect(address), settings or IndexSettings(), Path(folder).resolve()
    # the plan of the build: no shard is built here
    plan = build_shards(
        corpus, make_embedder(), folder, settings, slice(0, 0), batch_size, sources=sources, show_progress_bar=True
    )
    if not plan.num_shards:
        return False
    arguments = (make_embedder, corpus, str(folder), settings, batch_size, [*sources])
    makers = _makers(ray, arguments)[: max(len(plan.missing), 1)]
    builders = {make(): make for make in makers}
    try:
        bar = tqdm(desc="Shards", total=plan.num_shards, disable=not show_progress_bar)
        with bar:
            bar.update(plan.num_shards - len(plan.missing))
            _work_off(ray, builders, plan.missing, bar)
        for tries in range(1, TRIES + 1):
            # one that ends well is enough: it has waited for what the others were at
            failure = _finish(ray, builders)
            if failure is None:
                return True
            logger.warning(f"Finishing '{folder}' failed in try {tries} of {TRIES}: {first_line(failure)}")
            builders = {make(): make for make in makers}
        raise ClusterError(
            f"'{folder}' could not be finished in {TRIES} tries. What is built stays; the same command resumes."
        )
    finally:
        for builder in builders:
            ray.kill(builder)


def _makers(ray: Any, arguments: tuple[Any, ...]) -> list[Callable[[], Any]]:  # noqa: ANN401
    """Give functions that start a process: one for each GPU of the cluster, or for each machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    makers: list[Callable[[], Any]] = []
    actor = ray.remote(ShardBuilder)
    for node in compute_nodes(ray):
        num_gpus, num_cpus = int(node["Resources"].get("GPU", 0)), int(node["Resources"]["CPU"])
        share = {"num_gpus": 1, "num_cpus": max(1, num_cpus // num_gpus)} if num_gpus else {"num_cpus": num_cpus}
        # on another machine if this one is lost. Ray does not start it again by itself: a call to an actor that is
        # being started again may be lost without an error
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        options = actor.options(max_restarts=0, scheduling_strategy=strategy, **share)
        makers += [partial(options.remote, *arguments)] * max(num_gpus, 1)
    return makers


def _work_off(ray: Any, builders: dict[Any, Callable[[], Any]], shards: list[int], bar: tqdm) -> None:  # noqa: ANN401
    """Give each idle process the next shard, until all are built; a process that is lost is replaced."""
    left, tries = [*shards], dict.fromkeys(shards, 0)
    later: dict[int, float] = {}  # shards that others are at, and when they are asked for again
    idle: list[Any] = []
    starting = {builder.ready.remote(): builder for builder in builders}
    busy: dict[Any, tuple[Any, int]] = {}

    def replace(builder: Any) -> None:  # noqa: ANN401
        make = builders.pop(builder)
        new = make()
        builders[new] = make
        starting[new.ready.remote()] = new

    while left or later or busy:
        now = time.monotonic()
        left += [number for number, moment in later.items() if moment <= now]
        later = {number: moment for number, moment in later.items() if moment > now}
        while idle and left:
            builder, number = idle.pop(), left.pop(0)
            busy[builder.build.remote(number)] = builder, number
        if not (busy or starting):
            time.sleep(PAUSE_SECONDS)
            continue
        done, _ = ray.wait([*busy, *starting], num_returns=1, timeout=PAUSE_SECONDS)
        for reference in done:
            if reference in starting:
                builder = starting.pop(reference)
                try:
                    ray.get(reference)
                    idle.append(builder)
                except ray.exceptions.RayError as error:
                    logger.warning(f"A process could not be started ({first_line(error)}). It is tried again.")
                    time.sleep(PAUSE_SECONDS)
                    replace(builder)
                continue
            builder, number = busy.pop(reference)
            try:
                if ray.get(reference):
                    bar.update(1)
                else:
                    later[number] = time.monotonic() + PAUSE_SECONDS
                idle.append(builder)
            except ray.exceptions.RayError as error:
                tries[number] += 1
                is_ours = isinstance(error, ray.exceptions.RayTaskError)
                cause = cause_of(error) if is_ours else error
                if tries[number] == TRIES:
                    kind = StateError if is_ours else ClusterError
                    raise kind(
                        f"Shard {number} could not be built in {TRIES} tries: {first_line(cause)} What is built "
                        "stays; the same command resumes."
                    ) from error
                logger.warning(f"Shard {number} failed ({first_line(cause)}). It is tried again.")
                later[number] = time.monotonic() + PAUSE_SECONDS
                if is_ours:
                    idle.append(builder)
                else:
                    replace(builder)


def _finish(ray: Any, builders: dict[Any, Callable[[], Any]]) -> BaseException | None:  # noqa: ANN401
    """Let all processes finish the index together; gives why none could."""
    failure: BaseException | None = None
    for reference in [builder.finish.remote() for builder in builders]:
        try:
            ray.get(reference)
            return None
        except ray.exceptions.RayTaskError as error:
            raise cause_of(error) from error
        except ray.exceptions.RayError as error:
            failure = error
    return failure
