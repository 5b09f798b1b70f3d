import copy

import pytest
import torch
import torch.nn.functional as F
from graphs import KINDS, cycle
from torch import nn

from regraft.models import GCN, Transductive
from regraft.tickets import edge_popup

pytest.importorskip("torch_geometric")


class TestTransductive:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("density", [0.01, 0.5])
    def test_it_gives_the_logits_of_the_nodes_asked_for(self, kind, density):
        graph = cycle(nodes=40, features=50)
        x = graph.x * (torch.rand(40, 50, generator=torch.Generator().manual_seed(1)) < density)
        object.__setattr__(graph, "x", x)
        torch.manual_seed(0)
        net = KINDS[kind](50, 3, hidden=4).eval()
        model = Transductive(net, graph)
        assert model.x().layout == (torch.sparse_csr if density < 0.05 else torch.strided)
        nodes = torch.tensor([7, 0, 7])
        whole = net(x, graph.edge_index)
        torch.testing.assert_close(model(nodes), whole[nodes], rtol=1e-5, atol=1e-6)

    def test_the_graph_is_in_no_checkpoint_and_names_are_the_networks(self):
        net = GCN(6, 3, hidden=4)
        model = Transductive(net, cycle())
        assert list(model.state_dict()) == [f"network.{key}" for key in net.state_dict()]
        assert list(dict(net.named_parameters())) == ["layers.0.lin.weight", "layers.1.lin.weight"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_can_be_copied_and_cast(self, kind):
        graph = cycle(nodes=40, features=50)
        object.__setattr__(graph, "x", torch.eye(40, 50))
        model = Transductive(KINDS[kind](50, 3, hidden=4), graph).eval()
        other = copy.deepcopy(model)
        nodes = torch.arange(40)
        assert torch.equal(other(nodes), model(nodes))
        double = other.double()(nodes)
        assert double.dtype == torch.float64
        torch.testing.assert_close(double.float(), model(nodes), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_runs_where_half_precision_is_asked_for(self, kind):
        graph = cycle(nodes=40, features=50)
        object.__setattr__(graph, "x", torch.eye(40, 50))
        model = Transductive(KINDS[kind](50, 3, hidden=4), graph)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(torch.arange(40))
        out.sum().backward()
        assert bool(torch.isfinite(out).all())

    def test_any_network_of_features_and_edges_will_do(self):
        class Degree(nn.Module):
            def forward(self, x, edge_index):
                return x + torch.bincount(edge_index[1], minlength=len(x))[:, None]

        graph = cycle()
        out = Transductive(Degree(), graph)(torch.tensor([3]))
        torch.testing.assert_close(out, graph.x[3:4] + 4)

    def test_several_processes_are_not_sent_what_each_has_already(self):
        net = edge_popup(GCN(6, 3, hidden=4))
        model = Transductive(net, cycle())
        ignored = set(model._ddp_params_and_buffers_to_ignore)
        sent = {name for name, _ in model.named_buffers()} - ignored
        assert sent == set()
        assert not any(name in ignored for name, _ in model.named_parameters())

    @pytest.mark.parametrize("kind", KINDS)
    def test_two_threads_give_the_same_bits_every_time(self, kind):
        graph = cycle(nodes=3000, features=16)
        threads = torch.get_num_threads()
        gradients = []
        try:
            torch.set_num_threads(2)
            for _ in range(8):
                torch.manual_seed(3)
                model = Transductive(KINDS[kind](16, 3), graph)
                F.cross_entropy(model(graph.train), graph.y[graph.train]).backward()
                gradients.append([p.grad for p in model.parameters()])
        finally:
            torch.set_num_threads(threads)
        for other in gradients[1:]:
            assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))
