"""A further ensemble member from a run that is there already, instead of another training.

python examples/transfer_ensemble_member.py    # ten seconds on one core; prints test accuracies

The run of one network is recorded in a plain PyTorch loop, carried over to a new random
initialisation with FGMT, and trained on for two epochs; a member from scratch gets the same two.
"""

import tempfile

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regraft.symmetry import Gradients, Trajectory, TrajectoryRecorder, transfer
from regraft.symmetry.trace import trace


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def main(epochs: int = 20) -> dict[str, float]:
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    x, y = (x - x.mean()) / x.std(), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    loader = DataLoader(
        TensorDataset(x[train], y[train]),
        batch_size=64,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
    )

    def fit(model: nn.Module, epochs: int, recorder: TrajectoryRecorder | None = None) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        for _ in range(epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(images), labels).backward()
                optimizer.step()
            if recorder is not None:
                recorder.step()

    def accuracy(*members: nn.Module) -> float:
        with torch.no_grad():
            logits = sum(member(x[test]).log_softmax(1) for member in members)
        return 100 * (logits.argmax(1) == y[test]).float().mean().item()

    first = network(seed=1)
    with tempfile.TemporaryDirectory() as folder:
        with TrajectoryRecorder(folder, first, every=2) as recorder:
            fit(first, epochs, recorder)
        run = Trajectory.open(folder)

        start, member, scratch, naive = (network(seed=2) for _ in range(4))
        spec = trace(start, x[:2])
        data = Gradients(network(seed=3), loader, count=4)
        print(f"{'step':>5} {'cosine of the gradients':>24} {'accuracy, nothing trained':>26}")
        for found in transfer(run, start.state_dict(), spec, data, by="fgmt"):
            member.load_state_dict(found.weights)
            told = f"{found.cosine_before:+.2f} -> {found.cosine:+.2f}"
            print(f"{found.step:>5} {told:>24} {accuracy(member):>25.1f}%")
        *_, last = transfer(run, start.state_dict(), spec, by="naive")
        naive.load_state_dict(last.weights)

    scores = {"first": accuracy(first), "naive": accuracy(naive), "transferred": accuracy(member)}
    for model in (member, scratch, naive):
        fit(model, 2)
    scores |= {"then trained": accuracy(member), "naive, then trained": accuracy(naive)}
    scores |= {"from scratch": accuracy(scratch), "ensemble": accuracy(first, member)}
    for name, value in scores.items():
        print(f"{name:>20}: {value:.1f}%")
    return scores


if __name__ == "__main__":
    main()
