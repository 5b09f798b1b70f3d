"""Co-Tuning: keep the source's classifier, and teach it what target classes look like to it.

References:
    You et al., "Co-tuning for transfer learning", NeurIPS 2020, sections 3.1 and 3.2 (the direct
    estimate of p(source class | target class)).
"""

from __future__ import annotations

import copy
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError
from regraft.models.classifier import call

from .method import Context, Method, Mode, NormMode, one_of, positive, wide
from .parallel import sum_, synced_call
from .samples import Samples, at_least_two, check_labels, preserved
from .tap import head_size


class CoTuning(Method):
    """loss = weight * mean over b of H(R[y_i], softmax(source_head(f_i))), H the cross-entropy.

    R[y] = mean of the pretrained network's source probabilities over training images of class y,
    taken with the source's BatchNorm statistics, by which its head was trained. The head goes on
    learning, at a tenth of the learning rate (`param_groups`).

    Args:
        weight: Weight beside the base loss.
        source_head: The pretrained classifier, f [b, d] -> logits [b, S]; keep it before giving the
            network its new one. It is copied.
        norm: `train` takes R with each batch's own BatchNorm statistics, for images far from the
            source's.

    Raises:
        InputError: No source head, or one that does not fit the features.
    """

    needs_pretrained = True
    needs_source_head = True
    takes_ignored = False
    learning_rate_scale = 0.1
    source_head: nn.Module
    relation: Tensor

    def __init__(
        self,
        weight: float = 2.3,
        *,
        source_head: nn.Module | None = None,
        norm: NormMode = "eval",
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        positive(weight=weight)
        one_of("norm", norm, get_args(NormMode))
        self.norm: NormMode = norm
        if not isinstance(source_head, nn.Module):
            raise InputError(
                f"source_head={source_head!r}: Co-Tuning needs the pretrained classifier; keep "
                "copy.deepcopy(model.get_classifier()) (or model.fc, model.head, ...) before the "
                "network gets its new one, and pass it"
            )
        self.weight = weight
        self.source_head = copy.deepcopy(source_head).requires_grad_(True)

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        tap = self._tapped()
        size = head_size(self.source_head)
        if size is not None and size[0] != self.num_features:
            raise InputError(
                f"source_head takes {size[0]} features and the network gives {self.num_features}: "
                "pass the classifier of the same pretrained network"
            )
        if samples is None:
            raise InputError("loader is missing: Co-Tuning relates source to target classes by it")
        like = next(tap.model.parameters())
        self.source_head.to(like.device, torch.promote_types(like.dtype, torch.float32))
        sums = counts = torch.empty(0)
        with preserved(tap.model, self.norm), torch.no_grad():
            for inputs, labels in at_least_two(samples):
                check_labels(labels, self.num_classes)
                call(tap.model, inputs)
                f = tap.take().features
                p = F.softmax(self.source_head(f.to(wide(f))), 1)
                if not sums.numel():
                    sums = p.new_zeros(self.num_classes, p.shape[1])
                    counts = p.new_zeros(self.num_classes, 1)
                sums.index_add_(0, labels, p)
                counts.index_add_(0, labels, torch.ones_like(p[:, :1]))
        sum_(sums, counts)
        whole = sums.sum(0) / counts.sum()
        relation = torch.where(counts > 0, sums / counts.clamp(min=1), whole)
        self.register_buffer("relation", relation)

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return weight times the cross-entropy of the source head with R[y]."""
        self._tapped()
        logits = synced_call(self.source_head, features.to(wide(features)))
        if targets.dim() == 1:
            wanted = self.relation[targets]
        else:
            wanted = targets.to(self.relation.dtype) @ self.relation
        return self.weight * F.cross_entropy(logits, wanted.to(logits.dtype))
