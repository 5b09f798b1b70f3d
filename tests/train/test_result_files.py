"""What of a finished run's folder may change, and what is refused."""

import json

import pytest

from regraft.errors import InputError
from regraft.report.runs import read_run
from regraft.train import RunFolder
from regraft.train.result_folder import read_result


def finished(path, *others):
    """Make a run with other files beside it, and finish it."""
    with RunFolder(path, config={}, setting="digits/mlp", arm="iterand", seed=1) as folder:
        for name, text in others:
            (path / name).write_text(text)
        folder.finish({"metrics": {"x": 1.0}})


def test_notes_of_the_user_beside_a_result_may_change(tmp_path):
    finished(tmp_path / "a", ("notes.txt", "looks good"), ("classes.txt", "ant\n"))
    (tmp_path / "a" / "notes.txt").write_text("looks better")
    assert read_run(tmp_path / "a").result.metrics == {"x": 1.0}
    (tmp_path / "a" / "classes.txt").write_text("bee\n")
    with pytest.raises(InputError, match=r"classes\.txt is not as Regraft wrote it"):
        read_run(tmp_path / "a")


def test_a_file_without_a_digest_is_said_to_be_of_an_earlier_version(tmp_path):
    finished(tmp_path / "a")
    path = tmp_path / "a" / "result.json"
    kept = json.loads(path.read_text())
    del kept["regraft.digest"]
    path.write_text(json.dumps(kept))
    for read in (lambda: read_run(tmp_path / "a"), lambda: read_result(tmp_path / "a")):
        with pytest.raises(InputError, match="no digest: an earlier version wrote it") as raised:
            read()
        assert "valid JSON" not in str(raised.value)
        assert "remove" not in str(raised.value)
