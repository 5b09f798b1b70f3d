"""Graph networks: what a node's features are is free, which node is which is not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regraft.models.graph import GAT, GCN, GIN
from regraft.symmetry.trace.trace import trace

geometric = pytest.importorskip("torch_geometric.nn")

X = torch.randn(6, 4)
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2, 2], [1, 2, 3, 4, 5, 0, 3, 5, 2]])


class Two(nn.Module):
    """Two layers over the same edges."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, edges):
        return self.second(F.relu(self.first(x, edges)), edges)


def shapes(spec):
    return sorted(group.shape for group in spec)


@pytest.mark.parametrize("check_it", [True, False])
@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (geometric.GCNConv, [(6,)]),
        (lambda i, o: geometric.GCNConv(i, o, normalize=False), [(6,)]),
        (lambda i, o: geometric.SAGEConv(i, o, aggr="max"), [(6,)]),
        (lambda i, o: geometric.GINConv(nn.Linear(i, o)), [(6,)]),
        (lambda i, o: geometric.ChebConv(i, o, K=2), [(6,)]),
        (lambda i, o: geometric.GATConv(i, o // 2, heads=2), [(2,), (2, 3)]),
        (lambda i, o: geometric.GATv2Conv(i, o // 2, heads=2), [(2,), (2, 3)]),
    ],
)
def test_layers_of_pytorch_geometric(layer, expected, check_it):
    model = Two(layer(4, 6), layer(6, 2))
    assert shapes(trace(model, (X, EDGES), check_it=check_it)) == expected


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(
    ("network", "options", "expected"),
    [
        (GCN, {"hidden": 6, "layers": 3, "norm": "batch", "affine": True}, [(6,), (6,)]),
        (GIN, {"hidden": 6}, [(6,)]),
        (GAT, {"hidden": 3, "heads": 2}, [(2,), (2, 3)]),
    ],
)
def test_our_graph_networks_with_edges_or_a_ready_adjacency(network, options, expected, ready):
    model = network(4, 2, **options)
    edges = model.adjacency(EDGES, 6) if ready else EDGES
    spec = trace(model, (X, edges))
    assert shapes(spec) == expected
    assert spec.checked is not None
    before = model.eval()(X, EDGES)
    model.load_state_dict(spec.apply(model.state_dict(), spec.random(1)))
    torch.testing.assert_close(model(X, EDGES), before)


def test_nodes_pooled_by_graph():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = geometric.GCNConv(4, 6), nn.Linear(6, 2)

        def forward(self, x, edges, graph):
            return self.out(geometric.global_mean_pool(self.conv(x, edges).relu(), graph))

    assert shapes(trace(Pooled(), (X, EDGES, torch.tensor([0, 0, 0, 1, 1, 1])))) == [(6,)]


def test_vectors_shared_by_heads_are_not_given_heads_of_their_own():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(4, 6), nn.Linear(6, 2)
            self.scale = nn.Parameter(torch.randn(2, 3))

        def forward(self, x):
            heads = self.a(x).unflatten(1, (2, 3)) * self.scale
            return self.out((heads * self.scale.mean(0)).flatten(1))

    assert shapes(trace(Shared(), X)) == [(2,), (3,)]
