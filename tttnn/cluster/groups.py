"""The groups of shards of an index on a cluster: they are started or found, asked, and stopped."""

import time
from importlib.metadata import version
from typing import Any

from transformers.utils import logging

from tttnn.cluster.connection import NAMESPACE, first_line
from tttnn.cluster.shard_group import ShardGroup, Source
from tttnn.errors import ClusterError, InputError, StateError
from tttnn.index import IndexVersion


logger = logging.get_logger(__name__)

ON_MISSING = ("wait", "raise", "report")
WAIT_SECONDS = 120.0  # for groups that do not answer
PAUSE_SECONDS = 0.5  # between tries
REPEAT_SECONDS = 20.0  # until a call is made again that nobody answers; the next time after twice as long
NAME = "index {} group {} of {} replica {}"
DIGITS = 16  # of a digest, in a name


class ShardGroups:
    """
    Groups of the shards of an index, each in an actor on one machine or, with replicas, on several.

    Actors outlive the job that starts them. Their names hold the digest of the index, by which another job finds them.

    Args:
        ray (`module`):
            Connected.
        source (`Source`):
            Where the actors find the index.
        index (`IndexVersion`):
            The index, and its open shards.
        replicas (`int`):
            Copies of each group.
        on_missing (`str`):
            `"wait"`, `"raise"` or `"report"`.
        timeout (`float`, *optional*, defaults to `120.0`):
            Seconds that a group may take to answer, restarts included.

    Raises:
        `ValueError`: If there are fewer machines than replicas, or a machine does not see the index.
        `ConnectionError`: If a group does not answer in time.
    """

    def __init__(
        self,
        ray: Any,  # noqa: ANN401
        source: Source,
        index: IndexVersion,
        replicas: int,
        on_missing: str,
        timeout: float = WAIT_SECONDS,
    ) -> None:
        self.ray, self.source, self.index, self.digest = ray, source, index, index.digest
        shards = index.numbers
        self.on_missing, self.timeout = on_missing, timeout
        nodes = compute_nodes(ray)
        self._num_nodes = len(nodes)
        running = {(number, replica) for _, (_, number, replica) in actor_names(ray, self.digest)}
        if running:  # another job has started them
            number = max(number for number, _ in running)
            self.replicas = 1 + max(replica for count, replica in running if count == number)
            if self.replicas != replicas:
                logger.warning(
                    f"The index is on the cluster already, with {self.replicas} copies of each shard and not "
                    f"{replicas}. `tttnn cluster stop` lets you start it otherwise."
                )
        else:
            number, self.replicas = min(len(nodes), len(shards)), replicas
            if replicas > len(nodes):
                raise InputError(
                    f"`replicas` is {replicas}, and the cluster has {len(nodes)} machines for them. Pass at most that."
                )
        self.shards = [[*shards[first::number]] for first in range(number)]
        self._preferred = [0] * number
        self._actor = ray.remote(ShardGroup)
        self._handles: dict[tuple[int, int], Any] = {}
        self._places: dict[tuple[int, int], str] = {}  # the node of each group and replica
        self._lost: set[str] = set()  # nodes that did not answer; Ray takes some seconds to see that one is gone
        for replica in reversed(range(self.replicas)):  # all are opened, so that each can take over at once
            self._preferred = [replica] * number
            described = self.ask("describe", {group: () for group in range(number)}, waits=True)
            self._places |= {(group, replica): item["node"] for group, item in described.items()}
        self.properties = [described[group] for group in range(number)]
        here = version("tttnn")
        for item in self.properties:
            if item["version"] != here:
                raise StateError(
                    f"The machine {item['host']} has tttnn {item['version']}, and this one {here}. Install the same "
                    "version on all machines, and run `tttnn cluster stop`."
                )

    def __len__(self) -> int:
        return len(self.shards)

    def handle(self, group: int, replica: int) -> Any:  # noqa: ANN401
        """Find the actor of a group, or start it."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = self._choose_node(group, replica)
        self._places[group, replica] = node["NodeID"]
        # a soft affinity may put two replicas on one machine
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        num_cpus = int(node["Resources"]["CPU"])
        threads = max(1, num_cpus // -(-len(self) * self.replicas // self._num_nodes))
        options = self._actor.options(
            name=NAME.format(self.digest[:DIGITS], group, len(self), replica),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=4,  # several jobs at once
            num_cpus=0,  # it waits most of the time
            scheduling_strategy=strategy,
        )
        shards = self.shards[group]
        return options.remote(self.source, shards, self.index.digest_of(shards), threads)

    def _choose_node(self, group: int, replica: int) -> dict[str, Any]:
        """Choose a machine for a group: one that answers, and has none of its other replicas."""
        nodes = compute_nodes(self.ray)
        others = {self._places.get((group, other)) for other in range(self.replicas) if other != replica}
        turned = [nodes[(group + replica + turn) % len(nodes)] for turn in range(len(nodes))]
        return min(turned, key=lambda node: (node["NodeID"] in self._lost, node["NodeID"] in others))

    def ask(self, method: str, arguments: dict[int, tuple[Any, ...]], *, waits: bool = False) -> dict[int, Any]:
        """
        Call a method of groups.

        Args:
            method (`str`):
                Of `ShardGroup`.
            arguments (`dict[int, tuple]`):
                By the number of a group.
            waits (`bool`, *optional*, defaults to `False`):
                Whether to wait for groups that do not answer, whatever `on_missing` says.

        Returns:
            `dict[int, Any]`: what each group gave; those that did not answer are left out if `on_missing` is
            `"report"`.

        Raises:
            `ConnectionError`: If a group does not answer in time.
        """
        ray, policy = self.ray, "wait" if waits else self.on_missing
        deadline = time.monotonic() + self.timeout
        results: dict[int, Any] = {}
        failures: dict[int, BaseException] = {}
        due = dict.fromkeys(arguments, 0.0)  # when each group that has not answered is asked, or asked again
        asked: dict[Any, tuple[int, int]] = {}  # the group and the replica of each call
        patience, failed = dict.fromkeys(arguments, REPEAT_SECONDS), dict.fromkeys(arguments, 0)
        while due and (now := time.monotonic()) < deadline:
            for group in [group for group, moment in due.items() if moment <= now]:
                asked[self._ask(group, method, arguments[group])] = group, self._preferred[group]
                # Ray may lose a call to an actor that it starts again, and says nothing
                due[group] = now + patience[group]
                patience[group] *= 2
            pause = max(min(deadline, *due.values()) - time.monotonic(), 0)
            if not asked:
                time.sleep(pause)
                continue
            done, _ = ray.wait([*asked], num_returns=1, timeout=pause)
            for reference in done:
                group, replica = asked.pop(reference)
                if group not in due:  # an earlier or later call was faster
                    continue
                try:
                    results[group] = ray.get(reference)
                    del due[group]
                    self._lost.discard(self._places.get((group, replica), ""))
                except ray.exceptions.RayTaskError as error:
                    raise cause_of(error) from error
                except ray.exceptions.RayError as error:
                    if replica != self._preferred[group]:  # another one is asked since
                        continue
                    failures[group] = error
                    failed[group] += 1
                    patience[group] = REPEAT_SECONDS
                    self._turn_away(group)
                    if failed[group] < self.replicas:
                        due[group] = 0.0
                    elif policy == "wait":
                        due[group] = time.monotonic() + PAUSE_SECONDS
                    else:
                        del due[group]
        missing = sorted({*arguments} - {*results})
        if missing and policy != "report":
            within = f" within {self.timeout:g} seconds" if policy == "wait" else ""
            raise self._error_of(missing, within, [failures[group] for group in missing if group in failures])
        return results

    def _error_of(self, groups: list[int], within: str, failures: list[BaseException]) -> ClusterError:
        """Name the shards of groups that did not answer."""
        shards = sorted(number for group in groups for number in self.shards[group])
        why = "; ".join(dict.fromkeys(map(first_line, failures)))
        return ClusterError(
            f"The shards {shards} of '{self.source.repo_id}' are missing: their machines did not answer{within}"
            f"{f' ({why})' if why else ''}. Look at `tttnn cluster status`, or pass on_missing='report' for answers "
            "without them."
        )

    def _turn_away(self, group: int) -> None:
        """Ask another replica of a group from now on: this one may have been stopped, or its machine is gone."""
        place = group, self._preferred[group]
        self._handles.pop(place, None)
        if place in self._places:
            self._lost.add(self._places[place])
        self._preferred[group] = (place[1] + 1) % self.replicas

    def _ask(self, group: int, method: str, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401
        """Call a method of a group, and give the reference of its answer."""
        place = group, self._preferred[group]
        if place not in self._handles:
            self._handles[place] = self.handle(*place)
        return getattr(self._handles[place], method).remote(*arguments)


def actor_names(ray: Any, digest: str) -> list[tuple[str, tuple[int, int, int]]]:  # noqa: ANN401
    """List the names of an index's actors, with group, number of groups and replica, in their order."""
    found = []
    for item in ray.util.list_named_actors(all_namespaces=True):
        words = item["name"].split()
        if item["namespace"] == NAMESPACE and words[:2] == ["index", digest[:DIGITS]]:
            found.append((item["name"], (int(words[3]), int(words[5]), int(words[7]))))
    return sorted(found, key=lambda item: item[1])


def compute_nodes(ray: Any) -> list[dict[str, Any]]:  # noqa: ANN401
    """List the living machines that compute, in an order that all jobs see."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise StateError(
            "No machine of the cluster has a CPU to search with. Add one: `ray start --address HOST:6379`."
        )
    return sorted(nodes, key=lambda node: node["NodeID"])


def cause_of(error: Any) -> BaseException:  # noqa: ANN401
    """Give the error that a machine raised, in the place of Ray's account of it."""
    cause = error.cause
    if isinstance(cause, ImportError):
        return StateError(
            f"A machine of the cluster cannot import what it needs ({cause}). Install tttnn on all of them."
        )
    return cause if isinstance(cause, BaseException) else error
