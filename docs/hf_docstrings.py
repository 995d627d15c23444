"""Reads the docstrings of Hugging Face libraries, where a type stands in backquotes, as Google's form."""

import re
from typing import Any

import griffe


# "name (`type`, *optional*, defaults to `value`):" -> "name:". The signature has the type and the default.
ARGUMENT = re.compile(r"^(\s+\**\w+) \([`*].*\):$", re.MULTILINE)
# "`type`: text" or "`type`, `type`: text", as under Returns and Raises -> without the backquotes
TYPES = re.compile(r"^(\s+)(`[^`\"]+`(?:, `[^`\"]+`)*): ", re.MULTILINE)


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites each docstring before mkdocstrings parses it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called by griffe for every module, class, function and attribute it has read."""
        if obj.docstring is None:
            return
        text = ARGUMENT.sub(r"\1:", obj.docstring.value)
        text = TYPES.sub(lambda found: f"{found[1]}{found[2].replace('`', '')}: ", text)
        if obj.is_class and "NamedTuple" in map(str, obj.bases):
            text = text.replace("Args:\n", "Attributes:\n")  # griffe reads no signature off it
        obj.docstring.value = text
