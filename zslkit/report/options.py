"""The fields of ``RunConfig`` as typed options of a command."""

import functools
import inspect
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import typer
from typer.core import TyperCommand

from zslkit.config import PRESETS, RunConfig
from zslkit.data.strict import check_names, nearest

_SWITCH = "[true|false]"
_TRUTHS = ("true", "false", "1", "0", "yes", "no", "on", "off", "t", "f", "y", "n")
# the first field of each part of a configuration
_SECTIONS = {
    "manifest": "Data",
    "image_encoder": "Model",
    "contrastive_loss": "Objective",
    "epochs": "Optimisation",
    "seed": "Run",
}


class Command(TyperCommand):
    """A command that also takes ``--batch_size``, and ``--resume`` or ``--no-resume`` alone.

    Shells expect dashes, papermill users type underscores: help shows the first, both work.
    """

    def parse_args(self, ctx, args):
        """Bring options to the spelling that is declared."""
        switches = {name for option in self.params for name in option.opts
                    if option.metavar == _SWITCH}  # fmt: skip
        return super().parse_args(ctx, [*_respelled(args, switches)])


def _respelled(args: Iterable[str], switches: Collection[str]) -> Iterator[str]:
    args = [*args]
    for word, following in itertools.zip_longest(args, args[1:], fillvalue=""):
        head, sign, value = word.partition("=")
        if not head.startswith("--"):
            yield word
            continue
        head = head.replace("_", "-")
        if not sign and head in switches and following.lower() not in _TRUTHS:
            yield f"{head}=true"
        elif not sign and head.startswith("--no-") and f"--{head[5:]}" in switches:
            yield f"--{head[5:]}=false"
        else:
            yield head + sign + value


def takes_config(command: Callable) -> Callable:
    """Give a command one option per field of ``RunConfig`` and hand it the configuration."""

    @functools.wraps(command)
    def with_options(**values):
        path = values.pop("config")
        if path is not None and values["preset"] is not None:
            raise ValueError(f"--config {path} holds every setting: leave --preset out")
        values = values if path is None else {k: v for k, v in values.items() if k != "preset"}
        base = None if path is None else read_config(path)
        command(RunConfig.from_parameters(values, base=base))

    with_options.__signature__ = inspect.Signature([*_own_options(), *_field_options()])
    return with_options


def read_config(path: str | Path) -> RunConfig:
    """Read settings from JSON or YAML: what a run writes as ``config.json``, or some of it.

    Settings that the file leaves out have their defaults; ``preset`` may name others. Of a
    ``results.json`` or ``run.json`` its ``config`` is read.

    Raises
    ------
    ValueError
        If the file holds no settings, or one that there is not.
    """
    import yaml  # of JSON it is a superset; transformers brings it

    try:
        found = yaml.safe_load(Path(path).read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: neither JSON nor YAML ({error})") from None
    found = found.get("config", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ValueError(f"--config {path}: holds no settings, such as batch_size: 64")
    check_names(found, [*RunConfig.model_fields, "preset"], f"setting in {path}")
    # None is a value here, not "as the preset has it"
    values = {name: "none" if value is None else value for name, value in found.items()}
    return RunConfig.from_parameters(values)


def _own_options() -> list[inspect.Parameter]:
    preset = typer.Option(
        metavar=f"[{'|'.join(PRESETS)}]",
        show_default="toy",
        help="Starting values; the defaults below are those of toy.",
        autocompletion=_completes(PRESETS),
    )
    words = "JSON or YAML to start from, as runs write it: RUN/config.json."
    config = typer.Option(help=words, metavar="FILE", exists=True, dir_okay=False)
    optional = {"kind": inspect.Parameter.KEYWORD_ONLY, "default": None}
    # typer reads this form on every Python we support
    text, file = Optional[str], Optional[Path]  # noqa: UP045
    return [
        inspect.Parameter("preset", annotation=Annotated[text, preset], **optional),
        inspect.Parameter("config", annotation=Annotated[file, config], **optional),
    ]


def _field_options() -> Iterator[inspect.Parameter]:
    section = "Options"
    for name, field in RunConfig.model_fields.items():
        section = _SECTIONS.get(name, section)
        default = field.get_default(call_default_factory=True)
        metavar, parser, choices = _type_of(field.annotation)
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=field.description,
            metavar=metavar,
            parser=parser,
            show_default=_as_typed(default),
            rich_help_panel=section,
            autocompletion=_completes(choices) if choices else None,
        )
        annotation = Annotated[Optional[str if parser is None else Any], option]  # noqa: UP045
        yield inspect.Parameter(
            name, annotation=annotation, kind=inspect.Parameter.KEYWORD_ONLY, default=None
        )


def _type_of(annotation: Any) -> tuple[str, Callable | None, list[str]]:
    """Give what help shows of a field's type, how it is read, and its choices."""
    kinds = [annotation] if get_origin(annotation) is Literal else [*get_args(annotation)]
    kinds = [kind for kind in kinds or [annotation] if kind is not NoneType]
    empty = "|none" * (NoneType in get_args(annotation))
    if get_origin(kinds[0]) is Literal:
        choices = [*get_args(kinds[0]), *(["none"] if empty else [])]
        return f"[{'|'.join(choices)}]", functools.partial(_read_choice, choices=choices), choices
    if kinds[0] is bool:
        return _SWITCH, functools.partial(_read_choice, choices=_TRUTHS), ["true", "false"]
    for kind, words in ((int, "INTEGER"), (float, "FLOAT")):
        if kind in kinds:
            read = functools.partial(_read_number, kind=kind, words=words, optional=bool(empty))
            return words + empty, read, []
    return "TEXT" + empty, None, []


def _as_typed(default: Any) -> str:
    if default is None:
        return "none"
    return default if isinstance(default, str) else json.dumps(default)


def _completes(choices: Iterable[str]) -> Callable:
    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def _read_choice(text: Any, choices: Collection[str]) -> str:
    if str(text).lower() in choices:
        return str(text).lower()
    raise typer.BadParameter(f"{text!r} is not one of them; {nearest(text, choices)}")


def _read_number(text: Any, kind: type, words: str, optional: bool) -> Any:
    if optional and str(text).lower() in ("none", "null"):
        return "none"
    try:
        return kind(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no {words}" + " and not none" * optional) from None
