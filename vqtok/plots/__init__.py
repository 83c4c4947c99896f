"""Draws contact sheets, curves and tables."""

from typing import TYPE_CHECKING

from vqtok.lazy import lazy_names

if TYPE_CHECKING:
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


# Imported on first use: a sheet needs no curves, and one image of `vqtok sample` nothing of these.
if not TYPE_CHECKING:  # type checkers would take every name for one that is here
    __getattr__, __dir__ = lazy_names(
        __name__,
        __all__,
        curves="Panel Series plot_image plot_svg",
        rates="CODEC_TITLES FIGURES_FILE rate_panels read_figures",
        sheets="LABEL_WIDTH LINE_HEIGHT WHITE sheet side_by_side",
        tables="markdown rich_table",
    )
