import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import ImageSet, channel_moments, resize
from regraft.errors import InputError


def images(n=4, channels=1, size=3):
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, size, size), generator=generator, dtype=torch.uint8)


def test_subset_takes_images_and_labels_together():
    whole = ImageSet(images(), torch.tensor([0, 1, 2, 1]), 3)
    part = whole.subset(torch.tensor([3, 0]))
    assert len(part) == 2
    assert part.labels.tolist() == [1, 0]
    assert torch.equal(part.images, whole.images[[3, 0]])
    assert part.num_classes == 3


@pytest.mark.parametrize("wrong", [images().float(), images()[0], images()[:, 0]])
def test_images_of_another_form_are_refused(wrong):
    with pytest.raises(InputError, match=r"images of shape .* expected uint8 \[N, C, H, W\]"):
        ImageSet(wrong, torch.zeros(4, dtype=torch.int64), 1)


@pytest.mark.parametrize("wrong", [torch.zeros(3, dtype=torch.int64), torch.zeros(4)])
def test_labels_of_another_form_are_refused(wrong):
    with pytest.raises(InputError, match=r"labels of shape .* expected int64 \[4\]"):
        ImageSet(images(), wrong, 1)


def test_labels_out_of_range_name_the_first():
    with pytest.raises(InputError, match=r"labels out of range: labels\[2\] is 3, expected 0 to 2"):
        ImageSet(images(), torch.tensor([0, 2, 3, -1]), 3)


@given(st.integers(1, 5), st.sampled_from([1, 3]))
@settings(deadline=None)
def test_moments_agree_with_the_definition(n, channels):
    x = images(n, channels)
    mean, std = channel_moments(x)
    scaled = x.double() / 255
    assert mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist())


def test_a_constant_channel_keeps_a_deviation_to_divide_by():
    mean, std = channel_moments(torch.full((2, 1, 3, 3), 255, dtype=torch.uint8))
    assert mean == (1.0,)
    assert std == (1 / 255,)


def test_resize_keeps_a_constant_image_and_the_size_asked():
    x = torch.full((2, 3, 5, 7), 200, dtype=torch.uint8)
    assert torch.equal(resize(x, 12), torch.full((2, 3, 12, 12), 200, dtype=torch.uint8))


def test_resize_to_the_same_size_changes_nothing():
    x = images(size=8)
    assert resize(x, 8) is x
