import html
import json
import re
import shlex
import sys
from html.parser import HTMLParser

import pytest

from regraft.errors import InputError
from regraft.report import Line, Panel, lines
from regraft.report.card import ResultCard, command_of, read_card, write_card
from regraft.report.document import Cell, Figure, Table
from regraft.report.picture import png

HOSTILE = "</svg><script>alert('x')</script>\n| *a* `b` [c](d)"


def _drawing():
    line = Line(label="barrier", x=[0, 0.5, 1], y=[1.0, 2.0, 1.0])
    return lines([Panel(title="", lines=[line])], x_label="Share", y_label="Loss")


@pytest.fixture
def card():
    return ResultCard(
        kind="merge",
        title="A merge of 2 models",
        lines=["2 models were merged", "the barrier is 0.1 nats"],
        tables=[
            Table(title="Scores", headings=["", "accuracy (%)"], rows=[["model 1", "90.0"]]),
            Table(
                title="Path", headings=["", "n"], rows=[["a", Cell("3", "right", 100)]], note="low"
            ),
        ],
        figures=[Figure(title="Path", content=_drawing, caption="Loss", note="On 10 images.")],
        notes=["nothing was repaired"],
        files={"model.safetensors": "the merged weights"},
        command="regraft merge a b",
        next=["regraft predict /tmp/merged IMAGES"],
        summary=["mlp"],
        facts={"torch": "2.11.0"},
        data={"scores": {"model 1": {"accuracy": 90.0, "loss": float("nan")}}},
    )


def test_three_forms_say_the_same(card, tmp_path):
    written = write_card(tmp_path, card)
    names = ["model.safetensors", "README.md", "report.html", "card.json"]
    assert list(written.files) == names
    readme, page = ((tmp_path / name).read_text() for name in ("README.md", "report.html"))
    data = json.loads((tmp_path / "card.json").read_text())
    for text in (
        "2 models were merged",
        "90.0",
        "nothing was repaired",
        "regraft merge a b",
        "low",
    ):
        said = [text.casefold() in form.casefold() for form in (readme, page, json.dumps(data))]
        assert said == [True] * 3, text
    assert "On 10 images." in page
    assert "<dd>2.11.0</dd>" in page
    assert "regraft predict /tmp/merged IMAGES" in readme
    assert "regraft predict /tmp/merged IMAGES" in page
    assert data["files"] == names
    assert data["scores"] == {"model 1": {"accuracy": 90.0, "loss": None}}
    assert (
        page.index(">Scores</h2>") < page.index(">Path</h2>") < page.index(">How it was run</h2>")
    )


def test_what_is_finished_is_read_again(card, tmp_path):
    assert read_card(tmp_path) is None
    written = write_card(tmp_path, card)
    again = read_card(tmp_path)
    assert again is not None
    assert again.to_json() == written.to_json()


@pytest.mark.parametrize("text", ["[]", "{", '{"kind": "merge"}', '{"tables": 3}'])
def test_a_damaged_card_is_one_sentence(text, tmp_path):
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(InputError, match=r"card\.json is damaged"):
        read_card(tmp_path)


def test_the_card_is_written_last(card, tmp_path, monkeypatch):
    def broken(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(ResultCard, "to_markdown", broken)
    with pytest.raises(KeyboardInterrupt):
        write_card(tmp_path, card)
    assert not (tmp_path / "card.json").exists()


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_without_the_parts_of_a_page_the_rest_is_written(card, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    written = write_card(tmp_path, card)
    assert "report.html" not in written.files
    assert not (tmp_path / "report.html").exists()
    assert "report.html was left out" in written.notes[-1]
    assert "regraft[report]" in (tmp_path / "README.md").read_text().replace("\\", "")


def test_a_card_of_words_alone_has_no_page(tmp_path):
    written = write_card(tmp_path, ResultCard(kind="align", title="Aligned models"))
    assert list(written.files) == ["README.md", "card.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "card.json"]


def test_a_picture_is_a_file_and_on_both_pages(tmp_path):
    import torch

    picture = png(torch.zeros(2, 2, 1, dtype=torch.uint8))
    figure = Figure(
        title="Images", content=picture, file="images.png", note="A row for each class."
    )
    card = write_card(tmp_path, ResultCard(kind="condense", title="Images", figures=[figure]))
    assert (tmp_path / "images.png").read_bytes() == picture
    assert "images.png" in card.files
    assert "![Images](images.png)" in (tmp_path / "README.md").read_text()
    assert 'src="data:image/png;base64,' in (tmp_path / "report.html").read_text()


def test_names_are_only_names(tmp_path):
    table = Table(
        title=HOSTILE, headings=[HOSTILE, HOSTILE], rows=[[HOSTILE, HOSTILE]], note=HOSTILE
    )
    said = dict.fromkeys(("title", "command"), HOSTILE)
    several = {key: [HOSTILE] for key in ("lines", "notes", "next")}
    card = ResultCard(
        kind="x", tables=[table], files={"a": HOSTILE}, facts={"b": HOSTILE}, **said, **several
    )
    write_card(tmp_path, card)
    page, readme = ((tmp_path / name).read_text() for name in ("report.html", "README.md"))
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert "script" not in tags
    assert HOSTILE in html.unescape(page)
    prose = re.sub(r"(?s)```+sh\n.*?\n```+", "", readme)
    assert "<script>" not in prose.replace("\\<", "")
    assert "[c](d)" not in prose.replace("\\[", "")
    rows = [line for line in prose.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}


def test_the_first_column_and_shades_of_a_matrix(card):
    page = card.to_html()
    assert '<td class="number right" style="--share: 100">3</td>' in page
    assert '<th scope="row">model 1</th>' in page


def test_data_must_not_take_the_cards_own_names():
    with pytest.raises(ValueError, match="'files'"):
        ResultCard(kind="x", title="x", data={"files": 3})


def test_a_command_is_whole_and_quoted(tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    said = command_of("predict", Path("my run"), "IMAGES", model="my.module:build", data_root=None)
    words = ["regraft", "predict", str(tmp_path / "my run"), "IMAGES", "--model", "my.module:build"]
    assert shlex.split(said) == words
