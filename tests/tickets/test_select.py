import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.tickets import ThresholdSelector, pruned_count, topk_mask
from regraft.tickets.select import flat_array, kth_value, kth_value_op


def reference_threshold(values, rank):
    """The slow twin: sort everything."""
    return float(np.sort(np.concatenate([np.ravel(v) for v in values]))[rank])


def walk(n, steps, seed, size=0.05):
    """Scores that move a little from call to call, as in training."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(n).astype(np.float32)
    for _ in range(steps):
        yield x
        x += size * rng.standard_normal(n).astype(np.float32)


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("rank_share", [0.0, 0.003, 0.5, 0.97, 1.0])
def test_following_moving_scores_is_as_exact_as_sorting(magnitude, rank_share):
    selector = ThresholdSelector(magnitude=magnitude)
    for x in walk(20_000, 40, seed=1, size=0.01):
        rank = round(rank_share * (x.size - 1))
        expected = reference_threshold([np.abs(x) if magnitude else x], rank)
        assert selector([x], rank) == expected
    # The point of it: most calls neither sorted nor looked for the band again.
    assert selector.selected < 20


def test_several_arrays_count_together():
    selector = ThresholdSelector()
    for x in walk(30_000, 20, seed=2):
        parts = [x[:7000], x[7000:7100], x[7100:]]
        assert selector(parts, 12_345) == reference_threshold(parts, 12_345)


@pytest.mark.parametrize("size", [0.5, 10.0])
def test_scores_that_jump_are_selected_right_too(size):
    selector = ThresholdSelector()
    for x in walk(9_000, 20, seed=3, size=size):
        assert selector([x], 4_000) == reference_threshold([x], 4_000)


def test_a_changing_rank_and_changing_arrays_are_followed():
    selector = ThresholdSelector()
    for i, x in enumerate(walk(12_000, 20, seed=4)):
        y = x[: 12_000 - 100 * i]
        rank = 100 + 500 * i % y.size
        assert selector([y], rank) == reference_threshold([y], rank)


@given(seed=st.integers(0, 1000), levels=st.integers(1, 5), share=st.floats(0, 1))
def test_ties_are_selected_right(seed, levels, share):
    x = np.random.default_rng(seed).integers(0, levels, 6_000).astype(np.float32)
    selector = ThresholdSelector()
    rank = round(share * 5_999)
    for _ in range(3):
        assert selector([x], rank) == reference_threshold([x], rank)


def test_a_copy_starts_without_hints():
    selector = ThresholdSelector(magnitude=True)
    selector([next(walk(9_000, 1, seed=5))], 100)
    again = copy.deepcopy(selector)
    assert (again.magnitude, again.calls, again._band) == (True, 0, [])


@given(
    n=st.integers(1, 200),
    sparsity=st.floats(0, 1),
    magnitude=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_mask_removes_the_share_asked_for_and_only_low_scores(n, sparsity, magnitude, seed):
    scores = torch.from_numpy(np.random.default_rng(seed).standard_normal(n))
    mask = topk_mask(scores, sparsity, magnitude=magnitude)
    size = scores.abs() if magnitude else scores
    assert int((~mask).sum()) == pruned_count(n, sparsity) == round(sparsity * (n - 1))
    assert mask.all() or size[~mask].max() < size[mask].min()


def test_scores_equal_to_the_threshold_are_all_kept():
    assert topk_mask(torch.tensor([1.0, 2.0, 2.0, 2.0, 3.0]), 0.5).tolist() == [False, *[True] * 4]


@pytest.mark.parametrize("sparsity", [-0.01, 1.01, float("nan")])
def test_sparsity_outside_zero_and_one_is_refused(sparsity):
    with pytest.raises(InputError, match=r"sparsity=.*expected the fraction"):
        topk_mask(torch.randn(5), sparsity)


def test_the_operator_agrees_with_the_function_for_every_dtype():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.randn(9000, generator=torch.Generator().manual_seed(1)).to(dtype)
        assert kth_value_op(x, 4000) == kth_value(x, 4000) == x.sort().values[4000]


def test_the_operator_is_registered_as_pytorch_wants_it():
    torch.library.opcheck(kth_value_op, (torch.randn(5000), 100), test_utils="test_schema")
    torch.library.opcheck(kth_value_op, (torch.randn(5000), 100), test_utils="test_faketensor")


def test_a_dense_tensor_in_any_memory_order_is_viewed_not_copied():
    x = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    flat = flat_array(x)
    assert np.shares_memory(flat, x.numpy())
    assert sorted(flat) == sorted(x.flatten().tolist())
