"""The door of a room: its public names, each imported when it is first asked for (PEP 562)."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def door(room: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """
    Make the `__getattr__` and `__dir__` of a package; `homes` names the module of each public name.

    A module of the ground floor is named with a dot before it.

    torch, transformers and Faiss take seconds to import, so importing the package loads none of its modules.
    """

    def get(name: str) -> Any:  # noqa: ANN401
        if name not in homes:
            raise AttributeError(f"module '{room}' has no attribute '{name}'")
        return getattr(import_module(f".{homes[name]}", room), name)

    return get, lambda: sorted(homes)
