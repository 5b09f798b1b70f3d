"""Which linear layers a network's output comes out of, whatever the order they are declared in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regraft.models.modes import evaluating

# What joins channels: behind one of these a layer no longer says what the output is.
_JOINING = ("Mm", "Addmm", "Bmm", "Baddbmm", "Linear", "Convolution", "Einsum", "ScaledDot")


def output_layers(model: nn.Module, example: Tensor) -> list[nn.Linear | nn.Conv2d]:
    """Return the linear layers whose outputs a network's output is made of, row by row.

    A forward pass is followed back from the output, through whatever leaves channels apart (a
    softmax, a temperature, a pooling, a mean of two heads), to the first linear layers.

    Args:
        model: The network, in evaluation mode for the pass and then as it was; it may be on the
            meta device.
        example: Images, [b, C, H, W], on its device.

    Returns:
        The layers, each with a row for every class; empty where the pass fails or does not tell.
    """
    made: list[tuple[Any, nn.Linear | nn.Conv2d]] = []

    def record(module: nn.Linear | nn.Conv2d, _: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            made.append((output.grad_fn, module))

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        # The graph must be there even where every parameter is frozen.
        with evaluating(model), torch.enable_grad():
            output = _logits(model(example.detach().requires_grad_()))
    except Exception:  # a network of any kind, with no values on the meta device, raises anything
        return []
    finally:
        for handle in handles:
            handle.remove()
    if output is None or output.ndim < 2 or output.grad_fn is None:
        return []
    reached = _reached(output.grad_fn, dict(made))
    return reached if all(len(layer.weight) == output.shape[1] for layer in reached) else []


def _reached(last: Any, made: Mapping[Any, nn.Linear | nn.Conv2d]) -> list[nn.Linear | nn.Conv2d]:
    """Return the first layers on every way back through the graph, empty where one is lost."""
    layers: list[nn.Linear | nn.Conv2d] = []
    open_nodes, visited = [last], set()
    while open_nodes:
        node = open_nodes.pop()
        if node in visited:
            continue
        visited.add(node)
        if node in made:
            if made[node] not in layers:
                layers.append(made[node])
        elif node.name().startswith(_JOINING):
            return []
        else:
            following = (other for other, _ in reversed(node.next_functions))
            open_nodes += [other for other in following if other is not None]
    return layers


def _logits(output: Any) -> Tensor | None:
    """Return the logits of a tensor, a mapping or object that names them, or the first of several."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif isinstance(output, tuple | list) and not hasattr(output, "logits"):
        output = output[0] if output else None
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", None)
    return output if isinstance(output, Tensor) else None
