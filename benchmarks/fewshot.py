"""Outer steps of MAML and Meta-ticket against a plain loop over tasks, and against a vectorised rival.

    python benchmarks/fewshot.py [--rival FOLDER] [--results docs/results] [--rounds 41] [--quick]

An outer step is loss, meta-gradient and optimiser step, on one thread. The loop is what users write:
`torch.autograd.grad(..., create_graph=True)` and `functional_call`, task after task. The rival is
`parallel-metalearn` of the package index (module `metalearn`; FOLDER is where it was installed with
`pip install --no-deps --target FOLDER parallel-metalearn`), with its vmap and with its sequential backend.
All calls of a setting are timed in turn, in one process, --rounds times up to four tasks and less
often above. Before that the meta-gradients are compared in
float64; a rival whose gradient is another is named.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from measure import Ratio, against, write
from regraft.fewshot import MAML, Episodes, EpisodeSampler, MetaTicket
from regraft.models import MLP
from regraft.tickets import bake
from regraft.train import command_line

ALPHA = 0.4
GOALS = {("maml", 1): 5.0, ("maml", 5): 2.5, ("meta-ticket", 1): 3.0, ("meta-ticket", 5): 1.5}


def episodes(tasks: int, shots: int, size: int = 28) -> Episodes:
    """Return random 5-way episodes of the shape of Omniglot's."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(50 * 20, 1, size, size, generator=generator) > 0.8).float()
    labels = torch.arange(50).repeat_interleave(20)
    sampler = EpisodeSampler(images, labels, ways=5, shots=shots, queries=shots, seed=1)
    return sampler.batch(0, tasks)


def mlp() -> nn.Module:
    """Return the papers' network for Omniglot at width 1."""
    torch.manual_seed(0)
    return MLP(784, (256, 128, 64, 64), 5, norm="batch")


def conv4() -> nn.Module:
    """Return four blocks of 3x3 convolution (64), BatchNorm, ReLU and pool."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs in (1, 64, 64, 64):
        layers += [nn.Conv2d(inputs, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5))


def plain_network(network: nn.Module) -> nn.Module:
    """Return a copy whose BatchNorm keeps no running statistics, as the papers' code has it."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = module.num_batches_tracked = None
    return copied.train()


def loop_loss(
    network: nn.Module, values: dict[str, Tensor], masks: dict[str, Tensor], tasks: Episodes
) -> Tensor:
    """Return the mean query loss of the plain loop."""
    total: Any = 0.0
    for t in range(len(tasks)):
        weights = {n: v * masks[n] if n in masks else v for n, v in values.items()}
        output = functional_call(network, weights, (tasks.support_x[t],))
        loss = F.cross_entropy(output, tasks.support_y[t])
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        adapted = {}
        for (n, v), g in zip(values.items(), grads, strict=True):
            moved = v - ALPHA * (masks[n] * g if n in masks else g)
            adapted[n] = moved * masks[n] if n in masks else moved
        output = functional_call(network, adapted, (tasks.query_x[t],))
        total = total + F.cross_entropy(output, tasks.query_y[t])
    return total / len(tasks)


def stepper(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Callable[[], None]:
    """Return an outer step that leaves the parameters where they are: every call is the same."""
    optimizer = torch.optim.SGD(parameters, lr=0.0)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def maml_arms(
    network: nn.Module, tasks: Episodes, path: str, **how: Any
) -> dict[str, tuple[Any, list[Any]]]:
    """Return loss and parameters of ours and of the loop, by name."""
    ours = MAML(copy.deepcopy(network), lr=ALPHA, path=path, **how)  # pyrefly: ignore
    plain = plain_network(network)
    values: dict[str, Tensor] = dict(plain.named_parameters())
    return {
        "ours": (lambda: ours(tasks), list(ours.network.parameters())),
        "loop": (lambda: loop_loss(plain, values, {}, tasks), list(values.values())),
    }


def ticket_arms(
    network: nn.Module, tasks: Episodes, path: str, **how: Any
) -> dict[str, tuple[Any, list[Any]]]:
    """Return loss and parameters of ours and of the loop, by name."""
    ours = MetaTicket(copy.deepcopy(network), seed=1, sparsity=0.4, lr=ALPHA, path=path, **how)
    if tasks.support_x.dtype == torch.float64:
        ours = ours.double()
    plain = plain_network(bake(ours.network))
    scores = ours.scores()
    own = [s.detach().clone().requires_grad_() for s in scores]
    names = list(ours.masks())
    kept = {n: m.detach() for n, m in ours.masks().items()}
    # A step differentiates at values that need a gradient, though the outer loop trains none.
    values = {n: v.detach().requires_grad_() for n, v in ours.values().items()}

    def loss() -> Tensor:
        # The straight-through mask: the value 1[s >= sigma], the gradient that of s.
        masks = {n: kept[n] + (s - s.detach()) for n, s in zip(names, own, strict=True)}
        return loop_loss(plain, values, masks, tasks)

    return {"ours": (lambda: ours(tasks), scores), "loop": (loss, own)}


def rival_arms(kind: str, tasks: Episodes) -> dict[str, tuple[Callable[[], Any], Any]]:
    """Return outer steps of the rival, and its model, by backend; nothing where it is not installed."""
    try:
        from metalearn.algorithms import MAML as Rival  # type: ignore # noqa: N811
        from metalearn.inner_optimizers import InnerSGD  # type: ignore
        from metalearn.loss import CategoricalAccuracy, CrossEntropy  # type: ignore
        from metalearn.model_wrappers import MAML_Model  # type: ignore
    except ImportError:
        return {}

    class Body(nn.Module):
        def __init__(self, layers: list[nn.Module]) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x: Tensor, **_: Any) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    targets = [{"labels": y} for y in (tasks.support_y.contiguous(), tasks.query_y.contiguous())]
    batch = (tasks.support_x, targets[0], tasks.query_x, targets[1])
    arms = {}
    for backend in ("vmap", "sequential"):
        network = plain_network(mlp() if kind == "mlp" else conv4())
        if tasks.support_x.dtype == torch.float64:
            network = network.double()
        layers = list(network.features) if kind == "mlp" else list(network)[:-1]  # type: ignore
        last = network.head if kind == "mlp" else list(network)[-1]  # type: ignore
        model = MAML_Model(backbone=Body(layers), head=Body([last]))  # pyrefly: ignore
        algorithm = Rival(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            inner_optimizer=InnerSGD(
                initial_fast_weights=model.get_fast_weights(), inner_lr=ALPHA, first_order=False
            ),
            support_loss_fn=CrossEntropy(metric_fn=CategoricalAccuracy()),
            inner_steps=1,
            chunk_size=len(tasks),
            device=torch.device("cpu"),
            backend=backend,
        )
        arms[f"parallel-metalearn ({backend})"] = (
            partial(_rival_step, algorithm, batch),
            model,
        )
    return arms


def _rival_step(algorithm: Any, batch: Any) -> None:
    algorithm.step(iter([batch]))


def apart(one: list[Tensor], two: list[Tensor]) -> float:
    """Return the largest difference of two gradients over their largest value."""
    scale = max(float(t.abs().max()) for t in two)
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True)) / scale


def gradient(arm: tuple[Any, list[Any]]) -> list[Tensor]:
    """Return the meta-gradient of an arm."""
    return list(torch.autograd.grad(arm[0](), arm[1]))


def compared() -> list[str]:
    """Return what the meta-gradients are worth, in float64, sentences."""
    said = []
    for kind, network in (("mlp", mlp), ("conv4", conv4)):
        tasks = episodes(2, 1).to(torch.float64)
        arms = maml_arms(network().double(), tasks, "auto" if kind == "mlp" else "vmap")
        loop = gradient(arms["loop"])
        said.append(
            f"{kind}, MAML, ours against the loop: {apart(gradient(arms['ours']), loop):.1e}"
        )
        if kind == "mlp":
            pair = ticket_arms(network().double(), tasks, "auto")
            error = apart(gradient(pair["ours"]), gradient(pair["loop"]))
            said.append(f"{kind}, Meta-ticket, ours against the loop: {error:.1e}")
        for name, (step, model) in rival_arms(kind, tasks).items():
            step()
            theirs = [p.grad for p in model.parameters()]
            said.append(f"{kind}, MAML, {name} against the loop: {apart(theirs, loop):.1e}")
    return said


def main() -> None:
    """Compare gradients, time, print, and write the results where they are wanted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rival", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--note", default="")
    options = parser.parse_args()
    if options.rival is not None:
        sys.path.append(str(options.rival))
    torch.set_num_threads(1)
    said = compared()
    print("\n".join(said), flush=True)
    rows: list[Ratio] = []
    for shots in (1, 5):
        for t in (4,) if options.quick else (1, 4, 16, 32, 100):
            for method, make in (("maml", maml_arms), ("meta-ticket", ticket_arms)):
                tasks = episodes(t, shots)
                arms = make(mlp(), tasks, "auto")
                others = {"loop": stepper(*arms["loop"])}
                if method == "maml":
                    others |= {n: step for n, (step, _) in rival_arms("mlp", tasks).items()}
                n = options.rounds if t <= 4 else max(5, options.rounds // t)
                rows += timed(method, f"mlp, 5-way {shots}-shot, T={t}", arms, others, n)
                goal = GOALS[method, shots]
                if t == 4:
                    rows[-len(others)] = with_goal(rows[-len(others)], goal)
                if t == 4 and not options.quick:
                    arms["ours"] = make(mlp(), tasks, "auto", compiled=True)["ours"]
                    loop = {"loop": others["loop"]}
                    rows += timed(f"{method}, compiled", rows[-1].setting, arms, loop, n)
                    rows[-1] = with_goal(rows[-1], goal)
    for t in (4,) if options.quick else (1, 4, 16):
        tasks = episodes(t, 1)
        paths = {p: maml_arms(conv4(), tasks, p)["ours"] for p in ("vmap", "loop")}
        arms = maml_arms(conv4(), tasks, "auto")
        others = {"loop": stepper(*arms["loop"])}
        others |= {f"ours, path={p}": stepper(*arm) for p, arm in paths.items()}
        others |= {n: step for n, (step, _) in rival_arms("conv4", tasks).items()}
        n = max(5, options.rounds // (4 * t))
        rows += timed("maml", f"conv4, 5-way 1-shot, T={t}", arms, others, n)
    reading = "Largest difference of meta-gradients in float64, over their largest value:\n\n"
    reading += "\n".join(f"- {line}" for line in said) + (
        f"\n\n{options.note}" if options.note else ""
    )
    if options.results is not None:
        title = "Few-shot learning: an outer step against a plain loop and a rival"
        write(options.results, "fewshot", title, command_line(), rows, reading)


def timed(
    method: str, setting: str, arms: dict[str, Any], others: dict[str, Any], n: int
) -> list[Ratio]:
    """Time ours against all others, once unmeasured, and print a line for each."""
    ours = stepper(*arms["ours"])
    for call in (ours, *others.values()):
        call()
    rows = against(setting, (method, ours), others, n=n)
    for r in rows:
        print(
            f"{r.setting}: {r.arm} {r.milliseconds:.1f} ms, {r.baseline} {r.baseline_milliseconds:.1f} ms: "
            f"{1 / r.ratio:.2f}x [{1 / r.ratio_high:.2f}, {1 / r.ratio_low:.2f}]",
            flush=True,
        )
    return rows


def with_goal(row: Ratio, goal: float) -> Ratio:
    """Return a row with what was aimed at: so many times faster than its baseline."""
    from dataclasses import replace

    return replace(row, target=1 / goal)


if __name__ == "__main__":
    main()
