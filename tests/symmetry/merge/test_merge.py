import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.errors import InputError
from regraft.models import MLP, ConvSmall
from regraft.symmetry.merge.merge import merge, merge_tensors
from regraft.symmetry.merge.methods import MERGE_METHODS, merge_method


def state(seed, **changes):
    generator = torch.Generator().manual_seed(seed)
    found = {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=generator),
        "conv.bias": torch.randn(4, generator=generator),
        "bn.running_mean": torch.randn(4, generator=generator),
        "bn.running_var": torch.rand(4, generator=generator),
        "bn.num_batches_tracked": torch.tensor(seed),
        "scale": torch.randn((), generator=generator),
    }
    return found | changes


def call(method, states, **more):
    needs = MERGE_METHODS[method].needs_base
    if MERGE_METHODS[method].models == 2:
        states = states[:2]
    return merge(states, method=method, base=state(99) if needs else None, **more)


@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
@pytest.mark.parametrize("count", [2, 3])
def test_a_model_merged_with_itself_is_itself(method, count):
    options = {"density": 1.0} if method == "ties" else {}
    one = state(1)
    merged = call(method, [one] * count, **options)
    assert list(merged) == list(one)
    for name, tensor in one.items():
        torch.testing.assert_close(merged[name], tensor, rtol=2e-6, atol=2e-6)
        assert merged[name] is not tensor


@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
def test_the_order_of_the_models_does_not_matter(method):
    a, b = state(1), state(2)
    b["bn.num_batches_tracked"] = a["bn.num_batches_tracked"]
    left = call(method, [a, b], weights=[1, 3])
    right = call(method, [b, a], weights=[3, 1])
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-5, atol=1e-6)


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=4).filter(lambda w: abs(sum(w)) > 0.1))
def test_an_average_is_the_weighted_sum(weights):
    states = [state(i) for i in range(len(weights))]
    merged = merge(states, weights=weights)
    for name in ("conv.weight", "scale", "bn.running_mean"):
        total = sum(w * s[name].double() for w, s in zip(weights, states, strict=True))
        expected = total / sum(weights)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-4, atol=1e-4)
    assert merged["bn.running_var"].min() >= 0


def test_integers_come_from_the_first_model_and_statistics_are_averaged():
    merged = merge([state(1), state(2)], method="slerp", weights=[3, 1])
    assert merged["bn.num_batches_tracked"] == 1
    expected = 0.75 * state(1)["bn.running_var"] + 0.25 * state(2)["bn.running_var"]
    torch.testing.assert_close(merged["bn.running_var"], expected)


def test_buffers_are_kept_where_all_agree():
    a, b, base = state(1), state(2), state(3)
    a["scale"] = b["scale"] = torch.tensor(2.0)
    options = {"base": base, "density": 0.1, "method": "ties"}
    assert merge([a, b], buffers=["scale"], **options)["scale"] == 2
    assert merge([a, b], **options)["scale"] != 2


@given(st.integers(0, 20), st.floats(0.05, 0.95))
def test_slerp_is_the_formula_and_keeps_the_length(seed, t):
    a, b = state(seed), state(seed + 1)
    b = {k: v if v.ndim == 0 else v * (a[k].norm() / v.norm()).nan_to_num(1) for k, v in b.items()}
    merged = merge([a, b], method="slerp", weights=[1 - t, t])["conv.weight"].double()
    x, y = a["conv.weight"].double(), b["conv.weight"].double()
    omega = math.acos(float((x * y).sum() / (x.norm() * y.norm())))
    expected = (math.sin((1 - t) * omega) * x + math.sin(t * omega) * y) / math.sin(omega)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged.norm(), x.norm(), rtol=1e-5, atol=1e-5)


def test_slerp_without_an_arc_is_the_line():
    a = {"w": torch.tensor([1.0, 2.0]), "z": torch.zeros(2), "o": torch.tensor([1.0, 0.0])}
    b = {"w": torch.tensor([2.0, 4.0]), "z": torch.ones(2), "o": torch.tensor([-3.0, 0.0])}
    merged = merge([a, b], method="slerp")
    for name, tensor in a.items():
        torch.testing.assert_close(merged[name], (tensor + b[name]) / 2)


def test_task_arithmetic_adds_differences():
    a, b, base = state(1), state(2), state(3)
    merged = merge([a, b], method="task_arithmetic", base=base, scale=0.6)["conv.bias"]
    w = "conv.bias"
    expected = base[w] + 0.6 * (0.5 * (a[w] - base[w]) + 0.5 * (b[w] - base[w]))
    torch.testing.assert_close(merged, expected)


def slow_ties(states, base, weights, density, scale, scope):
    """TIES position by position over plain lists."""
    names = [k for k in base if base[k].is_floating_point() and "running" not in k]
    base = {k: base[k].flatten().tolist() for k in names}
    vectors = []
    for found in states:
        tau = {
            k: [x - y for x, y in zip(found[k].flatten().tolist(), base[k], strict=True)]
            for k in names
        }
        groups = [names] if scope == "model" else [[k] for k in names]
        for group in groups:
            sizes = sorted((abs(x) for k in group for x in tau[k]), reverse=True)
            kept = max(1, round(density * len(sizes)))
            for k in group:
                tau[k] = [x if abs(x) >= sizes[kept - 1] - 1e-7 else 0.0 for x in tau[k]]
        vectors.append(tau)
    merged = {}
    for k in names:
        out = []
        for i, origin in enumerate(base[k]):
            elected = sum(w * tau[k][i] for w, tau in zip(weights, vectors, strict=True))
            agreeing = [
                (w, tau[k][i])
                for w, tau in zip(weights, vectors, strict=True)
                if tau[k][i] * elected > 0
            ]
            mass = sum(w for w, _ in agreeing)
            mean = sum(w * x for w, x in agreeing) / mass if agreeing else 0.0
            out.append(origin + scale * mean)
        merged[k] = out
    return merged


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [2, 3])
def test_ties_against_a_slow_twin(scope, density, count):
    states, base = [state(i) for i in range(count)], state(9)
    weights = [0.5, 0.2, 0.3][:count]
    weights = [w / sum(weights) for w in weights]
    options = {"density": density, "scale": 0.7, "scope": scope}
    merged = merge(states, method="ties", base=base, weights=weights, **options)
    for name, expected in slow_ties(states, base, weights, **options).items():
        torch.testing.assert_close(
            merged[name].flatten(), torch.tensor(expected), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("wide", [("a",), ("base",), ("a", "b", "base"), ("b", "some")])
@pytest.mark.parametrize("seed", range(4))
def test_ties_keeps_the_share_to_the_last_value_whatever_the_dtypes(wide, seed):
    states = {name: state(3 * seed + i) for i, name in enumerate(("a", "b", "base"))}
    for name in wide:
        chosen = states["a" if name == "some" else name]
        for key in ("scale", "conv.bias") if name == "some" else tuple(chosen):
            if chosen[key].is_floating_point():
                # Values that float32 has not.
                chosen[key] = chosen[key].double() / 3
    base = states.pop("base")
    # With equal models what is kept is seen in the result: the differences that are not zero.
    for own in states.values():
        merged = merge([own, own], method="ties", base=base, density=0.3)
        names = [k for k in base if base[k].is_floating_point() and "running" not in k]
        changed = {k: merged[k].double() - base[k].double() for k in names}
        kept = sum(int((v.abs() > 1e-6).sum()) for v in changed.values())
        assert kept == round(0.3 * sum(base[k].numel() for k in names))
    merged = merge(list(states.values()), method="ties", base=base, density=0.3)
    expected = slow_ties(list(states.values()), base, [0.5, 0.5], 0.3, 1.0, "model")
    for name, values in expected.items():
        found = merged[name].flatten().double()
        torch.testing.assert_close(found, torch.tensor(values).double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_first_models_dtype_is_kept_and_half_is_computed_in_float32(dtype):
    a, b = state(1), state(2)
    a = {k: v.to(dtype) if v.is_floating_point() else v for k, v in a.items()}
    merged = merge([a, b])
    for name, tensor in merged.items():
        assert tensor.dtype == a[name].dtype
    if dtype != torch.float64:
        expected = (a["conv.weight"].float() + b["conv.weight"]) / 2
        assert torch.equal(merged["conv.weight"], expected.to(dtype))


def test_a_merge_of_equal_half_values_at_the_edge_does_not_overflow():
    a = {"w": torch.full((3,), 60000.0, dtype=torch.float16)}
    assert torch.equal(merge([a, a])["w"], a["w"])
    with pytest.raises(InputError, match="w leaves the range of float16"):
        merge([a, {"w": -a["w"]}], weights=[3, -1])


@pytest.mark.parametrize("kind", [math.nan, math.inf])
@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
def test_a_value_that_is_no_number_is_named(kind, method):
    bad = state(2)
    bad["conv.weight"][1, 2, 0, 0] = kind
    with pytest.raises(InputError, match=r"conv.weight of model 2 holds NaN or infinite"):
        call(method, [state(1), bad])


def without(found, name):
    return {k: v for k, v in found.items() if k != name}


@pytest.mark.parametrize(
    ("states", "options", "said"),
    [
        ([state(1)], {}, "1 model"),
        ([state(1)] * 2, {"method": "averge"}, "'averge' is unknown"),
        ([state(1)] * 2, {"density": 0.5}, "'average' has no option 'density': it takes none"),
        ([state(1)] * 2, {"method": "ties"}, "give the base"),
        ([state(1)] * 3, {"method": "slerp"}, "takes 2 models and was given 3"),
        ([state(1)] * 2, {"weights": [1, -1]}, "sum to 0"),
        ([state(1)] * 2, {"weights": [1, math.nan]}, "expected finite numbers"),
        ([state(1)] * 2, {"weights": [1]}, "1 weight"),
        ([state(1), without(state(2), "scale")], {}, "model 2 has no tensor 'scale'"),
        ([without(state(1), "scale"), state(2)], {}, "model 2 has a tensor 'scale'"),
        ([state(1), state(2, scale=torch.ones(2))], {}, "model 2: scale has shape"),
        ([state(1), state(2, scale=torch.tensor(1))], {}, "scale is float32 in model 1 and int64"),
        ([state(1)] * 2, {"method": "ties", "base": state(3), "density": 0.0}, "density=0.0"),
        ([state(1)] * 2, {"method": "ties", "base": state(3), "scope": "x"}, "scope='x'"),
        ([state(1)] * 2, {"method": "ties", "base": state(3), "scale": math.nan}, "scale=nan: exp"),
        ([state(1)] * 2, {"weights": [1, math.inf]}, "expected finite numbers"),
        ([state(1)] * 2, {"method": "ties", "base": {}}, "the base has no tensor"),
    ],
)
def test_what_cannot_be_merged_is_said(states, options, said):
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        merge(states, **options)


def test_tensors_come_one_by_one_as_the_whole_does():
    states = [state(1), state(2)]
    whole = merge(states)
    for name, tensor in merge_tensors(states):
        assert torch.equal(tensor, whole[name])


def test_a_method_is_a_function_and_a_line():
    @merge_method("largest")
    def largest(tensors, *, weights, sign=1):
        return torch.stack(tensors).max(0).values * sign

    try:
        merged = merge([state(1), state(2)], method="largest", sign=-1)
        expected = -torch.maximum(state(1)["scale"], state(2)["scale"])
        assert merged["scale"] == expected
    finally:
        del MERGE_METHODS["largest"]


@pytest.mark.parametrize("method", sorted(MERGE_METHODS))
def test_merged_networks_load(method):
    for make in (lambda: MLP(6, [5, 4], 3), lambda: ConvSmall(3, image_size=8)):
        states = [make().state_dict() for _ in range(3)]
        network = make()
        base = states[2] if MERGE_METHODS[method].needs_base else None
        network.load_state_dict(merge(states[:2], method=method, base=base))


def test_complex_weights_are_refused_and_equal_complex_buffers_kept():
    a, b = torch.randn(2, 3, dtype=torch.complex64)
    with pytest.raises(InputError, match="w is complex: expected real tensors"):
        merge([{"w": a}, {"w": b}])
    assert torch.equal(merge([{"w": a}, {"w": a.clone()}])["w"], a)
