"""Fine-tune on five images a class in a plain PyTorch loop, with AdaRand and without.

The source task are the digits 5 to 9, the target task the digits 0 to 4.

python examples/finetune_few_images.py     # half a minute on one core; prints test accuracies
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regraft import features


def digits():
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(data.target)
    return (x[y >= 5], y[y >= 5] - 5), (x[y < 5], y[y < 5])


def network():
    layers = []
    for fan_in, fan_out in ((1, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))


def train(model, method, loader, steps, lr):
    """Train as anybody would; Regraft's are the call of `method`, `step` and the extra parameters."""
    method.prepare(model, loader, steps=steps)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        [{"params": trained}, *method.param_groups(lr)], lr=lr, momentum=0.9, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    step = 0
    while step < steps:
        for x, y in loader:
            model.train()
            loss = method(F.cross_entropy(model(x), y), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.step()
            scheduler.step()
            step += 1
    return model.eval()


def main(seeds: int = 5, steps: int = 100, source_steps: int = 300) -> dict[str, float]:
    source, (x, y) = digits()
    torch.manual_seed(0)
    whole = DataLoader(TensorDataset(*source), 64, shuffle=True)
    pretrained = train(network(), features.Plain(), whole, source_steps, lr=0.1)

    found: dict[str, list[float]] = {"plain": [], "adarand": []}
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(x), generator=generator)
        few = torch.cat([order[y[order] == k][:5] for k in range(5)])
        test = order[~torch.isin(order, few)]
        for name, accuracies in found.items():
            torch.manual_seed(seed)
            loader = DataLoader(TensorDataset(x[few], y[few]), 25, shuffle=True)
            model = copy.deepcopy(pretrained)
            model[-1] = nn.Linear(64, 5)
            train(model, features.build(name), loader, steps, lr=0.02)
            with torch.no_grad():
                accuracies.append((model(x[test]).argmax(1) == y[test]).float().mean().item())
    means = {name: sum(values) / len(values) for name, values in found.items()}
    for name, mean in means.items():
        print(f"{name}: {mean:.1%} of the test images with 25 training images, {seeds} seeds")
    return means


if __name__ == "__main__":
    main()
