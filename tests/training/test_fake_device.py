"""The whole of training on a ``cuda`` device that nobody has.

Fake tensors know shape, type and device and nothing else: a tensor left on the wrong device, a
number read from the device and a shape that depends on values are errors on a CPU, too.
"""

import inspect
import textwrap
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import zslkit as zk
import zslkit.encoders.small_text
import zslkit.trainer
import zslkit.training.batches
from zslkit.data.sampling import Batch
from zslkit.kernels import blockwise

# copying a fake tensor asks for its address
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")

CUDA = torch.device("cuda:0")
INTRA_MODAL = {"image_similarity_weight": 0.5, "text_similarity_weight": 0.3}
KINDS = {
    "none": {"soft_targets": "none"},
    "sigmoid": {"contrastive_loss": "sigmoid"},
    "label_smoothing": {"soft_targets": "label_smoothing"},
    "teacher": INTRA_MODAL,
    "transport": {"soft_targets": "transport", **INTRA_MODAL},
    "progressive": {"soft_targets": "progressive"},
    "previous": {"teacher": "previous", "generation_epochs": 1},
}
FEATURES = {"image_tower": "frozen", "text_tower": "frozen"}


def to_device(module, device, *_):
    """Move in place: torch would swap tensors, which fake ones do not allow."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                moved = nn.Parameter(value.detach().to(device), requires_grad=value.requires_grad)
                part._parameters[name] = moved
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = value.to(device)
    return module


def backward(outputs, gradients=None, **_):
    """Walk the graph in Python: torch's own engine asks the device for its streams."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    gradients = gradients or [torch.ones_like(output) for output in outputs]
    order, seen, stack = [], set(), [(output.grad_fn, False) for output in outputs]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            stack += [(node, True), *((parent, False) for parent, _ in node.next_functions)]
    waiting = {node: {} for node in order}

    def receive(node, slot, gradient):
        shape = node._input_metadata[slot].shape  # the engine, too, sums what was broadcast
        gradient = gradient if gradient.shape == shape else gradient.sum_to_size(shape)
        waiting[node][slot] = waiting[node][slot] + gradient if slot in waiting[node] else gradient

    for output, gradient in zip(outputs, gradients, strict=True):
        receive(output.grad_fn, output.output_nr, gradient)
    for node in reversed(order):
        given = waiting[node]
        if not given:
            continue
        if hasattr(node, "variable"):  # a leaf
            leaf = node.variable
            assert given[0].device == leaf.device
            leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
            continue
        run = getattr(node, "apply", node)  # functions written in Python are not callable
        results = run(*(given.get(slot) for slot in range(len(node._input_metadata))))
        results = results if isinstance(results, tuple) else (results,)
        for (parent, slot), gradient in zip(node.next_functions, results, strict=False):
            if parent is not None and gradient is not None:
                receive(parent, slot, gradient)


@pytest.fixture
def fake(monkeypatch):
    """Fake tensors everywhere; what needs values (files, engine, streams) is stood in for."""
    reads = []

    def numbers(tensors, of_all=False):
        assert all(tensor.device == CUDA and tensor.shape == () for tensor in tensors.values())
        reads.append([*tensors])
        return dict.fromkeys(tensors, 0.5)

    def batches(pairs, size, **_):
        for start in range(0, len(pairs), size):
            rows = torch.arange(start, start + size)
            rows.numpy = lambda start=start: np.arange(start, start + size)
            pixels = torch.zeros(size, 3, 32, 32, dtype=torch.uint8)
            keys = [*map(str, range(size))]
            yield Batch(pixels, [f"scene {i} of many" for i in range(size)], rows, keys, [])

    class Features(NamedTuple):
        features: Tensor
        broken: tuple = ()

        def readable(self, keys):
            return np.arange(len(keys))

    def features(model, items, config, words):
        return Features(torch.zeros(len(items), 96 if "images" in words else 128))

    monkeypatch.setattr(nn.Module, "to", to_device)
    monkeypatch.setattr(Tensor, "backward", lambda loss: backward(loss))
    monkeypatch.setattr(torch.autograd, "backward", backward)
    monkeypatch.setattr(zslkit.trainer, "choose_device", lambda name: CUDA)
    monkeypatch.setattr(zslkit.trainer, "numbers", numbers)
    monkeypatch.setattr(zslkit.trainer, "fingerprint_inputs", lambda config, pairs: {})
    monkeypatch.setattr(zslkit.trainer, "save_checkpoint", lambda *parts: None)
    monkeypatch.setattr(zslkit.training.batches, "iterate_batches", batches)
    monkeypatch.setattr(zslkit.training.batches, "fingerprint", lambda tower: "")
    monkeypatch.setattr(zslkit.training.batches, "tower_features", features)
    monkeypatch.setattr("zslkit.data.cache.tower_features", features)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, memo: mode, raising=False)
    with FakeTensorMode():
        yield reads


def train(tiny_settings, folder, **changes):
    settings = {**tiny_settings, "output_dir": str(folder), "epochs": 2, "max_steps": 3}
    settings |= {"batch_size": 16, "image_dropout": 0.1}
    return zk.train(zk.RunConfig(**settings | changes))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_on_the_device_and_reads_it_twice_a_step(
    kind, fake, tiny_settings, tmp_path
):
    run = train(tiny_settings, tmp_path / "run", **KINDS[kind])
    assert run.facts.steps == 3
    assert len(fake) == 2 * 3
    assert {"loss", "contrastive_loss", "gradient_norm"} <= {*fake[0]}
    assert fake[1] == ["logit_scale", "distillation_scale"]
    assert all(tensor.device == CUDA for tensor in run.model.state_dict().values())


@pytest.mark.parametrize("kind", ["teacher", "transport", "sigmoid", "label_smoothing"])
def test_blocks_and_features_of_frozen_towers_do_too(
    kind, fake, tiny_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(blockwise, "_SMALL", 1)
    train(tiny_settings, tmp_path / "run", **KINDS[kind], **FEATURES)
    assert len(fake) == 2 * 3


def test_trust_reaches_the_device(fake, tiny_settings, tmp_path, monkeypatch):
    pairs = 32
    monkeypatch.setattr(
        zslkit.training.batches.TrainingData, "estimate_trust", lambda *_: torch.ones(pairs)
    )
    trust = {"pair_trust": True, "pair_trust_epoch": 1}
    train(tiny_settings, tmp_path / "run", **trust, **FEATURES)
    assert "mean_trust" not in fake[0]
    assert "mean_trust" in fake[-2]


def without_move(function, line):
    """Compile a function again with ``.to(...)`` taken out of the one line that holds ``line``."""
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(line) == 1
    names = function.__globals__
    exec(compile(source.replace(line, line.partition(".to(")[0]), "<changed>", "exec"), names)
    return names.pop(function.__name__)


@pytest.mark.parametrize(
    ("owner", "name", "line", "changes"),
    [
        (zslkit.training.batches.TrainingData, "_from_images",
         "batch.pixels.to(self.device, non_blocking=True)", {}),
        (zslkit.training.batches.TrainingData, "_from_features",
         "_take(self.image_features, rows).to(self.device)", FEATURES),
        (zslkit.training.batches.TrainingData, "_texts",
         "_take(self.text_features, self.feature_of[captions]).to(self.device)", FEATURES),
        (zslkit.encoders.small_text.SmallTextEncoder, "forward",
         "padding_value=-1).to(device)", {}),
    ],
)  # fmt: skip
def test_a_move_to_the_device_that_is_taken_out_is_found(
    owner, name, line, changes, fake, tiny_settings, tmp_path, monkeypatch
):
    function = getattr(owner, name)
    before = function.__globals__.get(name)
    monkeypatch.setattr(owner, name, without_move(function, line))
    assert function.__globals__.get(name) is before
    with pytest.raises(RuntimeError, match=r"device") as found:
        train(tiny_settings, tmp_path / "run", **changes)
    assert "cpu" in str(found.value)


def test_a_number_read_in_the_step_is_found(fake, tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(
        zslkit.trainer, "clip_gradients", lambda parameters, norm: parameters[0].sum().item()
    )
    with pytest.raises(DataDependentOutputException):
        train(tiny_settings, tmp_path / "run")
