import itertools
import json
from dataclasses import replace

import pytest
import torch

from regraft.checkpoints.read import read_checkpoint
from regraft.checkpoints.write import write_model
from regraft.config import (
    DataConfig,
    EpisodeConfig,
    FewshotConfig,
    ModelConfig,
    OuterConfig,
    RuntimeConfig,
)
from regraft.errors import DivergenceError, InputError
from regraft.fewshot import Episodes, EpisodeSampler
from regraft.jobs.fewshot.choice import RateChoice
from regraft.jobs.fewshot.job import FewshotJob
from regraft.jobs.fewshot.loop import lr_share
from regraft.tickets import load_ticket

JOB = FewshotJob(
    setting="digits",
    arm="meta-ticket",
    data=DataConfig(name="digits"),
    model=ModelConfig(name="mlp", options={"widths": [16, 12], "norm": "batch"}),
    episodes=EpisodeConfig(ways=3, shots=1),
    fewshot=FewshotConfig(rerandomise=0.5, rerandomise_every=4),
    outer=OuterConfig(steps=12, tasks=2, warmup=2),
    test_tasks=20,
    curve_tasks=10,
    curve_points=3,
    runtime=RuntimeConfig(accelerator="cpu", threads=1, log_every=5, checkpoint_seconds=0.0),
)


def of(method, **how):
    return replace(JOB, arm=method, fewshot=FewshotConfig(method=method), **how)


class StopError(Exception):
    pass


@pytest.mark.parametrize("method", ["meta-ticket", "maml", "meta-sgd", "mgaug", "protonet"])
def test_an_interrupted_run_ends_with_the_same_numbers(tmp_path, method):
    job = JOB if method == "meta-ticket" else of(method)

    def stop(step, steps, row):
        if step == 7:
            raise StopError

    whole = job.run(tmp_path / "whole")
    with pytest.raises(StopError):
        job.run(tmp_path / "parts", progress=stop)
    again = job.run(tmp_path / "parts")
    assert again["metrics"] == whole["metrics"]
    rows = [
        job.folder(tmp_path / name).joinpath("metrics.jsonl").read_bytes()
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]


def test_a_meta_ticket_is_a_ticket_of_emergent_sparsity(tmp_path):
    result = JOB.run(tmp_path)
    ticket = load_ticket(JOB.folder(tmp_path))
    for name, mask in ticket.masks().items():
        share = result["metrics"][f"sparsity/{name}"]
        assert abs(1 - float(mask.float().mean()) - share) < 1e-6
        assert share > 0
    assert ticket.about["fewshot"]["method"] == "meta-ticket"
    assert not set(result["classes"]["train"]) & set(result["classes"]["held-out classes"])


def test_controls_take_sparsity_or_shuffle(tmp_path):
    JOB.run(tmp_path)
    want = {n: int(m.sum()) for n, m in load_ticket(JOB.folder(tmp_path)).masks().items()}
    for method in ("random-mask", "shuffled-mask"):
        job = of(method, source=JOB)
        train, _, _ = job.sets()
        masks = job.learner(train, tmp_path).masks()
        assert {n: int(m.sum()) for n, m in masks.items()} == want
        assert not all(
            torch.equal(m.bool(), load_ticket(JOB.folder(tmp_path)).masks()[n])
            for n, m in masks.items()
        )
        assert job.run(tmp_path)["seconds"] == 0.0


def test_every_arm_starts_from_the_weights_of_the_ticket(tmp_path):
    train, _, _ = JOB.sets()
    ticket = JOB.learner(train, tmp_path)
    for method in ("maml", "untrained", "boil", "protonet"):
        learner = of(method).learner(train, tmp_path)
        values = dict(learner.network.named_parameters())
        for name, value in ticket.values().items():
            torch.testing.assert_close(values[name].detach(), value.detach())


def test_a_network_is_saved_with_what_adapts_it(tmp_path):
    job = of("meta-sgd")
    job.run(tmp_path)
    stored = read_checkpoint(job.folder(tmp_path))
    assert stored.about["fewshot"]["method"] == "meta-sgd"
    assert "rates.head.weight" in stored


@pytest.mark.parametrize("method", ["anil", "boil", "mgaug", "reptile", "logistic", "prototypes"])
def test_every_method_runs(tmp_path, method):
    metrics = of(method).run(tmp_path)["metrics"]
    assert 20 < metrics["test_accuracy"] <= 100


@pytest.mark.parametrize("method", ["maml", "prototypes"])
def test_images_are_normalised_as_the_weights_of_the_start_were(tmp_path, method, monkeypatch):
    first = of("maml")
    first.run(tmp_path)
    stored = read_checkpoint(first.folder(tmp_path))
    about = {**stored.about, "mean": [0.25], "std": [0.75]}
    state = {n: stored[n] for n in stored if not n.startswith("rates.")}
    write_model(tmp_path / "weights.safetensors", state, about)
    drawn = []
    sampler = FewshotJob.sampler
    monkeypatch.setattr(
        FewshotJob, "sampler", lambda s, i, *a: drawn.append((i.mean, i.std)) or sampler(s, i, *a)
    )
    job = of(method, checkpoint=str(tmp_path / "weights.safetensors"))
    job.run(tmp_path / "second")
    assert set(drawn) == {((0.25,), (0.75,))}
    assert len(drawn) >= 3
    after = read_checkpoint(job.folder(tmp_path / "second")).about
    assert (after["mean"], after["std"]) == ([0.25], [0.75])


def test_the_official_runs_are_prepared_as_the_set_is(monkeypatch):
    paper = torch.ones(2, 20, 1, 10, 10)
    paper[..., 2:4, 2:4] = 0.0  # a drawing: ink black on white paper
    y = torch.arange(20).expand(2, -1)
    sizes = []

    def runs(root, *, size):
        sizes.append(size)
        return Episodes(paper, y, paper, y)

    monkeypatch.setattr("regraft.jobs.fewshot.job.one_shot_runs", runs)
    job = replace(JOB, data=DataConfig(name="omniglot"), episodes=EpisodeConfig(ways=20, shots=1))
    images = torch.zeros(40, 3, 10, 10, dtype=torch.uint8)
    labels = torch.arange(20).repeat_interleave(2)
    how = {"ways": 20, "shots": 1, "queries": 1, "seed": 1}
    sampler = EpisodeSampler(images, labels, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5), **how)
    notes = []
    official = job._official(sampler, notes)
    assert (sizes, notes) == ([10], [])
    assert official.support_x.shape == official.query_x.shape == (2, 20, 3, 10, 10)
    for at, ink in (((2, 2), 1.0), ((0, 0), 0.0)):
        want = (ink - torch.tensor([0.1, 0.2, 0.3])) / 0.5
        torch.testing.assert_close(official.query_x[0, 0, :, at[0], at[1]], want)
    assert replace(job, episodes=EpisodeConfig(ways=5))._official(sampler, notes) is None

    def missing(root, *, size):
        raise InputError("all_runs.zip cannot be read")

    monkeypatch.setattr("regraft.jobs.fewshot.job.one_shot_runs", missing)
    assert job._official(sampler, notes) is None
    assert notes == ["the official one-shot runs were not measured: all_runs.zip cannot be read"]


def test_the_learning_rate_warms_up_and_falls():
    outer = OuterConfig(steps=10, warmup=3)
    shares = [lr_share(outer, s) for s in range(10)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a > b for a, b in itertools.pairwise(shares[3:]))
    assert lr_share(replace(outer, schedule="constant"), 9) == 1.0


def test_what_cannot_be_run_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="control of a finished meta-ticket"):
        of("random-mask").run(tmp_path)
    with pytest.raises(InputError, match="keeps random weights"):
        replace(JOB, checkpoint="hub").run(tmp_path)
    with pytest.raises(InputError, match="in float32"):
        replace(JOB, runtime=replace(JOB.runtime, precision="64-true")).run(tmp_path)
    with pytest.raises(InputError, match="--ways 1: expected at least 2"):
        replace(JOB, episodes=EpisodeConfig(ways=1)).run(tmp_path)
    assert not any(tmp_path.iterdir())


def test_too_few_classes_to_hold_some_out_is_said(tmp_path):
    result = of("maml", episodes=EpisodeConfig(ways=6)).run(tmp_path)
    assert "no classes are held out: 10 are too few" in result["notes"][0]


def test_the_result_is_json(tmp_path):
    JOB.run(tmp_path)
    assert json.loads((JOB.folder(tmp_path) / "result.json").read_text())["schema"] == 1


def test_the_adaptation_of_an_episode_is_kept(tmp_path):
    rows = JOB.run(tmp_path)["episode"]
    assert len(rows) == 3
    assert all(len(row) == 1 + JOB.fewshot.test_steps for row in rows)
    assert all(0 <= p <= 100 for row in rows for p in row)
    assert of("protonet").run(tmp_path)["episode"] == []


def choosing(rates):
    trials = tuple(
        replace(
            of("maml", setting="selection/digits"),
            outer=replace(JOB.outer, lr=rate),
        ).with_seed(seed)
        for rate in rates
        for seed in (11, 12)
    )
    runtime = replace(JOB.runtime, seed=11)
    return RateChoice(setting="selection/digits", arm="maml", runtime=runtime, trials=trials)


def test_the_rate_of_the_best_trials_is_taken(tmp_path):
    choice = choosing((1e-6, 3e-2))
    with pytest.raises(InputError, match="needs its rate first"):
        of("maml", choice=choice).run(tmp_path)
    metrics = choice.run(tmp_path)["metrics"]
    by_rate = {rate: metrics[f"held_out/{rate:g}"] for rate in (1e-6, 3e-2)}
    assert metrics["lr"] == max(by_rate, key=by_rate.get)
    assert metrics["trials"] == 4
    tuned = of("maml", choice=choice).run(tmp_path)
    plain = of("maml", outer=replace(JOB.outer, lr=metrics["lr"])).run(tmp_path / "plain")
    assert tuned["metrics"].pop("lr") == metrics["lr"]
    assert tuned["metrics"] == plain["metrics"]


def test_a_run_that_diverges_with_its_chosen_rate_counts_as_guessing(tmp_path, monkeypatch):
    monkeypatch.setattr(RateChoice, "chosen", lambda self, root: 1e30)
    ticket = replace(of("maml", choice=choosing((1e-2,))), arm="meta-ticket")
    result = ticket.run(tmp_path)
    assert result["metrics"] == {
        "test_accuracy": 100 / 3,
        "test_accuracy_by_support": 100 / 3,
        "lr": 1e30,
        "diverged": 1.0,
    }
    control = of("random-mask", source=ticket).run(tmp_path)["metrics"]
    assert control["diverged"] == 1
    assert control["test_accuracy"] == 100 / 3
    with pytest.raises(DivergenceError):
        of("maml", outer=replace(JOB.outer, lr=1e30)).run(tmp_path / "alone")


def test_a_rate_that_diverges_is_out_and_all_of_them_are_an_error(tmp_path):
    assert choosing((1e-2, 1e30)).run(tmp_path / "one")["metrics"]["lr"] == 1e-2
    with pytest.raises(DivergenceError, match="every rate of maml in selection/digits diverged"):
        choosing((1e30, 1e31)).run(tmp_path / "none")
