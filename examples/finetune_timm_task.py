"""A fine-tuning method in timm's training task: distribution, EMA and checkpoints stay timm's.

python examples/finetune_timm_task.py     # under a minute on one core; prints test accuracy

The network has random weights, so that nothing is downloaded; pass pretrained=True for real use.
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.utils.data import DataLoader, TensorDataset

from regraft.features import AdaRand
from regraft.integrations.timm_task import FinetuneTask


def main(epochs: int = 15) -> float:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    x, y = torch.nn.functional.interpolate(x, 32), torch.tensor(data.target)
    train, test = slice(0, 500), slice(500, None)
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(x[train], y[train]), 50, shuffle=True)

    model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
    steps = len(loader) * epochs
    method = AdaRand(weight=0.1).prepare(model, loader, steps=steps)
    task = FinetuneTask(model, method, criterion_kwargs={"smoothing": 0.1}, verbose=False)
    task.setup_ema(decay=0.95)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.05, weight_decay=0.0)
    scheduler = CosineLRScheduler(optimizer, t_initial=steps, t_in_epochs=False)
    method.follow(optimizer)  # timm's loop has no place for method.step()

    update = 0
    for _ in range(epochs):
        task.train()
        for images, targets in loader:
            result = task(images, targets)
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
            update += 1
            task.update_ema(step=update)
            scheduler.step_update(update)

    with torch.no_grad():
        predicted = task.get_eval_model(ema=True).eval()(x[test]).argmax(1)
    accuracy = (predicted == y[test]).float().mean().item()
    print(f"timm's task: {accuracy:.1%} of the test images, the weights' moving average")
    return accuracy


if __name__ == "__main__":
    main()
