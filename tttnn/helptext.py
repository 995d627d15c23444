"""The words of a command line: options are shown with dashes, and a misspelled one gets a suggestion."""

import argparse
import re
from collections.abc import Collection, Iterable, Sequence
from copy import copy
from difflib import get_close_matches


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows options with dashes only and defaults only where there are any, and keeps the paragraphs of a text."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],
        prefix: str | None = None,
    ) -> None:
        """Add the usage line."""
        super().add_usage(usage, [_with_dashes(action) for action in actions], groups, prefix)

    def add_argument(self, action: argparse.Action) -> None:
        """Add the help of an option; `--no-NAME`, which HfArgumentParser adds to a flag that is on, has none."""
        if not isinstance(action, argparse._StoreFalseAction):
            super().add_argument(_with_dashes(action))

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


def _with_dashes(action: argparse.Action) -> argparse.Action:
    """Leave out the names with underscores that HfArgumentParser also registers."""
    names = [name for name in action.option_strings if "_" not in name]
    if names == action.option_strings:
        return action  # not a copy: the usage line finds the actions of a group by identity
    shown = copy(action)
    shown.option_strings = names
    return shown


def dashed(words: Sequence[str]) -> list[str]:
    """Write the names of options with dashes, up to a bare `--`: `--batch_size=a_b` becomes `--batch-size=a_b`."""
    end = words.index("--") if "--" in words else len(words)
    names = [re.sub(r"\A--\w[\w-]*(?=\Z|=)", lambda name: name[0].replace("_", "-"), word) for word in words[:end]]
    return [*names, *words[end:]]


def misspelled(words: Sequence[str], options: Collection[str]) -> str | None:
    """Give the first word, up to a bare `--`, that is written as an option and is not one of `options`."""
    end = words.index("--") if "--" in words else len(words)
    names = (word.split("=")[0] for word in words[:end] if word.startswith("--"))
    return next((name for name in names if name not in options and " " not in name), None)


def suggestion(word: str, options: Iterable[str]) -> str:
    """Give a sentence that names the option most like a misspelled word, after a space; empty if none is like it."""
    matches = get_close_matches(word, [option for option in options if "_" not in option], n=1, cutoff=0.75)
    return f" Did you mean `{matches[0]}`?" if matches else ""
