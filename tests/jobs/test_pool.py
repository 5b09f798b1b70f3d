import io
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from long_run import LongRun
from rich.console import Console

from regraft.jobs.base import Job, with_sources
from regraft.jobs.pool import run_all


@dataclass(frozen=True, kw_only=True)
class Step(Job):
    """A run that notes that it ran."""

    setting: str = "s"
    needs: Sequence["Step"] = ()
    ran: list[str] = field(default_factory=list, compare=False)

    def config(self):
        return {"arm": self.arm}

    def run(self, root, *, progress=None):
        self.ran.append(self.arm)
        return {"metrics": {}, "seconds": 0.0}


def step(arm, needs, ran):
    return Step(arm=arm, needs=tuple(needs), ran=ran)


@st.composite
def graphs(draw):
    """Return steps of which each needs some of those before it, in any order."""
    ran: list[str] = []
    steps: list[Step] = []
    for i in range(draw(st.integers(1, 8))):
        needs = draw(st.sets(st.sampled_from(steps).map(lambda s: s.arm), max_size=3)) if i else ()
        steps.append(step(str(i), [s for s in steps if s.arm in needs], ran))
    return draw(st.permutations(steps)), ran


@given(graphs())
def test_everything_runs_once_and_after_what_it_needs(graph):
    steps, ran = graph
    run_all(steps, Path("runs"))
    assert sorted(ran) == sorted(one.arm for one in steps)
    for one in steps:
        assert all(ran.index(s.arm) < ran.index(one.arm) for s in one.sources)


@given(graphs())
def test_sources_are_found_and_come_first(graph):
    steps, _ = graph
    ends = [s for s in steps if not any(s in other.sources for other in steps)]
    found = with_sources(ends)
    assert sorted(s.arm for s in found) == sorted(s.arm for s in steps)
    places = [one.arm for one in found]
    for one in found:
        assert all(places.index(s.arm) < places.index(one.arm) for s in one.sources)


def test_runs_without_sources_keep_their_order_and_unlisted_sources_are_not_waited_for():
    ran: list[str] = []
    other = step("other", (), [])
    run_all([step("b", (), ran), step("a", (other,), ran), step("c", (), ran)], Path("runs"))
    assert ran == ["b", "a", "c"]
    assert other.ran == []


def test_an_interrupt_does_not_wait_for_runs_under_way(tmp_path):
    class Interrupting(Console):
        def print(self, *_, **__):
            raise KeyboardInterrupt

    runs = [LongRun(setting="s", arm=arm) for arm in ("long", "short")]
    with pytest.raises(KeyboardInterrupt):
        run_all(runs, tmp_path, workers=2, console=Interrupting(file=io.StringIO()))
    assert not multiprocessing.active_children()
