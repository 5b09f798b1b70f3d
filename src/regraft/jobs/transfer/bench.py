"""Scores of networks on validation and test images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.cli.transfer import Transfer
    from regraft.jobs.merge.gathered import Gathered

    from .arms import State


class Bench:
    """Scores on validation and test images.

    Attributes:
        sources: By part: batches of the images for curves, and of all images.
        chosen_on: Name of the part that steps are chosen on.
        notes: What the user should know.
    """

    def __init__(self, asked: Transfer, given: Gathered) -> None:
        from regraft.symmetry.merge.connectivity import Kept

        self.given = given
        self.sources: dict[str, tuple[Any, Any]] = {}
        self.notes: list[str] = []
        self.chosen_on = "validation"
        if not given.data:
            return
        data = given.data[0]
        held_out = data.splits.validation
        if held_out is None:
            self.chosen_on = "training"
            self.notes.append(
                f"{data.splits.name} has no validation images: the best step was chosen on training ones"
            )
        parts = {"validation": held_out or data.splits.train, data.tested_on: data.test}
        for name, part in parts.items():
            few = data.batches(part, given.device, limit=asked.curve_images, seed=asked.seed)
            self.sources[name] = Kept(few), data.batches(part, given.device)

    def score(self, state: State, *, everything: bool = False) -> dict[str, float]:
        """Return loss and accuracy on each part; of all images, or of those for the curves."""
        from regraft.symmetry.merge.connectivity import measure

        found: dict[str, float] = {}
        self.given.model.load_state_dict(state)
        for name, sources in self.sources.items():
            scores = measure(self.given.model, [sources[everything]])
            key = "validation" if name == "validation" else "test"
            found |= {f"{key}_accuracy": scores.accuracy, f"{key}_loss": scores.loss}
        if found and "test_accuracy" not in found:  # the set has validation images and no others
            found |= {f"test_{k}": found[f"validation_{k}"] for k in ("accuracy", "loss")}
        return found

    def right(self, state: State) -> Tensor:
        """Return which of all validation images a network classifies right, bool [n]."""
        from regraft.train import outputs

        self.given.model.load_state_dict(state)
        logits, labels = outputs(self.given.model, self.sources["validation"][1])
        return logits.argmax(1) == labels

    @property
    def tested(self) -> Any:
        """Batches of the test images for curves."""
        return list(self.sources.values())[-1][0]
