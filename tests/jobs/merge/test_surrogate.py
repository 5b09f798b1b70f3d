from dataclasses import replace

import pytest
import torch

from checkpoints import checkpoint, digits
from regraft.config import DataConfig, OptimConfig, RuntimeConfig
from regraft.jobs.merge.config import AlignConfig, StraightThroughSettings
from regraft.jobs.merge.models import read_models
from regraft.jobs.merge.surrogate import surrogate

PRESENT = (1, 4, 7)


@pytest.mark.parametrize("kind", ["full", "random", "condensed"])
def test_a_set_without_images_of_some_classes_is_stood_for_by_those_it_has(kind, tmp_path):
    splits = digits()
    rows = torch.isin(splits.train.labels, torch.tensor(PRESENT)).nonzero().flatten()[:60]
    splits = replace(splits, train=splits.train.subset(rows))
    paths = [checkpoint(tmp_path / f"{i}.safetensors", seed=i) for i in (1, 2)]
    ste = StraightThroughSettings(surrogate=kind, per_class=2, optim=OptimConfig(batch_size=10))
    config = AlignConfig(
        checkpoints=tuple(paths), data=(DataConfig(name="digits"),), match="ste", ste=ste,
        runtime=RuntimeConfig(seed=0, accelerator="cpu"),
    )  # fmt: skip
    models = read_models(config, splits=[splits])
    batches, record = surrogate(config, models, tmp_path)
    assert record == [{"data": "digits", "images": len(rows) if kind == "full" else 6}]
    labels = torch.cat([y for _, y, _ in batches.batches(0)])
    assert labels.unique().tolist() == list(PRESENT)
    again, _ = surrogate(config, models, tmp_path)
    assert torch.equal(labels, torch.cat([y for _, y, _ in again.batches(0)]))
