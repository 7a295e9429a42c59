"""What a notebook's first cell reads: its parameters, checked."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from zslkit.data.strict import as_list


def read_list(parameters: Mapping[str, Any], name: str) -> list:
    """Read a parameter that is a list, or its text as papermill passes it.

    Raises
    ------
    ValueError
        If it is neither.
    """
    try:
        return as_list(parameters[name])
    except ValueError as error:
        raise ValueError(f"{name}={parameters[name]!r}: {error}") from None


def read_count(
    parameters: Mapping[str, Any], name: str, least: int = 1, below: int | None = None
) -> int:
    """Read a parameter that is a whole number.

    Raises
    ------
    ValueError
        If it is not, below ``least``, or not below ``below``.
    """
    value = parameters[name]
    if type(value) is not int or value < least or (below is not None and value >= below):
        limit = f"of at least {least}" if below is None else f"from {least} to {below - 1}"
        raise ValueError(f"{name}={value!r}: must be a whole number {limit}")
    return value


def read_parameters(cells: Sequence[str]) -> dict[str, Any]:
    """Read the parameters a notebook was given from the source of its executed cells.

    The parameters cell and the cell that papermill injects below it consist of literal
    assignments. Every such name counts if it stands before the first call of this function,
    so that a misspelt ``-p`` is seen; later cells may only set the same names anew.

    Parameters
    ----------
    cells : sequence of str
        IPython's ``In``.

    Returns
    -------
    dict
        The last literal assigned to each name.

    Raises
    ------
    ValueError
        If a parameter is not a literal.
    """
    parameters: dict[str, Any] = {}
    called = False
    for source in cells:
        called = called or "read_parameters(" in source
        try:
            body = ast.parse(source).body
        except SyntaxError:  # magics and shell lines: no parameters cell
            continue
        if not all(isinstance(node, ast.Assign | ast.AnnAssign) for node in body):
            continue
        for node in body:
            name = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
            if called and name not in parameters:
                continue
            try:
                parameters[name] = ast.literal_eval(node.value)
            except ValueError:
                if called:
                    continue
                raise ValueError(
                    f"{name}={ast.unparse(node.value)}: a parameter must be a literal "
                    "(number, text, true, false, None or a list)"
                ) from None
    return parameters
