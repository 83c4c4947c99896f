"""Writes a study's outputs: study.json, study.md, report.html and one sheet of all samples."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import files, images, plots
from vqtok.errors import VqtokError
from vqtok.pages import html
from vqtok.pages.run import read_run
from vqtok.plots import Panel, Series
from vqtok.study import measure, table
from vqtok.study.table import Result, Study

JSON, MARKDOWN, HTML, SHEET = "study.json", "study.md", "report.html", "samples.png"
SHOWN = 16  # samples of each system in the sheet of all
CURVES = (
    "Of images set aside for validation, which are few: the table's figures are of the test "
    "images. A VQ-VAE's curve begins when its tokenizer is trained, and the bits of its pixels "
    "are those of the table."
)


def write(folder: Path, study: Study) -> None:
    """Writes all files anew."""
    sheets = _sheets(folder, study)
    files.write_bytes(
        folder / JSON, (json.dumps(to_json(study), indent=1) + "\n").encode(), force=True
    )
    files.write_bytes(folder / MARKDOWN, to_markdown(study).encode(), force=True)
    files.write_bytes(folder / HTML, to_html(study, sheets, curves(folder, study)), force=True)
    if sheets:
        images.write_image(folder / SHEET, _all(sheets, study), force=True)


def to_json(study: Study) -> dict[str, Any]:
    """Returns all figures as plain values."""
    systems = [{**asdict(result), "bits": result.bits} for result in study.results]
    anchors = [asdict(anchor) for anchor in table.ANCHORS]
    return {
        "format": 1,
        **study.facts,
        "systems": systems,
        "anchors": anchors,
        "uniform": table.UNIFORM,
        "sentences": _told(study),
    }


def to_markdown(study: Study) -> str:
    """Returns the table, the published figures, and what both mean."""
    parts = [
        "# Study: why quantize at all",
        plots.markdown(study.headers, study.rows()),
        "Published on CIFAR-10:",
        plots.markdown(["system", "bits/dim", "source"], table.anchor_rows()),
        "## What the table shows",
        _list(table.sentences(study)),
        "## What it does not show",
        _list(table.cautions(study)),
        "## How it was made",
        plots.markdown(["", ""], [[name, _plain(value)] for name, value in study.facts.items()]),
    ]
    return "\n".join(part if part.endswith("\n") else f"{part}\n" for part in parts)


def to_html(study: Study, sheets: dict[str, np.ndarray], learned: list[Panel]) -> bytes:
    """Returns the page, one HTML file."""
    what = [[result.system, result.what] for result in study.results]
    samples = [
        html.figure(
            html.image(sheets[r.system], f"{study.samples} samples of {r.system}", lossless=False),
            f"{r.system}: {r.shown}",
        )
        for r in study.results
        if r.system in sheets
    ]
    sections = [
        html.section(
            "Table",
            html.table(study.headers, study.rows(), "Each trained for the same time"),
            html.table(["", ""], what),
        ),
        html.section("What the table shows", *map(html.paragraph, table.sentences(study))),
        html.section("What it does not show", *map(html.paragraph, table.cautions(study))),
        html.section(
            "While they learned",
            *map(html.chart, learned),
            html.paragraph(CURVES) if learned else "",
        ),
        html.section("Samples", html.figures(samples) if samples else ""),
        html.section(
            "Published on CIFAR-10",
            html.table(["system", "bits/dim", "source"], table.anchor_rows()),
        ),
        html.section(
            "How it was made",
            html.table(["", ""], [[name, _plain(value)] for name, value in study.facts.items()]),
        ),
    ]
    return html.page(
        "Why quantize at all", "raw pixels, latents, and what each costs in equal time", sections
    )


def curves(folder: Path, study: Study) -> list[Panel]:
    """Plots bits per dimension over seconds of training, for systems over raw pixels and for those
    with latents.
    """
    panels = []
    for title, raw in (("Raw pixels: bits/dim", True), ("With latents: bits/dim", False)):
        learned = [_learned(folder, result, study) for result in study.results if result.raw == raw]
        panels.append(Panel(title, "seconds of training", learned, log=False))
    return [panel for panel in panels if any(series.points for series in panel.series)]


def _learned(folder: Path, result: Result, study: Study) -> Series:
    """Plots a system's validations; a prior's bits per index are scaled to dimensions, and the bits
    of the pixels are added.
    """
    try:
        lines = read_run(folder / result.system).lines
    except VqtokError:
        lines = []
    ours = [
        line
        for line in lines
        if line["stage"] != "tokenizer"
        and all(isinstance(line.get(k), float) for k in ("seconds", "val_bits"))
    ]
    scale, rest = 1.0, 0.0  # a VAE's are of all, and per dimension
    if result.alphabet:
        scale, rest = result.symbols / study.shape.dimensions, result.bits_pixels
    points = [
        (result.tokenizer_seconds + line["seconds"], scale * line["val_bits"] + rest)
        for line in ours
    ]
    return Series(result.system, points)


def _told(study: Study) -> list[str]:
    return [*table.sentences(study), *table.cautions(study)]


def _list(sentences: list[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)


def _plain(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list) else str(value)


def _sheets(folder: Path, study: Study) -> dict[str, np.ndarray]:
    """Reads the sheet of each system's samples, where possible."""
    found = {}
    for result in study.results:
        try:
            found[result.system] = images.read_image(
                measure.sheet_path(folder, result.system)
            ).pixels
        except VqtokError:
            continue
    return found


def _all(sheets: dict[str, np.ndarray], study: Study) -> np.ndarray:
    """Stacks the first rows of each system's sheet under its name, uint8 (H, W, 3)."""
    tile = study.shape.side * measure.scale_of(study.shape.side) + measure.GAP
    rows = -(-SHOWN // measure.SHEET_COLUMNS)
    tops = [sheet[: rows * tile + measure.GAP] for sheet in sheets.values()]
    labels = [f"{r.system}, {r.bits:.2f} bits/dim" for r in study.results if r.system in sheets]
    return plots.sheet(tops, 2, labels)
