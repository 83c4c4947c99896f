import io
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from rich.console import Console

from vqtok import plots

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def flat(H: int, W: int, color: tuple[int, ...]) -> np.ndarray:
    return np.full((H, W, len(color)), color, np.uint8)


def box(image: np.ndarray, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(top, left, H, W) of the rectangle of that color;
    fails where the pixels of that color are no full rectangle.
    """
    rows, columns = np.nonzero((image == color).all(axis=2))
    top, left, H, W = rows.min(), columns.min(), np.ptp(rows) + 1, np.ptp(columns) + 1
    assert len(rows) == H * W
    return int(top), int(left), int(H), int(W)


def test_sheet_of_equal_images_fills_row_by_row():
    got = plots.sheet([flat(2, 3, RED), flat(2, 3, GREEN), flat(2, 3, BLUE)], columns=2, gap=1)
    assert got.shape == (7, 9, 3)
    assert got.dtype == np.uint8
    assert [box(got, color) for color in (RED, GREEN, BLUE)] == [
        (1, 1, 2, 3),
        (1, 5, 2, 3),
        (4, 1, 2, 3),
    ]
    assert (got == 255).all(axis=2).sum() == 7 * 9 - 3 * 6  # all else is background


def test_sheet_centers_mixed_sizes_and_turns_gray_to_color():
    got = plots.sheet(
        [flat(2, 6, RED), flat(8, 2, GREEN), flat(4, 4, (9,))],
        columns=2,
        gap=2,
        background=(1, 2, 3),
    )
    assert got.shape == (2 + 8 + 2 + 4 + 2, 2 + 6 + 2 + 2 + 2, 3)
    assert box(got, RED) == (5, 2, 2, 6)
    assert box(got, GREEN) == (2, 10, 8, 2)
    assert box(got, (9, 9, 9)) == (12, 3, 4, 4)
    assert tuple(got[0, 0]) == (1, 2, 3)


def test_sheet_has_no_more_columns_than_images():
    assert plots.sheet([flat(4, 4, RED)], columns=8, gap=0).shape == (4, 4, 3)


def test_sheet_enlarges_by_repeating_pixels():
    image = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    got = plots.sheet([image], columns=1, gap=0, scale=3)
    assert (got == np.kron(image, np.ones((3, 3, 1), np.uint8))).all()


def test_sheet_leaves_its_images_alone():
    image = flat(4, 4, RED)
    got = plots.sheet([image], columns=1, gap=0)
    got[:] = 0
    assert (image == RED).all()


def ink(image: np.ndarray, background: tuple[int, int, int]) -> int:
    return int((image != background).any(axis=2).sum())


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (250, 240, 10)])
def test_labels_show_under_their_images(background: tuple[int, int, int]):
    bare, labeled = (
        plots.sheet([flat(20, 90, RED), flat(20, 90, BLUE)], 2, labels, background=background)
        for labels in (None, ["airplane", ""])
    )
    assert labeled.shape[0] > bare.shape[0]
    assert labeled.shape[1] == bare.shape[1]
    assert box(labeled, RED)[:2] == (4, 4)
    under, right = labeled[24:, :98], labeled[24:, 98:]
    assert ink(under, background) > 50
    assert ink(right, background) == 0
    assert abs(under.astype(int) - background).max() > 120  # readable, not gray on gray


def test_a_label_widens_a_narrow_image_up_to_a_limit():
    names = ["automobile", "a-very-long-file-name-" * 400]
    short, long = (plots.sheet([flat(1, 1, RED)], 1, [name], gap=0) for name in names)
    assert 30 < short.shape[1] < plots.LABEL_WIDTH
    assert plots.LABEL_WIDTH - 20 < long.shape[1] <= plots.LABEL_WIDTH
    assert box(long, RED)[2:] == (1, 1)


@pytest.mark.parametrize(
    "label", ["Katze 猫", "line\nbreak\ttab", "bad \udcff byte", "\x1b[31mred\x00", "👍🏽", ""]
)
def test_any_label_can_be_drawn(label: str):
    one_line = plots.sheet([flat(8, 80, RED)], 1, ["x"])
    assert plots.sheet([flat(8, 80, RED)], 1, [label]).shape == one_line.shape


def test_side_by_side_keeps_pairs_in_rows():
    rows = [[flat(5, 70, RED), flat(5, 70, GREEN)], [flat(9, 70, BLUE), flat(9, 70, (7,))]]
    got = plots.side_by_side(rows, gap=2)
    assert got.shape == (2 + 5 + 2 + 9 + 2, 2 + 70 + 2 + 70 + 2, 3)
    assert [box(got, color)[:2] for color in (RED, GREEN, BLUE, (7, 7, 7))] == [
        (2, 2),
        (2, 74),
        (9, 2),
        (9, 74),
    ]


def test_side_by_side_headings_stand_over_their_columns():
    rows = [[flat(5, 90, RED), flat(5, 90, GREEN)]] * 2
    bare, headed = (
        plots.side_by_side(rows),
        plots.side_by_side(rows, ["original", "reconstruction"]),
    )
    assert headed.shape == (bare.shape[0] + plots.LINE_HEIGHT + 4, bare.shape[1], 3)
    assert (headed[-bare.shape[0] :] == bare).all()
    above = headed[: plots.LINE_HEIGHT + 4]
    assert ink(above[:, 98:], plots.WHITE) > ink(above[:, :98], plots.WHITE) > 50


def test_side_by_side_enlarges():
    got = plots.side_by_side([[flat(2, 2, RED), flat(2, 2, BLUE)]], scale=4)
    assert box(got, BLUE)[2:] == (8, 8)


def test_markdown_exactly():
    rows = [("vqtok", "31.20", "a|b"), ("JPEG", "9.05", None), ("", None, "two\nlines")]
    assert plots.markdown(("codec", "PSNR", "note"), rows) == (
        "| codec |  PSNR | note      |\n"
        "| ----- | ----: | --------- |\n"
        "| vqtok | 31.20 | a\\|b      |\n"
        "| JPEG  |  9.05 |           |\n"
        "|       |       | two lines |\n"
    )


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        (["31.2 dB", "-0.5", "1,650", "inf", ""], True),
        (["8x8", "tiny"], False),
        (["photo"], False),
        ([""], False),
        ([3, 2.5], True),
    ],
)
def test_columns_of_numbers_are_aligned_right(cells: list[object], right: bool):
    rule = plots.markdown(["x"], [[cell] for cell in cells]).splitlines()[1]
    assert rule.endswith(": |") == right
    assert (
        plots.rich_table(["x"], [[cell] for cell in cells]).columns[0].justify == "right"
    ) == right


def test_tables_without_rows():
    assert plots.markdown(["model", "K"], []) == "| model | K   |\n| ----- | --- |\n"
    assert plots.rich_table(["model"], []).row_count == 0


def test_a_short_row_is_a_bug():
    for make in (plots.markdown, plots.rich_table):
        with pytest.raises(AssertionError):
            make(["a", "b"], [["1"]])


def test_rich_table_shows_names_as_they_are():
    out = io.StringIO()
    table = plots.rich_table(
        ["file", "[b]PSNR[/b]"],
        [["[red]a[/red].png", 31.5], ["\x1b[2J.png", None]],
        title="[i]models[/i]",
    )
    Console(file=out, width=100, force_terminal=False).print(table)
    text = out.getvalue()
    assert all(
        part in text for part in ("[red]a[/red].png", "[b]PSNR[/b]", "[i]models[/i]", "31.5")
    )
    assert "\x1b" not in text


# Curves


SERIES = plots.Series("a <b>", [(0.05, 0.5), (0.2, 0.25), (0.1, 0.4), (0.3, float("nan"))])


def marks(svg: bytes, tag: str) -> list[dict[str, str]]:
    root = ElementTree.fromstring(svg)
    return [element.attrib for element in root.iter(f"{{http://www.w3.org/2000/svg}}{tag}")]


def test_curves_stand_where_their_axes_say():
    svg = plots.plot_svg("title & more", [plots.Panel("LPIPS", "bits", [SERIES])])
    # the first is the legend's
    dots = [(float(dot["cx"]), float(dot["cy"])) for dot in marks(svg, "circle")][1:]
    assert len(dots) == 3
    (x1, y1), (x2, y2), (x3, y3) = dots  # sorted by x
    assert y1 < y2 < y3  # larger is higher up
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)  # each twice the bits of the one before
    assert y2 - y1 == pytest.approx((0.5 - 0.4) / (0.4 - 0.25) * (y3 - y2), abs=0.2)
    texts = {
        e.text: e.attrib
        for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    }
    assert {"title & more", "a <b>", "LPIPS", "bits"} <= set(texts)
    assert float(texts["0.1"]["x"]) == pytest.approx(x2, abs=0.1)
    assert float(texts["0.4"]["y"]) - 4 == pytest.approx(y2, abs=0.1)


def test_both_formats_show_the_same():
    panels = [
        plots.Panel("A", "bits", [SERIES]),
        plots.Panel("B", "bits", [plots.Series("second", [(1.0, 2.0)])]),
    ]
    svg, pixels = plots.plot_svg("t", panels), plots.plot_image("t", panels)
    root = ElementTree.fromstring(svg)
    assert pixels.shape == (2 * int(root.attrib["height"]), 2 * int(root.attrib["width"]), 3)
    for dot in marks(svg, "circle"):
        color = tuple(int(dot["fill"][i : i + 2], 16) for i in (1, 3, 5))
        assert tuple(pixels[round(2 * float(dot["cy"])), round(2 * float(dot["cx"]))]) == color
    for square in marks(svg, "polygon"):
        corners = np.array([corner.split(",") for corner in square["points"].split()], float)
        color = tuple(int(square["fill"][i : i + 2], 16) for i in (1, 3, 5))
        assert tuple(pixels[tuple((2 * corners.mean(0)).round().astype(int)[::-1])]) == color
    assert len({dot["fill"] for tag in ("circle", "polygon") for dot in marks(svg, tag)}) == 2


def test_curves_are_told_apart_without_color():
    """Dashes, markers and the name at the end differ;
    names of curves that end at one height lie below one another.
    """
    series = [
        plots.Series(f"curve {i}", [(x, 1.0 + i / 1000 * (3 - x)) for x in (1.0, 2.0, 3.0)])
        for i in range(4)
    ]
    svg = plots.plot_svg("t", [plots.Panel("p", "steps", series, log=False)], legend=False)
    assert (
        len(
            {
                line.get("stroke-dasharray")
                for line in marks(svg, "polyline")
                if line["class"].startswith("c")
            }
        )
        == 4
    )
    corners = [len(polygon["points"].split()) for polygon in marks(svg, "polygon")]
    assert (len(marks(svg, "circle")), sorted(set(corners))) == (3, [3, 4])
    ends = sorted(float(text["y"]) for text in marks(svg, "text") if text["class"].startswith("c"))
    assert len(ends) == 4
    assert min(np.diff(ends)) >= 12


def test_a_linear_axis_is_linear():
    svg = plots.plot_svg(
        "t",
        [
            plots.Panel(
                "p",
                "step",
                [plots.Series("s", [(0.0, 1.0), (50.0, 2.0), (100.0, 3.0)])],
                log=False,
            )
        ],
    )
    xs = [float(dot["cx"]) for dot in marks(svg, "circle")][1:]
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.02, 4.0], [0.5, 0.51], [0.0, 0.0], [-3.0, 7.0], [1e-9, 2e-9], [float("inf")]],
)
def test_axes_of_any_values_hold_them(values: list[float]):
    svg = plots.plot_svg(
        "t", [plots.Panel("p", "x", [plots.Series("s", [(abs(v) + 0.01, v) for v in values])])]
    )
    width, height = (
        float(ElementTree.fromstring(svg).attrib[side]) for side in ("width", "height")
    )
    for dot in marks(svg, "circle"):
        assert 0 < float(dot["cx"]) < width
        assert 0 < float(dot["cy"]) < height
    labels = [t for t in marks(svg, "text") if t["text-anchor"] == "middle"]
    assert len(labels) >= 3 or values == [float("inf")]


def test_labels_under_images_side_by_side():
    rows = [[flat(5, 90, RED), flat(5, 90, GREEN)]]
    bare, labeled = plots.side_by_side(rows), plots.side_by_side(rows, labels=[["2 kB", ""]])
    assert labeled.shape[0] > bare.shape[0]
    assert ink(labeled[9:, :98], plots.WHITE) > 30
    assert ink(labeled[9:, 98:], plots.WHITE) == 0
