"""A finished model of `regraft finetune`, ready to predict."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.errors import InputError
from regraft.models.bounded import bounded
from regraft.report.card import command_of

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
            logits = [self.network(x.to(self.device)).float().cpu() for x in batches]
        return torch.cat(logits)

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
        raise InputError(f"{file} {_ticket(file)}")
    if file.name == "spec.json":
        raise InputError(f"{file} holds symmetries, which `regraft align --spec` and merge take")
    stored = read_checkpoint(file)
    for key, what in _FILES.items():
        if key in stored.about or key in stored.metadata:
            raise InputError(f"{file} holds {what.format(shlex.quote(str(file)))}")
    config, shape = facts_of(stored, file)
    if shape.get("graph"):
        raise InputError(
            f"{file} is a network for graphs, which predict no images: its accuracy is in result.json, and "
            "`regraft ticket run TICKET --data GRAPH` predicts with tickets of graphs"
        )
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
        file, dict(stored.about), network.to(device).eval(), preparation, float(temperature), device
    )


_USED_BY = {
    "align": "it holds a network for each further model: name its file, such as {0}/aligned.safetensors",
    "transfer": "it holds several networks: name the file of one",
    "condense": "it holds images, to train or to merge with, and no network",
    "bank": "it holds generated images: `regraft pretrain --source {0}` learns from them",
    "inspect": "it holds figures of a generator, which `regraft synth make` makes images with",
    "fewshot-train": "`regraft fewshot adapt {0} SUPPORT` makes a classifier of it",
}
"""What to do with the folders that hold no single classifier, by the kind of their card."""

_FILES = {
    "fewshot": "a few-shot learner: `regraft fewshot adapt {0} SUPPORT` makes a classifier of it",
    "regraft": "a result of `regraft condense`: images, or networks that it matched in",
    "regraft.permutation": "a permutation that `regraft align` and others used: take the model beside it",
    "tree": "the state of a training, which the same command goes on from: take the model beside it",
}
"""What files of ours hold that are no classifier, by an entry of their headers."""

_HOLDING = {
    "ticket.json": "an unpacked ticket: `regraft ticket pack {0}` makes one to run",
    "index.json initial.safetensors": "a recorded training: `regraft transfer {0} --to FILE` carries it on",
}
"""What folders without a card hold, by files of theirs."""


def _ticket(path: Path) -> str:
    """Return in words that a file or a folder holds a ticket, and which verb takes it."""
    from regraft.tickets import load_ticket

    holds = "holds" if path.is_dir() else "is"
    if "fewshot" in load_ticket(path).about:
        use = command_of("fewshot adapt", str(path), "SUPPORT")
        return f"{holds} a few-shot learner: `{use}` makes a classifier of it"
    return f"{holds} a ticket: `{command_of('ticket run', str(path))}` predicts with it"


def _without_model(path: Path, file: Path) -> str:
    """Return in one sentence why there is no network at a path, and what to do."""
    from regraft.train import read_json

    quoted = shlex.quote(str(path))
    kind = (read_json(path / "card.json") or {}).get("kind")
    files = {names: all((path / n).is_file() for n in names.split()) for names in _HOLDING}
    holding = next((what for names, what in _HOLDING.items() if files[names]), None)
    if kind in _USED_BY:
        verb = {"bank": "synth make", "inspect": "synth inspect"}.get(kind, kind.replace("-", " "))
        said = f"is a result of `regraft {verb}`: {_USED_BY[kind].format(quoted)}"
    elif (path / "model.ticket").is_file():
        said = _ticket(path)
    elif holding is not None:
        said = f"holds {holding.format(quoted)}"
    elif (path / "regraft.json").exists():
        done = any((path / name).exists() for name in ("result.json", "card.json"))
        said = f"has no {file.name}: it holds figures and no network"
        if not done:
            said = f"has not finished: start the same command again ({file.name} is missing)"
    elif any(any(path.glob(f"{below}/regraft.json")) for below in ("*", "*/*")):
        said = f"holds several runs: name one, or compare them by `regraft report {quoted}`"
    else:
        return f"{file}: no such file; give the folder that `regraft finetune` made"
    return f"{path} {said}"
