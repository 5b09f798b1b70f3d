"""Small recorded runs on the digits that the tests of `regraft transfer` share."""

import json

import torch
from safetensors.torch import load_file

from checkpoints import digits
from regraft.config import ModelConfig, to_dict
from regraft.data import TensorLoader
from regraft.files import write_tensors
from regraft.models import build
from regraft.symmetry.merge.heads import find_head
from regraft.symmetry.transfer.recorder import TrajectoryRecorder

WIDE = ModelConfig(name="mlp", options={"widths": [64, 48]})


def about(config=WIDE, classes=10):
    """Return what a checkpoint says of itself."""
    splits = digits()
    return {
        "model": to_dict(config),
        "input": {"channels": 1, "image_size": 8},
        "mean": list(splits.mean),
        "std": list(splits.std),
        "classes": list(splits.classes[:classes]),
    }


def run(folder, seed, *, config=WIDE, epochs=6, every=None, finish=True, classes=10, start=None):
    """Train on the first digits; write init.safetensors and final.safetensors, or a trajectory.

    With `start`, a state dict, all but the classifier begins there.
    """
    splits = digits()
    torch.manual_seed(seed)
    model = build(config, num_classes=classes, channels=1, image_size=8)
    if start is not None:
        head = find_head(model).names
        own = model.state_dict()
        model.load_state_dict({k: own[k] if k in head else v for k, v in start.items()})
    header = {"regraft.model": json.dumps(about(config, classes))}
    folder.mkdir()
    train = splits.train.subset((splits.train.labels < classes).nonzero().flatten())

    def save(name):
        state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        write_tensors(folder / f"{name}.safetensors", state, header)

    save("init")
    recorder = None
    if every:
        recorder = TrajectoryRecorder(folder / "run", model, every=every, metadata=header)
    loader = TensorLoader(
        train,
        batch_size=64,
        mean=splits.mean,
        std=splits.std,
        shuffle=True,
        augment="none",
        seed=seed,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(epochs):
        for x, y, _ in loader.batches(epoch):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if recorder:
            recorder.step()
    if recorder and finish:
        recorder.finish()
    save("final")
    return folder


def between(a, b, *, trained=False):
    """Return the words for a straight transfer from one run's folder to another's."""
    words = ("--from-init", a / "init.safetensors", "--from-final", a / "final.safetensors", "--to",
             b / "init.safetensors")  # fmt: skip
    return (*words, "--to-final", b / "final.safetensors") if trained else words


def rewritten(path, to, about=None, **changes):
    """Write a checkpoint again with other tensors, and say something else of it; return the path."""
    state = {**load_file(path), **changes}
    header = {"regraft.model": json.dumps(about)} if about else None
    write_tensors(to, {k: v.contiguous() for k, v in state.items()}, header)
    return to
