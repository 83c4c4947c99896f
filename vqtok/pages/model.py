"""Makes the page of a model: facts, curves of its quality over its bits beside those of other
codecs, codebook, samples, and its card as text.
"""

from dataclasses import dataclass, field
from typing import Any

from vqtok.pages import codebook as codebook_page
from vqtok.pages import html
from vqtok.pages.run import samples, settings
from vqtok.plots.curves import Panel


@dataclass(frozen=True)
class ModelReport:
    """Everything that the page of a model shows."""

    name: str
    fingerprint: str
    card: str  # Markdown; "" for none
    panels: list[Panel] | None  # quality over bits; None where nothing was measured
    source: str  # where the curves are from, as a sentence
    facts: list[tuple[str, Any]]  # names and values
    recipe: dict[str, Any]
    codebook: codebook_page.CodebookMap | None = None
    samples: list[tuple[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def page(model: ModelReport) -> bytes:
    """Returns the page, one HTML file."""
    return html.page(
        f"Model {model.name}",
        f"fingerprint {model.fingerprint}",
        [
            *(html.paragraph(note, "note") for note in model.notes),
            html.section("Facts", html.table(["", ""], model.facts)),
            "" if model.panels is None else _rates(model.panels, model.source),
            "" if model.codebook is None else codebook_page.section(model.codebook),
            samples(model.samples),
            html.section("Card", html.preformatted(model.card) if model.card else ""),
            html.section("Settings", settings(model.recipe)),
        ],
    )


def _rates(panels: list[Panel], source: str) -> str:
    """Draws each panel of two or more points: a single one is no curve."""
    charts = [
        html.chart(panel)
        for panel in panels
        if sum(len(series.points) for series in panel.series) > 1
    ]
    if not charts:
        source = f"{source} They are of one rate, without another codec: there are no curves."
    drawn = f'<div class="charts">{"".join(charts)}</div>' if charts else ""
    return html.section("Quality over bits", html.paragraph(source), drawn)
