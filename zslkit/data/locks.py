"""A lock that says who holds it: two writers in one folder would destroy each other's work."""

import contextlib
import getpass
import json
import os
import socket
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from zslkit.data.files import write_json


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file for the time of a block.

    A lock whose process has ended on this computer, as after a kill, is taken over with a printed
    line. Of a process on another computer nobody here can tell whether it lives, so its lock
    counts.

    Parameters
    ----------
    path : Path
        The file, in an existing folder; it holds owner, host, process and time.

    Raises
    ------
    BlockingIOError
        If another run holds the lock; the message says who and what to do.
    """
    mine = _myself()
    with _one_at_a_time(path.parent):
        if path.exists():
            holder = _read(path)
            who = "{owner}, process {pid} on {host}, since {since}".format_map(holder)
            if _may_live(holder):
                raise BlockingIOError(
                    f"{str(path.parent)!r} is in use by {who}; wait for it, or choose another "
                    f"folder. If that process has ended, delete {str(path)!r}"
                )
            print(f"{str(path.parent)!r}: took over from {who}, which has ended")
        write_json(path, mine)
    try:
        yield
    finally:
        if path.exists() and _read(path) == mine:  # nobody was told to delete and replace it
            path.unlink()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let those that find the same stale lock look and write in turn."""
    import fcntl  # not on Windows

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _myself() -> dict[str, Any]:
    try:
        owner = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        owner = f"user {os.getuid()}"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    pid = os.getpid()
    facts = {"owner": owner, "host": socket.gethostname(), "pid": pid, "since": now}
    return {**facts, "started": _started(pid)}


def _read(path: Path) -> dict[str, Any]:
    """Read a lock; what a damaged one does not say is unknown, and it counts as held."""
    unknown = dict.fromkeys(("owner", "host", "pid", "since", "started"), "unknown")
    with contextlib.suppress(ValueError):
        found = json.loads(path.read_text("utf-8"))
        return unknown | found if isinstance(found, Mapping) else unknown
    return unknown


def _may_live(holder: Mapping[str, Any]) -> bool:
    if holder["host"] != socket.gethostname() or not isinstance(holder["pid"], int):
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    # the number may have been given to another process since
    return _started(holder["pid"]) == holder["started"]


def _started(pid: int) -> str | None:
    """When a process began, in ticks since boot with the boot's name; None if not told or ended."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # the name, in brackets, may hold spaces; the start is field 22, the 20th behind it
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # one that has ended and whose parent has not asked yet is there by name only
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"
