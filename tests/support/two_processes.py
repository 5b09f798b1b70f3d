"""What each of two processes does in the DDP part of the conformance test."""

from pathlib import Path

import torch
import torch.distributed as dist
from methods import METHODS, STEPS, restore, sgd, state, train
from torch.nn.parallel import DistributedDataParallel

from regraft.tickets import named_masks
from regraft.train import load_state, save_state


def found(arm):
    """Return parameters and masks of a model, for comparison."""
    return {
        "parameters": {n: p.detach() for n, p in arm.model.named_parameters()},
        "masks": {n: m.mask(e.original).clone() for n, e, m in named_masks(arm.model)},
        "weights": {n: m.weight for n, _, m in named_masks(arm.model) if hasattr(m, "weight")},
    }


def nested(rank):
    """Train a masked network that is a part of another module, whose buffers DDP broadcasts."""
    arm = METHODS["frozen_iterand"].build(1, batch_norm=False)
    arm.model.double()
    whole = DistributedDataParallel(torch.nn.Sequential(arm.model))
    train(arm, sgd(arm), 0, STEPS, forward=whole, share=slice(rank, None, 2))
    return arm


def worker(rank: int, folder: str) -> None:
    """Train every method in two halves on this process's share of each batch; store what came out.

    The second half starts in a fresh network of another seed, as after an interruption.
    """
    torch.set_num_threads(1)
    where = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{where / 'meeting'}", rank=rank, world_size=2
    )
    try:
        for name, method in METHODS.items():
            saved = None
            for first, last, seed in ((0, STEPS // 2, 1), (STEPS // 2, STEPS, 2)):
                arm = method.build(seed, batch_norm=False)
                arm.model.double()
                optimizer = sgd(arm)
                if saved is not None:
                    restore(arm, optimizer, saved)
                train(
                    arm,
                    optimizer,
                    first,
                    last,
                    forward=DistributedDataParallel(arm.model),
                    share=slice(rank, None, 2),
                )
                file = where / f"{name}-{rank}-{first}"
                save_state(file, state(arm, optimizer))
                saved = load_state(file)
            save_state(where / f"{name}-{rank}", found(arm))
        save_state(where / f"nested-{rank}", found(nested(rank)))
    finally:
        dist.destroy_process_group()
