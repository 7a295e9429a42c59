"""What is said of data, code, packages and machine, and in whose absence nothing is claimed."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from zslkit.config import RunConfig
from zslkit.data.files import portable, project_root
from zslkit.data.manifests import load_manifest
from zslkit.report.provenance import git_state, peak_memory, provenance, source_checksum


def git(folder, *words):
    names = {f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER")
             for what in ("NAME", "EMAIL")}  # fmt: skip
    environment = {**os.environ, **names}
    return subprocess.check_output(["git", *words], cwd=folder, text=True, env=environment).strip()


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.txt").write_text("a")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "one")
    return tmp_path


def test_a_configuration_brings_its_seed_and_the_checksum_of_its_data():
    found = provenance(RunConfig(seed=7))
    assert found["config"] == RunConfig(seed=7).model_dump(mode="json")
    assert found["seed"] == 7
    assert found["manifest_checksum"] == load_manifest("toy").checksum
    assert found["date"].endswith("+00:00")
    bare = provenance(None)
    assert (bare["config"], bare["seed"], bare["manifest_checksum"]) == ({}, None, None)


def test_the_machine_is_described_without_its_name():
    found = provenance({})
    assert any(words.startswith("openblas 0.") for words in found["machine"]["libraries"].values())
    assert not any("/" in file for file in found["machine"]["libraries"])
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["machine"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert found["machine"]["cores"] >= 1
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found["versions"]["python"] == platform.python_version()
    assert platform.node() not in json.dumps(found["machine"])


def test_sources_are_told_apart_by_name_and_text(tmp_path):
    (tmp_path / "b.py").write_text("x = 1\n")
    (tmp_path / "a.json").write_text("{}\n")
    first = source_checksum(tmp_path)
    (tmp_path / "notes.txt").write_text("not code")
    assert source_checksum(tmp_path) == first
    (tmp_path / "b.py").write_bytes(b"x = 1\r\n")  # a checkout on Windows
    assert source_checksum(tmp_path) == first
    (tmp_path / "b.py").write_text("x = 2\n")
    changed = source_checksum(tmp_path)
    (tmp_path / "b.py").rename(tmp_path / "c.py")
    assert len({first, changed, source_checksum(tmp_path)}) == 3
    assert provenance(None)["code"]["sha256"] == source_checksum()


def test_a_checkout_is_dirty_once_a_file_outside_reports_changes(checkout):
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "reports").mkdir()
    (checkout / "reports" / "results.json").write_text("{}")
    assert git_state(checkout) == {"commit": commit, "dirty": False}
    (checkout / "a.txt").write_text("b")
    assert git_state(checkout) == {"commit": commit, "dirty": True}


def test_without_a_checkout_a_commit_or_git_nothing_is_claimed(checkout, tmp_path_factory):
    nothing = {"commit": None, "dirty": None}
    (checkout / "inner").mkdir()
    assert git_state(checkout / "inner") == nothing  # another project's checkout
    empty = tmp_path_factory.mktemp("empty")
    git(empty, "init", "--quiet")
    assert git_state(empty) == nothing


def test_without_git_nothing_is_claimed(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout) == {"commit": None, "dirty": None}


def test_memory_counts_what_this_process_has_held(monkeypatch):
    before = peak_memory()["resident"]
    held = torch.ones(2**26)  # 256 MiB of float32
    after = peak_memory()["resident"]
    assert after >= before
    assert after >= held.nbytes >> 20
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert "resident" not in peak_memory()


def test_folders_outside_the_project_stay_private(tmp_path):
    inside = project_root() / "reports" / "03"
    settings = {"data_root": str(tmp_path / "flickr8k"), "output_dir": str(inside), "image": "a/b"}
    assert portable({**settings, "files": [tmp_path / "x"]}) == {
        **{"data_root": "…/flickr8k", "output_dir": "reports/03", "image": "a/b"},
        "files": ["…/x"],
    }
