from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from regraft.config import RuntimeConfig
from regraft.jobs.base import Runnable, folder_of, with_sources
from regraft.jobs.merge.job import MergeJob
from regraft.jobs.pool import run_all
from regraft.jobs.train import Job


@dataclass(frozen=True)
class Step:
    """A run that notes that it ran; a `Runnable`."""

    arm: str
    sources: tuple["Step", ...] = ()
    ran: list[str] = field(default_factory=list, compare=False)
    setting: str = "s"
    control: str | None = None
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def config(self):
        return {"arm": self.arm}

    def folder(self, root):
        return folder_of(self, root)

    def run(self, root, *, progress=None):
        self.ran.append(self.arm)
        return {"metrics": {}, "seconds": 0.0}

    def with_seed(self, seed):
        return self

    def with_data_root(self, root):
        return self


@st.composite
def graphs(draw):
    """Return steps of which each needs some of those before it, in any order."""
    ran: list[str] = []
    steps: list[Step] = []
    for i in range(draw(st.integers(1, 8))):
        needs = draw(st.sets(st.sampled_from(steps).map(lambda s: s.arm), max_size=3)) if i else ()
        steps.append(Step(str(i), tuple(s for s in steps if s.arm in needs), ran))
    return draw(st.permutations(steps)), ran


@given(graphs())
def test_everything_runs_once_and_after_what_it_needs(graph):
    steps, ran = graph
    run_all(steps, Path("runs"))
    assert sorted(ran) == sorted(step.arm for step in steps)
    for step in steps:
        assert all(ran.index(s.arm) < ran.index(step.arm) for s in step.sources)


@given(graphs())
def test_sources_are_found_and_come_first(graph):
    steps, _ = graph
    ends = [s for s in steps if not any(s in other.sources for other in steps)]
    found = with_sources(ends)
    assert sorted(s.arm for s in found) == sorted(s.arm for s in steps)
    for step in found:
        assert all(found.index(s) < found.index(step) for s in step.sources)


def test_runs_without_sources_keep_their_order_and_unlisted_sources_are_not_waited_for():
    ran: list[str] = []
    other = Step("other", (), [])
    run_all([Step("b", (), ran), Step("a", (other,), ran), Step("c", (), ran)], Path("runs"))
    assert ran == ["b", "a", "c"]
    assert other.ran == []


def test_jobs_and_merges_are_runnable():
    job = Job(setting="s", arm="dense")
    assert isinstance(job, Runnable)
    assert isinstance(MergeJob(setting="s", arm="average", a=job, b=job), Runnable)
    assert isinstance(Step("a"), Runnable)
    assert not isinstance(object(), Runnable)
