"""Trainings with a head of the generated images' own, in one process and in each of two."""

from pathlib import Path

import torch
import torch.distributed as dist
from generating import made, net32
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regraft.generators.pseudo import ImagePool, PseudoTerm, ssl_loss

HEADS = ("mgr", "pseudo")


def stepped(kind, *, steps, scale=1.0, spoil=None, rank=None):
    """Return the weight of the head after some steps, the weights of the network's body standing still.

    Args:
        kind: Whose head.
        steps: How many.
        scale: What the loss is multiplied by.
        spoil: The step at which the network's features are not numbers.
        rank: The process, of a distributed run; each has other images.
    """
    net = net32()
    if kind == "mgr":
        term = made(net, select="uniform", loss="head", unroll_lr=0.1)
    else:
        pool = torch.randint(0, 256, (40, 1, 6, 6), generator=torch.Generator().manual_seed(0))
        loss = ssl_loss("uda", threshold=0.0)
        seed = rank or 0
        term = PseudoTerm(
            ImagePool(pool.byte(), seed=seed), loss, batch_size=8, warmup=0, own_head=True
        )
    model: nn.Module = net if rank is None else DistributedDataParallel(net)
    for step in range(steps):
        if step == spoil:
            net.body[0].bias.data.fill_(float("nan"))
        base = 0.0 * model(torch.zeros(2, 1, 6, 6)).sum()  # DDP wants a gradient of every weight
        ((base + term.loss(model, step)) * scale).backward()
    term.state_dict()  # takes the last step
    return term.head.weight.detach().clone()


def worker(rank: int, folder: str) -> None:
    """Store the heads of this process."""
    torch.set_num_threads(1)
    where = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{where}/meeting", rank=rank, world_size=2)
    for kind in HEADS:
        torch.save(stepped(kind, steps=3, rank=rank), where / f"{kind}-{rank}")
    dist.destroy_process_group()
