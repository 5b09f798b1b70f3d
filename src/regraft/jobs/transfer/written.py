"""The tensors that a transfer writes: the target at its steps, and the permutations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from regraft.checkpoints.model_card import header
from regraft.jobs.merge.card import describe

if TYPE_CHECKING:
    from regraft.cli.transfer import Transfer
    from regraft.jobs.merge.gathered import Gathered
    from regraft.symmetry.spec.spec import PermutationSpec

    from .arms import Arm, State


def write_transfer(asked: Transfer, given: Gathered, spec: PermutationSpec, arm: Arm) -> list[str]:
    """Write spec.json, and weights and permutation of the last step and of the best; return names."""
    from regraft.files import write_tensors, write_text

    write_text(asked.out / "spec.json", spec.to_json())
    files = ["spec.json"]
    last, best = arm.start("final"), arm.start("best")
    points = {"": last} if best is last else {"": last, "-best": best}
    for suffix, found in points.items():
        files.append(write_state(asked.out, given, f"model{suffix}.safetensors", found.weights))
        name = f"permutation{suffix}.safetensors"
        tensors = {k: v.to("cpu").contiguous().clone() for k, v in found.permutation.items()}
        header = {"regraft.permutation": "1", "of": "the source", "step": str(found.step)}
        write_tensors(asked.out / name, tensors, header)
        files.append(name)
    if asked.keep_steps:
        files += sorted(f"steps/{p.name}" for p in (asked.out / "steps").glob("*.safetensors"))
    return files


def write_state(out: Path, given: Gathered, name: str, state: State) -> str:
    """Write a state dict that says what it is of; return its name."""
    from regraft.files import write_tensors

    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    write_tensors(out / name, tensors, header(describe(given)))
    return name
