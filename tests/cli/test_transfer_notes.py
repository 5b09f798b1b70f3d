import pytest
import torch
from safetensors.torch import load_file
from transfers import WIDE, about, between, rewritten, run

from regraft.config import ModelConfig
from regraft.errors import InputError
from regraft.jobs.transfer.benefit import paired
from regraft.jobs.transfer.card import notes_of, training_lines


def test_a_source_that_has_learnt_nothing_gains_nothing_and_the_card_says_so(answer, tmp_path):
    a, b = run(tmp_path / "a", 1, epochs=1), run(tmp_path / "b", 2, epochs=1)
    start = load_file(a / "init.safetensors")
    generator = torch.Generator().manual_seed(5)
    walk = {
        k: v + v.std() * torch.randn(v.shape, generator=generator) / 2 for k, v in start.items()
    }
    rewritten(a / "init.safetensors", a / "final.safetensors", about(WIDE), **walk)
    found = answer(
        "transfer", *between(a, b), "--data", "digits", "--out", "out",
        "--trajectory-steps", "5", "--points", "0", "--threads", "1",
    )  # fmt: skip
    # The matched gradients look as if it had worked: their cosine rises by far more than 0.05.
    last = found["steps"][-1]
    assert last["cosine"] > last["cosine_before"] + 0.2
    (note,) = found["notes"]
    assert note.startswith("the transferred network is not above the naive one")
    assert f"{found['against_naive']['naive']:.1f}%" in note


def test_a_network_of_two_units_a_layer_is_not_brought_closer(answer, tmp_path):
    narrow = ModelConfig(name="mlp", options={"widths": [2, 2]})
    a, b = (run(tmp_path / name, seed, config=narrow) for name, seed in (("a", 1), ("b", 2)))
    found = answer(
        "transfer", *between(a, b), "--data", "digits", "--out", "out",
        "--trajectory-steps", "5", "--points", "0", "--threads", "1",
    )  # fmt: skip
    assert found["spec"]["groups"] == 2
    assert any("brings the two networks no closer" in note for note in found["notes"])


def test_an_agreement_that_cannot_be_measured_ends_no_transfer(answer, monkeypatch, tmp_path):
    def refuse(*args, **options):
        raise InputError("batches: they are too small for batch statistics")

    monkeypatch.setattr("regraft.jobs.transfer.benefit.agreement", refuse)
    a, b = run(tmp_path / "a", 1, epochs=1), run(tmp_path / "b", 2, epochs=1)
    found = answer(
        "transfer", *between(a, b), "--data", "digits", "--out", "out",
        "--trajectory-steps", "2", "--points", "0",
    )  # fmt: skip
    assert found["agreement"] is None
    assert any("was not measured: batches: they are too small" in note for note in found["notes"])


def card(**changes):
    found = {
        "spec": {"groups": 2},
        "steps": [{"dead": []}],
        "data": {"name": "digits"},
        "agreement": {"cosine": 0.3, "plain": 0.1, "gain": 0.2, "count": 8},
        "against_naive": {
            "accuracy": 80.0, "naive": 70.0, "difference": 10.0, "error": 2.0, "images": 100,
            "part": "validation", "above": True,
        },
        "match": "fgmt",
        "curves": {"fgmt": [{"test_accuracy": 85.8}], "naive": [{"test_accuracy": 20.0}]},
    }  # fmt: skip
    return {**found, **changes}


def test_each_note_has_a_reason_of_its_own():
    assert notes_of(card()) == []
    apart = {"cosine": 0.101, "plain": 0.1, "gain": 0.001, "count": 8}
    (note,) = notes_of(card(agreement=apart))
    assert "no closer" in note
    assert "cosine of 0.100 as they are and of 0.101 permuted" in note
    level = {**card()["against_naive"], "difference": 1.5, "above": False}
    (note,) = notes_of(card(against_naive=level))
    assert "80.0% against 70.0% of 100 validation images, +1.5 ± 2.0 points" in note
    # Where nothing can be permuted, that is the reason, and the only one.
    (note,) = notes_of(card(spec={"groups": 0}, agreement=None, against_naive=level))
    assert "nothing in this architecture can change places" in note
    (note,) = notes_of(card(steps=[{"dead": ["a", "b"]}]))
    assert "2 groups have no gradients" in note
    beaten = {**card()["curves"], "initial_weights": [{"test_accuracy": 86.6}]}
    (note,) = notes_of(card(curves=beaten))
    assert note == (
        "initial weights, a control that takes no gradients, ends at 86.6% of the test images and FGMT at "
        "85.8%: --match initial_weights gives that transfer"
    )
    assert notes_of(card(curves=beaten, match="initial_weights")) == []
    (note,) = notes_of(card(data=None, agreement=None, against_naive=None))
    assert "not known whether the permutation helps" in note


def test_a_difference_of_accuracies_on_the_same_images_has_the_error_of_their_pairs():
    right = torch.arange(200) % 4 > 0
    difference, error = paired(right, right)
    assert (difference, error) == (0.0, 0.0)
    other = right.clone()
    other[:40] = False
    difference, error = paired(right, other)
    each = right.double() - other.double()
    assert difference == pytest.approx(15.0)
    assert error == pytest.approx(196 * (each.var(correction=0) / 200).sqrt().item())
    assert paired(other, right) == (pytest.approx(-15.0), pytest.approx(error))


def test_sooner_is_sooner_than_scratch_was_first_there():
    def arm(*points):
        keys = ("epoch", "seconds", "validation_accuracy")
        return {
            "from_step": None, "seconds_before": points[0][1], "seconds": points[-1][1],
            "test_accuracy_before": 50.0, "metrics": {"test_accuracy": 90.0},
            "curve": [dict(zip(keys, point, strict=True)) for point in points],
        }  # fmt: skip

    scratch = arm((0, 0.0, 10.0), (1, 2.0, 80.0), (2, 4.0, 90.0), (3, 6.0, 90.0))
    late = arm((0, 3.0, 60.0), (1, 5.0, 91.0), (2, 7.0, 92.0))
    never = arm((0, 0.1, 20.0), (1, 2.1, 70.0))
    early = arm((0, 1.0, 60.0), (1, 3.0, 90.0))
    arms = {"scratch": scratch, "fgmt": late, "naive": never, "gmt": early}
    said = "\n".join(training_lines(arms))
    assert (
        "FGMT reaches the 90.00% (validation) of training from scratch after 1 epochs and 5.0 s, later than"
        in said
    )
    assert "which was there after 4.0 s" in said
    assert "naive does not reach the 90.00%" in said
    assert (
        "GMT reaches the 90.00% (validation) of training from scratch after 1 epochs and 3.0 s, sooner"
        in said
    )
