"""Every notebook runs headlessly on tiny data and leaves results that can be read back."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
from PIL import Image

import zslkit as zk
from zslkit.config import RunConfig
from zslkit.report.cards import load_results
from zslkit.report.tables import flat
from zslkit.zeroshot.answer_keys import POLICIES

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
START = "import zslkit as zk\n\nconfig, own = zk.notebook.start(In)"
OWN = {  # parameters that are a notebook's, not a run's
    "00_quickstart": set(),
    "01_data": {"preset", "run_dir", "max_images", "ledger", "other_ledger"},
    "02_encoders": {
        *("preset", "image_encoders", "text_encoders", "other_weights", "max_images"),
        "timed_items",
    },
    "03_train": {"preset", "held_out_split", "live_seconds", "processes"},
    "04_temperature_ablation": {
        *("preset", "temperatures", "contrastive_weights", "seeds", "metric", "jobs"),
        "scheduler",
    },
    "05_zero_shot_evaluation": {
        *("run_dir", "prompt_sets", "label_spaces", "label_map", "wordnet", "shots", "n_query"),
        *("describe_with", "class_names"),
    },
    "06_embedding_maps": {
        *("run_dir", "image", "classes", "class_names", "max_images", "max_thumbnails")
    },
    "07_explore": {
        *("run_dir", "other_run", "class_names", "image", "n_pairs", "max_images", "export_format")
    },
    "08_compare_objectives": {
        *("preset", "seeds", "objectives", "caption_noises", "metric", "jobs"),
        "scheduler",
    },
}


def by_name(name):
    return next(path for path in NOTEBOOKS if path.stem == name)


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def run(name, folder, **parameters):
    """Execute a copy from the repository's root; return its results."""
    output = folder / f"{name}.ipynb"
    papermill.execute_notebook(
        by_name(name),
        output,
        {"output_dir": str(folder / name), **parameters},
        kernel_name="python3",
        cwd=ROOT,
        progress_bar=False,
    )
    return load_results(folder / name)


@pytest.fixture(scope="module")
def tiny(tiny_settings):
    keys = ("manifest", "zeroshot_manifest", "batch_size")
    return {key: tiny_settings[key] for key in keys}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_settings):
    """Folder and results of notebook 03."""
    folder = tmp_path_factory.mktemp("notebooks")
    settings = {name: value for name, value in tiny_settings.items() if value is not None}
    return folder, run("03_train", folder, **settings, max_steps=3, held_out_split="test")


def assert_sound(results):
    assert results["headline"]["sentence"]
    assert results["headline"]["figure"] in results["figures"]
    for _, estimate in flat(results["metrics"]):
        assert math.isfinite(estimate["value"])
        if "low" in estimate:
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert re.fullmatch("[0-9a-f]{64}", results["manifest_checksum"])
    assert results["versions"].keys() >= {"zslkit", "python", "torch"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_one_parameters_cell_a_results_cell_last_and_no_outputs(path):
    cells = code_cells(path)
    tags = [tag for cell in cells for tag in cell.metadata.get("tags", [])]
    assert tags.count("parameters") == 1
    assert cells[-1].metadata["tags"] == ["results"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert not any(re.search(r"^(def|class) ", cell.source, re.MULTILINE) for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_begins_as_all_do_and_no_line_is_wide(path):
    parameters, first, *rest = code_cells(path)
    assert first.source == START
    for cell in (first, *rest):
        assert max(map(len, cell.source.splitlines())) <= 100
    if path.stem == "03_train":  # its helps are those of RunConfig, each on its parameter's line
        assert max(len(line.split("#")[0]) for line in parameters.source.splitlines()) <= 100
    else:
        assert max(map(len, parameters.source.splitlines())) <= 100


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_fields_of_a_run_with_their_types(path):
    declared = papermill.inspect_notebook(path)
    assert declared.keys() <= RunConfig.model_fields.keys() | OWN[path.stem]
    for name, parameter in declared.items():
        assert parameter["help"], f"{name} has no help"
        if name in RunConfig.model_fields:
            annotation = str(RunConfig.model_fields[name].annotation)
            expected = parameter["inferred_type_name"]
            assert expected in annotation or "Literal" in annotation, name


def test_training_notebook_declares_every_field_of_a_run():
    declared = papermill.inspect_notebook(by_name("03_train"))
    assert declared.keys() == RunConfig.model_fields.keys() | OWN["03_train"]
    for name, field in RunConfig.model_fields.items():  # papermill skips a second equals sign
        assert declared[name]["help"] == field.description.replace("=", " equals "), name


def test_notebook_03_trains_in_two_processes_and_shows_what_they_say(tmp_path, tiny_settings):
    settings = {name: value for name, value in tiny_settings.items() if value is not None}
    results = run("03_train", tmp_path, **settings, processes=2, max_steps=3, held_out_split="test")
    assert results["extra"]["steps"] == 3
    run_dir = tmp_path / "03_train"
    assert json.loads((run_dir / "inputs.json").read_text())["processes"] == 2
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert "held-out recall@10" in rows[-1]
    shown = [
        output.text
        for cell in code_cells(tmp_path / "03_train.ipynb")
        for output in cell.outputs
        if output.output_type == "stream"
    ]
    assert any("step 3/3" in text for text in shown)


def test_the_parameters_of_03_are_written_by_a_command():
    command = [sys.executable, str(ROOT / "tools" / "parameters_cell.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_quickstart_measures_and_names_chance(tmp_path, tiny):
    results = run("00_quickstart", tmp_path, **tiny, max_steps=2, seed=5)
    assert_sound(results)
    hit = results["metrics"]["zeroshot"]["hit@1"]
    assert hit["n"] == 32
    assert 0 < hit["chance"] < 0.1
    assert results["seed"] == 5


def test_data_are_audited_with_noise_and_two_ledgers(tmp_path, tiny_settings):
    manifest, facts = tiny_settings["manifest"], {"key": "0", "width": 8, "height": 8}
    for name, status in (("a", "success"), ("b", "failed_to_download")):
        rows = [("u1", "success", None, "x"), ("u2", status, "HTTP Error 404: Not Found", None)]
        table = pd.DataFrame(rows, columns=["url", "status", "error_message", "sha256"])
        table.assign(**facts).to_csv(tmp_path / f"{name}.csv", index=False)
    results = run(
        "01_data",
        tmp_path,
        manifest=manifest,
        zeroshot_manifest=manifest,
        caption_noise=0.5,
        max_pairs=30,
        max_images=20,
        ledger=str(tmp_path / "a.csv"),
        other_ledger=str(tmp_path / "b.csv"),
    )
    assert_sound(results)
    metrics = results["metrics"]
    assert metrics["captions"]["train"]["images"] == 30
    assert metrics["captions"]["test"]["captions"] == 96
    assert metrics["images"]["train"] == {"decoded": 20, "broken": 0, "skipped": 0}
    assert metrics["duplicates"].keys() == {"within train", "within test", "from train to test"}
    assert metrics["classes"] == {"named": 0, "all": 48}
    assert metrics["share of mismatched captions, upper estimate"]["n"] == 30
    assert 0 < metrics["captions of a batch that fit as well"]["value"] < 127
    assert [ledger["survived"] for ledger in metrics["ledgers"]] == [2, 1]
    assert metrics["comparison of ledgers"]["jaccard"] == 0.5
    assert len(pd.read_parquet(tmp_path / "01_data" / "ledger.parquet")) == 2
    assert "sizes" not in results["figures"]  # all drawings are of one size
    for figure in ("least_matching", "fit", "rivals", "lengths"):
        assert (tmp_path / "01_data" / results["figures"][figure]).stat().st_size > 5000


def test_data_are_judged_by_the_run_that_training_left(trained, tmp_path):
    folder, training = trained
    results = run("01_data", tmp_path, run_dir=str(folder / "03_train"), max_images=8)
    assert_sound(results)
    assert results["config"]["manifest"] == training["config"]["manifest"]
    assert results["metrics"]["share of mismatched captions, upper estimate"]["n"] == 32
    assert results["metrics"]["ledgers"] == []


def test_encoders_are_measured_and_fill_the_cache(tmp_path, tiny):
    results = run(
        "02_encoders",
        tmp_path,
        **tiny,
        image_encoders='["timm:test_resnet"]',
        image_tower="frozen",
        image_size=32,
        max_images=12,
        timed_items=2,
        cache_dir=str(tmp_path / "cache"),
    )
    assert_sound(results)
    cost, quality, cache = (results["metrics"][name] for name in ("cost", "quality", "cache"))
    own, other = "timm:test_byobnet", "timm:test_resnet"
    assert list(cost["image"]) == list(quality["image"]) == [own, other]
    assert cost["image"][own]["parameters"] == 199856
    assert quality["image"][own]["accuracy@1"]["n"] == 12
    assert quality["text"]["small"]["same_image_recall@1"]["chance"] == pytest.approx(2 / 35)
    assert cache["image"].keys() == {own, other, "training pairs"}
    assert cache["text"].keys() == {"small"}
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 4
    read_later = cache["image"][own]["megabytes"] + cache["image"]["training pairs"]["megabytes"]
    assert results["metrics"]["saved_megabytes"] == pytest.approx(read_later)


def test_train_leaves_a_run_its_results_and_figures(trained):
    folder, results = trained
    assert_sound(results)
    assert results["extra"]["steps"] == 3
    assert results["config"]["max_steps"] == 3
    assert {"recall@1", "recall@10"} <= results["metrics"]["retrieval"]["text_to_image"].keys()
    figures = ("pairs", "curves", "held_out", "target_curves", "soft_targets", "retrieval")
    for figure in (*figures, "zeroshot", "examples"):
        assert (folder / "03_train" / results["figures"][figure]).stat().st_size > 5000
    assert len((folder / "03_train" / "metrics.jsonl").read_text().splitlines()) == 3


def outputs_of(path):
    """Join what an executed notebook printed and showed as text."""
    found = [output for cell in code_cells(path) for output in cell.outputs]
    return "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in found
    )


def test_train_shows_the_pairs_that_the_run_trains_on(tmp_path, tiny_settings):
    """Once it counted all pairs, and pictured some that the run never met."""
    settings = {name: value for name, value in tiny_settings.items() if value is not None}
    settings |= {"max_pairs": 20, "caption_noise": 0.5, "max_steps": 1, "live_seconds": 0}
    results = run("03_train", tmp_path, **settings, accumulation=2, contrastive_loss="sigmoid")
    assert results["extra"]["pairs"] == 20
    assert results["extra"]["swapped_captions"] == 10
    assert "20 pairs of x, 10 with swapped captions" in outputs_of(tmp_path / "03_train.ipynb")


def test_train_ends_though_one_of_the_first_pairs_cannot_be_read(tmp_path, tiny_settings):
    rows = ["image,caption"]
    for number in range(16):
        Image.new("RGB", (32, 32), (16 * number, 0, 99)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,colour {number}")
    (tmp_path / "3.png").write_bytes(b"torn")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    splits = {split: {"table": "pairs.csv"} for split in ("train", "test")}
    words = dict.fromkeys(("title", "licence", "how_to_obtain"), "x")
    manifest = {"name": "torn", "kind": "table", **words, "caption_field": "caption"}
    (tmp_path / "torn.json").write_text(json.dumps(manifest | {"splits": splits}))
    settings = {name: value for name, value in tiny_settings.items() if value is not None}
    settings |= {"manifest": str(tmp_path / "torn.json"), "max_unreadable": 0.1, "max_steps": 1}
    results = run("03_train", tmp_path, **settings, live_seconds=0)
    assert results["extra"]["unreadable_images"] in ([], ["3.png"])  # of the one batch
    assert "soft_targets" in results["figures"]


def test_evaluation_reads_the_run_that_training_left(trained, language_model, tmp_path):
    folder, training = trained
    settings = {"run_dir": str(folder / "03_train"), "prompt_sets": ["none", "ensemble"]}
    settings |= {"label_spaces": ["own", "own+imagenet1k"], "n_query": 1, "shots": [1]}
    settings |= {"describe_with": str(language_model)}
    results = run("05_zero_shot_evaluation", tmp_path, **settings)
    assert_sound(results)
    metrics = results["metrics"]
    assert metrics["zeroshot"] == training["metrics"]["zeroshot"]
    assert metrics["templates"].keys() == {"none (1)", "ensemble (5)", "described (2)"}
    told = tmp_path / "05_zero_shot_evaluation" / "descriptions.json"
    assert len(json.loads(told.read_text())["classes"]) == 48
    own, among = metrics["label spaces"].values()
    assert own["hits"]["strict"]["hit@1"]["value"] == metrics["zeroshot"]["hit@1"]["value"]
    chance = among["hits"]["strict"]["hit@5"]["chance"]
    assert chance == pytest.approx(5 / 1048)
    assert among["hits"].keys() == set(POLICIES)
    assert 0 <= metrics["calibration error"]["all images"] <= 1
    per_class = metrics["per class hit@1"]
    assert all(0 <= r["low"] <= r["value"] <= r["high"] <= 1 for r in per_class.values())
    assert any(r["value"] for r in per_class.values()) == (
        metrics["zeroshot"]["hit@1"]["value"] > 0
    )
    figures = {"confusion", "reliability", "classes", "examples", "policies", "abstention"}
    assert results["figures"].keys() >= figures
    exported = json.loads((tmp_path / "05_zero_shot_evaluation" / "evaluation.json").read_text())
    question = exported["questions"]["tiny+imagenet1k / run"]
    found = results["extra"]["label spaces"]["tiny+imagenet1k"]["sha256"]
    assert question["label space"]["sha256"] == found


def test_widgets_stand_beside_figures_of_the_same(trained, tmp_path):
    folder = trained[0]
    settings = {"run_dir": str(folder / "03_train"), "class_names": ["redstar", "bluemoon"]}
    options = {"n_pairs": 5, "max_images": 12, "export_format": "zslkit"}
    results = run("07_explore", tmp_path, **settings, **options)
    assert_sound(results)
    exported = results["extra"]["exported"]
    assert exported["n_equal"] == exported["n_photos"] > 0
    assert (tmp_path / "07_explore" / "exported" / "zslkit.json").is_file()
    assert results["extra"]["first class"] in ("redstar", "bluemoon")
    assert 0.5 <= results["metrics"]["probability of the first class"] <= 1
    assert 0 <= results["metrics"]["target_entropy"] <= math.log(5)
    assert results["figures"].keys() == {"predictions", "lit", "soft_targets", "map"}
    figure = tmp_path / "07_explore" / results["figures"]["soft_targets"]
    assert figure.stat().st_size > 5000


def test_maps_compare_the_model_before_and_after_training(trained, tmp_path):
    folder, training = trained
    results = run(
        "06_embedding_maps",
        tmp_path,
        run_dir=str(folder / "03_train"),
        classes='["redsquare", "purplemoon"]',
        max_thumbnails=5,
    )
    assert_sound(results)
    hits, sphere = results["metrics"]["hit@1"], results["metrics"]["sphere"]
    assert hits["after training"] == training["metrics"]["zeroshot"]["hit@1"]
    for texts in ("captions", "class prompts"):
        before, after = sphere[texts]["before training"], sphere[texts]["after training"]
        assert before["modality_gap"] != after["modality_gap"]
        assert after["alignment"] == pytest.approx(2 - 2 * after["pair_cosine"]["value"], rel=1e-5)
    assert sphere["captions"]["after training"]["pair_cosine"]["n"] == 3 * 32
    page = (tmp_path / "06_embedding_maps" / results["extra"]["map"]).read_text()
    assert page.count("data:image/jpeg;base64,") == results["extra"]["thumbnails"] == 5
    assert results["extra"]["classes_in_colour"] == ["redsquare", "purplemoon"]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory, tiny_settings):
    """A run as 03 leaves it of pairs of one's own: no labelled images, splits drawn."""
    folder, rng = tmp_path_factory.mktemp("unlabelled"), np.random.default_rng(0)
    rows, colours = ["image,caption"], {"red": (220, 40, 40), "blue": (40, 40, 220)}
    for number in range(60):
        colour = list(colours)[number % 2]
        noise = rng.integers(0, 60, (32, 32, 3)) + np.array(colours[colour])
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,a {colour} card with the number {number}")
    (folder / "cards.csv").write_text("\n".join(rows))
    settings = tiny_settings | {"manifest": str(folder / "cards.csv"), "zeroshot_manifest": None}
    settings |= {"split_shares": {"train": 0.5, "test": 0.5}, "max_steps": 2}
    config = RunConfig(**settings, output_dir=str(folder / "run"))
    zk.train(config)
    return config


def test_images_without_labels_are_named_by_their_captions(unlabelled):
    """Each an own class, or words in the captions; 05 and 06 once refused such a run."""
    pairs, words = zk.evaluation.images_to_name(unlabelled)
    assert pairs.class_names == tuple(group[0] for group in pairs.captions)
    assert pairs.labels.tolist() == list(range(len(pairs)))
    assert "each image is a class of its own" in words
    run = zk.load_run(unlabelled.output_dir)
    plain = unlabelled.model_copy(update={"prompt_templates": "none"})
    result = zk.evaluation.rank_labelled_images(run.model, plain, pairs=pairs)
    named = zk.evaluation.zeroshot_metrics(result)["hit@1"]["value"]
    recall = zk.evaluation.evaluate_retrieval(run.model, plain)["image_to_text"]["recall@1"]
    assert named == recall["value"]  # naming an image by its own caption is retrieval
    pairs, words = zk.evaluation.images_to_name(unlabelled, ["red", "blue", "green"])
    assert pairs.class_names == ("red", "blue", "green")
    assert all(f"a {pairs.class_names[p.label]} card" in p.captions[0] for p in pairs)
    assert words.endswith(f"{len(pairs)} of {len(pairs)} images name just one")
    few, words = zk.evaluation.images_to_name(unlabelled, ["red", "number"])
    assert {p.label for p in few} == {1}  # the red ones name both, and are left out
    assert len(few) < len(pairs)
    with pytest.raises(
        ValueError, match=r"the captions of 0 of \d+ images of split 'test' of cards"
    ):
        zk.evaluation.images_to_name(unlabelled, ["imagenet1k"])
    labelled = RunConfig(zeroshot_manifest="toy")
    with pytest.raises(ValueError, match="the classes of zeroshot_manifest='toy' are its own"):
        zk.evaluation.images_to_name(labelled, ["red"])


def test_a_run_without_labelled_images_is_evaluated(unlabelled, tmp_path):
    settings = {"run_dir": unlabelled.output_dir, "class_names": ["red", "blue"]}
    settings |= {"label_spaces": ["own"], "n_query": 1, "shots": [1], "prompt_sets": ["none"]}
    results = run("05_zero_shot_evaluation", tmp_path, **settings)
    assert_sound(results)
    assert results["metrics"]["zeroshot"]["hit@1"]["chance"] == 0.5
    assert "name just one" in results["extra"]["truth"]
    assert "name just one" in results["headline"]["sentence"]


def test_a_run_without_labelled_images_is_mapped(unlabelled, tmp_path):
    settings = {"run_dir": unlabelled.output_dir, "max_thumbnails": 4}
    results = run("06_embedding_maps", tmp_path, **settings)
    assert_sound(results)
    hit = results["metrics"]["hit@1"]["after training"]
    assert hit["chance"] == pytest.approx(1 / hit["n"])
    assert results["metrics"]["precision@10"] == {}  # no class has two images
    assert "class of its own" in results["headline"]["sentence"]


def test_a_run_without_labelled_images_is_explored(unlabelled, tmp_path):
    settings = {"run_dir": unlabelled.output_dir, "n_pairs": 4, "max_images": 6}
    results = run("07_explore", tmp_path, **settings)
    assert_sound(results)
    assert results["extra"]["first class"] in zk.load_label_space("imagenet1k").class_names


def test_ablation_sweeps_temperatures_between_two_limits(tmp_path, tiny):
    results = run(
        "04_temperature_ablation",
        tmp_path,
        **tiny,
        preset="toy",
        max_steps=2,
        seeds=[0, 1],
        temperatures="[0.01, 1.0]",
        jobs=1,
    )
    assert_sound(results)
    summary, entropy = results["metrics"]["summary"], results["metrics"]["target_entropy"]
    assert {"one-hot", "uniform", "T 0.01 w 0.5", "T 1.0 w 0.5"} <= summary.keys()
    assert entropy["T 0.01 w 0.5"]["value"] < entropy["T 1.0 w 0.5"]["value"]
    assert entropy["uniform"]["value"] == pytest.approx(math.log(tiny["batch_size"]), rel=1e-3)


def test_comparison_tabulates_objectives_over_seeds(tmp_path, tiny):
    results = run(
        "08_compare_objectives",
        tmp_path,
        **tiny,
        preset="toy",
        max_steps=2,
        seeds="[0, 1]",
        objectives=["InfoNCE", "transport"],
        caption_noises="[0, 0.5]",
    )
    assert_sound(results)
    found = results["metrics"]["retrieval text_to_image recall@10"]
    assert found["scores"].keys() == {"0", "0.5"}
    scores, kept = found["scores"]["0.5"], found["kept"]["0.5"]
    assert scores.keys() == kept.keys() == {"InfoNCE", "transport"}
    difference = scores["transport"]["value"] - scores["InfoNCE"]["value"]
    assert found["differences"]["0.5"]["transport"]["value"] == pytest.approx(difference)
    assert scores["InfoNCE"]["n"] == 2
    assert results["figures"].keys() == {"comparison", "differences", "kept"}
    assert (tmp_path / "08_compare_objectives" / "runs.csv").is_file()


@pytest.mark.parametrize("name", ["04_temperature_ablation", "08_compare_objectives"])
def test_a_sweep_decides_over_five_seeds_under_towers_that_stay_frozen(name):
    declared = papermill.inspect_notebook(by_name(name))
    assert len(json.loads(declared["seeds"]["default"])) >= 5
    config = RunConfig.preset(json.loads(declared["preset"]["default"]))
    assert (config.manifest, config.zeroshot_manifest) == ("toy", "toy")
    assert (config.image_tower, config.text_tower) == ("frozen", "frozen")


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("01_data", {"max_imagse": 9}, "did you mean max_images"),
        ("01_data", {"max_images": 0}, "max_images=0: must be a whole number of at least 1"),
        ("01_data", {"ledger": "nowhere"}, "nowhere: no such file"),
        ("03_train", {"epocs": 3}, "epocs=3: no such parameter; did you mean epochs"),
        ("03_train", {"resume": "perhaps"}, "resume='perhaps': Input should be a valid boolean"),
        ("00_quickstart", {"epochs": 0}, "epochs=0: Input should be greater than or equal to 1"),
        ("05_zero_shot_evaluation", {"run_dri": "x"}, "did you mean run_dir"),
        ("05_zero_shot_evaluation", {"run_dir": "nowhere"}, "run_dir='nowhere': no run with"),
        ("05_zero_shot_evaluation", {"prompt_sets": ["clip8"]}, "did you mean clip80"),
        ("05_zero_shot_evaluation", {"label_spaces": "own"}, "label_spaces='own': must be a list"),
        ("03_train", {"held_out_split": "tset"}, "held_out_split='tset': 'toy' has no such split"),
        ("04_temperature_ablation", {"temprature": 1}, "did you mean temperatures"),
        ("04_temperature_ablation", {"metric": "hit@1"}, "metric='hit@1' is nothing that runs"),
        ("02_encoders", {"image_encodrs": ["x"]}, "did you mean image_encoders"),
        ("02_encoders", {"max_images": "many"}, "max_images='many': must be a whole number"),
        ("06_embedding_maps", {"max_thumbnail": 3}, "did you mean max_thumbnails"),
        ("06_embedding_maps", {"max_thumbnails": 0}, "max_thumbnails=0: must be a whole number"),
        ("07_explore", {"n_pair": 3}, "did you mean n_pairs"),
        ("07_explore", {"class_names": "cat"}, "class_names='cat': must be a list"),
        ("08_compare_objectives", {"seeds": "three"}, "seeds='three': must be a list such as"),
        ("08_compare_objectives", {"objectives": ["InfoNEC"]}, "did you mean InfoNCE"),
        ("08_compare_objectives", {"caption_noises": [20]}, "are numbers between 0 and 1"),
    ],
)
def test_a_wrong_parameter_stops_in_the_first_cells(tmp_path, name, parameters, message):
    (tmp_path / "begun").mkdir()  # a run that has its settings, but no weights yet
    (tmp_path / "begun" / "config.json").write_text(RunConfig().model_dump_json())
    begun = {"run_dir": str(tmp_path / "begun")} if name[:2] in ("05", "06", "07") else {}
    with pytest.raises(papermill.PapermillExecutionError, match=re.escape(message)) as error:
        run(name, tmp_path, **begun | parameters)
    assert error.value.exec_count <= 4


def test_the_commands_exist_that_the_readme_promises():
    readme = (ROOT / "README.md").read_text()
    assert "papermill notebooks/03_train.ipynb out.ipynb -p epochs 32" in readme
    assert all(f"notebooks/{path.name}" in readme for path in NOTEBOOKS)
