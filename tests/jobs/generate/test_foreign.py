from dataclasses import replace

import pytest
import torch
from foreign_generators import digits

from regraft.config import (
    DataConfig,
    ModelConfig,
    PretrainConfig,
    RuntimeConfig,
    SetConfig,
    SslConfig,
)
from regraft.errors import InputError
from regraft.jobs.base import with_sources
from regraft.jobs.generate.foreign import ForeignClassifier, ForeignGenerator
from regraft.jobs.generate.pretrain import PretrainJob
from regraft.jobs.generate.target import TargetJob

DIGITS = DataConfig(name="digits", validation=0)
SET = SetConfig(data=DIGITS, size=100)
TEST = SetConfig(data=DIGITS, part="test", size=60)
RUNTIME = RuntimeConfig(accelerator="cpu", threads=1)
NET = ModelConfig(name="conv_small", width=0.5)


@pytest.fixture
def weights(tmp_path):
    """Weights of a generator and a classifier of others below a folder of data sets."""
    torch.save(digits().state_dict(), tmp_path / "generator.pth")
    torch.manual_seed(0)
    torch.save(classifier().state_dict(), tmp_path / "classifier.pth")
    return tmp_path


def classifier():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def foreign():
    common = {"setting": "t", "runtime": RUNTIME, "test": TEST}
    generator = ForeignGenerator(
        arm="generator",
        factory="foreign_generators:digits",
        weights="generator.pth",
        images=SET,
        samples=60,
        **common,
    )
    answers = ForeignClassifier(
        arm="classifier", factory=f"{__name__}:classifier", weights="classifier.pth", **common
    )
    return generator, answers


def test_they_stand_where_trained_ones_do(weights, monkeypatch):
    monkeypatch.setenv("REGRAFT_DATA", str(weights))
    generator, answers = foreign()
    body = PretrainJob(
        setting="t",
        arm="body",
        runtime=RUNTIME,
        generator=generator,
        model=NET,
        pretrain=PretrainConfig(steps=2, batch_size=8),
    )
    pssl = TargetJob(
        setting="t",
        arm="pp_pssl",
        runtime=RUNTIME,
        target=replace(SET, size=20),
        test=TEST,
        model=NET,
        steps=2,
        start=body,
        unlabelled="pseudo",
        generator=generator,
        classifier=answers,
        ssl=SslConfig(ssl_batch=8),
    )
    results = {job.arm: job.run(weights)["metrics"] for job in with_sources([pssl])}
    assert set(results) == {"generator", "classifier", "body", "pp_pssl"}
    # An untrained generator has labels that mean nothing, and images of a class that differ.
    assert 0 <= results["generator"]["classification_accuracy_score"] <= 100
    assert results["generator"]["spread"] > 0.1
    images, network = _test_images(), classifier()
    network.load_state_dict(torch.load(weights / "classifier.pth", weights_only=True))
    right = (network((images.images / 255 - 0.5) / 0.5).argmax(1) == images.labels).double().mean()
    assert results["classifier"]["test_accuracy"] == pytest.approx(100 * right.item())


def _test_images():
    from regraft.jobs.generate.sets import load_set

    return load_set(TEST, seed=0)[0]


def test_other_weights_are_another_run(weights):
    _, answers = foreign()
    there = answers.with_data_root(str(weights))
    assert there.config() == answers.config()
    there.run(weights)
    state = {k: v + 1 for k, v in classifier().state_dict().items()}
    torch.save(state, weights / "classifier.pth")
    (there.folder(weights) / "result.json").unlink()
    with pytest.raises(InputError, match="data2"):
        there.run(weights)


def test_missing_weights_say_where_they_belong(tmp_path):
    generator, answers = (job.with_data_root(str(tmp_path)) for job in foreign())
    for job, name in ((generator, "generator.pth"), (answers, "classifier.pth")):
        with pytest.raises(InputError, match=rf"{name} is missing: bring the weights of"):
            job.run(tmp_path / "runs")
