"""The folder of experts: one LoRA adapter for each part of an index, in PEFT's layout, and what they were made of."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tttnn.errors import InputError
from tttnn.files import sha256_of
from tttnn.records import digest


if TYPE_CHECKING:
    import torch

MANIFEST = "experts.json"
CENTERS = "centers.safetensors"
ADAPTER = "adapter_model.safetensors"
FORMAT_VERSION = 1
AGAIN = "Remove the folder, and run `tttnn train-experts` again."


@dataclass(frozen=True)
class Experts:
    """
    The experts of a folder.

    Args:
        folder (`Path`):
            The folder.
        model (`str`):
            Name of the model that they were trained with.
        weights (`str`):
            Digest of its weights (see `digest_of_weights`).
        index (`str`):
            Digest of the index.
        lora_rank (`int`):
            Rank of each.
        centers (`np.ndarray`):
            float32 of shape `(experts, dimension)`: the mean vector of each part.
        adapters (`list[str]`):
            Name of each one's folder.
        digest (`str`):
            Of all files.
        tensors (`list[dict[str, torch.Tensor]]`):
            The adapters, by names of the parameters of the model; empty until `loaded`.
    """

    folder: Path
    model: str
    weights: str
    index: str
    lora_rank: int
    centers: np.ndarray
    adapters: list[str]
    digest: str
    tensors: "list[dict[str, torch.Tensor]]" = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.adapters)

    def check(self, model: "torch.nn.Module", index: str | None) -> None:
        """Refuse experts of another model or index: they would change the scores, and mean nothing."""
        if digest_of_weights(model) != self.weights:
            raise InputError(
                f"The experts in '{self.folder}' were trained with the model '{self.model}', and the weights of "
                f"'{model.config._name_or_path}' are others. Load that model, or train experts with this one."  # type: ignore[union-attr]
            )
        if index != self.index:
            raise InputError(
                f"The experts in '{self.folder}' were trained on the index {self.index[:12]}, and the retriever has "
                f"{str(index)[:12]}. Open that index, or train experts on this one."
            )

    def loaded(self, model: "torch.nn.Module") -> "Experts":
        """Read the adapters, and make sure that they fit into a model with one of the summed rank."""
        from safetensors.torch import load_file

        if self.tensors:
            return self
        places = {name for name, _ in adapter_parameters(model)}
        tensors = []
        for adapter in self.adapters:
            values = load_file(self.folder / adapter / ADAPTER)
            named = {name.replace(".weight", ".default.weight"): value for name, value in values.items()}
            if named.keys() != places:
                raise InputError(
                    f"'{self.folder / adapter}' has other matrices than an adapter on every linear layer of this "
                    f"{type(model).__name__}. {AGAIN}"
                )
            tensors.append(named)
        return replace(self, tensors=tensors)

    def merge_into(self, model: "torch.nn.Module", chosen: list[int], weights: list[float]) -> None:
        """Write the weighted sum of experts into an adapter of the summed rank, side by side."""
        import torch

        with torch.no_grad():
            for name, parameter in adapter_parameters(model):
                parts = [self.tensors[number][name].to(parameter) for number in chosen]
                if ".lora_B." in name:
                    parts = [part * weight for part, weight in zip(parts, weights, strict=True)]
                # A is (rank, inputs), B (outputs, rank)
                parameter.copy_(torch.cat(parts, dim=1 if ".lora_B." in name else 0))


def adapter_parameters(model: "torch.nn.Module") -> "list[tuple[str, torch.nn.Parameter]]":
    """List the matrices of a model's LoRA adapter with their names."""
    return [(name, value) for name, value in model.named_parameters() if ".lora_" in name]


def digest_of_weights(model: "torch.nn.Module") -> str:
    """Tell a model from another by a sample of each tensor that is no adapter's, the same in bfloat16."""
    import torch

    samples = [
        weight.detach().flatten()[:: max(1, weight.numel() // 64)].to(torch.bfloat16).tolist()
        for name, weight in model.named_parameters()
        if ".lora_" not in name
    ]
    return digest(repr(samples))


def read_experts(folder: str | Path) -> Experts:
    """
    Open the folder of experts.

    Args:
        folder (`str` or `Path`):
            What `tttnn train-experts` wrote.

    Returns:
        `Experts`: the adapters are not loaded yet.

    Raises:
        `ValueError`: If it is no such folder, is not finished, or a file of it has changed.
    """
    from safetensors.numpy import load_file

    folder = Path(folder).expanduser()
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"'{folder}' holds no finished experts: '{MANIFEST}' is missing. `tttnn train-experts INDEX --model MODEL "
            "--output FOLDER` makes them, and goes on where it was interrupted."
        ) from None
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON ({error}). {AGAIN}") from None
    version = content.get("tttnn_experts") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"'{path}' has the format version {version!r}, and this version of tttnn reads {FORMAT_VERSION}. {AGAIN}"
        )
    try:
        files: dict[str, str] = content["files"]
        names = [f"expert-{number:05d}" for number in range(content["num_experts"])]
        wanted = {CENTERS, *(f"{name}/{ADAPTER}" for name in names)}
        if not names or files.keys() != wanted:
            raise KeyError("files")
        changed = [name for name, sha256 in files.items() if sha256_of(folder / name) != sha256]
        texts: dict[str, Any] = {name: str(content[name]) for name in ("model", "weights", "index")}
        rank = int(content["lora_rank"])
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        raise InputError(f"'{path}' is damaged, or a file is missing: {error}. {AGAIN}") from None
    if changed:
        raise InputError(f"'{folder / changed[0]}' is not the file that was written. {AGAIN}")
    centers = load_file(folder / CENTERS)["centers"]
    return Experts(folder, **texts, lora_rank=rank, centers=centers, adapters=names, digest=sha256_of(path))
