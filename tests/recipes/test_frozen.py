import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.models import build
from regraft.recipes import SCALES, load_recipe
from regraft.recipes.frozen import density_of, entropy
from regraft.recipes.frozen_reading import gap, read
from regraft.report import Result, Run, rows
from regraft.tickets import Freezing

SEARCHES = ("dense_source", "pruned_source", "pruned_source_near", "frozen", "frozen_coded")


@given(st.floats(0.001, 1.0))
def test_the_density_of_an_entropy_has_that_entropy(bits):
    d = density_of(bits)
    assert 0 <= d <= 0.5
    assert entropy(d) == pytest.approx(bits, abs=1e-6)
    assert entropy(d) == pytest.approx(-d * math.log2(d) - (1 - d) * math.log2(1 - d))


@pytest.mark.parametrize("scale", SCALES)
def test_every_search_can_reach_its_sparsity(scale):
    for job in load_recipe("frozen", scale, 1).jobs:
        if job.arm in SEARCHES:
            ticket = job.ticket
            freezing = Freezing(ticket.pruned, ticket.locked, ticket.allocation)
            freezing.check_reach(ticket.sparsity)
            assert (job.arm == "dense_source") == (freezing.frozen == 0)
            # A search with one answer only would be no search.
            free = 1 - freezing.frozen
            kept = (1 - ticket.sparsity - ticket.locked) / free
            assert 0.005 < kept < 0.96


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_same_bytes_controls_take_no_more_bits_than_their_ticket(scale):
    settings = {}
    for job in load_recipe("frozen", scale, 1).jobs:
        settings.setdefault(job.setting, {})[job.arm] = job
    for setting, arms in settings.items():
        ticket = arms.get("frozen_coded") or arms.get("frozen") or arms["dense_source"]
        shape = {"num_classes": 10, "channels": 1, "image_size": 28}
        if setting.startswith("digits"):
            shape["image_size"] = 8
        if setting.startswith("cora"):
            shape = {"num_classes": 7, "graph": True, "features": 1433}

        def numbers(job, shape=shape):
            network = build(job.model, **shape)
            weights = sum(p.numel() for p in network.parameters() if p.dim() > 1)
            rest = sum(p.numel() for p in network.parameters() if p.dim() < 2)
            return weights, rest + sum(
                b.numel() for b in network.buffers() if b.is_floating_point()
            )

        weights, rest = numbers(ticket)
        frozen = ticket.ticket.pruned + ticket.ticket.locked
        kept = (1 - ticket.ticket.sparsity - ticket.ticket.locked) / (1 - frozen)
        target = weights * (1 - frozen) * entropy(kept) / 8 + 4 * rest
        overhead = 800
        for arm, bits in (("dense_same_bytes", 32), ("dense_4bit_same_bytes", 4)):
            if arm in arms:
                narrow, others = numbers(arms[arm])
                assert narrow * bits / 8 + 4 * others <= target + overhead
        sparse = arms["sparse_same_bytes"].ticket
        assert 4 * (1 - sparse.sparsity) * weights <= target * 1.01 + overhead


def run(setting, arm, seed, accuracy, size, tmp_path):
    return Run(
        folder=tmp_path,
        setting=setting,
        arm=arm,
        control=None if arm in ("dense", "dense_source") else "dense",
        seed=seed,
        result=Result(
            metrics={"test_accuracy": accuracy, "validation_accuracy": accuracy},
            seconds=1.0,
            trainable_parameters=1,
            stored_bytes=size,
            peak_memory_bytes=1,
        ),
    )


def graph_runs(tmp_path, gain, size):
    setting = "cora/full/gcn"
    found = []
    for seed in range(1, 7):
        noise = 0.05 * (-1) ** seed
        found += [
            run(setting, "dense", seed, 80.0 + seed, 1_000_000, tmp_path),
            run(setting, "frozen", seed, 80.0 + seed + gain + noise, size, tmp_path),
            run(setting, "frozen_coded", seed, 80.0 + seed + gain - noise, size // 3, tmp_path),
            run(setting, "dense_same_bytes", seed, 70.0 + seed, size // 3, tmp_path),
        ]
    return found


@pytest.mark.parametrize(
    ("gain", "size", "held"),
    [
        (1.0, 20_000, {"40.3th": True, "Our aim": True, "Same-bytes": True}),
        (1.0, 30_000, {"40.3th": False, "Our aim": True, "Same-bytes": True}),
        (-1.0, 20_000, {"40.3th": False, "Our aim": False, "Same-bytes": True}),
        (-11.0, 20_000, {"40.3th": False, "Our aim": False, "Same-bytes": False}),
    ],
)
def test_claims_follow_the_numbers(tmp_path, gain, size, held):
    found = graph_runs(tmp_path, gain, size)
    claims = read(found, rows(found)).claims
    for words, expected in held.items():
        (claim,) = [c for c in claims if words in c.paper]
        assert claim.held is expected, claim
        assert claim.note


def test_gaps_are_paired_by_seed(tmp_path):
    found = graph_runs(tmp_path, 1.0, 20_000)
    difference = gap(found, "cora/full/gcn", "frozen", "dense")
    assert difference.mean == pytest.approx(1.0)
    assert difference.low > 0.9
    assert gap(found, "cora/full/gcn", "frozen", "pruned_source") is None


def test_the_sweep_is_read_share_by_share(tmp_path):
    found = []
    for share, gain in (("0.5", 2.0), ("0.8", -1.0)):
        for seed in (1, 2, 3):
            setting = f"fashion_mnist/conv_small/frozen={share}"
            base = 80 + seed + 0.01 * seed
            found += [
                run(setting, "dense_source", seed, base, 5000, tmp_path),
                run(setting, "frozen", seed, base + gain, 5000, tmp_path),
                run(setting, "pruned_source", seed, 81 + seed, 5000, tmp_path),
                run(setting, "dense_4bit_same_bytes", seed, 95 + seed, 5000, tmp_path),
            ]
    for item in found:
        object.__setattr__(item, "control", None if item.arm == "dense_source" else "dense_source")
    reading = read(found, rows(found))
    by_paper = {c.paper: c for c in reading.claims}
    (coded,) = [c for p, c in by_paper.items() if "entropy-coded" in p]
    assert coded.held  # +2 and -1 in every seed: half a point over both
    assert "F = 0.5: +2.00" in coded.note
    assert "F = 0.8: -1.00" in coded.note
    (same,) = [c for p, c in by_paper.items() if "Same-bytes" in p]
    assert not same.held
    assert set(reading.figures) == {"pareto"}
