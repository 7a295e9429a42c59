"""One pass over the images: the same figures as all scores at once, whatever interrupts it."""

import copy
import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from zslkit.config import RunConfig
from zslkit.data.pairs import open_pairs
from zslkit.data.source import Groups
from zslkit.encoders.dual import build_dual_encoder
from zslkit.evaluation.evaluator import rank_labelled_images, zeroshot_metrics
from zslkit.evaluation.metrics import reliability
from zslkit.evaluation.protocols import risk_coverage
from zslkit.evaluation.questions import evaluate_run, evaluate_stream, pose
from zslkit.evaluation.retrieval import embed_images
from zslkit.evaluation.stream import Asked, rank_images
from zslkit.zeroshot.answer_keys import POLICIES
from zslkit.zeroshot.class_bank import build_class_bank
from zslkit.zeroshot.hierarchy import Hierarchy
from zslkit.zeroshot.label_spaces import LabelSpace, from_names, own_label_space
from zslkit.zeroshot.ranking import class_probabilities

SMALL = {"batch_size": 3, "block_size": 8}


@pytest.fixture(scope="module")
def config(tiny_settings):
    return RunConfig(**tiny_settings)


@pytest.fixture(scope="module")
def model(config):
    torch.manual_seed(0)
    return build_dual_encoder(config).eval()


@pytest.fixture
def pairs(config):
    return open_pairs(config.manifest, "test")


@pytest.fixture
def large(pairs):
    """The classes of the pairs among others, two of which have the name of one."""
    names = [*pairs.class_names, *(f"thing {i}" for i in range(40))]
    ids = [*pairs.class_names, *(f"t{i}" for i in range(40)), "again"]
    names = [(name,) for name in [*names, pairs.class_names[3]]]
    return LabelSpace("large", tuple(ids), tuple(names), ("",) * len(ids), "test")


def test_figures_are_those_of_all_scores_at_once(model, config, pairs, tmp_path):
    questions = pose(model, pairs, [own_label_space(pairs)], {"simple": "simple"})
    (facts,) = evaluate_stream(model, pairs, questions, tmp_path, **SMALL)["questions"].values()
    expected = zeroshot_metrics(rank_labelled_images(model, config, split="test"))
    for policy in POLICIES:
        for name, value in expected.items():
            assert facts["hits"][policy][name] == pytest.approx(value)
    result = rank_labelled_images(model, config, split="test")
    sure = class_probabilities(result.embeddings, result.bank, result.scores, model.logit_scale)
    right = result.indices[:, 0].numpy() == result.labels
    assert facts["certainty"] == pytest.approx({
        "calibration error": reliability(sure[:, 0], right)["ece"],
        "area under risk over coverage": risk_coverage(sure[:, 0], right).area,
    }, abs=1e-5)  # fmt: skip
    assert facts["n"] == len(pairs) == 32
    assert facts["left out"] == {"images": 0, "classes": []}
    assert facts["label space"]["sha256"] == own_label_space(pairs).checksum


def test_ranks_scores_and_probabilities_are_those_of_the_whole_matrix(
    model, config, pairs, tmp_path
):
    bank = build_class_bank(model, pairs.class_names, "simple")
    asked = Asked(np.array([0, 0, 9, 31]), np.array([2, 1, 0, 5]))
    readable, rankings = rank_images(
        model, pairs, {"x": bank}, {"x": 7}, tmp_path, asked={"x": asked}, **SMALL
    )
    images, _ = embed_images(model, pairs, config)
    scores = images @ bank.embeddings.T
    found = rankings["x"]
    assert readable.tolist() == list(range(32))
    torch.testing.assert_close(found.scores, scores.topk(7).values)
    torch.testing.assert_close(scores.gather(1, found.indices.long()), found.scores)
    torch.testing.assert_close(found.totals, (model.logit_scale.detach() * scores).logsumexp(1))
    torch.testing.assert_close(found.asked, scores[asked.images, asked.rows])


def test_several_label_spaces_and_templates_take_one_pass(
    model, pairs, large, tmp_path, monkeypatch
):
    read = []
    plain = type(pairs).read_pixels
    monkeypatch.setattr(
        type(pairs), "read_pixels", lambda self, i: read.append(i) or plain(self, i)
    )
    spaces, sets = [own_label_space(pairs), large], {"none": "none", "mine": ["some {}"]}
    questions = pose(model, pairs, spaces, sets)
    found = evaluate_stream(model, pairs, questions, tmp_path, **SMALL)["questions"]
    assert list(found) == ["tiny / none", "tiny / mine", "large / none", "large / mine"]
    assert sorted(read) == list(range(32))
    chance = found["large / mine"]["hits"]["strict"]["hit@1"]["chance"]
    assert chance == 1 / (len(pairs.class_names) + 41)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["questions"] == found


def test_two_label_spaces_of_one_name_are_refused(model, pairs, large):
    with pytest.raises(ValueError, match="two label spaces are called 'large'"):
        pose(model, pairs, [large, own_label_space(pairs), large], {"none": "none"})


def test_policies_differ_where_names_are_shared(model, pairs, large, tmp_path):
    label = int(pairs.labels[0])
    ids = list(large.ids)
    names = [("same",) if i in (label, label + 1) else group for i, group in enumerate(large.names)]
    space = LabelSpace("twins", tuple(ids), tuple(names), ("",) * len(ids), "test")
    questions = pose(model, pairs, [space], {"none": "none"})
    (facts,) = evaluate_stream(model, pairs, questions, tmp_path, **SMALL)["questions"].values()
    hits = [facts["hits"][policy]["hit@10"]["value"] for policy in POLICIES]
    assert hits[0] <= hits[1] == hits[2]
    assert facts["classes"] == facts["names"] + 2


def test_every_class_has_its_row(model, pairs, tmp_path):
    questions = pose(model, pairs, [own_label_space(pairs)], {"none": "none"})
    facts = evaluate_stream(model, pairs, questions, tmp_path, **SMALL)["questions"]
    with (tmp_path / "tiny___none.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["id"]: int(row["n"]) for row in rows} == {
        pairs.class_names[c]: n for c, n in enumerate(np.bincount(pairs.labels)) if n
    }
    mean = sum(int(row["n"]) * float(row["hit@5"]) for row in rows) / 32
    assert facts["tiny / none"]["hits"]["strict"]["hit@5"]["value"] == pytest.approx(mean, abs=1e-5)


def test_classes_that_a_space_lacks_are_left_out_and_named(model, pairs, tmp_path):
    present = np.unique(pairs.labels)
    space = from_names("part", [pairs.class_names[c] for c in present[1:]], "test")
    questions = pose(model, pairs, [space], {"none": "none"})
    (facts,) = evaluate_stream(
        model, pairs, questions, tmp_path, ks=[1], **SMALL
    )["questions"].values()  # fmt: skip
    lost = int((pairs.labels == present[0]).sum())
    assert facts["left out"]["images"] == lost
    assert pairs.class_names[present[0]] in facts["left out"]["classes"]
    assert facts["n"] == facts["hits"]["strict"]["hit@1"]["n"] == 32 - lost


def test_unreadable_images_are_named_and_not_counted(model, pairs, tmp_path, monkeypatch):
    from zslkit.data.images import BrokenImageError

    plain = type(pairs).read_pixels

    def read(self, i):
        if i in (0, 1, 2, 8):  # a whole batch among them
            raise BrokenImageError("torn")
        return plain(self, i)

    monkeypatch.setattr(type(pairs), "read_pixels", read)
    questions = pose(model, pairs, [own_label_space(pairs)], {"none": "none"})
    found = evaluate_stream(model, pairs, questions, tmp_path, max_unreadable=0.2, **SMALL)
    assert found["images"]["unreadable"] == pairs.keys[[0, 1, 2, 8]].tolist()
    assert found["questions"]["tiny / none"]["n"] == 28
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    with pytest.raises(ValueError, match=r"4 of 32 images are unreadable .* limit of 1.0%"):
        evaluate_stream(model, pairs, questions, tmp_path, **SMALL)


def test_another_evaluation_in_the_same_folder_is_refused(model, pairs, tmp_path):
    bank = build_class_bank(model, pairs.class_names, "none")
    rank_images(model, pairs, {"x": bank}, {"x": 2}, tmp_path, **SMALL)
    before = results(tmp_path)
    with pytest.raises(ValueError, match=r"holds parts of another evaluation \(kept differ\)"):
        rank_images(model, pairs, {"x": bank}, {"x": 3}, tmp_path, **SMALL)
    with torch.no_grad():
        other = copy.deepcopy(model)
        other.text_projection[1].bias[0] += 1e-3
    with pytest.raises(ValueError, match=r"holds parts of another evaluation \(model differ\)"):
        rank_images(other, pairs, {"x": bank}, {"x": 2}, tmp_path, **SMALL)
    assert results(tmp_path) == before


def test_a_part_that_is_torn_is_made_again(model, pairs, tmp_path):
    bank = build_class_bank(model, pairs.class_names, "none")
    _, whole = rank_images(model, pairs, {"x": bank}, {"x": 2}, tmp_path, **SMALL)
    part = tmp_path / "part-000002.safetensors"
    part.write_bytes(part.read_bytes()[:-10])
    _, again = rank_images(model, pairs, {"x": bank}, {"x": 2}, tmp_path, **SMALL)
    assert all(map(torch.equal, again["x"], whole["x"]))


@pytest.mark.parametrize(
    ("ks", "match"), [([], "numbers from 1 up"), ([0], "numbers from 1 up"), ([49], "48 classes")]
)
def test_ks_that_make_no_sense_are_refused(ks, match, model, pairs, tmp_path):
    questions = pose(model, pairs, [own_label_space(pairs)], {"none": "none"})
    with pytest.raises(ValueError, match=match):
        evaluate_stream(model, pairs, questions, tmp_path, ks=ks, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_space_without_any_of_the_classes_is_refused(model, pairs, tmp_path):
    questions = pose(model, pairs, [from_names("x", list("abcdefghijk"), "test")], {"none": "none"})
    with pytest.raises(ValueError, match="x / none: no image shows a class of this label space"):
        evaluate_stream(model, pairs, questions, tmp_path, **SMALL)


def test_a_bank_of_other_names_is_refused(model, pairs, tmp_path):
    (question,) = pose(model, pairs, [own_label_space(pairs)], {"none": "none"}).values()
    wrong = question._replace(bank=build_class_bank(model, ["a", "b"], "none"))
    with pytest.raises(ValueError, match="x: the bank does not hold the 48 names"):
        evaluate_stream(model, pairs, {"x": wrong}, tmp_path, **SMALL)


def test_images_without_classes_are_refused(model, pairs, tmp_path):
    questions = pose(model, pairs, [own_label_space(pairs)], {"none": "none"})
    pairs.positives = None
    with pytest.raises(ValueError, match="'tiny', split 'test': its images have no classes"):
        evaluate_stream(model, pairs, questions, tmp_path, **SMALL)
    with pytest.raises(ValueError, match="'tiny', split 'test': its images have no classes"):
        own_label_space(pairs)


def test_definitions_fill_prompts(model, pairs):
    names = ("a",), ("b",), ("a",)
    space = LabelSpace("x", ("1", "2", "3"), names, ("first", "", "third"), "test")
    sets = {"said": ["{}", "{}: {description}"]}
    (question,) = pose(model, pairs, [space], sets).values()
    told = {"a": ("first", "third"), "b": ()}
    expected = build_class_bank(model, ["a", "b"], sets["said"], descriptions=told)
    assert torch.equal(question.bank.embeddings, expected.embeddings)
    written = {"b": "by hand"}
    (question,) = pose(model, pairs, [space], sets, descriptions=written).values()
    expected = build_class_bank(model, ["a", "b"], sets["said"], descriptions={**told, **written})
    assert torch.equal(question.bank.embeddings, expected.embeddings)


KILLED = """
import os, signal, sys
from zslkit import __main__
from zslkit.evaluation import stream
whole, count = stream._write_part, int(sys.argv.pop(1))
def write(*given):
    global count
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    count -= 1
    whole(*given)
stream._write_part = write
stream.rank_images.__wrapped__.__kwdefaults__.update(batch_size=3, block_size=8)
__main__.main()
"""


@pytest.fixture(scope="module")
def run_dir(tiny_settings, tmp_path_factory):
    from zslkit.trainer import train

    folder = tmp_path_factory.mktemp("run")
    train(RunConfig(**tiny_settings, output_dir=str(folder)))
    return folder


def evaluate(run_dir, output_dir, parts_before_kill=-1, starter=()):
    script = output_dir.parent / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, *starter, str(script), str(parts_before_kill), "evaluate"]
    command += [str(run_dir), "--label-space", "own", "--label-space", "cifar10+"]
    command[-1] = str(output_dir.parent / "more.txt")
    command += ["--templates", "none", "--templates", "simple", "--output-dir", str(output_dir)]
    names = own_label_space(open_pairs(RunConfig.model_validate_json(
        (run_dir / "config.json").read_text()).manifest, "test")).class_names  # fmt: skip
    (output_dir.parent / "more.txt").write_text("\n".join([*names, "gate", "mill"]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def results(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_killed_and_resumed_gives_the_same_files(run_dir, tmp_path):
    whole = evaluate(run_dir, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = evaluate(run_dir, tmp_path / "cut", parts_before_kill=2)
    assert killed.returncode == -signal.SIGKILL
    assert results(tmp_path / "cut") == {}
    assert len(list((tmp_path / "cut" / "parts").glob("part-*"))) == 2
    resumed = evaluate(run_dir, tmp_path / "cut", parts_before_kill=2)  # only two are left
    assert resumed.returncode == 0, resumed.stderr
    assert results(tmp_path / "cut") == results(tmp_path / "whole")
    assert len(results(tmp_path / "whole")) == 5  # one page, and a table for each question
    assert json.loads(resumed.stdout) == json.loads(whole.stdout)


def test_two_processes_share_the_work(run_dir, tmp_path):
    alone = evaluate(run_dir, tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # each may write two of the four parts
    both = evaluate(run_dir, tmp_path / "both", parts_before_kill=2, starter=starter)
    assert both.returncode == 0, both.stderr
    assert results(tmp_path / "both") == results(tmp_path / "alone")


def test_own_classes_are_found_among_others(model, config, pairs, tmp_path):
    found = evaluate_run(model, config, ["own", "own+cifar10"], {"none": "none"}, tmp_path)
    alone, among = found["questions"].values()
    assert (alone["classes"], among["classes"]) == (48, 58)
    assert among["label space"]["name"] == "tiny+cifar10"
    assert alone["hits"]["strict"]["hit@1"]["value"] >= among["hits"]["strict"]["hit@1"]["value"]
    none = config.model_copy(update={"zeroshot_manifest": None})
    with pytest.raises(ValueError, match="zeroshot_manifest=None: give labelled images"):
        evaluate_run(model, none, ["own"], {"none": "none"}, tmp_path)


def test_classes_seen_in_captions_are_told_from_unseen_ones(model, pairs, tmp_path):
    names = pairs.class_names
    often = [[f"a {names[c]}"] * n for c, n in zip(pairs.labels[:2], (1, 15), strict=True)]
    questions = pose(model, pairs, [own_label_space(pairs)], {"none": "none", "simple": "simple"})

    class Once(list):
        def __iter__(self):
            yield from [self.pop() for _ in range(len(self))]

    found = evaluate_stream(model, pairs, questions, tmp_path, captions=Once(often), **SMALL)
    sides = [facts["seen in captions"].keys() for facts in found["questions"].values()]
    assert sides[0] == sides[1]  # the captions were read once for both
    seen = found["questions"]["tiny / none"]["seen in captions"]
    groups = seen["by captions that name the class"]
    assert list(groups) == ["0", "1–9", "10–99"]
    assert sum(group["n"] for group in groups.values()) == 32
    assert seen["seen classes"]["n"] == 2
    assert seen["unseen classes"]["n"] == len(np.unique(pairs.labels)) - 2
    s, u = (seen[f"{side} classes"]["value"] for side in ("seen", "unseen"))
    assert seen["harmonic mean"] == pytest.approx(2 * s * u / (s + u) if s + u else 0)


def test_average_precision_counts_verified_labels_only(model, config, pairs, tmp_path):
    rng = np.random.default_rng(0)
    labels = [rng.permutation(6)[:4] for _ in pairs]
    ends = np.arange(1, 33) * 2
    for side, part in (("positives", slice(0, 2)), ("negatives", slice(2, 4))):
        values = np.concatenate([row[part] for row in labels])
        setattr(pairs, side, Groups(values, ends - 2, ends))
    questions = pose(model, pairs, [own_label_space(pairs)], {"none": "none"})
    (facts,) = evaluate_stream(model, pairs, questions, tmp_path, **SMALL)["questions"].values()
    images, _ = embed_images(model, pairs, config)
    scores = (images @ questions["tiny / none"].bank.embeddings.T).numpy()
    expected = []
    for c in range(6):
        judged = [i for i, row in enumerate(labels) if c in row]
        truth = [c in labels[i][:2] for i in judged]
        expected.append(average_precision_score(truth, scores[judged, c]))
    found = facts["mean average precision"]
    assert found["value"] == pytest.approx(np.mean(expected))
    assert (found["classes"], found["n"]) == (6, 128)
    # an image is named right by either of its two classes
    best = scores.argmax(axis=1)
    either = np.mean([b in row[:2] for b, row in zip(best, labels, strict=True)])
    assert facts["hits"]["strict"]["hit@1"]["value"] == pytest.approx(either)


def test_errors_are_measured_in_a_hierarchy(model, pairs, tmp_path):
    own = own_label_space(pairs)
    colours = {name: (name[:3],) for name in own.ids}  # a class lies under its first letters
    tree = Hierarchy(colours | {above: ("thing",) for (above,) in colours.values()})
    questions = pose(
        model, pairs, [own, from_names("more", [*own.ids, "x"], "test")], {"n": "none"}
    )
    found = evaluate_stream(model, pairs, questions, tmp_path, hierarchy=tree, **SMALL)["questions"]
    facts = found["tiny / n"]["hierarchy"]
    assert facts["precision@1"] == pytest.approx(
        found["tiny / n"]["hits"]["strict"]["hit@1"]["value"]
    )
    assert 2 <= facts["mean distance of errors"] <= 4
    assert facts["errors without a common ancestor"] == 0
    assert "hierarchy" not in found["more / n"]  # x is in no tree
