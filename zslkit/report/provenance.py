"""Where a result comes from: settings, data, code, packages and machine, as plain JSON."""

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from zslkit import __version__
from zslkit.data.files import portable, project_root
from zslkit.data.kinds import code_of_kinds
from zslkit.data.manifests import load_manifest
from zslkit.data.review import checksum
from zslkit.report.numerics import hold_numerics

PACKAGES = {"numpy", "pandas", "safetensors", "timm", "torch", "torchvision", "transformers"}


_SOURCE = ("data_root", "image_field", "caption_field", "split_shares")  # how a source is read


def provenance(config: Any) -> dict[str, Any]:
    """Say what a run of ``config`` (a RunConfig, a mapping or None) is made of, here and now.

    Returns
    -------
    dict
        ``config`` with portable paths, ``seed``, ``manifest_checksum``, ``review_checksum`` of the
        decisions on captions, if there are any, ``date`` (UTC), ``code``
        (version, sha256 of the sources, git commit), ``versions`` of packages and ``machine``.
    """
    settings = config.model_dump(mode="json") if hasattr(config, "model_dump") else config or {}
    manifest, found = settings.get("manifest"), installed()
    versions = {name: found[name] for name in sorted(PACKAGES & found.keys())}
    return {
        "config": portable(settings),
        "seed": settings.get("seed"),
        "manifest_checksum": manifest
        and load_manifest(manifest, **{key: settings.get(key) for key in _SOURCE}).checksum,
        **_decided(settings),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "code": {
            **{"version": __version__, "sha256": SOURCES, **git_state(project_root())},
            **code_of_kinds(settings),
        },
        "versions": {"zslkit": __version__, "python": platform.python_version(), **versions},
        "machine": machine(),
    }


def _decided(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hash the decisions that a run has read: its own copy, as the file may have grown since."""
    if (review := settings.get("review")) is None:
        return {}
    copy = Path(settings.get("output_dir", ".")) / "review.json"
    return {"review_checksum": checksum(copy if copy.is_file() else review)}


@functools.cache
def installed() -> dict[str, str]:
    """Give the version of every installed package, by its name in lower case.

    Read once: hundreds of files, and what this process has imported stays as it is.
    """
    return {(d.name or "").lower(): d.version for d in metadata.distributions()}


def source_checksum(package: Path = Path(__file__).parents[1]) -> str:
    """Sha256 over name and text of a package's source files, in order of their paths."""
    digest, paths = hashlib.sha256(), [*package.rglob("*.py"), *package.rglob("*.json")]
    for name, path in sorted((path.relative_to(package).as_posix(), path) for path in paths):
        digest.update(f"{name}\0{path.read_text('utf-8')}\0".encode())
    return digest.hexdigest()


SOURCES = source_checksum()
"""As they were imported: what is edited while a run lasts is not what it ran."""


def git_state(root: Path) -> dict[str, Any]:
    """Give the commit of a checkout and whether files differ from it; None where git cannot say.

    Files under ``reports`` do not count: writing them is what runs do.
    """
    git = ("git", "--no-optional-locks", "-C", str(root))  # runs may ask at the same time
    questions = (("rev-parse", "HEAD"), ("status", "--porcelain", "--", ".", ":!reports"))
    if (root / ".git").exists():
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            commit, changes = (
                subprocess.check_output([*git, *words], text=True, stderr=subprocess.DEVNULL)
                for words in questions
            )
            return {"commit": commit.strip(), "dirty": bool(changes)}
    return {"commit": None, "dirty": None}


def machine() -> dict[str, Any]:
    """Describe the machine by what results and speed depend on; no name of it or its owner."""
    import torch

    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "numerics": "portable" if hold_numerics() else "of this processor",
        "libraries": libraries(),
    }


def libraries() -> dict[str, str]:
    """Give file, version and chosen kernels of the loaded libraries that multiply and share out.

    Their folders are left out, as they name a machine and its owner. oneDNN and MKL are part of
    torch's own files; ``cpu_capability`` and ``numerics`` tell what they may use.
    """
    from threadpoolctl import threadpool_info

    return {
        Path(found["filepath"]).name: " ".join(
            str(found[key]) for key in ("internal_api", "version", "architecture") if found.get(key)
        )
        for found in threadpool_info()
    }


def processor() -> str:
    """Name the model of the processor; "unknown" where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def peak_memory() -> dict[str, int]:
    """Give the most memory that this process has held so far, in MiB: resident, and on CUDA."""
    import torch

    peak = {}
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak["resident"] = largest >> (20 if sys.platform == "darwin" else 10)  # bytes, KiB
    if torch.cuda.is_available():
        peak["device"] = torch.cuda.max_memory_allocated() >> 20
    return peak
