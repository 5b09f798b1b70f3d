"""What freezing part of a random network saves: training memory, step time, and stored bytes.

    python benchmarks/freezing.py --out docs/results       # about ten minutes on two cores
    python benchmarks/freezing.py --quick                  # a minute on small networks, prints only

Step times are ratios against the search without freezing (F = 0), the two taken in turn in one
process after warm-up, as in `tickets.py`. Memory is counted tensor by tensor after a training step,
and measured as the peak resident memory of processes of their own, each building one network and
training it for a few steps. Half of what is frozen is pruned for good and half is locked (s = 0.5).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from measure import Ratio, in_turn, write
from packed_tickets import Packed, packed, packed_table
from regraft.files import load_json, write_json
from regraft.models import MLP, ResNet
from regraft.tickets import (
    Freezing,
    Mask,
    edge_popup,
    named_masks,
)
from regraft.tickets.edge_popup import choose
from regraft.train import command_line, keep_freed_memory
from regraft.train.memory import peak_bytes, reset_peak

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
MIB = 2**20


@dataclass(frozen=True)
class Network:
    """A network to train on random images: its builder, image shape, batch, and timed steps."""

    make: Callable[[], nn.Module]
    image: tuple[int, ...]
    batch: int
    steps: int


NETWORKS = {
    "MLP 784-4096-4096-10, batch 128": Network(
        lambda: MLP(784, [4096, 4096], 10), (1, 28, 28), 128, 41
    ),
    "ResNet-18, 32x32, batch 128": Network(lambda: ResNet(18, 10), (3, 32, 32), 128, 7),
}
QUICK = {
    "MLP 784-1024-1024-10, batch 128": Network(
        lambda: MLP(784, [1024, 1024], 10), (1, 28, 28), 128, 21
    ),
    "ResNet-18 at width 0.25, 32x32, batch 16": Network(
        lambda: ResNet(18, 10, width=0.25), (3, 32, 32), 16, 5
    ),
}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Training memory of one frozen share.

    Attributes:
        frozen: F, or None for the dense network, whose weights are trained.
        weights: Number of maskable weights.
        counted_bytes: Scores (or weights), their gradients and momenta, and the masks' buffers.
        counted_ratio: Over that of F = 0.
        peak_bytes: Peak resident memory while training, median over processes.
        above_bytes: What of it comes on top of a process that trains nothing, median.
        above_low: The least over processes.
        above_high: The most.
        above_ratio: The median over that of F = 0.
        n: Number of processes.
    """

    setting: str
    frozen: float | None
    weights: int
    counted_bytes: int
    counted_ratio: float
    peak_bytes: int
    above_bytes: int
    above_low: int
    above_high: int
    above_ratio: float
    n: int


def searching(network: Network, frozen: float) -> nn.Module:
    """Return the network under edge-popup at s = 0.5 with a share F frozen."""
    torch.manual_seed(0)
    freezing = Freezing.balanced(sparsity=0.5, frozen=frozen) if frozen else None
    return edge_popup(network.make(), sparsity=0.5, freezing=freezing, seed=0)


def training(network: Network, model: nn.Module) -> tuple[Callable[[], None], torch.optim.SGD]:
    """Return a call that takes one training step on fixed random images, and its optimiser."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.01, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(network.batch, *network.image, generator=generator)
    y = torch.randint(0, 10, (network.batch,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step, optimizer


def counted(model: nn.Module, optimizer: torch.optim.SGD) -> tuple[int, int]:
    """Return the number of maskable weights and the bytes that training them holds between steps."""
    masks = [(entry.original, mask) for _, entry, mask in named_masks(model)]
    if masks:
        trained = [scores for scores, _ in masks]
        held = [buffer for _, mask in masks for buffer in mask.buffers()]
        weights = sum(mask.weight.numel() for _, mask in masks if isinstance(mask, Mask))
    else:  # dense: the same weights, trained
        trained = [parameter for _, _, _, parameter in choose(model)]
        held = []
        weights = sum(p.numel() for p in trained)
    for parameter in trained:
        held += [parameter, parameter.grad, optimizer.state[parameter]["momentum_buffer"]]
    return weights, sum(t.nbytes for t in held if t is not None)


def probe(network: Network, frozen: float | None) -> None:
    """Train for a few steps in this process, and print what that held and took."""
    tiny = nn.Sequential(nn.Conv2d(network.image[0], 8, 3), nn.Flatten(), nn.LazyLinear(10))
    training(Network(lambda: tiny, network.image, 2, 1), tiny)[0]()  # loads torch's own parts
    reset_peak()
    idle = peak_bytes()
    model = network.make() if frozen is None else searching(network, frozen)
    step, optimizer = training(network, model)
    # Building draws whole tensors once; what lasts is training.
    reset_peak()
    for _ in range(3):
        step()
    weights, held = counted(model, optimizer)
    peak = peak_bytes()
    answer = {"weights": weights, "counted": held, "peak": peak, "above": peak - idle}
    print(json.dumps(answer))


def memory(name: str, repeats: int, quick: bool) -> list[Memory]:
    """Measure the dense network and every share, each in processes of its own, in turn."""
    arms = (None, *SHARES)
    found: dict[float | None, list[dict[str, int]]] = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm in arms:
            command = [sys.executable, __file__, "--probe", name]
            command += [] if arm is None else ["--share", str(arm)]
            command += ["--quick"] if quick else []
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode:
                raise SystemExit(f"measuring {name} at F={arm} failed:\n{answer.stderr}")
            found[arm].append(json.loads(answer.stdout))
    above = {arm: [f["above"] for f in found[arm]] for arm in arms}
    middle = {arm: statistics.median(above[arm]) for arm in arms}
    held = {arm: found[arm][0]["counted"] for arm in arms}
    return [
        Memory(
            setting=name,
            frozen=arm,
            weights=found[arm][0]["weights"],
            counted_bytes=held[arm],
            counted_ratio=held[arm] / held[0.0],
            peak_bytes=int(statistics.median(f["peak"] for f in found[arm])),
            above_bytes=int(middle[arm]),
            above_low=min(above[arm]),
            above_high=max(above[arm]),
            above_ratio=middle[arm] / middle[0.0],
            n=repeats,
        )
        for arm in arms
    ]


def steps(name: str, network: Network, threads: int) -> list[Ratio]:
    """Time a training step of every share against F = 0."""
    whole, _ = training(network, searching(network, 0.0))
    rows = []
    for share in SHARES[1:]:
        partly, _ = training(network, searching(network, share))
        rows.append(
            in_turn(
                f"{name}, {threads} thread{'s' if threads > 1 else ''}",
                (f"step at F={share:g}", partly),
                ("step at F=0", whole),
                n=network.steps,
            )
        )
        print(f"{rows[-1].setting}, F={share:g}: {rows[-1].ratio:.3f}", flush=True)
    return rows


READING = """
**What is held.** Without freezing a weight costs 16 bytes between steps: its score, the score's gradient, its
momentum, and the random weight itself, 4 each. Frozen weights keep only the last, and beside frozen ones every weight
has one byte more that says whether it is free, so that freezing a share F costs 5 + 12 (1 - F) bytes a weight: it
saves from F = 1/12 on, and falls below the dense network's 12 (weight, gradient, momentum) from F = 0.42 on. The peak of the process adds
what freezing leaves alone: activations, and the weights W * M of the step at hand and their gradients. *Above idle* is
the peak while training less the resident memory of the same process before it built the network.

**Step time.** The threshold and the optimiser see the free positions alone, but finding them costs more than the plain
pass over all weights; where the layers' arithmetic is large beside the weights (convolutions), neither shows.

**Packed file.** The masks here are those of untrained scores: what counts for their bytes is each layer's density.
*Overhead* is the file without data-dependent tensors over the entropy bound. Seconds are medians on one thread;
every unpacked network was compared with the searched one and equal to the last bit.
"""


def memory_table(rows: Sequence[Memory]) -> list[str]:
    """Return the lines of the table of memory."""
    lines = [
        "| setting | arm | held, bytes a weight | held, MiB | over F=0 | peak, MiB | above idle, MiB [least, most] | over F=0 | n |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        arm = "dense" if r.frozen is None else f"F={r.frozen:g}"
        above = f"{r.above_bytes / MIB:.0f} [{r.above_low / MIB:.0f}, {r.above_high / MIB:.0f}]"
        lines.append(
            f"| {r.setting} | {arm} | {r.counted_bytes / r.weights:.2f} | {r.counted_bytes / MIB:.1f} | "
            f"{r.counted_ratio:.3f} | {r.peak_bytes / MIB:.0f} | {above} | {r.above_ratio:.3f} | {r.n} |"
        )
    return lines


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for the results; without it, prints only")
    parser.add_argument("--quick", action="store_true", help="small networks and few repeats")
    parser.add_argument("--only", choices=["memory", "steps", "packed"])
    parser.add_argument("--probe", metavar="NETWORK", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    networks = QUICK if options.quick else NETWORKS
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    if options.probe:
        probe(networks[options.probe], options.share)
        return
    repeats = 1 if options.quick else 3
    held: list[Memory] = []
    times: list[Ratio] = []
    files: list[Packed] = []
    if options.only in (None, "memory"):
        for name in networks:
            held += memory(name, repeats, options.quick)
            print("\n".join(memory_table(held[-1 - len(SHARES) :])), flush=True)
    keep_freed_memory()  # the times are those of Regraft's own commands
    if options.only in (None, "steps"):
        for name, network in networks.items():
            times += steps(name, network, threads)
    if options.only in (None, "packed"):
        files = packed("resnet18" if options.quick else "resnet50", 3 if options.quick else 5)
        print("\n".join(packed_table(files)), flush=True)
    if options.out is None or options.only is not None:
        return
    title = "Freezing part of a random network"
    reading = [
        "## Training memory", "", *memory_table(held), "", "## Packed file", "", *packed_table(files),
        "", "## Reading", READING.rstrip(),
    ]  # fmt: skip
    write(options.out, "freezing", title, command_line(), times, "\n".join(reading))
    path = options.out / "bench_freezing.json"
    data = load_json(path, ours=True)
    data |= {"memory": [asdict(r) for r in held], "packed": [asdict(r) for r in files]}
    write_json(path, data, indent=1)


if __name__ == "__main__":
    main()
