import pytest
import torch
from torch import nn

from zslkit.checkpoint import build_teacher
from zslkit.config import RunConfig
from zslkit.teacher import Teacher


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def trained_a_little(student):
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.1)
    student.train()(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_moving_average_written_out_buffers_included():
    """Trap: an average of parameters that forgets the BatchNorm statistics."""
    torch.manual_seed(0)
    student = Net()
    teacher = Teacher(student, "ema", 0.9)
    expected = {name: value.clone() for name, value in student.state_dict().items()}
    for _ in range(3):
        trained_a_little(student)
        teacher.update(student)
        for name, value in student.state_dict().items():
            moving = value.is_floating_point()
            expected[name] = 0.9 * expected[name] + 0.1 * value if moving else value.clone()
    for name, value in teacher.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not torch.equal(teacher.model[1].running_mean, student[1].running_mean)
    assert teacher.model[1].num_batches_tracked == 3


def test_warm_up_averages_less_at_first():
    student = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(student.weight)
    teacher = Teacher(student, "ema", 0.9, warmup=True)
    nn.init.ones_(student.weight)
    teacher.update(student)  # decay (1 + 0) / (10 + 0)
    assert teacher.model.weight.item() == pytest.approx(0.9)
    teacher.update(student)  # (1 + 1) / (10 + 1)
    assert teacher.model.weight.item() == pytest.approx(1 - 0.1 * 2 / 11)
    assert teacher.n_updates == 2
    for _ in range(200):  # decay reaches 0.9 and stays
        teacher.update(student)
    nn.init.zeros_(student.weight)
    before = teacher.model.weight.item()
    teacher.update(student)
    assert teacher.model.weight.item() == pytest.approx(0.9 * before)


def test_stays_in_eval_mode_without_gradients():
    """Trap: a teacher left in train mode teaches dropout noise."""
    teacher = Teacher(Net())
    teacher.train()
    assert not any(part.training for part in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    x = torch.randn(4, 3)
    assert torch.equal(teacher.model(x), teacher.model(x))


def test_frozen_tensors_are_shared_not_copied():
    student = Net()
    student[0].requires_grad_(False)
    teacher = Teacher(student)
    assert teacher.model[0].weight is student[0].weight
    assert teacher.model[1].weight is not student[1].weight


def test_frozen_teacher_does_not_move():
    student = Net()
    teacher = Teacher(student, "frozen")
    before = teacher.model[0].weight.clone()
    trained_a_little(student)
    teacher.update(student)
    teacher.end_generation(student)
    assert torch.equal(teacher.model[0].weight, before)


@pytest.mark.parametrize("kind", ["ema", "frozen"])
def test_other_teachers_are_ready_at_once(kind):
    assert Teacher(Net(), kind).ready


def test_previous_generation_is_not_ready_until_one_has_ended():
    student = Net()
    teacher = Teacher(student, "previous")
    trained_a_little(student)
    teacher.update(student)
    assert not teacher.ready
    assert not torch.equal(teacher.model[0].weight, student[0].weight)
    teacher.end_generation(student)
    assert teacher.ready
    assert torch.equal(teacher.model[0].weight, student[0].weight)


@pytest.mark.parametrize("kind", ["none", "label_smoothing"])
def test_objectives_without_a_teacher_build_none(kind):
    assert build_teacher(Net(), RunConfig(soft_targets=kind)) is None


def test_the_moving_average_moves_once_a_step_in_one_call_over_tensors_listed_once(monkeypatch):
    """Walking both models at every step costs more than the average itself."""
    student = Net()
    student[0].weight.requires_grad_(False)
    teacher, walks, calls = Teacher(student), [], []
    parameters, lerp = nn.Module.parameters, torch._foreach_lerp_
    monkeypatch.setattr(nn.Module, "parameters", lambda m: walks.append(m) or parameters(m))
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: calls.append(a) or lerp(*a))
    for _ in range(3):
        teacher.update(student)
    assert len(calls) == 3
    assert len(walks) == 2
    # bias, norm's weight, bias and two statistics; neither the shared weight nor the counter
    assert len(calls[0][0]) == 5


def test_another_student_is_averaged_too():
    student = Net()
    teacher, other = Teacher(student, decay=0.5), Net()
    teacher.update(student)
    before = teacher.model[0].weight.clone()
    teacher.update(other)
    torch.testing.assert_close(teacher.model[0].weight, (before + other[0].weight) / 2)


def test_the_student_is_no_part_of_its_teacher():
    student = Net()
    teacher = Teacher(student)
    names = teacher.state_dict().keys()
    teacher.update(student)
    assert teacher.state_dict().keys() == names


def test_an_update_leaves_no_graph():
    student = Net()
    teacher = Teacher(student)
    teacher.update(student)
    assert not any(tensor.requires_grad for tensor in teacher.model.parameters())
