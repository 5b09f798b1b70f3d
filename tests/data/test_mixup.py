import pytest
import torch
from training import Points

from regraft.data import Mixup
from regraft.errors import InputError
from regraft.protocols import BatchSource


def mixup(alpha=0.4, **options):
    return Mixup(Points(), alpha=alpha, num_classes=3, seed=7, **options)


def test_images_and_labels_are_mixed_alike():
    source, mixed = Points(), mixup()
    assert isinstance(mixed, BatchSource)
    assert len(mixed) == len(source)
    for (x, y, n), (mx, p, size) in zip(source.batches(2), mixed.batches(2), strict=True):
        assert size == n
        torch.testing.assert_close(p.sum(1), torch.ones(len(p)))
        others = torch.nn.functional.one_hot(y, 3).float()
        # The share that explains the images explains the labels.
        i = int((x - x.roll(1, 0)).abs().sum(1).argmax())
        share = ((mx - x.roll(1, 0))[i] / (x - x.roll(1, 0))[i]).mean()
        torch.testing.assert_close(mx, share * x + (1 - share) * x.roll(1, 0), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            p, share * others + (1 - share) * others.roll(1, 0), atol=1e-4, rtol=1e-3
        )


def shares(alpha, epochs=400):
    """Return the share of an image in itself, from labels alone in batches of two classes."""

    class Two(Points):
        def batches(self, epoch, *, start=0, rank=0, world=1):
            yield torch.eye(2), torch.arange(2), 2

        def __len__(self):
            return 1

    mixed = Mixup(Two(), alpha=alpha, num_classes=2, seed=3)
    return torch.stack([next(iter(mixed.batches(e)))[1][0, 0] for e in range(epochs)]).double()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_follow_the_beta_distribution(alpha):
    found = shares(alpha)
    assert found.mean().item() == pytest.approx(0.5, abs=0.06)
    assert found.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.2)


def test_an_epoch_goes_on_where_it_stopped_and_another_is_mixed_anew():
    whole, rest = list(mixup().batches(1)), list(mixup().batches(1, start=2))
    for left, right in zip(whole[2:], rest, strict=True):
        assert all(map(torch.equal, left[:2], right[:2]))
    assert not torch.equal(whole[0][1], next(iter(mixup().batches(0)))[1])


@pytest.mark.parametrize("alpha", [0, -1, float("nan"), float("inf")])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(InputError, match="mixup="):
        mixup(alpha)
