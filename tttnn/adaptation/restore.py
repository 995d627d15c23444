"""Exact restore: whatever happens inside, the model leaves as it came."""

import asyncio
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from tttnn.errors import StateError


logger = logging.get_logger(__name__)

SAMPLE = 256  # values of each frozen tensor by which a change of it is noticed


class Snapshot:
    """
    What adapting a model can change: its trainable parameters and buffers, its modes, and the random generators.

    Frozen parameters are not copied, so that the snapshot of a PEFT model has the size of its adapters. `close` also
    puts back what a user may have done to the model: another precision or device, other embeddings, merged or added
    adapters, the plain attributes beside a buffer. Hooks are left: transformers registers its own when it needs them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self.parameters = [parameter for parameter, requires_grad in self.flags if requires_grad]
        # by place, not by tensor: rotary embeddings that grow with the text put another tensor into the same place
        self.buffers = [
            (module, name, buffer)
            for module in model.modules()
            for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
        ]
        # torch writes into no expanded view, so putting it back in its place is enough
        kept = [buffer for _, _, buffer in self.buffers if not _is_expanded(buffer)]
        self.tensors = [*self.parameters, *kept]
        self.copies = [tensor.detach().clone() for tensor in self.tensors]
        self.modes = [(module, module.training) for module in model.modules()]
        self.random_states = _random_states()
        # another precision or device replaces the data of a parameter, which lives on here without a copy
        self.data = [(parameter, parameter.data) for parameter, _ in self.flags]
        self.places = [_Place(module) for module in model.modules()]
        self.configs = [(vars(config), _plain(vars(config))) for config in _configs(model)]
        frozen = [(name, value) for name, value in model.named_parameters() if not value.requires_grad]
        self.samples = [(name, value, _sample(value)) for name, value in frozen]

    @torch.no_grad()
    def restore(self) -> None:
        """Bring every parameter and buffer back to the bit, drop gradients, and reset flags, modes and generators."""
        for module, name, buffer in self.buffers:
            module._buffers[name] = buffer
        if self.tensors:
            torch._foreach_copy_(self.tensors, self.copies)
        for parameter, requires_grad in self.flags:
            parameter.grad = None
            parameter.requires_grad = requires_grad
        for module, training in self.modes:
            module.training = training
        self.restore_random_states()

    def restore_random_states(self) -> None:
        """Reset the random generators of Python, NumPy and torch alone."""
        _set_random_states(self.random_states)

    def close(self) -> None:
        """Bring back what `restore` does, and before it the modules, their attributes and the data of parameters."""
        for place in self.places:
            place.unmerge()
        for place in self.places:
            place.restore()
        for parameter, data in self.data:
            if parameter.data_ptr() != data.data_ptr() or parameter.dtype != data.dtype:
                parameter.data = data
        for attributes, plain in self.configs:
            attributes.update(plain)
        self.restore()

    def changed(self) -> list[str]:
        """Name the frozen tensors that changed, by a sample of each: merging an adapter leaves a rounding error."""
        return [
            name
            for name, value, sample in self.samples
            if not torch.allclose(_sample(value), sample, rtol=0, atol=0, equal_nan=True)
        ]


class _Place:
    """What stands in a module: its children, parameters and plain attributes."""

    TABLES = ("_modules", "_parameters")

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.tables = {name: dict(vars(module)[name]) for name in self.TABLES}
        self.attributes = _plain(vars(module))
        self.is_merged = _is_tuner(module) and bool(module.merged)

    def unmerge(self) -> None:
        if _is_tuner(self.module) and self.module.merged and not self.is_merged:
            self.module.unmerge()  # type: ignore[operator]

    def restore(self) -> None:
        for name, table in self.tables.items():
            current = vars(self.module)[name]
            if [*map(id, current.values())] != [*map(id, table.values())] or [*current] != [*table]:
                current.clear()
                current.update(table)
        vars(self.module).update(
            {name: [*value] if isinstance(value, list) else value for name, value in self.attributes.items()}
        )


def _is_tuner(module: torch.nn.Module) -> bool:
    """Whether a module is a layer of PEFT, which may merge its adapter into the layer below."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """Take the attributes that are numbers, texts or lists of them, such as the length for which a buffer was made."""
    plain = {name: value for name, value in attributes.items() if isinstance(value, bool | int | float | str | None)}
    lists = {name: [*value] for name, value in attributes.items() if isinstance(value, list)}
    return {name: value for name, value in (plain | lists).items() if name != "training"}


def _configs(model: torch.nn.Module) -> list[Any]:
    """Give the configs of a model and of the models in it."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    return list({id(config): config for config in configs}.values())


def _sample(parameter: torch.Tensor) -> torch.Tensor:
    values = parameter.detach().flatten()
    return values[:: max(1, values.numel() // SAMPLE)].clone()


class Claim:
    """That a model is being adapted, by one thread and one task of asyncio."""

    _lock = threading.Lock()
    # weakly: an interrupt that falls between two lines leaves no claim behind that nobody can release
    _open: "list[weakref.ref[Claim]]" = []

    def __init__(self, model: torch.nn.Module) -> None:
        self.parameters = {id(parameter) for parameter in model.parameters()}
        self.owner = threading.get_ident(), _current_task()
        self.is_void = False  # whether a context around this one has ended before it
        with self._lock:
            others = [claim for claim in self._claims() if claim.parameters & self.parameters]
            if any(claim.owner != self.owner for claim in others):
                raise StateError(
                    "The model is being adapted by another thread or task, and there is one copy of its weights. Wait "
                    "until that ends, or use a copy of the model: `copy.deepcopy(model)`."
                )
            self._open.append(weakref.ref(self))

    @classmethod
    def _claims(cls) -> "list[Claim]":
        cls._open[:] = [reference for reference in cls._open if reference() is not None]
        return [claim for claim in (reference() for reference in cls._open) if claim is not None]

    def release(self) -> bool:
        """Give the model free, and tell whether a context that began later is still open."""
        with self._lock:
            claims = self._claims()
            place = claims.index(self)
            later = [claim for claim in claims[place + 1 :] if claim.parameters & self.parameters]
            for claim in later:
                claim.is_void = True
            del self._open[place]
        return bool(later)


def _current_task() -> int:
    try:
        return id(asyncio.current_task())
    except RuntimeError:  # no event loop runs in this thread
        return 0


def undisturbed(restore: Callable[[], None]) -> None:
    """Call something that puts the model in order; a Ctrl-C that falls into it is raised when it is done."""
    try:
        restore()
    except KeyboardInterrupt:
        restore()
        raise


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[Snapshot]:
    """
    Adapt a model inside, and have it as it was on the way out, whatever happens inside.

    Contexts on one model may stand in each other. They may not overlap: one that another thread or asyncio task opens
    meanwhile is refused, and one that ends before a later one restores the model and raises an error.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model. Gradients that it holds are dropped.

    Yields:
        `Snapshot`: its `restore` goes back in between, for the next document.

    Raises:
        `RuntimeError`: If the model is being adapted by another thread or task; if contexts overlap; or if something
            was done to it inside that cannot be undone: the model is no longer the same then.

    Example:

    ```python
    with restored(model):
        train(model)
    ```
    """
    claim = Claim(model)
    try:
        snapshot = Snapshot(model)
        model.zero_grad(set_to_none=True)
        try:
            yield snapshot
        finally:
            undisturbed(lambda: None if claim.is_void else snapshot.close())
    finally:
        is_overlapped = claim.release()
    if is_overlapped or claim.is_void:
        raise StateError(
            "Two contexts that adapt one model overlap: the first ended before the second. The model is restored to "
            "the state before both. End the inner one first."
        )
    if changed := snapshot.changed():
        raise StateError(
            f"{len(changed)} frozen tensors of the model were changed inside ('{changed[0]}', ...), for example by "
            "`merge_adapter`, and there is no copy of them: the model is no longer the same. Load it again."
        )


@contextmanager
def random_states_kept() -> Iterator[None]:
    """
    Have the random generators of Python, NumPy and torch on the way out as they were.

    Yields:
        `None`
    """
    states = _random_states()
    try:
        yield
    finally:
        _set_random_states(states)


@contextmanager
def prepared_for_training(model: PreTrainedModel, disable_dropout: bool) -> Iterator[None]:
    """
    Set what training wants otherwise than generation: no key-value cache and, if asked, no dropout in train mode.

    Dropout is set to 0 rather than the model to eval mode, in which activation checkpointing does nothing.
    """
    changed: list[tuple[dict[str, Any], str, Any]] = []

    def change(owner: object, name: str, value: object) -> None:
        attributes = vars(owner)
        if name in attributes:
            changed.append((attributes, name, attributes[name]))
            attributes[name] = value

    def change_back() -> None:
        for attributes, name, value in changed:
            attributes[name] = value

    try:
        configs = _configs(model)
        for config in configs:
            change(config, "use_cache", False)
        for owner in (*model.modules(), *configs) if disable_dropout else ():
            rates = [name for name, value in vars(owner).items() if isinstance(value, float) and "drop" in name]
            for name in [*rates, "p"] if isinstance(owner, torch.nn.modules.dropout._DropoutNd) else rates:
                change(owner, name, 0.0)
        yield
    finally:
        undisturbed(change_back)


def _is_expanded(tensor: torch.Tensor) -> bool:
    return any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _random_states() -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
