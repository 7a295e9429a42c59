"""Portable numerics: what is held, and that a process without the variables is told."""

import os
import subprocess
import sys

import pytest

from zslkit.report.numerics import PORTABLE, hold_numerics

SCRIPT = """
import hashlib, torch
torch.set_num_threads(1)
from zslkit.report.numerics import hold_numerics
held = hold_numerics()
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GELU(), torch.nn.Flatten(),
                          torch.nn.Linear(8 * 14 * 14, 5))
loss = net(torch.randn(4, 3, 16, 16)).softmax(1).log().sum()
loss.backward()
parts = b"".join(p.grad.numpy().tobytes() for p in net.parameters())
print(held, hashlib.sha256(parts).hexdigest())
"""


def run(**changes):
    environment = {name: value for name, value in os.environ.items() if name not in PORTABLE}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment | changes, capture_output=True, text=True
    )
    return done.stdout.split() if done.returncode == 0 else done.stderr


def test_without_the_variable_nothing_is_held(monkeypatch):
    monkeypatch.delenv("ZSLKIT_NUMERICS", raising=False)
    assert hold_numerics() is False


def test_portable_numerics_do_not_depend_on_what_onednn_may_use():
    """Limited to an older processor, oneDNN computes other bits; held, it computes nothing."""
    held = run(**PORTABLE)
    if isinstance(held, str):  # an error
        pytest.skip("this processor has no AVX2")
    older = run(**PORTABLE, ONEDNN_MAX_CPU_ISA="SSE41")
    assert held[0] == older[0] == "True"
    assert held[1] == older[1]
    assert run()[1] != run(ONEDNN_MAX_CPU_ISA="SSE41")[1]  # so the test can fail


def test_a_process_that_was_started_without_the_variables_is_told():
    error = run(ZSLKIT_NUMERICS="portable")
    assert "needs ZSLKIT_NUMERICS=portable, ATEN_CPU_CAPABILITY=avx2" in error
    assert "before Python starts" in error
