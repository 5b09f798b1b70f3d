import pytest
import torch
from torch import nn

from features import CLASSES, WIDTH, batch, loader, network, sgd, train
from regraft.errors import InputError
from regraft.features import DRTune
from regraft.features.dr_tune import kabsch

F64 = torch.float64


def test_kabsch_finds_a_rotation_and_turns_no_mirror_image():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 5, generator=generator, dtype=F64)
    q, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=F64))
    q[:, 0] *= torch.sign(torch.linalg.det(q))
    torch.testing.assert_close(kabsch(rows, rows @ q), q)
    mirror = q.clone()
    mirror[:, 0] *= -1
    found = kabsch(rows, rows @ mirror)
    torch.testing.assert_close(found @ found.T, torch.eye(5, dtype=F64))
    assert torch.linalg.det(found) == pytest.approx(1.0)


def slow_calibration(student, teacher, labels, rotation, w):
    norm = sum(s.norm() for s in student) / len(student)
    s = [row / row.norm() for row in student]
    t = [row / row.norm() @ rotation for row in teacher]
    found = []
    for i, y in enumerate(labels):
        rows = [j for j, other in enumerate(labels) if other == y]
        cosines = torch.stack([s[j] @ (w[y] / w[y].norm()) for j in rows])
        shares = cosines.softmax(0)
        centre = sum(a * s[j] for a, j in zip(shares, rows, strict=True))
        shift = centre - sum(t[j] for j in rows) / len(rows)
        moved = t[i] + shift
        found.append(moved / moved.norm() * norm)
    return torch.stack(found)


def test_the_objective_is_one_cross_entropy_over_live_and_calibrated_images():
    net = network(1, norm=False).to(F64)
    start = network(1, norm=False).to(F64)
    method = DRTune(queue=30, every=2).prepare(net, loader(dtype=F64))
    # 60 training images went by: the queue holds the last 30.
    last = torch.cat([start[:-1](x) for x, _ in loader(dtype=F64)])[30:]
    torch.testing.assert_close(
        torch.sort(method.teacher_queue[:, 0]).values, torch.sort(last[:, 0]).values
    )
    optimizer = sgd(net, method)
    train(net, method, optimizer, 0, 4)
    order = [(method._at + i) % 30 for i in range(30)]  # oldest first
    x2, _ = batch(seed=2, dtype=F64)
    x3, y3 = batch(seed=3, dtype=F64)
    torch.testing.assert_close(method.teacher_queue[order][-12:], start[:-1](x3))
    torch.testing.assert_close(method.teacher_queue[order][-24:-12], start[:-1](x2))
    assert torch.equal(method.labels[order][-12:], y3)
    unit = nn.functional.normalize
    rotation = kabsch(unit(method.teacher_queue, dim=1), unit(method.student_queue, dim=1))
    torch.testing.assert_close(method.rotation, rotation)

    x, y = batch(8, seed=9, dtype=F64)
    base = nn.functional.cross_entropy(net(x), y)
    total = method(base, y)
    calibrated = slow_calibration(
        method.student_queue, method.teacher_queue, method.labels.tolist(), rotation,
        net[-1].weight.detach(),
    )  # fmt: skip
    rows = torch.cat([net[:-1](x), calibrated])
    labels = torch.cat([y, method.labels])
    torch.testing.assert_close(total, nn.functional.cross_entropy(net[-1](rows), labels))


def test_few_images_fill_a_part_of_the_queue():
    net = network(1)
    x, y = batch(7)
    method = DRTune(queue=50).prepare(net, [(x, y)])
    calibrated, labels = method.calibrated()
    assert calibrated.shape == (7, WIDTH)
    assert torch.equal(labels, y)


def test_weight_zero_is_the_base_loss():
    net = network(1)
    method = DRTune(0.0, queue=20).prepare(net, loader())
    x, y = batch()
    base = nn.functional.cross_entropy(net(x), y)
    torch.testing.assert_close(method(base, y), base)


def test_what_it_needs_is_said():
    with pytest.raises(InputError, match="queue=0"):
        DRTune(queue=0)
    with pytest.raises(InputError, match="loader is missing"):
        DRTune().prepare(network(1))
    method = DRTune(queue=20).prepare(network(1), loader())
    with pytest.raises(InputError, match="needs the forward pass"):
        method.loss(torch.zeros(2, WIDTH), torch.zeros(2, dtype=torch.long))
    with pytest.raises(InputError, match=f"classes|{CLASSES}|linear"):
        DRTune().prepare(nn.Sequential(nn.Flatten(), nn.ReLU()), loader(), classifier="1")
