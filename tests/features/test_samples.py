import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from two_loading_processes import IMAGES, prepared, worker

from features import CLASSES, batch, loader, network
from regraft.errors import InputError
from regraft.features import AdaRand, class_statistics, tap
from regraft.features.samples import Samples, at_least_two, preserved
from regraft.train import load_state


class Source:
    """Follows `regraft.protocols.BatchSource`."""

    def __len__(self):
        return 5

    def batches(self, epoch, *, start=0, rank=0, world=1):
        for x, y in loader():
            yield x, y, len(y)


class Sequence:
    """A network that is called with keywords, as those of Hugging Face are."""

    @staticmethod
    def make():
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.classifier = network(1)[:-1], nn.Linear(8, CLASSES)

            def forward(self, pixel_values, labels=None):
                return {"logits": self.classifier(self.body(pixel_values))}

        torch.manual_seed(0)
        return Net()


def statistics(data, net=None):
    net = net or network(1)
    return class_statistics(tap(net), Samples(data, net), num_classes=CLASSES)


def test_every_kind_of_loader_gives_the_same_statistics():
    expected = statistics(loader())
    as_dicts = [{"pixel_values": x, "labels": y} for x, y in loader()]
    kinds = [
        iter(loader()),  # gone through once
        Source(),
        [(x.double(), y.to(torch.int32), "path") for x, y in loader()],
        [[x, y] for x, y in loader()],
        DataLoader(TensorDataset(*(torch.cat(c) for c in zip(*loader(), strict=True))), 12),
    ]
    for data in kinds:
        found = statistics(data)
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.std, expected.std)
    model = Sequence.make()
    found = statistics(as_dicts, model)
    torch.testing.assert_close(found.mean, expected.mean)


def test_a_shuffling_loader_leaves_torchs_random_state():
    data = DataLoader(TensorDataset(*batch(30)), 7, shuffle=True)
    net = network(1)
    net.insert(7, nn.Dropout(0.5))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    AdaRand().prepare(net, data, steps=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_do_not_depend_on_the_random_state():
    net = network(1)
    net.insert(7, nn.Dropout(0.5))
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(statistics(loader(), net).mean)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("mode", ["train", "eval", "as_is"])
def test_the_mode_is_the_one_asked_for_and_goes_away(mode):
    net = network(1)
    net[1].eval()
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    with preserved(net, mode):
        inside = [m.training for m in net.modules()]
        net(batch()[0])
    assert inside == {"train": [True] * 10, "eval": [False] * 10, "as_is": modes}[mode]
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_mode_changes_the_statistics_of_batchnorm():
    net = network(1)
    with torch.no_grad():
        net[1].running_mean -= 1
    other, same = (
        class_statistics(tap(net), Samples(loader(), net), num_classes=CLASSES, mode=mode).mean
        for mode in ("train", "eval")
    )
    assert not torch.allclose(other, same, rtol=0.1)


def test_an_error_inside_leaves_the_network_too():
    net = network(1)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(InputError, match="labels go from 0 to 5"):
        AdaRand().prepare(net, [batch(), batch(classes=6)], steps=3)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training


def test_a_last_single_image_joins_the_batch_before_it():
    net = network(1)
    sizes = [len(y) for _, y in at_least_two(Samples([batch(4), batch(5), batch(1)], net))]
    assert sizes == [4, 6]
    assert [len(y) for _, y in at_least_two(Samples([batch(1)], net))] == [1]


@given(st.lists(st.integers(1, 3), min_size=1, max_size=12))
@settings(deadline=None)
def test_single_images_join_a_neighbour_and_none_is_lost(sizes):
    net = network(1)
    batches = [
        (torch.full((n, 1, 8, 8), float(i)), torch.full((n,), i)) for i, n in enumerate(sizes)
    ]
    found = [y for _, y in at_least_two(Samples(batches, net))]
    assert torch.equal(torch.cat(found), torch.cat([y for _, y in batches]))
    assert all(2 <= len(y) <= 5 for y in found) or len(sizes) == 1


DR_TUNE_QUEUES = ("student_queue", "teacher_queue", "labels")


def test_processes_take_their_share_of_our_own_loaders(tmp_path):
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    one = prepared()
    assert one["statistics"]["counts"].sum() == IMAGES
    assert one["statistics"]["counts"].min() == 1
    states = [load_state(tmp_path / str(rank)) for rank in (0, 1)]
    for two in states:
        assert two.keys() == one.keys()
        for name, tensors in states[0].items():
            assert all(torch.equal(two[name][key], value) for key, value in tensors.items()), name
        for name, tensors in one.items():
            for key, value in tensors.items():
                if name in ("lp_ft", "delta_attention") or key in DR_TUNE_QUEUES:
                    continue  # these depend on the order, which is that of the processes
                torch.testing.assert_close(
                    two[name][key], value, rtol=0, atol=1e-9, msg=f"{name}: {key}"
                )
        for key in ("student_queue", "labels"):
            left, right = (s["dr_tune"][key].flatten().sort().values for s in (one, two))
            torch.testing.assert_close(left, right)


def test_statistics_are_the_same_in_one_batch_and_in_many_where_batches_do_not_matter():
    net = network(1, norm=False)
    x, y = (torch.cat(c) for c in zip(*loader(), strict=True))
    one, many = statistics([(x, y)], net), statistics(loader(), net)
    torch.testing.assert_close(one.mean, many.mean)
    torch.testing.assert_close(one.std, many.std)
    assert torch.equal(one.counts, torch.bincount(y))
    torch.testing.assert_close(one.total_mean, net[:-1](x).mean(0).detach())
    torch.testing.assert_close(one.total_std, net[:-1](x).std(0).detach())


def test_the_number_of_classes_has_to_be_known():
    net = nn.Sequential(nn.Flatten(), nn.ReLU())
    with pytest.raises(InputError, match="does not tell how many classes there are: pass num_cl"):
        AdaRand().prepare(net, [batch()], steps=3, classifier="1")
    method = AdaRand().prepare(net, [batch()], steps=3, classifier="1", num_classes=CLASSES)
    assert method.mean.shape == (CLASSES, 64)
