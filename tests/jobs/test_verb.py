import json

import pytest

from regraft.errors import InputError
from regraft.jobs.verb import work_in
from regraft.report import ResultCard, Table, find_runs
from regraft.train import RunFolder


def folder(path, **config):
    return RunFolder(path, config={"x": 1, **config}, arm="sum", seed=1)


def card(path):
    table = Table(title="Scores", headings=["", "n"], rows=[["a", "1"]])
    data = {"seconds": 1.5, "metrics": {"test_accuracy": 90.0}, "scores": {"a": 1}}
    (path / "sum.txt").write_text("1")
    return ResultCard(
        kind="sum", title="A sum", lines=["one"], tables=[table], files={"sum.txt": "it"}, data=data
    )


def test_a_verb_leaves_its_card_and_reads_it_again(tmp_path):
    first = work_in(folder(tmp_path / "a"), lambda: card(tmp_path / "a"))
    assert not first.before
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    again = work_in(folder(tmp_path / "a"), lambda: pytest.fail("it worked twice"))
    assert again.before
    assert again.card.to_json() == first.card.to_json()
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    assert set(first.card.files) == {"sum.txt", "README.md", "report.html", "card.json"}
    result = json.loads(before["result.json"])
    assert result["metrics"] == {"test_accuracy": 90.0}
    assert (result["schema"], result["seconds"]) == (1, 1.5)
    assert first.card.command
    assert first.card.data["environment"]["torch"] in before["README.md"].decode()


@pytest.mark.parametrize("gone", ["card.json", "result.json"])
def test_what_is_not_whole_is_made_again(tmp_path, gone):
    path = tmp_path / "a"
    work_in(folder(path), lambda: card(path))
    (path / gone).unlink()
    assert not work_in(folder(path), lambda: card(path)).before
    assert (path / gone).exists()


def test_what_another_command_made_is_refused(tmp_path):
    path = tmp_path / "a"
    work_in(folder(path), lambda: card(path))
    with pytest.raises(InputError, match=r"holds another run \(x=1 instead of 2\)"):
        work_in(folder(path, x=2), lambda: card(path))


def test_a_refused_input_leaves_no_folder(tmp_path):
    def refuse():
        raise InputError("no such file")

    with pytest.raises(InputError, match="no such file"):
        work_in(folder(tmp_path / "a"), refuse)
    assert not (tmp_path / "a").exists()


def test_a_result_that_is_no_run_is_left_out_of_reports(tmp_path):
    work_in(folder(tmp_path / "a"), lambda: card(tmp_path / "a"))
    with pytest.raises(InputError, match="holds no run"):
        find_runs(tmp_path)
