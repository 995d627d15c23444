"""Colors of tokens, by hand."""

import pytest

from tttnn.token_colors import colored, shade


@pytest.mark.parametrize(
    ("gain", "color"),
    [(4.0, "rgba(0,130,60,0.60)"), (9.0, "rgba(0,130,60,0.60)"), (-2.0, "rgba(200,30,30,0.30)")],
)
def test_four_bits_have_the_full_color(gain, color):
    assert shade(gain) == color


def test_a_hostile_text_is_escaped():
    page = colored([("<script>alert(1)</script>", 1.0), ("a\n", -0.5)])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert 'title="-0.50 bits">a\n</span>' in page
