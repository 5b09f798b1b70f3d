"""AdaRand: draw each feature to a random vector of its class, whose mean adapts while training.

References:
    Yamaguchi et al., "Adaptive random feature regularization on fine-tuning deep neural networks",
    CVPR 2024, section 4 and algorithm 1.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from torch import Tensor
from torch.optim.adam import adam

from regraft.errors import InputError

from .method import Context, Method, Mode, one_of, positive, wide, without_ignored
from .parallel import sum_
from .prior import PriorLoss, prior_gradient
from .samples import Samples
from .statistics import Spread, class_statistics

_BETAS, _EPS = (0.9, 0.999), 1e-8
# The step size that the paper's 25,000 steps of Adam use, and a standard deviation of 0.4 a dimension
# for its features, which it does not print: the size of a ResNet-50's after pooling.
_PAPER_STEPS, _PAPER_RATE = 25_000, 1e-2 / 0.4
# A mixed image counts for the running mean of the class that makes up this much of it.
_PURE = 0.9


class AdaRand(Method):
    """Adaptive random feature regularisation.

    loss = lambda_eff * mean over b and d of (f_i - z_i)^2, with z_i ~ N(mu_y, diag sigma_y^2) drawn
    anew for each image and step. mu and sigma start as means and standard deviations of the
    pretrained features of the target's training images. After every step the running means of the
    classes that were present, r_k <- alpha r_k + (1 - alpha) m_k, draw mu along, and means of
    different classes are driven apart (`prior.py`), by Adam with a cosine schedule over the run.
    Images with a class below 0 are left out of both.
    With probabilities p [b, K] as targets, z_i ~ N(sum_k p_k mu_k, sum_k p_k^2 sigma_k^2).

    Memory: five K x d arrays (mu, sigma, r, Adam's two moments) and a few more within `step`.

    Args:
        weight: lambda.
        normalise: lambda_eff = lambda / mean_d Var(f) with the pretrained features' variance, so
            that one lambda serves networks of any feature scale; else lambda_eff = lambda.
        alpha: How much of the running means is kept at each step.
        prior: `repel` as the paper prints it, `orthogonal` for squared cosines.
        intra: Draw mu to the running means.
        inter: Drive means of different classes apart.
        spread: `diagonal` or `isotropic` sigma (of each class), or `none`: z = mu.
        prior_lr: Adam's rate for mu. By default 0.025 s sqrt(min(steps, 25000) / 25000), where s is
            the standard deviation of features: the paper's 1e-2 for its length of run, and what
            was best in runs of 200 steps. 0 freezes mu.
        prior_scale: Factor of that default.
        negatives: Number of classes that stand for all in `orthogonal`, drawn anew at each step, so
            that thousands of classes cost little; None takes all. `repel` always takes all.
        seed: Seed of z.

    Raises:
        InputError: An argument out of its range.
    """

    needs_pretrained = True
    mean: Tensor
    std: Tensor
    running: Tensor
    present: Tensor
    moment: Tensor
    second: Tensor

    def __init__(
        self,
        weight: float = 1.0,
        *,
        normalise: bool = True,
        alpha: float = 0.5,
        prior: PriorLoss = "repel",
        intra: bool = True,
        inter: bool = True,
        spread: Spread = "diagonal",
        prior_lr: float | None = None,
        prior_scale: float = 1.0,
        negatives: int | None = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        positive(weight=weight, prior_lr=prior_lr or 0.0, prior_scale=prior_scale)
        one_of("prior", prior, get_args(PriorLoss))
        one_of("spread", spread, get_args(Spread))
        if not 0.0 <= alpha < 1.0:
            raise InputError(f"alpha={alpha}: expected the kept share of running means, in [0, 1)")
        if negatives is not None and negatives < 1:
            raise InputError(f"negatives={negatives}: expected a number of classes, at least 1")
        self.weight, self.normalise, self.alpha = weight, normalise, alpha
        self.prior: PriorLoss = prior
        self.intra, self.inter = intra, inter
        self.spread: Spread = spread
        self.prior_lr, self.prior_scale, self.negatives = prior_lr, prior_scale, negatives
        self.total_steps: int | None = None
        self._all_present: bool | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        if steps is None and self.prior_lr is None:
            raise InputError(
                "AdaRand's means take steps that fit the length of the run: pass steps= (of the "
                "optimiser, in the whole run) to prepare, or prior_lr="
            )
        statistics = class_statistics(
            self._tapped(), samples, num_classes=self.num_classes, mode=mode
        )
        self.num_features = statistics.mean.shape[1]
        self.total_steps, self.variance, self._all_present = steps, statistics.variance, None
        self.register_buffer("mean", statistics.mean)
        self.register_buffer("std", statistics.spread(self.spread))
        self.register_buffer("running", statistics.mean.clone())
        self.register_buffer("present", statistics.counts > 0)
        self.register_buffer("moment", torch.zeros_like(statistics.mean))
        self.register_buffer("second", torch.zeros_like(statistics.mean))
        self._pending = []

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return lambda_eff * mean_{b,d} (f - z)^2, and keep the features for `step`."""
        self._tapped()
        f = features.to(wide(features))
        if self.training and torch.is_grad_enabled():
            self._pending.append((f.detach(), targets.detach()))
        each = (f - self.reference(targets).to(f.dtype)).square()
        return without_ignored(each, targets) * self.effective_weight

    @torch.no_grad()
    def reference(self, targets: Tensor) -> Tensor:
        """Return z [b, d], drawn for classes [b] or probabilities [b, K]."""
        if targets.dim() == 1:
            known = targets.clamp(min=0)
            mean, std = self.mean[known], self.std[known]
        else:
            p = targets.to(self.mean.dtype)
            mean, std = p @ self.mean, (p.square() @ self.std.square()).sqrt()
        return mean if self.spread == "none" else mean + std * self.noise(mean)

    @torch.no_grad()
    def step(self) -> None:
        """Move the running means, then mu by one step of Adam."""
        self._tapped()
        self._follow()
        if self.rate > 0:
            self._learn()
        super().step()

    @property
    def rate(self) -> float:
        """Adam's rate for mu at this step: a cosine from its start to 0 over the run."""
        rate = self.prior_lr
        if rate is None:
            steps = min(self.total_steps or _PAPER_STEPS, _PAPER_STEPS)
            rate = _PAPER_RATE * math.sqrt(self.variance * steps / _PAPER_STEPS)
            rate *= self.prior_scale
        if self.total_steps is None:
            return rate
        done = min(self._steps / self.total_steps, 1.0)
        return rate * 0.5 * (1.0 + math.cos(math.pi * done))

    def get_extra_state(self) -> dict[str, Any]:
        """Return counters, scale and the length of the run."""
        return super().get_extra_state() | {"total_steps": self.total_steps}

    def set_extra_state(self, state: Any) -> None:
        """Restore what `get_extra_state` returned."""
        super().set_extra_state(state)
        self.total_steps = state["total_steps"]
        self._all_present = None

    def _follow(self) -> None:
        """Move the running means of the classes that were present, in all processes alike."""
        sums = torch.zeros_like(self.mean)
        counts = sums.new_zeros(len(sums), 1)
        for f, y in self._pending:
            if y.dim() == 2:
                y = _dominant(y)
            # Under float16 a step may overflow; the loss scaler skips it, and so do the means.
            usable = f.isfinite().all(1, keepdim=True) & (y >= 0)[:, None]
            y = y.clamp(min=0)
            sums.index_add_(0, y, torch.where(usable, f, 0.0).to(sums.dtype))
            counts.index_add_(0, y, usable.to(sums.dtype))
        self._pending = []
        sum_(sums, counts)
        means = sums.div_(counts.clamp(min=1))
        share = (counts > 0) * (1.0 - self.alpha)
        self.running.lerp_(means, share.to(sums.dtype))

    def _learn(self) -> None:
        if self._all_present is None:
            self._all_present = bool(self.present.all())
        rows = slice(None) if self._all_present else self.present
        mean = self.mean[rows]
        negatives = None
        if self.negatives is not None and self.negatives < len(mean):
            generator = self.generator(shared=True)
            chosen = torch.randperm(len(mean), generator=generator)[: self.negatives]
            negatives = chosen.to(mean.device)
        gradient = prior_gradient(
            mean,
            self.running[rows],
            self.prior,
            intra=float(self.intra),
            inter=float(self.inter),
            negatives=negatives,
        )
        if not self._all_present:
            whole = torch.zeros_like(self.mean)
            whole[rows] = gradient
            gradient = whole
        steps = torch.tensor(float(self._steps))
        adam(
            [self.mean], [gradient], [self.moment], [self.second], [], [steps],
            foreach=False, amsgrad=False, beta1=_BETAS[0], beta2=_BETAS[1], lr=self.rate,
            weight_decay=0.0, eps=_EPS, maximize=False,
        )  # fmt: skip


def _dominant(p: Tensor) -> Tensor:
    """Return the class that makes up nearly all of each mixed image, or -1 where none does."""
    share, y = p.max(1)
    return torch.where(share >= _PURE * p.sum(1), y, -1)
