"""What a person sees of a run: a progress bar, plain lines, rows in ``metrics.jsonl``."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PLAIN_LINES = 10
"""Plain lines that a run prints, evenly spaced: logs show these where a bar stays at 0 %."""


@dataclass
class Monitor:
    """Show the rows of a run, on the screen and in files; a context manager around the loop.

    Parameters
    ----------
    run_dir : Path
        Receives ``metrics.jsonl`` and, if asked, TensorBoard events.
    first, total_steps : int
        Step where the run stands and where it ends.
    quiet : bool
        Show nothing: for every process but the first.
    """

    run_dir: Path
    first: int
    total_steps: int
    tensorboard: bool = False
    quiet: bool = False
    images: int = 0
    told: set[str] = field(default_factory=set)

    def __enter__(self) -> "Monitor":
        from tqdm.auto import tqdm

        self.started = time.perf_counter()
        self.bar = tqdm(
            total=self.total_steps, initial=self.first, desc="training", unit="step",
            disable=self.quiet, leave=False,
        )  # fmt: skip
        self.file = self.events = None
        if not self.quiet:
            self.file = (self.run_dir / "metrics.jsonl").open("a", buffering=1)
            if self.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self.events = SummaryWriter(self.run_dir / "tensorboard")
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()
        for sink in filter(None, (self.file, self.events)):
            sink.close()

    def log(self, row: dict, n_images: int) -> None:
        """Show a row and where the run stands."""
        self.images += n_images
        if self.quiet:
            return
        self.file.write(json.dumps(row) + "\n")
        if self.events:
            for name in row.keys() - {"step", "epoch"}:
                self.events.add_scalar(name, row[name], row["step"])
        elapsed = time.perf_counter() - self.started
        rate = self.images / elapsed
        self.bar.update()
        self.bar.set_postfix_str(f"loss {row['loss']:.3f}, {rate:.0f} images/s", refresh=False)
        if row["step"] % math.ceil(self.total_steps / PLAIN_LINES) == 0 or (
            row["step"] == self.total_steps
        ):
            left = elapsed / (row["step"] - self.first) * (self.total_steps - row["step"])
            self.bar.write(
                f"step {row['step']}/{self.total_steps}, epoch {row['epoch'] + 1}: "
                f"loss {row['loss']:.3f}, {rate:.0f} images/s, {left:.0f} s left"
            )

    def tell(self, advice: Mapping[str, str]) -> None:
        """Show the kinds of advice that the last call did not have."""
        for kind, sentence in advice.items():
            if kind not in self.told and not self.quiet:
                self.bar.write(f"advice: {sentence}")
        self.told = {*advice}


_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass
class Stop:
    """A request to stop, by the number of the signal that brought it."""

    signum: int | None = None


@contextlib.contextmanager
def interruptible() -> Iterator[Stop]:
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
                print("stopping after this step; the run will be saved (Ctrl-C: stop at once)")
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt

    # nohup has hang-ups ignored: they stay so
    caught = [n for n in _STOPPING
              if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]  # fmt: skip
    earlier = {number: signal.signal(number, request) for number in caught}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: set outside Python
