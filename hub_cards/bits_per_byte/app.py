"""The page of the Space: bits per byte of texts and log-likelihoods from a table."""

import html
import math
from pathlib import Path

import evaluate
import gradio as gr


FOLDER = Path(__file__).parent
# 12 nats on 4 bytes, and 6 nats on 5, because "é" has two
EXAMPLE = [[-12.0, "long"], [-6.0, "café"]]


def score(rows: list[list]) -> str:
    """
    Score the rows of the table.

    Args:
        rows (`list[list]`):
            Log-likelihood and text of each; empty rows are left out.

    Returns:
        `str`: Markdown.

    Raises:
        `gr.Error`: If a number or a text is missing, or the metric refuses one.
    """
    filled = [[_cell(number), _cell(text)] for number, text in rows]
    filled = [row for row in filled if row != ["", ""]]
    try:
        numbers, texts = [float(number) for number, _ in filled], [text for _, text in filled]
        # a new one, so that nothing is left of what another user has scored
        metric = evaluate.load(str(FOLDER / "bits_per_byte.py"), keep_in_memory=True)
        result = metric.compute(predictions=numbers, references=texts)
    except (TypeError, ValueError) as error:
        raise gr.Error(html.escape(str(error)), print_exception=False) from error
    num_bytes = sum(len(text.encode("utf-8")) for text in texts)
    return (
        f"**{result['bits_per_byte']:.4f} bits per byte**, byte perplexity {result['byte_perplexity']:.4f}: "
        f"{abs(math.fsum(numbers)):,.4f} nats on {num_bytes:,} bytes."
    )


def _cell(value: object) -> str:
    """Give the content of a cell; an empty cell comes as `None`, NaN or an empty string."""
    return "" if value is None or value != value else str(value)


def card() -> str:
    """Give the card of the metric, without its front matter."""
    return (FOLDER / "README.md").read_text(encoding="utf-8").split("\n---\n", 1)[1]


with gr.Blocks(title="Bits per Byte") as demo:
    gr.Markdown(
        "# Bits per Byte\n\nHow many bits does a language model need for each byte of a text? Each row takes the "
        "log-likelihood of a text in nats, and the text."
    )
    table = gr.Dataframe(
        EXAMPLE, headers=["log-likelihood in nats", "text"], datatype=["number", "str"], type="array", interactive=True
    )
    button = gr.Button("Score", variant="primary")
    answer = gr.Markdown()
    button.click(score, inputs=table, outputs=answer)
    gr.Markdown(card())


if __name__ == "__main__":
    demo.launch()
