"""Data-efficient zero-shot image recognition with soft-label self-distillation.

``import zslkit`` is cheap: rooms and the names below are imported when first used.
"""

from importlib import import_module
from pkgutil import iter_modules

__version__ = "0.1.0"

_HOMES = {
    "RunConfig": "config",
    "read_parameters": "config",
    "project_root": "config",
    "load_manifest": "manifests",
    "open_pairs": "pairs",
    "build_dual_encoder": "encoders",
    "build_teacher": "teacher",
    "train": "trainer",
    "load_run": "checkpoint",
    "evaluate": "evaluation",
    "run_sweep": "sweep",
    "load_label_space": "labelspaces",
    "build_class_bank": "zeroshot",
    "rank_classes": "zeroshot",
    "ZeroShotClassifier": "zeroshot",
    "flat_hit_at_k": "metrics",
    "retrieval_recall": "metrics",
}
_ROOMS = {room.name for room in iter_modules(__path__)}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name):
    if name in _HOMES:
        return getattr(import_module(f"zslkit.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return import_module(f"zslkit.{name}")
    raise AttributeError(f"module 'zslkit' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_HOMES, *_ROOMS})
