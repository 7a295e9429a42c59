"""Kinds of contrastive losses and of soft targets: a row for each, read wherever kinds differ.

The library's own rows stand above their functions in :mod:`zslkit.losses` and
:mod:`zslkit.targets`; a notebook adds its own by ``@zk.contrastive`` and ``@zk.soft_target``.
"""

import hashlib
import inspect
import pickle
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from zslkit.data.strict import nearest

KINDS: "dict[str, Kinds]" = {}
"""The kinds that a field of ``RunConfig`` chooses from, by the field's name."""


@dataclass(frozen=True)
class Kind:
    """What configuration, objective, coach, card and widgets know of one kind."""

    name: str
    """What the setting is called that chooses it."""
    function: Callable | None
    """Computes it; None where there is nothing to compute."""
    inputs: tuple[str, ...]
    """Parameters of the function that the objective fills."""
    reads: Mapping[str, str]
    """The other parameters, each with the field of ``RunConfig`` that fills it."""
    settings: frozenset[str]
    """All fields of ``RunConfig`` that change what it computes."""
    code: str
    """Sha256 of the function's own source; results of other code are not the same."""
    formula: str
    """One line of LaTeX, without dollar signs."""
    words: str
    """What the card of a run calls it."""

    @property
    def ours(self) -> bool:
        """Whether the library defines it, not a notebook."""
        return getattr(self.function, "__module__", __name__).split(".")[0] == "zslkit"

    def __call__(self, config: Any, **inputs: Any) -> Any:
        """Call the function with those inputs that it takes and the settings that it reads."""
        settings = {name: getattr(config, field) for name, field in self.reads.items()}
        return self.function(**{name: inputs[name] for name in self.inputs}, **settings)


@dataclass(frozen=True)
class ContrastiveLoss(Kind):
    """A loss with one right answer for each query; alpha in a formula is ``logit_scale``."""

    learned_bias: bool
    """Whether a learned bias is added to the logits."""
    of_guessing: Callable[[int], float] | None
    """Its value for one who guesses among N; None: the coach has nothing to compare with."""

    def __call__(self, config: Any, **inputs: Any) -> Any:
        """Compute the loss; a ValueError if a user's function gives anything but one number."""
        loss = super().__call__(config, **inputs)
        if not self.ours and getattr(loss, "shape", None) != ():
            raise ValueError(
                f"contrastive_loss={self.name!r} must give a Tensor of shape (), got "
                f"{_described(loss)}"
            )
        return loss


@dataclass(frozen=True)
class SoftTarget(Kind):
    """Soft targets of one direction; s in a formula is the teacher's similarity."""

    softened_by: str | None
    """Parameter to raise where targets are nearly one-hot and to lower where they are uniform."""
    begins_one_hot: bool
    """Whether one-hot targets are meant, so that the coach does not mind them."""

    @property
    def needs_teacher(self) -> bool:
        """Whether they come from a teacher's similarities."""
        return "similarity" in self.inputs

    def __call__(self, config: Any, **inputs: Any) -> Any:
        """Compute the targets; a ValueError if a user's function gives no distributions."""
        targets = super().__call__(config, **inputs)
        if self.ours:
            return targets
        shape = inputs["n_queries"], inputs["n_candidates"]
        if getattr(targets, "shape", None) != shape:
            raise ValueError(
                f"soft_targets={self.name!r} must give a Tensor of shape {shape}, got "
                f"{_described(targets)}"
            )
        sums, least = targets.float().sum(dim=1), targets.min().item()
        if not (least >= 0 and ((sums - 1).abs() < 1e-3).all()):
            raise ValueError(
                f"soft_targets={self.name!r} must give rows without negative numbers that sum to "
                f"1; its sums go from {sums.min():.3g} to {sums.max():.3g}, its least number is "
                f"{least:.3g}"
            )
        return targets


class Kinds(dict[str, Kind]):
    """Rows by name, in the order of their definition; an unknown name is a ValueError.

    Parameters
    ----------
    setting : str
        Field of ``RunConfig`` that chooses one.
    what, decorator : str
        What an error calls a kind, and the decorator that defines one.
    row : type
        Of each row.
    inputs : mapping
        What functions may ask for by the name of a parameter, with the settings that shape it.
    required : sequence of str
        What every function must ask for, lest it be wrong under some settings.
    """

    def __init__(
        self,
        setting: str,
        what: str,
        decorator: str,
        row: type[Kind],
        inputs: Mapping[str, tuple[str, ...]],
        required: Collection[str] = (),
    ):
        super().__init__()
        self.what, self.decorator, self.row = what, decorator, row
        self.inputs, self.required = inputs, required
        self.fields: Collection[str] | None = None
        KINDS[setting] = self

    def __missing__(self, name: str) -> Kind:
        raise ValueError(
            f"no {self.what} is called {name!r} (one of your own is defined before its use, in "
            f"every process, by @zk.{self.decorator}({str(name)!r})); {nearest(name, self)}"
        )

    def define(
        self, name: str, formula: str, reads: Mapping[str, str] | None, **facts: Any
    ) -> Callable[[Callable], Callable]:
        """Give a decorator that makes a function a kind and returns it unchanged.

        Raises
        ------
        ValueError
            If the name is one of the library's own, an input is missing, or a parameter has
            nothing to fill it; one of the library's own kinds must fill the whole row.
        """
        if name in self and self[name].ours:
            raise ValueError(f"{name!r} is a {self.what} of zslkit itself; name yours otherwise")

        def decorate(function: Callable) -> Callable:
            parameters = inspect.signature(function).parameters if function else ()
            inputs = tuple(p for p in parameters if p in self.inputs)
            filled = {p: (reads or {}).get(p, p) for p in parameters if p not in inputs}
            settings = frozenset({*filled.values()}.union(*(self.inputs[p] for p in inputs)))
            code = code_of(function)
            row = self.row(name, function, inputs, filled, settings, code, formula, **facts)
            self._check(row)
            self[name] = row
            return function

        return decorate

    def check(self, fields: Collection[str]) -> None:
        """Say which settings there are; a kind that reads others, now or later, is an error."""
        self.fields = fields
        for row in self.values():
            self._check(row)

    def _check(self, row: Kind) -> None:
        if row.function and (missing := [p for p in self.required if p not in row.inputs]):
            raise ValueError(
                f"{self.what} {row.name!r} must take {', '.join(self.required)}; "
                f"{' and '.join(missing)} missing"
            )
        wired = ("formula", "softened_by") if row.ours and row.function else ()
        if gaps := [field for field in wired if not getattr(row, field, True)]:
            raise ValueError(f"{self.what} {row.name!r} of zslkit: {' and '.join(gaps)} missing")
        for parameter, field in row.reads.items():
            if self.fields is not None and field not in self.fields:
                raise ValueError(
                    f"{self.what} {row.name!r} takes {parameter!r}, neither an input "
                    f"({', '.join(self.inputs)}) nor a setting; {nearest(field, self.fields)}"
                )
        if (knob := getattr(row, "softened_by", None)) and knob not in row.reads:
            raise ValueError(
                f"{self.what} {row.name!r}: softened_by={knob!r} is none of the parameters that "
                f"settings fill: {', '.join(row.reads)}"
            )


CONTRASTIVE_LOSSES = Kinds(
    *("contrastive_loss", "contrastive loss", "contrastive", ContrastiveLoss),
    inputs=dict.fromkeys(("logits_per_image", "logits_per_text", "offset", "weights"), ()),
    required=("logits_per_image", "offset", "weights"),
)
SOFT_TARGETS = Kinds(
    *("soft_targets", "kind of soft targets", "soft_target", SoftTarget),
    inputs={
        "similarity": ("image_similarity_weight", "text_similarity_weight", "remove_diagonal"),
        "trusted_share": ("trusted_start", "trusted_end"),
        **dict.fromkeys(("n_queries", "n_candidates", "offset", "progress"), ()),
    },
)


def contrastive(
    name: str,
    formula: str = "",
    *,
    reads: Mapping[str, str] | None = None,
    words: str | None = None,
    learned_bias: bool = False,
    of_guessing: Callable[[int], float] | None = None,
) -> Callable[[Callable], Callable]:
    """Make a function a contrastive loss: ``RunConfig(contrastive_loss=name)`` trains with it.

    The function takes, by these names, ``logits_per_image`` (B, N), if it likes
    ``logits_per_text`` (B, N), ``offset`` and ``weights`` as :func:`zslkit.contrastive_loss` does,
    and any fields of ``RunConfig``. It gives a Tensor of shape (), in nats.

    Parameters
    ----------
    name : str
        Not one of the library's own; a second definition replaces the first.
    formula : str
        One line of LaTeX, without dollar signs.
    reads : mapping, optional
        Parameter of the function to the field of ``RunConfig`` that fills it, where the two
        names differ.
    words : str, optional
        What a card calls it; by default its name.
    learned_bias : bool
        Add a learned bias to the logits.
    of_guessing : callable, optional
        Value for one who guesses among N, by which the coach sees that nothing is learnt.
    """
    facts = {"words": words or name, "learned_bias": learned_bias, "of_guessing": of_guessing}
    return CONTRASTIVE_LOSSES.define(name, formula, reads, **facts)


def soft_target(
    name: str,
    formula: str = "",
    *,
    reads: Mapping[str, str] | None = None,
    words: str | None = None,
    softened_by: str | None = None,
    begins_one_hot: bool = False,
) -> Callable[[Callable], Callable]:
    """Make a function a kind of soft targets: ``RunConfig(soft_targets=name)`` trains with it.

    The function gives a Tensor (N, N) whose rows sum to 1, and takes what it needs by these names:
    ``similarity`` (N, N), the teacher's of all pairs, a kind without it has no teacher;
    ``n_queries`` and ``n_candidates``, N both; ``progress``, the share of the training done;
    ``trusted_share``, that of progressive targets by now; and any fields of ``RunConfig``.

    Parameters
    ----------
    name, formula, reads, words
        As of :func:`contrastive`.
    softened_by : str, optional
        Parameter that the coach says to raise where targets are nearly one-hot, and to lower
        where they are nearly uniform.
    begins_one_hot : bool
        One-hot targets are meant.
    """
    words = f"{name.replace('_', ' ')} targets" if words is None else words
    facts = {"words": words, "softened_by": softened_by, "begins_one_hot": begins_one_hot}
    return SOFT_TARGETS.define(name, formula, reads, **facts)


def own_kinds() -> list[tuple[str, Kind]]:
    """Give setting and row of each kind that the library does not define itself."""
    return [(s, row) for s, kinds in KINDS.items() for row in kinds.values() if not row.ours]


def code_of_kinds(settings: Mapping[str, Any]) -> dict[str, str]:
    """Give ``{"own kinds": "SETTING NAME SHA256, ..."}`` for a record; empty without such kinds."""
    named = [(s, row) for s, row in own_kinds() if settings.get(s) == row.name]
    words = ", ".join(f"{setting} {row.name} {row.code[:12]}" for setting, row in named)
    return {"own kinds": words} if words else {}


def pack_kinds() -> bytes | None:
    """Pack the kinds that the library does not define, for another process; None without any.

    Raises
    ------
    ModuleNotFoundError
        If they cannot be packed, because cloudpickle is not installed.
    """
    if not (rows := own_kinds()):
        return None
    try:
        import cloudpickle
    except ModuleNotFoundError:
        names = ", ".join(repr(row.name) for _, row in rows)
        raise ModuleNotFoundError(
            f"other processes learn of kinds of your own ({names}) through the package "
            "cloudpickle, which is not installed: install it, or take jobs=1"
        ) from None
    return cloudpickle.dumps(rows)


def unpack_kinds(packed: bytes | None) -> None:
    """Define in this process what :func:`pack_kinds` packed in another."""
    for setting, row in pickle.loads(packed) if packed else ():
        KINDS[setting][row.name] = row


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__


def code_of(function: Callable) -> str:
    """Give the sha256 of a function's source, or of its byte code where there is none."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):  # typed into a plain interpreter, or no function
        code = getattr(function, "__code__", None)
        constants = [c for c in code.co_consts if not inspect.iscode(c)] if code else ()
        text = repr((code and code.co_code, code and code.co_names, constants))
    return hashlib.sha256(text.encode()).hexdigest()
