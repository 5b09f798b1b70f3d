"""A graph and its network as one module, so that loops for images train it."""

from __future__ import annotations

from torch import Tensor, nn

from regraft.data.graph import Graph

from .graph import GraphNetwork
from .sparse import Matrix, quiet_sparse

# A sparse product of Cora's features (1.3% dense) takes an eighth of the time of the dense one.
_SPARSE_BELOW = 0.05


class Transductive(nn.Module):
    """A graph network together with the graph it sees: nodes -> logits, one forward pass each.

    So a graph trains in any loop for images: what the loop takes for a batch of images are nodes.
    Features that are less than 5% dense and the aggregation are kept as sparse matrices. The graph
    is in no checkpoint, and the network keeps its own names for its ticket.

    Args:
        network: Called as `network(x, edge_index)`; returns logits [n, classes].
        graph: The graph.

    Attributes:
        network: The network.
    """

    def __init__(self, network: nn.Module, graph: Graph) -> None:
        super().__init__()
        self.network = network
        if isinstance(network, GraphNetwork):
            density = int((graph.x != 0).sum()) / max(graph.x.numel(), 1)
            with quiet_sparse():
                x = graph.x.to_sparse_csr() if density < _SPARSE_BELOW else graph.x
            self.x = Matrix(x)
            self.edges = Matrix(network.adjacency(graph.edge_index, graph.num_nodes))
        else:
            self.x, self.edges = Matrix(graph.x), Matrix(graph.edge_index)
        # Every process of a run has read the graph and drawn the frozen weights by itself.
        inner = getattr(network, "_ddp_params_and_buffers_to_ignore", [])
        names = [n for n, _ in self.named_buffers() if not n.startswith("network.")]
        ignored = [*names, *(f"network.{name}" for name in inner)]
        self._ddp_params_and_buffers_to_ignore = ignored  # pyrefly: ignore

    def forward(self, nodes: Tensor) -> Tensor:
        """Return logits [b, classes] for nodes int64 [b]."""
        return self.network(self.x(), self.edges()).index_select(0, nodes)
