"""What a tokenizer and the ids of documents may do to numbers, checked before they are computed."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from tttnn.adaptation.windows import encode
from tttnn.documents import Document, is_position
from tttnn.errors import InputError


logger = logging.get_logger(__name__)

PROBED = ("z", "7", "\u00e9", "\u6771", "\U0001f40b")


def warn_of_dropped_text(processing_class: PreTrainedTokenizerBase) -> None:
    """Warn, by a probe, of a tokenizer that leaves text out: bits per byte are too low then."""
    dropped = [sign for sign in PROBED if not encode(processing_class, sign)]
    if encode(processing_class, "a\n\n\nb") == encode(processing_class, "a b"):
        dropped.append("line breaks")
    if dropped:
        logger.warning_once(
            f"The tokenizer drops text (tried: {', '.join(dropped)}), whose bytes count and cost nothing. Compare "
            "scores only with those of the same tokenizer."
        )


def warn_of_counted_ids(documents: Iterable[Document], exclude: str | None) -> None:
    """
    Warn where neighbors are excluded by ids that only count rows.

    Args:
        documents (`Iterable[Document]`):
            Test documents.
        exclude (`str`, *optional*):
            The field by which neighbors are excluded.
    """
    if exclude != "id":
        return
    counted = next((document.id for document in documents if is_position(document.id)), None)
    if counted is not None:
        logger.warning(
            f"`exclude` is 'id', and ids such as '{counted}' count rows. They name the same document in the index "
            "only if it was made of the same rows in the same order, under the same name. If it was not, the wrong "
            "neighbors are excluded: give the documents ids of their own, or exclude by another field."
        )


def check_vocabulary(
    model: PreTrainedModel, processing_class: PreTrainedTokenizerBase, token_ids: Sequence[int]
) -> None:
    """
    Refuse tokens that were added to the tokenizer and not to the model, which has no embeddings for them.

    Args:
        model (`PreTrainedModel`):
            The model.
        processing_class (`PreTrainedTokenizerBase`):
            The tokenizer.
        token_ids (`Sequence[int]`):
            Of a text; may be empty.

    Raises:
        `ValueError`: If one of them is not in the model's vocabulary.
    """
    vocabulary, largest = len(model.get_input_embeddings().weight), max(token_ids, default=0)  # type: ignore[arg-type]
    for token_id in (largest, min(token_ids, default=0)):
        if not 0 <= token_id < max(vocabulary, len(processing_class)):
            raise InputError(
                f"{token_id} is no token of the model, which has 0 to {vocabulary - 1}. Pass one of these."
            )
    if largest >= vocabulary:
        token = processing_class.convert_ids_to_tokens(largest)
        raise InputError(
            f"{token!r} is token {largest} of the tokenizer, but the model's vocabulary has {vocabulary}. Call "
            "`model.resize_token_embeddings(len(tokenizer))`, or take a tokenizer to which it was not added."
        )
