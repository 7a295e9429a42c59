"""What a class is called in a sentence: named sets of templates, filled with names and texts."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from zslkit.data.strict import nearest

Descriptions = Mapping[str, str | Sequence[str]]


def _read_templates() -> dict[str, tuple[str, ...]]:
    sets = json.loads(Path(__file__).with_name("templates.json").read_text("utf-8"))
    return {name: tuple(facts["templates"]) for name, facts in sets.items()}


TEMPLATES = _read_templates()
"""Named sets of templates; ``templates.json`` gives the source and licence of each."""


def find_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Give the texts of a named set, or check a list of texts.

    Raises
    ------
    ValueError
        For an unknown name (the nearest are given), no texts, or texts with neither ``{}`` for
        the class name nor ``{description}``.
    """
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            hint = nearest(templates, TEMPLATES)
            raise ValueError(f"templates={templates!r}: no such set of templates; {hint}")
        return TEMPLATES[templates]
    if not templates:
        raise ValueError("templates must not be empty")
    if wrong := [text for text in templates if not _PLACES.search(text)]:
        raise ValueError(f"templates without {{}} or {{description}}: {wrong}")
    return tuple(templates)


def class_prompts(
    class_names: Sequence[str],
    templates: str | Sequence[str],
    descriptions: Descriptions | None = None,
) -> Iterator[tuple[int, str]]:
    """Write the prompts of classes one after the other, each with its class number.

    Parameters
    ----------
    class_names : sequence of C str
        They replace ``{}``; braces within them are text.
    templates : str or sequence of str
        See :func:`find_templates`. One with ``{description}`` makes a prompt for each text of a
        class, and none for a class without any.
    descriptions : mapping from class name to one text or several, optional
        Definitions, or what :func:`zslkit.zeroshot.describe_classes` wrote. Names of other
        classes are passed over.

    Returns
    -------
    iterator of (int, str)
        Class numbers in rising order; every class has a prompt. Nothing is held in memory.

    Raises
    ------
    ValueError
        If templates ask for descriptions and no class has one, or the other way round, or if a
        class is left without prompts. All before the first prompt.

    References
    ----------
    Menon and Vondrick (2022), "Visual Classification via Description from Large Language
    Models", arXiv:2210.07183, section 2, who average similarities where we average embeddings;
    Pratt et al. (2022), "What does a platypus look like?", arXiv:2209.03320, section 3.
    """
    lines = find_templates(templates)
    wanted = any("{description}" in line for line in lines)
    texts = {name: _texts(name, descriptions or {}) for name in class_names}
    bare = [name for name, found in texts.items() if not found]
    if wanted and len(bare) == len(texts):
        raise ValueError(
            f"templates ask for a {{description}}, and descriptions give none for any of the "
            f"{len(texts)} classes"
        )
    if descriptions is not None and not wanted:
        raise ValueError("descriptions are given, but no template has a place for {description}")
    if bare and all("{description}" in line for line in lines):
        raise ValueError(
            f"{len(bare)} classes without descriptions have no prompt: {', '.join(bare[:10])}. "
            "Add a template with {} alone"
        )
    return (
        (number, _PLACES.sub(lambda place: text if place[1] else name, line))  # noqa: B023
        for number, name in enumerate(class_names)
        for line in lines
        for text in (texts[name] if "{description}" in line else ("",))
    )


_PLACES = re.compile(r"\{(description)?\}")  # one pass: braces in what is filled in are text


def _texts(name: str, descriptions: Descriptions) -> tuple[str, ...]:
    found = descriptions.get(name, ())
    return (found,) if isinstance(found, str) else tuple(found)
