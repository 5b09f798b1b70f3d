"""One small training loop for the recipes and the command line, on Lightning Fabric.

It adds nothing to a method: whatever runs here runs in any other loop by the same three lines.
Killed at any point and started again, it ends with the same numbers: on the CPU with the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from regraft.config import OptimConfig, RuntimeConfig
from regraft.errors import DivergenceError, InputError
from regraft.protocols import BatchSource, Stepper

from .average import Average
from .checkpoint import random_state, set_random_state
from .fabric import cast, laid_out, make_fabric
from .measure import evaluate
from .memory import peak_bytes, reset_peak
from .optim import make_optimizer, make_scheduler
from .result_folder import RunFolder

Progress = Callable[[int, int, dict[str, Any]], None]
"""Called as `progress(step, steps, newest row of metrics)`."""


@dataclass
class Batches:
    """The batches a run sees: for training, for choosing, for the final figure."""

    train: BatchSource
    validation: BatchSource | None = None
    test: BatchSource | None = None


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    optim: OptimConfig,
    runtime: RuntimeConfig,
    folder: RunFolder,
    steppers: Mapping[str, Stepper] | None = None,
    loss: nn.Module | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    progress: Progress | None = None,
    fabric: Any = None,
    select_from: int = 0,
    groups: Sequence[dict[str, Any]] | None = None,
    average: Average | None = None,
    balanced: bool = False,
) -> dict[str, Any]:
    """Train `model` in place and return the result, without writing it as the folder's.

    A finished run returns its result at once; an unfinished one goes on from its checkpoint. With
    `optim.select="best"` the model is left in the evaluated state that had the highest validation
    accuracy (of equal ones that of the lower validation loss, then the earlier), and the result is
    that state's.

    Args:
        model: The network; the parameters that take gradients are trained.
        batches: Training, validation and test batches.
        optim: Optimiser, schedule, length.
        runtime: Device, precision, threads, seed, intervals.
        folder: An open run folder.
        steppers: By name, what is stepped once after every optimiser step.
        loss: Module (outputs [b, K], targets) -> scalar mean; cross-entropy by default. Targets are
            labels [b], or probabilities [b, K] where batches are mixed; b may be 0 in a process.
        penalty: Added to the loss of every step, e.g. `score_penalty`.
        progress: Called after every step.
        fabric: A launched Fabric; one is made from `runtime` by default.
        select_from: First step whose state may be selected as the best, e.g. the end of a ramp;
            the last state always may.
        groups: The optimiser's parameter groups, instead of all of the model that takes gradients;
            a group's own `lr` follows the schedule as a factor.
        balanced: The best state is that of the highest mean accuracy of the classes.
        average: A running average of the model's weights: it is what is evaluated, selected and left
            in the model.

    Returns:
        `metrics` (name -> number; `selected_epoch` among them where the best was selected, counted
        from 0 as in metrics.jsonl), `seconds` of training, `trainable_parameters`,
        `peak_memory_bytes`.

    Raises:
        DivergenceError: A loss is not finite; the message names the step.
        InputError: The folder's files are damaged, an interval or number of chunks is below 1, or
            the best is to be selected without validation data.
    """
    _check(optim, runtime, batches)
    fabric = fabric or make_fabric(runtime)
    finished = folder.result
    if finished is not None:
        state = folder.load_checkpoint()
        if state is not None:
            model.load_state_dict(finished_state(state))
        return finished
    reset_peak()
    torch.manual_seed(runtime.seed)
    run = _Training(model, batches, optim, runtime, folder, steppers or {}, fabric, groups)
    run.average = average
    run.loss = loss or nn.CrossEntropyLoss(label_smoothing=optim.label_smoothing)
    run.penalty = penalty
    run.select_from = select_from
    run.balanced = balanced
    run.resume()
    run.train(progress)
    return run.finish()


def finished_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict that a finished run leaves in its model: the last one or the best.

    Of a run with an `average` it is the averaged one.
    """
    best = checkpoint.get("best")
    if best is not None:
        return best["model"]
    average = checkpoint.get("average")
    return checkpoint["model"] if average is None else average["state"]


def _check(optim: OptimConfig, runtime: RuntimeConfig, batches: Batches) -> None:
    if optim.select not in ("last", "best"):
        raise InputError(f"select={optim.select!r}: expected 'last' or 'best'")
    if optim.select == "best" and batches.validation is None:
        raise InputError(
            "select='best' needs validation data and there are none: hold some out "
            "(data.validation above 0), or select the last state"
        )
    for config, name in ((optim, "accumulate"), (runtime, "log_every"), (runtime, "eval_every")):
        if getattr(config, name) < 1:
            raise InputError(f"{name}={getattr(config, name)}: expected at least 1")


@dataclass
class _Position:
    """Everything of the loop itself that a checkpoint holds."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    correct: int = 0
    images: int = 0
    validated: dict[str, float] = field(default_factory=dict)
    validated_at: int = -1


@dataclass
class _Best:
    """The state with the best validation figures so far."""

    epoch: int
    step: int
    figures: dict[str, float]
    model: dict[str, Any]


class _Training:
    """The state of one run while it trains."""

    loss: nn.Module
    penalty: Callable[[nn.Module], Tensor] | None
    select_from: int = 0
    average: Average | None = None
    balanced: bool = False

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        optim: OptimConfig,
        runtime: RuntimeConfig,
        folder: RunFolder,
        steppers: Mapping[str, Stepper],
        fabric: Any,
        groups: Sequence[dict[str, Any]] | None,
    ) -> None:
        self.model, self.batches, self.folder, self.fabric = model, batches, folder, fabric
        self.optim, self.runtime, self.steppers = optim, runtime, steppers
        self.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        optimizer = make_optimizer(model, optim, groups=groups)
        self.scheduler = make_scheduler(optimizer, optim, len(batches.train))
        compiled = laid_out(model, runtime)
        self.forward, self.optimizer = fabric.setup(compiled, optimizer)
        self.at = _Position()
        self.best: _Best | None = None
        self.newest: dict[str, Any] = {}
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.steps_per_epoch = len(batches.train)
        self.steps = self.steps_per_epoch * optim.epochs
        self._clock = self._saved = time.monotonic()

    def train(self, progress: Progress | None) -> None:
        """Go on to the last step."""
        on_cpu = self.fabric.device.type == "cpu"
        share = {"rank": self.fabric.global_rank, "world": self.fabric.world_size}
        self.forward.train()
        while self.at.step < self.steps:
            epoch, offset = divmod(self.at.step, self.steps_per_epoch)
            for x, y, size in self.batches.train.batches(epoch, start=offset, **share):
                self.pending.append(self._step(x, y, size))
                self.scheduler.step()
                for stepper in self.steppers.values():
                    stepper.step()
                if self.average is not None:
                    self.average.step()
                self.at.step += 1
                self.at.images += size
                ends = self.at.step % self.steps_per_epoch == 0
                logs = ends or self.at.step % self.runtime.log_every == 0
                due = time.monotonic() - self._saved >= self.runtime.checkpoint_seconds
                if on_cpu or logs or due:  # reading a loss makes a GPU wait: done rarely there
                    self._drain()
                if logs or due:
                    self._refuse_divergence()
                if logs:
                    self._log_training(epoch)
                if ends and (epoch + 1) % self.runtime.eval_every == 0:
                    self._evaluate(epoch, "validation")
                if progress is not None:
                    progress(self.at.step, self.steps, self.newest)
                if due:
                    self.save()

    def finish(self) -> dict[str, Any]:
        """Save the last state, evaluate it or the best, and return the result."""
        epoch, metrics = self.optim.epochs - 1, {}
        validated = self._evaluate(epoch, "validation")
        # Saved before the last row is logged: going on from here logs it again, with equal bits.
        self.save()
        if self.best is not None:
            self.average = None
            self.model.load_state_dict(self.best.model)
            epoch, self.at.step, validated = self.best.epoch, self.best.step, self.best.figures
        elif self.average is not None:
            self.model.load_state_dict(self.average.averaged())
            self.average = None
        metrics |= {f"validation_{key}": value for key, value in validated.items()}
        tested = self._evaluate(epoch, "test")
        metrics |= {f"test_{key}": value for key, value in tested.items()}
        if self.best is not None:
            metrics["selected_epoch"] = epoch
        return {
            "metrics": metrics,
            "seconds": round(self.at.seconds, 3),
            "trainable_parameters": self.trainable,
            "peak_memory_bytes": peak_bytes(),
        }

    def _step(self, x: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Take one optimiser step; return mean loss and correct answers of the global batch."""
        fabric, world = self.fabric, self.fabric.world_size
        self.optimizer.zero_grad()
        sums = torch.zeros(2, device=fabric.device, dtype=torch.float64)
        chunks = list(
            zip(x.chunk(self.optim.accumulate), y.chunk(self.optim.accumulate), strict=True)
        )
        for i, batch in enumerate(chunks):
            x, y = fabric.to_device(batch)
            last = i == len(chunks) - 1
            with fabric.no_backward_sync(self.forward, enabled=not last and world > 1):
                output = self.forward(cast(x, fabric))
                # Gradients are averaged over processes: a chunk counts by its share of the whole.
                # Also of a process's empty share, whose mean is no number: others may wait for its terms.
                mean = self.loss(output, y)
                part = (mean if len(y) else mean.nan_to_num(0.0)) * (len(y) * world / size)
                labels = y if y.dim() == 1 else y.argmax(1)
                sums[1] += (output.detach().argmax(1) == labels).sum()
                if last and self.penalty is not None:
                    part = part + self.penalty(self.model)
                sums[0] += part.detach().double() / world
                fabric.backward(part)
        if self.optim.clip_norm is not None:
            fabric.clip_gradients(self.forward, self.optimizer, max_norm=self.optim.clip_norm)
        self.optimizer.step()
        if world > 1:
            sums = fabric.all_reduce(sums, reduce_op="sum")
        return sums[0], sums[1]

    def _drain(self) -> None:
        """Read the pending losses; refuse one that is not finite."""
        first = self.at.step - len(self.pending) + 1
        for i, (value, correct) in enumerate(self.pending):
            number = value.item()
            if not math.isfinite(number):
                raise DivergenceError(
                    f"the loss became {number} at step {first + i} of {self.folder.path}: lower the "
                    f"learning rate (now {self.optim.lr:g}) or clip gradients (clip_norm)"
                )
            self.at.losses.append(number)
            self.at.correct += int(correct.item())
        self.pending.clear()

    def _refuse_divergence(self) -> None:
        """Refuse trained tensors that are not finite: a mask can hide them from the loss."""
        trained = [p.detach() for p in self.model.parameters() if p.requires_grad]
        if not math.isfinite(torch.nn.utils.get_total_norm(trained).item()):
            raise DivergenceError(
                f"the trained tensors are no longer finite at step {self.at.step} of "
                f"{self.folder.path} (looked at every {self.runtime.log_every} steps): lower the "
                f"learning rate (now {self.optim.lr:g}) or clip gradients (clip_norm)"
            )

    def _log_training(self, epoch: int) -> None:
        at = self.at
        loss, accuracy = math.fsum(at.losses) / len(at.losses), 100.0 * at.correct / at.images
        self._log(epoch, "train", {"loss": loss, "accuracy": accuracy})
        at.losses, at.correct, at.images = [], 0, 0

    def _evaluate(self, epoch: int, split: str) -> dict[str, float]:
        source: BatchSource | None = getattr(self.batches, split)
        if source is None:
            return {}
        if split == "validation" and self.at.validated_at == self.at.step:
            return self.at.validated
        with contextlib.nullcontext() if self.average is None else self.average.applied():
            figures = evaluate(self.forward, source, fabric=self.fabric, balanced=self.balanced)
            if split == "validation":
                self._select(epoch, figures)
        self.forward.train()
        self._log(epoch, split, figures)
        if split == "validation":
            self.at.validated, self.at.validated_at = figures, self.at.step
        return figures

    def _select(self, epoch: int, figures: dict[str, float]) -> None:
        """Keep a copy of the state if it is the best so far."""
        early = self.at.step < min(self.select_from, self.steps)
        if self.optim.select == "last" or early:
            return
        if self.best is not None and _rank(figures) <= _rank(self.best.figures):
            return
        self.best = _Best(epoch, self.at.step, figures, copy.deepcopy(self.model.state_dict()))

    def _log(self, epoch: int, split: str, figures: dict[str, float]) -> None:
        self.newest = {"step": self.at.step, "epoch": epoch, "split": split, **figures}
        self.folder.log(self.newest)

    def save(self) -> None:
        """Write a checkpoint."""
        now = time.monotonic()
        self.at.seconds += now - self._clock
        self._clock = self._saved = now
        if self.folder.writes:
            self.folder.save_checkpoint(
                {
                    "position": {**vars(self.at), "metrics_bytes": self.folder.sync_metrics()},
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.scheduler.state_dict(),
                    "steppers": {name: s.state_dict() for name, s in self.steppers.items()},
                    "best": None if self.best is None else vars(self.best),
                    "average": None if self.average is None else self.average.state_dict(),
                    "random": random_state(),
                }
            )
            self._saved = time.monotonic()

    def resume(self) -> None:
        """Take up the folder's checkpoint, or start from nothing."""
        state = self.folder.load_checkpoint()
        if state is None:
            self.folder.truncate_metrics(0)
            return
        try:
            position = dict(state["position"])
            self.folder.truncate_metrics(position.pop("metrics_bytes"))
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            for name, stepper in self.steppers.items():
                stepper.load_state_dict(state["steppers"][name])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            best = state.get("best")
            self.best = None if best is None else _Best(**best)
            set_random_state(state["random"])
            self.at = _Position(**position)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"{self.folder.path} has a checkpoint of another run or version ({error}): remove "
                "the folder to start again"
            ) from error


def _rank(figures: dict[str, float]) -> tuple[float, float]:
    """Return what orders states by validation figures: the higher, the better."""
    return figures.get("balanced_accuracy", figures["accuracy"]), -figures["loss"]
