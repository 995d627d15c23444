"""Requests of the OpenAI-compatible server, and what is refused of them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tttnn.errors import InputError
from tttnn.generation.engine import Settings


Number = Annotated[int, Field(strict=True)]
# Fields of OpenAI's that this server cannot obey, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "top_logprobs": (0,),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}


class AdaptationOptions(BaseModel):
    """
    How a request is adapted to, in its field `tttnn`; the `openai` client sends it as `extra_body={"tttnn": ...}`.

    Args:
        adapts (`bool`, *optional*, defaults to `True`):
            `False`: the model as it is.
        method (`str`, *optional*):
            One of the server's methods.
        num_neighbors (`int`, *optional*):
            Neighbors to use.
        learning_rate (`float`, *optional*):
            Of the steps.
        query (`str`, *optional*):
            What finds the neighbors. By default the prompt, or the last message of the user.
    """

    model_config = ConfigDict(extra="forbid")

    adapts: bool = True
    method: str | None = None
    num_neighbors: Number | None = None
    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None
    query: Annotated[str, Field(min_length=1)] | None = None

    def settings(self) -> Settings:
        """Give what differs from the server's settings."""
        return Settings(self.method, self.num_neighbors, self.learning_rate)


class StreamOptions(BaseModel):
    """Whether a stream ends with the numbers of tokens."""

    include_usage: bool = False


class Request(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] = 1
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    tttnn: AdaptationOptions = AdaptationOptions()

    @model_validator(mode="after")
    def refuse(self) -> "Request":
        """Refuse what would not be obeyed, so that no answer is another one than was asked for."""
        for name, value in (self.model_extra or {}).items():
            if value is not None and name in NEUTRAL and value not in NEUTRAL[name]:
                raise ValueError(f"`{name}` is not supported. Leave it out.")
        if self.n > 1 and self.stream:
            raise ValueError("`n` is more than 1, and `stream` is true. Pass one of them.")
        if self.n > 1 and not self.temperature:
            raise ValueError("`n` is more than 1, and all texts would be the same. Pass a `temperature` above 0.")
        if "" in self.ends():
            raise ValueError("`stop` has an empty text.")
        return self

    def ends(self) -> list[str]:
        """Give the texts that end the text."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def generate_options(self, max_new_tokens: int) -> dict[str, Any]:
        """Give options of `generate`; a temperature of 0 takes the likeliest token."""
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "num_return_sequences": self.n}
        if self.temperature is not None and self.temperature == 0:
            return options | {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self.temperature is not None or self.top_p is not None:
            options["do_sample"] = True
        for name in ("temperature", "top_p"):
            if getattr(self, name) is not None:
                options[name] = getattr(self, name)
        return options


class CompletionRequest(Request):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[Number] | list[list[Number]]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @model_validator(mode="after")
    def refuse_logprobs(self) -> "CompletionRequest":
        """Log-probabilities are those of a text that is there, as lm-evaluation-harness asks for them."""
        if self.echo != (self.logprobs is not None):
            raise ValueError(
                "`echo` and `logprobs` are supported together only: the log-probabilities of a text that is passed."
            )
        if self.echo and self.stream:
            raise ValueError("`echo` is not supported with `stream`.")
        return self

    def prompts(self) -> list[str | list[int]]:
        """Give the prompts, each a text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InputError("There is no prompt. Pass a text.")
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class ChatRequest(Request):
    """`POST /v1/chat/completions`."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Literal[False] | None = None
