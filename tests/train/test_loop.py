import shlex
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training import Points, Stop, equal, network, plain_network, rows, runtime, stop_at, train

from regraft.cli import main
from regraft.config import OptimConfig
from regraft.errors import DivergenceError, InputError
from regraft.train import (
    Batches,
    RunFolder,
    evaluate,
    fit,
    load_state,
    lr_factor,
)


def written_out(model, source, optim):
    """Train as the loop does, written without it: SGD, cross-entropy, one batch a step."""
    model.train()
    options = {"lr": optim.lr, "momentum": 0.9, "weight_decay": optim.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), **options)
    factor = lr_factor(optim, len(source))
    losses = []
    for epoch in range(optim.epochs):
        for x, y, _ in source.batches(epoch):
            optimizer.param_groups[0]["lr"] = optim.lr * factor(len(losses))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y, label_smoothing=optim.label_smoothing)
            loss.backward()
            if optim.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
            optimizer.step()
            losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "more", [{}, {"label_smoothing": 0.2}, {"clip_norm": 0.05}, {"schedule": "epoch-cosine"}]
)
def test_the_loop_is_the_loop_written_out(tmp_path, more):
    optim = OptimConfig(lr=0.2, epochs=4, **more)
    ours, plain = network(), network()
    train(tmp_path, ours, optim=optim, run=runtime(log_every=1))
    losses = written_out(plain, Points(), optim)
    assert equal(ours, plain)
    logged = [row["loss"] for row in rows(tmp_path) if row["split"] == "train"]
    assert logged == pytest.approx(losses, rel=1e-6)
    without = network()
    written_out(without, Points(), OptimConfig(lr=0.2, epochs=4, schedule="constant"))
    assert not equal(ours, without)


def test_the_metrics_tell_every_interval_and_epoch(tmp_path):
    result = train(tmp_path, network())
    logged = rows(tmp_path)
    at = {s: [r["step"] for r in logged if r["split"] == s] for s in ("train", "validation")}
    # Five steps an epoch, a row every three steps and at the end of each epoch.
    assert at["train"] == [3, 5, 6, 9, 10, 12, 15]
    assert at["validation"] == [5, 10, 15]
    assert logged[-1]["split"] == "test"
    assert result["metrics"]["test_accuracy"] == logged[-1]["accuracy"]
    assert result["trainable_parameters"] == 6 * 8 + 8 + 16 + 8 * 3 + 3
    assert result["peak_memory_bytes"] > 0


@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_accumulated_chunks_give_the_gradient_of_the_whole_batch(tmp_path, chunks):
    run = runtime(precision="64-true")
    models = [plain_network(), plain_network()]
    for model, accumulate in zip(models, (1, chunks), strict=True):
        optim = OptimConfig(lr=0.3, epochs=3, accumulate=accumulate, label_smoothing=0.1)
        train(tmp_path / str(accumulate), model, optim=optim, run=run)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_the_penalty_counts_once_however_many_chunks(tmp_path):
    def penalty(model):
        return 0.1 * model[0].weight.square().sum()

    run = runtime(precision="64-true")
    models = [plain_network() for _ in range(3)]
    for i, (accumulate, term) in enumerate(((1, penalty), (3, penalty), (1, None))):
        optim = OptimConfig(lr=0.1, epochs=1, accumulate=accumulate)
        train(tmp_path / str(i), models[i], optim=optim, run=run, penalty=term)
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight, rtol=0, atol=1e-10)
    assert models[0][0].weight.norm() < models[2][0].weight.norm()


class Counter:
    """A stepper that remembers how often it was stepped."""

    def __init__(self):
        self.count = 0

    def step(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.mark.parametrize("seconds", [0.0, 1e9])
@pytest.mark.parametrize("stops", [(1,), (5,), (7,), (2, 4, 9, 14), (15,)])
def test_going_on_in_the_middle_of_an_epoch_equals_never_having_stopped(tmp_path, stops, seconds):
    models = [network(nn.Dropout(0.4)), network(nn.Dropout(0.4))]
    counter = Counter()
    whole = train(tmp_path / "whole", models[0])
    run = runtime(checkpoint_seconds=seconds)
    for step in stops:
        saved = (tmp_path / "parts" / "checkpoint.safetensors").exists()
        # With a checkpoint it must not matter which weights the network has at first.
        broken = network(nn.Dropout(0.4), seed=step if saved else 3)
        with pytest.raises(Stop):
            train(
                tmp_path / "parts",
                broken,
                run=run,
                steppers={"count": Counter()},
                progress=stop_at(step),
            )
    found = train(tmp_path / "parts", models[1], run=run, steppers={"count": counter})
    assert equal(*models)
    assert found["metrics"] == whole["metrics"]
    assert counter.count == 15
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_stopped_between_its_end_and_its_result_a_run_repeats_only_the_end(tmp_path):
    whole, parts = network(), network()
    train(tmp_path / "whole", whole)
    train(tmp_path / "parts", parts, finish=False)  # as if killed before the result was written
    again = network(seed=8)

    def no_step(*_):
        pytest.fail("a step was taken")

    train(tmp_path / "parts", again, progress=no_step)
    assert equal(whole, again)
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_finished_run_returns_at_once(tmp_path):
    model, fresh = network(), network(seed=9)
    result = train(tmp_path, model)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    class Untouched(Points):
        def batches(self, epoch, *, start=0, rank=0, world=1):
            pytest.fail("the data were asked for")

    found = train(tmp_path, fresh, source=Untouched(), finish=False)
    assert found == {"schema": 1, **result}
    assert equal(model, fresh)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


class Breaks(nn.CrossEntropyLoss):
    """Cross-entropy whose `at`-th value is `value`."""

    def __init__(self, at, value):
        super().__init__()
        self.calls, self.at, self.value = 0, at, value

    def forward(self, output, y):
        self.calls += 1
        loss = super().forward(output, y)
        return loss * self.value if self.calls == self.at else loss


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_names_its_step_and_leaves_the_run_to_go_on(tmp_path, value):
    with pytest.raises(DivergenceError, match=rf"became {value} at step 8 of .*lr|learning rate"):
        train(tmp_path / "parts", network(), loss=Breaks(8, value))
    saved = load_state(tmp_path / "parts" / "checkpoint.safetensors")
    assert saved["position"]["step"] == 7
    assert all(torch.isfinite(v).all() for v in saved["model"].values())
    assert not (tmp_path / "parts" / "result.json").exists()
    whole, parts = network(), network()
    train(tmp_path / "whole", whole)
    train(tmp_path / "parts", parts)
    assert equal(whole, parts)


def test_a_learning_rate_that_is_far_too_high_ends_in_a_divergence_error(tmp_path):
    optim = OptimConfig(lr=1e18, epochs=3)
    with pytest.raises(DivergenceError, match=r"at step \d+ of .*lower the learning rate"):
        train(tmp_path, plain_network(), optim=optim)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-mixed", None)])
def test_other_precisions_learn(tmp_path, precision, dtype):
    seen = set()
    model = plain_network()
    model[0].register_forward_hook(lambda _m, _x, output: seen.add(output.dtype))
    optim = OptimConfig(lr=0.2, epochs=8)
    train(tmp_path, model, optim=optim, run=runtime(precision=precision))
    assert seen == {dtype or torch.bfloat16}
    assert model[0].weight.dtype == (dtype or torch.float32)
    losses = [row["loss"] for row in rows(tmp_path) if row["split"] == "train"]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_every_part_in_its_mode(training):
    model = network(nn.Dropout(0.5)).train(training)
    model[1].eval()  # a norm that its owner has frozen
    before = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    found = [evaluate(model, Points()) for _ in range(2)]
    assert found[0] == found[1]
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[1].running_mean, statistics)


def test_evaluation_is_the_mean_over_images_not_over_batches():
    model, source = network().eval(), Points(shuffle=False)
    with torch.no_grad():
        output = model(source.x)
    found = evaluate(model, source)
    assert found["loss"] == pytest.approx(F.cross_entropy(output, source.y).item(), rel=1e-6)
    assert found["accuracy"] == 100.0 * (output.argmax(1) == source.y).double().mean().item()


def test_training_goes_on_in_training_mode_after_an_evaluation(tmp_path):
    modes = set()
    model = network()
    model[1].register_forward_hook(
        lambda module, _x, output: modes.add((module.training, torch.is_grad_enabled()))
    )
    train(tmp_path, model)
    assert modes == {(True, True), (False, False)}


@pytest.mark.parametrize(
    ("optim", "run", "message"),
    [
        ({"accumulate": 0}, {}, "accumulate=0: expected at least 1"),
        ({}, {"log_every": 0}, "log_every=0: expected at least 1"),
        ({}, {"eval_every": -1}, "eval_every=-1: expected at least 1"),
    ],
)
def test_intervals_below_one_are_refused(tmp_path, optim, run, message):
    with pytest.raises(InputError, match=message):
        train(tmp_path, network(), optim=OptimConfig(**optim), run=runtime(**run))


def test_a_model_with_nothing_to_train_is_refused(tmp_path):
    with pytest.raises(InputError, match="no trainable parameter"):
        train(tmp_path, network().requires_grad_(False))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, network(), progress=stop_at(3))
    with pytest.raises(InputError, match="checkpoint of another run or version"):
        train(tmp_path, plain_network())


def test_a_checkpoint_of_another_optimiser_is_refused(tmp_path):
    with pytest.raises(Stop):
        train(tmp_path, network(), progress=stop_at(3))
    model = network()
    model[0].bias.requires_grad_(False)
    with pytest.raises(InputError, match="checkpoint of another run or version"):
        train(tmp_path, model)


def test_no_epoch_at_all_only_measures(tmp_path):
    model = network()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = train(tmp_path, model, optim=OptimConfig(epochs=0))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert result["metrics"].keys() >= {"test_accuracy", "validation_loss"}


# Two processes.

TWO = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def two(*arguments):
    return subprocess.run(
        [sys.executable, *TWO, *arguments], capture_output=True, text=True, check=False, timeout=200
    )


@pytest.mark.slow
def test_two_processes_give_what_one_gives_an_odd_last_batch_included(tmp_path):
    # 67 images in batches of 16: the last batch holds three, two for one process and one for the other.
    shared = shlex.split(
        "ticket find --data digits --train-size 67 --model mlp --width 0.1 --method iterand "
        "--every 3 --epochs 3 --batch-size 16 --accumulate 2 --precision 64-true --accelerator cpu "
        "--threads 1 --json --out"
    )
    done = two("-m", "regraft.cli", *shared, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert main([*shared, str(tmp_path / "one")]) == 0
    one, both = (rows(tmp_path / name) for name in ("one", "two"))
    assert max(row["step"] for row in one) == 15
    for left, right in zip(one, both, strict=True):
        assert left.pop("split") == right.pop("split")
        assert left == pytest.approx(right, rel=1e-6)
    states = [load_state(tmp_path / name / "checkpoint.safetensors") for name in ("one", "two")]
    for key, value in states[0]["model"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(states[1]["model"][key], value, rtol=0, atol=1e-6)


def test_a_process_without_an_image_adds_nothing_to_the_step(tmp_path):
    class Share(Points):
        """The share of a process that gets no image of each second batch."""

        def batches(self, epoch, *, start=0, rank=0, world=1):
            for i, (x, y, size) in enumerate(super().batches(epoch, start=start)):
                yield (x[:0], y[:0], size) if (start + i) % 2 else (x, y, size)

    class Counted(torch.nn.CrossEntropyLoss):
        """Terms of a loss may wait for other processes: no share may be left out."""

        images = ()

        def forward(self, output, targets):
            self.images += (len(targets),)
            return super().forward(output, targets)

    model, loss = plain_network(), Counted()
    optim = OptimConfig(lr=0.1, epochs=2, momentum=0.0, weight_decay=0.0)
    with RunFolder(tmp_path, config={}, setting="s", arm="a", seed=1) as folder:
        how = {"optim": optim, "runtime": runtime(log_every=1), "folder": folder, "loss": loss}
        fit(model, Batches(Share()), **how)
    assert loss.images == (5, 0, 5, 0, 3) * 2
    assert all(torch.isfinite(p).all() for p in model.parameters())
    losses = [row["loss"] for row in rows(tmp_path)]
    # Five batches an epoch, of which the second and the fourth are empty here.
    assert [loss == 0.0 for loss in losses] == [False, True, False, True, False] * 2
