import sys
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from regraft.errors import InputError, MissingExtraError
from regraft.report import svg
from regraft.report.surface import Surface, surfaces

VALUES = [[1.0, 2.0, 4.0], [2.0, 3.0, 5.0]]


def surface(values=VALUES, title="one", points=((0.0, 0.0), (2.0, 1.0))):
    return Surface(title=title, x=[0.0, 1.0, 2.0], y=[0.0, 1.0], values=values, points=points)


def draw(*panels, **options):
    return surfaces(panels or [surface()], label="Loss (nats)", **options)


def texts(figure):
    return [text.strip() for element in ET.fromstring(figure).iter() if (text := element.text)]


def test_titles_scale_and_numbered_points_are_in_the_figure():
    found = texts(draw(surface(), surface(title="two")))
    assert {"one", "two", "Loss (nats)", "1", "2"} <= set(found)
    label = ET.fromstring(draw()).attrib["aria-label"]
    assert label == "Loss (nats) over a plane, from 1 to 5. Panels: one."


@pytest.mark.parametrize("log", [False, True])
def test_the_scale_reaches_from_the_lowest_value_to_the_highest(log):
    found = set(texts(draw(log=log)))
    assert {"1", "5"} <= found
    assert ("2.24" in found) is log  # the root of five lies in the middle of equal ratios


def test_equal_input_gives_equal_bytes_whatever_the_users_style_is():
    plain = draw()
    assert draw() == plain
    with mpl.rc_context({"font.size": 30, "image.cmap": "gray"}):
        assert draw() == plain


def test_a_figure_file_follows_the_theme():
    figure = draw()
    assert "prefers-color-scheme:dark" in figure
    assert "currentColor" in figure
    assert svg.INK not in figure


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left_out(hole):
    assert "from 1 to 5" in draw(surface([[1.0, 2.0, hole], [2.0, 3.0, 5.0]]))
    assert "from 1 to 5" in draw(surface([[1.0, 2.0, 0.0], [2.0, 3.0, 5.0]]), log=True)


def test_equal_values_are_drawn_all_the_same():
    assert "from 3 to 3" in draw(surface([[3.0] * 3] * 2))


def test_nothing_to_draw_and_other_shapes_are_refused():
    with pytest.raises(InputError, match="hold no values"):
        draw(surface([[float("nan")] * 3] * 2))
    with pytest.raises(InputError, match="expected a value at each"):
        draw(surface([[1.0, 2.0]]))


def test_matplotlib_is_optional(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"regraft\[report\]"):
        draw()
