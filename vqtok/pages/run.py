"""Reads the folder of a training run, and makes the page that shows it."""

import json
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import files, images
from vqtok.errors import VqtokError
from vqtok.pages import codebook as codebook_page
from vqtok.pages import html
from vqtok.plots.curves import Panel, Series

LOG_FILE, RECIPE_FILE, RUN_FILE = "log.jsonl", "recipe.toml", "run.json"
LOG_BYTES = 256 << 20
SMALL_BYTES = 1 << 20
SHEETS_MAX = 12  # validations that are shown as images, the first and the last among them
STAGE_NAMES = {"tokenizer": "Tokenizer", "prior": "Prior", "entropy": "Entropy prior"}
# of the sheets that training writes: small images are enlarged to the one, the other lies between
SHEET_SIDE, SHEET_GAP = 96, 4
TERMS = {
    "psnr": "PSNR, dB",
    "bits": "bits per index",
    "usage": "codes used, %",
    "perplexity": "perplexity",
    "ms_ssim": "1 - MS-SSIM",
    "mse": "mean squared error",
    "learning_rate": "learning rate",
    "pictures_per_second": "images per second",
}
FIRST = ("loss", "psnr", "bits", "usage", "perplexity", "pictures_per_second")
COLUMNS_KEPT = ("stage", "step", "seconds")


@dataclass(frozen=True)
class Sheet:
    """Originals and reconstructions of one validation, uint8 (H, W, 3) each; pixels of the images
    are repeated `scale` times.
    """

    step: int
    before: np.ndarray
    after: np.ndarray
    scale: int


@dataclass(frozen=True)
class RunReport:
    """The readable content of a run's folder."""

    name: str
    lines: list[dict[str, Any]]  # of the log
    settings: dict[str, Any]
    command: str
    sheets: list[Sheet]
    notes: list[str]


@dataclass(frozen=True)
class RunInspection:
    """Findings from running a run's networks; empty where it has none yet."""

    codebook: codebook_page.CodebookMap | None = None
    samples: list[tuple[str, np.ndarray]] = field(default_factory=list)  # a caption and a sheet
    notes: list[str] = field(default_factory=list)


def read_run(folder: Path) -> RunReport:
    """Reads all files that are there.

    InputError where there is no log; what else is missing or damaged is
    left out, and a note says so.
    """
    lines, notes = _log(folder / LOG_FILE)
    settings = _settings(folder / RECIPE_FILE, notes)
    size = settings.get("data", {}).get("size") if isinstance(settings.get("data"), dict) else None
    sheets = _sheets(folder, size if isinstance(size, int) and 0 < size < 10_000 else 0, notes)
    return RunReport(
        folder.resolve().name, lines, settings, _command(folder / RUN_FILE), sheets, notes
    )


def _log(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the log's lines that are validations of a stage, and notes on damaged ones."""
    text = files.read_bytes(path, LOG_BYTES).decode("utf-8", "replace")
    found, bad = [], 0
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if (
            isinstance(entry, dict)
            and isinstance(entry.get("stage"), str)
            and _finite(entry.get("step"))
        ):
            found.append(entry)
        elif line.strip():
            bad += 1
    return found, [f"{bad} damaged lines of the log were left out"] if bad else []


def _finite(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) < 1e300
        and math.isfinite(value)
    )


def _settings(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(files.read_bytes(path, SMALL_BYTES).decode())
    except (VqtokError, ValueError, RecursionError):
        notes.append("its settings (recipe.toml) cannot be read")
        return {}


def _command(path: Path) -> str:
    try:
        run = json.loads(files.read_bytes(path, SMALL_BYTES))
        return str(run.get("command", "")) if isinstance(run, dict) else ""
    except (VqtokError, ValueError, RecursionError):
        return ""


def _sheets(folder: Path, size: int, notes: list[str]) -> list[Sheet]:
    """Reads the reconstruction sheets of up to SHEETS_MAX validations, by step."""
    named = [
        (int(match[1]), path)
        for path in folder.iterdir()
        if (match := re.fullmatch(r"tokenizer-(\d{6,12})\.png", path.name))
    ]
    named.sort()
    if len(named) > SHEETS_MAX:
        chosen = np.linspace(0, len(named) - 1, SHEETS_MAX).round().astype(int)
        notes.append(f"of {len(named)} validations, the images of {SHEETS_MAX} are shown")
        named = [named[i] for i in chosen]
    sheets = []
    for step, path in named:
        try:
            pixels = images.read_image(path).pixels
        except VqtokError as error:
            notes.append(str(error))
            continue
        halves = split_sheet(pixels, size)
        if halves is None:
            notes.append(f"{path.name} is not a sheet of images of {size} pixels")
        elif not sheets or halves[0].shape == sheets[0].before.shape:
            sheets.append(Sheet(step, *halves, max(1, SHEET_SIDE // size)))
    return sheets


def split_sheet(sheet: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Separates originals and reconstructions of a sheet (H, W, 3), whose rows alternate; None
    where it is no such sheet.
    """
    cell = size * max(1, SHEET_SIDE // size) + SHEET_GAP if size else 0
    count, rest = divmod(sheet.shape[0] - SHEET_GAP, cell) if cell else (0, 0)
    if count < 2 or count % 2 or rest:
        return None
    rows = sheet[SHEET_GAP:].reshape(count, cell, *sheet.shape[1:])
    before, after = (rows[i::2].reshape(-1, *sheet.shape[1:])[:-SHEET_GAP] for i in (0, 1))
    return before, after


def images_of(sheet: Sheet, size: int) -> list[np.ndarray]:
    """Cuts the original images out of a sheet, uint8 (size, size, 3)."""
    cell = size * sheet.scale
    step = cell + SHEET_GAP
    H, W = sheet.before.shape[:2]
    return [
        sheet.before[top : top + cell : sheet.scale, left : left + cell : sheet.scale]
        for top in range(0, H - cell + 1, step)
        for left in range(SHEET_GAP, W - cell, step)
    ]


def page(run: RunReport, extra: RunInspection) -> bytes:
    """Returns the page of a run, one HTML file."""
    stages = [stage for stage in STAGE_NAMES if any(line["stage"] == stage for line in run.lines)]
    told = (
        "training has not reached a validation yet"
        if not stages
        else "; ".join(_told(run.lines, stage) for stage in stages)
    )
    notes = [html.paragraph(note, "note") for note in [*run.notes, *extra.notes]]
    return html.page(
        f"Training run {run.name}",
        told,
        [
            *notes,
            _reconstructions(run),
            *(_curves(run.lines, stage) for stage in stages),
            "" if extra.codebook is None else codebook_page.section(extra.codebook),
            samples(extra.samples),
            _timings(run.lines, stages),
            _all_settings(run),
            html.section("Log", html.folded("Every validation", _log_table(run.lines))),
        ],
    )


def _told(lines: list[dict[str, Any]], stage: str) -> str:
    last = [line for line in lines if line["stage"] == stage][-1]
    figure = next(
        (
            f"{name} {last[key]:.4g}"
            for key, name in (
                ("val_psnr", "PSNR"),
                ("val_bits", "bits per index"),
                ("val_loss", "loss"),
            )
            if _finite(last.get(key))
        ),
        "",
    )
    return (
        f"{STAGE_NAMES[stage].lower()}: step {int(last['step']):,}{', ' + figure if figure else ''}"
    )


def _reconstructions(run: RunReport) -> str:
    if not run.sheets:
        return ""
    pairs = [html.Pair(f"step {sheet.step:,}", sheet.before, sheet.after) for sheet in run.sheets]
    slider = html.compare(pairs, "Reconstructions of validation images")
    text = "Validation images, and what the tokenizer made of them at each validation."
    return html.section("Reconstructions", html.paragraph(text), slider)


def curves(lines: list[dict[str, Any]]) -> list[Panel]:
    """Makes a panel for each figure in a stage's log: over training, over validation, and over
    validation from fewer levels.
    """
    names = dict.fromkeys(
        key for line in lines for key in line if _finite(line[key]) and key not in COLUMNS_KEPT
    )
    bases: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        base = name.removeprefix("val_")
        depth = re.fullmatch(r"(.+?)_(\d+)", base) if name.startswith("val_") else None
        if depth and f"val_{depth[1]}" in names:
            series = f"validation, {depth[2]} level{'s' if depth[2] != '1' else ''}"
            bases.setdefault(depth[1], []).append((series, name))
        else:
            bases.setdefault(base, []).append(("validation" if name != base else "training", name))
    order = sorted(
        bases,
        key=lambda base: (
            FIRST.index(base) if base in FIRST else len(FIRST),
            base.startswith("restarts"),
            base,
        ),
    )
    return [_panel(base, bases[base], lines) for base in order]


def _panel(base: str, series: list[tuple[str, str]], lines: list[dict[str, Any]]) -> Panel:
    factor = 100.0 if base == "usage" else 1.0
    parts = [
        Series(
            name,
            [(float(line["step"]), factor * line[key]) for line in lines if _finite(line.get(key))],
        )
        for name, key in series
    ]
    return Panel(TERMS.get(base, base.replace("_", " ")), "step", parts, log=False)


def _curves(lines: list[dict[str, Any]], stage: str) -> str:
    mine = [line for line in lines if line["stage"] == stage]
    charts = [html.chart(panel, f"{STAGE_NAMES[stage]}, {panel.title}") for panel in curves(mine)]
    return html.section(
        f"{STAGE_NAMES[stage]}: curves",
        f'<div class="charts">{"".join(charts)}</div>' if any(charts) else "",
    )


def samples(sheets: list[tuple[str, np.ndarray]]) -> str:
    parts = [html.figure(html.image(sheet, caption), caption) for caption, sheet in sheets]
    return html.section("Samples", html.figures(parts) if parts else "")


def _timings(lines: list[dict[str, Any]], stages: list[str]) -> str:
    rows = []
    for stage in stages:
        mine = [line for line in lines if line["stage"] == stage]
        seconds = [line["seconds"] for line in mine if _finite(line.get("seconds"))]
        rates = [
            line["pictures_per_second"] for line in mine if _finite(line.get("pictures_per_second"))
        ]
        rate = float(np.median(rates)) if rates else None
        rows.append(
            [
                STAGE_NAMES[stage],
                int(mine[-1]["step"]),
                files.human_duration(max(seconds, default=0)),
                rate,
            ]
        )
    return html.section(
        "Timings",
        html.table(["stage", "steps", "time", "images per second, median"], rows) if rows else "",
    )


def _all_settings(run: RunReport) -> str:
    command = html.preformatted(run.command) if run.command else ""
    return html.section("Settings", command, settings(run.settings))


def settings(values: dict[str, Any]) -> str:
    """Shows the tables of a recipe, each folded; settings outside of tables come first."""
    loose = [[key, _shown(value)] for key, value in values.items() if not isinstance(value, dict)]
    parts = [html.table(["", ""], loose)] if loose else []
    for name, table in values.items():
        if isinstance(table, dict):
            parts.append(
                html.folded(
                    name,
                    html.table(
                        ["setting", "value"], [[key, _shown(value)] for key, value in table.items()]
                    ),
                )
            )
    return "".join(parts)


def _shown(value: Any) -> Any:
    return (
        ", ".join(map(str, value)) or "none"
        if isinstance(value, list)
        else str(value).lower()
        if isinstance(value, bool)
        else value
    )


def _log_table(lines: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(key for line in lines for key in line))[:60]
    return html.table(
        names,
        [
            [line[name] if isinstance(line.get(name), int | float | str) else "" for name in names]
            for line in lines
        ],
    )
