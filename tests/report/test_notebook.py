"""The first cell: one way to begin, in every notebook."""

import json
import os

import pytest

from zslkit.config import RunConfig
from zslkit.data.files import project_root
from zslkit.report.notebook import SECTIONS, sections, settings, start

PARAMETERS = """run_dir: str = None  # folder
epochs: int = None  # passes
preset: str = "toy"  # values
sizes: list = [1, 2]  # several
size: int = 3  # one
share: float = 0.5  # of all
yes: bool = True  # or no"""
START = "config, own = zk.notebook.start(In)"


def begin(*injected):
    return start(["", PARAMETERS, *injected, START])


@pytest.fixture(autouse=True)
def _in_the_folder_of_the_notebooks(monkeypatch):
    monkeypatch.chdir(project_root() / "notebooks")


def test_own_parameters_are_those_of_the_parameters_cell_that_are_no_settings():
    config, own = begin()
    assert config == RunConfig()
    assert own == {"run_dir": None, "sizes": [1, 2], "size": 3, "share": 0.5, "yes": True}
    assert os.getcwd() == str(project_root())


def test_what_papermill_passes_as_text_gets_the_declared_type():
    given = "sizes = '[0, 1]'\nsize = 1e3\nshare = '1'\nyes = 'False'\nepochs = 2.0\nworkers = 1"
    config, own = begin(given)
    assert (config.epochs, config.workers) == (2, 1)
    assert own == {"run_dir": None, "sizes": [0, 1], "size": 1000, "share": 1.0, "yes": False}
    assert type(own["size"]) is int


def test_none_may_be_a_text():
    own = begin("sizes = 'null'\nsize = 'None'\nrun_dir = 'None'")[1]
    assert own["sizes"] is own["size"] is own["run_dir"] is None


def test_none_may_be_a_word_of_its_own():
    assert start(['weights: str = "none"  # of towers', START])[1] == {"weights": "none"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sizs = 1", "sizs=1: no such parameter; did you mean sizes or size"),
        ("epocs = 1", "epocs=1: no such parameter; did you mean epochs"),
        ("sizes = 'x'", "sizes='x': must be a list such as"),
        ("size = 1.5", "size=1.5: must be a whole number"),
        ("size = 'x'", "size='x': must be a whole number"),
        ("size = True", "size=True: must be a whole number"),
        ("share = 'x'", "share='x': must be a number"),
        ("yes = 1", "yes=1: must be true or false"),
        ("run_dir = [1]", r"run_dir=\[1\]: must be a text"),
        ("epochs = 0", "epochs=0: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_values_are_named_with_what_is_right(given, message):
    with pytest.raises(ValueError, match=message):
        begin(given)


def test_without_the_parameters_cell_it_says_so():
    with pytest.raises(ValueError, match="no parameters yet: run the parameters cell"):
        start(["", START])


def test_a_rerun_takes_changed_parameters_and_no_others():
    cells = ["", PARAMETERS, START, "k: int = 5", PARAMETERS.replace("3", "4"), START]
    assert start(cells)[1]["size"] == 4


def test_a_run_gives_the_starting_values(tmp_path):
    values = RunConfig(seed=7, batch_size=16, output_dir="there").model_dump()
    (tmp_path / "config.json").write_text(json.dumps(values))
    config, own = begin(f"run_dir = {str(tmp_path)!r}\nbatch_size = 32")
    assert (config.seed, config.batch_size) == (7, 32)
    assert own["run_dir"] == str(tmp_path)


def test_a_folder_without_a_run_is_named():
    with pytest.raises(FileNotFoundError, match="run_dir='nowhere': no run with a configuration"):
        begin("run_dir = 'nowhere'")


def test_settings_are_folded_by_section_and_say_what_is_changed():
    config = RunConfig(seed=7, prompt_templates="none")
    shown = settings(config)
    assert repr(shown) == "prompt_templates = 'none'\nseed = 7"
    page = shown._repr_html_()
    assert page.count("<details>") == len(SECTIONS)
    assert "<b>run</b>" in page
    assert ") seed = 7</summary>" in page
    assert all(f"<td>{name}</td>" in page for name in RunConfig.model_fields)
    assert "&#x27;none&#x27;" in page


def test_sections_cover_the_fields_once_in_their_order():
    names = [name for section in sections().values() for name in section]
    assert names == list(RunConfig.model_fields)
    assert list(sections()) == list(SECTIONS)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("live_seconds: int = -1", "live_seconds=-1: must be a whole number of at least 0"),
        ("image: int = -1", "image=-1: must be a whole number of at least 0"),
        ("n_pairs: int = 1", "n_pairs=1: must be a whole number of at least 2"),
        ("max_images: int = 0", "max_images=0: must be a whole number of at least 1"),
        ('held_out_split: str = "tset"',
         "held_out_split='tset': 'toy' has no such split; did you mean test"),
    ],
)  # fmt: skip
def test_what_used_to_be_refused_after_a_training_is_refused_at_once(declared, message):
    with pytest.raises(ValueError, match=message):
        start([declared, START])


def test_a_split_to_be_watched_is_one_of_the_manifest_or_the_usual_one():
    for split in ("test", "dev", "none"):
        own = start(["held_out_split: str = None", f'held_out_split = "{split}"', START])[1]
        assert own["held_out_split"] == (None if split == "none" else split)
