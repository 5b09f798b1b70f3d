import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from regraft.config import DataConfig, OptimConfig, RuntimeConfig
from regraft.errors import InputError
from regraft.jobs.base import Job, with_sources
from regraft.jobs.merge.job import MergeJob
from regraft.jobs.train import TrainJob
from regraft.train import read_json


@dataclass(frozen=True, kw_only=True)
class Part:
    """A config that holds a job and data of its own."""

    data: DataConfig = field(default_factory=DataConfig)
    source: Job | None = None
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Sum(Job):
    """A job that adds, and fails as often as it is told to."""

    part: Part = field(default_factory=Part)
    others: tuple[Job, ...] = ()
    optim: OptimConfig = field(default_factory=OptimConfig)
    failures: list[Exception] = field(default_factory=list, compare=False)

    def config(self):
        config = super().config()
        del config["failures"]
        return config

    def work(self, folder, root, progress) -> dict[str, Any]:
        folder.log({"step": 0})
        if self.failures:
            raise self.failures.pop()
        return {"metrics": {"sum": sum(self.part.sizes)}, "seconds": 0.0}


def digits(arm="dense", **more):
    return TrainJob(setting="s", arm=arm, **more)


def test_sources_are_the_jobs_among_the_fields_those_in_configs_too():
    a, b, c = digits("a"), digits("b"), digits("c")
    job = Sum(setting="s", arm="sum", part=Part(source=a), others=(b, c))
    assert job.sources == (a, b, c)
    assert with_sources([job, b]) == [a, b, c, job]


def test_the_config_is_json_and_leaves_out_what_changes_no_number():
    runtime = RuntimeConfig(checkpoint_seconds=3.0)
    data = DataConfig(root="/somewhere", download=False)
    job = Sum(
        setting="s", arm="sum", part=Part(data=data, source=digits(data=data)), runtime=runtime
    )
    config = job.config()
    assert json.loads(json.dumps(config)) == config
    assert config["part"]["sizes"] == [1, 2]
    plain = Sum(setting="t", arm="other", part=Part(source=digits()))
    assert plain.config() == config
    assert plain.with_seed(2).config() != config


def test_a_seed_and_a_data_root_reach_everything():
    job = Sum(setting="s", arm="sum", part=Part(source=digits()), others=(digits("b"),))
    moved = job.with_seed(7).with_data_root("/elsewhere")
    jobs = [moved, *moved.sources]
    assert [one.runtime.seed for one in jobs] == [7, 7, 7]
    roots = [moved.part.data.root, *(one.data.root for one in moved.sources)]
    assert roots == ["/elsewhere"] * 3
    assert job.part.data.root is None
    assert job.part.source is not None
    assert job.part.source.runtime.seed == 1


def test_the_networks_of_a_merge_have_seeds_of_their_own():
    job = MergeJob(setting="s", arm="average", a=digits(), b=digits()).with_seed(3)
    assert (job.runtime.seed, job.a.runtime.seed, job.b.runtime.seed) == (3, 3, 1003)


def test_a_finished_run_is_only_read(tmp_path):
    job = Sum(setting="s", arm="sum")
    result = job.run(tmp_path)
    assert result["metrics"] == {"sum": 3}
    again = Sum(setting="s", arm="sum", failures=[RuntimeError("it ran")])
    assert again.run(tmp_path) == result
    assert result.items() <= read_json(job.folder(tmp_path) / "result.json").items()


def test_a_run_that_failed_goes_on(tmp_path):
    job = Sum(setting="s", arm="sum", failures=[RuntimeError("no")])
    with pytest.raises(RuntimeError, match="no"):
        job.run_in(tmp_path / "here")
    assert job.run_in(tmp_path / "here")["metrics"] == {"sum": 3}


def test_the_data_are_pinned(tmp_path):
    job = Sum(setting="s", arm="sum")
    job.run_in(tmp_path)
    pinned = read_json(tmp_path / "data.json")
    assert pinned is not None
    assert pinned["classes"] == 10


def test_ranges_are_checked_before_anything_is_written(tmp_path):
    job = Sum(setting="s", arm="sum", optim=OptimConfig(lr=float("nan")))
    with pytest.raises(InputError, match="--lr nan"):
        job.run_in(tmp_path / "run")
    assert not (tmp_path / "run").exists()
