"""Texts to vectors: a thin layer over sentence-transformers that says which embedder made an index."""

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from tttnn.corpus import check_text


# Embedded once when an index is built and again when it is opened: another embedder gives another vector, under
# whatever name or path it was loaded.
PROBE = "The quick brown fox jumps over the lazy dog; 0123456789 def f(x): return x"
PROBE_TOLERANCE = 0.02  # relative; half precision on another device stays below it


class Embedder:
    """
    A sentence-transformers model that maps texts to float32 vectors.

    A plain transformer without sentence-transformers files gets the attention-masked mean of its last hidden state,
    special tokens included, as the method's authors used.

    Args:
        model (`str`, `Path` or `SentenceTransformer`):
            Hub id or folder of the model, or the loaded model itself.
        revision (`str`, *optional*):
            Branch, tag or commit, where `model` is a Hub id.
        max_seq_length (`int`, *optional*):
            Tokens of a text that are read. By default the model's own.
        device (`str`, *optional*):
            Where it runs. By default sentence-transformers decides.

    Raises:
        `ValueError`: If a loaded model has another `max_seq_length` than the given one.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3.
    """

    def __init__(
        self,
        model: str | Path | SentenceTransformer,
        revision: str | None = None,
        max_seq_length: int | None = None,
        device: str | None = None,
    ) -> None:
        if isinstance(model, SentenceTransformer):
            if max_seq_length not in (None, model.max_seq_length):
                raise ValueError(
                    f"`max_seq_length` is {max_seq_length}, but the loaded model has {model.max_seq_length}. Set it "
                    "there: `model.max_seq_length = ...`."
                )
            self.model = model
        else:
            self.model = SentenceTransformer(str(model), revision=revision, device=device)
            if max_seq_length is not None:
                self.model.max_seq_length = max_seq_length
        backbone = self.model.transformers_model  # static embeddings have none
        loaded = backbone.config._name_or_path if backbone else "unnamed"
        self.name: str = loaded if isinstance(model, SentenceTransformer) else str(model)
        # set by transformers where the model came from the Hub
        self.revision = revision or getattr(backbone.config if backbone else None, "_commit_hash", None)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return cast(int, self.model.get_embedding_dimension())

    @property
    def max_seq_length(self) -> int | None:
        """Tokens of a text that are read; `None` for static embeddings, which read all."""
        limit = self.model.max_seq_length
        return None if limit is None or limit == math.inf else int(limit)

    def encode(
        self, texts: list[str], batch_size: int = 32, show_progress_bar: bool = False, first_row: int = 0
    ) -> np.ndarray:
        """
        Embed texts.

        Args:
            texts (`list[str]`):
                Each is truncated to the model's `max_seq_length` tokens; an empty one is embedded as one space.
            batch_size (`int`, *optional*, defaults to `32`):
                Texts in one forward pass; they are sorted by length first.
            show_progress_bar (`bool`, *optional*, defaults to `False`):
                Whether to show one.
            first_row (`int`, *optional*, defaults to `0`):
                Row of the first text, for error messages.

        Returns:
            `np.ndarray`: float32 of shape `(len(texts), dimension)`, in the order of `texts`.

        Raises:
            `ValueError`: If a vector is not finite, or a text holds a lone surrogate.
            `TypeError`: If a text is not a string.
        """
        if isinstance(texts, str):
            raise TypeError("A list of texts is needed, and one string was given. Put it into a list.")
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}. Pass at least 1.")
        texts = [check_text(text, f"row {first_row + row}") or " " for row, text in enumerate(texts)]
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32)
        vectors = self.model.encode(texts, batch_size=batch_size, show_progress_bar=show_progress_bar)
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            rows = (broken[:5] + first_row).tolist()
            raise ValueError(
                f"The embedder '{self.name}' gave vectors that are not finite for rows {rows}. Load it in float32, or "
                "check its weights."
            )
        return vectors

    def describe(self) -> dict[str, Any]:
        """
        Say what an index must remember of its embedder.

        Returns:
            `dict[str, Any]`: JSON-able; name, revision, pooling, dimension, `max_seq_length` and the probe's vector.
        """
        return {
            "name": self.name,
            "revision": self.revision,
            "pooling": [str(module.pooling_mode) for module in self.model if isinstance(module, Pooling)],
            "normalized": any(isinstance(module, Normalize) for module in self.model),
            "max_seq_length": self.max_seq_length,
            "dimension": self.dimension,
            "probe": self.encode([PROBE])[0].tolist(),
        }

    def check(self, description: dict[str, Any]) -> None:
        """
        Make sure that this is the embedder that an index was built with.

        Args:
            description (`dict[str, Any]`):
                What `describe` gave when the index was built.

        Raises:
            `ValueError`: If dimension, `max_seq_length` or the probe's vector differ.
        """
        built, given = f"'{description['name']}'", f"'{self.name}'"
        for name, value in (("dimension", self.dimension), ("max_seq_length", self.max_seq_length)):
            if description[name] != value:
                raise ValueError(
                    f"The index was built with the embedder {built}, whose {name} is {description[name]}; {given} has "
                    f"{value}. Pass the embedder that built it."
                )
        probe = np.array(description["probe"])
        distance = np.linalg.norm(self.encode([PROBE])[0] - probe) / np.linalg.norm(probe)
        if not distance <= PROBE_TOLERANCE:
            raise ValueError(
                f"The index was built with the embedder {built} (revision {description['revision']}); {given} maps "
                f"the same text {distance:.0%} away. Pass the embedder that built it."
            )
