"""A finished model of `regraft finetune`, ready to predict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.models.bounded import bounded

from .network import facts_of, sketched
from .pictures import Preparation


@dataclass(frozen=True, eq=False)
class Finetuned:
    """The network in evaluation mode, what its file says it is of, and how images are prepared."""

    path: Path
    about: dict[str, Any]
    network: Any
    preparation: Preparation
    temperature: float
    device: Any

    @property
    def classes(self) -> list[str]:
        """The classes, in the order of the outputs."""
        return self.about["classes"]

    def logits(self, batches: Iterable[Any]) -> Any:
        """Return the outputs [n, K] for batches of prepared images."""
        import torch

        with torch.inference_mode():
            found = [self.network(x.to(self.device)).float().cpu() for x in batches]
        if not found:
            raise InputError("no image can be read: there is nothing to predict")
        return torch.cat(found)

    def probabilities(self, logits: Any) -> Any:
        """Return calibrated probabilities [n, K]."""
        return (logits / self.temperature).softmax(1)


def load_finetuned(path: Path, *, model: str | None, device: Any) -> Finetuned:
    """Load a result folder, or the model.safetensors in it.

    Code outside Regraft's own dependencies is imported only when the caller names it with `model`.

    Raises:
        InputError: There is no such file, it is damaged or does not say what it is of, it names a
            factory that the caller has not, or its tensors do not fit the network.
    """
    import dataclasses

    from regraft.checkpoints.model_card import is_elsewhere
    from regraft.checkpoints.read import fit_names, read_checkpoint
    from regraft.models import build

    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise InputError(_without_model(path, file))
    if file.suffix == ".ticket":
        raise InputError(f"{file} is a ticket: `regraft ticket run {file}` predicts with it")
    stored = read_checkpoint(file)
    config, shape = facts_of(stored, file)
    if shape.get("graph"):
        raise InputError(f"{file} is a network for graphs: expected one for images")
    if model is None and is_elsewhere(config.name):
        raise InputError(
            f"{file} names the factory {config.name}, which is code outside the file: pass "
            f"--model {config.name} if you trust it"
        )
    if model is not None:
        config = dataclasses.replace(config, name=model)
    preparation = Preparation.of(stored, file)
    temperature = stored.about.get("temperature", 1.0)
    if type(temperature) not in (int, float) or not 0 < temperature < float("inf"):
        raise InputError(f"{file} has temperature={temperature!r}: expected a number above 0")
    try:
        outline = sketched(config, shape)
        if outline is not None:
            fit_names(stored, outline)
        with bounded(sum(t.numel() for t in stored.sketch.values())):
            network = build(config, **shape)
        network.load_state_dict(dict(fit_names(stored, network)))
    except InputError as error:
        raise InputError(f"{file} does not fit the network {config.name} ({error})") from error
    return Finetuned(
        file,
        dict(stored.about),
        network.to(device).eval(),
        preparation,
        float(temperature),
        device,
    )


_USED_BY = {
    "align": "`regraft merge` and `regraft evaluate` take the files of networks in it",
    "condense": "it holds images, to train or to merge with, and no network",
}
"""What to do with the folders that hold no network, by the kind of their card."""


def _without_model(path: Path, file: Path) -> str:
    """Return in one sentence why there is no network at a path, and what to do."""
    from regraft.train import read_json

    if (path / "model.ticket").is_file():
        return f"{path} holds a ticket: `regraft ticket run {path}` predicts with it"
    if not (path / "regraft.json").exists():
        return f"{file}: no such file; give the folder that `regraft finetune` made"
    if not any((path / name).exists() for name in ("result.json", "card.json")):
        return f"{path} has not finished: start the same command again ({file.name} is missing)"
    kind = (read_json(path / "card.json") or {}).get("kind")
    if kind in _USED_BY:
        return f"{path} is a result of `regraft {kind}`: {_USED_BY[kind]}"
    return f"{path} has no {file.name}: it holds figures and no network"
