"""What a run is made of: one frozen, validated, flat model of all its settings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from zslkit.config.choices import kind_of, parse_tower_mode
from zslkit.config.sections import (
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimisationSettings,
    RunSettings,
)
from zslkit.data.strict import check_names, explain, nearest
from zslkit.data.towers import check_image_encoder

__all__ = [
    "PRESETS",
    "DataSettings",
    "ModelSettings",
    "ObjectiveSettings",
    "OptimisationSettings",
    "RunConfig",
    "RunSettings",
    "kind_of",
    "parse_tower_mode",
]


# pydantic takes the fields of the last base first: data, model, objective, optimisation, run
class RunConfig(RunSettings, OptimisationSettings, ObjectiveSettings, ModelSettings, DataSettings):
    """Settings of one run; every field is a papermill parameter and a command-line option.

    The defaults are the ``toy`` preset: built-in data, small towers from scratch, CPU minutes.
    Flat for whoever sets them; a function that reads one section asks for that section, and a
    configuration is one.
    """

    @model_validator(mode="after")
    def _projection_fits_start(self) -> "RunConfig":
        if self.start != "random" and self.projection != "linear":
            field = "init" if self.fit == "gradient" else "fit"
            raise ValueError(
                f"{field}={self.start!r} fits linear maps; with projection={self.projection!r} "
                "take init='random' and fit='gradient'"
            )
        return self

    @classmethod
    def preset(cls, name: str = "toy", **changes: Any) -> "RunConfig":
        """Build a named set of values, changed where asked.

        With other pairs than the preset's own, its labelled images are not taken for granted:
        ``zeroshot_manifest`` is then None, unless it is given.

        Raises
        ------
        ValueError
            For an unknown preset or field, naming the nearest known ones.
        """
        if name not in PRESETS:
            raise ValueError(f"preset={name!r}: no such preset; {nearest(name, PRESETS)}")
        values = dict(PRESETS[name])
        own = values.get("manifest", cls.model_fields["manifest"].default)
        given = changes.get("manifest", own)
        if not isinstance(given, str) or given != own:
            values["zeroshot_manifest"] = None  # that of the preset goes with its own pairs
        return cls(**{**values, **changes})

    @classmethod
    def from_parameters(
        cls,
        parameters: Mapping[str, Any],
        base: "RunConfig | None" = None,
        other: Sequence[str] = (),
    ) -> "RunConfig":
        """Build a configuration from papermill parameters or command-line options.

        Parameters
        ----------
        parameters : mapping
            A parameter that is None keeps its starting value.
        base : RunConfig, optional
            Starting values; without it, those of the preset that ``preset`` names.
        other : sequence of str
            Names that belong to the caller: passed over here, but known when a name is misspelt.

        Raises
        ------
        ValueError
            One line for each parameter at fault: name, value, what would be right.
        """
        changes = {k: v for k, v in parameters.items() if v is not None and k not in other}
        known = [*cls.model_fields, *other, *(["preset"] if base is None else [])]
        check_names(changes, known, "parameter")
        try:
            if base is None:
                config = cls.preset(changes.pop("preset", "toy"), **changes)
            else:
                config = cls(**{**base.model_dump(), **changes})
        except ValidationError as error:
            raise ValueError(explain(error)) from None
        if "image_encoder" in changes:  # said before the first image is read
            check_image_encoder(config.image_encoder)
        return config


def _read_presets() -> dict[str, dict[str, Any]]:
    presets = json.loads((Path(__file__).parents[1] / "data" / "presets.json").read_text("utf-8"))
    return {
        name: {**presets[preset.get("based_on", name)]["values"], **preset["values"]}
        for name, preset in presets.items()
    }


PRESETS = _read_presets()
"""Named sets of values, as ``presets.json`` describes them.

``paper`` follows OTTER's train_OTTER.sh: intra-modal weights 1 (``--vv_coef``, ``--tt_coef``), no
mass on the own caption (``--remove_diag``), lambda 0.15, 5 iterations, alpha 0.5, a moving average
whose decay warms up by the number of updates to 0.999. Departures: their loss is the sum of both
directions, ours the mean, so ``learning_rate`` is twice their 3e-3 for the same step; their
gathered embeddings carry no gradient, ours do; their teacher's moving average covers parameters,
ours BatchNorm statistics too; their teacher is updated before a step, with n + 1 for n.

``modern`` takes ShareLock's optimisation: rate 1e-3, 150 steps of warm-up in 5,000, weight decay
1e-4, gradients clipped at 1, a space of 768 dimensions, dropout 0.2 on the text side, 16 x 1,024
pairs a step. Departures: those pairs are one batch whose negatives all count, theirs are 16
batches; both sides have a head of one hidden layer, theirs has four layers on the text side and
none on the image side; the towers are DINOv3 ViT-B/16 and BGE-large, theirs DINOv2 and a language
model; no early stopping. ShareLock's README states 52.1 % on ImageNet-1k for CC3M: theirs, not
ours.
"""
