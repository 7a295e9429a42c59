"""What a person sees of a run: a progress bar, plain lines, rows in ``metrics.jsonl``."""

import json
import math
import sys
import time
from collections.abc import Mapping
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
        seen = sys.stderr.isatty() or "ipykernel" in sys.modules  # a log would hold its remains
        self.bar = tqdm(
            total=self.total_steps, initial=self.first, desc="training", unit="step",
            disable=self.quiet or not seen, leave=False,
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
