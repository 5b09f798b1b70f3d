import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.tickets.allocate import ALLOCATIONS, densities

SHAPES = st.lists(
    st.lists(st.integers(1, 600), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12
)
LAWS = st.sampled_from(ALLOCATIONS)
SHARES = st.floats(0, 1)

# A stem, a block, a shortcut and a classifier: the small ones saturate.
NETWORK = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 64, 1, 1), (10, 128)]


def reference(shapes, density, allocation):
    """The slow twin: give out the weights layer by layer, taking full layers out until none is."""
    sizes = [math.prod(s) for s in shapes]
    wanted = density * sum(sizes)
    if allocation == "uniform":
        return [density] * len(sizes)
    if allocation == "igq":
        low, high = -80.0, 80.0
        for _ in range(200):
            middle = (low + high) / 2
            kept = sum(n / (math.exp(middle) * n + 1) for n in sizes)
            low, high = (middle, high) if kept > wanted else (low, middle)
        return [1 / (math.exp(high) * n + 1) for n in sizes]
    rates = [(sum(s) if allocation == "erk" else 1) / n for s, n in zip(shapes, sizes, strict=True)]
    full = set()
    while True:
        rest = [i for i in range(len(sizes)) if i not in full]
        left = wanted - sum(sizes[i] for i in full)
        share = sum(rates[i] * sizes[i] for i in rest)
        epsilon = left / share if rest else 0.0
        over = {i for i in rest if epsilon * rates[i] > 1}
        if not over:
            return [1.0 if i in full else epsilon * rates[i] for i in range(len(sizes))]
        # Only the fullest of them is certain to stay full once the others have given up theirs.
        full |= {i for i in over if rates[i] == max(rates[j] for j in over)}


@given(shapes=SHAPES, density=SHARES, allocation=LAWS)
def test_the_densities_meet_the_share_and_lie_between_0_and_1(shapes, density, allocation):
    found = densities(shapes, density, allocation)
    sizes = [math.prod(s) for s in shapes]
    assert all(0 <= d <= 1 for d in found)
    kept = sum(d * n for d, n in zip(found, sizes, strict=True))
    # Shares below 1e-307 are subnormal numbers, which are no longer exact to 12 digits.
    assert kept == pytest.approx(density * sum(sizes), rel=1e-12, abs=1e-290)


@given(shapes=SHAPES, one=SHARES, two=SHARES, allocation=LAWS)
def test_no_layer_loses_weights_as_the_share_rises(shapes, one, two, allocation):
    low, high = sorted((one, two))
    assert all(
        a <= b
        for a, b in zip(
            densities(shapes, low, allocation), densities(shapes, high, allocation), strict=True
        )
    )


@given(shapes=SHAPES, density=SHARES, steps=st.integers(1, 3), allocation=LAWS)
def test_not_even_by_a_rounding(shapes, density, steps, allocation):
    above = density
    for _ in range(steps):
        above = min(math.nextafter(above, 2), 1.0)
    assert all(
        a <= b
        for a, b in zip(
            densities(shapes, density, allocation),
            densities(shapes, above, allocation),
            strict=True,
        )
    )


@given(shapes=SHAPES, allocation=LAWS)
def test_nothing_and_everything_are_exact(shapes, allocation):
    assert densities(shapes, 0, allocation) == [0.0] * len(shapes)
    assert densities(shapes, 1, allocation) == [1.0] * len(shapes)


@given(shapes=SHAPES, density=st.floats(1e-6, 1 - 1e-6), allocation=LAWS)
def test_it_agrees_with_the_slow_twin(shapes, density, allocation):
    expected = reference(shapes, density, allocation)
    assert densities(shapes, density, allocation) == pytest.approx(expected, rel=1e-9)


@given(shapes=SHAPES, density=SHARES, allocation=LAWS, seed=st.randoms())
def test_the_order_of_the_layers_does_not_matter(shapes, density, allocation, seed):
    order = list(range(len(shapes)))
    seed.shuffle(order)
    found = densities(shapes, density, allocation)
    mixed = densities([shapes[i] for i in order], density, allocation)
    assert mixed == pytest.approx([found[i] for i in order], rel=1e-12)


def test_edges_per_layer_are_equal_where_no_layer_is_full():
    sizes = [math.prod(s) for s in NETWORK]
    found = densities(NETWORK, 0.3, "epl")
    kept = [d * n for d, n in zip(found, sizes, strict=True)]
    assert found[0] == found[4] == 1.0
    assert kept[1] == pytest.approx(kept[2])
    assert kept[1] > max(kept[0], kept[4])


def test_small_layers_stay_denser():
    for allocation in ("erk", "epl", "igq"):
        found = densities(NETWORK, 0.2, allocation)
        assert found[4] > found[3] > found[1] > found[2]
        assert found[2] < 0.2


def test_one_layer_has_the_share_whatever_the_law():
    for allocation in ALLOCATIONS:
        assert densities([(30, 20)], 0.37, allocation) == pytest.approx([0.37])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([(2, 2)], 0.5, "even"), "allocation='even'"),
        (([(2, 2)], 1.5, "erk"), "density=1.5"),
        (([(2, 2)], float("nan"), "erk"), "density=nan"),
        (([(2, 2)], "half", "erk"), "density=half"),
        (([], 0.5, "erk"), "shapes is empty"),
        (([(2, 2), (3, 0)], 0.5, "epl"), r"shapes has \(3, 0\)"),
        (([()], 0.5, "epl"), r"shapes has \(\)"),
    ],
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        densities(*arguments)
