"""What MGR costs: steps against plain training, exact against finite differences, and memory.

    python benchmarks/mgr.py --out docs/results       # about five minutes on one core
    python benchmarks/mgr.py --quick                  # a minute on a narrow network, prints only

One call is a cycle of four training steps (forward, backward, SGD), so that a meta step every fourth
iteration is in each. All arms take turns in one process on networks of their own; a ratio is of neighbouring
calls. Generated images are as many as real ones. Times are those of the processor, in one thread, so that
a loaded machine changes them little. PCR passes over three times as many images as a plain step: a plain
step on as many stands beside it, since PCR with a gradient to both branches cannot be much cheaper; beside
PCR with a gradient to one of them stand two plain steps and a forward pass, likewise. The
memory of a meta step is what autograd saves for a backward pass, added up tensor by tensor, each storage once.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import measure
from measure import Ratio, against, write
from regraft.config import MGRConfig, ModelConfig
from regraft.generators.mgr import MGR
from regraft.generators.sources import ConditionalVAE, ModuleSource
from regraft.models import build
from regraft.train import command_line, keep_freed_memory

CYCLE = 4
ARMS: dict[str, MGRConfig | None] = {
    "base": None,
    "GDA": MGRConfig(loss="ce", select="uniform"),
    "PCR": MGRConfig(select="uniform"),
    "PCR, gradient of one branch": MGRConfig(select="uniform", gradient="strong"),
    "MGR exact": MGRConfig(every=CYCLE),
    "MGR exact, half a batch": MGRConfig(every=CYCLE, meta_batch=16),
    "MGR finite difference": MGRConfig(every=CYCLE, hypergradient="finite"),
    "pool by gradient": MGRConfig(select="gradient", every=CYCLE, norm="running", pool=4),
    "pool by entropy": MGRConfig(select="entropy", every=CYCLE, pool=4),
}
WIDE = "base, three times the images"
BARE = "base twice, and a pass without a graph"
PAIRS = (
    (WIDE, "base", None),
    (BARE, "base", None),
    ("PCR", WIDE, None),
    ("PCR, gradient of one branch", BARE, None),
    ("GDA", "base", None),
    ("PCR", "base", 2.3),
    ("PCR, gradient of one branch", "base", 2.3),
    ("MGR exact", "base", None),
    ("MGR exact", "PCR", 1.5),
    ("MGR exact, half a batch", "PCR", 1.5),
    ("MGR finite difference", "PCR", None),
    ("MGR exact", "MGR finite difference", 1.3),
    ("pool by gradient", "PCR", None),
    ("pool by entropy", "PCR", None),
)


def source() -> ModuleSource:
    """Return a generator with random weights, spread so far that its images differ."""
    torch.manual_seed(0)
    generator = ConditionalVAE((3, 32, 32), 10, latent=16)
    with torch.no_grad():
        for tensor in generator.decoder.parameters():
            tensor *= 3
    return ModuleSource(generator, labels="onehot", pixels="[0,1]")


def network(width: float) -> nn.Module:
    torch.manual_seed(0)
    model = ModelConfig(name="resnet20", width=width)
    return build(model, num_classes=10, channels=3, image_size=32).train()


def real(n: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.rand(n, 3, 32, 32, generator=draw), torch.arange(n) % 10


def cycle(config: MGRConfig | None, width: float, batch: int) -> Callable[[], None]:
    """Return a call that takes four training steps of a network of its own."""
    model = network(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, labels = real(100)
    x, y = images[:batch], labels[:batch]
    mgr = None
    if config is not None:
        mgr = MGR(source(), config).prepare(model, images, labels, batch=batch)
    taken = [0]

    def call() -> None:
        for _ in range(CYCLE):
            loss = F.cross_entropy(model(x), y)
            if mgr is not None:
                loss = loss + mgr.loss(model, taken[0])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            taken[0] += 1

    return call


def bare(width: float, batch: int) -> Callable[[], None]:
    """Return what PCR with a gradient to one branch has to pay for, without images and views: four steps."""
    model = network(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x, y = (part[:batch] for part in real(100))

    def call() -> None:
        for _ in range(CYCLE):
            loss = F.cross_entropy(model(x), y) + F.cross_entropy(model(x), y)
            with torch.no_grad():
                model(x)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return call


def saved_bytes(call: Callable[[], Any]) -> int:
    """Return the bytes that autograd saves in a call, each storage once, kept to its end."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def meta(hypergradient: Any, width: float, batch: int) -> Callable[[], Any]:
    """Return a call that takes one meta step of MGR and nothing else."""
    model = network(width)
    images, labels = real(100)
    mgr = MGR(source(), MGRConfig(every=1, hypergradient=hypergradient))
    mgr.prepare(model, images, labels, batch=batch)
    taken = [0]

    def call() -> None:
        taken[0] += 1
        mgr._update(taken[0], batch, None)

    return call


def full_unroll(width: float, batch: int) -> Callable[[], Any]:
    """Return a call of the slow twin: the whole step ahead as one graph, generator and views in it."""
    model = network(width)
    images, labels = real(100)
    mgr = MGR(source(), MGRConfig()).prepare(model, images, labels, batch=batch)
    passes, folds = mgr.passes, mgr._folds
    if passes is None or folds is None:
        raise RuntimeError("not prepared")

    def call() -> None:
        draw = torch.Generator().manual_seed(0)
        (x, y), (xv, yv) = folds.train(0, batch, draw), folds.validation(0, batch, draw)
        with torch.no_grad():
            made = mgr._made(batch, draw)
        weights = {n: w.detach().requires_grad_() for n, w in passes.weights().items()}
        z = mgr.finder(made.latents, made.labels)
        clean = mgr.source.sample(batch, labels=made.labels, latents=z)
        strong = mgr.views.apply(clean, made.record)
        inner = mgr.losses(weights, clean, strong, made.labels).mean()
        loss = F.cross_entropy(passes(x, weights).logits, y) + inner
        slopes = torch.autograd.grad(
            loss, list(weights.values()), create_graph=True, allow_unused=True
        )
        ahead = {
            n: w if s is None else w - 0.05 * s
            for (n, w), s in zip(weights.items(), slopes, strict=True)
        }
        buffers = {n: b.clone() for n, b in model.named_buffers()}
        value = F.cross_entropy(functional_call(model, {**ahead, **buffers}, (xv,)), yv)
        torch.autograd.grad(value, list(mgr.finder.parameters()))

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for bench_mgr.md, .svg and .json")
    parser.add_argument("--quick", action="store_true", help="a narrow network; prints only")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    measure.clock = time.process_time
    torch.set_num_threads(1)
    width, batch = (0.25, 8) if options.quick else (0.5, 32)
    setting = (
        f"ResNet-20{'' if width == 1 else f' at width {width}'}, 32x32, batch {batch} + {batch}"
    )
    calls = {name: cycle(config, width, batch) for name, config in ARMS.items()}
    calls[WIDE], calls[BARE] = cycle(None, width, 3 * batch), bare(width, batch)
    for call in calls.values():
        call()
    rows: list[Ratio] = []
    for arm, baseline, target in PAIRS:
        pair = {baseline: calls[baseline]}
        targets = {} if target is None else {baseline: target}
        rows += against(setting, (arm, calls[arm]), pair, n=options.rounds, targets=targets)
        last = rows[-1]
        print(
            f"{arm} over {baseline}: {last.ratio:.2f} [{last.ratio_low:.2f}, {last.ratio_high:.2f}]"
            + ("" if target is None else f", goal {target:g}"),
            flush=True,
        )
    steps = {
        "exact": meta("exact", width, batch),
        "finite difference": meta("finite", width, batch),
        "full unroll": full_unroll(width, batch),
    }
    for baseline, target in (("finite difference", 1.3), ("full unroll", 1.0)):
        one = ("meta step, exact", steps["exact"])
        pair, targets = (
            {f"meta step, {baseline}": steps[baseline]},
            {f"meta step, {baseline}": target},
        )
        rows += against(setting, one, pair, n=options.rounds, targets=targets)
        last = rows[-1]
        print(
            f"exact meta step over {baseline}: {last.ratio:.2f} [{last.ratio_low:.2f}, {last.ratio_high:.2f}]"
        )
    saved = {name: saved_bytes(call) / 2**20 for name, call in steps.items()}
    memory = ", ".join(f"{name} {size:.1f} MiB" for name, size in saved.items())
    print(f"saved for backward passes in one meta step: {memory}")
    if options.out is not None and not options.quick:
        load = os.getloadavg()[0]
        busy = (
            f"The machine was loaded (load {load:.1f} on {os.cpu_count()} cores), and times are those of the "
            "processor. "
            if load > 1.5
            else ""
        )
        missed = [r for r in rows if r.target is not None and r.ratio_low > r.target]
        said = "; ".join(
            f"{r.arm} over {r.baseline}: {r.ratio:.2f}, goal {r.target}" for r in missed
        )
        reading = (
            f"{busy}PCR passes three times as many images through the network, all with a graph or a third of "
            "them without: the two plain rows are what that costs at least, without images and views. "
            f"Goals missed with the whole interval: {said or 'none'}. Saved for backward passes in one "
            f"meta step (a storage once, all kept to the end): {memory}."
        )
        title = "MGR's training step against plain training, and its memory"
        write(options.out, "mgr", title, command_line(), rows, reading)


if __name__ == "__main__":
    main()
