"""The recipe `mgr`: its arms are fair, and its claims are read off the numbers."""

from pathlib import Path

import pytest

from regraft.data import known_names
from regraft.errors import InputError
from regraft.jobs.generate.generator import GeneratorJob
from regraft.recipes import load_recipe
from regraft.recipes.mgr.arms import LossWeights, plans
from regraft.recipes.mgr.claims import ATTEMPTS, read
from regraft.recipes.mgr.recipe import MGRSetting, weights_of
from regraft.recipes.notes import read_data
from regraft.report import Result, Run, rows


def runs_of(settings=("fashion_mnist/50", "mnist/50"), **levels):
    """Return eight seeds of each arm in settings, at a level and with a wobble of its own."""
    found = []
    for setting in settings:
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
        "base", "base_80", "gda", "gda_naive", "gda_head", "gda_ssl", "gda_strong", "mps_gda",
        "pcr", "pcr_80", "mgr", "mgr_finite", "mgr_80", "bank_entropy", "bank_gradient",
        "real_pcr", "real_strong", "gda_real", "pcr_real", "more_real",
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
            other = job.setting.startswith("fashion_mnist/50/generator=5000")
            assert (job.generator.images == job.target) is not other
            assert job.generator.runtime.seed == job.runtime.seed


def test_claims_follow_the_intervals():
    finished = runs_of(
        base=50.0, gda=49.0, gda_naive=45.0, pcr=55.0, mgr=55.0, real_pcr=60.0, mgr_80=50.0
    )
    found = read(finished, rows(finished, "test_accuracy", "%"))
    held = {claim.paper: claim.held for claim in found.claims}
    there = "(fashion_mnist/50)"
    assert held[f"PCR beats the baseline {there}"] is True
    assert held[f"Naive augmentation (GDA at weight 1) lowers the accuracy {there}"]
    choosing = f"Choosing latents by meta-learning (MGR) beats uniform ones (PCR) {there}"
    assert held[choosing] is None
    assert held["PCR beats the baseline at 50 labels, at each of the sets"] is True
    worse = runs_of(base=50.0, gda=55.0, gda_naive=55.0, pcr=45.0, mgr=45.0)
    found = read(worse, rows(worse, "test_accuracy", "%"))
    assert not any(claim.held for claim in found.claims if claim.paper.startswith("PCR beats"))
    assert "gda +5" in found.text
    assert found.figures["gains"].startswith("<?xml") or "<svg" in found.figures["gains"]


def test_one_setting_proves_nothing():
    finished = [run for run in runs_of(base=1.0, pcr=2.0) if run.setting.startswith("mnist")]
    assert read(finished, rows(finished, "test_accuracy", "%")).claims == []


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_every_set_of_a_scale_is_known(scale):
    names = {
        job.target.data.name for job in load_recipe("mgr", scale, 1).jobs if hasattr(job, "target")
    }
    names |= {
        job.real.data.name for job in load_recipe("mgr", scale, 1).jobs if hasattr(job, "real")
    }
    assert names <= set(known_names())


def test_generators_of_other_lengths_and_images_have_folders_of_their_own():
    jobs = [job for job in load_recipe("mgr", "cpu").jobs if isinstance(job, GeneratorJob)]
    assert len({job.folder(Path()) for job in jobs}) == len({str(job.config()) for job in jobs})


def test_a_ratio_changes_the_generated_images_alone():
    found = {}
    for job in load_recipe("mgr", "cpu", 1).jobs:
        if job.setting.startswith("fashion_mnist/50/ratio=") and job.arm == "pcr":
            found[job.setting.rpartition("=")[2]] = job.terms[0].loss.batch
            assert job.optim.batch_size == 16
    assert found == {"0.25": 4, "4": 64, "16": 256}


def test_the_start_is_a_network_of_letters_shared_by_the_arms():
    jobs = load_recipe("mgr", "cpu").jobs
    starts = {
        (job.setting, job.arm, job.runtime.seed): job.start.folder(Path())
        for job in jobs
        if getattr(job, "start", None) is not None
    }
    assert {s for s, _, _ in starts} == {"fashion_mnist/50/pretrained", "mnist/50/pretrained"}
    assert all(folder.name == f"seed{seed}" for (_, _, seed), folder in starts.items())
    assert len(set(starts.values())) == 8


def curves_of(fewest, most):
    """Return runs of two ends of each curve, at which PCR gains `fewest` and `most` points."""
    first, ends = "fashion_mnist/50", ("fashion_mnist/5000", "fashion_mnist/50/ratio=4")
    ends += ("fashion_mnist/50/generator=50x25",)
    runs = runs_of(
        (first,),
        base=50.0,
        gda=50.0,
        gda_naive=49.0,
        pcr=50.0 + fewest,
        mgr=50.0 + fewest,
        cas=60.0,
    )
    return runs + runs_of(
        ends, base=50.0, gda=50.0, gda_naive=49.0, pcr=50.0 + most, mgr=50.0 + most, cas=30.0
    )


@pytest.mark.parametrize(
    ("fewest", "most", "held"), [(9.0, 2.0, True), (2.0, 9.0, False), (4.0, 4.0, None)]
)
def test_claims_on_curves_have_three_states(fewest, most, held):
    finished = curves_of(fewest, most)
    found = read(finished, rows(finished, "test_accuracy", "%"))
    claims = {claim.paper: claim for claim in found.claims}
    assert claims["PCR gains more the fewer labels there are"].held is held
    assert claims["MGR gains more the fewer labels there are"].held is held
    better = "PCR gains more the better the generator is (CAS)"
    assert claims[better].held is held  # the first setting has the better generator
    more = "PCR gains more with more generated images for each real one"
    assert claims[more].held is (None if held is None else not held)
    hurts = [c for c in found.claims if c.paper.startswith("Naive augmentation (GDA) lowers")]
    assert [c.held for c in hurts] == [True] * 3
    assert {"gains", "labels", "score", "ratio"} == set(found.figures)
    assert "5000" in found.figures["labels"]
    assert "cas" not in found.text


def test_jobs_have_the_weights_that_were_chosen_for_their_setting():
    chosen = read_data("regraft.recipes.mgr", "chosen.toml")
    jobs = {(j.setting, j.arm): j for j in load_recipe("mgr", "cpu", 1).jobs}
    for setting, own in chosen.items():
        here = "fashion_mnist/50" if setting == "default" else setting
        for arm, field in (("pcr", "pcr"), ("mgr", "pcr"), ("gda", "ce"), ("real_pcr", "real")):
            assert jobs[here, arm].terms[0].loss.weight == own[field]
        assert jobs[here, "gda_naive"].terms[0].loss.weight == 1
    assert jobs["fashion_mnist/50", "gda_head"].terms[0].loss.weight == chosen["default"]["head"]
    larger = {j.terms[0].loss.weight for j in load_recipe("mgr", "gpu", 1).jobs if j.arm == "pcr"}
    assert larger == {chosen["default"]["pcr"]}
    with pytest.raises(InputError, match=r"chosen.toml has no 'fast': expected one of default"):
        weights_of("fast")


def test_an_arm_that_does_not_exist_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="no arm 'gda_hed': expected gda_head"):
        MGRSetting(data="digits", size=50, seeds=1, arms=("core", "gda_hed")).jobs()


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu", "paper"])
def test_every_arm_has_its_control_in_the_same_setting(scale):
    jobs = [job for job in load_recipe("mgr", scale, 1).jobs if hasattr(job, "terms")]
    arms = {(job.setting, job.arm) for job in jobs}
    free = {job.arm for job in jobs if job.control is None}
    assert free == {"base", "cas"} & {job.arm for job in jobs}
    assert all((job.setting, job.control) in arms for job in jobs if job.control is not None)
