"""What a person sees of a run."""

import sys

import pytest

from zslkit.training.monitor import Monitor


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_is_for_terminals_and_lines_are_for_logs(terminal, tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with Monitor(tmp_path, 0, 2) as show:
        for step in (1, 2):
            show.log({"step": step, "epoch": 0, "loss": 1.0}, 8)
    printed = capsys.readouterr()
    assert printed.out.count("loss 1.000") == 2
    assert ("training:" in printed.err) is terminal
