"""The recipe `mgr`: its arms are fair, and its claims are read off the numbers."""

from pathlib import Path

import pytest

from regraft.recipes import load_recipe
from regraft.recipes.mgr.arms import LossWeights, plans
from regraft.recipes.mgr.claims import ATTEMPTS, read
from regraft.report import Result, Run, rows


def runs_of(**levels):
    """Return eight seeds of each arm in two settings, at a level and with a wobble of its own."""
    found = []
    for setting in ("fashion_mnist/50", "mnist/50"):
        for i, (arm, level) in enumerate(levels.items()):
            for seed in range(1, 9):
                accuracy = level + (0.5 if (seed + i) % 2 else -0.5)
                result = Result(metrics={"test_accuracy": accuracy}, seconds=1.0)
                control = None if arm == "base" else "base"
                named = {"setting": setting, "arm": arm, "control": control, "seed": seed}
                found.append(Run(folder=Path(arm), result=result, **named))
    return found


def test_the_issues_controls_are_all_there():
    names = set(plans(LossWeights()))
    assert {
        "base", "base_80", "gda", "gda_head", "gda_ssl", "gda_strong", "mps_gda", "pcr", "pcr_80", "mgr",
        "mgr_finite", "mgr_80", "bank_entropy", "bank_gradient", "real_pcr", "real_strong", "gda_real",
        "pcr_real", "more_real",
    } <= names  # fmt: skip
    assert set(ATTEMPTS) < names


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu", "paper"])
def test_arms_of_a_setting_differ_in_nothing_but_their_losses(scale):
    by_setting = {}
    for job in load_recipe("mgr", scale).jobs:
        if hasattr(job, "terms") and job.labels:
            same = str((job.steps, job.optim, job.model, job.target, job.test))
            by_setting.setdefault((job.setting, job.runtime.seed), set()).add(same)
    assert by_setting
    assert all(len(found) == 1 for found in by_setting.values())


def test_the_generator_is_trained_on_exactly_the_labels():
    for job in load_recipe("mgr", "cpu").jobs:
        if getattr(job, "generator", None) is not None and hasattr(job, "terms"):
            assert job.generator.images == job.target
            assert job.generator.runtime.seed == job.runtime.seed


def test_claims_follow_the_intervals():
    finished = runs_of(base=50.0, gda=45.0, pcr=55.0, mgr=55.0, real_pcr=60.0, mgr_80=50.0)
    found = read(finished, rows(finished, "test_accuracy", "%"))
    held = {claim.paper: claim.held for claim in found.claims}
    there = "(fashion_mnist/50)"
    assert held[f"PCR beats the baseline {there}"] is True
    assert held[f"Adding generated images to the cross-entropy (GDA) lowers the accuracy {there}"]
    choosing = f"Choosing latents by meta-learning (MGR) beats uniform ones (PCR) {there}"
    assert held[choosing] is None
    assert held["PCR beats the baseline at 50 labels, at each of the sets"] is True
    worse = runs_of(base=50.0, gda=55.0, pcr=45.0, mgr=45.0)
    found = read(worse, rows(worse, "test_accuracy", "%"))
    assert not any(claim.held for claim in found.claims if claim.paper.startswith("PCR beats"))
    assert "gda +5" in found.text
    assert found.figures["gains"].startswith("<?xml") or "<svg" in found.figures["gains"]


def test_one_setting_proves_nothing():
    finished = [run for run in runs_of(base=1.0, pcr=2.0) if run.setting.startswith("mnist")]
    assert read(finished, rows(finished, "test_accuracy", "%")).claims == []
