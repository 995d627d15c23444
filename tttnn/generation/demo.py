"""A page: a text, its neighbors, what each token gained, and what the model says before and after."""

from typing import TYPE_CHECKING, Any, NamedTuple

from tttnn.adaptation import TestTimeTrainer, split_document
from tttnn.errors import InputError, StateError
from tttnn.generation.generator import TestTimeGenerator
from tttnn.token_colors import colored, shade


if TYPE_CHECKING:
    import pandas as pd

    from tttnn.neighbors import Neighbor
    from tttnn.records import DocumentRecord


SHOWN = 300  # characters of a neighbor
WIDTHS: list[str | int] = ["70px", "90px", "100px", "200px", "460px"]
INTRODUCTION = """# Test-time training on nearest neighbors

The model has read the first half of the text. It takes a step on each of the nearest neighbors of that half, predicts
the rest, and returns to its original weights."""


class Exploration(NamedTuple):
    """
    What happened to a text, for a page.

    Args:
        summary (`str`):
            Bits per byte before and after, in a sentence of Markdown.
        known (`str`):
            The half that the model has read.
        tokens (`list[tuple[str, float]]`):
            Each token of the rest, with the bits that it gained; below 0 if it lost some.
        neighbors (`list[list[str]]`):
            Rank, distance, whether it is a near-copy, id and beginning of each.
        curve (`pandas.DataFrame`):
            Bits per byte after each number of neighbors.
        before (`str`):
            What the model as it is writes after the known half.
        after (`str`):
            What the adapted model writes.
    """

    summary: str
    known: str
    tokens: list[tuple[str, float]]
    neighbors: list[list[str]]
    curve: "pd.DataFrame"
    before: str
    after: str


def explore(trainer: TestTimeTrainer, text: str, max_new_tokens: int = 60) -> Exploration:
    """
    Score a text before and after adapting, and generate after its first half.

    Args:
        trainer (`TestTimeTrainer`):
            Its arguments have `save_tokens=True`, and `score_every_neighbor=True` for a curve.
        text (`str`):
            At least two tokens.
        max_new_tokens (`int`, *optional*, defaults to `60`):
            Tokens to generate; 0 for none.

    Returns:
        `Exploration`: for the page.

    Raises:
        `ValueError`: If the text is too short, or too long to generate after its first half.
        `RuntimeError`: If the trainer is at another text.
    """
    import pandas as pd

    known, rest = split_document(trainer.processing_class, text, trainer.args.query, trainer.args.cut)
    if not known.strip() or not rest:
        raise InputError("The text is too short to be divided into a known half and the rest. Pass a few sentences.")
    with trainer.episodes() as episodes:
        record = episodes.run(text)
    before, after = "", ""
    if max_new_tokens and trainer.method.generates:
        generate = TestTimeGenerator(trainer)
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "do_sample": False}
        before = generate(known, adapts=False, **options).text
        after = generate(known, **options).text
    points = [record.bits_per_byte(place) for place in range(len(record.nll))]
    return Exploration(
        _summary(record),
        known,
        record.token_gains(),
        _neighbors(trainer, known, record),
        pd.DataFrame({"neighbors": range(len(points)), "bits per byte": points}),
        before,
        after,
    )


def _summary(record: "DocumentRecord") -> str:
    """Say what was gained."""
    before, after = record.bits_per_byte(0), record.bits_per_byte()
    change = f"**{before:.3f} → {after:.3f}** bits per byte ({after / before - 1:+.1%})" if before else "no byte"
    seconds = ", ".join(f"{name} {record.seconds[name]:.1f}" for name in ("retrieve", "train", "score"))
    reason = f" It could not be trained on: {record.error}." if record.error else ""
    missing = f" Without the shards {record.missing_shards}, which did not answer." if record.missing_shards else ""
    return f"{change}. Seconds: {seconds}.{reason}{missing}"


def _neighbors(trainer: TestTimeTrainer, known: str, record: "DocumentRecord") -> list[list[str]]:
    """List the neighbors that were used; the retriever has them in its cache."""
    if not record.neighbor_ids or trainer.retriever is None:
        return []
    found: dict[int, Neighbor] = {
        neighbor.id: neighbor for neighbor in trainer.retriever.retrieve([known], trainer.args.num_candidates)[0]
    }
    rows = []
    for rank, (row, distance) in enumerate(zip(record.neighbor_ids, record.distances, strict=True), 1):
        neighbor = found.get(row)
        text = "" if neighbor is None else " ".join(neighbor.text.split())[:SHOWN]
        name = str(row) if neighbor is None else str(neighbor.metadata.get("id", row))
        rows.append([str(rank), f"{distance:.3f}", "near-copy" if row in record.near_copies else "", name, text])
    return rows


def make_demo(trainer: TestTimeTrainer, examples: list[str] | None = None, max_new_tokens: int = 60) -> Any:  # noqa: ANN401
    """
    Make the page; `make_demo(trainer).launch()` serves it.

    Args:
        trainer (`TestTimeTrainer`):
            As for `explore`.
        examples (`list[str]`, *optional*):
            Texts to choose from.
        max_new_tokens (`int`, *optional*, defaults to `60`):
            Tokens to generate before and after.

    Returns:
        `gradio.Blocks`: one text at a time; others wait.

    Raises:
        `ImportError`: If Gradio is not installed.
    """
    try:
        import gradio
    except ImportError as error:
        raise ImportError("Gradio is missing, which makes the demo: pip install 'tttnn[demo]'") from error

    def run(text: str) -> tuple[Any, ...]:
        try:
            found = explore(trainer, text, max_new_tokens)
        except (InputError, StateError, ConnectionError, TimeoutError) as error:
            raise gradio.Error(str(error)) from error
        return (found.summary, found.known, colored(found.tokens), *found[3:])

    with gradio.Blocks(title="Test-time training on nearest neighbors") as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            with gradio.Column(min_width=280):
                text = gradio.Textbox(label="Text", lines=10, max_lines=20, placeholder="Paste a text of some length")
                button = gradio.Button("Adapt", variant="primary")
                if examples:
                    gradio.Examples([[example] for example in examples], text, label="Or pick one")
            with gradio.Column(min_width=280):
                summary = gradio.Markdown()
                curve = gradio.LinePlot(x="neighbors", y="bits per byte", title="After each neighbor", height=240)
        known = gradio.Textbox(label="The known half, which the model has read", lines=4, max_lines=8)
        gradio.Markdown(
            f"The rest, token by token: <span style='background: {shade(4)}'>green</span> gained bits by adapting, "
            f"<span style='background: {shade(-4)}'>red</span> lost some."
        )
        tokens = gradio.HTML(padding=True)
        with gradio.Row():
            before = gradio.Textbox(label="The model as it is goes on", lines=6, min_width=280)
            after = gradio.Textbox(label="The adapted model goes on", lines=6, min_width=280)
        headers = ["rank", "distance", "copy", "id", "beginning"]
        neighbors = gradio.Dataframe(
            headers=headers, label="Neighbors", wrap=True, interactive=False, column_widths=WIDTHS
        )
        outputs: list[Any] = [summary, known, tokens, neighbors, curve, before, after]
        # one model: the others wait
        button.click(run, text, outputs, concurrency_limit=1, concurrency_id="model")
    return page
