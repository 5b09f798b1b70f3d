import csv
import errno
import io
import os
import stat

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft.errors import InputError, RegraftError
from regraft.files import (
    DIGEST,
    csv_text,
    load_json,
    parse_json,
    read_tensors,
    reading,
    write_bytes,
    write_tensors,
    write_text,
)


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
    with pytest.raises(InputError, match="is a folder and no regular file"):
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
        digest = file.metadata().pop(DIGEST)
        assert len(digest) == 64
        assert {k: v for k, v in file.metadata().items() if k != DIGEST} == header
    assert torch.equal(load_file(tmp_path / "0")["b"], tensors["b"])


class TestDigests:
    @pytest.fixture
    def file(self, tmp_path):
        write_tensors(tmp_path / "a", {"w": torch.arange(6.0)}, {"regraft.model": "{}"})
        return tmp_path / "a"

    def test_a_whole_file_is_read(self, file):
        metadata, tensors = read_tensors(file)
        assert metadata["regraft.model"] == "{}"
        assert len(metadata[DIGEST]) == 64
        assert torch.equal(tensors["w"], torch.arange(6.0))

    def test_equal_tensors_give_equal_bytes(self, file, tmp_path):
        write_tensors(tmp_path / "b", {"w": torch.arange(6.0)}, {"regraft.model": "{}"})
        assert file.read_bytes() == (tmp_path / "b").read_bytes()

    def test_any_flipped_bit_is_refused(self, file):
        whole = file.read_bytes()
        for at in range(len(whole)):
            broken = bytearray(whole)
            broken[at] ^= 1 << at % 8
            file.write_bytes(broken)
            with pytest.raises((InputError, ValueError)):
                read_tensors(file)

    def test_a_cut_file_is_refused(self, file):
        whole = file.read_bytes()
        for length in range(len(whole)):
            file.write_bytes(whole[:length])
            with pytest.raises((InputError, ValueError)):
                read_tensors(file)

    def test_files_of_others_are_taken_as_they_are(self, tmp_path):
        from safetensors.torch import save_file

        save_file({"w": torch.ones(2)}, tmp_path / "theirs", metadata={"format": "pt"})
        assert torch.equal(read_tensors(tmp_path / "theirs", ours=False)[1]["w"], torch.ones(2))
        with pytest.raises(InputError, match="digest is missing"):
            read_tensors(tmp_path / "theirs")

    def test_other_tensors_under_our_header_are_refused(self, file):
        from safetensors.torch import save_file

        save_file({"w": torch.ones(6)}, file, metadata=read_tensors(file)[0])
        with pytest.raises(InputError, match="digest is of other bytes"):
            read_tensors(file, ours=False)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, "9" * 5000, '"\ud800', "\x00", b"\xff", b'"\xc3"', "nul"],
    ids=range(9),
)
def test_text_that_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_a_huge_json_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr("regraft.files.MOST_JSON", 10)
    (tmp_path / "a").write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(ValueError, match="more than"):
        load_json(tmp_path / "a")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: {}["a"],
        lambda: parse_json("[]")[1],
        lambda: parse_json("null").items(),
        lambda: int(float("inf")),
        lambda: 1 / 0,
        lambda: dict(3),
        lambda: torch.zeros(2).reshape(3),
        lambda: parse_json("[" * 100_000),
        lambda: open("/nowhere/at/all"),  # noqa: PTH123, SIM115
    ],
)
def test_whatever_a_malformed_file_brings_about_is_one_sentence(wrong):
    with (
        pytest.raises(InputError, match=r"^x .*: get another$") as caught,
        reading("x", "get another"),
    ):
        wrong()
    assert "\n" not in str(caught.value)


def test_a_link_is_followed_and_stays_one(tmp_path):
    write_text(tmp_path / "file", "old")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to the pipe").symlink_to(tmp_path / "pipe")
    for name in ("pipe", "to the pipe", ""):
        with pytest.raises(InputError, match="no regular file"):
            write_text(tmp_path / name, "x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@given(rows=st.lists(st.lists(st.text(), min_size=2), min_size=1))
def test_rows_of_csv_are_read_as_they_were(rows):
    text = csv_text(rows)
    assert list(csv.reader(io.StringIO(text, newline=""))) == rows
