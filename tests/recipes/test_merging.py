import dataclasses
import importlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig
from regraft.data import load
from regraft.errors import InputError
from regraft.generators import CondenseConfig, CondensedSet
from regraft.jobs.base import with_sources
from regraft.jobs.merge.job import MergeArm, load_all
from regraft.jobs.merge.models import read_models
from regraft.jobs.merge.surrogate import surrogate
from regraft.models import build
from regraft.recipes import SCALES, load_recipe, reproduce
from regraft.recipes.merging.claims import by_angle
from regraft.recipes.merging.recipe import FewImages, Pair
from regraft.recipes.recipe import Scale

module = importlib.import_module("regraft.recipes.merging.recipe")

DIGITS = DataConfig(name="digits", normalize="none", train_size=200)
FEW = OptimConfig(lr=0.3, epochs=12, batch_size=500, schedule="multistep")
FEW_IMAGES = FewImages(sets=("condensed", "random", "herding"), matching=FEW, scratch=FEW)
CONDENSED = dataclasses.replace(FEW_IMAGES, sets=("condensed",))
PAIR = Pair(
    setting="digits+rotated=90/mlp",
    seeds=1,
    arms=(),
    a=DIGITS,
    b=dataclasses.replace(DIGITS, rotate=90.0),
    model=ModelConfig(name="mlp", options={"widths": [12, 12]}),
    train=OptimConfig(lr=0.2, weight_decay=0.0, epochs=8, batch_size=50, schedule="constant"),
    runtime=RuntimeConfig(accelerator="cpu", threads=1, eval_every=8),
    merge=MergeArm(points=5, per_class=2, statistics=100),
    condense=CondenseConfig(restarts=2, outer=2, inner=2),
    condense_model=ModelConfig(name="mlp", options={"widths": [12]}),
)
FULL = OptimConfig(lr=0.1, epochs=5, batch_size=100, schedule="constant")
SPLIT = dataclasses.replace(
    PAIR,
    setting="digits/classes",
    a=dataclasses.replace(DIGITS, only_classes=(0, 1, 2, 3, 4)),
    b=dataclasses.replace(DIGITS, only_classes=(5, 6, 7, 8, 9)),
)
SAME = dataclasses.replace(
    PAIR,
    setting="digits/resnet8/same-data",
    b=DIGITS,
    model=ModelConfig(name="resnet8", width=0.25),
    merge=dataclasses.replace(PAIR.merge, points=3),
)


def everything():
    jobs = [*PAIR.without_data(), *PAIR.with_all_data(FULL), *PAIR.with_few_images(FEW_IMAGES)]
    return [*jobs, *SPLIT.with_few_images(CONDENSED), *SAME.with_repairs()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every arm of every kind, run once at a tiny size: arm -> (job, result), and the root."""
    root = tmp_path_factory.mktemp("merging")
    found = {}
    for job in with_sources([job.with_seed(1) for job in everything()]):
        found[job.setting, job.arm] = (job, job.run(root))
    return found, root


def state_of(job, root):
    return safetensors.torch.load_file(job.folder(root) / "model.safetensors")


def accuracy(job, state, data):
    """Measure as plainly as it can be said."""
    splits = load(data)
    network = build(job.a.model, num_classes=10, channels=1, image_size=8)
    network.load_state_dict(state)
    network.eval()
    with torch.no_grad():
        answers = network(splits.test.images.float() / 255).argmax(1)
    return 100 * (answers == splits.test.labels).double().mean().item()


def rows_of(job, root, split):
    lines = (job.folder(root) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


# What is run.


@pytest.mark.parametrize("scale", SCALES)
def test_parents_start_from_different_seeds_and_one_network_serves_many_merges(scale):
    jobs = load_recipe("merging", scale, 2).jobs
    merges = [job for job in jobs if hasattr(job, "merge")]
    assert merges
    for job in merges:
        assert job.a.runtime.seed == job.runtime.seed
        assert job.b.runtime.seed not in {j.a.runtime.seed for j in merges}
        assert job.a.model == job.b.model
        assert job.a.data.normalize == job.b.data.normalize != "own"
        assert (job.merge.surrogate == "condensed") == bool(job.condensed)
        assert job.merge.method in ("straight_through", "scratch") or not job.condensed
    places = {job.folder(Path()): i for i, job in enumerate(jobs)}
    for job in jobs:
        assert all(places[s.folder(Path())] < places[job.folder(Path())] for s in job.sources)


def test_the_paper_scale_holds_the_published_settings():
    jobs = {
        (j.setting, j.arm): j
        for j in load_recipe("merging", "paper", 1).jobs
        if hasattr(j, "merge")
    }
    mnist = "mnist+fashion_mnist/mlp"
    for (setting, arm), (lr, epochs, batch) in {
        (mnist, "ste_full"): (0.05, 100, 500),
        (mnist, "ste_condensed"): (0.5, 5000, 500),
        (mnist, "ste_random"): (0.5, 5000, 500),
        (mnist, "scratch_condensed"): (0.1, 200, 500),
        ("mnist/mlp/rotated=45", "ste_full"): (0.1, 5, 500),
        ("mnist/mlp/rotated=45", "ste_condensed"): (0.1, 1000, 500),
        ("cifar10/resnet20/width=16/classes=0-4+5-9", "ste_full"): (1.0, 100, 250),
        ("cifar10/resnet20/width=16/classes=0-4+5-9", "ste_random"): (0.1, 1000, 100),
    }.items():
        optim = jobs[setting, arm].merge.optim
        assert (optim.lr, optim.epochs, optim.batch_size) == (lr, epochs, batch), (setting, arm)
        assert (optim.momentum, optim.optimizer) == (0.9, "sgd")
    parent = jobs[mnist, "ste_full"].a
    assert parent.model.options == {"widths": [512, 512, 512], "init": "torch"}
    assert (parent.optim.lr, parent.optim.epochs, parent.optim.batch_size) == (0.1, 100, 500)
    assert (parent.optim.weight_decay, parent.data.normalize) == (0.0, "none")
    assert {j.merge.points for j in jobs.values()} == {25}
    assert jobs[mnist, "ste_condensed"].merge.per_class == 10
    assert jobs[mnist, "ste_condensed"].condensed[0].condense.restarts == 1000
    angles = by_angle(setting for setting, _ in jobs)
    assert list(angles) == [0, 15, 30, 45, 60, 75, 90]


def test_what_changes_no_number_is_no_part_of_a_merges_identity():
    job = PAIR.with_few_images(CONDENSED)[0].with_seed(3)
    elsewhere = job.with_data_root("elsewhere")
    assert elsewhere.config() == job.config()
    assert {s.data.root for s in elsewhere.sources} == {"elsewhere"}
    assert job.with_seed(4).config() != job.config()
    assert len(job.sources) == 4


# What is measured.


def test_every_arm_has_its_numbers(finished):
    found, _ = finished
    for (setting, arm), (job, result) in found.items():
        metrics = result["metrics"]
        if not hasattr(job, "merge"):
            continue
        assert 0 <= metrics["test_accuracy"] <= 100
        merged = job.merge.method in ("average", "weights", "activations", "straight_through")
        assert ("path_accuracy" in metrics) is merged, (setting, arm)
        if job.a.data != job.b.data:
            both = [metrics[f"test_accuracy_{c}"] for c in "ab"]
            assert metrics["test_accuracy"] == pytest.approx(sum(both) / 2)
        else:
            assert "test_accuracy_a" not in metrics


def test_the_average_is_the_average_and_parents_are_the_parents(finished):
    found, root = finished
    job, result = found[PAIR.setting, "average"]
    a, b = state_of(job.a, root), state_of(job.b, root)
    assert not a["features.1.weight"].allclose(b["features.1.weight"])
    for name, state in {
        "average": {k: (a[k] + b[k]) / 2 for k in a},
        "parent_a": a,
        "parent_b": b,
    }.items():
        metrics = found[PAIR.setting, name][1]["metrics"]
        for letter, data in (("a", job.a.data), ("b", job.b.data)):
            measured = metrics[f"test_accuracy_{letter}"]
            assert measured == pytest.approx(accuracy(job, state, data)), name
    assert result["stored_bytes"] == sum(4 * t.numel() for t in a.values())
    assert found[PAIR.setting, "ensemble"][1]["stored_bytes"] == 2 * result["stored_bytes"]


@pytest.mark.parametrize(
    "arm", ["weight_matching", "activation_matching", "ste_full", "ste_condensed", "ste_random"]
)
def test_the_path_leads_from_parent_to_parent_through_the_merged_network(finished, arm):
    found, root = finished
    job, result = found[PAIR.setting, arm]
    path = rows_of(job, root, "path")
    assert [row["at"] for row in path] == [0, 0.25, 0.5, 0.75, 1]
    ends = [found[PAIR.setting, f"parent_{c}"][1]["metrics"]["test_accuracy"] for c in "ab"]
    assert [path[0]["accuracy"], path[-1]["accuracy"]] == pytest.approx(
        ends
    )  # permuted, not changed
    metrics = result["metrics"]
    assert path[2]["accuracy"] == pytest.approx(metrics["test_accuracy"])
    assert path[2]["accuracy_b"] == pytest.approx(metrics["test_accuracy_b"])
    assert metrics["path_accuracy"] == pytest.approx(sum(row["accuracy"] for row in path) / 5)
    state = state_of(job, root)
    assert metrics["test_accuracy_b"] == pytest.approx(accuracy(job, state, job.b.data))


def test_repairs_take_what_is_merged_further(finished):
    found, root = finished
    states = {
        end: state_of(found[SAME.setting, f"weight_matching{end}"][0], root)
        for end in ("", "_reset", "_repair")
    }
    plain, reset, repaired = states.values()
    name = "features.1.running_mean"
    assert not plain[name].allclose(reset[name])
    assert plain["features.0.weight"].equal(reset["features.0.weight"])
    changed = [k for k in plain if not reset[k].allclose(repaired[k])]
    assert any(k.endswith("weight") for k in changed)


def test_few_images_are_few_and_of_both_sets(finished):
    found, root = finished
    for arm in ("ste_condensed", "ste_random", "scratch_herding"):
        assert found[PAIR.setting, arm][1]["metrics"]["surrogate_images"] == 40
    assert found[PAIR.setting, "ste_full"][1]["metrics"]["surrogate_images"] == 400
    # Of split classes each set has its own five, and the labels stay what they are.
    job, result = found[SPLIT.setting, "ste_condensed"]
    assert result["metrics"]["surrogate_images"] == 20
    own = CondensedSet.load(job.condensed[1].file(root))
    assert own.classes == ("5", "6", "7", "8", "9")
    used = images_of(job, root)
    assert sorted(y for _, y in used) == [c for c in range(10) for _ in range(2)]
    labels = [int(own.classes[y]) for y in own.labels.tolist()]
    rounded = [(plain(x), y) for x, y in zip(own.images, labels, strict=True)]
    assert set(rounded) <= {(plain(x), y) for x, y in used}
    merge = dataclasses.replace(job.merge, surrogate="random")
    chosen = images_of(dataclasses.replace(job, merge=merge, condensed=()), root)
    assert sorted(y for _, y in chosen) == sorted(y for _, y in used)


def plain(image):
    return tuple(round(v, 4) for v in image.flatten().tolist())


def images_of(job, root):
    """Return the images and labels that a job learns from."""
    config = job.merging(root)
    splits = [load(data) for data in config.data]
    batches, _ = surrogate(config, read_models(config, splits=splits), job.folder(root))
    return [(x, int(y)) for xs, ys, _ in batches.batches(0) for x, y in zip(xs, ys, strict=True)]


def test_a_network_from_scratch_has_not_seen_the_parents(finished):
    found, root = finished
    job, result = found[PAIR.setting, "scratch_random"]
    assert result["trainable_parameters"] == result["stored_bytes"] // 4
    assert rows_of(job, root, "path") == []
    assert len(rows_of(job, root, "train")) == 12
    elsewhere = dataclasses.replace(job, merge=dataclasses.replace(job.merge, method="average"))
    assert elsewhere.config() != job.config()


# Interrupted.


class KilledError(Exception):
    pass


@pytest.mark.parametrize("arm", ["ste_full", "scratch_random"])
def test_a_killed_run_goes_on_to_the_same_numbers(finished, tmp_path, arm):
    found, root = finished
    job, result = found[PAIR.setting, arm]
    hasty = dataclasses.replace(
        job, runtime=dataclasses.replace(job.runtime, checkpoint_seconds=0.0)
    )
    for source in job.sources:
        target = source.folder(tmp_path)
        target.parent.mkdir(parents=True)
        target.symlink_to(source.folder(root))
    for at in (3, 11):

        def stop(step, steps, row, at=at):
            if step >= at:
                raise KilledError

        with pytest.raises(KilledError):
            hasty.run(tmp_path, progress=stop)
        assert (job.folder(tmp_path) / "result.json").exists() is False
    again = hasty.run(tmp_path)
    # Everything but the time and the memory it took.
    assert again["metrics"] == result["metrics"]
    if arm == "ste_full":
        for name, tensor in state_of(job, root).items():
            assert state_of(job, tmp_path)[name].equal(tensor)
    one, two = ((job.folder(r) / "metrics.jsonl").read_bytes() for r in (root, tmp_path))
    assert one == two
    stamp = (job.folder(tmp_path) / "result.json").stat().st_mtime_ns
    assert hasty.run(tmp_path)["metrics"] == result["metrics"]
    assert (job.folder(tmp_path) / "result.json").stat().st_mtime_ns == stamp


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize": "own"}, r"mean of digits is \(0\.0,\) and of digits \(0\.\d+,\)"),
        ({"image_size": 6}, "image_size of digits is 8 and of digits 6"),
    ],
)
def test_sets_that_no_single_network_can_be_fed_are_refused(change, message):
    configs = (DIGITS, dataclasses.replace(DIGITS, **change))
    with pytest.raises(InputError, match=message):
        load_all(configs)


def test_a_merge_without_its_parents_says_so(tmp_path):
    job = PAIR.without_data()[0].with_seed(1)
    with pytest.raises(InputError, match="is missing: a merge needs its trained parents"):
        job.run(tmp_path)


def test_parents_of_two_architectures_are_refused(tmp_path):
    job = PAIR.without_data()[0]
    other = dataclasses.replace(job.b, model=ModelConfig(name="conv_small"))
    with pytest.raises(InputError, match="a is a mlp and b a conv_small"):
        dataclasses.replace(job, b=other).run(tmp_path)


@pytest.mark.parametrize("group", ["with_all_data", "repaired", "with_few_images", "with_al_data"])
def test_a_group_of_arms_without_its_settings_is_refused(group):
    message = (
        f"scales.toml: .*/mlp: arms '{group}' are unknown, or their key all_data or few_images"
    )
    with pytest.raises(InputError, match=message):
        dataclasses.replace(PAIR, arms=(group,)).jobs()


# From the command to the report.


def test_a_recipe_leaves_its_tables_and_its_path(finished, monkeypatch, tmp_path):
    _, root = finished
    monkeypatch.setattr(module, "_groups", lambda _: [Scale(everything, 1)])
    recipe = load_recipe("merging", "smoke", 1)
    outcome = reproduce(recipe, root, workers=1, results=tmp_path)
    page = (tmp_path / "merging_smoke.md").read_text()
    for words in ("Test accuracy", "Path accuracy", "Accuracy barrier", "Condensing a set took"):
        assert words in page
    assert {p.name for p in tmp_path.glob("*.svg")} >= {
        "merging_smoke-path-sets.svg",
        "merging_smoke-path-same-data.svg",
    }
    arms = {row.arm for row in outcome.rows if row.setting == PAIR.setting}
    assert arms == {job.arm for job in everything() if job.setting == PAIR.setting}
    assert json.loads((tmp_path / "merging_smoke.json").read_text())["recipe"] == "merging"


def test_the_scale_cpu_repairs_what_needs_no_small_set_and_reports_fresh_seeds():
    jobs = [job for job in load_recipe("merging", "cpu").jobs if hasattr(job, "merge")]
    seeds = {}
    for job in jobs:
        seeds.setdefault((job.setting, job.arm), []).append(job.runtime.seed)
    pair, same = "mnist+fashion_mnist/mlp", "mnist/resnet8/width=2/same-data"
    arms = {arm: at for (setting, arm), at in seeds.items() if setting == pair}
    assert all(at == [1, 2, 3, 4, 5, 6] for at in arms.values())
    assert {at[0] for (setting, _), at in seeds.items() if setting == same} == {21}
    for arm in ("average", "weight_matching", "ste_full"):
        plain, repaired = (
            next(j for j in jobs if (j.setting, j.arm) == (pair, f"{arm}{end}"))
            for end in ("", "_repair")
        )
        assert dataclasses.replace(repaired.merge, repair="none") == plain.merge
        assert repaired.merge.repair == "repair"
    (condensed,) = [
        j for j in jobs if (j.setting, j.arm, j.runtime.seed) == (pair, "ste_condensed", 1)
    ]
    assert {c.condense.init for c in condensed.condensed} == {"real"}
