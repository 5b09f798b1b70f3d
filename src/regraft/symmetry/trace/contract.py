"""Sums of products over named dimensions: what most operations of a network are.

A linear layer is "bi,oi->bo", attention "bhtd,bhsd->bhts". Dimensions with one letter are permuted
alike; those that are summed over vanish, and nothing may depend on their index afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .labels import Change, Dim, Ledger, _depth, rebind, substitute

Operand = tuple[Sequence[Dim], Sequence[str]]
"""The dimensions of a tensor, and a letter (any string) for each."""


def contract(ledger: Ledger, operands: Sequence[Operand], out: Sequence[str]) -> list[Dim]:
    """Return the dimensions of a sum of products.

    Args:
        ledger: Where the consequences are written.
        operands: The factors; dimensions of size 1 fit any size, as in broadcasting.
        out: Letters of the result; the others are summed over.
    """
    frame: dict[str, Dim] = {}
    for dims, letters in operands:
        changes: dict[Dim, Change] = {}
        for i in sorted(range(len(dims)), key=lambda i: _depth(dims[i])):
            dim, letter = dims[i], letters[i]
            here = rebind([dim], changes)[0]
            there = frame.get(letter)
            kept = here if there is None else _wider(ledger, there, here)
            if there is not None and kept is not there:
                names = list(frame)
                moved = rebind([frame[name] for name in names], substitute(there, kept))
                frame = dict(zip(names, moved, strict=True))
            frame[letter] = kept
            if dim.size == kept.size:
                changes |= substitute(dim, kept)
    summed = {id(frame[letter]) for letter in frame if letter not in out}
    result = []
    for letter in out:
        dim = frame[letter]
        for base in dim.over:
            if id(base) in summed:
                dim = ledger.release(dim, base)
        result.append(dim)
    # A dimension that was released is another object: those that lie over it must follow.
    followers: dict[Dim, Change] = {}
    for letter, dim in zip(out, result, strict=True):
        if frame[letter] is not dim:
            followers |= substitute(frame[letter], dim)
    return rebind(result, followers)


def _wider(ledger: Ledger, a: Dim, b: Dim) -> Dim:
    if a.size != b.size:  # broadcasting
        return a if b.size == 1 else b
    return ledger.unify(a, b)


def broadcast(ledger: Ledger, *operands: Sequence[Dim]) -> list[Dim]:
    """Return the dimensions of an elementwise function of tensors that broadcast."""
    most = max(map(len, operands), default=0)
    letters = [str(i) for i in range(most)]
    named = [(dims, letters[most - len(dims) :]) for dims in operands]
    return contract(ledger, named, letters)


def drop(ledger: Ledger, dims: Sequence[Dim], axes: Collection[int]) -> list[Dim]:
    """Return the dimensions left when some are summed over, or otherwise made invariant."""
    letters = [str(i) for i in range(len(dims))]
    left = [letter for i, letter in enumerate(letters) if i not in axes]
    return contract(ledger, [(dims, letters)], left)
