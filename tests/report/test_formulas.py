"""Formulas of notebooks in pages that load nothing."""

import re

import pytest

from zslkit.report.formulas import mathml, with_mathml


def test_formulas_in_text_are_drawn_and_code_is_left():
    found = with_mathml("With $a_{ij}$ and $$\n\\frac{1}{B}\n$$ but `$HOME` costs 5 $ or $6.")
    assert found.count("<math ") == 2
    assert "<msub><mi>a</mi><mrow><mi>i</mi><mi>j</mi></mrow></msub>" in found
    assert found.count('display="block"') == 1
    assert found.endswith("but `$HOME` costs 5 $ or $6.")
    assert "\n" not in found  # a line break would end a table's row


def test_what_is_not_known_stays_as_written():
    assert with_mathml(r"so $a < \nosuch$") == r'so <span class="math">a &lt; \nosuch</span>'
    with pytest.raises(ValueError, match=re.escape(r"\nosuch is not known to latex2mathml")):
        mathml(r"\nosuch")


def test_the_best_argument_is_one_operator():
    assert "arg" in mathml(r"\arg\max_x")
