"""What edge-popup costs beside the same network trained normally, and what its threshold costs.

    python benchmarks/tickets.py --out docs/results        # about six minutes on two cores

Every ratio is measured in one process, the two calls in turn, after warm-up; the median of the
ratios of neighbouring calls is given with a 95% bootstrap interval. A *training step* is zero_grad,
forward, cross-entropy, backward and SGD with momentum and weight decay. Both arms run under the
same allocator settings (`regraft.train.keep_freed_memory`) and the same threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from measure import Ratio, in_turn, median_ms, write
from regraft import streams
from regraft.models import MLP, ConvN, ResNet
from regraft.tickets import IteRand, ThresholdSelector, edge_popup, named_masks
from regraft.train import command_line, keep_freed_memory

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int, int]] = {
    "ResNet-18, 32x32, batch 128": (lambda: ResNet(18, 10), (3, 32, 32), 128, 5),
    "Conv6, batch 128": (lambda: ConvN(6, 10), (3, 32, 32), 128, 9),
    "MLP 784-1024-1024-10, batch 512": (lambda: MLP(784, [1024, 1024], 10), (1, 28, 28), 512, 60),
    "MLP 784-1024-1024-10, batch 128": (lambda: MLP(784, [1024, 1024], 10), (1, 28, 28), 128, 120),
}


def training_step(
    model: nn.Module, shape: tuple[int, ...], batch: int, device: str, *, after: Any = None
) -> Callable[[], None]:
    """Return a call that takes one training step on fixed random images."""
    model.to(device)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9, weight_decay=1e-4
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *shape, generator=generator).to(device)
    y = torch.randint(0, 10, (batch,), generator=generator).to(device)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if after is not None:
            after.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def floor_ms(model: nn.Module) -> float:
    """Return the least time edge-popup's own memory passes take on these tensors, by themselves.

    A pass that counts scores, one that makes W * M, one that makes W * gradient: all that is left
    when selection, Python and cold caches cost nothing.
    """
    total = 0.0
    for _, entry, mask in named_masks(model):
        scores, weight = entry.original.detach(), mask.weight
        flags = np.empty(scores.numel(), dtype=bool)
        flat = scores.reshape(-1).numpy()

        def passes(w: Any = weight, s: Any = scores, f: Any = flat, out: Any = flags) -> None:
            np.count_nonzero(np.less(f, np.float32(0), out=out))
            torch.ops.aten.threshold_backward(w, s, 0.0)
            torch.mul(w, s)

        total += median_ms(passes, 20)
    return total


def steps(threads: int, device: str) -> list[Ratio]:
    """Measure a step of every network."""
    torch.set_num_threads(threads)
    where = device if device == "cuda" else f"{threads} thread{'s' if threads > 1 else ''}"
    target = 1.05 if device == "cuda" else 1.15
    rows = []
    for name, (make, shape, batch, n) in NETWORKS.items():
        torch.manual_seed(0)
        dense = training_step(make(), shape, batch, device)
        masked = edge_popup(make(), sparsity=0.5, seed=0)
        extra = 0.0 if device == "cuda" else floor_ms(masked)
        arm = training_step(masked, shape, batch, device)
        rows.append(
            in_turn(
                f"{name}, {where}",
                ("edge-popup step", arm),
                ("dense step", dense),
                n=n,
                target=target,
                floor=None if device == "cuda" else lambda ms, e=extra: (ms + e) / ms,
            )
        )
        print(f"{rows[-1].setting}: {rows[-1].ratio:.3f}", flush=True)
    return rows


def variants(threads: int) -> list[Ratio]:
    """Measure what the options add, on the network where they show most."""
    torch.set_num_threads(threads)
    make, shape, batch, n = NETWORKS["Conv6, batch 128"]
    plain = training_step(edge_popup(make(), seed=0), shape, batch, "cpu")
    rows = []
    named: dict[str, dict[str, Any]] = {
        "magnitude": {"score": "magnitude"},
        "global threshold": {"scope": "global"},
        "IteRand, a redraw at every step": {},
    }
    for name, options in named.items():
        model = edge_popup(make(), seed=0, **options)
        after = IteRand(model, every=1, rate=0.1) if "IteRand" in name else None
        arm = training_step(model, shape, batch, "cpu", after=after)
        rows.append(
            in_turn(
                f"Conv6, batch 128, {threads} threads",
                (f"edge-popup, {name}", arm),
                ("edge-popup step", plain),
                n=n,
            )
        )
    return rows


def threshold(n: int = 5000) -> list[Ratio]:
    """Measure exact selection over the scores of a layer that is being trained, n x n of them."""
    torch.set_num_threads(1)
    model = edge_popup(nn.Linear(n, n, bias=False), sparsity=0.5, seed=0)
    ((_, entry, _),) = named_masks(model)
    optimizer = torch.optim.SGD([entry.original], lr=0.1, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    selector = ThresholdSelector()
    rank = n * n // 2
    tracked: list[float] = []
    sorted_: dict[str, list[float]] = {"torch.sort": [], "torch.kthvalue": [], "numpy.sort": []}
    for step in range(24):
        optimizer.zero_grad()
        x = torch.randn(16, n, generator=generator)
        (model(x).square().mean() * 100).backward()
        optimizer.step()
        flat = entry.original.detach().reshape(-1)
        found: list[float] = []
        tracked.append(median_ms(lambda: found.append(selector([flat.numpy()], rank)), 1, 0))
        if step % 8 == 4:  # the baselines are slow and do not depend on the step
            sorted_["torch.sort"].append(median_ms(lambda: torch.sort(flat), 1, 0))
            sorted_["torch.kthvalue"].append(
                median_ms(lambda: torch.kthvalue(flat, rank + 1), 1, 0)
            )
            sorted_["numpy.sort"].append(median_ms(lambda: np.sort(flat.numpy()), 1, 0))
            assert found[0] == np.partition(flat.numpy(), rank)[rank]
    mean = statistics.fmean(tracked)
    print(f"threshold: mean {mean:.1f} ms over {len(tracked)} steps, {selector.__dict__['recentred']} "
          f"recentred, {selector.selected} from scratch")  # fmt: skip
    rows = []
    rng = np.random.default_rng(0)
    draws = np.array(tracked)[rng.integers(0, len(tracked), (2000, len(tracked)))].mean(axis=1)
    for name, times in sorted_.items():
        base = statistics.median(times)
        low, high = np.percentile(draws / base, [2.5, 97.5])
        rows.append(
            Ratio(
                setting=f"threshold of {n * n / 1e6:.0f} million scores, 1 thread",
                arm="exact selection, mean over training steps",
                baseline=f"{name} at each step",
                n=len(tracked),
                ratio=mean / base,
                ratio_low=float(low),
                ratio_high=float(high),
                milliseconds=mean,
                baseline_milliseconds=base,
                target=1 / 20 if name == "torch.sort" else None,
            )
        )
    return rows


def signs(n: int = 100_000_000) -> Ratio:
    """Measure sign bits against torch's own generator."""
    torch.set_num_threads(1)
    chunk = n // 10
    return in_turn(
        f"{chunk / 1e6:.0f} million random signs, 1 thread",
        ("streams.signs", lambda: streams.signs(1, "w", 0, chunk)),
        ("torch.randn().sign()", lambda: torch.randn(chunk).sign_()),
        n=7,
    )


READING = """
**The floor.** Beside a dense step, edge-popup must count the scores (4 bytes a weight), make W * M (read 8,
write 4, and the cache line it writes to, 4) and make W * gradient (the same): 36 bytes a weight that no
arithmetic hides. In a convolution a weight is used thousands of times a batch, and 36 bytes vanish beside it.
In a linear layer a weight costs 6 x batch floating-point operations a step, so the share falls with the batch:
that is why the multilayer perceptron is measured at two batches. The column *floor* is the dense step plus
those three passes timed alone, with warm caches.

**No gradient for frozen weights.** The gradient of W * M is computed by the layer as in the dense network and
becomes the scores' gradient by one product; none is computed or kept for W (`tests/tickets`).

**Threshold.** Exact at every step: the band around the last threshold proposes, one counting pass proves. The
mean includes the steps at which the band had to be taken anew or the threshold selected from scratch.
"""


def against_targets(rows: list[Ratio]) -> str:
    """Say in words which targets are met, and where even the floor is above one."""
    lines = ["**Against the targets.**"]
    for r in rows:
        if r.target is None:
            continue
        met = "met" if r.ratio <= r.target else "missed"
        sure = ", within its interval" if r.ratio_low <= r.target <= r.ratio_high else ""
        floor = "; the floor itself lies above it" if r.floor and r.floor > r.target else ""
        lines.append(f"{r.setting}: {met}{sure}{floor}.")
    return " ".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--only", choices=["steps", "variants", "threshold", "signs"])
    options = parser.parse_args()
    keep_freed_memory()
    everything = os.cpu_count() or 1
    rows: list[Ratio] = []
    if options.only in (None, "steps"):
        for threads in dict.fromkeys((1, everything)):
            rows += steps(threads, "cpu")
        if torch.cuda.is_available():
            rows += steps(everything, "cuda")
    if options.only in (None, "variants"):
        rows += variants(everything)
    if options.only in (None, "threshold"):
        rows += threshold()
    if options.only in (None, "signs"):
        rows.append(signs())
    title = "Edge-popup beside dense training"
    if options.only is None:
        reading = f"{against_targets(rows)}\n\n{READING.strip()}"
        write(options.out, "tickets", title, command_line(), rows, reading)


if __name__ == "__main__":
    main()
