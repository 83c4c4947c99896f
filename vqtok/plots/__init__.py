"""Draws contact sheets, curves and tables."""

from vqtok.plots.curves import Panel, Series, plot_image, plot_svg
from vqtok.plots.rates import CODEC_TITLES, FIGURES_FILE, rate_panels, read_figures
from vqtok.plots.sheets import LABEL_WIDTH, LINE_HEIGHT, WHITE, sheet, side_by_side
from vqtok.plots.tables import markdown, rich_table

__all__ = [
    "CODEC_TITLES",
    "FIGURES_FILE",
    "LABEL_WIDTH",
    "LINE_HEIGHT",
    "WHITE",
    "Panel",
    "Series",
    "markdown",
    "plot_image",
    "plot_svg",
    "rate_panels",
    "read_figures",
    "rich_table",
    "sheet",
    "side_by_side",
]
