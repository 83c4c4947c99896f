"""Curves over the bits per pixel, as SVG and as pixels: both drawn from one list of marks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqtok.report.tables import plain

PANEL_WIDTH, PANEL_HEIGHT = 440, 300        # of the area between the axes
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 84, 52   # around it: tick labels, title and legend, name of the axis
INK, FAINT, GRID = "#222222", "#666666", "#e4e4e4"
COLORS = ("#c2255c", "#1c7ed6", "#e8890c", "#868e96", "#2b8a3e", "#7048e8")      # the first is the one to look at
OVERSAMPLED, ENLARGED = 4, 2                # lines are drawn this much larger, and shrunk: Pillow's own have stairs
TICKS = ((1, 2, 5), (1, 2, 3, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))


@dataclass(frozen=True)
class Series:
    """A named curve; points are (x, y) with x > 0, those that are not finite are left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: x logarithmic, y linear."""

    title: str
    x_label: str
    series: Sequence[Series]


@dataclass(frozen=True)
class _Line:
    points: tuple[tuple[float, float], ...]
    color: str
    width: float


@dataclass(frozen=True)
class _Dot:
    x: float
    y: float
    radius: float
    color: str


@dataclass(frozen=True)
class _Label:
    x: float
    y: float                # of the baseline
    text: str
    size: int
    color: str = INK
    anchor: str = "start"   # or middle, end


_Mark = _Line | _Dot | _Label


def plot_svg(title: str, panels: Sequence[Panel]) -> bytes:
    """The panels side by side, with a title and one legend: an SVG file."""
    width, height, marks = _layout(title, panels)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    lines = [head + ' font-family="DejaVu Sans, Helvetica, Arial, sans-serif">', '<rect width="100%" height="100%" fill="#ffffff"/>']
    return "\n".join([*lines, *map(_svg, marks), "</svg>\n"]).encode()


def plot_picture(title: str, panels: Sequence[Panel]) -> np.ndarray:
    """The same picture as pixels, twice as large: uint8 (H, W, 3)."""
    width, height, marks = _layout(title, panels)
    canvas = Image.new("RGB", (width * OVERSAMPLED, height * OVERSAMPLED), "#ffffff")
    draw = ImageDraw.Draw(canvas)
    for mark in marks:
        _paint(draw, mark)
    return np.asarray(canvas.reduce(OVERSAMPLED // ENLARGED))


def _layout(title: str, panels: Sequence[Panel]) -> tuple[int, int, list[_Mark]]:
    """Width, height and marks of the whole picture."""
    assert panels
    names = list(dict.fromkeys(series.name for panel in panels for series in panel.series))
    colors = {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}
    step = LEFT + PANEL_WIDTH + RIGHT
    marks: list[_Mark] = [_Label(LEFT, 24, title, 15), *_legend(colors)]
    for i, panel in enumerate(panels):
        marks += _panel(panel, colors, LEFT + i * step)
    return step * len(panels), TOP + PANEL_HEIGHT + BOTTOM, marks


def _legend(colors: dict[str, str]) -> list[_Mark]:
    marks: list[_Mark] = []
    x, y = float(LEFT), 46
    for name, color in colors.items():
        marks += [_Line(((x, y - 4), (x + 22, y - 4)), color, 2.5), _Dot(x + 11, y - 4, 3.5, color), _Label(x + 28, y, name, 12)]
        x += 28 + _font(12).getlength(plain(name)) + 24
    return marks


def _panel(panel: Panel, colors: dict[str, str], left: float) -> list[_Mark]:
    """Grid, axes and curves; `left` is where the y axis stands."""
    curves = [(s.name, [(x, y) for x, y in s.points if x > 0 and math.isfinite(x) and math.isfinite(y)]) for s in panel.series]
    points = [point for _, curve in curves for point in curve]
    low_x, high_x, x_ticks = _log_axis([x for x, _ in points] or [1.0])
    low_y, high_y, y_ticks = _linear_axis([y for _, y in points] or [0.0])

    def place(x: float, y: float) -> tuple[float, float]:
        part = math.log(x / low_x) / math.log(high_x / low_x)
        return left + part * PANEL_WIDTH, TOP + (high_y - y) / (high_y - low_y) * PANEL_HEIGHT

    right, bottom = left + PANEL_WIDTH, TOP + PANEL_HEIGHT
    marks: list[_Mark] = [_Label(left, TOP - 12, panel.title, 12, FAINT), _Label(right, bottom + 38, panel.x_label, 12, FAINT, "end")]
    for tick in x_ticks:
        x, _ = place(tick, low_y)
        marks += [_Line(((x, TOP), (x, bottom)), GRID, 1), _Label(x, bottom + 18, f"{tick:g}", 11, FAINT, "middle")]
    for tick in y_ticks:
        _, y = place(low_x, tick)
        marks += [_Line(((left, y), (right, y)), GRID, 1), _Label(left - 8, y + 4, f"{tick:g}", 11, FAINT, "end")]
    marks.append(_Line(((left, TOP), (left, bottom), (right, bottom)), FAINT, 1))
    for name, curve in reversed(curves):        # the first lies on top
        placed = tuple(place(*point) for point in sorted(curve))
        marks += [_Line(placed, colors[name], 2.5)] if len(placed) > 1 else []
        marks += [_Dot(x, y, 3.5, colors[name]) for x, y in placed]
    return marks


def _log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends of a logarithmic axis that holds the values, and the ticks on it: three or more."""
    low, high = min(values) / 1.15, max(values) * 1.15
    if high < 2 * low:
        low, high = low / 1.4, high * 1.4
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in TICKS:
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits if low <= digit * 10.0**decade <= high]
        if len(ticks) >= 3:
            break
    return low, high, ticks


def _linear_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Ends of a linear axis that holds the values, and the ticks on it, both multiples of a round step."""
    low, high = min(values), max(values)
    span = high - low or abs(high) * 0.1 or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= span / 6)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = last if last > first else first + 1
    return first * step, last * step, [float(f"{i * step:.6g}") for i in range(first, last + 1)]


def _svg(mark: _Mark) -> str:
    if isinstance(mark, _Line):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
        return f'<polyline points="{points}" fill="none" stroke="{mark.color}" stroke-width="{mark.width:g}" stroke-linejoin="round"/>'
    if isinstance(mark, _Dot):
        return f'<circle cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="{mark.radius:g}" fill="{mark.color}"/>'
    place = f'x="{mark.x:.1f}" y="{mark.y:.1f}" font-size="{mark.size}" fill="{mark.color}" text-anchor="{mark.anchor}"'
    return f"<text {place}>{escape(plain(mark.text))}</text>"


def _paint(draw: ImageDraw.ImageDraw, mark: _Mark) -> None:
    s = OVERSAMPLED
    if isinstance(mark, _Line):
        draw.line([(x * s, y * s) for x, y in mark.points], fill=mark.color, width=round(mark.width * s), joint="curve")
    elif isinstance(mark, _Dot):
        draw.circle((mark.x * s, mark.y * s), mark.radius * s, fill=mark.color)
    else:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
        draw.text((mark.x * s, mark.y * s), plain(mark.text), fill=mark.color, font=_font(mark.size * s), anchor=anchor)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow is built without FreeType"
    return font
