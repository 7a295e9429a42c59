"""Frozen, validated models whose errors name the nearest known names."""

import contextlib
import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class Strict(BaseModel):
    """A frozen model that names what it does not know, with the nearest known names."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _only_known_names(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            check_names(values, cls.model_fields, "key")
        return values


def nearest(name: str, known: Collection[str]) -> str:
    """Word a hint at the known names that are most like one that is not known."""
    near = difflib.get_close_matches(str(name), known)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def check_names(given: Mapping[str, Any], known: Collection[str], kind: str) -> None:
    """Raise ValueError for the first name that is not known."""
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name}={value!r}: no such {kind}; {nearest(name, known)}")


def explain(error: ValidationError) -> str:
    """Word a validation error as one line for each field: name, value, what is right."""
    lines = []
    for item in error.errors(include_url=False):
        message = item["msg"].removeprefix("Value error, ")
        field = ".".join(str(part) for part in item["loc"][:1])
        lines.append(f"{field}={item['input']!r}: {message}" if field else message)
    return "\n".join(dict.fromkeys(lines))


def parse_json(data: bytes | str, where: str) -> Any:
    """Read JSON that a stranger may have written.

    Raises
    ------
    ValueError
        Where it is no UTF-8 or no JSON, nested beyond what Python follows, or holds half a
        surrogate pair, which no file and no hash can hold; the message begins with ``where``.
    """
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        found = json.loads(text)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: a text holds half a surrogate pair") from None
    except RecursionError:
        raise ValueError(f"{where}: nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from None
    return found


def as_list(value: Any) -> list:
    """Read a list, or its text as papermill passes it; ValueError for what is none."""
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("must be a list such as [0, 1, 2]")
    return list(value)
