"""Code that draws from torch's own generators is seeded, and leaves them as they were."""

from types import SimpleNamespace

import pytest
import torch
from foreign_generators import EmbeddedLabels, NoisyImages

from regraft.data import ImageSet
from regraft.generators.mgr.batches import SeededViews
from regraft.generators.networks import fresh
from regraft.generators.sources import ModuleSource, PipelineSource
from regraft.generators.sources.quality import train_classifier
from regraft.streams import Counter


class Noisy:
    """A pipeline that draws from torch's global generator alone."""

    noise = 1.0

    def __call__(self, prompt, generator, output_type):
        levels = torch.tensor([len(p) / 10 for p in prompt]).view(-1, 1, 1, 1)
        images = (levels + self.noise * torch.rand(len(prompt), 8, 8, 3)) / 2
        return SimpleNamespace(images=images.numpy())


class Still(Noisy):
    noise = 0.0


def module(network):
    return ModuleSource(network, classes=4, latent=6)


def pipeline(kind=Noisy):
    return PipelineSource(kind(), prompts=("a cat", "a horse"))


def transformed():
    views = SeededViews(lambda x: x + torch.rand_like(x))
    return views.apply(torch.zeros(2, 3, 4, 4), 5)


def trained():
    images = (torch.arange(320) % 256).view(20, 1, 4, 4).byte()
    return train_classifier(ImageSet(images, torch.arange(20) % 2, 2), seed=1)


@pytest.fixture(params=["module", "still", "pipeline", "views", "trained", "fresh"])
def use(request):
    """Something that draws; what it needs is drawn beforehand."""
    torch.manual_seed(3)
    noisy, still = NoisyImages(), EmbeddedLabels()
    return {
        "module": lambda: module(noisy).sample(3, generator=Counter(0)),
        "still": lambda: module(still).sample(3, generator=Counter(0)),
        "pipeline": lambda: pipeline().sample(3, generator=Counter(0)),
        "views": transformed,
        "trained": lambda: trained().state_dict()["head.weight"],
        "fresh": lambda: fresh(lambda: torch.nn.Linear(2, 3), 5, torch.device("cpu")).weight,
    }[request.param]


def test_generators_of_torch_are_left_as_they_were(use, monkeypatch):
    reseeded = []
    # What `torch.manual_seed` does to all GPUs, which no fork of the CPU's generator undoes.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", reseeded.append)
    before = torch.get_rng_state()
    first = use()
    assert torch.equal(torch.get_rng_state(), before)
    assert reseeded == []
    torch.manual_seed(8)
    assert torch.equal(first, use())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_on_a_gpu_is_seeded_and_its_generator_left_as_it_was():
    class OnGpu(NoisyImages):
        def forward(self, z, y):
            return super().forward(z, y) + 0.01 * torch.randn(1, device=z.device)

    source = ModuleSource(OnGpu(), classes=4, latent=6, device="cuda")
    before = torch.cuda.get_rng_state()
    first = source.sample(3, generator=Counter(0))
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.cuda.manual_seed(8)
    assert torch.equal(first, source.sample(3, generator=Counter(0)))


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_is_noticed_whatever_state_the_generator_is_in(seed):
    torch.manual_seed(seed)
    assert not pipeline().deterministic
    assert pipeline(Still).deterministic
