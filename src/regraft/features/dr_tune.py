"""DR-Tune: the classifier also has to be right for pretrained features, aligned with today's.

References:
    Zhou et al., "DR-Tune: improving fine-tuning of pretrained visual models by distribution
    regularization with semantic calibration", ICCV 2023, sections 3.2 and 3.3.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft.errors import InputError
from regraft.models.classifier import call

from .method import Context, Method, Mode, NormMode, one_of, positive, wide
from .parallel import gather_rows
from .samples import Samples, at_least_two, check_labels, preserved
from .tap import head_size
from .teacher import Teacher


class DRTune(Method):
    """objective = (b * base + weight * n * loss) / (b + weight * n), loss = the queue's mean CE.

    A queue holds the latest n images' features of the network and of its frozen pretrained copy
    (in evaluation mode), and their classes. The copy's are made unit vectors, turned onto the
    network's by the rotation of Kabsch, shifted class by class to the network's class mean
    (weighted by the softmax of cosines with the classifier's row), and scaled to its mean norm; the
    classifier then has to tell their classes as well. With weight 1 live and queued images count
    alike, as in the paper. Costs a forward pass of the copy.

    Args:
        weight: Weight of a queued image over a live one.
        queue: Images in the queue.
        every: Optimiser steps between two rotations.
        norm: `train` lets the copy use each batch's own BatchNorm statistics, for images far from
            the source's.

    Raises:
        InputError: An argument out of its range, or a classifier that is not linear.
    """

    takes_soft_targets = False
    takes_ignored = False
    needs_pretrained = True
    teacher: Teacher
    student_queue: Tensor
    teacher_queue: Tensor
    labels: Tensor
    rotation: Tensor

    def __init__(
        self,
        weight: float = 1.0,
        *,
        queue: int = 2048,
        every: int = 10,
        norm: NormMode = "eval",
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        positive(weight=weight)
        one_of("norm", norm, get_args(NormMode))
        self.norm: NormMode = norm
        if queue < 1 or every < 1:
            raise InputError(f"queue={queue}, every={every}: expected at least 1")
        self.weight, self.queue, self.every = weight, queue, every
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self._filled = self._at = 0

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        tap = self._tapped()
        if head_size(tap.classifier) is None:
            raise InputError(
                f"the classifier {tap.name!r} is a {type(tap.classifier).__name__}: DR-Tune needs "
                "a linear one"
            )
        if samples is None:
            raise InputError("loader is missing: DR-Tune fills its queue with training images")
        self.teacher = Teacher(tap, norm=self.norm)
        like = next(tap.model.parameters())
        d, dtype = self.num_features, torch.promote_types(like.dtype, torch.float32)
        empty = torch.zeros(self.queue, d, device=like.device, dtype=dtype)
        self.register_buffer("student_queue", empty)
        self.register_buffer("teacher_queue", empty.clone())
        self.register_buffer(
            "labels", torch.zeros(self.queue, device=like.device, dtype=torch.int64)
        )
        self.register_buffer("rotation", torch.eye(d, device=like.device, dtype=dtype))
        self._filled = self._at = 0
        kept = empty[:0], self.labels[:0]
        with preserved(tap.model, self.norm):
            for inputs, labels in at_least_two(samples):
                check_labels(labels, self.num_classes)
                call(tap.model, inputs)
                f = torch.cat([kept[0], tap.take().features.to(dtype)])
                kept = f[-self.queue :], torch.cat([kept[1], labels])[-self.queue :]
        # Processes may have different numbers of batches: they exchange them once, at the end, and
        # the newest images of each are the newest of all.
        ages = torch.arange(len(kept[1]), 0, -1, device=like.device)
        order = gather_rows(ages).argsort(descending=True, stable=True)
        f = gather_rows(kept[0])[order]
        self._push(f, f, gather_rows(kept[1])[order])

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return the mean cross-entropy of the classifier on the queue's calibrated features."""
        tap = self._tapped()
        if context is None:
            raise InputError("DR-Tune needs the forward pass: call method(base, targets)")
        if self.training and torch.is_grad_enabled():
            captured, _ = self.teacher(context)
            self._pending.append((features.detach(), captured.features, targets.detach()))
        calibrated, labels = self.calibrated()
        logits = tap.head(calibrated.to(next(tap.classifier.parameters()).dtype))
        return F.cross_entropy(logits.to(wide(features)), labels)

    def objective(
        self, base: Tensor, features: Tensor, targets: Tensor, context: Context
    ) -> Tensor:
        """Return the mean over live and queued images, a queued one counting `weight` times."""
        queued = self.loss(features, targets, context)
        live, n = len(features), self.weight * self._filled
        return (live * base + n * queued) / (live + n)

    @torch.no_grad()
    def calibrated(self) -> tuple[Tensor, Tensor]:
        """Return the queue's calibrated pretrained features [n, d] and their classes [n]."""
        n = self._filled
        student, labels = self.student_queue[:n], self.labels[:n]
        norm = torch.linalg.vector_norm(student, dim=1).mean()
        s = F.normalize(student, dim=1)
        t = F.normalize(self.teacher_queue[:n], dim=1) @ self.rotation
        weight: Any = self._tapped().classifier.weight
        w = F.normalize(weight.detach().flatten(1).to(s.dtype), dim=1)
        share = (s * w[labels]).sum(1).exp()
        shift = _class_means(s, labels, share, len(w)) - _class_means(
            t, labels, torch.ones_like(share), len(w)
        )
        return F.normalize(t + shift[labels], dim=1) * norm, labels

    @torch.no_grad()
    def step(self) -> None:
        """Queue the step's images, of all processes, and turn the pretrained features anew."""
        self._tapped()
        if self._pending:
            columns = [torch.cat(column) for column in zip(*self._pending, strict=True)]
        else:
            columns = [self.student_queue[:0], self.teacher_queue[:0], self.labels[:0]]
        self._pending = []
        student, teacher, labels = columns
        dtype = self.student_queue.dtype
        self._push(
            gather_rows(student.to(dtype)), gather_rows(teacher.to(dtype)), gather_rows(labels)
        )
        super().step()
        if self._steps % self.every == 0:
            n = self._filled
            self.rotation.copy_(
                kabsch(
                    F.normalize(self.teacher_queue[:n], dim=1),
                    F.normalize(self.student_queue[:n], dim=1),
                )
            )

    def _push(self, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
        """Put images in the place of the oldest."""
        usable = student.isfinite().all(1)
        student, teacher = student[usable][-self.queue :], teacher[usable][-self.queue :]
        labels = labels[usable][-self.queue :]
        at = (self._at + torch.arange(len(labels), device=labels.device)) % self.queue
        self.student_queue[at] = student.to(self.student_queue.dtype)
        self.teacher_queue[at] = teacher.to(self.teacher_queue.dtype)
        self.labels[at] = labels
        self._at = (self._at + len(labels)) % self.queue
        self._filled = min(self._filled + len(labels), self.queue)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the counters and how far the queue is filled."""
        return super().get_extra_state() | {"filled": self._filled, "at": self._at}

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` returned."""
        super().set_extra_state(state)
        self._filled, self._at = int(state["filled"]), int(state["at"])


def kabsch(rows: Tensor, onto: Tensor) -> Tensor:
    """Return the rotation R [d, d] (of determinant 1) with the least sum |rows R - onto|^2."""
    u, _, vh = torch.linalg.svd(rows.T @ onto)
    signs = torch.ones_like(u[0])
    signs[-1] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vh))
    return (u * signs) @ vh


def _class_means(rows: Tensor, labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    sums = rows.new_zeros(num_classes, rows.shape[1]).index_add_(0, labels, rows * weights[:, None])
    totals = rows.new_zeros(num_classes).index_add_(0, labels, weights)
    return sums / totals.clamp(min=1e-12)[:, None]
