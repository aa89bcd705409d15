"""Text in Markdown tables."""

from html import unescape
from re import sub

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from kd_convnext.common.tables import markdown_text

MARKUP = st.text(st.sampled_from("ab1 ä€\\`*_[]!<>|~&;#:()/-.'\""), max_size=14)


@given(name=MARKUP, other=MARKUP)
@example(name="![x](https://evil.example/t.png)", other="[see](https://evil.example)")
@example(name="`a", other="b`")
@example(name="*a", other="b*")
@example(name="~~a", other="b~~")
@example(name="_a_ __b__", other="a\\|b")
@example(name="&lt;b&gt; &#60;", other="<b> <!-- x --> </b> <a@b.c>")
def test_markdown_shows_any_text_as_it_is(name, other):
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    shown = reader.render(f"| x | y |\n|---|---|\n| . {markdown_text(name)} . | . {markdown_text(other)} . |\n")
    cells = [unescape(cell) for cell in sub(r"</?(t\w+)>\n?", "\0", shown).split("\0") if cell.startswith(". ")]
    assert cells == [f". {name} .", f". {other} ."]
    shown = reader.render(f"Classes: {markdown_text(name)}, {markdown_text(other)}.")
    assert unescape(shown) == f"<p>Classes: {name}, {other}.</p>\n"


@pytest.mark.parametrize("text", ["0.58 [0.44, 0.71]", "< 0.001", "a & b", "<5 mm", "soft_target_loss", "98 ± 2 > 3!"])
def test_plain_text_stays_readable_in_the_file(text):
    assert markdown_text(text) == text
