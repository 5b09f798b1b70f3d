"""The best state instead of the last."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from training import Points, Stop, equal, network, rows, runtime, stop_at, train

from regraft.config import OptimConfig
from regraft.errors import InputError
from regraft.train import (
    Batches,
    RunFolder,
    finished_state,
    fit,
    load_state,
)


def jumpy(seed=4):
    """A network, and options under which its validation accuracy goes up and down."""
    optim = OptimConfig(lr=1.5, epochs=6, schedule="constant", select="best")
    return network(nn.Dropout(0.5), seed=seed), optim


def states_by_epoch(path, optim):
    """Train with `select="last"` for 1, 2, ... epochs and return model and validation of each."""
    found = []
    for epochs in range(1, optim.epochs + 1):
        model, _ = jumpy()
        last = replace(optim, epochs=epochs, select="last")
        metrics = train(path / str(epochs), model, optim=last)["metrics"]
        found.append((model, metrics))
    return found


def test_the_best_state_is_that_of_the_epoch_with_the_best_validation(tmp_path):
    model, optim = jumpy()
    metrics = train(tmp_path / "best", model, optim=optim)["metrics"]
    every = states_by_epoch(tmp_path, optim)
    rank = [(m["validation_accuracy"], -m["validation_loss"]) for _, m in every]
    epoch = rank.index(max(rank))
    assert epoch < optim.epochs - 1, "the last epoch is the best: this test shows nothing"
    assert metrics.pop("selected_epoch") == epoch
    assert metrics == every[epoch][1]
    assert equal(model, every[epoch][0])
    assert not equal(model, every[-1][0])
    test = rows(tmp_path / "best")[-1]
    assert (test["split"], test["epoch"], test["step"]) == ("test", epoch, 5 * (epoch + 1))


@pytest.mark.parametrize(
    ("figures", "chosen"),
    [
        ([(50, 1.0), (60, 2.0), (60, 1.5), (60, 1.5), (40, 0.1)], 2),
        ([(50, 1.0), (50, 1.0), (50, 1.0), (50, 1.0), (50, 1.0)], 0),
        ([(50, 1.0), (40, 1.0), (40, 0.5), (40, 0.1), (50, 0.9)], 4),
    ],
)
def test_equal_accuracies_go_by_loss_and_then_by_time(tmp_path, monkeypatch, figures, chosen):
    told = iter(figures)

    def told_figures(model, source, **_):
        accuracy, loss = next(told, (0, 9.0))
        return {"loss": loss, "accuracy": accuracy}

    monkeypatch.setattr("regraft.train.loop.evaluate", told_figures)
    optim = OptimConfig(epochs=5, select="best")
    metrics = train(tmp_path, network(), optim=optim)["metrics"]
    assert metrics["selected_epoch"] == chosen
    assert (metrics["validation_accuracy"], metrics["validation_loss"]) == figures[chosen]


@pytest.mark.parametrize("stops", [(2,), (7,), (12,), (2, 9, 14, 21), (30,)])
def test_going_on_selects_what_never_having_stopped_selects(tmp_path, stops):
    whole_model, optim = jumpy()
    whole = train(tmp_path / "whole", whole_model, optim=optim)
    for step in stops:
        with pytest.raises(Stop):
            train(tmp_path / "parts", jumpy()[0], optim=optim, progress=stop_at(step))
    model, _ = jumpy(seed=8)
    found = train(tmp_path / "parts", model, optim=optim, finish=False)
    again, _ = jumpy(seed=9)
    # As if killed before the result was written, and then once more after it.
    ended = train(tmp_path / "parts", again, optim=optim)
    finished, _ = jumpy(seed=10)
    train(tmp_path / "parts", finished, optim=optim, finish=False)
    assert found["metrics"] == whole["metrics"] == ended["metrics"]
    assert all(equal(m, whole_model) for m in (model, again, finished))
    files = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    saved = load_state(tmp_path / "parts" / "checkpoint.safetensors")
    state = finished_state(saved)
    assert all(torch.equal(state[k], v) for k, v in whole_model.state_dict().items())
    assert not all(torch.equal(saved["model"][k], v) for k, v in state.items())


def test_the_last_state_may_always_be_selected_and_early_ones_only_from_the_step_given(tmp_path):
    model, optim = jumpy()
    every = [m for _, m in states_by_epoch(tmp_path, optim)]
    rank = [(m["validation_accuracy"], -m["validation_loss"]) for m in every]
    for first in (0, 11, 16, 26, 10**6):
        model, _ = jumpy()
        path = tmp_path / f"from{first}"
        chosen = train(path, model, optim=optim, select_from=first)["metrics"]["selected_epoch"]
        allowed = [e for e in range(6) if 5 * (e + 1) >= min(first, 30)]
        assert chosen == max(allowed, key=lambda e: rank[e])


def test_epochs_without_an_evaluation_cannot_be_selected_but_the_last_can(tmp_path):
    model, optim = jumpy()
    run = runtime(eval_every=4)
    chosen = train(tmp_path, model, optim=optim, run=run)["metrics"]["selected_epoch"]
    seen = {
        r["epoch"]: (r["accuracy"], -r["loss"])
        for r in rows(tmp_path)
        if r["split"] == "validation"
    }
    assert set(seen) == {3, 5}
    assert chosen == max(seen, key=lambda epoch: seen[epoch])


@pytest.mark.parametrize("choice", ["best", "worst"])
def test_a_choice_that_cannot_be_made_is_refused(tmp_path, choice):
    message = {
        "best": "select='best' needs validation data .*data.validation above 0",
        "worst": "select='worst': expected 'last' or 'best'",
    }[choice]
    optim = OptimConfig(epochs=1, select=choice)
    with (
        RunFolder(tmp_path, config={}, setting="s", arm="a", seed=1) as folder,
        pytest.raises(InputError, match=message),
    ):
        fit(network(), Batches(Points()), optim=optim, runtime=runtime(), folder=folder)
