"""The words of a command line: options are shown with dashes, and a misspelled one gets a suggestion."""

import argparse
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows options with dashes only and defaults only where there are any, and keeps the paragraphs of a text."""

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):  # commands are listed without a line above them
            return "".join(map(self._format_action, action._get_subactions()))
        return super()._format_action(action)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # a flag has no value, so its default says nothing
        return action.help if action.default is None or action.nargs == 0 else super()._get_help_string(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        # an indented paragraph is an example, which stays as it is
        parts = [part if part.startswith(" ") else fill(part, width, indent) for part in text.strip().split("\n\n")]
        return "\n\n".join(parts)


class Parser(argparse.ArgumentParser):
    """Shows help by `HelpFormatter`, and takes no abbreviations."""

    def __init__(self, **options: object) -> None:
        super().__init__(**{"formatter_class": HelpFormatter, "allow_abbrev": False, **options})  # type: ignore[arg-type]


class OptionParser(Parser):
    """
    Has an option for each field of dataclasses, and gives instances of them.

    Options are those that transformers' `HfArgumentParser` makes, which takes most of a second to import.
    """

    def __init__(self, groups: Sequence[type], **options: object) -> None:
        super().__init__(**options)
        self.groups = groups
        for group in groups:
            hints = get_type_hints(group)
            for item in fields(group):
                if item.init:
                    self._add_field(item, hints[item.name])

    def _add_field(self, item: "Field[Any]", hint: Any) -> None:  # noqa: ANN401
        name, options, kind = item.name.replace("_", "-"), dict(item.metadata), _kind_of(hint)
        if item.default is not MISSING:
            options["default"] = item.default
        elif item.default_factory is not MISSING:
            options["default"] = item.default_factory()
        else:
            options["required"] = True
        if get_origin(kind) is list:
            options |= {"type": get_args(kind)[0], "nargs": "+"}
            if item.default == "":  # argparse would read it as a word
                options["default"] = []
        elif kind is bool:
            options |= {"type": switch}
            if item.default is not None:
                options |= {"nargs": "?", "const": True}
        elif isinstance(kind, type) and issubclass(kind, Enum):
            options |= {"type": _value_of(kind), "choices": [member.value for member in kind]}
        else:
            options |= {"type": kind}
        self.add_argument(f"--{name}", **options)
        if kind is bool and item.default is True:
            self.add_argument(f"--no-{name}", dest=item.name, action="store_false", help=argparse.SUPPRESS)

    def with_values(self, words: Sequence[str]) -> list[str]:
        """Give flags their value, `--raw=true`, where the next word is none: it then belongs to no option."""
        valued = []
        for word, following in zip(words, [*words[1:], ""], strict=True):
            action = self._option_string_actions.get(word)
            is_flag = action is not None and action.type is switch and action.nargs == "?"
            valued.append(f"{word}=true" if is_flag and following.lower() not in SWITCHED else word)
        return valued

    def parse_groups(self, words: Sequence[str]) -> tuple[dict[type, Any], list[str]]:
        """Parse words; gives an instance of each dataclass by its type, and the words that belong to no option."""
        values, rest = self.parse_known_args(words)
        return {group: _instance(group, values) for group in self.groups}, rest


Group = TypeVar("Group")


def _instance(group: type[Group], values: argparse.Namespace) -> Group:
    names = [item.name for item in fields(group) if item.init]  # type: ignore[arg-type]
    return group(**{name: getattr(values, name) for name in names})


def _kind_of(hint: Any) -> Any:  # noqa: ANN401
    """Say what a word becomes: of several types a string if there may be none, and the other one if there must be."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if str in kinds and NoneType in get_args(hint):
        return str
    return next((kind for kind in kinds if kind is not str), str)


def _value_of(kind: type[Enum]) -> Callable[[str], Any]:
    """Make what turns a word into a value of an enumeration; another word stays as it is, and is refused."""
    return {str(member.value): member.value for member in kind}.get


# what may be said after a flag
SWITCHED = {name: name in ("yes", "true", "t", "y", "1") for name in "yes true t y 1 no false f n 0".split()}


def switch(word: str) -> bool:
    """Read what is said after a flag: `--bf16 false`."""
    if word.lower() in SWITCHED:
        return SWITCHED[word.lower()]
    raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")


def dashed(words: Sequence[str]) -> list[str]:
    """Write the names of options with dashes, up to a bare `--`: `--batch_size=a_b` becomes `--batch-size=a_b`."""
    end = words.index("--") if "--" in words else len(words)
    names = [re.sub(r"\A--\w[\w-]*(?=\Z|=)", lambda name: name[0].replace("_", "-"), word) for word in words[:end]]
    return [*names, *words[end:]]


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether the help is to be shown."""
    end = words.index("--") if "--" in words else len(words)
    return not {"-h", "--help"}.isdisjoint(words[:end])


def misspelled(words: Sequence[str], options: Collection[str]) -> str | None:
    """Give the first word, up to a bare `--`, that is written as an option and is not one of `options`."""
    end = words.index("--") if "--" in words else len(words)
    names = (word.split("=")[0] for word in words[:end] if word.startswith("--"))
    return next((name for name in names if name not in options and " " not in name), None)


def suggestion(word: str, options: Iterable[str]) -> str:
    """Give a sentence that names the option most like a misspelled word, after a space; empty if none is like it."""
    matches = get_close_matches(word, options, n=1, cutoff=0.75)
    return f" Did you mean `{matches[0]}`?" if matches else ""
