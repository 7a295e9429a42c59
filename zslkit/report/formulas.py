"""LaTeX as MathML, which browsers draw without a script or a network."""

import html
import re

# code in backticks stays as it is
_IN_TEXT = re.compile(
    r"`[^`\n]*`|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\s][^$\n]*?)\$(?!\w)", re.DOTALL
)
_UNKNOWN = re.compile(r"\\[A-Za-z]+")


def mathml(formula: str, display: str = "inline") -> str:
    r"""Write a formula of LaTeX as MathML on one line.

    Parameters
    ----------
    display : str
        ``inline`` or ``block``.

    Raises
    ------
    ValueError
        For a command that latex2mathml does not know: it would stand in the page as it was typed.
    """
    from latex2mathml.converter import convert

    one_line = " ".join(formula.split())
    found = convert(one_line.replace(r"\arg\max", r"\argmax"), display=display)
    if unknown := _UNKNOWN.search(found):
        raise ValueError(f"{formula}: {unknown[0]} is not known to latex2mathml")
    return found


def with_mathml(markdown: str) -> str:
    """Put MathML in the place of ``$...$`` and ``$$...$$``; what is not known stays as written."""

    def draw(found: re.Match) -> str:
        formula = found["block"] or found["inline"]
        if formula is None:
            return found[0]
        try:
            return mathml(formula.strip(), "block" if found["block"] else "inline")
        except ValueError:
            return f'<span class="math">{html.escape(formula.strip())}</span>'

    return _IN_TEXT.sub(draw, markdown)
