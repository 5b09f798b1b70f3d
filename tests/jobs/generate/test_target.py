import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from regraft.config import (
    DataConfig,
    GeneratorConfig,
    MGRConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    RuntimeConfig,
    SetConfig,
    SslConfig,
)
from regraft.errors import InputError
from regraft.jobs.base import with_sources
from regraft.jobs.generate.generator import GeneratorJob
from regraft.jobs.generate.pretrain import PretrainJob
from regraft.jobs.generate.regularised import ImageTerm, RegularisedJob
from regraft.jobs.generate.sets import StepBatches, load_set
from regraft.jobs.generate.target import TargetJob, start_body
from regraft.models import build

DIGITS = DataConfig(name="digits", validation=0)
PAIRS = tuple((2 * i, 2 * i + 1) for i in range(5))
COARSE = SetConfig(data=DIGITS, part="first_half", groups=PAIRS)
FINE = SetConfig(data=DIGITS, part="second_half", size=20)
TEST = SetConfig(data=DIGITS, part="test")
RUNTIME = RuntimeConfig(accelerator="cpu", threads=1, checkpoint_seconds=0, log_every=2)
NET = ModelConfig(name="conv_small", width=0.5)


def jobs(**more):
    common = {"setting": "t", "runtime": RUNTIME}
    generator = GeneratorJob(
        arm="generator",
        images=COARSE,
        generator=GeneratorConfig(steps=4, batch_size=8, options={"latent": 2, "hidden": 8}),
        **common,
    )
    mlp = ModelConfig(name="mlp", options={"widths": [16]})
    small = OptimConfig(lr=0.02, batch_size=8, epochs=1, schedule="cosine")
    classifier = TargetJob(
        arm="classifier", target=COARSE, test=COARSE, model=mlp, steps=3, optim=small, **common
    )
    body = PretrainJob(
        arm="body",
        generator=generator,
        model=NET,
        pretrain=PretrainConfig(steps=3, batch_size=8),
        **common,
    )
    pssl = TargetJob(
        arm="pp_pssl",
        target=FINE,
        test=TEST,
        model=NET,
        steps=4,
        optim=small,
        start=body,
        unlabelled="pseudo",
        generator=generator,
        classifier=classifier,
        ssl=SslConfig(ssl_batch=8, ssl_warmup=2, ssl_threshold=0.0, own_head=True),
        **common,
    )
    return replace(pssl, **more)


def run(root, job, until=None):
    for one in with_sources([job]):
        progress = None
        if until is not None and one is job:

            def progress(step, *_):
                if step == until:
                    raise KeyboardInterrupt

        result = one.run(root, progress=progress)
    return result


def test_a_chain_of_generator_body_and_target_goes_on_where_it_was_killed(tmp_path):
    whole = run(tmp_path / "a", jobs())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", jobs(), until=2)
    again = run(tmp_path / "b", jobs())
    assert whole["metrics"] == again["metrics"]
    assert whole["confidence"] == again["confidence"]
    assert whole["confidence"]["images"] == 4 * 8
    folder = jobs().folder(tmp_path)
    for name in ("a", "b"):
        assert not (
            tmp_path / name / folder.relative_to(tmp_path) / "checkpoint.safetensors"
        ).exists()
    one, two = (
        load_file(tmp_path / n / folder.relative_to(tmp_path) / "model.safetensors") for n in "ab"
    )
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("kind", ["generator", "body"])
def test_generators_and_bodies_go_on_to_the_same_bits(tmp_path, kind):
    job = jobs().generator if kind == "generator" else jobs().start
    run(tmp_path / "a", job)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", job, until=2)
    run(tmp_path / "b", job)
    file = "generator.safetensors" if kind == "generator" else "model.safetensors"
    one, two = (job.folder(tmp_path / n) / file for n in "ab")
    assert one.read_bytes() == two.read_bytes()
    rows = [json.loads(r) for r in (one.parent / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == ([2, 4] if kind == "generator" else [2, 3])


@pytest.mark.parametrize("kind", ["generator", "body", "target"])
def test_a_run_killed_between_its_last_step_and_its_result_comes_to_the_same(
    tmp_path, monkeypatch, kind
):
    job = {"generator": jobs().generator, "body": jobs().start, "target": jobs()}[kind]
    whole = run(tmp_path / "a", job)
    for source in job.sources:
        run(tmp_path / "b", source)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("regraft.train.RunFolder.finish", killed)
        with pytest.raises(KeyboardInterrupt):
            job.run(tmp_path / "b")
    steps = []
    again = job.run(tmp_path / "b", progress=lambda *row: steps.append(row))
    assert not steps  # nothing is trained again
    for figures in ("metrics", "confidence"):
        assert again.get(figures) == whole.get(figures)
    name = "generator.safetensors" if kind == "generator" else "model.safetensors"
    files = [job.folder(tmp_path / n) / name for n in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    rows = [(f.parent / "metrics.jsonl").read_text() for f in files]
    assert rows[0] == rows[1]


def test_without_a_confident_image_p_ssl_is_the_plain_training(tmp_path):
    certain = SslConfig(ssl_batch=8, ssl_threshold=0.9999)
    none = run(tmp_path, jobs(ssl=certain))
    plain = run(tmp_path, jobs(arm="pp", unlabelled=None))
    assert none["metrics"]["confident"] == 0
    assert none["metrics"]["test_accuracy"] == plain["metrics"]["test_accuracy"]


def test_all_of_the_body_and_nothing_of_the_classifier_is_taken_over(tmp_path):
    body = jobs().start
    run(tmp_path, body)
    net = build(NET, num_classes=10, channels=1, image_size=8)
    head = net.head.weight.detach().clone()
    path = body.folder(tmp_path) / "model.safetensors"
    start_body(net, path)
    stored = load_file(path)
    for name, value in net.state_dict().items():
        if name.startswith("head."):
            continue
        assert torch.equal(value, stored[name])
    assert torch.equal(net.head.weight, head)
    other = build(ModelConfig(name="mlp"), num_classes=10, channels=1, image_size=8)
    with pytest.raises(InputError, match="is of another network"):
        start_body(other, path)


def test_sets_are_halved_grouped_and_cut_down():
    whole, names = load_set(replace(COARSE, part="train"), seed=0)
    halves = [load_set(replace(COARSE, part=p), seed=0)[0] for p in ("first_half", "second_half")]
    assert len(whole) == sum(map(len, halves))
    assert names == ("0+1", "2+3", "4+5", "6+7", "8+9")
    flat = [{i.numpy().tobytes() for i in h.images} for h in halves]
    assert len(flat[0] & flat[1]) < 5  # digits of 8x8 pixels repeat
    fine, _ = load_set(FINE, seed=1)
    assert fine.labels.bincount().tolist() == [2] * 10
    assert not torch.equal(fine.images, load_set(FINE, seed=2)[0].images)
    some, _ = load_set(SetConfig(data=DIGITS, groups=((3,), (8,))), seed=0)
    assert some.labels.unique().tolist() == [0, 1]
    with pytest.raises(InputError, match="class 3 does not exist, or is in two"):
        load_set(SetConfig(data=DIGITS, groups=((3,), (3,))), seed=0)


def test_batches_of_steps_show_every_image_equally_often():
    images, _ = load_set(FINE, seed=1)
    loader = StepBatches(images, 5, 8, (0.0,), (1.0,), seed=0)
    shown = torch.cat([x for x, _, _ in loader.batches(0)])
    counts = {}
    for x in shown:
        key = x.numpy().tobytes()
        counts[key] = counts.get(key, 0) + 1
    assert set(counts.values()) == {2}
    rest = [y for _, y, _ in loader.batches(0, start=3)]
    whole = [y for _, y, _ in loader.batches(0)]
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[3:], strict=True))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"generator": None}, "needs a generator"),
        ({"classifier": None}, "need a source classifier"),
        ({"unlabelled": "real"}, "needs a set of real images"),
        ({"unlabelled": None, "distil": "soft"}, "needs a teacher"),
    ],
)
def test_what_a_target_lacks_is_said(tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path, jobs(**more))


@pytest.mark.parametrize("groups", [((3,),), ((0, 1, 2),)])
def test_a_target_of_one_class_is_refused(tmp_path, groups):
    one = SetConfig(data=DIGITS, groups=groups)
    common = {"setting": "t", "runtime": RUNTIME, "target": one, "test": one, "model": NET}
    for job in (TargetJob(arm="a", **common), RegularisedJob(arm="b", **common)):
        with pytest.raises(InputError, match=r"images of 1 class\(es\): expected at least two"):
            job.run(tmp_path)


def test_a_pre_training_is_from_a_generator_or_from_images(tmp_path):
    with pytest.raises(InputError, match="give one of them"):
        replace(jobs().start, real=COARSE).run(tmp_path)


@pytest.mark.parametrize("kind", ["target", "regularised"])
def test_double_precision_is_computed_in(tmp_path, kind):
    runtime = replace(RUNTIME, precision="64-true")
    common = {"setting": "t", "arm": "a", "target": FINE, "test": TEST, "model": NET, "steps": 2}
    if kind == "target":
        ssl = SslConfig(ssl_batch=8, ssl_threshold=0.0, own_head=True)
        job = TargetJob(**common, unlabelled="target", ssl=ssl, runtime=runtime)
    else:
        terms = tuple(
            ImageTerm(images="target", loss=MGRConfig(every=1, **more))
            for more in ({"select": "gradient", "copies": True}, {"select": "uniform"})
        )
        job = RegularisedJob(**common, terms=terms, runtime=runtime)
    job.run(tmp_path)
    stored = load_file(job.folder(tmp_path) / "model.safetensors")
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float64}
