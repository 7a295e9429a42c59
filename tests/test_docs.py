"""Every block of README and docs runs as it is typed, with the smaller values of ``SMALLER``.

A page is one session: its blocks run in order in one folder, and share their Python names. What
cannot run here stands in ``NOT_RUN`` with the reason; a block that is neither run nor listed fails.
"""

import ast
import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

import zslkit as zk
import zslkit.objective  # its kinds
from zslkit.__main__ import app
from zslkit.data.kinds import KINDS

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools"))
import docs_math  # noqa: E402 - of the docs site, in a folder of its own

PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
COMMANDS, TEXTS = {"", "bash", "sh"}, {"text", "latex", "json"}
ELSEWHERE = {f"docs/models-{way}.md": "tests/test_docs_models.py" for way in ("in", "out")}

NOT_RUN = {
    "make report": "the notebooks, each run by tests/test_notebooks.py",
    "make test": "these tests",
    ". .venv/bin/activate": "the tests run within an environment of their own",
    "papermill notebooks/03_train.ipynb out.ipynb -p preset laptop -p manifest flickr8k "
    "-p data_root DATA": "needs Flickr8k",
    "python -m zslkit report reproduce reports/toy": "hours; tests/report runs it on small ones",
    "img2dataset --url_list listing.parquet --input_format parquet --url_col url --caption_col "
    "caption --output_format webdataset --output_folder shards --image_size 256 --resize_mode "
    "keep_ratio": "needs the network and an environment of its own",
    "python -m zslkit data links shards": "needs what img2dataset leaves; see tests/test_main.py",
    "papermill notebooks/03_train.ipynb out_two.ipynb -p processes 2":
        "several processes; tests/test_notebooks.py starts them",
    "torchrun --nproc-per-node 2 -m zslkit train --preset toy --output-dir runs/two":
        "several processes; tests/training/test_dist.py starts them",
}  # fmt: skip

# In the command as it stands in the page, without comments and line ends; {tiny} is a manifest.
SMALLER = {
    "-p epochs 32": "-p epochs 1 -p max_steps 2 {small}",
    "-p preset laptop -p manifest my.csv": "-p manifest my.csv {small}",
    "-p preset laptop -p manifest my_photos.csv": "-p manifest my_photos.csv {small}",
    "--preset laptop --manifest": "--batch-size 8 {options} --zeroshot-manifest none --manifest",
    "--preset toy --epochs 3": "{options}",
    "train --epochs 32": "train {options}",
    "--preset toy --batch-size 128": "{options} --batch-size 8",
    '-p seeds "[0, 1, 2]" -p caption_noises "[0.0, 0.5]"':
        "-p seeds '[0, 1]' -p caption_noises '[0.0]' -p objectives '[\"InfoNCE\", \"transport\"]' "
        "-p preset toy -p jobs 1 -p max_steps 1 -p batch_size 8 -p manifest {tiny} "
        "-p zeroshot_manifest {tiny}",
    "--manifest imagenet1k --split val --data-root DATA": "--manifest {tiny} --split test",
    "imagenet21k+1k": "own+imagenet1k",
    "clip80": "ensemble",
    "RUN_DIR": "{run_a}",
    "RUN_A RUN_B": "{run_a} {run_b}",
}  # fmt: skip
SMALL = "-p image_size 32 -p batch_size 8 -p max_steps 2 -p live_seconds 0"
CODES = {"python -m zslkit data verify my_photos.csv": 1, "python -m zslkit data verify my.csv": 1}


def blocks_of(page):
    """Give (language, text, line) of each fenced block."""
    text = (ROOT / page).read_text("utf-8")
    found = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [(m[1], m[2], text[: m.start()].count("\n") + 2) for m in found]


def commands_of(text):
    """Give the commands of a block, each as one line without its comment."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    stripped = (re.sub(r"\s+#.*", "", line).strip() for line in lines)
    return [line for line in stripped if line]


def all_commands():
    return [
        command
        for page in PAGES
        for language, text, _ in blocks_of(page)
        if language in COMMANDS
        for command in commands_of(text)
    ]


def photos_with_everything_wrong(folder, table):
    """Write 301 images and a table of 333 rows, as docs/own-pairs.md describes them."""
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    (folder / "photos").mkdir(exist_ok=True)
    generator, rows = np.random.default_rng(0), []
    for i in range(1, 302):
        name = f"dog_{i:04d}" + (".heic" if 1 < i <= 11 else ".jpg")
        rows.append([name, "" if i in (30, 31) else f"dog number {i} on a beach"])
        if i in (20, 21):
            continue  # missing
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        path = folder / "photos" / name
        Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC).save(path)
        if i in (40, 41):
            path.write_bytes(path.read_bytes()[:300])  # damaged
    with (folder / table).open("w", newline="") as file:
        csv.writer(file).writerows([["filename", "caption"], *rows, *rows[100:132]])


@pytest.fixture(scope="module")
def words(tiny_settings, tmp_path_factory):
    """What stands for the names in ``SMALLER``; two small runs among them."""
    folder = tmp_path_factory.mktemp("runs")
    given = {**tiny_settings, "max_steps": 2}
    options = [f"--{name}={value}" for name, value in given.items()]
    for seed in (0, 1):
        place = [f"--seed={seed}", f"--output-dir={folder / 'runs' / str(seed)}"]
        done = CliRunner().invoke(app, ["train", *options, *place])
        assert done.exit_code == 0, done.output
    runs = {f"run_{name}": folder / "runs" / str(seed) for seed, name in enumerate("ab")}
    small = SMALL.replace("-p batch", f"-p cache_dir {folder / 'cache'} -p batch")
    return {**runs, "tiny": given["manifest"], "options": shlex.join(options), "small": small}


@pytest.fixture
def session(tmp_path, monkeypatch):
    """A folder like that of a clone, and kinds as they were when the page is left."""
    for name in ("notebooks", "data_manifests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = {setting: dict(kinds) for setting, kinds in KINDS.items()}
    yield tmp_path
    for setting, kinds in KINDS.items():
        for name in kinds.keys() - before[setting].keys():
            del kinds[name]


def smaller(command, words):
    for text, other in SMALLER.items():
        command = command.replace(text, other)
    return re.sub(r"\{(\w+)\}", lambda m: str(words.get(m[1], m[0])), command)


def run_command(command, words):
    """Run a command as typed, but smaller; the library's own in this process."""
    line = shlex.split(smaller(command, words))
    if line[:3] == ["python", "-m", "zslkit"]:
        done = CliRunner().invoke(app, line[3:])
        code, output = done.exit_code, f"{done.output}\n{done.exception}"
    else:
        assert line[0] == "papermill", f"neither run nor in NOT_RUN: {command}"
        environment = {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *line], capture_output=True, text=True, env=environment
        )
        code, output = done.returncode, done.stderr[-3000:]
    assert code == CODES.get(command, 0), f"{command}\n{output}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_every_block_runs(page, session, words, tiny_settings, monkeypatch):
    found = blocks_of(page)
    assert {language for language, *_ in found} <= COMMANDS | TEXTS | {"python"}
    text = (ROOT / page).read_text("utf-8")
    for table in ("my.csv", "my_photos.csv"):
        if f"manifest {table}" in text:
            photos_with_everything_wrong(session, table)
    preset, small = zk.RunConfig.preset, {**tiny_settings, "max_steps": 2}

    def small_preset(name="toy", **changes):
        return preset(name, **{**changes, **small})

    names = {"__name__": "__main__"}
    for language, block, line in found:
        if language == "python":
            code = "\n" * (line - 1) + block  # so that a traceback names the line of the page
            with monkeypatch.context() as patch:
                patch.setattr(zk.RunConfig, "preset", small_preset)
                exec(compile(code, page, "exec"), names)
        elif language in COMMANDS:
            for command in commands_of(block):
                if command not in NOT_RUN:
                    run_command(command, words)


def test_what_is_not_run_is_listed_and_still_there():
    missing = set(NOT_RUN) - set(all_commands())
    assert missing == set()


def test_every_substitution_is_still_needed():
    text = "\n".join(all_commands())
    assert [old for old in SMALLER if old not in text] == []


def test_the_promised_sentences_stand_word_for_word():
    commands = all_commands()
    assert "papermill notebooks/03_train.ipynb out.ipynb -p epochs 32" in commands
    assert [c for c in commands if c.startswith("make")] == ["make report", "make test"]


def test_installation_and_the_two_commands_are_on_the_first_screen():
    first = (ROOT / "README.md").read_text("utf-8").splitlines()[:32]
    assert [line for line in first if line.startswith(("make report", "make test"))]
    text = (ROOT / "README.md").read_text("utf-8")
    assert text.count(".venv/bin/activate") == 1


# What the pages say of the code, compared with the code.


def templates_of_messages():
    """Give the texts in zslkit, with a mark where a value is put in."""
    found = []
    for path in (ROOT / "zslkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.JoinedStr():
                    parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                    found.append("".join(parts))
                case ast.Constant(value=str()):
                    found.append(node.value)
    return found


def test_messages_in_troubleshooting_are_those_of_the_code():
    templates = templates_of_messages()
    texts = [text for language, text, _ in blocks_of("docs/troubleshooting.md")
             if language == "text"]  # fmt: skip
    assert len(texts) > 10
    for text in texts:
        parts = [re.escape(part) for part in " ".join(text.split()).split("…")]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(map(pattern.search, templates)), text


def test_formulas_are_those_of_the_kinds():
    page = (ROOT / "docs" / "method.md").read_text("utf-8")
    kinds = [kind for table in KINDS.values() for kind in table.values() if kind.ours]
    assert len(kinds) >= 7
    assert [kind.name for kind in kinds if f"```latex\n{kind.formula}\n```" not in page] == []


def test_formulas_become_mathml():
    page = docs_math.on_page_markdown("Text\n```latex\n\\frac{1}{2} \\text{a b}\n```\n`$x$`")
    assert page.startswith('Text\n<div class="math">\n<math ')
    assert 'display="block"' in page
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in page
    assert page.endswith("</div>\n`$x$`")
    with pytest.raises(ValueError, match=re.escape(r"\nosuch x: \nosuch is not known")):
        docs_math.on_page_markdown("```latex\n\\nosuch x\n```")


def test_the_citation_is_readable():
    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert facts["version"] == zk.__version__
    assert {reference["url"].rsplit("/")[-1] for reference in facts["references"]} == {
        "2104.08945",
        "2112.09445",
    }


def test_links_lead_somewhere():
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_site_builds_without_a_warning_or_a_network(tmp_path):
    pytest.importorskip("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    reference = (tmp_path / "site" / "reference" / "data.html").read_text("utf-8")
    assert "open_pairs" in reference
    assert "max_pairs" in reference
    method = (tmp_path / "site" / "method.html").read_text("utf-8")
    n_formulas = (ROOT / "docs" / "method.md").read_text("utf-8").count("```latex")
    assert method.count('display="block"') == n_formulas > 8
    assert "\\sum" not in method
    for path in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="([^"]+)"',
                            path.read_text("utf-8"))  # fmt: skip
        assert [url for url in loaded if url.startswith(("http:", "https:", "//"))] == [], path
