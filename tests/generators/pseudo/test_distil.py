import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regraft.errors import InputError
from regraft.generators.pseudo import Distillation

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def nets():
    torch.manual_seed(0)
    return nn.Linear(5, 3), nn.Linear(5, 3)


def test_logits_are_matched_by_their_mean_square():
    student, teacher = nets()
    loss = Distillation(student, teacher, kind="logits", weight=0.3)
    out = student(X)
    expected = F.cross_entropy(out, Y) + 0.3 * (out - teacher(X)).pow(2).sum(1).mean() / 3
    torch.testing.assert_close(loss(out, Y), expected)
    loss(out, Y).backward()
    assert teacher.weight.grad is None
    assert not list(loss.parameters())


def test_soft_targets_are_the_scaled_divergence():
    student, teacher = nets()
    loss = Distillation(student, teacher, weight=0.4, temperature=2.0)
    out = student(X)
    p, q = (teacher(X) / 2).softmax(1), (out / 2).softmax(1)
    divergence = (p * (p / q).log()).sum(1).mean()
    expected = 0.6 * F.cross_entropy(out, Y) + 0.4 * 4 * divergence
    torch.testing.assert_close(loss(out, Y), expected)


def test_a_teacher_equal_to_the_student_adds_nothing():
    student, _ = nets()
    out = student(X)
    loss = Distillation(student, student, kind="logits", weight=5.0)
    out = student(X)
    torch.testing.assert_close(loss(out, Y), F.cross_entropy(out, Y))


def test_wrong_use_is_refused():
    student, teacher = nets()
    with pytest.raises(InputError, match="expected logits or soft"):
        Distillation(student, teacher, kind="hints")
    loss = Distillation(student, teacher)
    student(X)
    with pytest.raises(InputError, match="not those of the student's last images"):
        loss(torch.zeros(2, 3), Y[:2])


def test_the_student_is_listened_to_until_the_loss_is_closed_or_gone():
    student, teacher = nets()
    loss = Distillation(student, teacher)
    loss.close()
    loss.close()
    assert not student._forward_pre_hooks
    with pytest.raises(InputError, match="not those of the student's last images"):
        loss(student(X), Y)
    loss = Distillation(student, teacher)
    assert student._forward_pre_hooks
    del loss
    gc.collect()
    assert not student._forward_pre_hooks


def test_a_copy_of_the_student_has_no_teacher_and_does_not_disturb():
    student, teacher = nets()
    loss = Distillation(student, teacher, kind="logits")
    out = student(X.clone().requires_grad_() * 1.0)
    other = copy.deepcopy(student)
    (hook,) = other._forward_pre_hooks.values()
    assert not any(isinstance(v, nn.Module) for v in vars(hook).values())
    other(X[:2])
    assert loss(out, Y) > 0


def test_the_images_may_be_a_keyword():
    student, teacher = nets()
    loss = Distillation(student, teacher, kind="logits")
    plain = loss(student(X), Y)
    torch.testing.assert_close(loss(student(input=X), Y), plain)
