"""Networks that a permutation cannot bring together, and how that is seen before and after.

python examples/transfer_that_cannot_help.py    # seconds on one core

In the first network a fixed code holds each unit in its place, and the specification says so before
anything is computed. The second is narrow: few of its units have a counterpart, and the cosine of
permuted gradients tells, on batches that were not matched. The third is the same network, wide.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from regraft.symmetry import Gradients, Trajectory, agreement, transfer
from regraft.symmetry.trace import trace


class Coded(nn.Module):
    """What the units put out goes through a fixed rotation, which tells them apart: none can move."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(64, width)
        self.second = nn.Linear(width, 10)
        generator = torch.Generator().manual_seed(0)
        code = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
        self.register_buffer("code", code, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [b, 10] for flat images [b, 64]."""
        return self.second(F.relu(self.first(x)) @ self.code)


def plain(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def main(epochs: int = 15) -> dict[str, tuple[float, float, float]]:
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
    found = {}
    for name, make in (
        ("coded, 256", lambda: Coded(256)),
        ("plain, 12", lambda: plain(12)),
        ("plain, 512", lambda: plain(512)),
    ):
        torch.manual_seed(1)
        source, target = make(), make()
        before = {k: v.clone() for k, v in source.state_dict().items()}
        optimizer = torch.optim.SGD(source.parameters(), lr=0.01, momentum=0.9)
        for _ in range(epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(source(images), labels).backward()
                optimizer.step()
        run = Trajectory.linear(before, source.state_dict(), steps=8)
        spec = trace(target, x[:2])
        print(f"{name}: {len(spec)} groups, {spec.free_share:.0%} of the axes free to move")
        for pin in spec.pins:
            if pin.tensor == "first.weight" and pin.axis == 0:
                print(f"  the units of {pin.tensor} stay in place: {pin.reason}")
        accuracies, state = [], target.state_dict()
        for by in ("naive", "fgmt"):
            data = Gradients(make(), loader, count=4)
            *_, last = transfer(run, state, spec, data, by=by)
            carried = make()
            carried.load_state_dict(last.weights)
            with torch.no_grad():
                right = carried(x[test]).argmax(1) == y[test]
            accuracies.append(100 * right.float().mean().item())
        gain = 0.0
        if len(spec):
            held_out = agreement(run, state, spec, data, last.permutation, draws=4)
            gain = held_out.gain
            print(f"  gradients: cosine {held_out.plain:.2f}, permuted {held_out.cosine:.2f}")
        print(f"  nothing trained: naive {accuracies[0]:.1f}%, FGMT {accuracies[1]:.1f}%")
        found[name] = (accuracies[0], accuracies[1], gain)
    return found


if __name__ == "__main__":
    main()
