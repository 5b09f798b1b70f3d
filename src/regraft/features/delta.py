"""DELTA: keep the maps of inner layers as the pretrained network has them.

References:
    Li et al., "DELTA: deep learning transfer using feature map with attention for convolutional
    networks", ICLR 2019, equations 3 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from regraft.errors import InputError

from .l2sp import head_decay
from .layers import channel_attention, default_layers
from .method import Context, Method, Mode, NormMode, one_of, positive, wide
from .samples import Samples
from .teacher import LayerTap, Teacher, channels_first


class Delta(Method):
    """loss = weight/2 * mean over b of sum_j sum_c a_jc C_j/P_j |M_jc - M0_jc|^2 + head decay.

    M_jc are channel c's P_j positions of layer j's map, M0 those of a frozen pretrained copy in
    evaluation mode; head decay is head_weight/2 |w_head|^2. Without attention a_jc = 1/C_j. With
    it a_j = softmax over c of zscore(rise of the loss when channel c is zeroed) / `temperature`,
    measured on the pretrained network with a linear probe for its classifier, before training: as
    many forward passes as there are channels, for each batch looked at. The optimiser's weight
    decay should be 0. Costs a forward pass of the copy.

    Args:
        weight: Weight of the maps' distances. The usual 0.01 for distances summed over 48 images
            is 0.48 for their mean.
        head_weight: Weight of the classifier's norm.
        layers: Names of the layers; by default the last convolution at each resolution, or four
            evenly spaced blocks of a network without several.
        attention: Weigh channels by what the loss needs them for.
        attention_batches: Batches that the rise of the loss is measured on.
        temperature: What z-scores are divided by.
        norm: `train` lets the copy use each batch's own BatchNorm statistics, for images far from
            the source's.

    Raises:
        InputError: An argument out of its range, no such layer, or no layers by default.
    """

    needs_pretrained = True
    decays_itself = True
    teacher: Teacher

    def __init__(
        self,
        weight: float = 0.48,
        *,
        head_weight: float = 0.01,
        layers: Sequence[str] | None = None,
        attention: bool = False,
        attention_batches: int = 10,
        temperature: float = 5.0,
        norm: NormMode = "eval",
        seed: int = 0,
    ) -> None:
        super().__init__(seed=seed)
        positive(weight=weight, head_weight=head_weight)
        if attention_batches < 1 or not temperature > 0 or layers == []:
            raise InputError(
                f"attention_batches={attention_batches}, temperature={temperature}, "
                f"layers={layers}: expected at least 1, a number above 0, and names or None"
            )
        self.weight, self.head_weight = weight, head_weight
        self.wanted = None if layers is None else list(layers)
        one_of("norm", norm, get_args(NormMode))
        self.norm: NormMode = norm
        self.attention, self.attention_batches = attention, attention_batches
        self.temperature = temperature
        self.layers: list[str] = []
        self.maps: LayerTap | None = None

    def _prepare(self, samples: Samples | None, steps: int | None, mode: Mode) -> None:
        tap = self._tapped()
        attention: dict[str, Tensor] = {}
        self.layers = self.wanted or []
        if self.wanted is None or self.attention:
            if samples is None:
                raise InputError("loader is missing: DELTA looks at the maps of training images")
            self.layers = self.wanted or default_layers(tap, samples.example())
        if self.attention and samples is not None:
            attention = channel_attention(
                tap,
                samples,
                self.layers,
                num_classes=self.num_classes,
                batches=self.attention_batches,
                temperature=self.temperature,
                seed=self.seed,
            )
        self.teacher = Teacher(tap, self.layers, norm=self.norm)
        self.maps = LayerTap(tap.model, self.layers)
        for i, name in enumerate(self.layers):
            self.register_buffer(f"attention_{i}", attention.get(name))

    def remove(self) -> None:
        """Take the hooks off the network, when training is over."""
        super().remove()
        if self.maps is not None:
            self.maps.remove()
            self.maps = None

    def loss(self, features: Tensor, targets: Tensor, context: Context | None = None) -> Tensor:
        """Return the distance of the latest forward pass's maps from the copy's on its inputs."""
        tap = self._tapped()
        if context is None or self.maps is None:
            raise InputError("DELTA needs the forward pass: call method(base, targets)")
        now = self.maps.take()
        _, then = self.teacher(context)
        total = features.new_zeros((), dtype=wide(features))
        for i, name in enumerate(self.layers):
            if name not in now or name not in then:
                raise InputError(f"layers has {name!r}, which the forward pass did not run through")
            m, m0 = (channels_first(t).to(total.dtype) for t in (now[name], then[name]))
            square = (m - m0).square().mean(2)
            a = getattr(self, f"attention_{i}")
            share = square.sum(1) if a is None else (square * (a * len(a))).sum(1)
            total = total + (share.mean() if len(share) else share.sum())
        return 0.5 * self.weight * total + head_decay(tap.classifier, self.head_weight, total)
