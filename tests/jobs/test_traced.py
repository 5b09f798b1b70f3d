"""Networks of recipes are traced with inputs that show their symmetries, and once."""

from __future__ import annotations

from regraft.config import ModelConfig
from regraft.jobs.traced import traced
from regraft.models import build

SIZE = {"channels": 1, "side": 8}


def test_a_network_without_biases_can_be_traced() -> None:
    """Blank images give zeros whatever its weights are, which proves nothing."""
    config = ModelConfig(name="mlp", options={"widths": [16], "bias": False})
    model = build(config, num_classes=10, channels=1, image_size=8)
    spec, seconds = traced(model, config, classes=10, **SIZE)
    assert len(spec.groups) == 1
    assert seconds > 0


def test_an_architecture_is_traced_once() -> None:
    config = ModelConfig(name="mlp", options={"widths": [16, 12]})
    found = [
        traced(build(config, num_classes=3, channels=1, image_size=8), config, classes=3, **SIZE)
        for _ in range(2)
    ]
    assert found[0] is found[1]
