"""Reads the docstrings of Hugging Face libraries, where a type stands in backquotes, as Google's form."""

import re
from typing import Any

import griffe


# "name (`type`, *optional*, defaults to `value`):" -> "name:". The signature has the type and the default.
ARGUMENT = re.compile(r"^(\s+\**\w+) \(`.*\):$", re.MULTILINE)
# "`type`: text", as under Returns and Raises -> "type: text"
TYPE = re.compile(r"^(\s+)`([^`]+)`: ", re.MULTILINE)


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites each docstring before mkdocstrings parses it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute it has read."""
        if obj.docstring is not None:
            obj.docstring.value = TYPE.sub(r"\1\2: ", ARGUMENT.sub(r"\1:", obj.docstring.value))
