"""The tensors that a transfer writes: the target at its steps, and the permutations."""

from __future__ import annotations

from pathlib import Path

from regraft.files import write_tensors, write_text

from .networks import Networks
from .steps import Steps


def write_transfer(out: Path, networks: Networks, steps: Steps) -> list[str]:
    """Write spec.json, and weights and permutation of the last step and of the best; return names."""
    write_text(out / "spec.json", networks.spec.to_json())
    files = ["spec.json"]
    points = {"": steps.last, "-best": steps.best}
    if steps.best is steps.last:
        del points["-best"]
    for suffix, at in points.items():
        networks.save(out / f"model{suffix}.safetensors", at.weights)
        tensors = {k: v.to("cpu").contiguous().clone() for k, v in at.permutation.items()}
        header = {"regraft.permutation": "1", "of": "the source", "step": str(at.step)}
        write_tensors(out / f"permutation{suffix}.safetensors", tensors, header)
        files += [f"model{suffix}.safetensors", f"permutation{suffix}.safetensors"]
    return files + sorted(f"steps/{p.name}" for p in (out / "steps").glob("*.safetensors"))
