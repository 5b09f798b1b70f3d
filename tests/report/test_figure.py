import re
import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from regraft.errors import InputError, MissingExtraError
from regraft.report import svg
from regraft.report.figure import PALETTE, Line, Panel, lines

HOSTILE = '<script>alert("x")</script> & $\\frac{1}{2}$ _漢'


def draw(label="a", **options):
    line = Line(label=label, x=[1, 2, 3], y=[1.0, 3.0, 2.0], low=[0, None, 1], high=[2, None, 3])
    return lines([Panel(title="t/" + label, lines=[line])], x_label="x", y_label="y", **options)


def texts(figure):
    return [text for element in ET.fromstring(figure).iter() if (text := element.text)]


@pytest.mark.parametrize("spread", ["band", "bars"])
def test_equal_input_gives_equal_bytes(spread):
    assert draw(spread=spread) == draw(spread=spread)


def test_the_users_style_does_not_leak_in_and_is_left_alone():
    plain = draw()
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.grid": False}):
        assert draw() == plain
        assert mpl.rcParams["font.size"] == 30


def test_pyplot_stays_out():
    sys.modules.pop("matplotlib.pyplot", None)
    draw()
    assert "matplotlib.pyplot" not in sys.modules


def test_text_is_text_and_names_are_only_names():
    figure = draw(HOSTILE)
    assert "<script" not in figure
    assert any(HOSTILE in text for text in texts(figure))
    assert HOSTILE in ET.fromstring(figure).attrib["aria-label"]


def test_a_name_with_an_underscore_is_in_the_legend():
    assert any(text.strip() == "_hidden" for text in texts(draw("_hidden")))
    assert not any(text.strip() == "_hidden" for text in texts(draw("_hidden", legend=False)))


def test_a_figure_file_follows_the_theme_and_asks_for_nothing():
    figure = draw()
    assert "prefers-color-scheme:dark" in figure
    assert "currentColor" in figure
    assert svg.INK not in figure
    assert "#000000" not in figure
    addresses = set(re.findall(r"https?://[^\"']+", figure))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "<metadata" not in figure
    assert "<!DOCTYPE" not in figure


def test_inside_a_page_no_style_leaks_and_ids_are_its_own():
    figure = svg.inline(draw(), "p1-")
    assert "<style" not in figure
    ids = re.findall(r' id="([^"]+)"', figure)
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', figure)
    assert ids
    assert all(name.startswith("p1-") for name in ids)
    assert len(ids) == len(set(ids))
    assert {a or b for a, b in references} == set(ids)


def test_equal_labels_look_equal_in_every_panel():
    a, b = (Line(label=label, x=[0, 1], y=[0.0, 1.0]) for label in "ab")
    both = lines([Panel(title="", lines=[a, b])], x_label="x", y_label="y", legend=False)
    alone = lines(
        [Panel(title="", lines=[b])], x_label="x", y_label="y", legend=False, order=["a", "b"]
    )
    assert PALETTE[0] in both
    assert PALETTE[0] not in alone
    assert PALETTE[1] in alone


def test_a_steep_start_does_not_set_the_scale():
    line = Line(label="a", x=list(range(9)), y=[-900.0, 80, 81, 82, 83, 84, 85, 86, 87])
    panel = [Panel(title="", lines=[line])]
    options = {"x_label": "x", "y_label": "y", "legend": False}
    assert any("−" in text for text in texts(lines(panel, **options)))
    assert not any("−" in text for text in texts(lines(panel, skip=0.25, **options)))


def test_ticks_of_a_log_axis_are_values_that_occur():
    line = Line(label="a", x=[300, 2100, 2105, 31000], y=[1.0, 2.0, 2.5, 3.0])
    figure = lines(
        [Panel(title="", lines=[line])], x_label="bytes", y_label="y", log_x=True, x_text=str
    )
    assert {"300", "2100", "31000"} <= set(texts(figure))
    assert "2105" not in texts(figure)


def test_arrays_empty_lines_and_points_alone_can_be_drawn():
    array = Line(label="a", x=np.arange(1, 4), y=np.ones(3), low=np.zeros(3), high=np.full(3, 2.0))
    empty = Line(label="b", x=[], y=[])
    panels = [Panel(title="1", lines=[array]), Panel(title="2", lines=[empty])]
    figure = lines(panels, x_label="x", y_label="y", joined=False, log_x=True, skip=0.5)
    assert {"a", "b"} <= {text.strip() for text in texts(figure)}


@pytest.mark.parametrize("spread", ["band", "bars"])
def test_axes_reach_as_far_as_lines_without_bounds(spread):
    line = Line(label="a", x=[100, 200], y=[10.0, 20.0])
    figure = lines([Panel(title="", lines=[line])], x_label="x", y_label="y", spread=spread)
    assert {"100", "200", "10.0", "20.0"} <= set(texts(figure))


def test_many_arms_stay_apart_by_dashes():
    arms = [Line(label=f"arm {i}", x=[0, 1], y=[0.0, float(i)]) for i in range(8)]
    figure = lines([Panel(title="", lines=arms)], x_label="x", y_label="y")
    assert "stroke-dasharray" in figure


@pytest.mark.parametrize(
    ("panels", "named"),
    [
        ([], "no points"),
        ([Panel(title="", lines=[Line(label="a", x=[], y=[])])], "no points"),
        ([Panel(title="", lines=[Line(label="a", x=[1, 2], y=[1.0])])], "'a' has parts of"),
        ([Panel(title="", lines=[Line(label="a", x=[1], y=[1.0], low=[])])], "'a' has parts of"),
        ([Panel(title="", lines=[Line(label="a", x=[0], y=[1.0])])], "numbers above 0"),
    ],
)
def test_what_cannot_be_drawn(panels, named):
    with pytest.raises(InputError, match=named):
        lines(panels, x_label="x", y_label="y", log_x=True)


def test_matplotlib_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"regraft\[report\]"):
        draw()


@pytest.mark.parametrize("color", PALETTE)
@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"])
def test_colours_stand_out_in_light_and_dark(color, ground):
    first, second = sorted((luminance(color), luminance(ground)))
    assert (second + 0.05) / (first + 0.05) >= 3


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_bars_at_one_value_are_drawn_beside_each_other_within_bounds():
    line = [Line(label=str(i), x=[1.0, 2.0], y=[1.0, 1.0]) for i in range(16)]
    figure = lines(
        [Panel(title="t", lines=line)], x_label="x", y_label="y", spread="bars", legend=False
    )
    marks = sorted({float(x) for x in re.findall(r'<use [^>]*x="([\d.]+)"', figure)})
    first = [m for m in marks if m < sum(marks) / len(marks)]
    assert len(first) == 16
    assert max(first) - min(first) == pytest.approx(21.0, abs=0.5)
