import pytest
import torch
from symmetry_specs import random_state, residual

from regraft.symmetry.merge.connectivity import interpolation, plane
from regraft.symmetry.transfer.mode_connectivity import connect


class Source:
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(40, 3, 2, 2, generator=g)
        self.y = torch.randint(0, 3, (40,), generator=g)

    def __len__(self):
        return 2

    def batches(self, epoch, *, start=0, rank=0, world=1):
        for rows in torch.arange(40).split(20)[start:]:
            yield self.x[rows], self.y[rows], len(rows)


def test_the_lines_and_the_plane_are_those_between_the_three():
    model, spec, _ = residual()
    moved, source, trained = (random_state(model, i, dtype=torch.float32) for i in range(3))
    batches, told = Source(), []
    permutation = spec.random(4)
    found = connect(
        model, moved, source, spec, permutation, [batches], trained=trained, statistics=batches,
        points=3, plane_points=3, progress=lambda done, count: told.append((done, count)),
    )  # fmt: skip
    permuted = spec.apply(source, permutation)
    wanted = {
        "permuted source": (permuted, moved),
        "trained target": (trained, moved),
        "between": (trained, permuted),
    }
    assert list(found.curves) == list(wanted)
    for name, (a, b) in wanted.items():
        curve = interpolation(model, a, b, [batches], points=3, statistics=batches, repair="reset")
        assert found.curves[name] == curve
    assert found.plane == plane(
        model, (trained, moved, permuted), [batches], points=3, statistics=batches
    )
    assert told == [(i, 9) for i in range(1, 10)]
    # The permuted source computes what the source does.
    own = interpolation(model, source, moved, [batches], points=2)
    end = found.curves["permuted source"].scores[0]
    assert end.loss == pytest.approx(own.scores[0].loss, rel=1e-4)
    plain = connect(model, moved, source, spec, permutation, [batches], points=2)
    assert (list(plain.curves), plain.plane) == (["permuted source"], None)
    assert plain.to_dict()["plane"] is None
