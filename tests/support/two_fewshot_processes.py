"""What each of two processes does in the DDP test of the few-shot learners: half of the tasks."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from regraft.fewshot import MAML, EpisodeSampler, MetaTicket, MGAug, ProtoNet
from regraft.models import MLP


def learners():
    """Return a learner of each kind, the same in every process."""
    made = {}
    for name, make in (
        ("maml", lambda net: MAML(net, lr=0.3)),
        ("meta-sgd", lambda net: MAML(net, lr=0.3, learn_rates=True, path="vmap")),
        ("meta-ticket", lambda net: MetaTicket(net, seed=1, sparsity=0.3, lr=0.3)),
        ("mgaug", lambda net: MGAug(net, seed=1, pruned=0.2, lr=0.3)),
        ("protonet", ProtoNet),
    ):
        torch.manual_seed(0)
        made[name] = make(MLP(16, (10, 8), 3, norm="batch")).double()
    return made


def tasks():
    """Return four episodes."""
    images = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat_interleave(6)
    sampler = EpisodeSampler(images, labels, ways=3, shots=2, queries=2, seed=1)
    return sampler.batch(0, 4).to(torch.float64)


def gradients(learner):
    """Return the gradients of what is trained, by name."""
    return {n: p.grad for n, p in learner.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str) -> None:
    """Store the gradients that DDP averages over the tasks of both processes."""
    torch.set_num_threads(1)
    where = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{where / 'meeting'}", rank=rank, world_size=2
    )
    try:
        for name, learner in learners().items():
            whole = DistributedDataParallel(learner)
            whole(tasks()[2 * rank : 2 * rank + 2]).backward()
            torch.save(gradients(learner), where / f"{name}-{rank}")
    finally:
        dist.destroy_process_group()
