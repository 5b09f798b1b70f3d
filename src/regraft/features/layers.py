"""Inner layers of a network: which to look at, and which of their channels matter.

References:
    Li et al., "DELTA", ICLR 2019, section 3.3 (attention by the loss without a channel).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError
from regraft.models.classifier import call

from .method import wide
from .parallel import gather_rows, sum_
from .probe import fit_probe
from .samples import Samples, at_least_two, preserved
from .tap import Tap
from .teacher import LayerTap, channels_first, zeroed

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def default_layers(tap: Tap, example: Any) -> list[str]:
    """Return the last convolution of each stage, or four evenly spaced blocks of a transformer.

    Stages are `layer1`, `layer2`, ... or the children of `stages` where a network has them, else
    its parts of equal resolution.

    Args:
        tap: Tap on the network.
        example: Inputs for a forward pass.

    Raises:
        InputError: The network has neither.
    """
    model = tap.model
    ran = _output_shapes(tap, example)
    convolutions = [
        n
        for n in ran
        if n != tap.name and isinstance(model.get_submodule(n), _CONV) and len(ran[n]) > 3
    ]
    stages = [n for n, _ in model.named_children() if n.startswith("layer") and n[5:].isdigit()]
    parts = getattr(model, "stages", None)
    if isinstance(parts, nn.Module):
        stages = [f"stages.{n}" for n, _ in parts.named_children()]
    if stages:
        own = [[n for n in convolutions if n.startswith(f"{stage}.")] for stage in stages]
        # What is registered last in a stage: a block's shortcut runs last but is not its output.
        order = [n for n, _ in model.named_modules()]
        layers = [max(names, key=order.index) for names in own if names]
    else:
        layers = list({ran[n][2:]: n for n in convolutions}.values())
    if len(layers) > 1 or (layers and len(convolutions) == 1):
        return layers
    lists = [
        [f"{name}.{child}" for child, _ in m.named_children() if f"{name}.{child}" in ran]
        for name, m in model.named_modules()
        if name and isinstance(m, nn.ModuleList | nn.Sequential)
    ]
    blocks = [n for n in max(lists, key=len, default=[]) if len(ran[n]) >= 3]
    if len(blocks) >= 2:
        k = min(4, len(blocks))
        return [blocks[(i + 1) * len(blocks) // k - 1] for i in range(k)]
    if layers:
        return layers
    raise InputError(
        f"{type(model).__name__} has no convolutions or blocks to look at by default: name layers "
        "with layers=[...], as in model.named_modules()"
    )


def _output_shapes(tap: Tap, example: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all modules' outputs in the order they ran."""
    layers = LayerTap(tap.model, [n for n, _ in tap.model.named_modules() if n])
    try:
        with preserved(tap.model, "eval"):
            call(tap.model, example)
    finally:
        layers.remove()
        tap.clear()
    return {name: tuple(output.shape) for name, output in layers.maps.items()}


def channel_attention(
    tap: Tap,
    samples: Samples,
    layers: Sequence[str],
    *,
    num_classes: int,
    batches: int,
    temperature: float,
    seed: int,
) -> dict[str, Tensor]:
    """Return a_j [C_j] by layer: softmax over channels of zscore(rise of the loss) / temperature.

    The rise is that of a linear probe's cross-entropy on the first batches when a channel of the
    layer is set to zero; probe and losses are taken in evaluation mode.

    Args:
        tap: Tap on the network.
        samples: The training images.
        layers: Names of the layers.
        num_classes: K.
        batches: Batches that losses are taken on.
        temperature: What z-scores are divided by.
        seed: Seed of the probe's choice of held-out images.
    """
    features: list[Tensor] = []
    labels: list[Tensor] = []
    kept: list[tuple[Any, Tensor]] = []
    with preserved(tap.model, "eval"):
        shapes = LayerTap(tap.model, layers)
        try:
            for inputs, y in at_least_two(samples):
                call(tap.model, inputs)
                f = tap.take().features
                features.append(f.to(wide(f)))
                labels.append(y)
                if len(kept) < batches:
                    kept.append((inputs, y))
            channels = {name: channels_first(m).shape[1] for name, m in shapes.take().items()}
        finally:
            shapes.remove()
        f, y = gather_rows(torch.cat(features)), gather_rows(torch.cat(labels))
        w, b, _ = fit_probe(f, y, num_classes, seed=seed)

        def loss() -> Tensor:
            total = w.new_zeros(2)
            for inputs, y in kept:
                call(tap.model, inputs)
                logits = F.linear(tap.take().features.to(w.dtype), w, b)
                total[0] += F.cross_entropy(logits, y, reduction="sum")
                total[1] += len(y)
            sum_(total)
            return total[0] / total[1]

        attention, whole = {}, loss()
        for name in layers:
            layer, rises = tap.model.get_submodule(name), []
            for channel in range(channels[name]):
                with zeroed(layer, channel):
                    rises.append(loss() - whole)
            rise = torch.stack(rises)
            z = (rise - rise.mean()) / rise.std(correction=0).clamp(min=1e-12)
            attention[name] = F.softmax(z / temperature, 0)
    return attention
