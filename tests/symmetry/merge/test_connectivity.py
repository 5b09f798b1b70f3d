import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import Points, network, plain_network

from regraft.errors import InputError
from regraft.symmetry.merge.connectivity import (
    Curve,
    Kept,
    Measured,
    buffer_names,
    interpolation,
    measure,
    plane,
)
from regraft.symmetry.merge.merge import merge
from regraft.symmetry.merge.repair import repair_


def slow_scores(model, state, source):
    """Loss and accuracy of all points at once, in float64."""
    model.load_state_dict(state)
    y = model.eval()(source.x)
    return (
        F.cross_entropy(y.double(), source.y).item(),
        100 * (y.argmax(1) == source.y).double().mean().item(),
    )


SOURCES = [Points(23, 5, 0), Points(31, 8, 1)]


@pytest.mark.parametrize("make", [plain_network, network])
def test_a_curve_is_what_a_loop_finds(make):
    a, b = make(seed=1).state_dict(), make(seed=2).state_dict()
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen = []
    curve = interpolation(model, a, b, SOURCES, points=5, progress=lambda i, n: seen.append((i, n)))
    assert seen == [(i, 5) for i in range(1, 6)]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert curve.at == (0, 0.25, 0.5, 0.75, 1)
    losses, accuracies = [], []
    for x, score in zip(curve.at, curve.scores, strict=True):
        state = {
            k: v if not v.is_floating_point() else (1 - x) * v + x * b[k] for k, v in a.items()
        }
        found = [slow_scores(make(), state, source) for source in SOURCES]
        assert score.losses == pytest.approx([f[0] for f in found], rel=1e-5)
        assert score.accuracies == pytest.approx([f[1] for f in found])
        losses.append(sum(f[0] for f in found) / 2)
        accuracies.append(sum(f[1] for f in found) / 2)
        assert score.loss == pytest.approx(losses[-1], rel=1e-5)
    heights = [
        v - (1 - x) * losses[0] - x * losses[-1] for x, v in zip(curve.at, losses, strict=True)
    ]
    assert curve.loss_barrier == pytest.approx(max(heights), abs=1e-5)
    drops = [
        (1 - x) * accuracies[0] + x * accuracies[-1] - v
        for x, v in zip(curve.at, accuracies, strict=True)
    ]
    assert curve.accuracy_barrier == pytest.approx(max(drops), abs=1e-5)
    assert curve.middle == curve.scores[2]
    assert json.loads(json.dumps(curve.to_dict()))["loss_barrier"] == curve.loss_barrier


def test_barriers_of_a_hump_and_of_a_line():
    def scores(values):
        return tuple(Measured(loss=v, accuracy=-v, losses=(v,), accuracies=(-v,)) for v in values)

    hump = Curve(at=(0.0, 0.5, 1.0), scores=scores([1.0, 5.0, 3.0]))
    assert (hump.loss_barrier, hump.accuracy_barrier) == (3.0, 3.0)
    valley = Curve(at=(0.0, 0.5, 1.0), scores=scores([1.0, 0.0, 3.0]))
    assert (valley.loss_barrier, valley.accuracy_barrier) == (0.0, 0.0)


@pytest.mark.parametrize("make", [plain_network, network])
def test_every_point_between_the_ends_is_repaired(make):
    a, b = make(seed=1).state_dict(), make(seed=2).state_dict()
    curve = interpolation(make(), a, b, SOURCES, points=3, statistics=SOURCES[0])
    model = make()
    model.load_state_dict(merge([a, b]))
    repair_(model, [a, b], SOURCES[0])
    assert curve.scores[1] == measure(model, SOURCES)
    plain = interpolation(make(), a, b, SOURCES, points=3)
    assert curve.scores[0] == plain.scores[0]
    assert curve.scores[2] == plain.scores[2]
    assert curve.scores[1] != plain.scores[1]


@pytest.mark.parametrize("make", [plain_network, network])
def test_a_plane_goes_through_its_three_networks(make):
    states = [make(seed=i).state_dict() for i in range(3)]
    found = plane(make(), states, SOURCES, points=3, margin=0.0)
    (x1, y1), (x2, y2), (x3, y3) = found.points
    assert (x1, y1, y2) == (0, 0, 0)
    names = [n for n, _ in make().named_parameters()]
    vector = [torch.cat([s[n].flatten() for n in names]).double() for s in states]
    assert x2 == pytest.approx(float((vector[1] - vector[0]).norm()))
    assert math.hypot(x3, y3) == pytest.approx(float((vector[2] - vector[0]).norm()))
    assert math.hypot(x3 - x2, y3) == pytest.approx(float((vector[2] - vector[1]).norm()))
    corner = measure(plane_model(make, states[0]), SOURCES)
    if x3 > 0:
        assert found.loss[0][0] == pytest.approx(corner.loss, rel=1e-4)
        assert found.accuracy[0][0] == pytest.approx(corner.accuracy)
    # The centre of the grid, as a sum of vectors.
    u = (vector[1] - vector[0]) / x2
    v = vector[2] - vector[0] - x3 * u
    point = vector[0] + found.x[1] * u + found.y[1] * v / y3
    weights = (
        torch.linalg.lstsq(torch.stack([*vector]).T, point[:, None]).solution.flatten().tolist()
    )
    state = {
        k: s if not s.is_floating_point() else sum(
            w * t[k] for w, t in zip(weights, states, strict=True)
        )
        for k, s in states[0].items()
    }  # fmt: skip
    assert found.loss[1][1] == pytest.approx(
        measure(plane_model(make, state), SOURCES).loss, rel=1e-3
    )
    assert json.loads(json.dumps(found.to_dict()))["x"] == list(found.x)


def plane_model(make, state):
    model = make()
    model.load_state_dict(state)
    return model


def test_a_plane_takes_statistics_anew():
    states = [network(seed=i).state_dict() for i in range(3)]
    plain = plane(network(), states, SOURCES, points=2)
    reset = plane(network(), states, SOURCES, points=2, statistics=SOURCES[0])
    assert plain.loss != reset.loss


def test_wrong_planes_and_curves_are_said():
    states = [plain_network(seed=i).state_dict() for i in range(3)]
    line = [states[0], states[1], merge(states[:2])]
    with pytest.raises(InputError, match="one line"):
        plane(plain_network(), line, SOURCES)
    with pytest.raises(InputError, match="one line"):
        plane(plain_network(), [states[0]] * 3, SOURCES)
    with pytest.raises(InputError, match="2 states"):
        plane(plain_network(), states[:2], SOURCES)
    with pytest.raises(InputError, match="points=1"):
        plane(plain_network(), states, SOURCES, points=1)
    with pytest.raises(InputError, match="points=1"):
        interpolation(plain_network(), *states[:2], SOURCES, points=1)
    with pytest.raises(InputError, match="no batches"):
        interpolation(plain_network(), *states[:2], [])


class Counted(Points):
    reads = 0

    def batches(self, epoch, **more):
        self.reads += 1
        return super().batches(epoch, **more)


def test_batches_are_read_once_if_they_fit():
    source = Counted()
    kept = Kept(source)
    first = list(kept.batches(0))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, kept.batches(7), strict=True))
    assert source.reads == 1
    assert [len(b[0]) for b in kept.batches(0, start=2)] == [len(b[0]) for b in first[2:]]
    source = Counted()
    large = Kept(source, limit=200)
    assert sum(len(b[0]) for b in large.batches(0)) == sum(len(b[0]) for b in large.batches(0))
    assert source.reads == 2


def test_buffers_are_told_from_tied_parameters():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert buffer_names(model) == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
