"""What a notebook's first cell does: go to the project's root, read and check the parameters."""

import ast
import html
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zslkit.config import RunConfig
from zslkit.data.files import project_root
from zslkit.data.manifests import load_manifest
from zslkit.data.strict import as_list, check_names, nearest

SECTIONS = {
    "data": "manifest",
    "model": "image_encoder",
    "objective": "contrastive_loss",
    "optimisation": "epochs",
    "run": "seed",
}
"""Sections of a configuration, each with the field that it begins with."""

LEAST = {"live_seconds": 0, "image": 0, "n_pairs": 2, "max_images": 1}
"""The least that counts of notebooks may be; refused here, not after a training."""


def start(cells: Sequence[str]) -> tuple[RunConfig, dict[str, Any]]:
    """Begin a notebook: the first code cell below its parameters, the same in all.

    Changes to the project's root, so that relative paths mean the same in JupyterLab and under
    papermill. The parameters cell itself says which parameters there are: those that are no
    field of :class:`~zslkit.RunConfig` are the notebook's own, read by their declared type.
    Where one of these is ``run_dir``, the configuration starts from that run's.

    Parameters
    ----------
    cells : sequence of str
        IPython's ``In``.

    Returns
    -------
    config : RunConfig
    own : dict
        The notebook's own parameters.

    Raises
    ------
    ValueError
        If a name is unknown, with the nearest one; a value is no literal, or not of its type;
        a count is too small, or ``held_out_split`` no split of the manifest; or the parameters
        cell has not been run.
    FileNotFoundError
        If ``run_dir`` holds no run.
    """
    os.chdir(project_root())
    given, types = read_parameters(cells), _declared(cells)
    if not types:
        raise ValueError("no parameters yet: run the parameters cell above, then this one")
    check_names(given, [*types, *RunConfig.model_fields], "parameter")
    names = [name for name in types if name not in RunConfig.model_fields and name != "preset"]
    own = {name: _typed(name, types[name], given[name]) for name in names}
    base, other = None, names
    if own.get("run_dir") is not None:
        base, other = _config_of(own["run_dir"]), [*names, "preset"]
    for name in LEAST.keys() & own.keys():
        read_count(own, name, LEAST[name])
    config = RunConfig.from_parameters(given, base=base, other=other)
    _check_split(config, own.get("held_out_split"))
    return config, own


def _check_split(config: RunConfig, split: str | None) -> None:
    """Refuse a split to be watched that is misspelt; the usual one need not be there."""
    if split in (None, "dev"):
        return
    fields = {name: config.source[name] for name in ("image_field", "caption_field")}
    manifest = load_manifest(
        config.manifest, config.data_root, **fields, split_shares=config.split_shares
    )
    if split not in manifest.splits:
        raise ValueError(
            f"held_out_split={split!r}: {manifest.name!r} has no such split; "
            f"{nearest(split, manifest.splits)}"
        )


def _config_of(run_dir: str) -> RunConfig:
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"run_dir={run_dir!r}: no run with a configuration here; "
            "give the output_dir of a finished training run"
        )
    from zslkit.report.run_folder import config_of_run  # late: it imports torch

    return config_of_run(run_dir)


def _typed(name: str, kind: str, value: Any) -> Any:
    """Read a value of a declared type, as papermill passes it: as itself or as its text."""
    if value is None or (kind != "str" and str(value).lower() in ("none", "null")):
        return None
    if kind == "str | None" and value in ("None", "null"):
        return None
    kind = kind.removesuffix(" | None")
    if kind == "list":
        return read_list({name: value}, name)
    if kind == "str" and not isinstance(value, bool | list | dict):
        return str(value)  # a file may be called 2024
    if kind == "bool":
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise ValueError(f"{name}={value!r}: must be true or false")
    try:
        number = float("" if isinstance(value, bool) else value)
        if kind in ("int", "float") and (kind == "float" or number.is_integer()):
            return float(number) if kind == "float" else int(number)
    except (TypeError, ValueError, OverflowError):
        pass  # said below
    words = {"int": "a whole number", "float": "a number", "str": "a text"}
    raise ValueError(f"{name}={value!r}: must be {words.get(kind, kind)}")


@dataclass(frozen=True)
class Settings:
    """All settings of a configuration, as a notebook shows them: folded by section."""

    config: RunConfig

    def __repr__(self) -> str:
        changed = self.config.model_dump(exclude_defaults=True)
        return "\n".join(f"{name} = {value!r}" for name, value in changed.items())

    def _repr_html_(self) -> str:
        values, changed = self.config.model_dump(), self.config.model_dump(exclude_defaults=True)
        parts = []
        for section, names in sections().items():
            mine = ", ".join(f"{name} = {values[name]!r}" for name in names if name in changed)
            rows = "".join(
                f"<tr><td>{name}</td><td>{html.escape(repr(values[name]))}</td>"
                f'<td style="text-align: left">{html.escape(_help(name))}</td></tr>'
                for name in names
            )
            summary = f"<b>{section}</b> ({len(names)}) {html.escape(mine)}"
            parts.append(f"<details><summary>{summary}</summary><table>{rows}</table></details>")
        return "".join(parts)


def settings(config: RunConfig) -> Settings:
    """Show what a configuration changes in the toy preset, and by section all that it holds."""
    return Settings(config)


def sections() -> dict[str, list[str]]:
    """Give the fields of a configuration by section."""
    found: dict[str, list[str]] = {}
    first = {field: section for section, field in SECTIONS.items()}
    for name in RunConfig.model_fields:
        section = first.get(name, next(reversed(found), ""))
        found.setdefault(section, []).append(name)
    return found


def _help(name: str) -> str:
    return RunConfig.model_fields[name].description or ""


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
        called = called or _begins(source)
        for name, _, value in _assignments(source):
            if called and name not in parameters:
                continue
            try:
                parameters[name] = ast.literal_eval(value)
            except ValueError:
                if called:
                    continue
                raise ValueError(
                    f"{name}={ast.unparse(value)}: a parameter must be a literal "
                    "(number, text, true, false, None or a list)"
                ) from None
    return parameters


def _declared(cells: Sequence[str]) -> dict[str, str]:
    """Find the types that the parameters cell declares; injected cells only assign."""
    types: dict[str, str] = {}
    for source in cells:
        if _begins(source):
            break
        for name, kind, value in _assignments(source):
            if kind:  # a text "none" may mean something, but not where nothing is the default
                nothing = kind == "str" and ast.unparse(value) == "None"
                types[name] = f"{kind} | None" if nothing else kind
    return types


def _begins(source: str) -> bool:
    return "read_parameters(" in source or "notebook.start(" in source


def _assignments(source: str) -> Iterator[tuple[str, str, ast.expr]]:
    """Yield name, declared type and value of each assignment in a cell that holds no more."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # magics and shell lines: no parameters cell
        return
    if not all(isinstance(node, ast.Assign | ast.AnnAssign) for node in body):
        return
    for node in body:
        if isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target), ast.unparse(node.annotation), node.value
        else:
            yield ast.unparse(node.targets[0]), "", node.value
