"""What a transfer works on: a source's trajectory, a target, and what both share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regraft.checkpoints.write import write_model
from regraft.symmetry.merge.repair import reset_batch_norm_
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.transfer.gradients import Gradients
from regraft.symmetry.transfer.trajectory import Trajectory

from .images import Images

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False, kw_only=True)
class Networks:
    """The networks of one transfer, wherever they come from.

    Attributes:
        model: A network of the architecture, on the device where everything is computed; what its
            weights are is left to whoever used it last.
        images: The images, None without data.
        trajectory: The source's.
        target: The initialisation that it is carried over to.
        trained: The target after its own training, if there is one.
        spec: The symmetries of the architecture.
        tracing_seconds: What finding them took.
        about: What a file of such a network says it is of.
        notes: What the user should know.
    """

    model: nn.Module
    images: Images | None
    trajectory: Trajectory
    target: State
    trained: State | None
    spec: PermutationSpec
    tracing_seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def placed(self, state: Any) -> State:
        """Return a state dict on the device."""
        return {k: v.to(self.device) for k, v in state.items()}

    def gradients(self, part: str = "train") -> Gradients | None:
        """Return what gradients are of: images of a part, None without data."""
        if self.images is None:
            return None
        count = self.images.config.gradient_batches
        return Gradients(self.model, self.images.gradients(part), count=count)

    def with_statistics(self, state: State) -> State:
        """Return a state with BatchNorm statistics of the data, as all that is measured has."""
        state = self.placed(state)
        if self.images is None:
            return state
        self.model.load_state_dict(state)
        reset_batch_norm_(self.model, self.images.statistics)
        return {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def save(self, path: Path, state: State, **more: Any) -> None:
        """Write a state dict that says what it is of, and what else is given."""
        write_model(path, state, {**self.about, **more})
