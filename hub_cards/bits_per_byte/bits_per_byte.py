"""
Bits per byte of texts, from their log-likelihoods.

`evaluate.load` copies this one file elsewhere and reads its imports line by line, so it imports nothing from the
package it ships with, one module per import line and without comments there.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import datasets
import evaluate


_CITATION = """\
@inproceedings{hardt2024testtime,
    title = {Test-Time Training on Nearest Neighbors for Large Language Models},
    author = {Hardt, Moritz and Sun, Yu},
    booktitle = {International Conference on Learning Representations},
    year = {2024},
    url = {https://arxiv.org/abs/2305.18466},
}
"""

_DESCRIPTION = """\
Bits per byte measure how well a language model predicts texts: the bits it needs to code them, over the UTF-8 bytes
that they hold. Bytes do not depend on a tokenizer, so models with different vocabularies can be compared on the same
texts. The sums are pooled over all texts before they are divided:

bits_per_byte = -sum(log-likelihoods) / sum(bytes) / ln 2
byte_perplexity = exp(-sum(log-likelihoods) / sum(bytes)) = 2 ** bits_per_byte
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (`list[float]`):
        Log-likelihood of each text, in nats: the sum of the natural logarithms of the probabilities of its tokens.
        Finite, and never above 0.
    references (`list[str]`):
        The scored texts, in the order of `predictions`. Their UTF-8 bytes are counted.

Returns:
    `dict[str, float]`:
        - **bits_per_byte**: at least 0, lower is better.
        - **byte_perplexity**: at least 1, lower is better; infinite where it is too large for a float.

Raises:
    `ValueError`: If a log-likelihood is positive or not finite, if a text has a lone surrogate (which UTF-8 cannot
    encode), or if all the texts together have no bytes.
    `TypeError`: If a text is not a string.

Examples:

    The path is that of any folder `bits_per_byte` with this file in it.

    >>> import evaluate
    >>> import math
    >>> bits_per_byte = evaluate.load("tttnn/metrics/bits_per_byte")

    A text of 8 bytes with a probability of 2 ** -8 takes one bit per byte:

    >>> bits_per_byte.compute(predictions=[-8 * math.log(2)], references=["8 bytes!"])
    {'bits_per_byte': 1.0, 'byte_perplexity': 2.0}

    Several texts are pooled, so a long text counts for more than a short one. Here 12 + 6 nats meet 4 + 5 bytes
    ("é" has two), that is 2 nats a byte:

    >>> bits_per_byte.add_batch(predictions=[-12.0], references=["long"])
    >>> bits_per_byte.add_batch(predictions=[-6.0], references=["café"])
    >>> result = bits_per_byte.compute()
    >>> round(result["bits_per_byte"], 4), round(result["byte_perplexity"], 4)
    (2.8854, 7.3891)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class BitsPerByte(evaluate.Metric):
    """Rows are checked as they are added, so that an error names the row and nothing of its batch is kept."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # "float" would be 32 bits: seven digits of a sum over a long text.
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("string")}
            ),
            reference_urls=["https://arxiv.org/abs/2305.18466", "https://arxiv.org/abs/2101.00027"],
        )

    def add(self, *, prediction: float | None = None, reference: str | None = None, **kwargs: Any) -> None:
        """Add the log-likelihood of one text (`prediction`) and the text (`reference`)."""
        # `evaluate.combine` passes one row under the plural names, which win in `evaluate.Metric.add` too.
        row = {"predictions": prediction, "references": reference, **kwargs}
        self.add_batch(**{name: [value] for name, value in row.items()})

    def add_batch(
        self, *, predictions: Sequence[float] | None = None, references: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        """Add the log-likelihoods of several texts (`predictions`) and the texts (`references`)."""
        if predictions is None or references is None:
            raise ValueError("Pass both `predictions` (log-likelihoods in nats) and `references` (the scored texts).")
        for row, log_likelihood in enumerate(predictions, start=len(self)):
            if not isinstance(log_likelihood, Real) or not -math.inf < log_likelihood <= 0:
                raise ValueError(
                    f"The log-likelihood of row {row} is {log_likelihood}, but that of a text is finite and never "
                    "above 0. Pass the sum of the natural log-probabilities of its tokens, not its negative (a loss)."
                )
        for row, text in enumerate(references, start=len(self)):
            if not isinstance(text, str):
                raise TypeError(f"The text of row {row} is of type `{type(text).__name__}`. Pass strings.")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"The text of row {row} has the lone surrogate {text[error.start]!r} at character {error.start}, "
                    "which UTF-8 cannot encode. Replace it, for example by U+FFFD, before you score the text."
                ) from error
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def _compute(self, predictions: list[float], references: list[str]) -> dict[str, float]:
        num_bytes = sum(len(text.encode("utf-8")) for text in references)
        if num_bytes == 0:
            raise ValueError(
                f"The texts (rows: {len(references)}) hold no bytes, by which bits per byte divide. Add at least one "
                "text that is not empty."
            )
        # `abs`, because the negative of a sum of 0.0 would be -0.0.
        try:
            nats_per_byte = abs(math.fsum(predictions)) / num_bytes
        except OverflowError:
            raise ValueError("The log-likelihoods add up to more nats than a number holds. Check them.") from None
        try:
            byte_perplexity = math.exp(nats_per_byte)
        except OverflowError:
            byte_perplexity = math.inf
        return {"bits_per_byte": nats_per_byte / math.log(2), "byte_perplexity": byte_perplexity}
