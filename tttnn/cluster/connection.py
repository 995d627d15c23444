"""The connection to a Ray cluster. Ray is imported here, and only when a cluster is asked for."""

import socket
from typing import Any

from tttnn.errors import InputError, StateError


REACH_SECONDS = 10.0
NAMESPACE = "tttnn"  # of the names of actors: every job of a cluster finds the same ones


def import_ray() -> Any:  # noqa: ANN401
    """
    Import Ray.

    Returns:
        `module`: `ray`.

    Raises:
        `ImportError`: If it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("Ray is missing, which runs clusters: pip install 'tttnn[ray]'") from error
    return ray


def connect(address: str) -> Any:  # noqa: ANN401
    """
    Connect to a cluster, unless this process is connected already.

    Args:
        address (`str`):
            As in `ray.init`: `"auto"` for the cluster of this machine, `"HOST:6379"`, `"ray://HOST:10001"`, or
            `"local"` to start one that ends with this process.

    Returns:
        `module`: `ray`.

    Raises:
        `ImportError`: If Ray is not installed.
        `RuntimeError`: If there is no cluster at the address, or it cannot be used.
        `ValueError`: If the address cannot be one.
    """
    ray = import_ray()
    if ray.is_initialized():
        return ray
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except OSError as error:
        raise StateError(
            f"There is no Ray cluster at '{address}' ({first_line(error)}). Start one with `ray start --head`, and "
            "other machines with `ray start --address HOST:6379`; or pass 'local'."
        ) from error
    except ValueError as error:
        raise InputError(f"`cluster` is '{address}', which cannot be used: {first_line(error)}") from error
    except RuntimeError as error:  # versions that differ, a token that is missing or wrong
        raise StateError(f"The Ray cluster at '{address}' cannot be used: {first_line(error)}") from error
    return ray


def _check_reachable(address: str) -> None:
    """Fail within seconds where nothing listens: Ray itself tries for more than a minute."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS):
            pass


def first_line(error: BaseException) -> str:
    """Give the first line of an error: Ray adds many."""
    return str(error).strip().split("\n")[0]
