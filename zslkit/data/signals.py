"""Signals that ask a long work to stop: it ends its step and keeps what it has."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
             if hasattr(signal, name)]  # fmt: skip
"""Ctrl-C and what clusters send; Windows has but two of them."""


@dataclass
class Stop:
    """A request to stop, by the number of the signal that brought it."""

    signum: int | None = None


@contextlib.contextmanager
def interruptible(
    words: str = "stopping after this step; the run will be saved",
) -> Iterator[Stop]:
    """Turn Ctrl-C and what clusters send into a request that the loop honours after its step.

    A second Ctrl-C interrupts at once; the other signals may come several times, from the
    scheduler and from torchrun. Outside the main thread signals cannot be caught and keep their
    usual effect.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum, frame):
        first, stop.signum = stop.signum is None, stop.signum or signum
        if first:
            with contextlib.suppress(RuntimeError):  # it came amidst another print
                print(f"{words} (Ctrl-C: stop at once)")
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt

    earlier = {number: signal.signal(number, request) for number in _STOPPING}
    hangup = getattr(signal, "SIGHUP", None)
    if earlier.get(hangup) is signal.SIG_IGN:  # nohup has it ignored
        signal.signal(hangup, signal.SIG_IGN)
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: set outside Python
