"""Jobs on a graph, from the config to the stored ticket."""

import json
from dataclasses import replace

import pytest
import torch
from graphs import write_planetoid

from regraft.config import DataConfig, ModelConfig, OptimConfig, RuntimeConfig, TicketConfig
from regraft.data import load_graph
from regraft.errors import InputError
from regraft.jobs.train import TrainJob
from regraft.models import Transductive, build
from regraft.tickets import fill, load_ticket, masks
from regraft.tickets import shuffled as shuffled_copy

pytest.importorskip("torch_geometric")

EPOCHS = 12


class Stop(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    where = tmp_path_factory.mktemp("data")
    write_planetoid(where)
    return str(where)


def job(root, method="edge_popup", model="gcn", **optim):
    options = {"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.0, "epochs": EPOCHS, **optim}
    return TrainJob(
        setting="cora/test",
        arm=method,
        data=DataConfig(name="cora", root=root, features="l2", download=False),
        model=ModelConfig(name=model, options={"hidden": 32 if model != "gat" else 4}),
        ticket=TicketConfig(
            method=method, scope="global", score="magnitude", weight_init="kaiming_uniform"
        ),
        optim=OptimConfig(**options),
        runtime=RuntimeConfig(accelerator="cpu", threads=1, checkpoint_seconds=0.0, log_every=5),
    )


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("model", ["gcn", "gin", "gat"])
@pytest.mark.parametrize("method", ["dense", "edge_popup"])
def test_it_learns_and_is_measured_on_every_split(root, tmp_path, method, model):
    result = job(root, method, model).run_in(tmp_path)
    losses = [row["loss"] for row in rows(tmp_path) if row["split"] == "train"]
    # One step an epoch: all training nodes are the batch.
    assert len(losses) == EPOCHS
    assert losses[-1] < losses[0]
    assert result["metrics"].keys() == {
        f"{split}_{key}" for split in ("validation", "test") for key in ("loss", "accuracy")
    }
    pinned = json.loads((tmp_path / "data.json").read_text())
    assert (pinned["nodes"], pinned["train_nodes"], pinned["test_nodes"]) == (600, 30, 40)


@pytest.mark.parametrize("model", ["gcn", "gin", "gat"])
@pytest.mark.parametrize("select", ["last", "best"])
def test_the_ticket_alone_gives_the_accuracy_measured(root, tmp_path, model, select):
    asked = job(root, model=model, select=select)
    result = asked.run_in(tmp_path)
    ticket = load_ticket(tmp_path)
    assert ticket.about["input"] == {"graph": True, "features": 30}
    assert ticket.about["features"] == "l2"
    assert all(name.split(".")[0] in ("layers", "head") for name in ticket.masks())
    graph = load_graph(asked.data)
    network = build(
        ModelConfig(**ticket.about["model"]),
        num_classes=len(ticket.about["classes"]),
        **ticket.about["input"],
    )
    logits = Transductive(fill(network, ticket).eval(), graph)(graph.test)
    accuracy = 100 * float((logits.argmax(1) == graph.y[graph.test]).double().mean())
    assert accuracy == pytest.approx(result["metrics"]["test_accuracy"])


@pytest.mark.parametrize("select", ["last", "best"])
@pytest.mark.parametrize("method", ["dense", "edge_popup", "iterand"])
def test_killed_and_started_again_it_ends_with_the_same_bytes(root, tmp_path, method, select):
    asked = job(root, method, "gin", select=select)
    asked = replace(asked, ticket=replace(asked.ticket, every=2, rate=0.5))

    def stop_at(step):
        def progress(now, steps, row):
            if now == step:
                raise Stop

        return progress

    whole = asked.run_in(tmp_path / "whole")
    for step in (3, 8):
        with pytest.raises(Stop):
            asked.run_in(tmp_path / "parts", progress=stop_at(step))
    parts = asked.run_in(tmp_path / "parts")
    assert parts["metrics"] == whole["metrics"]
    stored = "model.safetensors" if method == "dense" else "model.ticket"
    for name in ("metrics.jsonl", stored):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("select", ["last", "best"])
def test_a_shuffled_mask_takes_the_masks_that_the_search_kept(root, tmp_path, select, monkeypatch):
    search = job(root, model="gin", select=select, lr=0.2)
    found = search.run(tmp_path)
    # Otherwise the last state would be the best and taking the wrong one would not show.
    assert found["metrics"].get("selected_epoch", 0) < EPOCHS - 1
    taken = {}

    def looked_at(model, seed):
        taken.update(masks(model))
        return shuffled_copy(model, seed=seed)

    monkeypatch.setattr("regraft.jobs.train.shuffled", looked_at)
    shuffled = replace(search, arm="shuffled_mask", source=search)
    shuffled = replace(shuffled, ticket=replace(search.ticket, method="shuffled_mask"))
    result = shuffled.run(tmp_path)
    kept = load_ticket(search.folder(tmp_path)).masks()
    assert taken.keys() == kept.keys()
    assert all(torch.equal(taken[name], kept[name]) for name in kept)
    assert result["trainable_parameters"] == 0
    assert result["metrics"].keys() >= {"validation_accuracy", "test_accuracy"}
    assert result["stored_bytes"] == load_ticket(search.folder(tmp_path)).size


def test_a_random_mask_is_measured_untrained(root, tmp_path):
    result = job(root, "random_mask", "gin").run_in(tmp_path)
    assert result["trainable_parameters"] == 0
    assert [row["split"] for row in rows(tmp_path)] == ["validation", "test"]


def test_a_ramp_of_the_sparsity_keeps_its_states_from_being_selected(root, tmp_path):
    asked = job(root, select="best")
    asked = replace(asked, ticket=replace(asked.ticket, sparsity=0.9, anneal=0.8))
    result = asked.run_in(tmp_path)
    assert result["metrics"]["selected_epoch"] >= int(0.8 * EPOCHS) - 1
    kept = load_ticket(tmp_path).masks().values()
    share = sum(int(m.sum()) for m in kept) / sum(m.numel() for m in kept)
    assert share == pytest.approx(0.1, abs=1e-3)


def test_another_graph_is_not_gone_on_with(root, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(Stop):
        job(root).run_in(run, progress=lambda *_: (_ for _ in ()).throw(Stop()))
    other = tmp_path / "data"
    write_planetoid(other, seed=1)
    with pytest.raises(InputError, match=r"started with other data \(edges was|\(digest was"):
        job(str(other)).run_in(run)


def test_a_network_for_images_is_refused_in_a_sentence(root, tmp_path):
    with pytest.raises(InputError, match="name='conv4' takes no graph: expected one of gat"):
        job(root, model="conv4").run_in(tmp_path)


def test_double_precision_leaves_nodes_whole_numbers(root, tmp_path):
    asked = job(root)
    result = replace(asked, runtime=replace(asked.runtime, precision="64-true")).run_in(tmp_path)
    assert torch.isfinite(torch.tensor(list(result["metrics"].values()))).all()
