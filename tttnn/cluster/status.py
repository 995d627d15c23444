"""What a cluster holds of an index, and how to end it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tttnn.cluster.connection import NAMESPACE, connect
from tttnn.cluster.groups import actor_names
from tttnn.index import fetch_manifest, read_version


STATUS_SECONDS = 10.0  # until a group that does not answer is called so


@dataclass(frozen=True)
class GroupStatus:
    """
    A group of shards on a cluster.

    Args:
        group (`int`):
            Its number.
        num_groups (`int`):
            How many there are.
        replica (`int`):
            Which of the copies this is.
        shards (`list[int]`):
            Numbers of the shards; none while it does not answer.
        host (`str`, *optional*):
            Where it runs; `None` while it does not answer.
        pid (`int`, *optional*):
            Its process there.
        node (`str`, *optional*):
            The id that Ray has for the machine.
    """

    group: int
    num_groups: int
    replica: int
    shards: list[int]
    host: str | None
    pid: int | None
    node: str | None


def cluster_status(
    address: str, repo_id: str | Path, revision: str | None = None, shards: Sequence[int] | None = None
) -> list[GroupStatus]:
    """
    List the groups of an index on a cluster.

    Args:
        address (`str`):
            Of the cluster, as in `ray.init`.
        repo_id (`str` or `Path`):
            The id of a dataset repo, or a folder.
        revision (`str`, *optional*):
            Branch, tag or commit of the repo.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards that it was opened with. By default all.

    Returns:
        `list[GroupStatus]`: by group and replica; none if the index is not on the cluster.

    Raises:
        `RuntimeError`: If there is no cluster at the address.
        `FileNotFoundError`: If there is no such index.
    """
    ray, digest = connect(address), read_version(fetch_manifest(repo_id, revision), shards).digest
    asked = {
        place: ray.get_actor(name, namespace=NAMESPACE).place.remote() for name, place in actor_names(ray, digest)
    }
    if asked:
        ray.wait([*asked.values()], num_returns=len(asked), timeout=STATUS_SECONDS)
    statuses = []
    for place, reference in asked.items():
        try:
            numbers, host, pid, node = ray.get(reference, timeout=0)
        except ray.exceptions.RayError:
            numbers, host, pid, node = [], None, None, None
        statuses.append(GroupStatus(*place, numbers, host, pid, node))
    return statuses


def stop_cluster(
    address: str, repo_id: str | Path, revision: str | None = None, shards: Sequence[int] | None = None
) -> int:
    """
    End the processes that hold an index on a cluster. Jobs that search it start them again.

    Args:
        address (`str`):
            Of the cluster, as in `ray.init`.
        repo_id (`str` or `Path`):
            The id of a dataset repo, or a folder.
        revision (`str`, *optional*):
            Branch, tag or commit of the repo.
        shards (`Sequence[int]`, *optional*):
            Numbers of the shards that it was opened with. By default all.

    Returns:
        `int`: how many there were.

    Raises:
        `RuntimeError`: If there is no cluster at the address.
        `FileNotFoundError`: If there is no such index.
    """
    ray, digest = connect(address), read_version(fetch_manifest(repo_id, revision), shards).digest
    names = actor_names(ray, digest)
    for name, _ in names:
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
    return len(names)
