"""What holds the project together: its dependencies, its size, its two commands."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LOCKED_EXTRAS = ("notebooks", "dev", "heif", "openclip", "export", "cluster", "docs")
MANDATORY = ("jupyterlab", "torch", "torchvision", "transformers", "ipywidgets", "matplotlib")
MANDATORY += ("seaborn", "umap-learn", "papermill")
HEAVY = {"torch", "torchvision", "timm", "transformers", "numpy", "pandas", "pydantic", "PIL"}
METHOD = ("losses", "targets", "objective", "teacher", "trainer", "checkpoint")
METHOD_FAMILIES = ("encoders", "training")
MOST_LINES = 1300  # of code in the method: that is what "thin" means
MOST_ENTRIES = 20  # directly under zslkit/
LONGEST_FILE = 400  # lines of any kind


def environment(python):
    """What the markers of the lock are asked on: the users' commonest machine."""
    return {
        **{"python_version": python, "python_full_version": f"{python}.5", "os_name": "posix"},
        **{"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
        **{"implementation_name": "cpython", "platform_python_implementation": "CPython"},
        "extra": "",
    }


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock():
    """Pinned requirements by name; one name may stand there for several Pythons."""
    pinned = defaultdict(list)
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line.rstrip("\\ "))
            pinned[canonicalize_name(requirement.name)].append(requirement)
    return pinned


def version_for(lock, name, python):
    """The one version that the lock gives a Python."""
    valid = [
        requirement
        for requirement in lock.get(canonicalize_name(name), ())
        if requirement.marker is None or requirement.marker.evaluate(environment(python))
    ]
    assert len(valid) == 1, f"{name} on Python {python}: {len(valid)} versions in the lock"
    (pin,) = valid[0].specifier
    assert pin.operator == "=="
    return pin.version


def test_every_dependency_is_locked_at_a_version_that_it_allows(project, lock):
    wanted = [*project["dependencies"]]
    for extra in LOCKED_EXTRAS:
        wanted += project["optional-dependencies"][extra]
    for python in ("3.10", "3.11", "3.12"):
        for requirement in map(Requirement, wanted):
            version = version_for(lock, requirement.name, python)
            assert version in requirement.specifier, f"{requirement} but {version} is locked"


def test_the_mandatory_packages_are_asked_for_and_locked(project, lock):
    asked = project["dependencies"] + project["optional-dependencies"]["notebooks"]
    names = {Requirement(line).name for line in asked}
    assert set(MANDATORY) <= names
    assert set(MANDATORY) <= lock.keys()


def test_lower_bounds_admit_the_users_machines(project):
    """Python 3.12 with torch 2.11, torchvision 0.26, transformers 5.17 and no Jupyter at all."""
    asked = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    for name, version in (("torch", "2.11"), ("torchvision", "0.26"), ("transformers", "5.17")):
        assert version in asked[name]
    assert not {"jupyterlab", "ipywidgets", "papermill", "matplotlib"} & asked.keys()


def test_torch_and_torchvision_are_pinned_as_one_pair(lock):
    """Builds of different releases break each other: operator torchvision::nms does not exist."""
    pins = {name: lock[name] for name in ("torch", "torchvision")}
    assert all(len(found) == 1 and found[0].marker is None for found in pins.values())
    torch, torchvision = (str(found[0].specifier).removeprefix("==") for found in pins.values())
    assert int(torchvision.split(".")[1]) == int(torch.split(".")[1]) + 15  # 2.13 with 0.28
    assert "+" not in torch + torchvision
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]
    constraints = {f"torch=={torch}", f"torchvision=={torchvision}"}
    assert set(tool["constraint-dependencies"]) == constraints


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-nodeps.lock"])
def test_a_lock_names_no_index_and_hashes_everything(name):
    text = (ROOT / name).read_text()
    assert "://" not in text
    assert "--index" not in text
    entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    without_hash = [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry]
    assert without_hash == []


def test_conda_installs_python_and_exactly_the_lock(project):
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    parts = [part for part in conda["dependencies"] if isinstance(part, dict)]
    assert parts == [{"pip": ["-r requirements.lock"]}]
    plain = [part for part in conda["dependencies"] if isinstance(part, str)]
    assert [re.split("[=<>]", part)[0] for part in plain] == ["python", "pip"]
    python = plain[0].partition("=")[2]
    assert python in Requirement(f"python{project['requires-python']}").specifier


def test_the_lock_is_made_from_the_extras_that_are_tested_here():
    makefile = (ROOT / "Makefile").read_text()
    lines = makefile.replace("\\\n", " ").splitlines()
    (recipe,) = [line for line in lines if line.endswith("-o requirements.lock")]
    assert re.findall(r"--extra (\S+)", recipe) == list(LOCKED_EXTRAS)
    assert "--generate-hashes" in recipe
    assert "--universal" in recipe


def test_importing_the_library_imports_nothing_heavy():
    script = (
        "import sys; before = set(sys.modules); import zslkit; print(*(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "zslkit" in loaded
    assert HEAVY & loaded == set()


def test_the_command_line_answers_without_anything_heavy():
    """Help within a second: torch alone takes longer."""
    script = "import sys, zslkit.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert {"torch", "numpy", "pandas", "timm"} & set(done.stdout.split()) == set()


def code_lines(source):
    """Lines that hold code: no blank lines, comments or docstrings."""
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet | {tokenize.ENDMARKER}:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):  # a docstring, also of a field
                lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_lines_of_code_are_counted_without_words():
    source = (
        '"""Docstring\n\nof three lines."""\n\n# a comment\nx = """a\nb"""  # text\n\n\ny = 1\n'
    )
    assert code_lines(source) == 3


def test_the_method_is_small_enough_to_be_read_in_one_sitting():
    paths = [ROOT / "zslkit" / f"{name}.py" for name in METHOD]
    for family in METHOD_FAMILIES:
        paths += (ROOT / "zslkit" / family).glob("*.py")
    sizes = {str(path): code_lines(path.read_text()) for path in paths}
    assert sum(sizes.values()) <= MOST_LINES, sizes


def test_the_house_shows_its_plan():
    """Few things lie side by side, and no file is too long to be read."""
    entries = [path for path in (ROOT / "zslkit").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES
    lengths = {str(path): path.read_text().count("\n") for path in (ROOT / "zslkit").rglob("*.py")}
    assert {path: n for path, n in lengths.items() if n > LONGEST_FILE} == {}


def test_imports_run_one_way():
    """The layers stand once, in pyproject.toml."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_two_commands_are_all_one_must_know():
    readme, makefile = ((ROOT / name).read_text() for name in ("README.md", "Makefile"))
    for command in ("report", "test"):
        assert f"make {command}" in readme
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)
    assert re.search(
        r"^\s*(exec )?make .*\btest\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE
    )


def test_no_file_names_a_folder_of_one_machine():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    guilty = []
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" not in data and re.search(rb"(?<![\w.])/(root|home|work|Users)/", data):
            guilty.append(name)
    assert guilty == []


def test_numbers_in_the_readme_are_those_of_the_results_files():
    command = [sys.executable, str(ROOT / "tools" / "readme_results.py"), "--check"]
    subprocess.run(command, check=True)
