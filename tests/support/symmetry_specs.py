"""Small networks with their permutation groups written down by hand."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.symmetry.spec.group import Group, Site
from regraft.symmetry.spec.spec import PermutationSpec


def plain(n: int, *, start: int = 0) -> Tensor:
    """Positions of n units of one position each: int64 [1, n, 1]."""
    return torch.arange(start, start + n).reshape(1, n, 1)


def spec_of(model: nn.Module, groups: Iterable[Group]) -> PermutationSpec:
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    order = list(shapes)
    sorted_groups = {}
    for g in groups:
        sites = tuple(sorted(g.sites, key=lambda s: (order.index(s.tensor), s.axis)))
        sorted_groups[g.name] = Group(g.name, g.size, sites, g.parent, g.copies)
    return PermutationSpec(sorted_groups, shapes)


def norm_sites(name: str, index: Tensor, *, running: bool = True) -> list[Site]:
    parts = ["weight", "bias", *(["running_mean", "running_var"] if running else [])]
    return [Site(f"{name}.{p}", 0, index) for p in parts]


def mlp(widths: list[int], *, bias: bool = True) -> tuple[nn.Module, PermutationSpec]:
    """A multilayer perceptron; one group for each hidden layer."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths)):
        layers += [nn.Linear(a, b, bias=bias), *([nn.ReLU()] if i < len(widths) - 2 else [])]
    model = nn.Sequential(*layers)
    groups = []
    for i, n in enumerate(widths[1:-1]):
        sites = [Site(f"{2 * i}.weight", 0, plain(n)), Site(f"{2 * i + 2}.weight", 1, plain(n))]
        if bias:
            sites.append(Site(f"{2 * i}.bias", 0, plain(n)))
        groups.append(Group(f"{2 * i}.weight", n, tuple(sites)))
    return model, spec_of(model, groups)


class ResidualNet(nn.Module):
    """Stem, `blocks` residual blocks with BatchNorm, flatten, linear: one stream, inner groups."""

    def __init__(self, width: int = 6, inner: int = 4, blocks: int = 2, side: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.ModuleList(
            nn.Conv2d(width, inner, 3, padding=1, bias=False) for _ in range(blocks)
        )
        self.middle = nn.ModuleList(nn.BatchNorm2d(inner) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(inner, width, 1) for _ in range(blocks))
        self.head = nn.Linear(width * side * side, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for first, norm, second in zip(self.first, self.middle, self.second, strict=True):
            x = x + second(F.relu(norm(first(x))))
        return self.head(x.flatten(1))


def residual(
    width: int = 6, inner: int = 4, blocks: int = 2
) -> tuple[nn.Module, PermutationSpec, Tensor]:
    model = ResidualNet(width, inner, blocks)
    stream = [Site("stem.weight", 0, plain(width)), *norm_sites("norm", plain(width))]
    groups = []
    for i in range(blocks):
        stream += [
            Site(f"first.{i}.weight", 1, plain(width)),
            Site(f"second.{i}.weight", 0, plain(width)),
            Site(f"second.{i}.bias", 0, plain(width)),
        ]
        sites = [
            Site(f"first.{i}.weight", 0, plain(inner)),
            *norm_sites(f"middle.{i}", plain(inner)),
            Site(f"second.{i}.weight", 1, plain(inner)),
        ]
        groups.append(Group(f"first.{i}.weight", inner, tuple(sites)))
    stream.append(Site("head.weight", 1, torch.arange(width * 4).reshape(1, width, 4)))
    groups.insert(0, Group("stem.weight", width, tuple(stream)))
    return model, spec_of(model, groups), torch.randn(5, 3, 2, 2)


class GroupedNet(nn.Module):
    """1x1 convolution, grouped convolution, 1x1 convolution."""

    def __init__(self, groups: int = 3, within: int = 4, out: int = 2) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, groups * within, 1)
        self.b = nn.Conv2d(groups * within, groups * out, 3, groups=groups, padding=1)
        self.c = nn.Conv2d(groups * out, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.b(F.relu(self.a(x))))).mean((2, 3))


def grouped(
    groups: int = 3, within: int = 4, out: int = 2
) -> tuple[nn.Module, PermutationSpec, Tensor]:
    """The groups are units; inputs and outputs within a group are two groups that meet."""
    model = GroupedNet(groups, within, out)
    ins = torch.arange(groups * within).reshape(groups, within)
    outs = torch.arange(groups * out).reshape(groups, out)
    root = Group(
        "b.weight",
        groups,
        (
            Site("a.weight", 0, ins[None]),
            Site("a.bias", 0, ins[None]),
            Site("b.weight", 0, outs[None]),
            Site("b.bias", 0, outs[None]),
            Site("c.weight", 1, outs[None]),
        ),
    )
    inputs = Group(
        "a.weight",
        within,
        (
            Site("a.weight", 0, ins[:, :, None]),
            Site("a.bias", 0, ins[:, :, None]),
            Site(
                "b.weight",
                1,
                torch.arange(within).expand(groups, within)[:, :, None].contiguous(),
                over=0,
                slices=outs,
            ),
        ),
        "b.weight",
        groups,
    )
    outputs = Group(
        "b.bias",
        out,
        (
            Site("b.weight", 0, outs[:, :, None]),
            Site("b.bias", 0, outs[:, :, None]),
            Site("c.weight", 1, outs[:, :, None]),
        ),
        "b.weight",
        groups,
    )
    return model, spec_of(model, [root, inputs, outputs]), torch.randn(5, 3, 4, 4)


class AttentionNet(nn.Module):
    """Embedding, one block of grouped-query attention with a gated MLP, LayerNorms, a head."""

    def __init__(self, kv: int = 2, q: int = 1, dim: int = 4, hidden: int = 6) -> None:
        super().__init__()
        self.kv, self.q, self.dim = kv, q, dim
        width = 8
        self.inputs = nn.Linear(5, width)
        self.norm1 = nn.LayerNorm(width)
        self.wq = nn.Linear(width, kv * q * dim)
        self.wk = nn.Linear(width, kv * dim)
        self.wv = nn.Linear(width, kv * dim)
        self.wo = nn.Linear(kv * q * dim, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * hidden)
        self.down = nn.Linear(hidden, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        h = self.norm1(x)
        b, t, _ = h.shape
        q = self.wq(h).view(b, t, self.kv, self.q, self.dim)
        k = self.wk(h).view(b, t, self.kv, self.dim)
        v = self.wv(h).view(b, t, self.kv, self.dim)
        scores = torch.einsum("btkqd,bskd->bkqts", q, k) / self.dim**0.5
        out = torch.einsum("bkqts,bskd->btkqd", scores.softmax(-1), v)
        x = x + self.wo(out.reshape(b, t, -1))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        x = x + self.down(F.silu(gate) * up)
        return self.head(x.mean(1))


def attention(
    kv: int = 2, q: int = 1, dim: int = 4, hidden: int = 6
) -> tuple[nn.Module, PermutationSpec, Tensor]:
    """Key-value heads; in each its query heads, the dimensions of Q and K, and those of V and O."""
    model = AttentionNet(kv, q, dim, hidden)
    width = 8
    big = torch.arange(kv * q * dim)  # position = (kv, q, dim)
    small = torch.arange(kv * dim)
    heads = Group(
        "wk.weight",
        kv,
        (
            *(
                Site(f"{n}.{p}", 0, (big if n == "wq" else small).reshape(1, kv, -1))
                for n in ("wq", "wk", "wv")
                for p in ("weight", "bias")
            ),
            Site("wo.weight", 1, big.reshape(1, kv, -1)),
        ),
    )
    by_dim = big.reshape(kv, q, dim).transpose(1, 2).contiguous()
    scores = Group(
        "wq.weight",
        dim,
        tuple(Site(f"wq.{p}", 0, by_dim) for p in ("weight", "bias"))
        + tuple(Site(f"wk.{p}", 0, small.reshape(kv, dim, 1)) for p in ("weight", "bias")),
        "wk.weight",
        kv,
    )
    values = Group(
        "wv.weight",
        dim,
        (
            *(Site(f"wv.{p}", 0, small.reshape(kv, dim, 1)) for p in ("weight", "bias")),
            Site("wo.weight", 1, by_dim),
        ),
        "wk.weight",
        kv,
    )
    groups = [heads, scores, values]
    if q > 1:
        queries = big.reshape(kv, q, dim)
        groups.append(
            Group(
                "wo.weight",
                q,
                (
                    *(Site(f"wq.{p}", 0, queries) for p in ("weight", "bias")),
                    Site("wo.weight", 1, queries),
                ),
                "wk.weight",
                kv,
            )
        )
    stream = [Site("inputs.weight", 0, plain(width)), Site("inputs.bias", 0, plain(width))]
    stream += norm_sites("norm1", plain(width), running=False)
    stream += norm_sites("norm2", plain(width), running=False)
    stream += [Site(f"{n}.weight", 1, plain(width)) for n in ("wq", "wk", "wv", "up", "head")]
    stream += [
        Site(f"{n}.{p}", 0, plain(width)) for n in ("wo", "down") for p in ("weight", "bias")
    ]
    halves = torch.stack([torch.arange(hidden), torch.arange(hidden) + hidden], 1)[None]
    gated = Group(
        "down.weight",
        hidden,
        (
            Site("up.weight", 0, halves),
            Site("up.bias", 0, halves),
            Site("down.weight", 1, plain(hidden)),
        ),
    )
    groups = [Group("inputs.weight", width, tuple(stream)), *groups, gated]
    return model, spec_of(model, groups), torch.randn(5, 6, 5)


class RecurrentNet(nn.Module):
    """A residual layer without hidden units: its weight has the stream on both axes."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inputs = nn.Linear(5, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        return self.head(x + torch.tanh(self.inner(x)))


def recurrent(width: int = 8) -> tuple[nn.Module, PermutationSpec, Tensor]:
    model = RecurrentNet(width)
    sites = [
        Site("inputs.weight", 0, plain(width)),
        Site("inputs.bias", 0, plain(width)),
        Site("inner.weight", 0, plain(width)),
        Site("inner.weight", 1, plain(width)),
        Site("inner.bias", 0, plain(width)),
        Site("head.weight", 1, plain(width)),
    ]
    return model, spec_of(model, [Group("inputs.weight", width, tuple(sites))]), torch.randn(5, 5)


class ConcatNet(nn.Module):
    """Two branches side by side on one input axis, as in a DenseNet."""

    def __init__(self, left: int = 4, right: int = 5) -> None:
        super().__init__()
        self.left = nn.Linear(5, left)
        self.right = nn.Linear(5, right)
        self.joint = nn.Linear(left + right, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], -1)
        return self.head(F.relu(self.joint(both)))


def concat(left: int = 4, right: int = 5) -> tuple[nn.Module, PermutationSpec, Tensor]:
    model = ConcatNet(left, right)
    groups = [
        Group(
            f"{name}.weight",
            n,
            (
                Site(f"{name}.weight", 0, plain(n)),
                Site(f"{name}.bias", 0, plain(n)),
                Site("joint.weight", 1, plain(n, start=start)),
            ),
        )
        for name, n, start in (("left", left, 0), ("right", right, left))
    ]
    joint = Group(
        "joint.weight",
        6,
        (
            Site("joint.weight", 0, plain(6)),
            Site("joint.bias", 0, plain(6)),
            Site("head.weight", 1, plain(6)),
        ),
    )
    return model, spec_of(model, [*groups, joint]), torch.randn(5, 5)


def zoo() -> dict[str, tuple[nn.Module, PermutationSpec, Tensor]]:
    """Every network above by name, with inputs."""
    model, spec = mlp([5, 7, 6, 3])
    return {
        "mlp": (model, spec, torch.randn(5, 5)),
        "residual": residual(),
        "grouped": grouped(),
        "heads": attention(kv=3, q=1),
        "grouped query": attention(kv=2, q=3),
        "recurrent": recurrent(),
        "concat": concat(),
    }


def random_state(
    model: nn.Module, seed: int, *, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """A state dict of normal numbers; variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            found[name] = tensor.clone()
            continue
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        found[name] = (values.abs() + 0.1 if name.endswith("running_var") else values).to(dtype)
    return found
