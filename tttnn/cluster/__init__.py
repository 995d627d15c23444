"""An index on many machines, by Ray: groups of its shards are searched and built where the machines are."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.cluster.building import build_on_cluster
    from tttnn.cluster.groups import ON_MISSING
    from tttnn.cluster.index import ClusterIndex, open_on_cluster
    from tttnn.cluster.status import GroupStatus, cluster_status, stop_cluster

__all__ = [
    "ClusterIndex",
    "GroupStatus",
    "ON_MISSING",
    "build_on_cluster",
    "cluster_status",
    "open_on_cluster",
    "stop_cluster",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "ClusterIndex": "index",
        "GroupStatus": "status",
        "ON_MISSING": "groups",
        "build_on_cluster": "building",
        "cluster_status": "status",
        "open_on_cluster": "index",
        "stop_cluster": "status",
    },
)
