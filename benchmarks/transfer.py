"""What learning transfer costs: beside the source's training, and beside a plain implementation.

    python benchmarks/transfer.py --out docs/results       # about ten minutes on two cores
    python benchmarks/transfer.py --quick                  # smaller networks, nothing written

The source is trained for ten epochs and carried over in ten steps, or four of a wide one. The baseline
(`plain_transfer.py`) keeps all pairs of gradients in lists, contracts every group of all of them anew
in every sweep, starts each matching at the identity and solves with scipy, on the same threads and the
very batches. All are timed in one process, once a round in an order that turns. The cosines of both
transfers' permuted gradients are told beside the times: a transfer whose cosine is below 0.98 of the
plain one's fits worse, and its speed does not count.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from measure import Ratio, against, write
from plain_transfer import Plain, plain_transfer
from regraft.config import DataConfig, ModelConfig
from regraft.data import ImageSet, Splits, TensorLoader, load
from regraft.models import build
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.trace.trace import trace
from regraft.symmetry.transfer.gradients import Gradients
from regraft.symmetry.transfer.trajectory import Trajectory
from regraft.symmetry.transfer.transfer import Method, Transferred, transfer
from regraft.train import command_line, keep_freed_memory

State = dict[str, Tensor]
TARGET = 1 / 3
FIT = 0.98
"""Share of the plain cosine that the fast one must reach for its speed to count."""


@dataclass(frozen=True)
class Case:
    """A network, the steps that its training is carried over in, and what is timed, how often at most."""

    model: ModelConfig
    steps: int = 10
    rounds: int = 100
    methods: tuple[str, ...] = ("fgmt", "gmt")
    starts: tuple[bool, ...] = (True, False)


# At a width of 2048 the plain transfer takes minutes: fewer steps favour it, since fewer pairs pile up.
NETWORKS = {
    "MLP 784-2048-2048-10": Case(
        ModelConfig(name="mlp", options={"widths": [2048, 2048]}), 4, 1, ("fgmt",), (True,)
    ),
    "conv_small": Case(ModelConfig(name="conv_small", width=2.0)),
}
QUICK = {
    "MLP 784-512-512-10": Case(ModelConfig(name="mlp", options={"widths": [512, 512]})),
    "conv_small": Case(ModelConfig(name="conv_small", width=1.0)),
}


@dataclass
class Setting:
    """A source that was trained, and a target that was not."""

    model: nn.Module
    line: Trajectory
    target: State
    spec: PermutationSpec
    batches: TensorLoader
    count: int
    epochs: int
    start: State

    def train(self) -> State:
        """Train the source as it was trained."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.start)
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for epoch in range(self.epochs):
            for x, y, _ in self.batches.batches(epoch):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        return model.state_dict()

    def ours(self, by: str, warm: bool = True) -> Transferred:
        """Transfer to the last step; warm matchings start from the step before, as by default."""
        data = Gradients(self.model, self.batches, count=self.count)
        method: Method = "gmt" if by == "gmt" else "fgmt"
        *_, last = transfer(self.line, self.target, self.spec, data, by=method, warm_start=warm)
        return last

    def plain(self, by: str) -> Plain:
        """Do the same plainly."""
        return plain_transfer(
            self.line,
            self.target,
            self.spec,
            self.model,
            self.batches,
            count=self.count,
            all_pairs=by == "gmt",
        )


def prepare(case: Case, splits: Splits, count: int, epochs: int) -> Setting:
    config = case.model
    shape = {"num_classes": splits.num_classes, "channels": splits.channels}
    states = []
    model = nn.Module()
    for seed in range(2):
        torch.manual_seed(seed)
        model = build(config, image_size=splits.image_size, **shape)
        states.append({k: v.clone() for k, v in model.state_dict().items()})
    images = splits.train
    if not isinstance(images, ImageSet):
        raise SystemExit("the images do not fit into memory: take a smaller set")
    batches = TensorLoader(
        images,
        batch_size=128,
        mean=splits.mean,
        std=splits.std,
        shuffle=True,
        augment="none",
        seed=1,
    )
    example = torch.randn(2, splits.channels, splits.image_size, splits.image_size)
    spec = trace(copy.deepcopy(model).eval(), example)
    empty = Trajectory.linear(states[0], states[0], steps=1)
    found = Setting(model, empty, states[1], spec, batches, count, epochs, states[0])
    found.line = Trajectory.linear(states[0], found.train(), steps=case.steps)
    return found


def fits(cosine: float, plain: float) -> bool:
    """Whether the fast transfer brings the gradients as close as the plain one does."""
    return cosine >= FIT * plain


def measure(
    networks: dict[str, Case], splits: Splits, n: int, count: int, epochs: int
) -> tuple[list[Ratio], list[str]]:
    rows, shares = [], []
    for name, case in networks.items():
        setting = prepare(case, splits, count, epochs)
        print(name, flush=True)
        for by in case.methods:
            for warm in case.starts:
                # The first round is also what tells how both fit.
                found: dict[str, Any] = {}
                plain = f"plain {by.upper()}"
                baselines: dict[str, Callable[[], object]] = {
                    plain: _kept(found, "plain", partial(setting.plain, by))
                }
                if by == "fgmt" and warm:
                    baselines[f"training the source, {epochs} epochs"] = setting.train
                arm = f"{by.upper()}, {'warm' if warm else 'cold'}"
                measured = against(
                    f"{name}, {case.steps} steps",
                    (arm, _kept(found, "ours", partial(setting.ours, by, warm))),
                    baselines,
                    n=min(n, case.rounds),
                    targets={plain: TARGET},
                )
                shares.append(_shares(f"{name}, {arm}", found["ours"], found["plain"]))
                print(f"  {shares[-1]}", flush=True)
                for row in measured:
                    print(f"  {row.arm} / {row.baseline}: {row.ratio:.3f}", flush=True)
                rows += measured
    return rows, shares


def _kept(found: dict[str, Any], name: str, call: Callable[[], object]) -> Callable[[], object]:
    """Return a call that keeps what the last one returned."""

    def kept() -> object:
        found[name] = call()
        return found[name]

    return kept


def _shares(name: str, ours: Transferred, plain: Plain) -> str:
    costs = ours.costs
    part = {
        "gradients": costs.gradients,
        "contractions": costs.contraction,
        "assignments": costs.assignment,
    }
    told = ", ".join(f"{k} {100 * v / costs.total:.0f}%" for k, v in part.items())
    plainly = plain.gradients / (plain.gradients + plain.matching)
    cosine = ours.cosine or 0.0
    fit = "fits alike" if fits(cosine, plain.cosine) else "FITS WORSE, its speed does not count"
    return (
        f"{name}: {told} of {costs.total:.1f} s ({costs.count} gradients); plainly gradients "
        f"{100 * plainly:.0f}%; cosine {cosine:.3f}, plainly {plain.cosine:.3f}: {fit}"
    )


READING = """
**Fit.** Both take the gradients of a pair on the same batches, and both end in local optima of a hard
matching. Warm matchings, the default, start from the permutation of the step before and stop after two sweeps;
cold ones start anew at every step and run to their end. Where the cosine of a transfer's permuted gradients, over all
pairs, is less than {fit} of the plain one's it fits worse, and the ratio is no gain: that is said below.

**Where the time goes.**

{shares}

Shares are of the time by the clock; contractions and assignments are
counted in all threads.

**Beside training.** FGMT takes 2 T gradients whatever the source's training took, so its share falls with
the size of the data set: here an epoch has {batches} batches. Tracing the network is not counted; it is
done once for an architecture.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--train-size", type=int, default=8000)
    parser.add_argument("--count", type=int, default=2, help="batches of each gradient")
    parser.add_argument("--n", type=int, default=3, help="rounds")
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        splits = load(DataConfig(name="digits", image_size=28))
    else:
        splits = load(DataConfig(name=arguments.data, train_size=arguments.train_size))
    n, epochs = (3, 3) if arguments.quick else (arguments.n, 10)
    networks = QUICK if arguments.quick else NETWORKS
    rows, shares = measure(networks, splits, n, arguments.count, epochs)
    if arguments.out is not None and not arguments.quick:
        batches = -(-len(splits.train) // 128)
        write(
            arguments.out,
            "transfer",
            "What learning transfer costs beside training and beside a plain implementation",
            command_line(),
            rows,
            READING.strip().format(
                fit=FIT, shares="\n".join(f"- {share}" for share in shares), batches=batches
            ),
        )


if __name__ == "__main__":
    main()
