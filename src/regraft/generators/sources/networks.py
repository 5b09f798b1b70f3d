"""Two small conditional generators that train in minutes on a CPU, for images of 28 and 32 pixels.

Both are made of a vector of class probabilities, so mixed labels are theirs by nature, and both pass
gradients to their latents.

References:
    Kingma and Welling, "Auto-encoding variational Bayes", ICLR 2014; Sohn et al., "Learning structured
    output representation using deep conditional generative models", NeurIPS 2015 (conditional VAE).
    Liu et al., "Flow straight and fast", ICLR 2023 (rectified flow, eq. 1).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regraft.errors import InputError


class ConditionalVAE(nn.Module):
    """Encoder and decoder of two hidden layers each, on flat images joined to class probabilities.

    Args:
        image_shape: Channels, height and width.
        classes: Number of classes.
        latent: Length of a latent.
        hidden: Size of the hidden layers.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        latent: int = 16,
        hidden: int = 400,
    ) -> None:
        super().__init__()
        self.image_shape, self.num_classes, self.latent_dim = image_shape, classes, latent
        size = math.prod(image_shape)
        self.encoder = nn.Sequential(
            nn.Linear(size + classes, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.moments = nn.Linear(hidden, 2 * latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent + classes, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, size),
        )

    def decode(self, z: Tensor, q: Tensor) -> Tensor:
        """Return images in [0, 1], [n, C, H, W], of latents [n, latent] and probabilities [n, K]."""
        return self._logits(z, q).sigmoid().view(-1, *self.image_shape)

    def _logits(self, z: Tensor, q: Tensor) -> Tensor:
        return self.decoder(torch.cat([z, q], 1))

    def loss(self, images: Tensor, q: Tensor, noise: Tensor) -> Tensor:
        """Return the mean negative evidence bound of a batch, in nats an image.

        Bernoulli reconstruction and KL(N(m, s^2) || N(0, I)).

        Args:
            images: [n, C, H, W] in [0, 1].
            q: Class probabilities [n, K].
            noise: Standard normal, [n, latent].
        """
        flat = images.flatten(1)
        mean, log_var = self.moments(self.encoder(torch.cat([flat, q], 1))).chunk(2, dim=1)
        logits = self._logits(mean + noise * (log_var / 2).exp(), q)
        rebuilt = F.binary_cross_entropy_with_logits(logits, flat, reduction="none").sum(1)
        divergence = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return (rebuilt + divergence).mean()

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one noise of `loss`."""
        return (self.latent_dim,)


class RectifiedFlow(nn.Module):
    """Velocity v(x_t, t, q) of straight lines from noise to images, sampled in a few Euler steps.

        min E || v(x_t, t, q) - (x_1 - x_0) ||^2,  x_t = (1 - t) x_0 + t x_1,  x_0 ~ N(0, I)

    The latent of an image is its noise, of the image's own shape. A convolutional net at half and
    quarter size, with the class and the time added to every block.

    Args:
        image_shape: Channels, height and width; height and width are multiples of 4.
        classes: Number of classes.
        width: Channels of the first block.
        steps: Euler steps of a sample.

    Raises:
        InputError: A height or width that is no multiple of 4, or fewer than one step.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], classes: int, *, width: int = 24, steps: int = 8
    ) -> None:
        super().__init__()
        channels, height, side = image_shape
        if height % 4 or side % 4 or steps < 1:
            raise InputError(
                f"images of {height}x{side} in steps={steps}: this network takes multiples of 4 and at "
                "least one step"
            )
        self.image_shape, self.num_classes, self.steps = image_shape, classes, steps
        self.latent_shape = image_shape
        self.condition = nn.Sequential(nn.Linear(classes + 16, 64), nn.SiLU(), nn.Linear(64, 64))
        self.first = nn.Conv2d(channels, width, 3, padding=1, stride=2)
        self.down = _Block(width, 2 * width, stride=2)
        self.middle = _Block(2 * width, 2 * width)
        self.up = _Block(2 * width, width)
        self.last = _Block(2 * width, width)
        self.out = nn.Conv2d(width, channels * 4, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # pyrefly: ignore

    def velocity(self, x: Tensor, t: Tensor, q: Tensor) -> Tensor:
        """Return [n, C, H, W] for positions [n, C, H, W], times [n] and probabilities [n, K]."""
        waves = t[:, None] * math.pi * 2.0 ** torch.arange(8, device=t.device, dtype=t.dtype)
        c = self.condition(torch.cat([q, waves.sin(), waves.cos()], 1))
        half = F.silu(self.first(x))
        deep = self.middle(self.down(half, c), c)
        wide = F.interpolate(self.up(deep, c), scale_factor=2.0)
        return F.pixel_shuffle(self.out(self.last(torch.cat([wide, half], 1), c)), 2)

    def decode(self, z: Tensor, q: Tensor) -> Tensor:
        """Return images in [0, 1] of noise [n, C, H, W] and probabilities [n, K]."""
        x, step = z, 1 / self.steps
        for i in range(self.steps):
            t = torch.full((len(z),), i * step, device=z.device, dtype=z.dtype)
            x = x + step * self.velocity(x, t, q)
        return ((x + 1) / 2).clamp(0, 1)

    def loss(self, images: Tensor, q: Tensor, noise: Tensor) -> Tensor:
        """Return the mean squared error of the velocity, a pixel.

        Args:
            images: [n, C, H, W] in [0, 1].
            q: Class probabilities [n, K].
            noise: Standard normal, [n, C * H * W + 1]; the last number becomes the time.
        """
        t = 0.5 * (1 + torch.erf(noise[:, -1] / math.sqrt(2)))
        x0, x1 = noise[:, :-1].view_as(images), images * 2 - 1
        at = t[:, None, None, None]
        return F.mse_loss(self.velocity((1 - at) * x0 + at * x1, t, q), x1 - x0)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of one noise of `loss`."""
        return (math.prod(self.image_shape) + 1,)


class _Block(nn.Module):
    """A convolution with GroupNorm, shifted by the condition, and SiLU."""

    def __init__(self, incoming: int, size: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(incoming, size, 3, padding=1, stride=stride)
        self.norm = nn.GroupNorm(4, size)
        self.shift = nn.Linear(64, size)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)) + self.shift(condition)[:, :, None, None])


GENERATORS = ("vae", "flow")
"""Generators that can be trained here, by name."""


def make_generator(
    kind: str, image_shape: tuple[int, int, int], classes: int, **options: int
) -> ConditionalVAE | RectifiedFlow:
    """Return an untrained generator.

    Raises:
        InputError: An unknown kind, or options that it does not take.
    """
    kinds = {"vae": ConditionalVAE, "flow": RectifiedFlow}
    if kind not in kinds:
        raise InputError(f"generator={kind!r}: expected one of {', '.join(GENERATORS)}")
    try:
        return kinds[kind](image_shape, classes, **options)
    except TypeError as error:
        raise InputError(f"generator {kind!r} takes no such option ({error})") from error
