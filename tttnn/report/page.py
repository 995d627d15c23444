"""A page as a list of blocks, written as Markdown or as one HTML file that holds its pictures."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tttnn.report.tables import markdown_table


@dataclass
class Heading:
    """
    Begins a part of the page.

    Args:
        text (`str`):
            Plain, like every text of a block.
        level (`int`, *optional*, defaults to `2`):
            1 for the title.
    """

    text: str
    level: int = 2


@dataclass
class Paragraph:
    """
    Some sentences.

    Args:
        text (`str`):
            Plain.
    """

    text: str


@dataclass
class Points:
    """
    A list.

    Args:
        items (`list[str]`):
            Plain.
    """

    items: list[str]


@dataclass
class Table:
    """
    Cells, under a header.

    Args:
        header (`Sequence[str]`):
            Names of the columns; all but the first are aligned right.
        rows (`list[list[str]]`):
            As many cells each.
    """

    header: Sequence[str]
    rows: list[list[str]]


@dataclass
class Picture:
    """
    A picture that lies beside the page.

    Args:
        path (`Path`):
            A PNG file.
        caption (`str`):
            Says what it shows.
    """

    path: Path
    caption: str


@dataclass
class Code:
    """
    Text as it stands.

    Args:
        text (`str`):
            Any.
        language (`str`, *optional*, defaults to `"text"`):
            Of the text.
    """

    text: str
    language: str = "text"


Block = Heading | Paragraph | Points | Table | Picture | Code


def escape_markdown(text: str) -> str:
    """
    Write a text so that Markdown shows it as it is, on one line.

    Args:
        text (`str`):
            Any; a `|` is left to the table.

    Returns:
        `str`: with a backslash before what Markdown would read.
    """
    text = " ".join(text.split())
    text = re.sub(r"([\\`*\[\]<>&~$])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside of a word it means nothing
    text = re.sub(r"^(#+|[+-])(?=\s|$)", r"\\\1", text)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)


def markdown_page(blocks: list[Block]) -> str:
    """
    Write blocks as Markdown.

    Args:
        blocks (`list[Block]`):
            In their order.

    Returns:
        `str`: the page; pictures are named as files beside it.
    """
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
        case Code():
            longest = max((len(run) for run in re.findall("`+", block.text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}{block.language}\n{block.text}\n{fence}"


# Every value is escaped by the environment (`autoescape`).
TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1.5rem; max-width: 76rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.8rem; } h2 { margin-top: 2.6rem; border-bottom: 1px solid #ccc; font-size: 1.4rem; }
h3 { margin-top: 1.8rem; font-size: 1.1rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td { white-space: nowrap; } td.long { white-space: normal; min-width: 16rem; text-align: left; }
tbody tr:hover { background: #f3f6f9; }
figure { margin: 1.2rem 0; } figure img { max-width: min(100%, 60rem); height: auto; }
figcaption { color: #444; font-size: 0.9rem; }
pre { overflow: auto; max-height: 24rem; padding: 0.8rem; background: #f5f5f5; font-size: 0.82rem; }
nav { padding: 0.2rem 1rem; background: #f5f5f5; font-size: 0.92rem; } nav ul { columns: 2; padding-left: 1.2rem; }
@media print { nav { display: none; } pre { max-height: none; white-space: pre-wrap; } }
</style>
</head>
<body>
{%- for kind, block, place in blocks %}
{%- if kind == "Heading" %}
<h{{ block.level }} id="part-{{ place }}">{{ block.text }}</h{{ block.level }}>
{%- if block.level == 1 %}
<nav aria-label="Contents"><ul>
{%- for kind, other, place in blocks if kind == "Heading" and other.level == 2 %}
<li><a href="#part-{{ place }}">{{ other.text }}</a></li>
{%- endfor %}
</ul></nav>
{%- endif %}
{%- elif kind == "Paragraph" %}
<p>{{ block.text }}</p>
{%- elif kind == "Points" %}
<ul>
{%- for item in block["items"] %}
<li>{{ item }}</li>
{%- endfor %}
</ul>
{%- elif kind == "Table" %}
<div class="wide"><table>
<thead><tr>{% for cell in block.header %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{%- for row in block.rows %}
<tr>{% for cell in row %}<td{% if cell | length > 44 %} class="long"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}
</tbody></table></div>
{%- elif kind == "Picture" %}
<figure><img src="data:image/png;base64,{{ embed(block.path) }}" alt="{{ block.caption }}">
<figcaption>{{ block.caption }}</figcaption></figure>
{%- elif kind == "Code" %}
<pre><code>{{ block.text }}</code></pre>
{%- endif %}
{%- endfor %}
</body>
</html>
"""


def import_jinja2() -> type:
    """
    Import what writes HTML, which is an extra.

    Returns:
        `type`: `jinja2.Environment`.

    Raises:
        `ImportError`: If jinja2 is missing.
    """
    try:
        from jinja2 import Environment
    except ImportError:
        raise ImportError("Reports need jinja2. Install it: `pip install tttnn[report]`.") from None
    return Environment


def html_page(blocks: list[Block]) -> str:
    """
    Write blocks as one HTML file that needs no other.

    Args:
        blocks (`list[Block]`):
            In their order; the first heading is the title.

    Returns:
        `str`: the page, with its pictures inside; every text of a block is escaped.

    Raises:
        `ImportError`: If jinja2 is missing.
    """
    environment = import_jinja2()(autoescape=True)
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    return environment.from_string(TEMPLATE).render(
        title=title,
        blocks=[(type(block).__name__, block, place) for place, block in enumerate(blocks)],
        embed=lambda path: base64.b64encode(path.read_bytes()).decode("ascii"),
    )
