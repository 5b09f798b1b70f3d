"""BitFit: train biases and the classifier only.

References:
    Ben Zaken et al., "BitFit: simple parameter-efficient fine-tuning for transformer-based masked
    language models", ACL 2022.
"""

from __future__ import annotations

from .method import Method, Mode
from .samples import Samples


class BitFit(Method):
    """Only biases (the shifts of normalisation layers too) and the classifier take gradients.

    Where convolutions have no bias, as before BatchNorm, the shifts are all that is trained of the
    backbone. `prepare` sets `requires_grad`; make the optimiser after it.
    """

    needs_pretrained = True

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        tap = self._tapped()
        head = {id(p) for p in tap.classifier.parameters()}
        for name, parameter in tap.model.named_parameters():
            bias = name.rpartition(".")[2] in ("bias", "in_proj_bias")
            parameter.requires_grad_(bias or id(parameter) in head)
