"""Prompts: a text to continue, or a chat to answer; what finds its neighbors, and its tokens."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tttnn.documents import check_text
from tttnn.errors import InputError, InputTypeError


Messages = Sequence[Mapping[str, Any]]


class Prompt(NamedTuple):
    """
    A prompt as the model reads it.

    Args:
        query (`str`):
            What finds the neighbors: the whole text, or of a chat the last message of the user.
        token_ids (`list[int]`):
            Its tokens, with the special tokens of the tokenizer or of the chat template.
    """

    query: str
    token_ids: list[int]


def read_prompt(processing_class: PreTrainedTokenizerBase, prompt: str | Messages | Prompt) -> Prompt:
    """
    Tokenize a prompt.

    Args:
        processing_class (`PreTrainedTokenizerBase`):
            The model's tokenizer.
        prompt (`str`, `list[dict]` or `Prompt`):
            A text, which is continued as it is, or the messages of a chat, `{"role": ..., "content": ...}`, which the
            tokenizer's chat template lays out. A content is a text, or a list of parts `{"type": "text", ...}`. Tokens
            are a `Prompt` already.

    Returns:
        `Prompt`: its query and its tokens.

    Raises:
        `ValueError`: If the text is empty; if the tokenizer has no chat template, or its template refuses the chat; or
            if no message is the user's.
        `TypeError`: If it is neither a text nor messages.
    """
    if isinstance(prompt, Prompt):
        if not prompt.token_ids:
            raise InputError("The prompt is empty. Pass at least one token.")
        return prompt
    if isinstance(prompt, str):
        if not check_text(prompt, "`prompt`").strip():
            raise InputError("The prompt is empty. Pass the text to continue: its neighbors are found by it.")
        return Prompt(prompt, list(processing_class(prompt, verbose=False)["input_ids"]))
    messages = _checked(prompt)
    queries = [message["content"] for message in messages if message["role"] == "user"]
    if not queries or not queries[-1].strip():
        raise InputError(
            "The chat has no message of the user with a text, and neighbors are found by the last one. Add "
            '{"role": "user", "content": "..."}.'
        )
    if processing_class.chat_template is None:
        raise InputError(
            f"The tokenizer '{processing_class.name_or_path}' has no chat template, so that messages cannot be laid "
            "out. Pass a text, or the model's instruction-tuned variant."
        )
    try:
        encoded: Any = processing_class.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=True
        )
    except TemplateError as error:
        raise InputError(f"The chat template of the tokenizer refuses these messages: {error}") from error
    return Prompt(queries[-1], list(encoded["input_ids"]))


def is_chat(prompt: object) -> bool:
    """Whether a prompt is the messages of one chat, and not a list of prompts."""
    return isinstance(prompt, Sequence) and bool(prompt) and all(isinstance(item, Mapping) for item in prompt)


def _checked(messages: Messages) -> list[dict[str, str]]:
    """Refuse what is no chat, and join the parts of each content."""
    if not is_chat(messages):
        kind = type(messages).__name__
        raise InputTypeError(f"A prompt is {kind}, and must be a text or a list of messages, each a dict.")
    checked = []
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if isinstance(content, Sequence) and not isinstance(content, str):
            content = "".join(_text_of(part, number) for part in content)
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(
                f"Message {number} of the chat is {str(dict(message))[:80]!r}. Give each a `role` and a `content`, "
                "which are texts."
            )
        checked.append({"role": role, "content": check_text(content, f"message {number}")})
    return checked


def _text_of(part: object, number: int) -> str:
    """Give the text of a part of a message; there are no images here."""
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise InputError(f"Message {number} of the chat has a part of the type {kind!r}. Only texts are read.")
