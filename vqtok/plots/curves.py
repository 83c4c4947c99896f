"""Draws curves as SVG and as pixels, both from one list of marks.

A curve is recognized by its color, its dashes, the shape of its markers and the name at its end;
any one of them is enough.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from itertools import cycle

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqtok.plots.tables import plain

PANEL_WIDTH, PANEL_HEIGHT = 440, 300  # of the area between the axes
LEFT, TOP, BOTTOM = 60, 84, 52  # around it: tick labels, title and legend, name of the axis
LOW_TOP = 32  # without title and legend
END, END_MAX = 14, 160  # at the right: a gap, and the names of the curves, at most so wide
WIDER = 1.12  # a browser's font than the one that widths are measured with
NAME_STEP = 14  # from one name to the next below it
MARKERS = 24  # on one curve at most, or they hide it
INK, FAINT, GRID = "#222222", "#666666", "#e4e4e4"
# the first is the one to look at
COLORS = ("#c2255c", "#1c7ed6", "#e8890c", "#868e96", "#2b8a3e", "#7048e8")
# lines are drawn this much larger, and shrunk: Pillow's own have stairs
OVERSAMPLED, ENLARGED = 4, 2
DASHES: tuple[tuple[int, ...], ...] = ((), (8, 4), (2, 3), (10, 3, 2, 3), (5, 2), (14, 4))
CORNERS = (0, 4, 3, 4, 3, 5)  # of a marker; 0 is a round one
# what it is turned by, in corners: squares on their side, diamonds on their tip
TURNS = (0.0, 0.25, 0.5, 0.0, 0.0, 0.5)
TICKS = ((1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))


@dataclass(frozen=True)
class Series:
    """A named curve of points (x, y); points that are not finite, or x <= 0 on a logarithmic axis,
    are left out.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: y linear, x logarithmic or linear."""

    title: str
    x_label: str
    series: Sequence[Series]
    log: bool = True


@dataclass(frozen=True)
class _Line:
    points: tuple[tuple[float, float], ...]
    color: str
    width: float
    dash: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Dot:
    x: float
    y: float
    radius: float
    color: str
    kind: int = 0  # which of CORNERS

    @property
    def corners(self) -> list[tuple[float, float]]:
        """Returns the corners of a polygon; none for a circle."""
        count, radius = CORNERS[self.kind], self.radius * 1.35  # looks as large as a circle
        angles = [
            2 * math.pi * (i + TURNS[self.kind] * 2) / count - math.pi / 2 for i in range(count)
        ]
        return [
            (self.x + radius * math.cos(angle), self.y + radius * math.sin(angle))
            for angle in angles
        ]


@dataclass(frozen=True)
class _Label:
    x: float
    y: float  # of the baseline
    text: str
    size: int
    color: str = INK
    anchor: str = "start"  # or middle, end


_Mark = _Line | _Dot | _Label


def plot_svg(title: str, panels: Sequence[Panel], legend: bool = True) -> bytes:
    """Draws the panels side by side as an SVG file, with a title and one legend, or with neither.

    Colors are written as attributes, and as classes c0, c1, ..., ink, faint and grid, by
    which a page may change them.
    """
    width, height, marks = _layout(title, panels, legend)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}"'
    )
    name = (
        f' role="img" aria-label="{escape(plain(title))}" font-family="DejaVu Sans, '
        'Helvetica, Arial, sans-serif">'
    )
    lines = [head + name, '<rect class="ground" width="100%" height="100%" fill="#ffffff"/>']
    return "\n".join([*lines, *map(_svg, marks), "</svg>\n"]).encode()


def plot_image(title: str, panels: Sequence[Panel]) -> np.ndarray:
    """Draws the same as pixels, twice as large: uint8 (H, W, 3)."""
    width, height, marks = _layout(title, panels)
    canvas = Image.new("RGB", (width * OVERSAMPLED, height * OVERSAMPLED), "#ffffff")
    draw = ImageDraw.Draw(canvas)
    for mark in marks:
        _paint(draw, mark)
    return np.asarray(canvas.reduce(OVERSAMPLED // ENLARGED))


def _layout(
    title: str, panels: Sequence[Panel], legend: bool = True
) -> tuple[int, int, list[_Mark]]:
    """Returns width, height and marks of the whole plot."""
    assert panels
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    kinds = {name: i % len(COLORS) for i, name in enumerate(names)}
    right = (
        END
        + math.ceil(WIDER * min(END_MAX, max((_width(name) for name in names), default=0.0)))
        + 6
    )
    step, top = LEFT + PANEL_WIDTH + right, TOP if legend else LOW_TOP
    marks: list[_Mark] = [_Label(LEFT, 24, title, 15), *_legend(kinds)] if legend else []
    for i, panel in enumerate(panels):
        marks += _panel(panel, kinds, LEFT + i * step, top)
    return step * len(panels), top + PANEL_HEIGHT + BOTTOM, marks


def _legend(kinds: dict[str, int]) -> list[_Mark]:
    marks: list[_Mark] = []
    x, y = float(LEFT), 46
    for name, kind in kinds.items():
        color = COLORS[kind]
        marks += [
            _Line(((x, y - 4), (x + 30, y - 4)), color, 2.5, DASHES[kind]),
            _Dot(x + 15, y - 4, 3.5, color, kind),
        ]
        marks.append(_Label(x + 36, y, name, 12))
        x += 36 + _width(name) + 24
    return marks


def _width(name: str) -> float:
    return _font(12).getlength(plain(name))


def _panel(panel: Panel, kinds: dict[str, int], left: float, top: float) -> list[_Mark]:
    """Returns the marks of grid, axes and curves; `left` and `top` place the y axis."""
    curves = [
        (
            s.name,
            [
                (x, y)
                for x, y in s.points
                if (x > 0 or not panel.log) and math.isfinite(x) and math.isfinite(y)
            ],
        )
        for s in panel.series
    ]
    points = [point for _, curve in curves for point in curve]
    low_x, high_x, x_ticks = (_log_axis if panel.log else _linear_axis)(
        [x for x, _ in points] or [1.0]
    )
    low_y, high_y, y_ticks = _linear_axis([y for _, y in points] or [0.0])

    def position(x: float, y: float) -> tuple[float, float]:
        part = (
            math.log(x / low_x) / math.log(high_x / low_x)
            if panel.log
            else (x - low_x) / (high_x - low_x)
        )
        return left + part * PANEL_WIDTH, top + (high_y - y) / (high_y - low_y) * PANEL_HEIGHT

    right, bottom = left + PANEL_WIDTH, top + PANEL_HEIGHT
    marks: list[_Mark] = [
        _Label(left, top - 12, panel.title, 12, FAINT),
        _Label(right, bottom + 38, panel.x_label, 12, FAINT, "end"),
    ]
    for tick in x_ticks:
        x, _ = position(tick, low_y)
        marks += [
            _Line(((x, top), (x, bottom)), GRID, 1),
            _Label(x, bottom + 18, f"{tick:g}", 11, FAINT, "middle"),
        ]
    for tick in y_ticks:
        _, y = position(low_x, tick)
        marks += [
            _Line(((left, y), (right, y)), GRID, 1),
            _Label(left - 8, y + 4, f"{tick:g}", 11, FAINT, "end"),
        ]
    marks.append(_Line(((left, top), (left, bottom), (right, bottom)), FAINT, 1))
    placed = {
        name: tuple(position(*point) for point in sorted(curve)) for name, curve in curves if curve
    }
    for name, line in reversed(placed.items()):  # the first lies on top
        marks += _curve(line, kinds[name])
    return marks + _names(placed, kinds, right + END)


def _curve(points: tuple[tuple[float, float], ...], kind: int) -> list[_Mark]:
    """Returns a line, and markers on some of its points, the last one always among them."""
    color, every = COLORS[kind], math.ceil(len(points) / MARKERS)
    marks: list[_Mark] = [_Line(points, color, 2.5, DASHES[kind])] if len(points) > 1 else []
    return marks + [_Dot(x, y, 3.5, color, kind) for x, y in points[::-1][::every][::-1]]


def _names(
    placed: dict[str, tuple[tuple[float, float], ...]], kinds: dict[str, int], x: float
) -> list[_Mark]:
    """Writes the name of each curve beside its end, without overlaps."""
    marks: list[_Mark] = []
    lowest = -math.inf
    for name in sorted(placed, key=lambda name: placed[name][-1][1]):
        lowest = max(placed[name][-1][1] + 4, lowest + NAME_STEP)
        marks.append(_Label(x, lowest, _cut(name), 12, COLORS[kinds[name]]))
    return marks


def _cut(name: str) -> str:
    """Shortens a name to the width END_MAX."""
    short = name = plain(name)[:END_MAX]
    while short and _width(short) > END_MAX:
        name = name[:-1]
        short = name.rstrip() + "..."
    return short


def _log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Returns the ends of a logarithmic axis that holds the values, and three or more ticks."""
    low, high = min(values) / 1.15, max(values) * 1.15
    if high < 2 * low:
        low, high = low / 1.4, high * 1.4
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in TICKS:
        ticks = [
            float(f"{digit}e{decade}")
            for decade in decades
            for digit in digits
            if low <= digit * 10.0**decade <= high
        ]
        if len(ticks) >= 3:
            break
    return low, high, ticks


def _linear_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Returns the ends of a linear axis that holds the values, and its ticks: all are multiples of
    a round step.
    """
    low, high = min(values), max(values)
    span = high - low or abs(high) * 0.1 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= span / 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = last if last > first else first + 1
    return first * step, last * step, [float(f"{i * step:.6g}") for i in range(first, last + 1)]


_CLASSES = {
    INK: "ink",
    FAINT: "faint",
    GRID: "grid",
    **{color: f"c{i}" for i, color in enumerate(COLORS)},
}


def _svg(mark: _Mark) -> str:
    kind = f'class="{_CLASSES[mark.color]}"'
    if isinstance(mark, _Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
        dash = f' stroke-dasharray="{" ".join(map(str, mark.dash))}"' if mark.dash else ""
        stroke = (
            f'stroke="{mark.color}" stroke-width="{mark.width:g}"{dash} stroke-linejoin="round"'
        )
        return f'<polyline {kind} points="{points}" fill="none" {stroke}/>'
    if isinstance(mark, _Dot):
        if not mark.corners:
            return (
                f'<circle {kind} cx="{mark.x:.1f}" cy="{mark.y:.1f}" '
                f'r="{mark.radius:g}" fill="{mark.color}"/>'
            )
        return (
            f'<polygon {kind} points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in mark.corners)}" '
            f'fill="{mark.color}"/>'
        )
    position = (
        f'x="{mark.x:.1f}" y="{mark.y:.1f}" font-size="{mark.size}" fill="{mark.color}" '
        f'text-anchor="{mark.anchor}"'
    )
    return f"<text {kind} {position}>{escape(plain(mark.text))}</text>"


def _paint(draw: ImageDraw.ImageDraw, mark: _Mark) -> None:
    s = OVERSAMPLED
    if isinstance(mark, _Line):
        for part in _dashed(mark.points, mark.dash):
            draw.line(
                [(x * s, y * s) for x, y in part],
                fill=mark.color,
                width=round(mark.width * s),
                joint="curve",
            )
    elif isinstance(mark, _Dot) and mark.corners:
        draw.polygon([(x * s, y * s) for x, y in mark.corners], fill=mark.color)
    elif isinstance(mark, _Dot):
        draw.circle((mark.x * s, mark.y * s), mark.radius * s, fill=mark.color)
    else:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
        draw.text(
            (mark.x * s, mark.y * s),
            plain(mark.text),
            fill=mark.color,
            font=_font(mark.size * s),
            anchor=anchor,
        )


def _dashed(
    points: Sequence[tuple[float, float]], dash: tuple[int, ...]
) -> list[list[tuple[float, float]]]:
    """Cuts a line into the strokes of its dashes, which Pillow cannot draw itself; `dash` holds
    the lengths of stroke and gap in turn.
    """
    if not dash:
        return [list(points)]
    xs, ys = np.array(points).T
    along = np.hypot(np.diff(xs, prepend=xs[0]), np.diff(ys, prepend=ys[0])).cumsum()
    strokes, start = [], 0.0
    for length, gap in cycle(zip(dash[::2], dash[1::2], strict=True)):
        if start >= along[-1]:
            break
        stop = min(start + length, along[-1])
        ends = [start, *along[(along > start) & (along < stop)], stop]
        strokes.append(
            list(zip(np.interp(ends, along, xs), np.interp(ends, along, ys), strict=True))
        )
        start += length + gap
    return strokes


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return font
