import errno
import os
import stat

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft.errors import InputError, RegraftError
from regraft.files import write_bytes, write_text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary())
def test_what_is_written_is_read(tmp_path, data):
    write_bytes(tmp_path / "file", data)
    assert (tmp_path / "file").read_bytes() == data


def test_text_is_utf8_with_its_line_ends_and_lone_surrogates_escaped(tmp_path):
    write_text(tmp_path / "file", "é\r\n\ud800")
    assert (tmp_path / "file").read_bytes() == "é\r\n\\ud800".encode()


def test_missing_folders_are_made_and_nothing_else_is_left(tmp_path):
    write_text(tmp_path / "a" / "b" / "file", "x")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_file_gets_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("x")
    write_text(tmp_path / "file", "x")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "file")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, step, code):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(RegraftError, match=r"file.*") as caught:
        write_text(path, "new")
    assert isinstance(caught.value, InputError) == (code == errno.EACCES)
    assert os.strerror(code) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_text(tmp_path / "file", "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "file" / "below", "y")
    assert (tmp_path / "file").read_text() == "x"


def test_a_path_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_text(tmp_path / "folder", "y")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_the_longest_name_is_possible(tmp_path):
    write_text(tmp_path / ("n" * 255), "x")
    assert (tmp_path / ("n" * 255)).read_text() == "x"


def test_equal_tensors_and_headers_give_equal_bytes_whatever_their_order(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    from regraft.files import write_tensors

    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    header = {f'key {i} é "quoted"\n': "x" * i for i in range(12)}
    for i in range(6):
        entries = list(header.items())
        write_tensors(tmp_path / f"{i}", dict(tensors), dict(entries[i:] + entries[:i]))
    first = (tmp_path / "0").read_bytes()
    assert all((tmp_path / f"{i}").read_bytes() == first for i in range(6))
    with safe_open(tmp_path / "0", framework="pt") as file:
        assert file.metadata() == header
    assert torch.equal(load_file(tmp_path / "0")["b"], tensors["b"])
