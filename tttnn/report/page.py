"""A page as a list of blocks, written as Markdown or as one HTML file that holds its pictures."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tttnn.report.tables import markdown_table
from tttnn.token_colors import colored, shade


# The texts of all blocks are plain: each writer escapes them.
@dataclass
class Heading:
    """Begins a part of the page; level 1 is the title."""

    text: str
    level: int = 2


@dataclass
class Paragraph:
    """Some sentences."""

    text: str


@dataclass
class Points:
    """A list."""

    items: list[str]


@dataclass
class Table:
    """Cells under a header; all columns but the first are aligned right."""

    header: Sequence[str]
    rows: list[list[str]]


@dataclass
class Picture:
    """A PNG file beside the page."""

    path: Path
    caption: str


@dataclass
class Code:
    """Text in its own lines, unchanged."""

    text: str
    language: str = "text"


@dataclass
class Tokens:
    """A text, each piece of it colored by what it gained (above 0) or lost, in bits."""

    pieces: list[tuple[str, float]]
    caption: str


SHOWN_TOKENS = 10  # in Markdown, which has no colors

Block = Heading | Paragraph | Points | Table | Picture | Code | Tokens


def escape_markdown(text: str) -> str:
    """Write a text so that Markdown shows it unchanged, on one line; a `|` is left to the table."""
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]<>&~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word it means nothing
    text = re.sub(r"^(#+|[+-])(?=\s|$)", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def markdown_page(blocks: list[Block]) -> str:
    """Write blocks as Markdown; pictures are named as files beside the page."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {escape_markdown(block.text)}"
        case Paragraph():
            return escape_markdown(block.text)
        case Points():
            return "\n".join(f"- {escape_markdown(item)}" for item in block.items)
        case Table():
            rows = [[escape_markdown(cell) for cell in row] for row in block.rows]
            return markdown_table([escape_markdown(cell) for cell in block.header], rows)
        case Picture():
            return f"![{escape_markdown(block.caption)}]({block.path.name})\n\n{escape_markdown(block.caption)}"
        case Tokens():
            changed = sorted(block.pieces, key=lambda piece: -abs(piece[1]))[:SHOWN_TOKENS]
            rows = [[escape_markdown(repr(text)), f"{gain:+.2f}"] for text, gain in changed]
            table = markdown_table(["token", "bits gained"], rows)
            return f"{escape_markdown(block.caption)} The tokens that changed most:\n\n{table}"
        case Code():
            longest = max((len(run) for run in re.findall("`+", block.text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}{block.language}\n{block.text}\n{fence}"


def import_jinja2() -> type:
    """Import `jinja2.Environment`, or say how to install it."""
    try:
        from jinja2 import Environment
    except ImportError:
        raise ImportError("Reports need jinja2. Install it: `pip install tttnn[report]`.") from None
    return Environment


def html_page(blocks: list[Block]) -> str:
    """Write blocks as one HTML file with its pictures inside; the first heading is the title."""
    environment = import_jinja2()(autoescape=True)
    template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return template.render(
        title=next((block.text for block in blocks if isinstance(block, Heading)), "Report"),
        blocks=[(type(block).__name__, block, place) for place, block in enumerate(blocks)],
        shade=shade,
        colored=colored,
        embed=lambda path: base64.b64encode(path.read_bytes()).decode("ascii"),
    )
