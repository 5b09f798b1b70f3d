"""Sums of products over named dimensions: what most operations of a network are.

A linear layer is "bi,oi->bo", attention "bhtd,bhsd->bhts". Dimensions with one letter are permuted
alike; those that are summed over vanish, and nothing may depend on their index afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .labels import Change, Dim, Ledger, _depth, rebind, substitute, twin

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
            if any(other is here for name, other in frame.items() if name != letter):
                here = twin(here)  # the rows and columns of h h^T are two dimensions
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
    alone, other = (tuple(x for x in p.over if x not in q.over) for p, q in ((a, b), (b, a)))
    if alone and other:  # every row of one meets every row of the other
        for base in alone:
            a = ledger.release(a, base)
        for base in other:
            b = ledger.release(b, base)
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


def mixed(ledger: Ledger, dims: Sequence[Dim], axes: Collection[int]) -> list[Dim]:
    """Return the dimensions of a tensor whose positions along some of them were mixed, and are kept.

    What lies over such a dimension is permuted alike at all of its indices from here on: a softmax over
    heads adds up what is at one place of every head.
    """
    bases = [dims[axis % len(dims)] for axis in axes]
    changes: dict[Dim, Change] = {}
    out = list(dims)
    for i in sorted(range(len(dims)), key=lambda i: _depth(dims[i])):
        here = rebind([dims[i]], changes)[0]
        for base in bases:
            if dims[i] not in bases and base in here.over:
                here = ledger.release(here, base)
        if here is not dims[i]:
            out[i] = here
            changes |= substitute(dims[i], here)
    return out
