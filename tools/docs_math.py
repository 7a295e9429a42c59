"""Formulas of the docs site as MathML, which browsers draw without a script or a network.

MkDocs calls :func:`on_page_markdown` (``hooks`` in ``mkdocs.yml``). A command that is not known
stops the build.
"""

import re

from zslkit.report.formulas import mathml

FENCE = re.compile(r"^```latex\n(.*?)\n```$", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown, **kwargs):
    """Put MathML in the place of the blocks of LaTeX of a page."""
    return FENCE.sub(lambda m: f'<div class="math">\n{mathml(m[1], "block")}\n</div>', markdown)
