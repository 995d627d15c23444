"""Exact restore: whatever happens inside, the model leaves as it came."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel


class Snapshot:
    """
    What adapting a model can change: its trainable parameters and buffers, its modes, and the random generators.

    Frozen parameters are not copied, so that the snapshot of a PEFT model has the size of its adapters.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model in the state to return to.
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


def undisturbed(restore: Callable[[], None]) -> None:
    """
    Put something in order, whole also where a Ctrl-C falls into the middle of it.

    Args:
        restore (`Callable`):
            What to call; it may be called twice.

    Raises:
        `KeyboardInterrupt`: The one that fell into it, once all is in order.
    """
    try:
        restore()
    except KeyboardInterrupt:
        restore()
        raise


@contextmanager
def restored(model: torch.nn.Module) -> Iterator[Snapshot]:
    """
    Adapt a model inside, and have it as it was on the way out, whatever happens inside.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model. Gradients that it holds are dropped.

    Yields:
        `Snapshot`: its `restore` goes back in between, for the next document.

    Example:

    ```python
    with restored(model):
        train(model)
    ```
    """
    snapshot = Snapshot(model)
    model.zero_grad(set_to_none=True)
    try:
        yield snapshot
    finally:
        undisturbed(snapshot.restore)


@contextmanager
def prepared_for_training(model: PreTrainedModel, disable_dropout: bool) -> Iterator[None]:
    """
    Set what training wants otherwise than generation: no key-value cache and, if asked, no dropout in train mode.

    Dropout is set to 0 rather than the model to eval mode, in which activation checkpointing does nothing.

    Args:
        model (`PreTrainedModel` or `PeftModel`):
            The model; all is as before on the way out.
        disable_dropout (`bool`):
            Whether every dropout rate, of modules and of functions, is 0 inside.
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
        change(model.config, "use_cache", False)
        for owner in (*model.modules(), model.config) if disable_dropout else ():
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
