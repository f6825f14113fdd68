"""Heat maps: as data, on the page and as pictures."""

import json
import os
import re

import numpy as np
import pytest

from umd_eqx.report import HeatMap, RunDirectory, write_webpage
from umd_eqx.report.heatmap import picture

VALUES = np.array([[10.0, 20.0], [30.0, float("nan")], [50.0, 15.25]])
MAP = HeatMap("Layers <1>", "A title", ("one", "two", "three & more"), ("0", "0.5"), "level", VALUES, (2, 0), "A note.")


def page(path) -> str:
    return write_webpage(RunDirectory.read(path)).read_text()


def write(path, name: str, content: object, when: float = 0.0) -> None:
    (path / "eval").mkdir(exist_ok=True)
    file = path / "eval" / f"{name}.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    os.utime(file, (when, when))


def test_a_map_is_the_same_after_json():
    again = HeatMap.from_json(json.loads(json.dumps(MAP.to_json(), allow_nan=False)))
    np.testing.assert_array_equal(again.values, VALUES)
    assert again._replace(values=None) == MAP._replace(values=None)


def test_the_page_shows_every_number_and_label_of_a_map(tmp_path):
    write(tmp_path, "layers", [{"heatmap": MAP.to_json()}])
    html = page(tmp_path)
    section = html[html.index("Layers &lt;1&gt;") :]
    for text in ("A title", "A note.", "one", "two", "three &amp; more", "level", "10.0", "50.0", "15.2"):
        assert text in section
    assert "nan" not in section
    colours = re.findall(r"fill: (#[0-9a-f]{6})", section)
    assert len({*colours} - {"#000000", "#ffffff"}) >= 5  # a colour for each number
    assert "var(--muted)" in section  # labels follow the style of the page


def test_the_newest_maps_are_shown_and_other_results_do_no_harm(tmp_path):
    for i in range(9):
        write(tmp_path, f"map-{i}", [{"heatmap": MAP._replace(title=f"Map {i}!").to_json()}], when=float(i))
    bad = MAP.to_json()
    others = ("", "{", [], {}, [3], [{"heatmap": 3}], [{"heatmap": bad | {"values": [[1]]}}], [{"heatmap": {}}])
    for i, content in enumerate((*others, [{"heatmap": bad | {"marked": "x"}}], [{"heatmap": bad | {"rows": []}}])):
        write(tmp_path, f"other-{i}", content, when=100.0)
    assert re.findall(r"<figcaption>(Map \d)!", page(tmp_path)) == [f"Map {i}" for i in (8, 7, 6, 5, 4, 3)]


def test_a_page_without_maps_has_no_section_for_them(tmp_path):
    assert "max-width:" not in page(tmp_path)[page(tmp_path).index("<body>") :]


def test_a_picture_is_brighter_where_numbers_are_larger():
    image = picture(MAP._replace(title=""))
    assert image.dtype == np.uint8
    # Twice the size on the page: cells of 168 x 60 from the right and lower edge, whose margin is 16.
    corners = {
        (row, column): image[image.shape[0] - 68 - 60 * (2 - row), image.shape[1] - 176 - 168 * (1 - column)]
        for row, column in np.ndindex(3, 2)
    }
    brightness = {cell: float(corner.mean()) for cell, corner in corners.items()}
    assert brightness.pop((1, 1)) == 255.0  # no number there
    assert [*sorted(brightness, key=brightness.__getitem__)] == [(0, 0), (2, 1), (0, 1), (1, 0), (2, 0)]
    assert picture(MAP).shape[0] > image.shape[0]  # a title takes space


@pytest.mark.parametrize("values", [np.full((1, 1), 7.0), np.full((1, 1), np.nan)])
def test_a_map_of_one_number_or_none_is_drawn(values):
    one = HeatMap("h", "t", ("a",), ("b",), "c", values)
    assert picture(one).size
    assert one.marked is None
