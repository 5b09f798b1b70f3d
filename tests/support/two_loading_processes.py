"""What each of two processes does in the test that they share a loader's images."""

from pathlib import Path

import torch
import torch.distributed as dist

from features import CLASSES, METHODS, batch, network
from regraft.data import ImageSet, TensorLoader
from regraft.features import class_statistics, tap
from regraft.features.probe import collect
from regraft.features.samples import Samples
from regraft.train import save_state

# The last batch has three images: two for one process, and a single one for the other.
IMAGES, BATCH = 27, 4
PREPARED = ("adarand", "co_tuning", "delta_attention", "dr_tune", "lp_ft")


def source():
    """Return our own loader of images of which one class has a single one."""
    x, y = batch(IMAGES)
    y = torch.where(y == CLASSES - 1, 0, y)
    y[5] = CLASSES - 1
    pixels = (x * 40 + 128).clamp(0, 255).to(torch.uint8)
    return TensorLoader(
        ImageSet(pixels, y, CLASSES),
        batch_size=BATCH,
        mean=(0.5,),
        std=(0.2,),
        shuffle=True,
        augment="none",
        seed=3,
    )


def prepared():
    """Return what statistics and methods take of the images: name -> tensors."""
    found = {}
    model = network(1, norm=False).double()
    taken = class_statistics(tap(model), Samples(source(), model), num_classes=CLASSES)
    found["statistics"] = {
        "counts": taken.counts, "mean": taken.mean, "std": taken.std, "all": taken.total_std
    }  # fmt: skip
    images, labels = collect(tap(model), Samples(source(), model), mode="eval")
    found["collected"] = {"labels of all": labels.sort().values, "sum": images.sum(0)}
    for name in PREPARED:
        model = network(1, norm=False).double()
        method = METHODS[name].make(1).prepare(model, source(), steps=6)
        state = {k: v for k, v in method.state_dict().items() if isinstance(v, torch.Tensor)}
        found[name] = {**state, "head": model[-1].weight.detach()}
    return found


def worker(rank: int, folder: str) -> None:
    """Store what this process found."""
    torch.set_num_threads(1)
    where = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{where / 'meeting'}", rank=rank, world_size=2
    )
    try:
        save_state(where / f"{rank}", prepared())
    finally:
        dist.destroy_process_group()
