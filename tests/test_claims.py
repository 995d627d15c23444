"""Nothing is left to be filled in, in what a reader sees."""

from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_has_no_gap_to_be_filled_in(path):
    text = path.read_text(encoding="utf-8")
    assert [mark for mark in ("PLACEHOLDER", "TODO", "TBD", "FIXME") if mark in text] == []


def test_every_picture_of_the_readme_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert pictures
    assert [name for name in pictures if not (ROOT / name).is_file()] == []
