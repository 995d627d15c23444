"""The command that generates with the adapted model."""

import argparse
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tttnn.errors import InputError
from tttnn.evaluation import ModelArguments
from tttnn.helptext import Parser


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tttnn.generation import Generation, TestTimeGenerator


DESCRIPTION = (
    "Adapt a model to the nearest neighbors of a prompt, and generate with the prompt in its context. The prompt is "
    "the words at the end, a file, or standard input; on a terminal without any of them, prompts are asked for one "
    "after another. The text goes to standard output, and what was done for it to standard error."
)
Messages = list[dict[str, str]]
GAP = 3  # columns between the two texts of `--compare`
SHOWN = 60  # characters of a neighbor


@dataclass(kw_only=True)
class GenerateArguments(ModelArguments):
    """What `tttnn generate` generates."""

    prompt_file: str | None = field(default=None, metadata={"help": "File with the prompt; - is standard input."})
    raw: bool = field(
        default=False,
        metadata={
            "help": "Continue the prompt as it is, for example code. Default: answer it as a message of the user, if "
            "the tokenizer has a chat template."
        },
    )
    system: str | None = field(default=None, metadata={"help": "Message of the system, before the user's."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Most tokens to generate. Default: the model's, or 256."}
    )
    temperature: float | None = field(
        default=None, metadata={"help": "Of the sampling; 0 takes the likeliest token. Default: the model's."}
    )
    top_p: float | None = field(
        default=None, metadata={"help": "Sample from the likeliest tokens of this share. Default: the model's."}
    )
    generation_config: str | None = field(
        default=None, metadata={"help": 'Other fields of transformers.GenerationConfig, as JSON: {"num_beams": 4}.'}
    )
    compare: bool = field(
        default=False, metadata={"help": "Show what the model says as it is beside it, with the same seed."}
    )
    save_adapted: str | None = field(
        default=None, metadata={"help": "Folder to save the adapted model in; with LoRA, its adapter alone."}
    )
    max_length: int = field(default=1024, metadata={"help": "Tokens in a training chunk."})
    seed: int = field(default=42, metadata={"help": "Seed of the steps and of the sampling."})
    bf16: bool = field(default=False, metadata={"help": "Mixed precision with bfloat16."})
    use_cpu: bool = field(default=False, metadata={"help": "Run on the CPU even if there is a GPU."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise InputError(f"`temperature` is {self.temperature}. Pass a number of at least 0.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"`top_p` is {self.top_p}. Pass a share above 0, up to 1.")
        if self.save_adapted is not None:
            _check_free(Path(self.save_adapted))
        self.fields()

    def fields(self) -> dict[str, Any]:
        """Give the fields of the generation config that were passed."""
        try:
            values = json.loads(self.generation_config or "{}")
        except ValueError as error:
            raise InputError(f"`generation_config` is no JSON: {error}. Pass an object.") from error
        if not isinstance(values, dict):
            raise InputError(f"`generation_config` is {type(values).__name__}. Pass a JSON object.")
        passed = {"max_new_tokens": self.max_new_tokens, "top_p": self.top_p}
        if self.temperature is not None:
            passed |= {"temperature": self.temperature or None, "do_sample": self.temperature > 0}
            if not self.temperature:  # they would be warned of as without effect
                values |= {"top_k": None, "top_p": None}
        elif self.top_p is not None:
            passed["do_sample"] = True
        return values | {name: value for name, value in passed.items() if value is not None or name == "temperature"}


def add_generate(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add `tttnn generate` to the list of commands; its options depend on the method, and have another parser."""
    commands.add_parser("generate", help="adapt a model to a prompt, and generate")


def generate(argv: Sequence[str]) -> None:
    """Run `tttnn generate` with the words after it."""
    from tttnn.evaluation import parse_evaluation

    words: list[str] = []
    evaluation = parse_evaluation(GenerateArguments, argv, prog="tttnn generate", description=DESCRIPTION, words=words)
    inputs = evaluation.inputs
    prompt = _prompt(inputs, words)
    generator = load_generator(evaluation)
    if prompt is None:
        _converse(generator, inputs)
    else:
        _answer(generator, inputs, _as_prompt(inputs, generator.trainer.processing_class, prompt))


def _prompt(inputs: GenerateArguments, words: list[str]) -> str | None:
    """Give the prompt; `None` if it is to be asked for."""
    if words and inputs.prompt_file is not None:
        raise InputError("A prompt and `--prompt-file` were passed. Pass one of them.")
    if words:
        return " ".join(words)
    if inputs.prompt_file not in (None, "-"):
        try:
            return Path(str(inputs.prompt_file)).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"'{inputs.prompt_file}' is not UTF-8 text ({error}). Pass a text file.") from error
    if inputs.prompt_file is None and sys.stdin.isatty():
        return None
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"Standard input is not UTF-8 text ({error}). Pass a text.") from error


def load_generator(evaluation: Any, cache_bytes: int = 1 << 31) -> "TestTimeGenerator":  # noqa: ANN401
    """Load the model and the index, settle a budget, and make the generator."""
    from tttnn.adaptation import AdaptationCache
    from tttnn.evaluation import load_trainer
    from tttnn.generation import TestTimeGenerator

    return TestTimeGenerator(load_trainer(evaluation), AdaptationCache(cache_bytes))


def _as_prompt(
    inputs: GenerateArguments,
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    earlier: Sequence[dict[str, str]] = (),
) -> str | Messages:
    """Make messages of a text where there is a chat template, after the earlier ones."""
    if inputs.raw or tokenizer.chat_template is None:
        if inputs.system is not None:
            raise InputError(
                "`--system` is a message of a chat, and the prompt is continued as it is: "
                f"{'`--raw` was passed' if inputs.raw else 'the tokenizer has no chat template'}. Leave it out."
            )
        return text
    system = [] if inputs.system is None else [{"role": "system", "content": inputs.system}]
    return [*system, *earlier, {"role": "user", "content": text}]


def _answer(generator: "TestTimeGenerator", inputs: GenerateArguments, prompt: str | Messages) -> "Generation":
    """Generate for a prompt, show it while it comes, and tell what was done for it."""
    from transformers import TextStreamer

    options: dict[str, Any] = inputs.fields() | {"seed": inputs.seed}
    base = generator(prompt, adapts=False, **options) if inputs.compare else None
    tokenizer = generator.trainer.processing_class
    can_stream = base is None and options.get("num_beams", 1) == options.get("num_return_sequences", 1) == 1
    if can_stream:
        options["streamer"] = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    generation: Generation = generator(prompt, **options)
    if base is not None:
        pairs = zip(base.texts, generation.texts, strict=True)
        print("\n\n".join(_side_by_side(*pair) for pair in pairs))
    elif not can_stream:
        print("\n\n".join(generation.texts))
    sys.stdout.flush()
    _tell(generation)
    if inputs.save_adapted is not None:
        _save(generator, prompt, Path(inputs.save_adapted))
    return generation


def _converse(generator: "TestTimeGenerator", inputs: GenerateArguments) -> None:
    """Ask for prompts until the end of the input; with a chat template, one conversation."""
    tokenizer = generator.trainer.processing_class
    is_chat = not inputs.raw and tokenizer.chat_template is not None
    print("Ctrl-D ends." + (" /new begins another conversation." if is_chat else ""), file=sys.stderr)
    earlier: list[dict[str, str]] = []
    while True:
        try:
            text = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return
        if is_chat and text.strip() == "/new":
            earlier = []
            continue
        try:
            prompt = _as_prompt(inputs, tokenizer, text, earlier)
            generation = _answer(generator, inputs, prompt)
        except (InputError, ConnectionError, TimeoutError) as error:
            print(f"error: {error}", file=sys.stderr)
            continue
        earlier += [{"role": "user", "content": text}, {"role": "assistant", "content": generation.text}]


def _side_by_side(base: str, adapted: str) -> str:
    """Lay two texts beside each other, as wide as the terminal."""
    width = (shutil.get_terminal_size().columns - GAP) // 2

    def wrapped(title: str, text: str) -> list[str]:
        lines = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, width) or [""]]
        return [title, "-" * width, *lines]

    columns = wrapped("as it is", base), wrapped("adapted", adapted)
    height = max(map(len, columns))
    left, right = (column + [""] * (height - len(column)) for column in columns)
    return "\n".join(f"{one:<{width}}{'':{GAP}}{other}".rstrip() for one, other in zip(left, right, strict=True))


def _tell(generation: "Generation") -> None:
    """Tell which neighbors were used, and the seconds by phase."""
    tell: Callable[[str], None] = lambda line: print(line, file=sys.stderr)  # noqa: E731
    for neighbor in generation.neighbors:
        name = neighbor.metadata.get("id", neighbor.id)
        tell(f"  {neighbor.distance:.3f}  {name}  {' '.join(neighbor.text.split())[:SHOWN]!r}")
    if generation.missing_shards:
        tell(f"Without the shards {generation.missing_shards}, whose machines do not answer.")
    if generation.is_reused:
        tell("An earlier adaptation to the same neighbors was used again.")
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in generation.seconds.items())
    tell(f"{generation.num_new_tokens[0]} tokens; seconds: {seconds}")


def _check_free(folder: Path) -> None:
    """Refuse to save over what is there, which may be the model itself."""
    if folder.is_dir() and not any(folder.iterdir()) or not folder.exists():
        return
    kind = "a folder that is not empty" if folder.is_dir() else "a file"
    raise InputError(f"`save_adapted` is '{folder}', {kind}. Pass a new folder.")


def _save(generator: "TestTimeGenerator", prompt: str | Messages, folder: Path) -> None:
    """Save the adapted model; the adaptation comes out of the cache."""
    from tttnn.generation import read_prompt

    query = read_prompt(generator.trainer.processing_class, prompt).query
    with generator.trainer.adapted_episode(query, cache=generator.cache) as episode:
        if not episode.changed:
            raise InputError(
                "`--save-adapted` was passed, and nothing changed the model. Choose a method that trains."
            )
        episode.model.save_pretrained(folder)
    generator.trainer.processing_class.save_pretrained(folder)
    print(f"The adapted model is in {folder}.", file=sys.stderr)
