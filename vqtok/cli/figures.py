"""Shows what `vqtok eval` measured: tables, curves, sheets, CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqtok.cli import output
from vqtok.cli.batch import Facts

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from vqtok.evaluate import Evaluation, View

SHEET_SIDE = 128  # smaller images are enlarged to about this
SHEET_CROP = 256  # of larger ones the middle is shown, pixel by pixel


@dataclass(frozen=True)
class Measured:
    """One model's figures, and what they are of."""

    model: str
    fingerprint: str
    data: str  # the data set's name
    result: "Evaluation"
    facts: Facts = field(default_factory=dict)  # more, for JSON

    def to_json(self) -> Facts:
        facts = {"model": self.model, "fingerprint": self.fingerprint, "data": self.data}
        return facts | self.result.to_json() | self.facts


def write_csv(path: Path, measured: Sequence[Measured], force: bool) -> None:
    """Writes a line for each model and number of levels, and for each codec beside it.

    `bpp` is of whole files: of compact ones where a model has an entropy prior, else of plain ones.
    """
    from vqtok import files
    from vqtok.evaluate.comparator import MEASURES

    names = ["model", "fingerprint", "data", "images", "coder", "levels", "times"]
    names += ["bpp", "bpp_raw", "bpp_plain", "bpp_compact", "bpp_prior"]
    for measure in MEASURES:
        names += [measure, f"{measure}_low", f"{measure}_high"]
    text = io.StringIO()
    table = csv.DictWriter(text, [*names, "fid", "usage", "perplexity"], lineterminator="\n")
    table.writeheader()
    for one in measured:
        figures = asdict(one.result)
        facts = {"model": one.model, "fingerprint": one.fingerprint, "data": one.data}
        facts["images"] = figures["pictures"]
        for row in figures["levels"]:
            bits = {"bpp": _file_bits(row), "bpp_raw": row["bpp"], "bpp_prior": row["bpp_coded"]}
            bits |= {key: row[key] for key in ("bpp_plain", "bpp_compact")}
            rest = {key: row[key] for key in ("levels", "fid", "usage", "perplexity")}
            table.writerow(facts | {"coder": "vqtok"} | bits | _bounded(row) | rest)
        for row in figures["codecs"]:
            rest = {key: row[key] for key in ("levels", "times", "bpp")}
            table.writerow(facts | {"coder": row["codec"]} | _bounded(row) | rest)
    files.write_bytes(path, text.getvalue().encode(), force)


def _bounded(row: Facts) -> Facts:
    """Each measure of a row with its 95 % bounds."""
    from vqtok.evaluate.comparator import MEASURES

    found = {}
    for measure in MEASURES:
        low, high = row["intervals"].get(measure, (None, None))
        found |= {measure: row[measure], f"{measure}_low": low, f"{measure}_high": high}
    return found


def _file_bits(row: Facts) -> float:
    """Bits per pixel of the files that the comparison counts."""
    return row["bpp_plain"] if row["bpp_compact"] is None else row["bpp_compact"]


def write_sheet(path: Path, rows: Sequence[Sequence["View"]], force: bool) -> None:
    """Writes originals, ours and the codecs' in rows; small images are enlarged, large ones show
    their middle at 1:1.
    """
    from vqtok import images, plots
    from vqtok.files import human_bytes

    columns = max(len(row) for row in rows)
    # a codec that does not take an image's size leaves its column out
    full = [row for row in rows if len(row) == columns]
    crops = [[_middle(view.image) for view in row] for row in full]
    labels = [
        [
            _size(view.image)
            if view.bytes is None
            else f"{human_bytes(view.bytes)}, {_bpp(view):.3f} bpp"
            for view in row
        ]
        for row in full
    ]
    scale = max(1, SHEET_SIDE // max(max(row[0].shape[:2]) for row in crops))
    headings = [view.name for view in full[0]]
    images.write_image(path, plots.side_by_side(crops, headings, scale=scale, labels=labels), force)


def _middle(image: "np.ndarray") -> "np.ndarray":
    H, W = image.shape[:2]
    top, left = max(0, H - SHEET_CROP) // 2, max(0, W - SHEET_CROP) // 2
    return image[top : top + SHEET_CROP, left : left + SHEET_CROP]


def _size(image: "np.ndarray") -> str:
    H, W = image.shape[:2]
    return f"{W}x{H}"


def _bpp(view: "View") -> float:
    assert view.bytes is not None
    return 8 * view.bytes / (view.image.shape[0] * view.image.shape[1])


def write_plot(path: Path, measured: Sequence[Measured], force: bool) -> None:
    """Writes curves of LPIPS, where it was measured, and of MS-SSIM."""
    from vqtok import files, images, plots

    found = plots.rate_panels({one.model: asdict(one.result) for one in measured})
    panels = [found[key] for key in ("lpips", "ms_ssim") if key in found]
    images_ = files.human_count(measured[0].result.pictures, "image")
    text = f"{', '.join(one.model for one in measured)} on {images_} of {measured[0].data}"
    files.write_bytes(path.with_suffix(".svg"), plots.plot_svg(text, panels), force)
    images.write_image(path.with_suffix(".png"), plots.plot_image(text, panels), force)


_NAMES = {
    "pictures": ("images", "d"),
    "psnr": ("PSNR, dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "dists": ("DISTS", ".4f"),
    "fid": ("FID", ".2f"),
    "normalized_error": ("error / variance", ".4f"),
    "usage": ("codes used", ".1%"),
    "perplexity": ("perplexity", ".1f"),
    "bpp": ("bits per pixel, raw", ".4f"),
    "bpp_plain": ("bits per pixel, files", ".4f"),
    "bpp_coded": ("bits per pixel, by the prior", ".4f"),
    "bits_per_dim": ("bits per dimension", ".3f"),
}
_LEVEL_COLUMNS = {
    "levels": ("levels", "d"),
    "bpp": ("bpp raw", ".4f"),
    "bpp_plain": ("files", ".4f"),
    "bpp_coded": ("by prior", ".4f"),
    "bpp_compact": ("compact", ".4f"),
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "dists": ("DISTS", ".4f"),
    "fid": ("FID", ".2f"),
    "usage": ("used", ".1%"),
    "perplexity": ("perplexity", ".1f"),
}
_CODEC_COLUMNS = {
    "bpp": ("bpp", ".4f"),
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "ms_ssim": ("MS-SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "dists": ("DISTS", ".4f"),
}


def print_tables(measured: Sequence[Measured], data: str) -> None:
    """Prints one model's figures of all levels, and a line for each of several levels; of several
    models one table of all their levels. Beside codecs, also a line for each codec at their bytes.
    """
    if len(measured) == 1:
        output.print_table(_figure_table(measured[0], data))
    rows = [{"model": one.model, **row} for one in measured for row in asdict(one.result)["levels"]]
    if len(rows) > 1:
        output.print_table(_level_table(rows, data if len(measured) > 1 else None))
    for one in measured:
        figures = asdict(one.result)
        output.print_table(_coder_table(figures["levels"], one.model))
        if one.result.codecs:
            measure = "MS-SSIM" if one.result.lpips is None else "LPIPS"
            output.print_table(_codec_table(figures, one.model, measure))


def _figure_table(measured: Measured, data: str) -> "Table":
    from vqtok import plots

    figures = asdict(measured.result)
    rows = []
    for key, (name, style) in _NAMES.items():
        if figures[key] is not None:
            bounds = [format(bound, style) for bound in figures["intervals"].get(key, ())]
            rows.append([name, format(figures[key], style), " to ".join(bounds) or None])
    bounded = any(row[2] for row in rows)
    headings = ["figure", "value", "95 % of means"] if bounded else ["figure", "value"]
    rows = [row[: len(headings)] for row in rows]
    return plots.rich_table(headings, rows, f"{measured.model} on {data}")


def _level_table(rows: list[Facts], data: str | None) -> "Table":
    """A line for each number of levels; of several models, `data` is named, and each model."""
    from vqtok import plots

    columns = {
        key: column
        for key, column in _LEVEL_COLUMNS.items()
        if any(row[key] is not None for row in rows)
    }
    names = [] if data is None else ["model"]
    lines = [[row["model"]][: len(names)] + _cells(row, columns) for row in rows]
    title = "by level; used and perplexity of that level"
    return plots.rich_table(
        [*names, *(name for name, _ in columns.values())],
        lines,
        title if data is None else f"on {data}, {title}",
    )


def _coder_table(levels: list[Facts], model: str) -> "Table":
    """Bits per pixel by our coders and by those of others."""
    from vqtok import plots
    from vqtok.evaluate import TITLES

    names = list(levels[0]["coders"])
    lines = [
        [str(row["levels"]), f"{row['bpp']:.4f}", *(f"{row['coders'][name]:.4f}" for name in names)]
        for row in levels
    ]
    return plots.rich_table(
        ["levels", "raw", *(TITLES[name] for name in names)],
        lines,
        f"bits per pixel of the grids of {model}; priors without, files with all overhead",
    )


def _codec_table(figures: Facts, model: str, measure: str) -> "Table":
    """Each level, and below it the other codecs at its bytes."""
    from vqtok import plots

    columns = {
        key: column
        for key, column in _CODEC_COLUMNS.items()
        if key == "bpp" or figures[key] is not None
    }
    lines: list[list[str | None]] = []
    for ours in figures["levels"]:
        others = [
            row
            for row in figures["codecs"]
            if row["levels"] == ours["levels"] and row["times"] == 1
        ]
        if others:
            cells = _cells(ours | {"bpp": _file_bits(ours)}, columns)
            lines.append([f"{model}, {ours['levels']}", *cells, None])
        for row in others:
            needs = ours["needs"][row["codec"]]
            needed = None if needs is None else f"{needs:.4f}"
            name = f"  {plots.CODEC_TITLES[row['codec']]}"
            lines.append([name, *_cells(row, columns), needed])
    return plots.rich_table(
        ["at the bytes of", *(name for name, _ in columns.values()), "needs bpp"],
        lines,
        f"other codecs at the same bytes, and the bpp that they need for the same {measure}",
    )


def _cells(row: dict[str, Any], columns: dict[str, tuple[str, str]]) -> list[str | None]:
    return [
        None if row[key] is None else format(row[key], style) for key, (_, style) in columns.items()
    ]
