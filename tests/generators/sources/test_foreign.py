import torch
import torch.nn.functional as F
from torch.distributions import Bernoulli, Normal, kl_divergence

from regraft.generators.sources import ModuleSource
from regraft.generators.sources.foreign import EvidenceClassifier, cvae, cwgan_gp, evidence


def test_the_modules_are_sources_of_mnist():
    for made, mixes in ((cvae(), True), (cwgan_gp(), True)):
        source = ModuleSource(made, pixels=None if mixes else "[-1,1]")
        assert (source.classes, source.image_shape) == (10, (1, 28, 28))
        assert source.soft_conditions is mixes


def test_the_classifier_takes_the_tensors_of_the_generator():
    torch.manual_seed(0)
    vae = cvae()
    classifier = evidence()
    assert list(classifier.state_dict()) == list(vae.state_dict())
    classifier.load_state_dict(vae.state_dict())
    images = torch.rand(3, 1, 28, 28)
    logits = classifier(images * 2 - 1)
    for label in range(10):
        c = F.one_hot(torch.full((3,), label), 10).float()
        mean, log_var = vae.encode(images.flatten(1), c)
        posterior = Normal(mean, (log_var / 2).exp())
        prior = Normal(torch.zeros(20), torch.ones(20))
        expected = Bernoulli(vae.decode(mean, c), validate_args=False).log_prob(images.flatten(1))
        bound = expected.sum(1) - kl_divergence(posterior, prior).sum(1)
        assert torch.allclose(logits[:, label], bound, atol=1e-2)


def test_images_go_to_the_class_that_explains_them():
    vae = cvae()
    with torch.no_grad():
        for p in vae.parameters():
            p.zero_()
        prototypes = torch.arange(7840).view(10, 784).mul(17).remainder(31) > 15
        # The label passes through the hidden layer, and each has pixels of its own.
        vae.fc3.weight[:10, 20:] = torch.eye(10)
        vae.fc4.weight[:, :10] = 8.0 * (prototypes.float().T - 0.5)
    images = prototypes.float().view(10, 1, 28, 28) * 2 - 1
    classifier = EvidenceClassifier(vae)
    assert classifier(images).argmax(1).tolist() == list(range(10))
