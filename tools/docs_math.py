"""Formulas of the docs site as MathML, which browsers draw without a script or a network.

MkDocs calls :func:`on_page_markdown` (``hooks`` in ``mkdocs.yml``). The part of LaTeX that is known
is the part that our pages use; anything else stops the build.
"""

import re
from html import escape
from itertools import chain

SYMBOLS = {
    **{"alpha": "α", "beta": "β", "tau": "τ", "sigma": "σ", "epsilon": "ϵ", "varepsilon": "ε"},
    **{"sum": "∑", "cdot": "⋅", "ne": "≠", "leftarrow": "←", "top": "⊤", ",": " ", ";": " "},
}
FUNCTIONS = {"log", "arg", "max", "min", "exp"}
TOKEN = re.compile(r"\\[A-Za-z]+|\\.|[0-9.]+|[A-Za-z]|\S")
FENCE = re.compile(r"^```latex\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def mathml(formula):
    """Write a formula of LaTeX as a block of MathML.

    Raises
    ------
    ValueError
        For a command that is not known, or braces that do not match.
    """
    texts = iter(re.findall(r"\\text\{([^{}]*)\}", formula))
    tokens = TOKEN.findall(re.sub(r"\\text\{[^{}]*\}", r"\\text", formula))
    parts, rest = _row(tokens, texts, formula)
    if rest:
        raise ValueError(f"{formula}: a brace closes that none opened")
    return f'<math display="block"><mrow>{"".join(parts)}</mrow></math>'


def _row(tokens, texts, formula):
    """Read up to the brace that closes; give the parts and what is left."""
    parts = []
    while tokens and tokens[0] != "}":
        gap = '<mspace width="0.17em"/>' if tokens[0][1:] in FUNCTIONS else ""
        base, tokens = _one(tokens, texts, formula)
        scripts = {}
        while tokens and tokens[0] in "_^":
            mark = tokens[0]
            scripts[mark], tokens = _one(tokens[1:], texts, formula)
        kind = {"_": "sub", "^": "sup"}
        if scripts:
            name = "".join(kind[mark] for mark in "_^" if mark in scripts)
            inner = "".join(chain([base], (scripts[mark] for mark in "_^" if mark in scripts)))
            base = f"<m{name}>{inner}</m{name}>"
        parts.append(base + gap)
    return parts, tokens


def _one(tokens, texts, formula):
    """Read one symbol or group in braces; give its MathML and what is left."""
    if not tokens:
        raise ValueError(f"{formula}: it ends too early")
    token, *rest = tokens
    if token == "{":
        parts, rest = _row(rest, texts, formula)
        if not rest:
            raise ValueError(f"{formula}: a brace is not closed")
        return f"<mrow>{''.join(parts)}</mrow>", rest[1:]
    if token.startswith("\\"):
        return _command(token[1:], texts, formula), rest
    if token[0].isdigit():
        return f"<mn>{token}</mn>", rest
    if token.isalpha():
        return f"<mi>{token}</mi>", rest
    return f"<mo>{escape(token.replace('-', '−'))}</mo>", rest


def _command(name, texts, formula):
    if name == "text":
        return f"<mtext>{escape(next(texts)).replace(' ', '&nbsp;')}</mtext>"
    if name in FUNCTIONS:
        return f"<mi>{name}</mi>"
    if name not in SYMBOLS:
        raise ValueError(f"{formula}: \\{name} is not among the commands that are known here")
    if name in (",", ";"):
        return '<mspace width="0.2em"/>'
    tag = "mi" if SYMBOLS[name].isalpha() else "mo"
    return f"<{tag}>{SYMBOLS[name]}</{tag}>"


def on_page_markdown(markdown, **kwargs):
    """Put MathML in the place of the blocks of LaTeX of a page."""
    return FENCE.sub(lambda m: f'<div class="math">\n{mathml(m[1])}\n</div>', markdown)
