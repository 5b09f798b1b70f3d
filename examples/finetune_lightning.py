"""A fine-tuning method under a Lightning trainer.

python examples/finetune_lightning.py     # half a minute on one core; prints test accuracy

The network has random weights, so that nothing is downloaded; take pretrained ones for real use.
"""

import torch
from lightning import Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from regraft.features import AdaRand
from regraft.integrations.lightning import Finetune


def main(epochs: int = 15) -> float:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(data.target)
    torch.manual_seed(0)
    train = DataLoader(TensorDataset(x[:500], y[:500]), 50, shuffle=True)
    test = DataLoader(TensorDataset(x[500:], y[500:]), 500)

    layers = []
    for fan_in, fan_out in ((1, 32), (32, 64), (64, 64)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    module = Finetune(
        model,
        AdaRand(weight=0.1),
        lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR,
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, **quiet)
    trainer.fit(module, train)
    accuracy = trainer.test(module, test, verbose=False)[0]["test_accuracy"]
    print(f"Lightning's Trainer: {accuracy:.1%} of the test images")
    return accuracy


if __name__ == "__main__":
    main()
