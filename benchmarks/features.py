"""What AdaRand costs: its training step against plain fine-tuning, and the memory it holds.

    python benchmarks/features.py --out docs/results       # about fifteen minutes on two cores
    python benchmarks/features.py --quick                  # a minute on a narrow network, prints only

A step is forward, backward, SGD and, for AdaRand, its loss and `step()`. The backbone is a ResNet-18
at 32x32 with a linear layer to d = 2048 features, the size of a ResNet-50's, so that the overhead is
that of a ResNet-50's head over a cheaper backbone. The two steps are taken in turn in one process
after warm-up, on networks of their own. Memory is counted tensor by tensor, in units of K x d.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from measure import Ratio, in_turn, write
from regraft.features import AdaRand, Method, Plain
from regraft.models import ResNet
from regraft.train import command_line, keep_freed_memory

TARGET = 1.03
CLASSES = (10, 200, 1000)
PRIORS = ("repel", "orthogonal")


def network(classes: int, *, width: float, features: int) -> nn.Module:
    torch.manual_seed(0)
    backbone = ResNet(18, 10, width=width)
    layers = nn.Linear(backbone.num_features, features), nn.ReLU(), nn.Linear(features, classes)
    backbone.register_module("head", nn.Identity())
    return nn.Sequential(backbone, *layers)


def stepping(
    method: Method, model: nn.Module, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], None]:
    """Return a training step of a network under a prepared method."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    model.train()

    def step() -> None:
        loss = method(F.cross_entropy(model(x), y), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.step()

    return step


def held(method: AdaRand) -> float:
    """Return the bytes of all the method holds, in units of K x d float32."""
    buffers = sum(b.numel() * b.element_size() for b in method.buffers())
    return buffers / (4 * method.num_classes * method.num_features)


def measured(classes: int, prior: Any, *, quick: bool) -> tuple[Ratio, float, float]:
    """Return the ratio of steps, what AdaRand holds, and the most one of its operations allocates."""
    width, batch, n = (0.25, 16, 7) if quick else (1.0, 64, 25)
    features = 512 if quick else 2048
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 32, 32, generator=generator)
    y = torch.randint(0, classes, (batch,), generator=generator)
    y[:2] = torch.tensor([0, 1])
    steps = {}
    adarand = AdaRand(prior=prior)
    for name, method in (("plain", Plain()), ("adarand", adarand)):
        model = network(classes, width=width, features=features)
        method.prepare(model, [(x, y)], steps=1000)
        steps[name] = stepping(method, model, x, y)
    adarand.present |= True  # as if every class had images
    setting = f"ResNet-18{'' if width == 1 else f' at width {width}'}, batch {batch}, d {features}, K {classes}"
    ratio = in_turn(
        setting,
        (f"AdaRand, {prior}", steps["adarand"]),
        ("plain fine-tuning", steps["plain"]),
        n=n,
        target=TARGET,
    )
    with torch.profiler.profile(profile_memory=True) as profile:
        adarand.step()
    largest = max(event.self_cpu_memory_usage for event in profile.events() or [])
    return ratio, held(adarand), largest / (4 * classes * features)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for bench_features.md, .svg and .json")
    parser.add_argument("--quick", action="store_true", help="a narrow network; prints only")
    options = parser.parse_args()
    keep_freed_memory()
    rows, lines = [], []
    for classes in (10, 100) if options.quick else CLASSES:
        for prior in PRIORS:
            ratio, holds, largest = measured(classes, prior, quick=options.quick)
            rows.append(ratio)
            lines.append(
                f"- {ratio.setting}, {prior}: holds {holds:.2f} x K x d, and its step allocates at "
                f"most {largest:.2f} x K x d at once."
            )
            print(
                f"{ratio.setting}, {prior}: {ratio.ratio:.3f} "
                f"[{ratio.ratio_low:.3f}, {ratio.ratio_high:.3f}]\n{lines[-1]}",
                flush=True,
            )
    if options.out is not None and not options.quick:
        reading = (
            "Memory (mean, spread, running mean and Adam's two moments are five arrays of K x d; a "
            "Gram matrix of the smaller of K and d is the largest that is not):\n\n"
            + "\n".join(lines)
        )
        title = "AdaRand's training step against plain fine-tuning"
        write(options.out, "features", title, command_line(), rows, reading)


if __name__ == "__main__":
    main()
