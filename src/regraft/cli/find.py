"""`regraft ticket find`: search for a ticket on any data and any model."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from regraft.config import (
    Allocation,
    Augmentation,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RuntimeConfig,
    Schedule,
    TicketConfig,
    TicketMethod,
)
from regraft.jobs.progress import Bar, is_first_process

from .json_option import json_object
from .output import print_json, say


@dataclass(frozen=True, kw_only=True)
class Find:
    """Search a random network for a subnetwork that solves a task; only scores are trained.

    Leaves a run folder with `model.ticket` (masks and a seed) and metrics; the same command
    goes on after an interruption. The controls are methods too.
    """

    data: str = "digits"
    """A known data set (`regraft data list`) or a folder of images, one subfolder a class."""
    model: str = "conv_small"
    """A built-in network, timm/NAME, torchvision/NAME or package.module:factory."""
    out: Path
    """Run folder to make or go on with."""
    method: TicketMethod = "iterand"
    """iterand, edge_popup, or a control: dense, random_mask, random_mask_trained."""
    sparsity: float = 0.5
    """Fraction of the weights removed."""
    scope: Literal["layer", "global"] = "layer"
    """One threshold for each layer or one for all."""
    score: Literal["signed", "magnitude"] = "signed"
    """Rank by score or by its absolute value."""
    weight_init: Literal["signed_kaiming_constant", "kaiming_uniform", "kaiming_normal"] = (
        "signed_kaiming_constant"
    )
    """Law of the frozen random weights."""
    frozen: float | None = None
    """Freeze this share of the weights, pruned and locked so that half of the rest is kept."""
    pruned: float = 0.0
    """Share of the weights pruned for good before the search."""
    locked: float = 0.0
    """Share of the weights locked into the subnetwork; the sparsity is at most 1 - locked."""
    allocation: Allocation = "uniform"
    """How the frozen shares spread over the layers."""
    dynamic_scale: bool = False
    """Multiply each layer by 1/sqrt(its kept share)."""
    every: int = 100
    """IteRand: iterations between two re-randomisations."""
    rate: float = 0.1
    """IteRand: probability that a pruned weight is redrawn."""
    anneal: float = 0.0
    """Share of training over which the sparsity grows from 0."""
    penalty: float = 0.0
    """Weight of the sum of squared scores in the loss."""
    trainable: tuple[str, ...] = ()
    """Patterns of parameter names to train normally instead, e.g. "fc.*"."""
    width: float = 1.0
    """Width factor of a built-in network."""
    model_options: str = "{}"
    """Further keyword arguments of the model's factory, as a JSON object."""
    epochs: int = 20
    """Passes over the training images."""
    batch_size: int = 128
    """Images in a global batch."""
    lr: float = 0.1
    """Learning rate."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum 0.9, or AdamW."""
    weight_decay: float = 1e-4
    """Weight decay."""
    schedule: Schedule = "epoch-cosine"
    """How the learning rate falls."""
    warmup_epochs: int = 0
    """Epochs of linear warm-up."""
    select: Literal["last", "best"] = "last"
    """Keep the last state, or the one of the highest validation accuracy."""
    clip_norm: float | None = None
    """Clip the gradients' norm."""
    accumulate: int = 1
    """Chunks into which a batch is cut."""
    augment: Augmentation = "none"
    """Augmentation of the training images."""
    data_root: str | None = None
    """Folder of the known data sets; without it REGRAFT_DATA, then ~/.cache/regraft/data."""
    offline: bool = False
    """Stop at a missing known set instead of fetching it."""
    image_size: int | None = None
    """Side of the images in pixels; a folder without it takes 224."""
    validation: float = 0.1
    """Share of the training images held out."""
    train_size: int | None = None
    """Keep this many training images, stratified."""
    shots: int | None = None
    """Keep this many training images of each class."""
    split_seed: int = 777
    """Seed of the split."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """Stop at an image that cannot be decoded, or warn and go on."""
    graph_split: Literal["public", "full", "random"] = "public"
    """Of a graph: the published split, all other nodes for training, or a random one."""
    features: Literal["raw", "row", "l2"] = "raw"
    """Of a graph: features as published, rows that sum to one, or rows of one length."""
    seed: int = 1
    """Seed of weights, scores and batches."""
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    devices: int = 1
    """Processes; use torchrun for several."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "64-true"] = "32-true"
    """Numerical precision."""
    threads: int | None = None
    """CPU threads; exact resuming needs them unchanged."""
    compile: bool = False
    """Compile the network."""
    checkpoint_seconds: float = 30.0
    """Least time between two checkpoints."""
    json: bool = False
    """Print one JSON object instead of text."""

    def run(self) -> int:
        """Search, show progress, and tell what was found."""
        from regraft.config import check
        from regraft.errors import InputError, MissingExtraError
        from regraft.jobs.train import TrainJob
        from regraft.report.wording import size
        from regraft.train import keep_freed_memory

        if self.method in ("shuffled_mask", "quantised"):
            raise InputError(
                f"method={self.method!r} takes a finished run for its source: `regraft reproduce "
                "iterand` and `regraft reproduce frozen` run it"
            )
        keep_freed_memory()
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= self._shares()
        job = TrainJob(
            setting=self._setting(),
            arm=self.method,
            control="edge_popup" if self.method == "iterand" else None,
            data=_pick(
                DataConfig, values, name=self.data, root=self.data_root, download=not self.offline
            ),
            model=ModelConfig(name=self.model, width=self.width, options=self._options()),
            ticket=_pick(TicketConfig, values),
            optim=_pick(OptimConfig, values),
            runtime=_pick(RuntimeConfig, values),
        )
        check(job.model, job.ticket, job.optim, job.runtime)
        new = not self.out.exists()
        try:
            with Bar(enabled=not self.json and is_first_process()) as bar:
                result = job.run_in(self.out, progress=bar.update)
        except (InputError, MissingExtraError):
            if new:
                _forget(self.out)
            raise
        if not is_first_process():
            return 0
        found = {
            "out": str(self.out),
            "method": self.method,
            "metrics": result["metrics"],
            "seconds": result["seconds"],
            "trainable_parameters": result["trainable_parameters"],
            "stored_bytes": result["stored_bytes"],
        }
        if self.json:
            print_json(found)
            return 0
        for name, value in result["metrics"].items():
            if name.endswith("accuracy"):
                say(f"{name.replace('_', ' ')}: {value:.2f}%")
        ticket = self.out / "model.ticket"
        kind, file = (
            ("ticket", ticket) if ticket.exists() else ("model", self.out / "model.safetensors")
        )
        say(f"{kind}: {file} ({size(result['stored_bytes'])})")
        return 0

    def _shares(self) -> dict[str, float]:
        """Return the pruned and locked shares that --frozen stands for."""
        from regraft.errors import InputError
        from regraft.tickets import Freezing

        self._refuse_ignored()
        if self.frozen is None:
            return {}
        if self.pruned or self.locked:
            raise InputError(
                f"--frozen {self.frozen:g} chooses the pruned and the locked share: leave out --pruned "
                "and --locked, or give these two alone"
            )
        if self.allocation != "uniform" and self.scope == "layer":
            raise InputError(
                f"--frozen {self.frozen:g} with --allocation {self.allocation} freezes more of some layers "
                f"than of others, so that sparsity {self.sparsity:g} is out of reach in single layers: add "
                "--scope global, or give --pruned and --locked"
            )
        chosen = Freezing.balanced(self.sparsity, self.frozen, self.allocation)
        return {"pruned": chosen.pruned, "locked": chosen.locked}

    def _refuse_ignored(self) -> None:
        """Refuse options of a freezing with a control that freezes nothing."""
        from regraft.errors import InputError

        given: dict[str, Any] = {
            "--frozen": self.frozen,
            "--pruned": self.pruned,
            "--locked": self.locked,
            "--dynamic-scale": self.dynamic_scale,
        }
        if self.method == "dense" and self.allocation != "uniform":
            given["--allocation"] = self.allocation
        wrong = [option for option, value in given.items() if value]
        if self.method in ("dense", "random_mask_trained") and wrong:
            raise InputError(
                f"{wrong[0]} has no effect on --method {self.method}, which has no search to freeze or to "
                "scale: leave it out, or take iterand, edge_popup or random_mask"
            )

    def _setting(self) -> str:
        """Return what runs must share to be compared, so that a report can pair them."""
        from regraft.tickets import Freezing

        shares = self._shares()
        pruned, locked = (shares.get(k, getattr(self, k)) for k in ("pruned", "locked"))
        model = self.model.replace("/", "-").replace(":", "-")
        parts = [
            Path(self.data).name or self.data,
            model,
            self.weight_init,
            f"sparsity={self.sparsity:g}",
        ]
        parts.append(f"width={self.width:g}")
        if pruned or locked:
            # The total is a number of its own, which a report can draw along; the rest is a name.
            parts.append(f"frozen={pruned + locked:g}")
            balanced = None
            if min(pruned, locked) >= 0 and pruned + locked < 1:  # others are refused later
                balanced = Freezing.balanced(self.sparsity, pruned + locked)
            if balanced is None or (pruned, locked) != (balanced.pruned, balanced.locked):
                parts.append(f"pruned-{pruned:g}-locked-{locked:g}")
        if self.allocation != "uniform" and (
            pruned or locked or self.method == "random_mask_trained"
        ):
            parts.append(f"allocation-{self.allocation}")
        more = {"scope": "layer", "graph_split": "public", "features": "raw"}
        parts += [f"{k}-{getattr(self, k)}" for k, v in more.items() if getattr(self, k) != v]
        return "/".join([*parts, *(["dynamic_scale"] if self.dynamic_scale else [])])

    def _options(self) -> dict[str, Any]:

        return json_object(self.model_options)


def _pick(kind: Any, values: dict[str, Any], **more: Any) -> Any:
    names = {f.name for f in dataclasses.fields(kind)}
    return kind(**{k: v for k, v in values.items() if k in names}, **more)


def _forget(folder: Path) -> None:
    """Remove the folder of a run that never began, so that the corrected command may have it."""
    started = {"regraft.json", "data.json", "environment.json", "metrics.jsonl"}
    found = list(folder.iterdir()) if folder.is_dir() else []
    metrics = folder / "metrics.jsonl"
    if {p.name for p in found} <= started and not (metrics.exists() and metrics.stat().st_size):
        shutil.rmtree(folder, ignore_errors=True)
