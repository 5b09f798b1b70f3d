"""What each of two processes does in the DDP part of the fine-tuning methods' conformance test."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from features import METHODS, STEPS, restore, sgd, state, train
from regraft.train import load_state, save_state


def found(model, method):
    """Return what must be equal in all processes."""
    return {"model": dict(model.state_dict()), "method": dict(method.state_dict())}


def worker(rank: int, folder: str) -> None:
    """Train every method in two halves on this process's share of each batch; store what came out.

    The second half starts in a fresh network of another seed from the first process's checkpoint,
    as after an interruption.
    """
    torch.set_num_threads(1)
    where = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{where / 'meeting'}", rank=rank, world_size=2
    )
    try:
        for name, case in METHODS.items():
            saved = None
            for first, last, seed in ((0, STEPS // 2, 1), (STEPS // 2, STEPS, 2)):
                share = slice(rank, None, 2)
                model, method = case.build(seed, norm=False, dtype=torch.float64, share=share)
                optimizer = sgd(model, method)
                if saved is not None:
                    restore(model, method, optimizer, saved)
                forward = DistributedDataParallel(model)
                train(model, method, optimizer, first, last, forward=forward, share=share)
                file = where / f"{name}-{first}"
                if rank == 0:
                    save_state(file, state(model, method, optimizer))
                dist.barrier()
                saved = load_state(file)
            save_state(where / f"{name}-{rank}", found(model, method))
            # Then a step in which this process alone has no images: nobody waits for it in vain.
            rest = slice(None) if rank == 0 else slice(0)
            train(model, method, optimizer, STEPS, STEPS + 1, forward=forward, share=rest)
            assert all(bool(p.isfinite().all()) for p in model.parameters()), name
    finally:
        dist.destroy_process_group()
