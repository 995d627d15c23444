"""Texts to vectors: a thin layer over sentence-transformers that says which embedder made an index."""

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from threading import Lock
from typing import Any, cast
from weakref import finalize

import numpy as np
from huggingface_hub.utils import HFValidationError, validate_repo_id
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BatchEncoding

from tttnn.documents import check_text
from tttnn.errors import InputError, InputTypeError, StateError


logger = logging.getLogger(__name__)

# Embedded once when an index is built and again when it is opened: another embedder gives another vector, under
# whatever name or path it was loaded.
PROBE = "The quick brown fox jumps over the lazy dog; 0123456789 def f(x): return x"
PROBE_TOLERANCE = 0.02  # relative; half precision on another device stays below it
# Of a longer text, this many characters for each token that is read are tried first.
CHARACTERS_PER_TOKEN = 16
WHITE_SPACE = re.compile(r"\s")
# The embedder of the method's authors: model, tokenizer, tokens that are read.
TTTLM = ("socialfoundations/roberta-large-pile-lr2e-5-bs16-8gpu-1700000", "FacebookAI/roberta-base", 512)
# A model's files may ask sentence-transformers for what runs their code: a pickle that is read without limits, kernels
# from the Hub. What is passed here overrides them.
NO_CODE = {"weights_only": True, "allow_all_kernels": False}


class Embedder:
    """
    A sentence-transformers model that maps texts to float32 vectors.

    A plain transformer without sentence-transformers files gets the attention-masked mean of its last hidden state,
    special tokens included, as the method's authors used. Several threads may use one embedder; they take turns.

    No code of a model is run: its classes are those of sentence-transformers and transformers, and weights that exist
    only as a pickle are read by torch's restricted reader.

    `num_encoded` counts the texts that `encode_document` has embedded, and `num_truncated` those of them that were
    longer than `max_seq_length`, so that only their beginnings were embedded. Tokenizers in Python do not tell.

    Args:
        model (`str`, `Path` or `SentenceTransformer`):
            Hub id or folder of the model, or the loaded model itself. `"tttlm"` is the RoBERTa-large of the method's
            authors, with RoBERTa's tokenizer and 512 tokens.
        revision (`str`, *optional*):
            Branch, tag or commit, if `model` is a Hub id. For `"tttlm"` it is that of the weights and configuration;
            the tokenizer is in another repo.
        max_seq_length (`int`, *optional*):
            Tokens of a text that are read. By default the model's own.
        device (`str` or `list[str]`, *optional*):
            Where it runs. By default sentence-transformers decides. For several devices, `["cuda:0", "cuda:1"]` or
            `["cpu", "cpu"]`, a process starts on each at the first long list of texts.
        query_prompt (`str`, *optional*):
            What is put before each query. By default the model's own prompt, if it has one.
        document_prompt (`str`, *optional*):
            What is put before each document. By default the model's own prompt, if it has one.

    Raises:
        `ValueError`: If a loaded model has a `max_seq_length` that differs from the given one.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466), section 3.
    """

    num_encoded = 0
    num_truncated = 0

    def __init__(
        self,
        model: str | Path | SentenceTransformer,
        revision: str | None = None,
        max_seq_length: int | None = None,
        device: str | Sequence[str] | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
    ) -> None:
        self._devices = [device] if isinstance(device, str) else list(device or [])
        first = self._devices[0] if self._devices else None
        if isinstance(model, SentenceTransformer):
            if max_seq_length not in (None, model.max_seq_length):
                raise InputError(
                    f"`max_seq_length` is {max_seq_length}, but the loaded model has {model.max_seq_length}. Set it "
                    "there: `model.max_seq_length = ...`."
                )
            self.model = model
        elif model == "tttlm":
            self.model = _tttlm(revision, first)
        else:
            try:
                self.model = SentenceTransformer(
                    str(model), revision=revision, device=first, trust_remote_code=False, model_kwargs=NO_CODE
                )
            except OSError as error:
                raise OSError(
                    f"The embedder '{model}' cannot be loaded: {error} Check its name (`--embedder`) and revision; "
                    "without a connection, pass a folder, or a model that is in the cache."
                ) from error
        if max_seq_length is not None:
            self.model.max_seq_length = max_seq_length
        backbone = self.model.transformers_model  # static embeddings have none
        loaded = backbone.config._name_or_path if backbone else "unnamed"
        name: str = loaded if isinstance(model, SentenceTransformer) else str(model)
        # a folder is found again from wherever the index is opened
        self.name = str(Path(name).resolve()) if name != "tttlm" and Path(name).is_dir() else name
        # set by transformers where the model came from the Hub
        self.revision = revision or getattr(backbone.config if backbone else None, "_commit_hash", None)
        prompts = {name: text for name, text in self.model.prompts.items() if text}
        named = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "")
        self.document_prompt = named if document_prompt is None else document_prompt
        self.query_prompt = prompts.get("query", "") if query_prompt is None else query_prompt
        self._pool: Any = None
        self._turn = Lock()

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return cast(int, self.model.get_embedding_dimension())

    @property
    def default_batch_size(self) -> int:
        """Texts in one forward pass: 8 on a CPU, whose caches hold no more, and 32 on any other device."""
        return 8 if self.model.device.type == "cpu" else 32

    @property
    def max_seq_length(self) -> int | None:
        """Tokens of a text that are read; `None` for static embeddings, which read all."""
        limit = self.model.max_seq_length
        return None if limit is None or limit == math.inf else int(limit)

    def encode_document(
        self,
        texts: list[str],
        batch_size: int | None = None,
        first_row: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """
        Embed texts of a corpus.

        Args:
            texts (`list[str]`):
                Each is truncated to the model's `max_seq_length` tokens; an empty one is embedded as one space.
            batch_size (`int`, *optional*):
                Texts in one forward pass; they are sorted by length first. By default `default_batch_size`.
            first_row (`int`, *optional*, defaults to `0`):
                Row of the first text, for error messages.
            progress (`Callable`, *optional*):
                Called with the number of texts of each forward pass, for example `tqdm.update`.

        Returns:
            `np.ndarray`: float32 of shape `(len(texts), dimension)`, in the order of `texts`.

        Raises:
            `ValueError`: If a vector is not finite, or a text holds a lone surrogate.
            `TypeError`: If a text is not a string.
        """
        vectors, num_truncated = self._encode(
            self.model.encode_document, texts, self.document_prompt, batch_size, first_row, progress
        )
        self.num_encoded += len(texts)
        self.num_truncated += num_truncated
        return vectors

    def encode_query(self, texts: list[str], batch_size: int | None = None) -> np.ndarray:
        """
        Embed queries.

        Args:
            texts (`list[str]`):
                As those of `encode_document`.
            batch_size (`int`, *optional*):
                Texts in one forward pass. By default `default_batch_size`.

        Returns:
            `np.ndarray`: float32 of shape `(len(texts), dimension)`, in the order of `texts`.

        Raises:
            `ValueError`, `TypeError`: As `encode_document`.
        """
        return self._encode(self.model.encode_query, texts, self.query_prompt, batch_size)[0]

    @contextmanager
    def reported_truncation(self) -> Iterator[None]:
        """
        Warn at the end if documents that were embedded inside the `with` block were truncated.

        Only what `encode_document` embeds inside counts.
        """
        num_encoded, num_truncated = self.num_encoded, self.num_truncated
        yield
        num_encoded, num_truncated = self.num_encoded - num_encoded, self.num_truncated - num_truncated
        if num_truncated:
            logger.warning(
                f"{num_truncated} of {num_encoded} texts ({num_truncated / num_encoded:.0%}) are longer than the "
                f"{self.max_seq_length} tokens that '{self.name}' reads; only their beginnings were embedded. To find "
                "the rest too, index passages: `--passages`, or `passage_tokens=`."
            )

    def _encode(
        self,
        encode: Callable[..., Any],
        texts: list[str],
        prompt: str,
        batch_size: int | None,
        first_row: int = 0,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, int]:
        """Embed texts, and count those that were truncated."""
        if isinstance(texts, str):
            raise InputTypeError("A list of texts is needed, and one string was given. Put it into a list.")
        batch_size = self.default_batch_size if batch_size is None else batch_size
        if batch_size < 1:
            raise InputError(f"`batch_size` is {batch_size}. Pass at least 1.")
        texts = [check_text(text, f"row {first_row + row}") or " " for row, text in enumerate(texts)]
        if not texts:
            return np.empty((0, self.dimension), dtype=np.float32), 0
        counts: list[int] = []
        waiting = [min(batch_size, len(texts) - first) for first in range(0, len(texts), batch_size)]

        def before_forward(_: object, inputs: tuple[Any, ...]) -> None:
            counts.append(_num_truncated(inputs[0]))
            if progress is not None and waiting:
                progress(waiting.pop(0))

        with self._turn:  # a tokenizer serves one thread at a time
            texts = [self._shorten(text, prompt) for text in texts]
            # sorted here as well, so that the pieces that several processes get are of texts of one length
            order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
            ordered = [texts[row] for row in order]
            pool = self._processes() if len(texts) > batch_size else None
            if pool is not None:  # whose processes count nothing
                counts.append(_num_truncated(self.model.preprocess(ordered, prompt=prompt)))
            with self.model.register_forward_pre_hook(before_forward):
                encoded = encode(ordered, prompt=prompt, batch_size=batch_size, show_progress_bar=False, pool=pool)
        if progress is not None:
            progress(sum(waiting))  # what other processes embedded
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        vectors[order] = encoded
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            rows = (broken[:5] + first_row).tolist()
            raise InputError(
                f"The embedder '{self.name}' gave vectors that are not finite for rows {rows}. Load it in float32, or "
                "check its weights."
            )
        return vectors, sum(counts)

    def _shorten(self, text: str, prompt: str) -> str:
        """Cut off what the model does not read, so that a book is not tokenized to its end."""
        limit = self.max_seq_length
        length = len(text) if limit is None else CHARACTERS_PER_TOKEN * limit
        while length < len(text):
            space = WHITE_SPACE.search(text, length, 2 * length)
            cut = text[: space.start() if space else length]
            tokens = self._first_tokens(prompt + cut)
            # a cut inside a word is safe if the tokens before it do not change with half of the text
            if len(tokens) > cast(int, limit) and (space or tokens == self._first_tokens(prompt + cut[: length // 2])):
                return cut
            length *= 4
        return text

    def _first_tokens(self, text: str) -> list[int]:
        """Tokenize one token more than is read."""
        encoded = self.model.tokenizer(text, truncation=True, max_length=cast(int, self.max_seq_length) + 1)
        return cast(list[int], encoded["input_ids"])

    def _processes(self) -> Any:  # noqa: ANN401
        if self._pool is None and len(self._devices) > 1:
            self._pool = self.model.start_multi_process_pool(self._devices)
            # without this they outlive the embedder, and one that is still starting misses its queue
            finalize(self, self.model.stop_multi_process_pool, self._pool)
        return self._pool

    def describe(self) -> dict[str, Any]:
        """
        Describe the embedder for the manifest of an index.

        Returns:
            `dict[str, Any]`: JSON-able; name, revision, pooling, dimension, `max_seq_length`, prompts and the vector
            of the probe.
        """
        return {
            "name": self.name,
            "revision": self.revision,
            "pooling": [str(module.pooling_mode) for module in self.model if isinstance(module, Pooling)],
            "normalized": any(isinstance(module, Normalize) for module in self.model),
            "max_seq_length": self.max_seq_length,
            "dimension": self.dimension,
            "query_prompt": self.query_prompt,
            "document_prompt": self.document_prompt,
            "probe": self.encode_document([PROBE])[0].tolist(),
        }

    @classmethod
    def from_description(
        cls,
        description: dict[str, Any],
        model: str | Path | SentenceTransformer | None = None,
        device: str | Sequence[str] | None = None,
    ) -> "Embedder":
        """
        Load the embedder of an index.

        Args:
            description (`dict[str, Any]`):
                What `describe` gave when the index was built.
            model (`str`, `Path` or `SentenceTransformer`, *optional*):
                The same model under another name or path, or loaded. By default the name in the description, if it is
                `tttlm`, a Hub id or an absolute path.
            device (`str` or `list[str]`, *optional*):
                Where it runs.

        Returns:
            `Embedder`: with the same settings, not checked yet.

        Raises:
            `ValueError`: If the description names a relative path.
            `RuntimeError`: If what it names cannot be loaded.
        """
        # a loaded model is checked as it is; one that is loaded here reads as many tokens as the index's own
        limit = None if isinstance(model, SentenceTransformer) else description["max_seq_length"]
        settings = (limit, device, description["query_prompt"], description["document_prompt"])
        if model is not None:
            return cls(model, None, *settings)
        name = description["name"]
        built = f"The index was built with the embedder '{name}'"
        way_out = "Pass it: `NeighborRetriever.from_pretrained(..., embedder=...)`, or `--embedder`."
        if not _names_one_model(name):
            raise InputError(f"{built}, a relative path, which leads elsewhere here and is not followed. {way_out}")
        try:
            return cls(name, description["revision"], *settings)
        except (OSError, ValueError, UnpicklingError) as error:
            raise StateError(f"{built}, which cannot be loaded here ({error}). {way_out}") from error

    def check(self, description: dict[str, Any]) -> None:
        """
        Make sure that this is the embedder that an index was built with.

        Args:
            description (`dict[str, Any]`):
                What `describe` gave when the index was built; an index made of vectors from elsewhere has no probe.

        Raises:
            `ValueError`: If dimension, `max_seq_length`, a prompt or the probe's vector differ.
        """
        built, given = f"'{description['name']}'", f"'{self.name}'"
        for name in ("dimension", "max_seq_length", "query_prompt", "document_prompt"):
            value = getattr(self, name)
            if description[name] != value:
                raise InputError(
                    f"The index was built with the embedder {built}, whose {name} is {description[name]!r}; {given} "
                    f"has {value!r}. Pass the embedder that built it."
                )
        if description["probe"] is None:
            return
        distance = _relative_distance(self.encode_document([PROBE])[0], description["probe"])
        if not distance <= PROBE_TOLERANCE:
            raise InputError(
                f"The index was built with the embedder {built} (revision {description['revision']}); {given} maps "
                f"the same text {distance:.0%} away. Pass the embedder that built it."
            )


def same_embedder(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two descriptions are of one embedder: a folder may have moved, and a vector differs by rounding."""
    same = all(first.get(name) == second.get(name) for name in {*first, *second} - {"probe"})
    if first["probe"] is None or second["probe"] is None:
        return same and first["probe"] is second["probe"]
    return same and bool(_relative_distance(first["probe"], second["probe"]) <= PROBE_TOLERANCE)


def _num_truncated(features: Any) -> int:  # noqa: ANN401
    """Count the texts of a batch of which tokens were cut off; its tokenizer kept these too."""
    encodings = features.encodings if isinstance(features, BatchEncoding) else None
    return sum(bool(encoding.overflowing) for encoding in encodings or ())


def _relative_distance(probe: Any, expected: list[float]) -> float:  # noqa: ANN401
    return float(np.linalg.norm(np.subtract(probe, expected)) / np.linalg.norm(expected))


def _names_one_model(name: str) -> bool:
    """Whether a name means the same from every folder; an index may come from anybody."""
    if name == "tttlm" or Path(name).is_absolute():
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()  # a folder of that name would be loaded instead of the repo


def _tttlm(revision: str | None, device: str | None) -> SentenceTransformer:
    name, tokenizer, max_seq_length = TTTLM
    transformer = Transformer(
        name,
        max_seq_length=max_seq_length,
        tokenizer_name_or_path=tokenizer,
        model_kwargs={**NO_CODE, "revision": revision},
        config_kwargs={"revision": revision},
    )
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension())], device=device)
