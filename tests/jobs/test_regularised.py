"""A training with further losses on generated and real images, as a run."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from regraft.config import MGRConfig, RuntimeConfig, SetConfig
from regraft.errors import InputError
from regraft.jobs.base import with_sources
from regraft.jobs.generate.regularised import ImageTerm
from regraft.recipes.mgr.arms import LossWeights, make, plans
from regraft.recipes.mgr.recipe import MGRSetting

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def arms(*names, **more):
    base = MGRSetting(
        data="digits", size=50, seeds=1, arms=(), steps=6, generator_steps=8, **more
    ).base
    data = base.target.data
    like = replace(
        base,
        test=SetConfig(data=data, part="test", size=100),
        more=SetConfig(data=data, part="second_half", size=50),
        oracle=SetConfig(data=data, part="second_half", size=100),
    )
    return make(like, LossWeights(), names)


def run(jobs, folder):
    for job in with_sources(jobs):
        job.run(folder)
    return [job.run(folder) for job in jobs]


def test_every_arm_trains_and_is_measured(tmp_path):
    names = list(plans(LossWeights()))
    for name, result in zip(names, run(arms(*names), tmp_path), strict=True):
        assert 0 <= result["metrics"]["test_accuracy"] <= 100, name
        chooses = name.startswith(("mgr", "mps", "bank"))
        assert ("latent_norm" in result["metrics"] or "kept" in result["metrics"]) == chooses, name


def test_killed_and_started_again_it_ends_with_the_same_weights(tmp_path):
    (job,) = arms("mgr")
    run([job], tmp_path / "straight")
    (again,) = arms("mgr", runtime=RuntimeConfig(threads=1, checkpoint_seconds=0.0))
    for source in with_sources([again])[:-1]:
        source.run(tmp_path / "again")

    class KilledError(Exception):
        pass

    def kill(step, steps, row):
        if step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        again.run(tmp_path / "again", progress=kill)
    again.run(tmp_path / "again")
    one, two = (
        load_file(job.folder(tmp_path / name) / "model.safetensors")
        for name in ("straight", "again")
    )
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_bf16_mixed_trains_pcr_and_mgr_to_about_the_same(tmp_path):
    narrow = RuntimeConfig(threads=1, precision="bf16-mixed")
    for name in ("pcr", "mgr"):
        (wide,) = run(arms(name), tmp_path / "wide")
        (other,) = run(arms(name, runtime=narrow), tmp_path / "narrow")
        assert other["metrics"] != wide["metrics"]
        assert other["metrics"]["test_loss"] == pytest.approx(wide["metrics"]["test_loss"], rel=0.1)


def test_arms_of_a_seed_train_on_the_same_labels_and_steps(tmp_path):
    jobs = arms(*(name for name in plans(LossWeights()) if name != "cas"))
    assert len({(j.steps, j.optim.batch_size, str(j.target)) for j in jobs}) == 1
    assert all(j.control is None or j.control in plans(LossWeights()) for j in jobs)


def test_a_term_without_its_images_is_refused(tmp_path):
    (job,) = arms("base")
    generated = ImageTerm(images="generator", loss=MGRConfig(select="uniform"))
    with pytest.raises(InputError, match="there is no generator"):
        replace(job, terms=(generated,)).run(tmp_path)
    with pytest.raises(InputError, match="there are none"):
        replace(job, terms=(replace(generated, images="more"),), more=None).run(tmp_path)
