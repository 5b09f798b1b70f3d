"""IteRand against edge-popup at equal width, and how much narrower it may be.

`cpu`: Fashion-MNIST, three strided convolutions at four width factors, both weight laws, five
seeds, 5 epochs of 422 steps with a redraw every 30 (70 redraws): 24 minutes on two cores. Expected:
IteRand above edge-popup by 1 to 4 points at every width with uniform weights, by 0.4 to 3 with
signed constants.

`paper`: CIFAR-10 with Conv2/4/6 and ResNet-18/34 and ImageNet with ResNet-50, at the settings of
the paper; bring GPUs, and ImageNet as `imagenet/train` and `imagenet/test` (its validation images)
below the data root. `gpu`: ResNet-18 and Conv6 on CIFAR-10-JPEG, 12 epochs with the paper's number
of redraws, meant for ten minutes of an H200 with four runs side by side (not measured yet).
`smoke`: digits, half a minute.

References:
    Chijiwa et al., "Pruning randomly initialized neural networks with iterative randomization",
    NeurIPS 2021, section 5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from regraft.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    TicketConfig,
    TicketMethod,
)
from regraft.jobs.train import TrainJob
from regraft.recipes.recipe import Reading, Recipe
from regraft.report import Claim, Row, Run, efficiency, estimate

_INITS = {"constant": "signed_kaiming_constant", "uniform": "kaiming_uniform"}
_SEARCHES: tuple[TicketMethod, ...] = ("edge_popup", "iterand")
_CONTROLS: tuple[TicketMethod, ...] = ("random_mask", "random_mask_trained", "shuffled_mask")


def recipe(scale: str, seeds: int | None = None) -> Recipe:
    """Return the recipe at a scale."""
    build, default_seeds = {
        "smoke": (_smoke, 3),
        "cpu": (_cpu, 5),
        "gpu": (_gpu, 3),
        "paper": (_paper, 3),
    }[scale]
    jobs = [
        job.with_seed(seed) for job in build() for seed in range(1, (seeds or default_seeds) + 1)
    ]
    return Recipe(
        name="iterand",
        scale=scale,
        title=f"IteRand against edge-popup ({scale})",
        asked=(
            "Pruning a random network by edge-popup needs a wide network. Does re-randomising the "
            "pruned weights every few iterations (IteRand) find a better subnetwork at equal width, "
            "and how much narrower may the network be for equal accuracy?"
        ),
        jobs=jobs,
        read=_read,
    )


def _arms(
    setting: str,
    *,
    data: DataConfig,
    model: ModelConfig,
    ticket: TicketConfig,
    search: OptimConfig,
    dense: OptimConfig,
    runtime: RuntimeConfig,
    controls: Iterable[TicketMethod] = (),
    searches: Iterable[TicketMethod] = _SEARCHES,
) -> list[TrainJob]:
    """Return every arm of one setting: dense, the searches, and the mask controls asked for."""

    def job(method: TicketMethod, optim: OptimConfig, **more: object) -> TrainJob:
        return TrainJob(
            setting=setting,
            arm=method,
            data=data,
            model=model,
            ticket=replace(ticket, method=method),
            optim=optim,
            runtime=runtime,
            **more,  # pyrefly: ignore
        )

    jobs = [job("dense", dense)]
    for method in searches:
        jobs.append(job(method, search, control="edge_popup" if method == "iterand" else None))
    iterand = jobs[-1]
    for method in controls:
        more = {"source": iterand} if method == "shuffled_mask" else {}
        optim = dense if method == "random_mask_trained" else search
        jobs.append(job(method, optim, control="edge_popup", **more))
    return jobs


def _smoke() -> list[TrainJob]:
    optim = OptimConfig(lr=0.4, epochs=100, batch_size=64)
    return _arms(
        "digits/conv_small/constant/width=0.5",
        data=DataConfig(name="digits", validation=0.1),
        model=ModelConfig(name="conv_small", width=0.5),
        ticket=TicketConfig(sparsity=0.5, every=24, rate=0.1),
        search=optim,
        dense=replace(optim, lr=0.2),
        runtime=RuntimeConfig(accelerator="cpu", threads=1, eval_every=5),
    )


def _cpu() -> list[TrainJob]:
    # Learning rates: best validation accuracy at width 0.5, uniform weights, seed 11 (not one of
    # the seeds reported), of 0.1, 0.2, 0.4, 0.8, 1.6, 3.2 for each search (the same one won for
    # both) and of 0.02, 0.05, 0.1, 0.2 for dense training.
    optim = OptimConfig(lr=0.8, epochs=5, batch_size=128)
    jobs: list[TrainJob] = []
    for law, init in _INITS.items():
        for width in (0.25, 0.5, 1.0, 1.5):
            setting = _arms(
                f"fashion_mnist/conv_small/{law}/width={width:g}",
                data=DataConfig(name="fashion_mnist", validation=0.1),
                model=ModelConfig(name="conv_small", width=width),
                ticket=TicketConfig(weight_init=init, sparsity=0.5, every=30, rate=0.1),  # pyrefly: ignore
                search=optim,
                dense=replace(optim, lr=0.2),
                runtime=RuntimeConfig(accelerator="cpu", threads=1),
                controls=_CONTROLS if (law, width) == ("uniform", 0.5) else (),
            )
            # The dense network does not depend on the law of the frozen weights.
            jobs += setting if law == "uniform" else [j for j in setting if j.arm != "dense"]
    return jobs


def _gpu() -> list[TrainJob]:
    jobs: list[TrainJob] = []
    for name, sparsity, lr, decay, dense_lr in (
        ("conv6", 0.5, 0.3, 1e-4, 0.01),
        ("resnet18", 0.6, 0.1, 5e-4, 0.1),
    ):
        optim = OptimConfig(lr=lr, weight_decay=decay, epochs=12, batch_size=128)
        for width in (0.25, 0.5):
            jobs += _arms(
                f"cifar10_jpeg/{name}/constant/width={width:g}",
                data=DataConfig(name="cifar10_jpeg", augment="crop-flip"),
                model=ModelConfig(name=name, width=width),
                ticket=TicketConfig(sparsity=sparsity, every=40, rate=0.1),
                search=optim,
                dense=replace(optim, lr=dense_lr),
                runtime=RuntimeConfig(
                    accelerator="cuda", precision="bf16-mixed", threads=4, eval_every=4
                ),
            )
    return jobs


def _paper() -> list[TrainJob]:
    """Return the published settings (card A3); sparsity of Conv2 and Conv4 as for Conv6."""
    jobs: list[TrainJob] = []
    runtime = RuntimeConfig(accelerator="auto", eval_every=5)
    for name, sparsity, lr, dense_lr, decay in (
        ("conv2", 0.5, 0.3, 0.01, 1e-4),
        ("conv4", 0.5, 0.3, 0.01, 1e-4),
        ("conv6", 0.5, 0.3, 0.01, 1e-4),
        ("resnet18", 0.6, 0.1, 0.1, 5e-4),
        ("resnet34", 0.6, 0.1, 0.1, 5e-4),
    ):
        optim = OptimConfig(lr=lr, weight_decay=decay, epochs=100, batch_size=128)
        for law, init in _INITS.items():
            for width in (0.25, 0.5, 1.0, 2.0):
                jobs += _arms(
                    f"cifar10/{name}/{law}/width={width:g}",
                    data=DataConfig(name="cifar10", augment="resized-crop-flip"),
                    model=ModelConfig(name=name, width=width),
                    ticket=TicketConfig(weight_init=init, sparsity=sparsity, every=300, rate=0.1),  # pyrefly: ignore
                    search=optim,
                    dense=replace(optim, lr=dense_lr),
                    runtime=runtime,
                )
    imagenet = OptimConfig(
        lr=0.1,
        weight_decay=1e-4,
        epochs=105,
        batch_size=128,
        warmup_epochs=5,
        cooldown_epochs=5,
        cooldown_lr=1e-5,
    )
    jobs += _arms(
        "imagenet/resnet50/constant/width=1",
        data=DataConfig(name="imagenet", validation=0.01, augment="resized-crop-flip"),
        model=ModelConfig(name="torchvision/resnet50"),
        ticket=TicketConfig(sparsity=0.7, every=1000, rate=0.1),
        search=imagenet,
        dense=imagenet,
        runtime=runtime,
    )
    return jobs


def _read(runs: list[Run], rows: list[Row]) -> Reading:
    iterand = [r for r in rows if r.arm == "iterand"]
    families = list(dict.fromkeys(r.setting.rpartition("/")[0] for r in iterand))
    claims: list[Claim] = []
    sentences: list[str] = []
    if len(iterand) == 1:
        sentences.append(
            "One width and a few seeds prove nothing: the scale cpu asks the question."
        )
        families = []
    for family in families:
        members = [r for r in iterand if r.setting.rpartition("/")[0] == family]
        claims += _at_equal_width(family, members, runs)
        gains = ", ".join(
            f"{r.paired_difference:+.2f} at {r.setting.rpartition('/')[2]}"
            for r in members
            if r.paired_difference is not None
        )
        sentences.append(f"{family}: IteRand minus edge-popup, same seed, in points: {gains}.")
        ratios = equal_accuracy_widths(runs, family)
        if ratios:
            narrower = estimate(ratios)
            interval = _interval(narrower.low, narrower.high, 2)
            claims.append(
                Claim(
                    paper=f"IteRand may be narrower for equal accuracy ({family})",
                    held=narrower.high is not None and narrower.high < 1,
                    evidence=[r.setting for r in members],
                    note=f"It needs {narrower.mean:.2f}{interval} of the width of edge-popup.",
                )
            )
            sentences.append(
                f"For the accuracy of edge-popup, IteRand needs {narrower.mean:.2f}{interval} of its "
                f"width (geometric mean over the accuracies both reach, n = {narrower.n} seeds)."
            )
    figures = {}
    if len(iterand) > 1:
        drawn = [r for r in rows if r.arm in ("dense", *_SEARCHES)]
        figures = {
            "width": efficiency(drawn, "width"),
            "stored_bytes": efficiency(drawn, "stored_bytes"),
        }
    return Reading(claims=claims, text="\n\n".join([*sentences, _NOTES]), figures=figures)


_NOTES = (
    "The accuracy is that of the last epoch on the test set, which chose nothing. random_mask "
    "is the untrained start of the search, random_mask_trained trains the weights under a "
    "random mask of the same sparsity, and shuffled_mask shuffles the masks that IteRand "
    "found within each layer (in all of them the statistics of normalisation are taken from "
    "the training data)."
    "\n\n"
    "Stored bytes are those of the ticket file: one bit a weight for the mask and, where "
    "IteRand redrew weights, a sign bit (constant weights) or a 16-bit event number (uniform "
    "weights) for each kept weight; for trained weights float32, and under a random mask a bit "
    "a weight and the kept values. IteRand buys accuracy for width, not always for bytes."
)


def _at_equal_width(family: str, members: list[Row], runs: list[Run]) -> list[Claim]:
    """Return the claim over all widths of a family together, and the one for each by itself."""
    evidence = [r.setting for r in members]
    known = [r for r in members if r.paired_low is not None and r.paired_high is not None]
    wins = [r for r in known if (r.paired_low or 0) > 0]
    losses = [r for r in known if (r.paired_high or 0) < 0]
    each = Claim(
        paper=f"IteRand beats edge-popup at equal width, at each width by itself ({family})",
        held=len(wins) == len(members),
        evidence=evidence,
        note=f"The paired 95% interval lies above zero at {len(wins)} of {len(members)} widths"
        + (f", below it at {len(losses)}" if losses else "")
        + "".join(
            f"; {r.setting.rpartition('/')[2]}: {r.paired_difference:+.2f}"
            f"{_interval(r.paired_low, r.paired_high, 2)}"
            for r in known
            if r not in wins
        )
        + ".",
    )
    if len(members) < 2:
        return [each]
    gains: dict[int, list[float]] = {}
    for setting in evidence:
        by_arm = {
            arm: {
                r.seed: r.result.metrics["test_accuracy"]
                for r in runs
                if r.result is not None and (r.setting, r.arm) == (setting, arm)
            }
            for arm in _SEARCHES
        }
        for seed in by_arm["iterand"].keys() & by_arm["edge_popup"].keys():
            gain = by_arm["iterand"][seed] - by_arm["edge_popup"][seed]
            gains.setdefault(seed, []).append(gain)
    over_all = estimate(sum(g) / len(g) for g in gains.values())
    together = Claim(
        paper=f"IteRand beats edge-popup at equal width, mean over widths ({family})",
        held=over_all.low is not None and over_all.low > 0,
        evidence=evidence,
        note=f"{over_all.mean:+.2f}{_interval(over_all.low, over_all.high, 2)} points, "
        f"n = {over_all.n} seeds.",
    )
    return [together, each]


def _interval(low: float | None, high: float | None, digits: int) -> str:
    return "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"


def equal_accuracy_widths(runs: list[Run], family: str) -> list[float]:
    """Return, per seed, the width IteRand needs over the width edge-popup needs (geometric mean).

    Both curves accuracy(log width) of a seed are made monotone (running maximum) and interpolated
    linearly; the ratio is averaged in log width over the accuracies that both curves reach.
    """
    curves: dict[tuple[str, int], dict[float, float]] = {}
    for run in runs:
        prefix, _, last = run.setting.rpartition("/")
        if run.result is None or prefix != family or run.arm not in _SEARCHES:
            continue
        width = float(last.removeprefix("width="))
        accuracy = run.result.metrics["test_accuracy"]
        curves.setdefault((run.arm, run.seed), {})[width] = accuracy
    ratios = []
    for seed in sorted({s for _, s in curves}):
        pair = [curves.get((arm, seed), {}) for arm in _SEARCHES]
        if min(len(c) for c in pair) < 2:
            continue
        (we, ae), (wi, ai) = (
            (np.log(sorted(c)), np.maximum.accumulate([c[w] for w in sorted(c)])) for c in pair
        )
        low, high = max(ae[0], ai[0]), min(ae[-1], ai[-1])
        if high <= low:
            continue
        at = np.linspace(low, high, 101)
        gap = np.interp(at, ai, wi) - np.interp(at, ae, we)
        ratios.append(float(np.exp(gap.mean())))
    return ratios
