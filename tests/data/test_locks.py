"""One writer at a time; who holds the lock is said, and a dead holder is no obstacle."""

import json
import os
import socket
import subprocess
import sys

import pytest

from zslkit.data.locks import _started, locked


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "lock.json"


def ended_process():
    """Number of a process that has just ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(lock, **changes):
    facts = {"owner": "ada", "host": socket.gethostname(), "pid": os.getpid(), "since": "noon"}
    lock.write_text(json.dumps({**facts, "started": None, **changes}))


def test_it_says_who_holds_it_and_is_gone_afterwards(lock):
    with locked(lock):
        facts = json.loads(lock.read_text())
        assert facts["pid"] == os.getpid()
        assert facts["host"] == socket.gethostname()
        assert facts.keys() >= {"owner", "since"}
    assert not lock.exists()


def test_a_second_holder_is_refused_with_the_first_ones_name(lock):
    message = rf"is in use by .*, process {os.getpid()} on .*, since .*; wait for it, or choose"
    with locked(lock):
        with pytest.raises(BlockingIOError, match=message), locked(lock):
            pass
        assert lock.exists()  # the refused one did not release it


def test_an_error_inside_releases_it(lock):
    with pytest.raises(ZeroDivisionError), locked(lock):
        1 / 0  # noqa: B018
    assert not lock.exists()


def test_another_living_process_is_refused(lock):
    script = (
        "import sys, time, pathlib\nfrom zslkit.data.locks import _started, locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(lock)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"process {process.pid} on"), locked(lock):
        pass
    process.kill()  # it cannot release anything now
    process.communicate()
    with locked(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_process_that_nobody_waited_for_has_ended(lock):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write(lock, pid=child.pid, started=_started(child.pid))
    with pytest.raises(BlockingIOError), locked(lock):
        pass
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it stays what it is, a zombie
    with locked(lock):
        pass
    child.communicate()


def test_a_lock_of_a_process_that_has_ended_is_taken_over_and_said(lock, capsys):
    pid = ended_process()
    write(lock, pid=pid)
    with locked(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert f"took over from ada, process {pid} on" in capsys.readouterr().out


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="no /proc tells when it began")
def test_a_number_that_now_belongs_to_another_process_is_no_holder(lock, capsys):
    write(lock, started="an earlier boot 1")
    with locked(lock):
        pass
    assert "took over from ada" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", [b'{"pid": 1', b"[1]", b"", b"\xff\xfe"], ids=["torn", "list", "empty", "bytes"]
)
def test_a_lock_that_says_nothing_counts_as_held(lock, text):
    lock.write_bytes(text)
    message = "in use by unknown, process unknown on unknown.*If that process has ended, delete"
    with pytest.raises(BlockingIOError, match=message), locked(lock):
        pass


def test_of_another_computer_nobody_can_tell(lock):
    write(lock, host="elsewhere", pid=ended_process())
    message = "on elsewhere, .*If that process has ended, delete"
    with pytest.raises(BlockingIOError, match=message), locked(lock):
        pass
    assert json.loads(lock.read_text())["host"] == "elsewhere"


def test_a_lock_that_was_replaced_in_between_is_left_alone(lock):
    with locked(lock):
        write(lock, owner="grace")
    assert json.loads(lock.read_text())["owner"] == "grace"


def test_another_users_process_lives(lock, monkeypatch):
    def forbidden(pid, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", forbidden)
    write(lock, started="never")
    with pytest.raises(BlockingIOError, match="in use by ada"), locked(lock):
        pass


def test_a_user_without_a_name_is_numbered(lock, monkeypatch):
    def nameless():
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    with locked(lock):
        assert json.loads(lock.read_text())["owner"] == f"user {os.getuid()}"
