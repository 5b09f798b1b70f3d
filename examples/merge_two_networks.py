"""Merge two networks that were trained on different data: trace, match, merge.

One network sees digits upright, the other sees them turned by a quarter; both become one network of
the same size. No specification of the architecture is written by hand.

python examples/merge_two_networks.py        # half a minute on one core; prints test accuracies
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from regraft import symmetry
from regraft.config import DataConfig, ModelConfig
from regraft.data import ImageSet, TensorLoader, load
from regraft.models import build

State = dict[str, Tensor]


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    config = ModelConfig(name="mlp", options={"widths": [128, 128]})
    return build(config, num_classes=10, channels=1, image_size=8)


def turned(images: ImageSet) -> ImageSet:
    return ImageSet(images.images.rot90(1, (2, 3)), images.labels, images.num_classes)


def train(images: TensorLoader, seed: int, epochs: int) -> State:
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for x, y, _ in images.batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def main(epochs: int = 20, steps: int = 150) -> dict[str, float]:
    splits = load(DataConfig(name="digits"))
    shared = {"mean": splits.mean, "std": splits.std, "augment": "none", "seed": 1}

    def loader(images: ImageSet, batch_size: int = 64) -> TensorLoader:
        return TensorLoader(images, batch_size=batch_size, shuffle=batch_size == 64, **shared)

    ways = [(splits.train, splits.test), (turned(splits.train), turned(splits.test))]
    a, b = (train(loader(images), seed, epochs) for seed, (images, _) in enumerate(ways))

    model = network(0)
    spec = symmetry.trace(model, torch.zeros(2, 1, 8, 8))  # any architecture; proved numerically
    print(spec)

    by_weights = symmetry.match(spec, a, b).permutation
    images, labels = (torch.cat([getattr(w[0], k) for w in ways]) for k in ("images", "labels"))
    both = loader(ImageSet(images, labels, 10))
    config = symmetry.StraightThroughConfig(steps=steps, lr=0.1)
    on_data = symmetry.straight_through(spec, model, a, b, both, config)

    tests = [loader(test, 500) for _, test in ways]
    scores = {}
    for what, state in {
        "the first network": a,
        "the second network": b,
        "averaged as they are": symmetry.merge([a, b]),
        "aligned by weights": symmetry.merge([a, spec.apply(b, by_weights)]),
        "aligned on data": symmetry.merge([a, spec.apply(b, on_data)]),
    }.items():
        model.load_state_dict(state)
        scores[what] = symmetry.measure(model, tests).accuracy
        print(f"{what:22} {scores[what]:5.1f}% on both ways of seeing")
    return scores


if __name__ == "__main__":
    main()
