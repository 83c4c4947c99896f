"""What a person looks at after training, sampling and evaluation:
contact sheets, tables, curves.
"""

from vqtok.plots.curves import Panel, Series, plot_image, plot_svg
from vqtok.plots.sheets import LABEL_WIDTH, LINE_HEIGHT, WHITE, sheet, side_by_side
from vqtok.plots.tables import markdown, rich_table

__all__ = [
    "LABEL_WIDTH",
    "LINE_HEIGHT",
    "WHITE",
    "Panel",
    "Series",
    "markdown",
    "plot_image",
    "plot_svg",
    "rich_table",
    "sheet",
    "side_by_side",
]
