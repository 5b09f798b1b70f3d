"""A partly frozen ticket of your own PyTorch Geometric network, saved, loaded, and as good as before.

python examples/frozen_graph_ticket.py        # a minute on one core; prints accuracy and bytes

The graph joins each handwritten digit of scikit-learn to the eight most alike; ten images a class
are labelled.
"""

import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch_geometric.nn import GCNConv

from regraft.tickets import Freezing, edge_popup, fill, load_ticket, save_ticket, stored_bytes


class Net(nn.Module):
    """Anybody's network: nothing in it knows of tickets."""

    def __init__(self, hidden: int = 512):
        super().__init__()
        self.first = GCNConv(64, hidden, bias=False)
        self.second = GCNConv(hidden, 10, bias=False)

    def forward(self, x, edges):
        """Return logits [n, 10]."""
        return self.second(self.first(x, edges).relu(), edges)


def graph():
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 8 - 1
    y = torch.tensor(digits.target)
    near = torch.cdist(x, x).topk(9, largest=False).indices[:, 1:]
    targets = torch.arange(len(x)).repeat_interleave(8)
    edges = torch.cat(
        [torch.stack([near.reshape(-1), targets]), torch.stack([targets, near.reshape(-1)])], dim=1
    ).unique(dim=1)
    labelled = torch.cat([(y == c).nonzero()[:10, 0] for c in range(10)])
    return x, edges, y, labelled


def main(steps: int = 150) -> float:
    x, edges, y, labelled = graph()
    # Half of the random weights are pruned for good or locked; the search chooses among the rest.
    model = edge_popup(
        Net(),
        sparsity=0.8,
        scope="global",
        score="magnitude",
        dynamic_scale=True,
        freezing=Freezing.balanced(sparsity=0.8, frozen=0.5),
        seed=1,
    )
    scores = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(scores, lr=0.01, weight_decay=0.0)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x, edges)[labelled], y[labelled]).backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "digits.ticket"
        size = save_ticket(file, model)
        again = fill(Net(), load_ticket(file))
    with torch.no_grad():
        logits = again.eval()(x, edges)
        equal = torch.equal(logits, model.eval()(x, edges))
    rest = torch.ones(len(y), dtype=torch.bool)
    rest[labelled] = False
    accuracy = (logits.argmax(1) == y)[rest].float().mean().item()
    dense = stored_bytes(Net())
    print(
        f"accuracy {accuracy:.1%} with {sum(p.numel() for p in scores):,} scores trained; the ticket is "
        f"{size:,} bytes, {dense / size:.0f}x smaller than float32; logits after loading "
        f"{'equal to the last bit' if equal else 'differ'}"
    )
    return accuracy


if __name__ == "__main__":
    main()
