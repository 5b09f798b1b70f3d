"""Meta-gradients against a plain second-order loop over tasks, in float64."""

from pathlib import Path

import pytest
import torch
from fewshot_twin import WAYS, close, conv, episodes, masked, mlp, plain, twin_loss
from torch.nn import functional as F

from regraft.errors import InputError
from regraft.fewshot import MAML, Clone, MetaTicket, ProtoNet, Reptile
from regraft.fewshot.linear_step import adapted_logits
from regraft.tickets import named_masks


@pytest.mark.parametrize("path", ["exact", "vmap", "loop"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("how", ["all", "head", "body", "first_order", "support", "learn_rates"])
def test_maml_agrees_with_a_plain_loop(path, steps, how):
    network, tasks = mlp(), episodes()
    options = {"adapts": how} if how in ("head", "body") else {}
    policy = "support" if how == "support" else "transductive"
    learner = MAML(
        network,
        lr=0.3,
        steps=steps,
        path=path,
        first_order=how == "first_order",
        learn_rates=how == "learn_rates",
        batchnorm=policy,
        **options,
    )
    loss = learner(tasks)
    trained = [p for p in learner.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, trained, allow_unused=True)
    phi = dict(network.named_parameters())
    want = twin_loss(
        network, phi, {}, learner.step_sizes(), tasks, steps, how == "first_order", policy
    )
    theirs = torch.autograd.grad(want, trained, allow_unused=True)
    assert abs(loss.item() - want.item()) < 1e-12
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if b is not None]
    assert all(a is None for a, b in zip(ours, theirs, strict=True) if b is None)
    # A bias below BatchNorm has no gradient on the exact path, where others have one of rounding.
    close(*zip(*((torch.zeros_like(b) if a is None else a, b) for a, b in pairs), strict=True))


@pytest.mark.parametrize("path", ["exact", "vmap", "loop"])
@pytest.mark.parametrize("shots", [2, 5])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("adapts", ["all", "body", "head"])
def test_meta_ticket_agrees_with_a_plain_loop(path, shots, steps, adapts):
    network, tasks = mlp(), episodes(shots=shots, queries=1)
    learner = masked(network, path=path, steps=steps, adapts=adapts)
    scores = learner.scores()
    loss = learner(tasks)
    ours = torch.autograd.grad(loss, scores)
    reference, phi = mlp(), {}
    masks = {}
    straight = []
    for name, entry, mask in named_masks(network):
        m = mask.kept(entry.original).double().requires_grad_()
        straight.append(m)
        masks[name], phi[name] = m, mask.weight
    for name, p in reference.named_parameters():
        if name.startswith("head"):
            phi.setdefault(name, p.detach().requires_grad_())
        elif name not in phi:
            first = 1.0 if name.endswith("weight") else 0.0
            phi[name] = torch.full_like(p, first)
    phi = {n: v.detach().requires_grad_() for n, v in phi.items()}
    want = twin_loss(reference, phi, masks, learner.step_sizes(), tasks, steps)
    assert abs(loss.item() - want.item()) < 1e-12
    close(ours, torch.autograd.grad(want, straight))


@pytest.mark.parametrize("path", ["vmap", "loop"])
@pytest.mark.parametrize("policy", ["transductive", "support"])
def test_convolutions_agree_with_a_plain_loop(path, policy):
    network, tasks = conv(), episodes()
    learner = MAML(network, lr=0.2, steps=2, path=path, batchnorm=policy, chunk=3)
    ours = torch.autograd.grad(learner(tasks), list(network.parameters()))
    phi = dict(network.named_parameters())
    want = twin_loss(network, phi, {}, learner.step_sizes(), tasks, 2, policy=policy)
    close(ours, torch.autograd.grad(want, list(network.parameters())))


@pytest.mark.parametrize("kind", ["maml", "ticket", "protonet", "boil", "ticket-boil"])
def test_an_adapted_network_computes_what_the_learner_does(kind):
    network, tasks = mlp(), episodes()
    adapts = "body" if "boil" in kind else "all"
    if "ticket" in kind:
        learner = masked(network, steps=2, batchnorm="support", adapts=adapts)
    elif kind == "protonet":
        learner = ProtoNet(network, batchnorm="support")
    else:
        learner = MAML(network, steps=2, lr=0.3, batchnorm="support", adapts=adapts)
    want = learner.logits(tasks)
    for t in range(len(tasks)):
        adapted = learner.adapt(tasks.support_x[t], tasks.support_y[t])
        with torch.no_grad():
            alone = torch.cat([adapted(q[None]) for q in tasks.query_x[t]])
        shift = 0.0
        if kind == "protonet":  # up to the same number for all classes of an image
            shift = (alone - want[t]).mean(1, keepdim=True)
        torch.testing.assert_close(alone - shift, want[t])


def test_a_clone_is_adapted_loss_by_loss_with_the_same_gradient():
    network, tasks = mlp(), episodes(tasks=1)
    learner = MAML(network, lr=0.3, steps=2)
    clone = learner.clone()
    assert isinstance(clone, Clone)
    for _ in range(2):
        clone.adapt(F.cross_entropy(clone(tasks.support_x[0]), tasks.support_y[0]))
    loss = F.cross_entropy(clone(tasks.query_x[0]), tasks.query_y[0])
    parameters = list(network.parameters())
    close(torch.autograd.grad(loss, parameters), torch.autograd.grad(learner(tasks), parameters))


def test_reptile_moves_towards_the_end_of_plain_training():
    network, tasks = mlp(), episodes()
    learner = Reptile(network, lr=0.1, steps=4)
    grads = torch.autograd.grad(learner(tasks), list(network.parameters()))
    total = [torch.zeros_like(p) for p in network.parameters()]
    for t in range(len(tasks)):
        values = {n: p.detach().requires_grad_() for n, p in network.named_parameters()}
        x = torch.cat([tasks.support_x[t], tasks.query_x[t]])
        y = torch.cat([tasks.support_y[t], tasks.query_y[t]])
        for _ in range(4):
            loss = F.cross_entropy(plain(network, values, x)[0], y)
            got = torch.autograd.grad(loss, list(values.values()))
            values = {
                n: (v - 0.1 * g).detach().requires_grad_()
                for (n, v), g in zip(values.items(), got, strict=True)
            }
        for slot, p, v in zip(total, network.parameters(), values.values(), strict=True):
            slot += (p - v).detach() / len(tasks)
    close(grads, total)


def test_evaluation_keeps_no_graph():
    learner = masked(mlp())
    assert not learner.logits(episodes()).requires_grad


def test_weight_free_networks_differ_by_their_masks_alone():
    learner = MetaTicket(
        mlp(), seed=1, sparsity=0.5, weight_init="kaiming_constant", mask_head=True
    )
    values = learner.values()
    weights = [v for n, v in values.items() if n in learner.masks()]
    assert len(weights) == 3
    for w in weights:
        torch.testing.assert_close(w, torch.full_like(w, (2 / w.shape[1]) ** 0.5))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch asks itself
@pytest.mark.parametrize("kind", ["maml", "ticket"])
def test_a_compiled_step_has_the_same_gradients(kind, monkeypatch):
    torch._dynamo.reset()
    quick = torch.compile(adapted_logits, dynamic=False, backend="aot_eager")
    monkeypatch.setattr("regraft.fewshot.maml._compiled", lambda: quick)
    tasks = episodes(shots=2, queries=2)
    grads = {}
    for compiled in (False, True):
        network = mlp()
        if kind == "maml":
            learner = MAML(network, lr=0.3, compiled=compiled)
        else:
            learner = masked(network, compiled=compiled)
        trained = [p for p in learner.parameters() if p.requires_grad]
        grads[compiled] = torch.autograd.grad(learner(tasks), trained)
        assert learner.logits(tasks).shape == (4, 6, WAYS)
    close(grads[True], grads[False])


def test_only_the_exact_step_is_compiled():
    with pytest.raises(InputError, match="compiled=True is for stacks of Linear"):
        MAML(conv(), compiled=True)


@pytest.mark.parametrize("kind", ["mlp", "conv", "ticket", "meta-sgd"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_what_is_computed_again_has_the_same_gradients(kind, chunk):
    tasks, grads = episodes(shots=2, queries=2), {}
    for recompute in (False, True):
        how = {"steps": 2, "recompute": recompute, "chunk": chunk}
        if kind == "ticket":
            learner = masked(mlp(), **how)
        else:
            network = conv() if kind == "conv" else mlp()
            path = "vmap" if kind == "meta-sgd" else "auto"
            learner = MAML(network, lr=0.2, learn_rates=kind == "meta-sgd", path=path, **how)
        trained = [p for p in learner.parameters() if p.requires_grad]
        grads[recompute] = torch.autograd.grad(learner(tasks), trained)
    close(grads[True], grads[False])


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_computing_again_keeps_less_between_the_passes(kind):
    """What the graph holds on to until the backward pass, in elements."""
    tasks, kept = episodes(tasks=6, shots=2, queries=2), {}
    for recompute in (False, True):
        learner = MAML(conv() if kind == "conv" else mlp(), lr=0.2, steps=4, recompute=recompute)
        kept[recompute] = held(learner(tasks))
    assert kept[True] < kept[False] / 3


def held(loss):
    """Elements of all different tensors that the nodes of a graph saved."""
    storages, seen, todo = {}, set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [below for below, _ in node.next_functions]
        saved = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
        saved += list(getattr(node, "saved_tensors", ()))
        for tensor in (t for t in saved if isinstance(t, torch.Tensor)):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_what_is_computed_again_hands_gradients_to_the_images_too(kind):
    grads = {}
    for recompute in (False, True):
        tasks = episodes(shots=2, queries=2)
        images = tasks.support_x.requires_grad_(), tasks.query_x.requires_grad_()
        network = conv() if kind == "conv" else mlp()
        learner = MAML(network, lr=0.2, steps=2, recompute=recompute)
        grads[recompute] = torch.autograd.grad(learner(tasks), images)
        assert all(g.abs().sum() > 0 for g in grads[recompute])
    close(grads[True], grads[False])


def squared_length(learner):
    """The squared length of the meta-gradient, with its graph."""
    weights = list(learner.parameters())
    grads = torch.autograd.grad(learner(episodes()), weights, create_graph=True)
    return sum(g.square().sum() for g in grads)


@pytest.mark.parametrize(("path", "norm"), [("vmap", "batch"), ("vmap", "none"), ("loop", "none")])
def test_a_meta_gradient_has_derivatives(path, norm):
    learner = MAML(mlp(norm), lr=0.3, path=path)
    weight = next(learner.parameters())
    (grad,) = torch.autograd.grad(squared_length(learner), [weight])
    way = grad.detach() / grad.norm()
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            weight += step * way
        ends.append(squared_length(learner).item())
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, float(grad.norm()), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "how", [{"path": "exact"}, {"path": "vmap", "recompute": True}, {"path": "loop"}]
)
def test_where_a_meta_gradient_has_none_it_stops_as_the_page_says(how):
    with pytest.raises(RuntimeError) as stopped:
        squared_length(MAML(mlp(), lr=0.3, **how)).backward()
    page = (Path(__file__).parents[2] / "docs" / "fewshot.md").read_text()
    assert str(stopped.value).strip(".") in page.replace("\n", " ")
