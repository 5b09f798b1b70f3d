"""Blocks of grouped convolutions: those that do not divide, those within others, and sums of several."""

import pytest
import torch.nn.functional as F
from torch import nn
from tracing import IMAGE, Block, linear

from regraft.symmetry.trace.trace import trace


def groups(spec):
    return sorted(group.shape for group in spec)


@pytest.mark.parametrize("check_it", [True, False])
def test_shuffled_groups_that_do_not_divide_move_where_both_groups_agree(check_it):
    def forward(m, x):
        h = m.a(x).relu()
        y = m.b(h).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
        return m.out((h + m.c(m.d(y))).relu().mean((2, 3)))

    model = Block(
        forward,
        a=nn.Conv2d(3, 12, 1), b=nn.Conv2d(12, 12, 1, groups=3), out=linear(12, 2),
        d=nn.Conv2d(12, 12, 3, padding=1, groups=12), c=nn.Conv2d(12, 12, 1, groups=3),
    )  # fmt: skip
    assert groups(trace(model, IMAGE, check_it=check_it)) == [(2,), (2,), (2,), (4,), (4,), (4,)]


@pytest.mark.parametrize("check_it", [True, False])
@pytest.mark.parametrize(
    ("forward", "layers", "expected"),
    [
        # Blocks within the blocks that a grouped convolution reads, and units within both.
        (
            lambda m, x: (h := F.group_norm(m.a(x), 2).relu()) + m.d(F.group_norm(h, 6).relu()),
            {"d": nn.Conv2d(12, 12, 3, padding=1, groups=2)},
            [(2,), (2, 3), (6, 2)],
        ),
        # Several units of one are units of a block of the next.
        (
            lambda m, x: m.e(m.d(m.a(x)).relu()),
            {"d": nn.Conv2d(12, 24, 3, groups=12), "e": nn.Conv2d(24, 12, 1, groups=2)},
            [(2,), (2, 6), (2, 6), (12, 2)],
        ),
        # Two groups whose results are added are two, although both hold the same.
        (lambda m, x: m.d(m.a(x)).chunk(2, 1)[0] + m.d(m.a(x)).chunk(2, 1)[1],
         {"d": nn.Conv2d(12, 24, 1, groups=2)}, [(6,), (6,), (12,)]),
    ],
)  # fmt: skip
def test_blocks_within_blocks_of_grouped_convolutions(forward, layers, expected, check_it):
    model = Block(
        lambda m, x: m.out(forward(m, x).mean((2, 3))),
        a=nn.Conv2d(3, 12, 1),
        out=linear(12, 2),
        **layers,
    )
    assert groups(trace(model, IMAGE, check_it=check_it)) == expected
