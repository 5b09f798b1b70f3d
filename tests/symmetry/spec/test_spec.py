"""Permutations as a group, and what they do to tensors, on nested and sliced groups."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.files import json_text
from regraft.symmetry.spec.group import Group, Site
from regraft.symmetry.spec.permutation import compose, inverse
from regraft.symmetry.spec.spec import PermutationSpec


def positions(*sizes):
    """Positions [m, n, r] of an axis laid out in order."""
    return torch.arange(torch.Size(sizes).numel()).reshape(sizes)


def nested():
    """Three heads of four dimensions, each dimension of two positions; and a grouped kernel."""
    heads = Group(
        "heads",
        3,
        (Site("w", 0, positions(1, 3, 8)), Site("k", 0, positions(1, 3, 2))),
    )
    dims = Group("heads/dims", 4, (Site("w", 0, positions(3, 4, 2)),), "heads", 3)
    inputs = Group(
        "heads/in",
        5,
        (Site("k", 1, positions(1, 5, 1).expand(3, 5, 1), 0, torch.arange(6).reshape(3, 2)),),
        "heads",
        3,
    )
    plain = Group("plain", 6, (Site("w", 1, positions(1, 6, 1)), Site("b", 0, positions(1, 6, 1))))
    groups = {g.name: g for g in (heads, plain, dims, inputs)}
    return PermutationSpec(groups, {"w": (24, 6), "k": (6, 5), "b": (6,), "n": ()})


SPEC = nested()


def state(seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {k: torch.randn(v, generator=generator) for k, v in SPEC.shapes.items()}
    return found | {"n": torch.tensor(3)}


def equal(a, b):
    return all(torch.equal(a[k], b[k]) for k in a) and a.keys() == b.keys()


def slow(theta, p):
    """Every element by itself: slot (head, dimension, position) takes what the formula says."""
    out = {k: v.clone() for k, v in theta.items()}
    heads, dims, inputs, plain = (p[k] for k in ("heads", "heads/dims", "heads/in", "plain"))
    for h in range(3):
        for d in range(4):
            for r in range(2):
                source = int(heads[h]) * 8 + int(dims[h, d]) * 2 + r
                for j in range(6):
                    out["w"][h * 8 + d * 2 + r, j] = theta["w"][source, int(plain[j])]
        for r in range(2):
            for j in range(5):
                out["k"][2 * h + r, j] = theta["k"][2 * int(heads[h]) + r, int(inputs[h, j])]
    for j in range(6):
        out["b"][j] = theta["b"][int(plain[j])]
    return out


@given(st.integers(0, 2**32))
def test_apply_is_the_formula(seed):
    p = SPEC.random(seed)
    assert equal(SPEC.apply(state(), p), slow(state(), p))


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_compose_is_one_after_the_other(first, then):
    p, q = SPEC.random(first), SPEC.random(then)
    both = SPEC.apply(SPEC.apply(state(), p), q)
    assert equal(SPEC.apply(state(), compose(SPEC, p, q)), both)


@given(st.integers(0, 2**32))
def test_inverse_undoes(seed):
    p = SPEC.random(seed)
    assert equal(SPEC.apply(SPEC.apply(state(), p), inverse(SPEC, p)), state())
    assert equal(SPEC.apply(SPEC.apply(state(), inverse(SPEC, p)), p), state())


def test_identity_moves_nothing_and_the_input_is_left_alone():
    before = state()
    assert equal(SPEC.apply(before, SPEC.identity()), state())
    SPEC.apply(before, SPEC.random(1))
    assert equal(before, state())


def test_random_permutes_the_named_groups_alone():
    p = SPEC.random(3, ["plain"])
    assert not torch.equal(p["plain"], torch.arange(6))
    assert torch.equal(p["heads"], torch.arange(3))
    with pytest.raises(InputError, match="'other' is unknown"):
        SPEC.random(3, ["other"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_any_dtype(dtype):
    theta = {k: (10 * v).to(dtype) for k, v in state().items()}
    p = SPEC.random(5)
    out = SPEC.apply(theta, p)
    assert all(out[k].dtype == dtype for k in out)
    assert equal(SPEC.apply(out, inverse(SPEC, p)), theta)


def test_json_keeps_everything():
    back = PermutationSpec.from_json(SPEC.to_json())
    p = SPEC.random(7)
    assert equal(back.apply(state(), p), SPEC.apply(state(), p))
    assert back.to_json() == SPEC.to_json()
    assert list(back.groups) == list(SPEC.groups)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: "no json", "no permutation spec"),
        (lambda t: t.replace('"schema": 1', '"schema": 2'), "upgrade regraft"),
        (lambda t: t.replace("regraft-permutation-spec", "other"), "no permutation spec"),
        (lambda t: t.replace('"start": 0', '"start": 99'), "outside"),
        (lambda t: t.replace('"parent": "heads"', '"parent": "gone"'), "does not come before it"),
        (lambda t: t.replace('"axis": 1', '"axis": 9'), "no axis 9"),
        (lambda t: t.replace('"copies": 3', '"copies": 2'), "2 copies"),
        (lambda t: t.replace('"checked": null', '"checked": "yes"'), "checked"),
        (lambda t: t.replace('"size": 6,', '"size": 5,'), "another size"),
        (lambda t: t[: len(t) // 2], "no permutation spec"),
    ],
)
def test_damaged_json_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        PermutationSpec.from_json(sealed(change(SPEC.to_json())))


def sealed(text):
    """Give a changed spec the digest of what it says now."""
    try:
        return json_text(json.loads(text), indent=1)
    except ValueError:
        return text


def test_a_small_spec_that_claims_gigabytes_is_refused_before_they_are_taken():
    at = {"shape": [1, 24, 150_000_000], "start": 0, "strides": [0, 1, 0]}
    data = json.loads(SPEC.to_json())
    data["groups"][0]["sites"][0]["at"] = at
    with pytest.raises(InputError, match=r"it claims 3600000.* positions"):
        PermutationSpec.from_json(json_text(data))


def test_a_spec_whose_digest_is_of_other_content_is_refused():
    changed = SPEC.to_json().replace('"start": 0', '"start": 1')
    with pytest.raises(InputError, match="not as Regraft wrote it: its digest is of other content"):
        PermutationSpec.from_json(changed)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("w"), "no tensor 'w'"),
        (lambda s: s.update(w=torch.zeros(24, 7)), r"w has shape \(24, 7\), expected \(24, 6\)"),
        (lambda s: s.update(more=torch.zeros(1)), "a tensor 'more' that the architecture has not"),
    ],
)
def test_another_architecture_is_refused(change, said):
    theta = state()
    change(theta)
    with pytest.raises(InputError, match=said):
        SPEC.apply(theta, SPEC.identity())


@pytest.mark.parametrize(
    ("name", "perm", "said"),
    [
        ("plain", torch.tensor([0, 0, 1, 2, 3, 4]), "exactly once"),
        ("plain", torch.arange(5), r"expected int64 \(6,\)"),
        ("plain", torch.arange(6.0), "float32"),
        ("heads/dims", torch.arange(4), r"\(3, 4\)"),
        ("none", torch.arange(4), "no group"),
        ("plain", list(range(6)), "got a list"),
    ],
)
def test_what_is_no_permutation_is_refused(name, perm, said):
    for use in (
        lambda p: SPEC.apply(state(), p),
        lambda p: inverse(SPEC, p),
        lambda p: compose(SPEC, p, SPEC.identity()),
    ):
        with pytest.raises(InputError, match=said):
            use({name: perm})


def test_a_spec_can_be_read():
    text = str(SPEC)
    assert "4 groups" in text
    assert "  heads/dims: 4 units in each of 3" in text
    assert "w axis 0, 8 positions each" in text
    assert "k axis 1, over axis 0" in text
