"""From a meta-trained learner and a few images of each new class to an ordinary classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regraft.checkpoints.model_card import is_elsewhere
from regraft.checkpoints.read import check_state, read_checkpoint
from regraft.checkpoints.write import write_model
from regraft.config import FewshotConfig, check, to_dict
from regraft.data import scan_folder
from regraft.data.folder import Folder, joined
from regraft.errors import InputError
from regraft.fewshot import MAML, Learner
from regraft.files import make_folder
from regraft.jobs.predict.network import facts_of, network_of, sketched
from regraft.jobs.predict.pictures import Preparation
from regraft.jobs.verb import write
from regraft.models import build
from regraft.models.bounded import bounded
from regraft.report import ResultCard, command_of
from regraft.tickets import load_ticket
from regraft.train import evaluation

from .cards import adapted_card
from .learners import make_learner

_BATCH = 200


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """Which learner, which images, and where the classifier goes.

    Attributes:
        result: Folder of `regraft fewshot train`, or the model.ticket or model.safetensors in it.
        support: Folder with a subfolder of a few images for each new class.
        test: Folder with other images of the same classes, on which the classifier is measured.
        out: Folder to make.
        steps: Inner steps; those of the learner's test by default.
        model: The network to build instead of the one the file names.
        unreadable: What is done about images that cannot be decoded.
        device: Where to compute.
    """

    result: Path
    support: Path
    out: Path
    test: Path | None = None
    steps: int | None = None
    model: str | None = None
    unreadable: Literal["refuse", "skip"] = "refuse"
    device: str | torch.device = "cpu"

    def run(self) -> ResultCard:
        """Adapt, write `out/model.safetensors`, measure, and return the card.

        Raises:
            InputError: The result is none of few-shot training; the support set has another number of
                classes than the learner takes, or the test set other classes; the folder is not empty.
            DivergenceError: The inner loop left the finite numbers; the step is named.
        """
        if self.steps is not None and self.steps < 0:
            raise InputError(f"--steps {self.steps}: expected at least 0")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise InputError(f"{self.out} is there already: choose another --out, or remove it")
        learner, about = load_learner(self.result, model=self.model)
        shape, method = about["input"], about["method"]
        support = scan_folder(
            self.support, image_size=shape["image_size"], unreadable=self.unreadable
        )
        test = None if self.test is None else self._test(support, shape["image_size"])
        prepared = Preparation(tuple(about["mean"]), tuple(about["std"]))
        files = joined(support)
        pixels = _pixels(files, shape["channels"])
        x = prepared.normalised(pixels).to(self.device)
        y = files.labels.to(self.device)
        network = learner.to(self.device).adapt(x, y, steps=self.steps)
        about = {
            **{k: about[k] for k in ("model", "input", "mean", "std")},
            "classes": list(support.classes),
            "data": self.support.resolve().name,
            "method": method,
            "temperature": 1.0,
        }
        measured = None
        if test is not None:
            with torch.no_grad():
                logits = [
                    network(prepared.normalised(_pixels(part, shape["channels"])).to(self.device))
                    for part in _parts(test)
                ]
            measured = evaluation(torch.cat(logits).cpu(), test.labels, support.classes)
        make_folder(self.out)
        write_model(self.out / "model.safetensors", network, about)
        counts = torch.bincount(files.labels, minlength=len(support.classes)).tolist()
        card = adapted_card(
            self.result,
            command_of("predict", self.out, self.support),
            about,
            dict(zip(support.classes, counts, strict=True)),
            pixels,
            measured,
        )
        return write(self.out, card)

    def _test(self, support: Folder, size: int) -> Any:
        images = scan_folder(str(self.test), image_size=size, unreadable=self.unreadable, fewest=1)
        for here, there, whose in (
            (images.classes, support.classes, "test"),
            (support.classes, images.classes, "support"),
        ):
            strange = [c for c in here if c not in there]
            if strange:
                raise InputError(
                    f"the {whose} images have the class {strange[0]!r} and the others have not: support "
                    f"({self.support}) and test ({self.test}) must be of the same classes"
                )
        return joined(images)


def load_learner(result: Path, *, model: str | None = None) -> tuple[Learner, dict[str, Any]]:
    """Return the learner of a finished meta-training, and what its file says it is of.

    Code outside Regraft's own dependencies is imported only when the caller names it with `model`.

    Raises:
        InputError: There is no such file, it is damaged, or it is of something else.
    """
    names = ("model.ticket", "model.safetensors")
    file = result
    if result.is_dir():
        there = [result / n for n in names if (result / n).is_file()]
        if not there:
            raise InputError(
                f"{result} holds no {' or '.join(names)}: give the folder of a finished `regraft fewshot "
                "train`"
            )
        file = there[0]
    if file.suffix == ".ticket":
        ticket = load_ticket(file)
        config = _config_of(ticket.about, file)
        network = network_of(ticket, file, model)
        learner = make_learner(network, _as_maml(config), seed=0, masks=ticket.masks(), keep=True)
        return learner, dict(ticket.about)
    stored = read_checkpoint(file)
    config = _config_of(stored.about, file)
    which, shape = facts_of(stored, file)
    if model is None and is_elsewhere(which.name):
        raise InputError(
            f"{file} names the factory {which.name}, which is code outside the file: pass --model "
            f"{which.name} if you trust it"
        )
    if model is not None:
        which = type(which)(name=model, width=which.width, options=which.options)
    state: dict[str, Tensor] = dict(stored)
    rates = {k.removeprefix("rates."): state.pop(k) for k in list(state) if k.startswith("rates.")}
    outline = sketched(which, shape)
    if outline is not None:
        _check(state, outline.state_dict(), file)
    with bounded(sum(t.numel() for t in stored.sketch.values())):
        network = build(which, **shape)
    _check(state, network.state_dict(), file)
    network.load_state_dict(state)
    learner = make_learner(network, config, seed=0, keep=True)
    if isinstance(learner, MAML) and rates:
        with torch.no_grad():
            for name, rate in rates.items():
                learner.rates[name.replace(".", ":")].copy_(rate)
    return learner, dict(stored.about)


def _check(state: dict[str, Tensor], expected: dict[str, Tensor], file: Path) -> None:
    check_state(state, {name: tuple(t.shape) for name, t in expected.items()}, str(file))


def _config_of(about: dict[str, Any], file: Path) -> FewshotConfig:
    """Return the method that a file was meta-trained by, checked.

    Raises:
        InputError: It says none, or something that is none.
    """
    try:
        config = FewshotConfig(**about["fewshot"])
        if to_dict(config)["method"] != about["method"]:
            raise ValueError("two methods")
        check(config)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file} was not made by `regraft fewshot train`, which writes what adapts to new classes: "
            "give the folder of such a run"
        ) from error
    return config


def _as_maml(config: FewshotConfig) -> FewshotConfig:
    """Return the inner loop of a finished ticket: MAML's under fixed masks."""
    kinds = {"meta-ticket": "maml", "meta-ticket-boil": "boil", "meta-ticket-anil": "anil"}
    return replace(config, method=kinds[config.method])  # pyrefly: ignore


def _pixels(files: Any, channels: int) -> Tensor:
    from regraft.data.lazy import grey

    pixels = files.decoded()
    return grey(pixels) if channels == 1 else pixels


def _parts(files: Any) -> list[Any]:
    return [files.subset(rows) for rows in torch.arange(len(files)).split(_BATCH)]
