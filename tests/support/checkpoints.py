"""Small trained checkpoints that the tests of merging share, as `regraft ticket find` writes them."""

import functools
import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from regraft.config import DataConfig, ModelConfig, to_dict
from regraft.data import TensorLoader, load
from regraft.files import write_tensors
from regraft.models import build
from regraft.symmetry.merge.connectivity import measure

MLP = ModelConfig(name="mlp", options={"widths": [24, 16]})
CONV = ModelConfig(name="conv_small", width=0.5)


@functools.cache
def digits():
    return load(DataConfig(name="digits"))


@functools.cache
def _trained(name, seed, classes):
    splits = digits()
    config = {"mlp": MLP, "conv": CONV}[name]
    torch.manual_seed(seed)
    count = len(classes) if classes else 10
    model = build(config, num_classes=count, channels=1, image_size=8)
    train = splits.train
    if classes:
        train = train.subset(torch.isin(train.labels, torch.tensor(classes)).nonzero().flatten())
    loader = TensorLoader(
        train,
        batch_size=50,
        mean=splits.mean,
        std=splits.std,
        shuffle=True,
        augment="none",
        seed=seed,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rows = torch.zeros(10, dtype=torch.int64)
    rows[list(classes or range(10))] = torch.arange(count)
    for epoch in range(4):
        for x, y, _ in loader.batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), rows[y]).backward()
            optimizer.step()
    about = {
        "model": to_dict(config),
        "input": {"channels": 1, "image_size": 8},
        "mean": list(splits.mean),
        "std": list(splits.std),
        "classes": [splits.classes[i] for i in classes or range(10)],
    }
    return {k: v.detach().clone() for k, v in model.state_dict().items()}, about


def trained(name="mlp", seed=1, classes=()):
    """Return the state dict of a network trained on the digits, and what its file says of it."""
    state, about = _trained(name, seed, tuple(classes))
    return {k: v.clone() for k, v in state.items()}, dict(about)


def checkpoint(path, name="mlp", seed=1, classes=(), *, header=True, **changes):
    """Write a trained network to a safetensors file and return its path."""
    state, about = trained(name, seed, classes)
    state |= changes
    metadata = {"regraft.model": json.dumps(about)} if header else None
    tensors = {k: v.contiguous() for k, v in state.items()}
    if metadata is None:
        save_file(tensors, path)
    else:
        write_tensors(path, tensors, metadata)
    return path


def network(config, state, classes=10):
    """Return the network of such a checkpoint."""
    model = build(config, num_classes=classes, channels=1, image_size=8)
    model.load_state_dict(state)
    return model.eval()


def accuracy(model):
    """Return the share of the digits' test images that a network has right, in per cent."""
    from regraft.jobs.merge.data import Data

    splits = digits()
    data = Data(splits, splits.mean, splits.std, tuple(range(10)))
    return measure(model, [data.batches(data.test, "cpu")]).accuracy
