"""Find a strong lottery ticket in a plain PyTorch loop: nothing of Regraft's but three calls.

python examples/ticket_in_your_loop.py        # half a minute on one core; prints test accuracy
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import regraft


def main(epochs: int = 60) -> float:
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]

    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 9, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    regraft.edge_popup(model, sparsity=0.5, seed=1)
    scores = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(scores, lr=0.4, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    iterand = regraft.IteRand(model, every=20, rate=0.1)

    for epoch in range(epochs):
        model.train()
        shuffle = torch.Generator().manual_seed(epoch)
        for batch in train[torch.randperm(len(train), generator=shuffle)].split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            iterand.step()
        scheduler.step()

    plain = regraft.bake(model).eval()
    accuracy = (plain(x[test]).argmax(1) == y[test]).float().mean().item()
    kept = sum((p != 0).sum().item() for p in plain.parameters() if p.dim() > 1)
    print(f"test accuracy {accuracy:.1%} with {kept:,} random weights kept and none trained")
    return accuracy


if __name__ == "__main__":
    main()
