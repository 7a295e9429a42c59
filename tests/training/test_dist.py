"""Two real processes over gloo on the loopback must compute what one process computes."""

import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zslkit.checkpoint import load_run
from zslkit.config import RunConfig
from zslkit.encoders.dual import build_dual_encoder
from zslkit.kernels.batchnorm import synchronised
from zslkit.objective import Embedded, training_loss
from zslkit.trainer import train
from zslkit.training import dist
from zslkit.training.batches import TrainingData

PATIENCE = 120  # seconds until processes that wait for each other are ended
PAIRS = 8
INTRA_MODAL = {"image_similarity_weight": 0.5, "text_similarity_weight": 0.3}
OBJECTIVES = {
    "none": {},
    "label_smoothing": {},
    "teacher": {"teacher_temperature": 0.2, **INTRA_MODAL},
    "transport": INTRA_MODAL,
    "trusted": {"soft_targets": "teacher", "teacher_temperature": 0.2},
}


def run_settings(tiny_settings, folder, **changes):
    """A run of five steps on features of frozen towers: what differs is only the arithmetic."""
    return {
        **tiny_settings,
        **{"output_dir": str(folder), "image_tower": "frozen", "text_tower": "frozen"},
        **{"epochs": 2, "max_steps": 5, "optimizer": "sgd", "learning_rate": 0.1},
        **{"cache_dir": str(folder.parent / "cache"), "warmup_steps": 0, **changes},
    }


def trained_towers(folder, **changes):
    """BatchNorm, dropout and a moving average: everything that can differ between processes."""
    return {
        **{"image_tower": "train", "text_tower": "train", "image_dropout": 0.2},
        **{"pair_trust": True, "pair_trust_epoch": 1, "cache_dir": None},
        **{"output_dir": str(folder), "ema_decay": 0.9, "checkpoint_every": 2, "epochs": 2},
        **{"max_steps": 6, "optimizer": "adamw", "learning_rate": 1e-3, **changes},
    }


def normalised(rows, channels_only=False):
    """Outputs, gradients and running statistics of BatchNorm for some rows of a batch."""
    generator = torch.Generator().manual_seed(0)
    shape = (PAIRS, 4) if channels_only else (PAIRS, 4, 3, 2)
    whole, upstream = (torch.randn(shape, generator=generator).double() + 3 for _ in "xy")
    norm = (nn.BatchNorm1d if channels_only else nn.BatchNorm2d)(4, momentum=0.3).double()
    nn.init.normal_(norm.weight, generator=generator)
    x = whole[rows].requires_grad_()
    with synchronised():
        y = norm(x)
    (y * upstream[rows]).sum().backward()
    parameters = [norm.weight, norm.bias]
    dist.average_gradients(parameters)
    return {
        "rows": [y.detach(), x.grad],
        "sums": [p.grad * dist.world_size() for p in parameters],
        "statistics": [norm.running_mean, norm.running_var, norm.num_batches_tracked.double()],
    }


def loss_and_gradients(kind, rows):
    """Gradients of one batch, of which this process has ``rows``, through linear towers."""
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(PAIRS, width, generator=generator)[rows] for width in (6, 5)]
    weights = [torch.randn(4, width, generator=generator) for width in (6, 5, 6, 5)]
    image, text, *teacher = (nn.Parameter(weight) for weight in weights)
    scales = [nn.Parameter(torch.tensor(value)) for value in (5.0, 3.0)]

    def embedded(towers):
        pairs = zip(features, towers, strict=True)
        return Embedded(*(F.normalize(x @ tower.T, dim=1) for x, tower in pairs))

    config = RunConfig(**{"soft_targets": kind, **OBJECTIVES[kind]})
    with torch.no_grad():
        guide = embedded(teacher)
    # the halves differ in their mean: what is normalised per process weighs them alike
    trust = torch.arange(1.0, PAIRS + 1)[rows] / PAIRS if kind == "trusted" else None
    loss, _ = training_loss(embedded((image, text)), guide, *scales, config, 0.5, trust)
    loss.backward()
    parameters = [image, text, *scales]
    dist.average_gradients(parameters)
    # plain InfoNCE leaves the second scale alone
    zero = torch.tensor(0.0)
    return loss.item(), [zero if p.grad is None else p.grad for p in parameters]


def in_two_processes(rank, port, folder, settings):
    """Do all that needs a second process and write what came of it."""
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), TQDM_DISABLE="1")
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.start(torch.device("cpu"))
    out = {"rank": dist.rank(), "world_size": dist.world_size()}
    half = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
    out["objectives"] = {kind: loss_and_gradients(kind, half) for kind in OBJECTIVES}
    out["smallest"] = dist.smallest(7 - rank)
    out["any_process"] = [dist.any_process(flag) for flag in (False, rank == 1, True)]
    local = torch.full((2, 3), float(rank), requires_grad=True)
    gathered = dist.gather(local)
    # each process weighs the rows its own way: both weights must reach the owner
    (gathered * torch.arange(4.0)[:, None] * (rank + 1)).sum().backward()
    out["gathered"], out["gathered_gradient"] = gathered.detach(), local.grad
    unused = nn.Parameter(torch.ones(2))
    if rank == 0:
        unused.grad = torch.full((2,), 3.0)
    dist.average_gradients([unused])
    out["unused"] = unused.grad

    out["normalised"] = [normalised(half, flat) for flat in (False, True)]

    out["weights"] = train(RunConfig(**settings["whole"])).model.state_dict()

    towers = RunConfig(**settings["towers"])
    run = train(towers)
    out["towers"], out["teacher"] = run.model.state_dict(), run.teacher.state_dict()
    out["masks"] = torch.rand(3)

    def stop(run, row):  # Ctrl-C reaches one process only
        if rank == 1 and row["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    cut = towers.model_copy(update={"output_dir": settings["cut"]})
    train(cut, [stop])
    if rank == 0:
        shutil.copytree(settings["cut"], settings["cut"] + " for one")
    on = train(cut.model_copy(update={"resume": True}))
    out["towers on"], out["teacher on"] = on.model.state_dict(), on.teacher.state_dict()
    out["stopped"] = train(RunConfig(**settings["parts"]), [stop]).facts.steps
    resumed = train(RunConfig(**settings["parts"], resume=True))
    out["resumed"] = resumed.model.state_dict()
    out["refused"] = ""
    try:
        train(RunConfig(**{**settings["parts"], "resume": True, "seed": 1}))
    except (ValueError, OSError) as error:
        out["refused"] = str(error)
    torch.save(out, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tiny_settings, tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("dist")
    settings = {
        name: run_settings(tiny_settings, folder / name, checkpoint_every=2)
        for name in ("whole", "parts")
    }
    common = run_settings(tiny_settings, folder / "towers")
    settings["towers"] = common | trained_towers(folder / "towers")
    settings["cut"] = str(folder / "cut")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.start_processes(
        in_two_processes, (port, str(folder), settings), nprocs=2, join=False
    )
    deadline = time.monotonic() + PATIENCE
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)], folder


def test_each_process_knows_its_place(both):
    outs, _ = both
    assert [(out["rank"], out["world_size"]) for out in outs] == [(0, 2), (1, 2)]
    assert (dist.rank(), dist.world_size()) == (0, 1)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_averaged_gradients_equal_those_of_one_process_with_the_whole_batch(both, kind):
    """Traps: the diagonal of another process; gathered rows without, or with doubled, gradients."""
    loss, gradients = loss_and_gradients(kind, slice(None))
    outs, _ = both
    assert sum(out["objectives"][kind][0] for out in outs) / 2 == pytest.approx(loss, rel=1e-5)
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients[:3])
    for out in outs:
        for mine, expected in zip(out["objectives"][kind][1], gradients, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


def test_the_objectives_differ():
    """Else the test above would compare the same thing five times."""
    losses = {round(loss_and_gradients(kind, slice(None))[0], 4) for kind in OBJECTIVES}
    assert len(losses) == len(OBJECTIVES)


def test_gathered_rows_come_in_order_and_every_process_s_gradient_returns(both):
    outs, _ = both
    for rank, out in enumerate(outs):
        assert out["gathered"][:, 0].tolist() == [0, 0, 1, 1]
        own = torch.arange(4.0)[2 * rank : 2 * rank + 2]
        assert out["gathered_gradient"][:, 0].tolist() == (own * (1 + 2)).tolist()


def test_alone_nothing_is_exchanged():
    rows = torch.ones(2, 3)
    assert dist.gather(rows) is rows
    assert dist.smallest(5) == 5
    assert dist.any_process(True)
    assert not dist.any_process(False)
    parameter = nn.Parameter(torch.ones(1))
    dist.average_gradients([parameter])
    assert parameter.grad is None


def test_processes_agree_on_the_smallest_count_and_on_any_flag(both):
    outs, _ = both
    for out in outs:
        assert out["smallest"] == 6
        assert out["any_process"] == [False, True, True]


def test_a_parameter_that_one_process_did_not_use_counts_as_zero_there(both):
    outs, _ = both
    assert all(out["unused"].tolist() == [1.5, 1.5] for out in outs)


def test_two_processes_train_what_one_trains(both, tiny_settings, tmp_path):
    outs, folder = both
    alone = train(RunConfig(**run_settings(tiny_settings, tmp_path / "run"))).model.state_dict()
    start = build_dual_encoder(RunConfig(**run_settings(tiny_settings, tmp_path / "run")))
    for name, expected in alone.items():
        first, second = (out["weights"][name] for out in outs)
        assert torch.equal(first, second), name
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-6, msg=name)
    moved = alone["image_projection.1.weight"] - start.image_projection[1].weight
    assert moved.abs().max() > 1e-3
    for name, tensor in load_run(folder / "whole").model.state_dict().items():
        assert torch.equal(tensor, outs[0]["weights"][name]), name


@pytest.mark.parametrize("flat", [0, 1])
def test_batchnorm_over_both_processes_is_that_of_the_whole_batch(both, flat):
    whole, outs = normalised(slice(None), bool(flat)), both[0]
    halves = [out["normalised"][flat] for out in outs]
    for expected, *parts in zip(whole["rows"], *(h["rows"] for h in halves), strict=True):
        torch.testing.assert_close(torch.cat(parts), expected, rtol=1e-10, atol=1e-12)
    for half in halves:
        for name in ("sums", "statistics"):
            for mine, expected in zip(half[name], whole[name], strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-10, atol=1e-12)


def test_trained_towers_are_one_student_with_one_teacher_and_go_on_bit_for_bit(both):
    outs, folder = both
    for kind in ("towers", "teacher"):
        first, second = (out[kind] for out in outs)
        assert any("running_var" in name for name in first)
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), f"{kind} {name} differs between processes"
            for out in outs:
                assert torch.equal(tensor, out[f"{kind} on"][name]), f"{kind} {name} not resumed"
    assert not torch.equal(outs[0]["masks"], outs[1]["masks"])
    assert "mean_trust" in load_run(folder / "towers").history[-1]


def test_a_run_of_two_processes_goes_on_in_one(both):
    """The same rows make every batch; the weights are equal up to dropout and rounding."""
    folder = both[1]
    config = load_run(folder / "towers").config
    changes = {"output_dir": str(folder / "cut for one"), "resume": True}
    with pytest.raises(ValueError, match=r"number of processes differs \(1, was 2\)"):
        train(config.model_copy(update=changes))
    changes["allow_changed"] = "processes"
    run = train(config.model_copy(update=changes))
    whole = load_run(folder / "towers").history
    assert [row["step"] for row in run.history] == [1, 2, 3, 4, 5, 6]
    assert run.history[:3] == whole[:3]
    assert run.history[3]["loss"] != whole[3]["loss"]  # other dropout masks


def test_processes_share_one_run_folder(both):
    """A second process must not take what the first has just begun for an earlier run."""
    _, folder = both
    run = load_run(folder / "whole")
    assert not (folder / "whole" / "earlier-1").exists()
    assert [row["step"] for row in run.history] == [1, 2, 3, 4, 5]
    assert run.facts.steps == 5


def test_ctrl_c_in_one_process_stops_all_and_all_go_on(both):
    outs, _ = both
    for out in outs:
        assert out["stopped"] == 3
        for name, tensor in out["resumed"].items():
            assert torch.equal(tensor, out["weights"][name]), name


def test_what_one_process_refuses_all_refuse(both):
    """The others would otherwise wait for it for ever."""
    outs, _ = both
    assert "seed=1 (was 0); restore these" in outs[0]["refused"]
    assert "see the error of process 0" in outs[1]["refused"]


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(tiny_settings, monkeypatch):
    monkeypatch.setattr(dist, "world_size", lambda: 3)
    config = RunConfig(**tiny_settings)
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of .* processes, 3"):
        TrainingData(build_dual_encoder(config), config, torch.device("cpu"))


@pytest.mark.parametrize(("device", "chosen"), [("cuda", [3]), ("cuda:1", []), ("cpu", [])])
def test_each_process_takes_a_device_of_its_own(monkeypatch, device, chosen):
    started, taken = [], []
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr("torch.cuda.set_device", taken.append)
    monkeypatch.setattr("torch.distributed.init_process_group", started.append)
    dist.start(torch.device(device))
    assert taken == chosen
    assert started == ["gloo" if device == "cpu" else "cpu:gloo,cuda:nccl"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    dist.start(torch.device(device))
    assert len(started) == 1
