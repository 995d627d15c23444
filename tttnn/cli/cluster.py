"""The command that shows and ends what a cluster holds of an index."""

import argparse

from tttnn.helptext import Parser


def add_cluster(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn cluster`."""
    parser = commands.add_parser(
        "cluster",
        help="show or stop an index on a Ray cluster",
        description="Show where the groups of shards of an index run on a Ray cluster, or end them. They run on after "
        "the job that started them, so that the next one finds them.",
    )
    parser.set_defaults(run=_cluster)
    parser.add_argument("action", choices=("status", "stop"), metavar="ACTION", help="status or stop")
    parser.add_argument("index", metavar="INDEX", help="folder or Hub id of an index")
    parser.add_argument("--cluster", default="auto", metavar="ADDRESS", help="address of the Ray cluster")
    parser.add_argument("--revision", help="branch, tag or commit of the index")
    parser.add_argument("--shards", type=int, nargs="+", help="shards that it was opened with (default: all)")


def _cluster(arguments: argparse.Namespace) -> None:
    from tttnn.cluster import cluster_status, stop_cluster

    of_index = (arguments.cluster, arguments.index, arguments.revision, arguments.shards)
    if arguments.action == "stop":
        number = stop_cluster(*of_index)
        print(f"Stopped {number} {'process' if number == 1 else 'processes'} of '{arguments.index}'.")
        return
    statuses = cluster_status(*of_index)
    if not statuses:
        print(f"'{arguments.index}' is not on the cluster.")
    for status in statuses:
        where = "does not answer" if status.host is None else f"{status.host}, process {status.pid}"
        shards = f", shards {' '.join(map(str, status.shards))}" if status.shards else ""
        replica = f", replica {status.replica}" if any(other.replica for other in statuses) else ""
        print(f"group {status.group} of {status.num_groups}{replica}{shards}: {where}")
