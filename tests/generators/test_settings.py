import pytest

from regraft.errors import InputError
from regraft.generators import CondenseConfig


@pytest.mark.parametrize(
    ("per_class", "loops"), [(1, (1, 1)), (10, (10, 50)), (50, (50, 10)), (200, (50, 10))]
)
def test_the_loops_are_those_of_the_paper(per_class, loops):
    for method in ("dc", "dsa"):
        found = CondenseConfig().resolved(method, per_class, linear=False)
        assert (found.outer, found.inner) == loops


def test_what_is_left_open_depends_on_method_and_network():
    chosen = {
        method: CondenseConfig().resolved(method, 10, linear=False)
        for method in ("dc", "dsa", "dm")
    }
    assert [c.restarts for c in chosen.values()] == [100, 100, 2000]
    assert [c.init for c in chosen.values()] == ["noise", "real", "real"]
    assert [c.lr_images for c in chosen.values()] == [0.1, 0.1, 0.1]
    assert [len(c.transforms or ()) for c in chosen.values()] == [0, 6, 6]
    assert (chosen["dm"].outer, chosen["dm"].inner) == (1, 0)


@pytest.mark.parametrize(("restarts", "lr"), [(50, 0.1), (100, 0.1), (200, 0.05), (5000, 0.01)])
def test_fewer_restarts_take_longer_steps(restarts, lr):
    config = CondenseConfig(restarts=restarts)
    assert config.resolved("dc", 10, linear=True).lr_images == pytest.approx(lr)
    assert config.resolved("dc", 10, linear=False).lr_images == 0.1
    assert config.resolved("dm", 30, linear=False).lr_images == 0.3


def test_what_is_given_stays():
    given = CondenseConfig(
        restarts=3, outer=2, inner=0, lr_images=0.5, init="real", transforms=("crop",)
    )
    assert given.resolved("dsa", 10, linear=True) == given


@pytest.mark.parametrize(
    ("method", "per_class", "change", "message"),
    [
        ("kip", 1, {}, "--method kip: expected one of dc, dsa, dm"),
        ("dc", 0, {}, "--per-class 0: expected at least 1"),
        ("dc", 1, {"transforms": ("crop",)}, "--method dc, which augments nothing"),
        ("dsa", 1, {"transforms": ("blur",)}, "transforms holds 'blur'"),
        ("dm", 1, {"outer": 3}, "leave out --outer and --inner"),
        ("dm", 1, {"inner": 3}, "leave out --outer and --inner"),
        ("dc", 1, {"restarts": 0}, "--restarts 0: expected at least 1"),
        ("dc", 1, {"norm_batch": 1}, "--norm-batch 1: expected at least 2"),
        ("dc", 1, {"lr_images": float("nan")}, "--lr-images nan: expected a finite number above 0"),
        ("dc", 1, {"momentum": 1.0}, "--momentum 1.0: expected a number in"),
        ("dc", 1, {"init": "zeros"}, "--init zeros: expected noise or real"),
    ],
)
def test_what_cannot_be_is_refused(method, per_class, change, message):
    with pytest.raises(InputError, match=message):
        CondenseConfig(**change).resolved(method, per_class, linear=True)
