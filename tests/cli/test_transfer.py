import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transfers import WIDE, about, between, run

from checkpoints import digits
from regraft.files import write_tensors
from regraft.symmetry.spec.spec import PermutationSpec
from regraft.symmetry.transfer.trajectory import Trajectory

OF_THE_RUN = {"regraft.json", "environment.json", "metrics.jsonl", "result.json", "then_train"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return run(root / "a", 1, every=1), run(root / "b", 2)


def test_a_run_is_carried_over_and_trained_on(answer, runs, tmp_path):
    a, b = runs
    words = (
        "transfer", *between(a, b, trained=True), "--out", "out", "--data", "digits",
        "--trajectory-steps", "5", "--points", "3", "--plane-points", "3", "--then-train", "1",
        "--threads", "1",
    )  # fmt: skip
    found = answer(*words)
    scores = {k: v["test_accuracy"] for k, v in found["scores"].items()}
    assert scores["fgmt, final step (5)"] > scores["naive, final step (5)"] + 5
    assert scores["oracle, final step (5)"] > scores["naive, final step (5)"] + 5
    assert scores["target, trained"] > 90
    last = found["steps"][-1]
    assert last["cosine"] > last["cosine_before"] + 0.1
    assert last["costs"]["count"] == 10

    # Both ways to see whether the permutation helps say that it does, and no note says otherwise.
    assert found["agreement"]["gain"] > 0.1
    assert 0 < found["agreement"]["cosine"] <= 1
    above = found["against_naive"]
    assert above["above"]
    assert above["difference"] == pytest.approx(above["accuracy"] - above["naive"])
    assert (above["part"], above["images"]) == ("validation", len(digits().validation))
    assert found["notes"] == []

    # The files are what the card says: weights, spec and permutation.
    spec = PermutationSpec.from_json((tmp_path / "out/spec.json").read_text())
    permutation = load_file(tmp_path / "out/permutation.safetensors")
    start, final, to = (
        load_file(p / f"{n}.safetensors") for p, n in ((a, "init"), (a, "final"), (b, "init"))
    )
    moved = spec.apply({k: final[k] - start[k] for k in final}, permutation)
    written = load_file(tmp_path / "out/model.safetensors")
    for k in to:
        torch.testing.assert_close(written[k], to[k] + moved[k])
    assert set(found["files"]) == {
        p.name for p in (tmp_path / "out").iterdir() if p.name not in OF_THE_RUN
    }

    # All were trained on for an epoch, and the transfer's seconds count.
    then = found["then_train"]
    assert set(then) == {"scratch", "naive", "fgmt"}
    assert then["scratch"]["seconds_before"] == 0 < then["naive"]["seconds_before"]
    assert then["fgmt"]["seconds_before"] > last["costs"]["total"]
    for entry in then.values():
        assert [p["epoch"] for p in entry["curve"]] == [0, 1]
        assert entry["curve"][-1]["seconds"] == pytest.approx(entry["seconds"], rel=1e-6)
    assert then["fgmt"]["metrics"]["test_accuracy"] > then["fgmt"]["test_accuracy_before"]
    paths = found["paths"]
    assert set(paths) == {"permuted source", "trained target", "between"}
    assert len(paths["between"]["at"]) == 3
    plane = found["plane"]
    best = found["best_step"]
    named = ["target, trained", "oracle, step 5", f"fgmt, step {best}"]
    assert plane["through"] == named
    assert [len(row) for row in plane["accuracy"]] == [3, 3, 3]
    trained = load_file(b / "final.safetensors")
    at = load_file(tmp_path / f"out/model{'' if best == 5 else '-best'}.safetensors")
    apart = torch.cat([(at[k] - trained[k]).flatten() for k in written]).norm()
    assert torch.tensor(plane["points"][2]).norm() == pytest.approx(apart.item(), rel=1e-4)
    readme = (tmp_path / "out/README.md").read_text()
    assert "oracle, final step (5)" in readme
    assert "of training from scratch" in readme
    pytest.importorskip("jinja2")
    html = (tmp_path / "out/report.html").read_text()
    assert "Before any training" in html
    assert "Trained on" in html
    assert f"1: target, trained; 2: oracle, step 5; 3: fgmt, step {best}." in html

    # A finished folder stays as it is, and another command may not have it.
    stamp = (tmp_path / "out/model.safetensors").stat().st_mtime_ns
    again = answer(*words)
    assert again["scores"] == found["scores"]
    assert (tmp_path / "out/model.safetensors").stat().st_mtime_ns == stamp


def test_a_recorded_run_all_of_it_or_some_steps(answer, runs):
    a, b = runs
    common = ("transfer", a / "run", "--to", b / "init.safetensors", "--data", "digits",
              "--points", "0")  # fmt: skip
    whole = answer(*common, "--out", "whole", "--keep-steps")
    assert whole["trajectory"]["steps"] == list(range(7))
    assert [r["step"] for r in whole["curves"]["fgmt"]] == list(range(1, 7))
    assert sum(name.startswith("steps/") for name in whole["files"]) == 6
    some = answer(*common, "--out", "some", "--trajectory-steps", "3", "--match", "gmt")
    assert some["trajectory"]["steps"] == [0, 2, 4, 6]
    assert set(some["curves"]) == {"gmt", "naive", "initial_weights"}
    line = answer(
        *common, "--out", "line", "--straight", "--trajectory-steps", "2", "--spacing", "cosine"
    )
    assert line["trajectory"]["origin"].startswith("a straight line of 2 cosine steps")


def test_without_data_by_the_initial_weights(answer, runs, tmp_path):
    a, b = runs
    found = answer(
        "transfer", a / "run", "--to", b / "init.safetensors", "--match", "initial_weights", "--out",
        "out",
    )  # fmt: skip
    assert found["scores"] == {}
    assert any("nothing was measured" in note for note in found["notes"])
    assert (tmp_path / "out/model.safetensors").exists()
    assert not (tmp_path / "out/report.html").exists()


def test_a_run_onto_its_own_permuted_start_is_the_run(answer, runs, tmp_path):
    a, _ = runs
    source = answer(
        "transfer", a / "run", "--to", a / "init.safetensors", "--match", "initial_weights",
        "--data", "digits", "--out", "own", "--points", "0",
    )  # fmt: skip
    assert source["steps"][-1]["cosine"] == pytest.approx(1.0)
    spec = PermutationSpec.from_json((tmp_path / "own/spec.json").read_text())
    start = load_file(a / "init.safetensors")
    header = {"regraft.model": json.dumps(about(WIDE))}
    hidden = spec.random(3)
    write_tensors(tmp_path / "copy.safetensors", dict(spec.apply(start, hidden)), header)
    answer(
        "transfer", a / "run", "--to", tmp_path / "copy.safetensors", "--match", "initial_weights",
        "--out", "out",
    )  # fmt: skip
    written = load_file(tmp_path / "out/model.safetensors")
    wanted = spec.apply(Trajectory.open(a / "run").state(-1), hidden)
    assert all(torch.equal(written[k], wanted[k]) for k in wanted)


def test_a_network_that_nothing_permutes_says_so(answer, factory, tmp_path):
    (tmp_path / "lonely_net.py").write_text(
        "from torch import nn\n\n"
        "def linear(num_classes, in_channels, image_size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))\n"
    )
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b", "c"):
        state = {
            "1.weight": torch.randn(10, 64, generator=generator),
            "1.bias": torch.randn(10, generator=generator),
        }
        save_file(state, tmp_path / f"{name}.safetensors")
    found = answer(
        "transfer", "--from-init", "a.safetensors", "--from-final", "b.safetensors", "--to",
        "c.safetensors", "--model", "lonely_net:linear", "--data", "digits", "--out", "out",
        "--trajectory-steps", "2", "--points", "0",
    )  # fmt: skip
    assert any("nothing in this architecture can change places" in n for n in found["notes"])
    naive, fast = (found["curves"][by][-1]["test_accuracy"] for by in ("naive", "fgmt"))
    assert naive == fast
