import ast
import re
from pathlib import Path

import pytest

from zslkit.data.files import whole, write_json

LIBRARY = Path(__file__).parents[2] / "zslkit"
# the checkpoint renames its whole folder; rows of a running training are appended; the others
# write to memory, or are the one function itself
OTHERS = {"data/files.py", "checkpoint.py", "training/monitor.py", "plots/maps.py"}
WRITERS = {"write_text", "write_bytes", "savefig", "save_file", "to_csv", "to_parquet", "save"}


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.txt"
    with whole(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(ZeroDivisionError), whole(path) as temporary:
        [temporary.write_text(text.format(1 / divisor)) for text, divisor in (("a", 1), ("b", 0))]
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, float("nan"))
    assert path.read_text() == "first"


def written_directly(path):
    """Find calls that write to a file that `whole` did not hand out."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", "")  # a method, not our own write_text(path, text)
            name = name or {"save_file": "save_file"}.get(getattr(node.func, "id", ""), "")
            text = ast.unparse(node)
            if name in WRITERS and not re.search(r"temporary|stream|np\.save\(file", text):
                yield text


def test_every_bar_says_when_it_is_off():
    calls = [
        node
        for path in LIBRARY.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tqdm"
    ]
    assert len(calls) > 3
    assert all("disable" in [word.arg for word in call.keywords] for call in calls)


def test_files_are_written_by_one_function():
    found = {path.relative_to(LIBRARY).as_posix(): path for path in LIBRARY.rglob("*.py")}
    calls = {name: [*written_directly(found[name])] for name in found.keys() - OTHERS}
    assert {name: texts for name, texts in calls.items() if texts} == {}
