import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.data import per_class_subset, stratified_split, stratified_subset
from regraft.errors import InputError


@st.composite
def label_lists(draw):
    counts = draw(st.lists(st.integers(2, 40), min_size=1, max_size=6))
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shuffled = draw(st.permutations(range(len(labels))))
    return labels[torch.tensor(shuffled)]


seeds = st.integers(0, 2**31)


@given(label_lists(), st.floats(0.1, 0.5), seeds)
@settings(deadline=None)
def test_split_is_a_partition_of_the_asked_size(labels, share, seed):
    size = round(share * len(labels))
    if size == 0:
        return
    kept, held_out = stratified_split(labels, share, seed)
    assert len(held_out) == size
    assert torch.equal(torch.cat([kept, held_out]).sort().values, torch.arange(len(labels)))
    assert torch.equal(kept, kept.sort().values)
    assert torch.equal(held_out, held_out.sort().values)


@given(label_lists(), st.floats(0.1, 0.5), seeds)
@settings(deadline=None)
def test_split_keeps_the_classes_in_proportion(labels, share, seed):
    if round(share * len(labels)) == 0:
        return
    _, held_out = stratified_split(labels, share, seed)
    counts = torch.bincount(labels)
    got = torch.bincount(labels[held_out], minlength=len(counts))
    exact = counts * len(held_out) / len(labels)
    # Sainte-Lague may leave the quota by more than one only with very unequal classes.
    assert bool(((got - exact).abs() <= 1.5).all())


@given(label_lists(), seeds)
@settings(deadline=None)
def test_a_larger_share_holds_out_the_same_and_more(labels, seed):
    small, large = (round(s * len(labels)) for s in (0.2, 0.4))
    if small == 0:
        return
    few = set(stratified_split(labels, small / len(labels), seed)[1].tolist())
    many = set(stratified_split(labels, large / len(labels), seed)[1].tolist())
    assert few <= many


@given(label_lists(), seeds, st.data())
@settings(deadline=None)
def test_subsets_are_nested_and_hold_every_class(labels, seed, data):
    classes = int(labels.max()) + 1
    size = data.draw(st.integers(classes, len(labels) - 1))
    smaller, larger = (stratified_subset(labels, s, seed) for s in (size, size + 1))
    assert len(smaller) == size
    assert set(smaller.tolist()) < set(larger.tolist())
    assert len(labels[smaller].unique()) == classes


@given(label_lists(), seeds, st.data())
@settings(deadline=None)
def test_per_class_subsets_are_nested_and_exact(labels, seed, data):
    most = int(torch.bincount(labels).min())
    k = data.draw(st.integers(1, most - 1))
    smaller, larger = (per_class_subset(labels, s, seed) for s in (k, k + 1))
    assert set(smaller.tolist()) < set(larger.tolist())
    assert bool((torch.bincount(labels[smaller]) == k).all())
    assert torch.equal(smaller, smaller.sort().values)


def test_balanced_classes_are_cut_evenly():
    labels = torch.arange(10).repeat(100)
    kept, held_out = stratified_split(labels, 0.1, 777)
    assert bool((torch.bincount(labels[held_out]) == 10).all())
    assert bool((torch.bincount(labels[kept]) == 90).all())
    assert bool((torch.bincount(labels[stratified_subset(labels, 50, 1)]) == 5).all())


def test_the_choice_is_the_same_for_ever():
    labels = torch.arange(3).repeat(4)
    assert stratified_split(labels, 0.25, 777)[1].tolist() == [0, 7, 8]
    assert stratified_subset(labels, 5, 1).tolist() == [3, 7, 8, 9, 11]
    assert per_class_subset(labels, 1, 1).tolist() == [1, 2, 3]


def test_seeds_choose_differently():
    labels = torch.zeros(100, dtype=torch.int64)
    assert not torch.equal(per_class_subset(labels, 50, 1), per_class_subset(labels, 50, 2))


def test_share_zero_holds_out_nothing():
    kept, held_out = stratified_split(torch.tensor([0, 1]), 0.0, 1)
    assert kept.tolist() == [0, 1]
    assert held_out.tolist() == []


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.0, float("nan")])
def test_share_outside_its_range_is_refused(share):
    with pytest.raises(InputError, match=r"share=.*at least 0 and below 1"):
        stratified_split(torch.tensor([0, 1]), share, 1)


def test_share_that_holds_out_nothing_is_refused():
    with pytest.raises(InputError, match=r"share=0.1 of 4 images holds out none.*0.25"):
        stratified_split(torch.tensor([0, 0, 1, 1]), 0.1, 1)


def test_a_class_left_empty_is_refused():
    labels = torch.tensor([0] * 9 + [1])
    with pytest.raises(InputError, match=r"class 1 has 1 image\(s\) and would keep none"):
        stratified_split(labels, 0.9, 1)


def test_an_empty_class_is_refused():
    labels = torch.tensor([0, 0, 2, 2])
    for choose in (
        lambda: stratified_split(labels, 0.5, 1),
        lambda: stratified_subset(labels, 3, 1),
        lambda: per_class_subset(labels, 1, 1),
    ):
        with pytest.raises(InputError, match="class 1 of 3 has no images"):
            choose()


def test_too_few_images_in_a_class_are_refused():
    with pytest.raises(InputError, match=r"class 1 has 2 image\(s\), 3 were asked"):
        per_class_subset(torch.tensor([0, 0, 0, 1, 1]), 3, 1)


def test_no_images_per_class_are_refused():
    with pytest.raises(InputError, match="k=0: expected at least one"):
        per_class_subset(torch.tensor([0, 1]), 0, 1)


@pytest.mark.parametrize("size", [1, 5])
def test_a_subset_too_small_or_too_large_is_refused(size):
    with pytest.raises(InputError, match=rf"size={size}: expected between 2 .* and 4"):
        stratified_subset(torch.tensor([0, 0, 1, 1]), size, 1)


@pytest.mark.parametrize(
    "labels", [torch.tensor([], dtype=torch.int64), torch.tensor([0.0]), torch.tensor([[0]])]
)
def test_labels_of_another_form_are_refused(labels):
    with pytest.raises(InputError, match=r"expected int64 \[n\]"):
        stratified_subset(labels, 1, 1)


def test_negative_labels_are_refused():
    with pytest.raises(InputError, match="labels hold -1"):
        per_class_subset(torch.tensor([0, -1]), 1, 1)
