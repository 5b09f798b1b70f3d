"""How good networks become on condensed images, against random real ones and against all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARMS = ("condensed", "random", "all")
_STEPS = 500
_EPOCHS = 5
_BATCH = 128
_LR = 0.05


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the networks of an evaluation have in common.

    Attributes:
        setting: What is compared, e.g. `mnist/mlp/10-per-class`.
        model: The `ModelConfig` of the networks.
        runtime: The `RuntimeConfig`, but for its seed.
        splits: The `Splits` of the data set.
    """

    setting: str
    model: Any
    runtime: Any
    splits: Any

    def run(
        self,
        condensed: Any,
        folder: Path,
        seeds: int,
        progress: Callable[[int, int, dict[str, float]], None] | None = None,
    ) -> list[dict[str, Any]]:
        """Train a network on each arm with each seed, each in a run folder, and return the figures.

        All are trained alike, by SGD with momentum 0.9 and a cosine from 0.05: for 500 steps on
        the condensed images and on as many random ones, which every seed draws anew, and for 5
        epochs on all images. What has finished is only read.

        Args:
            condensed: The `CondensedSet`.
            folder: Where the run folders lie.
            seeds: Number of seeds, from 1 on.
            progress: Called as `progress(trained, of all, newest metrics)` after every step.
        """
        from dataclasses import replace

        import torch

        from regraft.config import to_dict
        from regraft.generators.condensed_set import checksum
        from regraft.models import build
        from regraft.train import Batches, RunFolder, fit, make_fabric

        fabric = make_fabric(self.runtime)
        names = {"condensed": f"condensed/restarts-{condensed.about['restarts']}"}
        jobs = [(arm, seed) for seed in range(1, seeds + 1) for arm in ARMS]
        scores = []
        for i, (arm, seed) in enumerate(jobs):
            train, optim = self._arm(arm, condensed, seed, fabric.device)
            config = {
                "model": to_dict(self.model),
                "optim": to_dict(optim),
                "images": checksum(condensed.images) if arm == "condensed" else len(train),
                "mean": list(condensed.mean),
                "std": list(condensed.std),
            }

            def tell(step: int, steps: int, row: dict[str, float], done: int = i) -> None:
                if progress is not None:
                    progress(round(100 * (done + step / steps)), 100 * len(jobs), row)

            with RunFolder(
                folder / names.get(arm, arm) / f"seed{seed}",
                config=config,
                setting=self.setting,
                arm=arm,
                control=None if arm == "random" else "random",
                seed=seed,
            ) as run:
                result = run.result
                if result is None:
                    torch.manual_seed(seed)
                    network = build(
                        self.model,
                        num_classes=condensed.num_classes,
                        channels=condensed.channels,
                        image_size=condensed.image_size,
                    )
                    result = fit(
                        network,
                        Batches(train, None, self._test(condensed, fabric.device)),
                        optim=optim,
                        runtime=replace(self.runtime, seed=seed),
                        folder=run,
                        progress=tell,
                        fabric=fabric,
                    )
                    run.finish(result)
            scores.append(
                {"arm": arm, "seed": seed, "accuracy": result["metrics"]["test_accuracy"]}
            )
        return scores

    def _arm(self, arm: str, condensed: Any, seed: int, device: Any) -> tuple[Any, Any]:
        """Return the training batches of an arm and the `OptimConfig` for them."""
        from regraft.config import OptimConfig
        from regraft.data.coreset import coreset

        if arm == "all":
            images, epochs, size = self.splits.train, _EPOCHS, _BATCH
        else:
            size = min(256, len(condensed))
            epochs = max(1, round(_STEPS / -(-len(condensed) // size)))
            rows = coreset(self.splits.train, per_class=condensed.per_class, seed=seed)
            images = self.splits.train.subset(rows)
        optim = OptimConfig(
            lr=_LR, weight_decay=5e-4, epochs=epochs, batch_size=size, schedule="cosine"
        )
        if arm == "condensed":
            return condensed.loader(batch_size=size, seed=seed, device=device), optim
        return _loader(images, condensed, size, seed, device, shuffle=True), optim

    def _test(self, condensed: Any, device: Any) -> Any:
        held_out = self.splits.validation if self.splits.test is None else self.splits.test
        return _loader(held_out, condensed, 500, 0, device, shuffle=False)


def _loader(
    images: Any, condensed: Any, size: int, seed: int, device: Any, *, shuffle: bool
) -> Any:
    from regraft.data import batches

    return batches(
        images,
        batch_size=size,
        mean=condensed.mean,
        std=condensed.std,
        shuffle=shuffle,
        augment="none",
        seed=seed,
        device=device,
    )


def summary(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each arm: n, mean with its 95% interval, and the difference to random."""
    from regraft.report.stats import estimate, paired_difference

    by_arm = {
        arm: {f["seed"]: f["accuracy"] for f in scores if f["arm"] == arm}
        for arm in dict.fromkeys(f["arm"] for f in scores)
    }
    rows = []
    for arm, values in by_arm.items():
        row: dict[str, Any] = {"arm": arm, **estimate(values.values())._asdict()}
        if arm != "random":
            against = paired_difference(values, by_arm["random"])
            row |= {
                "difference": against.mean,
                "paired_low": against.low,
                "paired_high": against.high,
            }
        rows.append(row)
    return rows
