"""The report of runs: a page in Markdown and HTML with pictures, tables for programs, a section for a model card."""

from typing import TYPE_CHECKING

from tttnn.doors import door


if TYPE_CHECKING:
    from tttnn.intervals import Bootstrap, PairedScores
    from tttnn.report.pictures.scores import plot_curve
    from tttnn.report.pictures.style import import_figure
    from tttnn.report.tables import document_table, markdown_table, pooled_line, task_table
    from tttnn.report.write import write_report

__all__ = [
    "Bootstrap",
    "PairedScores",
    "document_table",
    "import_figure",
    "markdown_table",
    "plot_curve",
    "pooled_line",
    "task_table",
    "write_report",
]

__getattr__, __dir__ = door(
    __name__,
    {
        "Bootstrap": ".intervals",
        "PairedScores": ".intervals",
        "document_table": "tables",
        "import_figure": "pictures.style",
        "markdown_table": "tables",
        "plot_curve": "pictures.scores",
        "pooled_line": "tables",
        "task_table": "tables",
        "write_report": "write",
    },
)
