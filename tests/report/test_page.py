import html
import re
import sys
from html.parser import HTMLParser

import pytest

from regraft.errors import MissingExtraError
from regraft.files import write_json
from regraft.report.claims import Claim
from regraft.report.figure import Line, Panel, lines
from regraft.report.page import render_page
from regraft.report.runs import find_runs

HOSTILE = "</svg><script>alert('x')</script><img src=x onerror=\"alert(1)\">"
VOID = {"meta", "path", "circle", "use", "rect"}


class Outline(HTMLParser):
    """Checks that tags nest, and collects them with their text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(comparison):
    claims = [
        Claim(paper="IteRand wins", held=True, evidence=["digits/mlp/width=1"]),
        Claim(paper="By far", held=False, evidence=["digits/mlp/width=1"], note="By little."),
    ]
    return render_page(
        find_runs(comparison),
        title="IteRand on digits",
        question="Does it help?",
        command="regraft reproduce iterand",
        hardware="2 cores",
        commit="abc1234",
        date="2026-01-02",
        claims=claims,
        reading="First.\n\nSecond.",
    )


def test_it_says_what_was_run_and_found(page):
    text = " ".join(Outline(page).text)
    for said in [
        "IteRand on digits",
        "Does it help?",
        "13 runs",
        "12 finished",
        "1 unfinished",
        "✓ Held",
        "✗ Did not hold",
        "By little.",
        "+1.2",
        "[1.0, 1.4]",
        "Against edge_popup",
        "First.",
        "Learning curves",
        "Test accuracy against width and stored bytes",
        "Unfinished runs",
        "regraft reproduce iterand",
        "2 cores",
        "abc1234",
        "2026-01-02",
        "2.11.0",
        "0123456789abcdef",
    ]:
        assert said in text, said


def test_it_is_the_same_every_time_and_knows_no_clock(comparison):
    first, second = (render_page(find_runs(comparison), title="t") for _ in range(2))
    assert first == second


def test_it_is_self_contained(page):
    tags = Outline(page).tags
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags}
    assert not any("src" in attributes for _, attributes in tags)
    assert all(
        value.startswith("#")
        for _, attributes in tags
        for key, value in attributes.items()
        if key.endswith("href")
    )
    assert "url(#" in page
    assert not re.search(r"url\((?!#)|@import", page)


def test_it_is_accessible(page):
    tags = Outline(page).tags
    assert all(attributes.get("scope") for tag, attributes in tags if tag == "th")
    for tag, attributes in tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert ("html", {"lang": "en"}) in tags


def test_only_differences_whose_interval_excludes_zero_are_bold(page):
    cells = re.findall(r'<td class="number( clear)?">(\+1\.2|–)</td>', page)
    assert cells == [("", "–"), (" clear", "+1.2")] * 2 + [("", "–")]


def test_names_are_only_names(make_run, tmp_path):
    make_run(arm="control", setting=HOSTILE)
    make_run(arm=HOSTILE, setting=HOSTILE, control="control")
    claim = Claim(paper=HOSTILE, held=True, evidence=[HOSTILE], note=HOSTILE)
    said = dict.fromkeys(("question", "command", "hardware", "commit", "date", "reading"), HOSTILE)
    page = render_page(find_runs(tmp_path), title=HOSTILE, claims=[claim], **said)
    outline = Outline(page)
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}
    assert not any("onerror" in attributes for _, attributes in outline.tags)
    assert HOSTILE in html.unescape(page)


def test_runs_without_results_are_listed(make_run, tmp_path):
    make_run(finished=False)
    page = render_page(find_runs(tmp_path), title="t")
    assert "No run has finished yet." in page
    assert "Unfinished runs" in page
    assert "Learning curves" in page


def test_runs_without_curves_have_none(make_run, tmp_path):
    make_run(epochs=0)
    assert "Learning curves" not in render_page(find_runs(tmp_path), title="t")


def test_several_controls_get_a_column(make_run, tmp_path):
    for arm, control in [("a", None), ("b", "a"), ("c", "b")]:
        make_run(arm=arm, control=control)
    page = render_page(find_runs(tmp_path), title="t")
    assert '<th scope="col">Control</th>' in page
    assert "Against" not in page


def test_a_setting_may_vary_from_zero(make_run, tmp_path):
    for sparsity in ("0", "0.5"):
        make_run(setting=f"digits/sparsity={sparsity}")
    page = render_page(find_runs(tmp_path), title="t")
    assert "Test accuracy against sparsity and stored bytes" in page


def test_figures_of_ones_own(make_run, tmp_path):
    make_run()
    line = Line(label="barrier", x=[0, 0.5, 1], y=[1.0, 2.0, 1.0])
    own = lines([Panel(title="", lines=[line])], x_label="λ", y_label="Loss")
    page = render_page(find_runs(tmp_path), title="t", figures={"Interpolation": own})
    assert "Interpolation</h2>" in page
    assert "Loss against λ for barrier" in page


def test_what_differs_between_runs_is_listed_in_full(make_run, tmp_path):
    make_run(seed=1)
    write_json(make_run(seed=2) / "environment.json", {"torch": "2.12.0", "threads": 2})
    page = render_page(find_runs(tmp_path), title="t")
    assert "2.11.0, 2.12.0" in page
    assert "<dt>Threads</dt><dd>2</dd>" in page


def test_jinja_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"regraft\[report\]"):
        render_page([], title="t")


def test_settings_that_vary_a_number_and_settings_that_do_not_share_a_page(make_run, tmp_path):
    for share, accuracy in (("0.5", 80.0), ("0.9", 70.0)):
        make_run(setting=f"digits/mlp/frozen={share}", accuracy=accuracy)
    make_run(setting="cora/gcn", accuracy=60.0)
    runs = find_runs(tmp_path / "runs")
    text = render_page(
        runs,
        title="Both",
        question="?",
        command="c",
        hardware="h",
        commit="0",
        claims=[],
        reading="",
    )
    assert "cora/gcn" in text
    assert "frozen=0.9" in text
