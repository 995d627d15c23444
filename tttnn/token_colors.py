"""Tokens colored by the bits that they gained or lost: on the page of a report, and on that of the demo."""

from collections.abc import Sequence
from html import escape


FULL_COLOR = 4.0  # bits that a token gains or loses at the strongest color
STRONGEST = 0.6  # opacity of it, through which the text is still read
STYLE = "white-space: pre-wrap; overflow-wrap: anywhere; font: 0.9rem/1.7 ui-monospace, monospace"


def shade(gain: float) -> str:
    """
    Give the color behind a token.

    Args:
        gain (`float`):
            Bits that it gained; below 0 if it lost some.

    Returns:
        `str`: of CSS: green for a gain, red for a loss, the stronger the more.
    """
    color = "0,130,60" if gain > 0 else "200,30,30"
    return f"rgba({color},{min(abs(gain) / FULL_COLOR, 1) * STRONGEST:.2f})"


def colored(pieces: Sequence[tuple[str, float]]) -> str:
    """
    Write a text as HTML, each piece of it with its color, and its bits where the pointer is.

    Args:
        pieces (`Sequence[tuple[str, float]]`):
            Texts, and the bits that each gained.

    Returns:
        `str`: a `div`; the texts are escaped.
    """
    spans = (
        f'<span style="background: {shade(gain)}; border-radius: 2px" title="{gain:+.2f} bits">{escape(text)}</span>'
        for text, gain in pieces
    )
    return f'<div style="{STYLE}">{"".join(spans)}</div>'
