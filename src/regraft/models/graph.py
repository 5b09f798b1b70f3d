"""Graph networks for the classification of nodes: GCN, GIN and GAT, the whole graph at once.

Built from PyTorch Geometric, without biases and with normalisations that have no parameters, so that
masks on the weights are all there is to search. Layers multiply by the weight first and aggregate
then: both are linear, so the order changes nothing but rounding, and sparse features stay sparse.

References:
    Kipf and Welling, "Semi-supervised classification with graph convolutional networks",
    ICLR 2017, equation 2.
    Xu et al., "How powerful are graph neural networks?", ICLR 2019, equation 4.1.
    Velickovic et al., "Graph attention networks", ICLR 2018, equations 1 to 6.
    Otsuka et al., "Partially frozen random networks contain compact strong lottery tickets",
    TMLR 2025 (the GIN).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft._geometric import geometric
from regraft.errors import InputError

from .sparse import quiet_sparse, sparse

_ACTIVATIONS = {"relu": F.relu, "elu": F.elu}


class GraphNetwork(nn.Module):
    """What the graph networks share: dropout, normalisation, the way through the layers.

    Subclasses set `layers`, called as `layer(x, adjacency)`, and say what their adjacency is.
    """

    activation = "relu"
    layers: nn.ModuleList
    norms: nn.ModuleList
    dropout: float

    def adjacency(
        self, edge_index: Tensor, num_nodes: int, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return what the layers aggregate with, from edges int64 [2, e]: sparse CSR [n, n]."""
        raise NotImplementedError

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return logits [n, classes].

        Args:
            x: Features [n, f], strided or sparse CSR.
            edge_index: Edges (source, target), int64 [2, e], or what `adjacency` made of them.
        """
        return self.through(x, self._aggregated(x, edge_index))[-1]

    def through(self, x: Tensor, adjacency: Tensor) -> list[Tensor]:
        """Return what comes out of every layer, after normalisation and activation."""
        outputs = []
        # There is no sparse product of half-precision numbers on the CPU.
        with torch.autocast(x.device.type, enabled=False):
            for i, layer in enumerate(self.layers):
                x = layer(_drop(x, self.dropout, self.training), adjacency)
                if i < len(self.norms):
                    x = _ACTIVATIONS[self.activation](self.norms[i](x))
                outputs.append(x)
        return outputs

    def _aggregated(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if edge_index.layout == torch.sparse_csr:
            return edge_index
        # Shares of neighbours that were rounded to float32 would be most of a float64 network's error.
        wide = torch.promote_types(x.dtype, torch.float32)
        adjacency = self.adjacency(edge_index, x.shape[0], dtype=wide)
        return adjacency.to(x.dtype) if adjacency.is_floating_point() else adjacency


class GCN(GraphNetwork):
    """Graph convolutions H' = relu(N(A^ H W)), A^ = D^-1/2 (A + I) D^-1/2, the last without relu.

    D are the degrees of A + I, N the normalisation.

    Args:
        num_features: Features of a node, f.
        num_classes: Number of classes.
        hidden: Size of the layers between.
        layers: Number of layers.
        dropout: Share dropped of every layer's input, the features included.
        norm: `batch` or `none`, after every layer but the last.
        affine: Give the norms scales and shifts.
        bias: Give the layers biases, zero at first.

    Raises:
        InputError: Fewer than one layer, or another norm.
        MissingExtraError: PyTorch Geometric is not installed.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden: int = 512,
        layers: int = 2,
        dropout: float = 0.0,
        norm: str = "none",
        affine: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        _check(hidden=hidden, layers=layers, dropout=dropout)
        sizes = [num_features, *[hidden] * (layers - 1), num_classes]
        self.dropout = dropout
        self.layers = _linear_layers(sizes, bias)
        self.norms = nn.ModuleList(_norm(norm, size, affine) for size in sizes[1:-1])
        _init_(self)

    def adjacency(
        self, edge_index: Tensor, num_nodes: int, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return A^ as sparse CSR [n, n]; self-loops that are there count once."""
        conv = geometric("nn.conv.gcn_conv", "a graph network")
        edges, weights = conv.gcn_norm(edge_index, None, num_nodes, dtype=dtype)
        return _csr(edges, weights, num_nodes)


class GIN(GraphNetwork):
    """Isomorphism layers H' = relu(N((H + mean of the neighbours' H) W)), as in frozen tickets.

    epsilon is 0 and fixed; the logits layer has normalisation and relu as well, and the network
    gives (H_L + H_{L-1} U) / 2 with one more linear layer U.

    Args:
        num_features: Features of a node, f.
        num_classes: Number of classes.
        hidden: Size of the layers between.
        layers: Number of layers, the logits layer included.
        dropout: Share dropped of every layer's input, the features included.
        norm: `batch` or `none`, after every layer.
        affine: Give the norms scales and shifts.
        bias: Give the layers biases, zero at first.

    Raises:
        InputError: Fewer than one layer, or another norm.
        MissingExtraError: PyTorch Geometric is not installed.
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden: int = 256,
        layers: int = 2,
        dropout: float = 0.0,
        norm: str = "batch",
        affine: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        _check(hidden=hidden, layers=layers, dropout=dropout)
        sizes = [num_features, *[hidden] * (layers - 1), num_classes]
        self.dropout = dropout
        self.layers = _linear_layers(sizes, bias)
        self.norms = nn.ModuleList(_norm(norm, size, affine) for size in sizes[1:])
        self.head = nn.Linear(sizes[-2], num_classes, bias=bias)
        _init_(self)

    def adjacency(
        self, edge_index: Tensor, num_nodes: int, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return I + D^-1 A as sparse CSR [n, n]; nodes without edges keep their own row."""
        degree = torch.bincount(edge_index[1], minlength=num_nodes).to(dtype)
        nodes = torch.arange(num_nodes, device=edge_index.device)
        edges = torch.cat([edge_index, nodes.expand(2, -1)], dim=1)
        weights = torch.cat([1 / degree[edge_index[1]], torch.ones_like(degree)])
        return _csr(edges, weights, num_nodes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return logits [n, classes]; arguments as `GraphNetwork.forward`."""
        before = [x, *self.through(x, self._aggregated(x, edge_index))]
        with torch.autocast(x.device.type, enabled=False):
            last = _drop(before[-2], self.dropout, self.training)
            return (F.linear(last, self.head.weight, self.head.bias) + before[-1]) / 2


class GAT(GraphNetwork):
    """Attention layers: H' = elu(concatenation over heads of the alpha-weighted sum of H W).

    alpha_ij = softmax_j(LeakyReLU_0.2(a . H_i W + b . H_j W)) over the neighbours j of i and i
    itself. The last layer has one head and no elu. The attention vectors a and b are the weights
    of linear layers [heads, size of a head], so they are masked like every other weight, as in the
    literature on untrained graph networks, at the scale of their own fan-in.

    Args:
        num_features: Features of a node, f.
        num_classes: Number of classes.
        hidden: Size of each head of the layers between.
        heads: Heads of the layers between.
        layers: Number of layers.
        dropout: Share dropped of every layer's input and of the attention.
        norm: `batch` or `none`, after every layer but the last.
        affine: Give the norms scales and shifts.
        bias: Give the layers biases, zero at first.

    Raises:
        InputError: Fewer than one layer or head, or another norm.
        MissingExtraError: PyTorch Geometric is not installed.
    """

    activation = "elu"

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden: int = 8,
        heads: int = 8,
        layers: int = 2,
        dropout: float = 0.0,
        norm: str = "none",
        affine: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        _check(hidden=hidden, heads=heads, layers=layers, dropout=dropout)
        sizes = [num_features, *[hidden * heads] * (layers - 1)]
        outputs = [(hidden, heads)] * (layers - 1) + [(num_classes, 1)]
        self.dropout = dropout
        self.layers = nn.ModuleList(
            AttentionLayer(size, out, n, dropout=dropout, bias=bias)
            for size, (out, n) in zip(sizes, outputs, strict=True)
        )
        self.norms = nn.ModuleList(_norm(norm, size, affine) for size in sizes[1:])
        _init_(self)

    def adjacency(
        self, edge_index: Tensor, num_nodes: int, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return the edges, int64 [2, e + n], with exactly one loop at every node."""
        utils = geometric("utils", "a graph network")
        edges, _ = utils.remove_self_loops(edge_index)
        edges, _ = utils.add_self_loops(edges, num_nodes=num_nodes)
        return edges


class AttentionLayer(nn.Module):
    """One attention layer without its activation; see `GAT`.

    Args:
        in_features: Size of the input.
        out_features: Size of each head.
        heads: Number of heads; their outputs are concatenated.
        dropout: Share of the attention dropped.
        bias: Add a bias, zero at first.
    """

    def __init__(
        self, in_features: int, out_features: int, heads: int, *, dropout: float, bias: bool
    ) -> None:
        super().__init__()
        self.lin = nn.Linear(in_features, heads * out_features, bias=bias)
        self.target = nn.Linear(out_features, heads, bias=False)
        self.source = nn.Linear(out_features, heads, bias=False)
        self.heads, self.dropout = heads, dropout

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return [n, heads * out_features] for x [n, in_features] and edges int64 [2, e]."""
        utils = geometric("utils", "a graph attention network")
        h = F.linear(x, self.lin.weight).unflatten(1, (self.heads, -1))
        from_node, to_node = edges
        # On the CPU the gradient of `index_select` is the same every time; that of indexing is not.
        a = (h * self.target.weight).sum(-1).index_select(0, to_node)
        a = a + (h * self.source.weight).sum(-1).index_select(0, from_node)
        alpha = utils.softmax(F.leaky_relu(a, 0.2), to_node, num_nodes=len(h))
        alpha = F.dropout(alpha, self.dropout, self.training)
        messages = (alpha[..., None] * h.index_select(0, from_node)).flatten(1)
        out = messages.new_zeros(len(h), messages.shape[1]).index_add(0, to_node, messages)
        return out if self.lin.bias is None else out + self.lin.bias


def _init_(module: nn.Module) -> None:
    """Initialise as `init_weights_` does, PyTorch Geometric's layers and the attention included."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                bound = math.sqrt(6 / parameter[0].numel())
                parameter.uniform_(-bound, bound)
            elif name.endswith("bias") and "norms." not in name:
                parameter.zero_()


def _check(**values: float) -> None:
    for name, value in values.items():
        if name == "dropout":
            if not 0 <= value < 1:
                raise InputError(f"dropout={value!r}: expected a share in [0, 1)")
        elif value < 1:
            raise InputError(f"{name}={value!r}: expected at least 1")


def _norm(norm: str, size: int, affine: bool) -> nn.Module:
    if norm not in ("none", "batch"):
        raise InputError(f"norm={norm!r}: expected 'none' or 'batch'")
    return nn.BatchNorm1d(size, affine=affine) if norm == "batch" else nn.Identity()


def _linear_layers(sizes: list[int], bias: bool) -> nn.ModuleList:
    """Return layers x -> adjacency (x W): graph convolutions whose adjacency comes from outside."""
    conv = geometric("nn", "a graph network").GCNConv
    layers = nn.ModuleList()
    for fan_in, size in itertools.pairwise(sizes):
        layer = conv(fan_in, size, normalize=False, add_self_loops=False, bias=bias)
        # Its own kind of linear layer writes a parametrised weight into state dicts as well.
        layer.lin = nn.Linear(fan_in, size, bias=False)
        layers.append(layer)
    return layers


def _csr(edges: Tensor, weights: Tensor, num_nodes: int) -> Tensor:
    """Return the matrix whose row i holds the weights of the edges that end in node i."""
    utils = geometric("utils", "a graph network")
    with quiet_sparse():
        return utils.to_torch_csr_tensor(edges.flip(0), weights, (num_nodes, num_nodes))


def _drop(x: Tensor, share: float, training: bool) -> Tensor:
    if share == 0 or not training:
        return x
    if x.layout != torch.sparse_csr:
        return F.dropout(x, share)
    # What is zero stays zero, so dropping from the rest is dropping from all.
    values = F.dropout(x.values(), share)
    return sparse(x.crow_indices(), x.col_indices(), values, x.shape)
