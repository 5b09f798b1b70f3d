"""Two generators of others, whose weights anybody can bring, and the classifier that one of them holds.

All are MNIST's, MIT licensed; the modules are written from the names and shapes of their tensors, for
`--generator regraft.generators.sources.foreign:cvae --weights FILE`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ForeignVAE(nn.Module):
    """Decoder and encoder of two linear layers each: decode(z [n, 20], onehot [n, 10]) -> [n, 784]."""

    latent_dim = 20
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(794, 400)
        self.fc21 = nn.Linear(400, 20)
        self.fc22 = nn.Linear(400, 20)
        self.fc3 = nn.Linear(30, 400)
        self.fc4 = nn.Linear(400, 784)

    def encode(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, [n, 20] each, of images [n, 784]."""
        hidden = self.fc1(torch.cat([x, c], 1)).relu()
        return self.fc21(hidden), self.fc22(hidden)

    def decode(self, z: Tensor, c: Tensor) -> Tensor:
        """Return flat images in [0, 1]."""
        return self.fc4(self.fc3(torch.cat([z, c], 1)).relu()).sigmoid()


class EvidenceClassifier(nn.Module):
    """Bayes' rule on a conditional VAE's evidence bounds, all classes equally likely beforehand.

        logit_k(x) = -BCE(x, decode(m_k, k)) - KL(N(m_k, s_k^2) || N(0, I)),  (m_k, s_k) = encode(x, k)

    The bound is taken at the mean of the latents, so that it needs no draws.

    Args:
        vae: The VAE; its tensors have the names that they have by themselves.
    """

    def __init__(self, vae: ForeignVAE) -> None:
        super().__init__()
        self._vae = [vae]
        self.num_classes = vae.num_classes
        for name, module in vae.named_children():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [n, K], in nats, of images [n, 1, 28, 28] in [-1, 1]."""
        (vae,), x = self._vae, ((images.flatten(1) + 1) / 2).clamp(0, 1)
        logits = []
        for label in range(self.num_classes):
            c = F.one_hot(torch.full((len(x),), label, device=x.device), self.num_classes).to(x)
            mean, log_var = vae.encode(x, c)
            made = vae.decode(mean, c)
            rebuilt = F.binary_cross_entropy(made, x, reduction="none").sum(1)
            divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
            logits.append(-rebuilt - divergence)
        return torch.stack(logits, 1)


class ForeignGAN(nn.Module):
    """G(z [n, 10], y int64 [n]) -> [n, 1, 28, 28] in [-1, 1]: a label embedding joined to z."""

    latent_dim = 10

    def __init__(self) -> None:
        super().__init__()
        self.label_emb = nn.Embedding(10, 10)
        self.l1 = nn.Sequential(nn.Linear(20, 128 * 49))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(128),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 128, 3, padding=1),
            nn.BatchNorm2d(128, 0.8),
            nn.LeakyReLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64, 0.8),
            nn.LeakyReLU(),
            nn.Conv2d(64, 1, 3, padding=1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Return images in [-1, 1]."""
        joined = torch.cat([z, self.label_emb(labels)], 1)
        return self.conv_blocks(self.l1(joined).view(-1, 128, 7, 7))


def cvae() -> ForeignVAE:
    """Return the module of `mansidhanania_mnist_cvae.pth`."""
    return ForeignVAE()


def evidence() -> EvidenceClassifier:
    """Return the classifier that is made of `mansidhanania_mnist_cvae.pth`: 94.7% of MNIST's digits."""
    return EvidenceClassifier(ForeignVAE())


def cwgan_gp() -> ForeignGAN:
    """Return the module of `hayatohongo_mnist_cwgangp_generator.pth`."""
    return ForeignGAN()
