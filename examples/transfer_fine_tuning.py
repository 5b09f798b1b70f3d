"""A fine-tuning run carried from one pretrained base to the next, so that it need not be run again.

python examples/transfer_fine_tuning.py    # ten seconds on one core; prints test accuracies

Two releases of a base are pretrained apart on the digits 0 to 4. The first is fine-tuned on 5 to 9;
its weight changes are then added to the second, permuted. Bases have learnt the same things, so that
matching their weights alone, without data, is worth a look beside matching gradients.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regraft.symmetry import Gradients, Trajectory, transfer
from regraft.symmetry.trace import trace


def base(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5)
    )


def main(epochs: int = 20) -> dict[str, float]:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test = order[1300:][y[order[1300:]] >= 5]

    def loader(rows: torch.Tensor) -> DataLoader:
        return DataLoader(
            TensorDataset(x[rows], y[rows] % 5),
            batch_size=64,
            shuffle=True,
            generator=torch.Generator().manual_seed(1),
        )

    low, high = (loader(order[:1300][(y[order[:1300]] >= 5) == part]) for part in (False, True))

    def fit(model: nn.Module, batches: DataLoader, epochs: int) -> nn.Module:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(epochs):
            for images, labels in batches:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
        return model

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return 100 * (model(x[test]).argmax(1) == y[test] % 5).float().mean().item()

    old, new = fit(base(1), low, epochs), fit(base(2), low, epochs)
    before = {k: v.clone() for k, v in old.state_dict().items()}
    tuned = fit(old, high, epochs)
    run = Trajectory.linear(before, tuned.state_dict(), steps=10, spacing="cosine")

    spec = trace(new, x[:2])
    scores = {"old base, tuned": accuracy(tuned), "new base": accuracy(new)}
    for by in ("naive", "initial_weights", "fgmt", "gmt"):
        data = Gradients(base(3), high, count=2)
        *_, last = transfer(run, new.state_dict(), spec, data, by=by)
        carried = base(3)
        carried.load_state_dict(last.weights)
        scores[by] = accuracy(carried)
        scores[f"{by}, one epoch"] = accuracy(fit(carried, high, 1))
    scores["new base, one epoch"] = accuracy(fit(new, high, 1))
    for name, value in scores.items():
        print(f"{name:>28}: {value:.1f}%")
    return scores


if __name__ == "__main__":
    main()
