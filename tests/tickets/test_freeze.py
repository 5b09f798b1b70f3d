import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft import streams
from regraft.errors import InputError
from regraft.tickets.freeze import Freezing, FrozenPattern

SHAPES = {"a": (64, 3, 3, 3), "b": (128, 64, 3, 3), "c": (10, 128), "d": (4, 5)}
TOTAL = sum(math.prod(s) for s in SHAPES.values())


def by_sorting(pattern):
    """The slow twin: rank all positions by their word, earlier ones first among equals."""
    words = streams.words32(pattern.seed, f"{pattern.name}#frozen", 0, pattern.numel)
    order = np.argsort(words, kind="stable")
    parts = np.zeros(pattern.numel, dtype=np.int8)
    parts[order[: pattern.pruned]] = -1
    parts[order[pattern.pruned : pattern.pruned + pattern.locked]] = 1
    return parts


@given(st.integers(1, 3000), st.data())
def test_the_pattern_ranks_the_stream(numel, data):
    frozen = data.draw(st.integers(0, numel - 1))
    pruned = data.draw(st.integers(0, frozen))
    pattern = FrozenPattern(data.draw(st.integers(0, 5)), "w", numel, pruned, frozen - pruned)
    parts = pattern.parts()
    assert np.array_equal(parts, by_sorting(pattern))
    assert np.array_equal(pattern.free(), np.flatnonzero(parts == 0))
    counts = [int((parts == k).sum()) for k in (-1, 0, 1)]
    assert counts == [pattern.pruned, pattern.searched, pattern.locked]


def test_a_large_pattern_is_exact_and_has_golden_positions():
    pattern = FrozenPattern(7, "layer.weight", 300_000, 100_000, 50_000)
    assert np.array_equal(pattern.parts(), by_sorting(pattern))
    assert pattern.free()[:6].tolist() == [2, 4, 5, 6, 8, 12]


def test_name_and_seed_decide():
    one = FrozenPattern(1, "a", 1000, 300, 300).parts()
    assert not np.array_equal(one, FrozenPattern(2, "a", 1000, 300, 300).parts())
    assert not np.array_equal(one, FrozenPattern(1, "b", 1000, 300, 300).parts())


@given(
    st.floats(0, 0.95),
    st.floats(0, 1),
    st.sampled_from(["uniform", "erk", "epl", "igq"]),
)
def test_shares_of_the_network_are_met_and_every_layer_keeps_something_free(frozen, split, law):
    freezing = Freezing(frozen * split, frozen * (1 - split), law)
    patterns = freezing.patterns(SHAPES, seed=1)
    assert [p.numel for p in patterns.values()] == [math.prod(s) for s in SHAPES.values()]
    # A rounding a layer, and what the one free position of a small layer takes.
    slack = 2 * len(SHAPES)
    assert abs(sum(p.pruned for p in patterns.values()) - freezing.pruned * TOTAL) <= slack
    assert abs(sum(p.locked for p in patterns.values()) - freezing.locked * TOTAL) <= slack
    assert all(p.searched >= 1 for p in patterns.values())


def test_kernel_allocation_spares_small_layers():
    patterns = Freezing(0.5, 0.2, "erk").patterns(SHAPES, seed=1)
    shares = {n: (p.pruned + p.locked) / p.numel for n, p in patterns.items()}
    assert shares["d"] <= shares["a"] < 0.7 < shares["b"]


@pytest.mark.parametrize(
    ("sparsity", "frozen", "expected"),
    [
        (0.5, 0.5, (0.25, 0.25)),  # the two examples the card reads from the paper's own
        (0.2, 0.4, (0.0, 0.4)),
        (0.9, 0.5, (0.5, 0.0)),
        (0.05, 0.99, (0.045, 0.945)),
        (0.5, 0.0, (0.0, 0.0)),
    ],
)
def test_balanced_leaves_the_free_part_half_kept_where_it_can(sparsity, frozen, expected):
    freezing = Freezing.balanced(sparsity, frozen)
    assert (freezing.pruned, freezing.locked) == pytest.approx(expected)


@given(st.floats(0, 1), st.floats(0, 0.99))
def test_balanced_is_always_reachable(sparsity, frozen):
    freezing = Freezing.balanced(sparsity, frozen)
    with warnings.catch_warnings():
        # A network of which nothing or everything is to be pruned leaves no choice.
        warnings.simplefilter("ignore")
        freezing.check_reach(sparsity)
    assert freezing.frozen == pytest.approx(frozen)


@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_both_ends_of_the_reach_warn_that_nothing_is_searched(sparsity):
    with pytest.warns(
        UserWarning, match="nothing is searched: choose a sparsity between 0.3 and 0.8"
    ):
        Freezing(0.3, 0.2).check_reach(sparsity)


@pytest.mark.parametrize(
    ("freezing", "sparsity"),
    [
        (Freezing(0.3, 0.2), 0.301),
        (Freezing(0.3, 0.2), 0.799),
        (Freezing(), 0.0),
        (Freezing(), 1.0),
    ],
)
def test_a_search_with_a_choice_or_without_freezing_does_not_warn(freezing, sparsity):
    freezing.check_reach(sparsity)  # a warning would be an error


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Freezing(0.6, 0.4), "freeze everything"),
        (lambda: Freezing(-0.1, 0.0), "pruned=-0.1"),
        (lambda: Freezing(0.0, 1.5), "locked=1.5"),
        (lambda: Freezing(float("nan"), 0.0), "pruned=nan"),
        (lambda: Freezing.balanced(0.5, 1.0), "freeze everything"),
        (lambda: Freezing.balanced(2.0, 0.5), "sparsity=2.0"),
        (lambda: Freezing(0.3, 0.2).check_reach(0.2), r"\[0.3, 0.8\]"),
        (lambda: Freezing(0.3, 0.2).check_reach(0.9), r"\[0.3, 0.8\]"),
        (lambda: Freezing(0.3, 0.2, "erk!").patterns(SHAPES, 1), "erk!"),
        (lambda: FrozenPattern(1, "w", 10, 6, 4), "leave one free"),
        (lambda: FrozenPattern(1, "w", 10, -1, 4), "leave one free"),
        (lambda: FrozenPattern(1, "w", 1000, 300, 200).check_reach(0.2), "scope='global'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(make, words):
    with pytest.raises(InputError, match=words):
        make()
