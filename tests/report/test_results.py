import os

import pytest

from regraft.errors import InputError
from regraft.files import load_json
from regraft.report.claims import Claim
from regraft.report.plots import learning_curves
from regraft.report.results import write_results
from regraft.report.runs import find_runs
from regraft.report.table import Row, rows

ROW = Row(setting="digits/width=1", arm="a", metric="test_accuracy", unit="%", n=1, mean=200 / 3)
HELD = Claim(paper="IteRand beats edge-popup.", held=True, evidence=["digits/width=1"])


def write(folder, name="iterand", **values):
    arguments = {
        "title": "IteRand",
        "question": "Does it help?",
        "recipe": "iterand",
        "scale": "cpu",
        "command": "regraft reproduce iterand --scale cpu",
        "hardware": "2 cores",
        "commit": "abc1234",
        "seconds": 1234.5678,
        "rows": [ROW],
        "claims": [HELD],
        "figures": {},
        "reading": "It *does*.",
    }
    return write_results(folder, name, **(arguments | values))


def test_the_json_has_the_agreed_shape(tmp_path, comparison):
    found = rows(find_runs(comparison))
    claim = Claim(paper="p", held=False, evidence=["digits/mlp/width=1"], note="Too few seeds.")
    write(tmp_path, rows=found, claims=[claim])
    data = load_json(tmp_path / "iterand.json", ours=True)
    assert list(data) == (
        ["recipe", "scale", "command", "commit", "hardware", "seconds", "rows", "claims"]
    )
    assert data["claims"] == [
        {
            "paper": "p",
            "state": "did not hold",
            "held": False,
            "evidence": ["digits/mlp/width=1"],
            "note": "Too few seeds.",
        }
    ]
    seeds = data["rows"][1]["values"]
    assert list(seeds) == ["1", "2", "3"]
    assert sum(seeds.values()) / 3 == pytest.approx(data["rows"][1]["mean"])
    assert data["seconds"] == 1234.57
    assert [row.get("control") for row in data["rows"]] == [None, "edge_popup"] * 2
    assert "control" not in data["rows"][0]
    assert data["rows"][1]["paired_difference"] == pytest.approx(1.2)


def test_numbers_keep_six_digits(tmp_path):
    write(tmp_path)
    assert '"mean": 66.6667,' in (tmp_path / "iterand.json").read_text()


def test_the_page_has_everything(tmp_path, comparison):
    curves = learning_curves(find_runs(comparison))
    failed = Claim(paper="By far", held=False, evidence=["digits/width=1"], note="By little.")
    paths = write(tmp_path, claims=[HELD, failed], figures={"curves": curves})
    assert [path.name for path in paths] == ["iterand-curves.svg", "iterand.md", "iterand.json"]
    assert (tmp_path / "iterand-curves.svg").read_text() == curves
    page = (tmp_path / "iterand.md").read_text()
    for said in [
        "# IteRand\n\nDoes it help?",
        "- **Held:** IteRand beats edge-popup. Evidence: digits/width=1.",
        "- **Did not hold:** By far. By little. Evidence: digits/width=1.",
        "| digits/width=1 | a | – | 66.7 – | – | 1 |",
        "![Curves](iterand-curves.svg)",
        "It *does*.",
        "```sh\nregraft reproduce iterand --scale cpu\n```",
        "- Hardware: 2 cores\n- Commit: abc1234\n- Time: 21 min",
    ]:
        assert said in page, said


def test_equal_arguments_give_equal_bytes(tmp_path):
    contents = [[path.read_bytes() for path in write(tmp_path / str(i))] for i in range(2)]
    assert contents[0] == contents[1]


def test_a_command_with_a_fence_stays_inside_its_own(tmp_path):
    write(tmp_path, command="echo '```'")
    assert "````sh\necho '```'\n````" in (tmp_path / "iterand.md").read_text()


def test_the_json_comes_last(tmp_path, monkeypatch):
    replace = os.replace

    def fail_on_page(source, target):
        if str(target).endswith(".md"):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_on_page)
    with pytest.raises(InputError, match=r"iterand\.md cannot be written"):
        write(tmp_path, figures={"curves": "<svg/>"})
    assert [path.name for path in tmp_path.iterdir()] == ["iterand-curves.svg"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "../escape"}, "name is"),
        ({"name": ""}, "name is"),
        ({"figures": {"a/b": "<svg/>"}}, "a figure's name is 'a/b'"),
        ({"rows": []}, "rows is empty"),
        ({"seconds": float("nan")}, "not finite"),
        ({"claims": [Claim(paper="p", held=True, evidence=[])]}, "has no evidence"),
        ({"claims": [Claim(paper="p", held=True, evidence=["x"])]}, "no setting of the rows"),
        (
            {"claims": [Claim(paper="p", held=False, evidence=["digits/width=1"])]},
            "did not hold and has no note",
        ),
    ],
)
def test_what_is_refused_leaves_no_file(tmp_path, values, named):
    with pytest.raises(InputError, match=named):
        write(tmp_path / "out", **values)
    assert not (tmp_path / "out").exists()
