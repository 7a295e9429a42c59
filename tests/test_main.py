import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import zslkit.trainer
from zslkit.__main__ import app, main
from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.data.pairs import open_pairs
from zslkit.report.options import read_config
from zslkit.report.results import record
from zslkit.trainer import train


def run_line(*words, code=0):
    """Run a command line in this process; give what it printed, without progress if it is well."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "300"})
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


def options_of(settings, folder):
    settings = {**settings, "output_dir": folder}
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def run_dir(tiny_settings, tmp_path_factory):
    """The folder of a run that the command line trained."""
    folder = tmp_path_factory.mktemp("run")
    output = run_line("train", *options_of(tiny_settings, folder))
    assert str(folder / "results.json") in output
    return folder


def test_every_field_of_the_configuration_is_an_option():
    import typer

    command = typer.main.get_command(app).commands["train"]
    spellings = [name for option in command.params for name in option.opts]
    assert spellings == [
        *("--preset", "--config"),
        *(f"--{name.replace('_', '-')}" for name in RunConfig.model_fields),
    ]
    names = {option.name for option in command.params}
    assert names == {"preset", "config", *RunConfig.model_fields}
    helps = {option.name: option.help for option in command.params}
    assert helps["epsilon"] == RunConfig.model_fields["epsilon"].description


def test_options_reach_the_run_in_the_type_of_their_field(monkeypatch):
    given = []

    def refuse(config):
        given.append(config)
        raise ValueError("far enough")

    monkeypatch.setattr(zslkit.trainer, "train", refuse)
    words = ("--preset=laptop", "--epochs", "3", "--learn-logit-scale", "false")
    words += ("--cache_dir", "none", "--prompt-templates", '["a {}", "the {}"]')
    run_line("train", *words, code=1)
    assert isinstance(given[0].epochs, int)
    assert given == [
        RunConfig.preset(
            "laptop",
            epochs=3,
            learn_logit_scale=False,
            cache_dir=None,
            prompt_templates=("a {}", "the {}"),
        )
    ]


@pytest.fixture
def configured(monkeypatch):
    """Give the configuration that a line leads to."""
    given = []

    def refuse(config):
        given.append(config)
        raise ValueError("far enough")

    monkeypatch.setattr(zslkit.trainer, "train", refuse)

    def run(*words):
        run_line("train", *words, code=1)
        return given.pop()

    return run


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("--resume", {"resume": True}),
        ("--resume --seed 3", {"resume": True, "seed": 3}),
        ("--resume true", {"resume": True}),
        ("--resume=false", {}),
        ("--no-resume --no-learn_logit_scale", {"learn_logit_scale": False}),
        ("--learn-logit-scale off", {"learn_logit_scale": False}),
        ("--batch_size 64 --max_pairs=none", {"batch_size": 64}),
        ("--batch-size=64 --max-pairs 9", {"batch_size": 64, "max_pairs": 9}),
        ("--clip-norm None --learning-rate 1e-3", {"clip_norm": None, "learning_rate": 1e-3}),
    ],
)
def test_switches_stand_alone_and_both_spellings_work(words, changes, configured):
    assert configured(*words.split()) == RunConfig(**changes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs abc", "Invalid value for '--epochs': 'abc' is no INTEGER"),
        ("--max-pairs x", "Invalid value for '--max-pairs': 'x' is no INTEGER and not none"),
        ("--epsilon high", "Invalid value for '--epsilon': 'high' is no FLOAT"),
        ("--optimizer adam", "'adam' is not one of them; did you mean adamw?"),
        ("--batch_siz 3", "No such option: --batch-siz"),
    ],
)
def test_values_of_the_wrong_type_are_named_with_their_option(words, message):
    assert message in run_line("train", *words.split(), code=2)


def test_help_shows_types_choices_sections_and_defaults():
    text = run_line("train", "--help")
    for section in ("Data", "Model", "Objective", "Optimisation", "Run"):
        assert f"─ {section} ─" in text
    rows = {line.split()[1]: " ".join(line.split()) for line in text.splitlines() if "--" in line}
    assert "--batch-size INTEGER Pairs that" in rows["--batch-size"]
    assert "[default: (128)]" in rows["--batch-size"]
    assert "INTEGER|none" in rows["--max-pairs"]
    assert "[default: (none)]" in rows["--max-pairs"]
    assert "FLOAT" in rows["--learning-rate"]
    assert "[adamw|sgd]" in rows["--optimizer"]
    assert "batch_size=" not in text
    assert "--batch_size" not in text


def test_settings_come_from_a_file_and_options_change_them(run_dir, configured, tmp_path):
    config = load_run(run_dir).config
    assert configured("--config", run_dir / "config.json") == config
    assert configured("--config", run_dir / "config.json", "--seed", 9).seed == 9
    file = tmp_path / "mine.yaml"
    file.write_text("preset: laptop\nbatch_size: 64\ncache_dir: null\nprompt_templates: ['a {}']\n")
    assert configured("--config", file, "--epochs", 2) == RunConfig.preset(
        "laptop", batch_size=64, cache_dir=None, prompt_templates=("a {}",), epochs=2
    )
    results = run_dir / "results.json"
    assert configured("--config", results).epochs == config.epochs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 3", r"batch_sise=3: no such setting in .*mine.yaml; did you mean batch_size"),
        ("only words", r"mine.yaml: holds no settings, such as batch_size: 64"),
        ("a: [1", r"mine.yaml: neither JSON nor YAML"),
        ("batch_size: -1", r"batch_size=-1: .*greater than or equal to 2"),
    ],
)
def test_files_without_settings_are_refused(text, message, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "mine.yaml")


def test_a_file_and_a_preset_exclude_each_other(run_dir, monkeypatch, capsys):
    line = ["zslkit", "train", "--preset", "toy", "--config", str(run_dir / "config.json")]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit):
        main()
    assert "config.json holds every setting: leave --preset out" in capsys.readouterr().err


def test_the_version_is_said():
    assert run_line("--version") == f"zslkit {zslkit.__version__}\n"


def test_a_misspelt_option_is_refused_with_the_nearest():
    output = run_line("train", "--epocs", "3", code=2)
    assert "No such option: --epocs" in output
    assert "--epochs" in output.replace("--epocs", "")


def test_an_impossible_value_ends_with_one_line_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "zslkit", "train", "--epochs", "0"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("zslkit: epochs=0: ")
    assert "greater than or equal to 1" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --preset laptob", "preset='laptob': no such preset; did you mean laptop?"),
        ("evaluate nowhere", "model='nowhere': no such folder"),
        ("data verify toi", "manifest 'toi' is not known; did you mean toy?"),
    ],
)
def test_errors_that_say_what_to_do_come_without_a_traceback(line, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zslkit", *line.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"zslkit: {message}" + (
        "; give that of a run or of an exported model, open_clip:MODEL/WEIGHTS, "
        "hf:NAME_OR_FOLDER or zslkit:NAME\n"
        if "nowhere" in line
        else "\n"
    )


def test_training_writes_a_run_with_its_results(run_dir, tiny_settings):
    results = json.loads((run_dir / "results.json").read_text())
    assert results["metrics"].keys() == {"retrieval", "zeroshot", "teacher"}
    assert results["metrics"]["teacher"].keys() == {"retrieval", "zeroshot"}
    assert "no split 'dev' to choose by" in results["extra"]["preferred_weights"]
    assert load_run(run_dir).config == RunConfig(**tiny_settings, output_dir=str(run_dir))


def test_evaluating_prints_what_training_measured(run_dir):
    results = json.loads((run_dir / "results.json").read_text())
    assert json.loads(run_line("evaluate", run_dir)) == results["metrics"]
    teacher = json.loads(run_line("evaluate", run_dir, "--weights", "teacher"))
    assert teacher == results["metrics"]["teacher"]
    student = json.loads(run_line("evaluate", run_dir, "--weights", "student"))
    assert student == {k: v for k, v in results["metrics"].items() if k != "teacher"}


def test_evaluation_takes_another_split(run_dir):
    metrics = json.loads(run_line("evaluate", run_dir, "--split", "train"))
    expected = 1 / len(open_pairs(load_run(run_dir).config.manifest, "train").class_names)
    assert metrics["zeroshot"]["hit@1"]["chance"] == pytest.approx(expected)
    assert run_line("evaluate", run_dir, "--manifest", "none").count("hit@1") == 0


def test_retrieval_is_measured_on_any_pairs(run_dir, tmp_path):
    other = json.loads(Path(load_run(run_dir).config.manifest).read_text())
    other["splits"]["few"] = {"scenes": "train", "n": 20}
    (tmp_path / "other.json").write_text(json.dumps(other))
    line = ["evaluate", run_dir, "--pairs", tmp_path / "other.json", "--pairs-split", "few"]
    found = json.loads(run_line(*line))["retrieval"]
    assert found["image_to_text"]["recall@1"]["n"] == 20


def test_a_folder_given_with_one_set_leaves_the_other_where_it_is(run_dir, tmp_path):
    for number, name in enumerate(("dog", "cat")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (32, 32), (99 * number, 9, 9)).save(tmp_path / f"set/{name}/{i}.png")
    content = {"name": "own", "kind": "image_folder", "title": "Own"}
    content |= {"splits": {"all": {"folder": "set"}}}
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "own.json").write_text(json.dumps(content))
    line = ["evaluate", run_dir, "--manifest", tmp_path / "away" / "own.json", "--split", "all"]
    found = json.loads(run_line(*line, "--data-root", tmp_path))
    assert found["zeroshot"]["hit@1"]["n"] == 4
    results = json.loads((run_dir / "results.json").read_text())
    assert found["retrieval"] == results["metrics"]["retrieval"]
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption\ndog/0.png,a dog\ncat/1.png,a cat\n")
    line = ["evaluate", run_dir, "--pairs", table, "--pairs-split", "all"]
    found = json.loads(run_line(*line, "--data-root", tmp_path / "set"))
    assert found["retrieval"]["image_to_text"]["recall@1"]["n"] == 2
    assert found["zeroshot"] == results["metrics"]["zeroshot"]


def test_evaluation_among_other_classes_leaves_a_file(run_dir, tmp_path):
    line = ["evaluate", run_dir, "--label-space", "own", "--label-space", "own+cifar10"]
    found = json.loads(run_line(*line, "--templates", "none", "--output-dir", tmp_path / "out"))
    assert list(found["questions"]) == ["tiny / none", "tiny+cifar10 / none"]
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == found
    own = json.loads(run_line("evaluate", run_dir, "--label-space", "own"))["questions"]
    assert list(own) == ["tiny / run's own"]
    assert (run_dir / "evaluation" / "evaluation.json").is_file()


def test_options_of_label_spaces_alone_are_refused(run_dir, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["zslkit", "evaluate", str(run_dir), "--templates", "none"])
    with pytest.raises(SystemExit):
        main()
    message = "zslkit: --templates belongs to --label-space, which is not given\n"
    assert capsys.readouterr().err == message


def test_predicting_names_classes_by_probability(run_dir, tmp_path):
    pairs = open_pairs(load_run(run_dir).config.manifest, "test")
    for number in range(2):
        pairs[number].image.save(tmp_path / f"{number}.png")
    classes = "red star, blue circle,, green square"
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    lines = run_line("predict", run_dir, *files, "--classes", classes).splitlines()
    assert [lines[0], lines[4]] == [str(file) for file in files]
    shares = [float(line.split("%")[0]) for line in lines[1:4]]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert shares == sorted(shares, reverse=True)
    names = {line.split(maxsplit=2)[2] for line in lines[1:4]}
    assert names == {"red star", "blue circle", "green square"}
    few = run_line("predict", run_dir, files[0], "--classes", classes, "--k", "1")
    assert few.splitlines() == lines[:2]
    run_line("predict", run_dir, tmp_path / "none.png", "--classes", classes, code=2)


def test_embedding_writes_unit_vectors_with_their_rows(run_dir, tmp_path, tiny_settings):
    output = run_line(
        "embed", run_dir, tiny_settings["manifest"], "test", tmp_path / "e.safetensors"
    )
    assert "32 embeddings of 16 dimensions" in output
    tensors = load_file(tmp_path / "e.safetensors")
    assert tensors["rows"].tolist() == list(range(32))
    torch.testing.assert_close(tensors["embeddings"].norm(dim=1), torch.ones(32))


@pytest.mark.parametrize(
    ("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGUSR1", 138)]
)
def test_a_stopped_training_exits_as_its_signal_says_and_goes_on(
    tiny_settings, tmp_path, monkeypatch, name, code
):
    def send(run, row):
        if row["step"] == 2:
            os.kill(os.getpid(), getattr(signal, name))

    with monkeypatch.context() as patch:
        patch.setattr(zslkit.trainer, "train", lambda config: train(config, [send]))
        output = run_line("train", *options_of(tiny_settings, tmp_path), code=code)
    assert "stopped at step 2; go on with --resume" in output
    assert not (tmp_path / "results.json").exists()
    run_line("train", *options_of(tiny_settings, tmp_path), "--resume", "true")
    assert load_run(tmp_path).facts.steps == 4


def test_only_the_first_of_several_processes_reports(tiny_settings, tmp_path, monkeypatch):
    def train_as_second_process(config):
        run = train(config)
        monkeypatch.setattr("zslkit.training.dist.rank", lambda: 1)
        return run

    monkeypatch.setattr(zslkit.trainer, "train", train_as_second_process)
    assert "results.json" not in run_line("train", *options_of(tiny_settings, tmp_path))
    assert not (tmp_path / "results.json").exists()


def test_manifests_at_hand_are_listed():
    assert {"toy", "flickr8k", "caltech20", "my_pairs_example"} <= {
        *run_line("data", "list").split()
    }


def test_the_list_says_what_a_set_is_and_whether_it_is_here(tmp_path, monkeypatch):
    (tmp_path / "data_manifests").mkdir()
    mine = {"name": "mine", "kind": "table", "title": "My photos", "licence": "x"}
    mine |= {"how_to_obtain": "x", "caption_field": "caption"}
    mine |= {"splits": {"train": {"table": "a.csv"}, "test": {"table": "b.csv"}}}
    mine |= {"files": [{"path": "a.csv", "size": 2_500_000}, {"path": "b.csv", "size": 500_000}]}
    (tmp_path / "data_manifests" / "mine.json").write_text(json.dumps(mine))
    monkeypatch.chdir(tmp_path)

    def row(*words):
        lines = run_line("data", "list", *words).splitlines()
        return next(" ".join(line.split()) for line in lines if line.startswith("mine "))

    assert row() == "mine My photos train, test 3.0 MB no"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("image,caption\n")
    assert row("--data-root", tmp_path / "data").endswith("3.0 MB in part")
    (tmp_path / "data" / "b.csv").write_text("image,caption\n")
    assert row("--data_root", tmp_path / "data").endswith("28 B yes")
    mine["splits"] = {"all": {"folder": "."}}
    mine |= {"kind": "image_folder", "files": []}
    (tmp_path / "data_manifests" / "mine.json").write_text(json.dumps(mine))
    assert row().endswith("all not stated cannot tell")
    found = json.loads(run_line("data", "list", "--json"))
    assert {"name": "toy", "bytes": 0, "here": "yes"}.items() <= {
        one["name"]: one for one in found
    }["toy"].items()


def test_links_that_survived_are_counted(tmp_path):
    rows = [("k1", "u1", "success", None), ("k2", "u2", "failed_to_download", "HTTP 404")]
    names = ["key", "url", "status", "error_message"]
    table = pd.DataFrame(rows, columns=names).assign(width=1, height=1)
    table.to_csv(tmp_path / "ledger.csv", index=False)
    (tmp_path / "list.csv").write_text("url,caption\nu1,a\nu2,b\nu3,c\n")
    lines = run_line("data", "links", tmp_path / "ledger.csv").splitlines()
    assert "  HTTP 404  1" in lines
    assert any(line.split()[:5] == ["links", "that", "survived", "50.0%", "9.5%"] for line in lines)
    words = ("data", "links", tmp_path / "ledger.csv", "--listing", tmp_path / "list.csv")
    found = json.loads(run_line(*words, "--json"))
    assert (found["listed"], found["untried"]) == (3, 1)


def test_sound_data_is_called_sound():
    assert "toy: " in run_line("data", "verify", "toy")


def test_a_missing_file_is_named_with_how_to_obtain_it(tmp_path):
    manifest = {
        **{"name": "mine", "kind": "table", "title": "t", "licence": "x"},
        **{"how_to_obtain": "Ask the neighbour.", "caption_field": "caption"},
        **{"splits": {"train": {"table": "pairs.csv"}}},
    }
    (tmp_path / "mine.json").write_text(json.dumps(manifest))
    output = run_line("data", "verify", tmp_path / "mine.json", code=1)
    assert "missing  1         pairs.csv (not found under" in output
    assert "How to obtain it: Ask the neighbour." in output
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pairs.csv").write_text("image,caption\na.png,a photo\n")
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "a.png")
    run_line("data", "verify", tmp_path / "mine.json", "--data-root", tmp_path / "elsewhere")


def test_the_report_runs_numbered_notebooks_in_order(tmp_path, monkeypatch):
    for name in ("03_train.ipynb", "00_quickstart.ipynb", "draft.ipynb", "00_notes.txt"):
        (tmp_path / name).touch()
    plan = {"03_train": {"parameters": {"epochs": 1}, "after": ["00_quickstart"]}}
    (tmp_path / "report.json").write_text(json.dumps(plan))
    given, failed = [], []

    def build(*words, **options):
        given.append((*words, options))
        return "index", failed

    monkeypatch.setattr("zslkit.report.runner.build_report", build)
    line = ("report", "--notebooks", tmp_path, "--output-dir", tmp_path / "out")
    assert run_line(*line) == "index\n"
    paths = [tmp_path / "00_quickstart.ipynb", tmp_path / "03_train.ipynb"]
    options = {"jobs": None, "fresh": False, "minutes": 60, "portable": False, "executor": None}
    assert given.pop() == (paths, tmp_path / "out", plan, options)
    failed += ["03_train"]
    output = run_line(*line, "--fresh", "--jobs", 2, "--minutes", 0.5, code=1)
    assert output == "index\nfailed: 03_train\n"
    changed = {"jobs": 2, "fresh": True, "minutes": 0.5}
    assert given.pop()[-1] == options | changed


def test_the_plan_of_the_report_fits_the_notebooks():
    from zslkit.report.runner import _plan

    folder = Path(__file__).parents[1] / "notebooks"
    plan = json.loads((folder / "report.json").read_text())
    jobs = _plan(sorted(folder.glob("[0-9]*.ipynb")), Path("reports"), plan)
    assert jobs["05_zero_shot_evaluation"].after == ("03_train",)
    assert jobs["03_train"].parameters == {"output_dir": "reports/03_train"}


def test_two_runs_are_compared_in_tables(tmp_path):
    for name, epochs in (("a", 1), ("b", 20)):
        record({"hit@1": 0.5}, RunConfig(epochs=epochs), tmp_path / name)
    lines = run_line("report", "diff", tmp_path / "a", tmp_path / "b").splitlines()
    assert lines == [
        f"{tmp_path / 'a'}: seed 0",
        f"{tmp_path / 'b'}: seed 0",
        "",
        "Settings",
        "  setting  first  second",
        "  epochs   1      20",
        "",
        "Metrics",
        "  metric  first  second  second - first  verdict",
        "  hit@1   50.0%  50.0%   +0.0 points     equal, one seed cannot tell",
    ]


def test_a_reproduction_exits_0_unless_something_is_different(tmp_path, monkeypatch):
    given = []
    sound = {"name": "03", "folder": "new/03", "error": "", "n_equal": 2}
    sound |= {"differences": {}, "explained": {}, "origin": ["packages (torch)"]}
    sound |= {"facts": {"package torch": ("2.13", "2.14")}}
    other = {**sound, "n_equal": 1, "differences": {"hit": ({"value": 0.5}, None)}}
    outcomes = [sound]

    def reproduce(*words):
        given.append(words)
        yield from outcomes

    monkeypatch.setattr("zslkit.report.reproduction.reproduce", reproduce)
    line = ("report", "reproduce", tmp_path, "--output-dir", tmp_path / "new")
    output = run_line(*line, "--set", "seeds=[0, 1]", "--set", "data_root=a=b")
    assert given == [
        (tmp_path, tmp_path / "new", Path("notebooks"), {"seeds": [0, 1], "data_root": "a=b"})
    ]
    assert output.splitlines() == [
        "03: 2 metrics equal to the bit, 0 explained, 0 different",
        "",
        "Origin",
        "  what           recorded  now",
        "  package torch  2.13      2.14",
        "new results: new/03",
    ]
    outcomes[:] = [sound, other]
    output = run_line(*line, code=1)
    assert "  metric  recorded  95 % interval  now\n" in output
    assert "  hit     0.5                      nothing\n" in output
    pair = ({"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.5000001})
    outcomes[:] = [{**sound, "explained": {"hit@1": pair}}]
    output = run_line(*line)
    assert "Within their intervals and the seeds' spread, by packages (torch)\n" in output
    assert "  hit@1   0.5       40.0% to 60.0%  0.5000001\n" in output
    run_line(*line, "--strict", code=1)
    outcomes[:] = [{**sound, "error": "KeyError: 1"}]
    assert "failed: KeyError: 1" in run_line(*line, code=1)


def test_a_reproduction_needs_names_and_values(tmp_path, monkeypatch, capsys):
    words = ["zslkit", "report", "reproduce", str(tmp_path), "--set", "seeds"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "zslkit: --set seeds: give NAME=VALUE\n"
