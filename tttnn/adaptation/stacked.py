"""LoRA with a leading document dimension: the adapters of several documents, trained in one pass over the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from tttnn.adaptation.requirements import is_peft
from tttnn.errors import InputError


ADVICE = "Set `batch_documents` to 1."


@dataclass
class Batch:
    """How many documents and tokens the forward pass has that is under way."""

    num_documents: int = 0
    num_tokens: int = 0


class DocumentLinear(torch.nn.Module):
    """
    A matrix of LoRA for each document, in the place of PEFT's `Linear`: PEFT's own layer does everything else.

    Rows of the input belong to the first documents of the stack, in order. A model may lay documents and tokens out in
    one dimension, but must not choose among the tokens, as a mixture of experts does inside of its experts.
    """

    def __init__(self, weight: torch.nn.Parameter, batch: Batch, name: str) -> None:
        super().__init__()
        self.weight = weight
        self.batch = batch
        self.name = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply the tokens of each document by its own matrix."""
        number, width = self.batch.num_documents, self.weight.shape[-1]
        if x.numel() != number * self.batch.num_tokens * width:
            raise InputError(
                f"The module '{self.name}' gets inputs of the shape {tuple(x.shape)} for {number} documents of "
                f"{self.batch.num_tokens} tokens: it does not see all tokens of each document, so that its LoRA "
                "cannot belong to a document. In a mixture of experts, that is a module of an expert. Leave it out of "
                f"`target_modules`, or: {ADVICE}"
            )
        # a slice of the whole would cost a copy on the way back
        weight = self.weight if number == len(self.weight) else self.weight[:number]
        out = torch.bmm(x.reshape(number, -1, width), weight.transpose(1, 2))
        return out.view(*x.shape[:-1], -1)


class StackedAdapters:
    """
    The LoRA of each of several documents, all of which begin as the model's own.

    They are rows of one matrix, so that a step of an optimizer on a document, and the norm of its gradient, concern
    one row. The model's parameters are not written until `load`.

    Args:
        model (`PeftModel`):
            With one LoRA adapter that is active, which alone is trained.
        num_documents (`int`):
            How many.

    Raises:
        `ValueError`: If something else than LoRA on linear layers is trained.
    """

    def __init__(self, model: torch.nn.Module, num_documents: int) -> None:
        self.places = lora_places(model)
        self.batch = Batch()
        self.parameters = [_weight(table[adapter]) for table, adapter, _ in self.places]
        begin = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        self.rows = begin.expand(num_documents, -1).clone()
        self.grads: torch.Tensor = torch.zeros_like(self.rows)
        sizes = [parameter.numel() for parameter in self.parameters]
        parts = zip(self.parameters, self.rows.split(sizes, dim=1), self.grads.split(sizes, dim=1), strict=True)
        self.modules: list[DocumentLinear] = []
        self._places_of_grads: list[torch.Tensor] = []
        for (parameter, values, grads), (_, _, name) in zip(parts, self.places, strict=True):
            shape = (num_documents, *parameter.shape)
            self.modules.append(DocumentLinear(torch.nn.Parameter(values.view(shape)), self.batch, name))
            self._places_of_grads.append(grads.view(shape))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have them in the model inside, in the place of its own adapter, which is back on the way out."""
        own = [table[adapter] for table, adapter, _ in self.places]
        try:
            for (table, adapter, _), module in zip(self.places, self.modules, strict=True):
                table[adapter] = module
            yield
        finally:
            for (table, adapter, _), module in zip(self.places, own, strict=True):
                table[adapter] = module

    def read(self, model: torch.nn.Module, texts: list[list[int]]) -> torch.Tensor:
        """
        Give the logits of the first documents, of shape `(documents, tokens, vocabulary)`, inside of `in_place`.

        Shorter texts are filled up at the end, with their last token. No attention mask is needed: the model predicts
        a token from those before it (see `check_reading`), so that what stands after a text changes nothing in it.
        """
        self.batch.num_documents, self.batch.num_tokens = len(texts), max(map(len, texts))
        filled = [[*text, *text[-1:] * (self.batch.num_tokens - len(text))] for text in texts]
        return model(input_ids=torch.tensor(filled, device=self.rows.device)).logits

    def backward(self, loss: torch.Tensor) -> None:
        """Go backward from a loss, whose gradient is then in `grads`; it has none of a document without a part."""
        loss.backward()
        # autograd adds to gradients of the parameter's layout only, and these are parts of rows
        for place, module in zip(self._places_of_grads, self.modules, strict=True):
            if module.weight.grad is None:  # Mamba's passes do not use all of its layers
                place.zero_()
            else:
                place.copy_(module.weight.grad)
            module.weight.grad = None

    def clip(self, num_documents: int, max_norm: float) -> torch.Tensor:
        """Clip the gradient's norm of each of the first documents, and give the norms before."""
        norms = self.grads[:num_documents].norm(dim=1)
        if max_norm > 0:
            self.grads[:num_documents] *= (max_norm / (norms + 1e-6)).clamp(max=1.0)[:, None]
        return norms

    def drop_gradients(self) -> None:
        """Give the memory of the gradients back, after the last step."""
        self.grads, self._places_of_grads = self.grads.new_zeros(0), []

    @torch.no_grad()
    def load(self, row: torch.Tensor) -> None:
        """Write the adapter of a document, a row, into the model's own."""
        parts = row.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.copy_(part.view_as(parameter))


def lora_places(model: torch.nn.Module) -> list[tuple[Any, str, str]]:
    """
    Find the matrices of the LoRA adapter that is trained: the `ModuleDict`, the key in it, and the name of the layer.

    Raises:
        `ValueError`: If something else is trained.
    """
    if not is_peft(model):
        raise InputError(
            "`batch_documents` needs LoRA, and the model has no adapter. Make it with `--trainable lora` or PEFT's "
            f"`LoraConfig`, or: {ADVICE}"
        )
    from peft.tuners.lora import LoraLayer
    from peft.tuners.lora.layer import ParamWrapper

    places: list[tuple[Any, str, str]] = []
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
        if len(active) > 1:
            raise InputError(
                f"The adapters {', '.join(active)} are active, and `batch_documents` can train one. Activate one, or: "
                f"{ADVICE}"
            )
        if active and (isinstance(layer, ParamWrapper) or active[0] in layer.lora_variant):
            raise InputError(
                f"The LoRA of '{name}' is a variant (for example DoRA, or of the parameters of experts), and "
                f"`batch_documents` trains the plain one on linear layers. Use that (for a mixture of experts, name "
                f"the layers of attention in `target_modules`), or: {ADVICE}"
            )
        places += [(table, adapter, name) for adapter in active for table in (layer.lora_A, layer.lora_B)]
    linears = [table[adapter] for table, adapter, _ in places if isinstance(table[adapter], torch.nn.Linear)]
    found = {id(linear.weight) for linear in linears}
    trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = [name for key, name in trained.items() if key not in found]
    if others or not places or found - trained.keys() or len(found) < len(places):
        named = f"`{others[0]}` is trained too" if others else "its matrices are not those that are trained"
        raise InputError(
            f"`batch_documents` trains the LoRA of linear layers and nothing else, but {named}. Make the model with "
            f"`--trainable lora`, or: {ADVICE}"
        )
    dtypes = {str(parameter.dtype) for parameter in model.parameters() if parameter.requires_grad}
    if len(dtypes) > 1:
        raise InputError(
            f"The adapters have the precisions {', '.join(sorted(dtypes))}, and `batch_documents` stacks them in one. "
            f"Load the model in one precision, or: {ADVICE}"
        )
    return places


def _weight(linear: Any) -> torch.nn.Parameter:  # noqa: ANN401
    weight: torch.nn.Parameter = linear.weight
    return weight
