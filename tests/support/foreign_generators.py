"""Conditional generators in the forms that users have, small, with fresh weights."""

from __future__ import annotations

import torch
from torch import nn


class EmbeddedLabels(nn.Module):
    """G(z, y): an embedding of K x 3 joined to z; [-1,1], as images."""

    def __init__(self, latent: int = 6, classes: int = 4, side: int = 8):
        super().__init__()
        self.side = side
        self.emb = nn.Embedding(classes, 3)
        self.net = nn.Sequential(
            nn.Linear(latent + 3, 32), nn.ReLU(), nn.Linear(32, side * side), nn.Tanh()
        )
        nn.init.normal_(self.net[2].weight, std=0.5)

    def forward(self, z, labels):
        return self.net(torch.cat([z, self.emb(labels)], 1)).view(-1, 1, self.side, self.side)


class AddedLabels(nn.Module):
    """G(z, y): an embedding as long as the latent, multiplied into it; [0,1], flat."""

    def __init__(self):
        super().__init__()
        self.label = nn.Embedding(4, 6)
        self.net = nn.Sequential(nn.Linear(6, 64), nn.Sigmoid())
        nn.init.normal_(self.net[0].weight)

    def forward(self, noise, y):
        return self.net(noise + self.label(y.long()))


class Decoder(nn.Module):
    """decode(z, onehot) of an autoencoder whose forward takes images; [0,1], flat."""

    def __init__(self):
        super().__init__()
        self.enc = nn.Linear(68, 6)
        self.dec = nn.Linear(10, 64)
        nn.init.normal_(self.dec.weight)

    def decode(self, z, c):
        return torch.sigmoid(self.dec(torch.cat([z, c], 1)))

    def forward(self, x, c):
        z = self.enc(torch.cat([x.flatten(1), c], 1))
        return self.decode(z, c), z


class ConvOneHot(nn.Module):
    """G(z [n, l, 1, 1], onehot): Linear(K, l) added; [-1,1], colour."""

    def __init__(self):
        super().__init__()
        self.label = nn.Linear(4, 6)
        self.net = nn.Sequential(nn.ConvTranspose2d(6, 3, 8), nn.Tanh())
        nn.init.normal_(self.net[0].weight)

    def forward(self, z, y):
        if z.ndim != 4:
            raise ValueError("z must be [n, l, 1, 1]")
        return self.net(z + self.label(y)[:, :, None, None])


class NoisyImages(EmbeddedLabels):
    """Noise of its own, from torch's global stream."""

    def forward(self, z, labels):
        return (super().forward(z, labels) + 0.1 * torch.randn(1)).clamp(-1, 1)


def digits() -> EmbeddedLabels:
    """Return an untrained generator of ten classes of 8x8 pixels, that says how it is called."""
    torch.manual_seed(0)
    generator = EmbeddedLabels(latent=6, classes=10)
    generator.latent_dim = 6
    return generator
