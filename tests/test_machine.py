from pathlib import Path

import pytest

from regraft.errors import InputError, printable
from regraft.machine import cache_folder, expanded, is_first_process, rank, world_size

_NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_NTASKS", "SLURM_PROCID")


@pytest.fixture
def world(monkeypatch):
    def set_world(**values):
        for name in _NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_world


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"RANK": "1"},
        {"LOCAL_RANK": "3"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"},
        {"RANK": "1", "WORLD_SIZE": "1"},
        {"RANK": "nonsense"},
    ],
)
def test_without_a_world_a_process_is_alone_whatever_its_rank(world, values):
    world(**values)
    assert (world_size(), rank()) == (1, 0)
    assert is_first_process()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, 0),
        ({"WORLD_SIZE": "2", "RANK": "1"}, 1),
        ({"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "0"}, 2),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 1),
    ],
)
def test_in_a_world_the_rank_counts(world, values, expected):
    world(**values)
    assert rank() == expected
    assert is_first_process() == (expected == 0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, "without RANK"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "ranks go from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "expected a number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
    ],
)
def test_a_world_that_is_none_is_refused_in_one_sentence(world, values, sentence):
    world(**values)
    with pytest.raises(InputError, match=sentence):
        rank()


def test_a_user_without_a_home_folder(monkeypatch):
    def nobody(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setattr(Path, "expanduser", nobody)
    assert cache_folder().name == "regraft"
    with pytest.raises(InputError, match="no home folder"):
        expanded("~/data")


def test_bytes_that_steer_a_terminal_are_shown_as_escapes():
    assert printable("a\x1b[31mb\x07\u202e\x9b\ud800") == r"a\x1b[31mb\x07\u202e\x9b\ud800"
    assert printable("zwei Wörter\tund\nZeilen 漢字") == "zwei Wörter\tund\nZeilen 漢字"
