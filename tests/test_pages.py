"""The parts of a report: hostile text, what the policy allows, cards, run folders, grids in color,
and images as characters.
"""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import image
from PIL import Image

from vqtok import images, plots
from vqtok.errors import InputError
from vqtok.pages import codebook as codebook_page
from vqtok.pages import codes as codes_page
from vqtok.pages import html
from vqtok.pages import model as model_page
from vqtok.pages import run as run_page
from vqtok.plots import palette, terminal_image

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m\u202e\udcff\n<b>"
)
VOID = {"meta", "link", "img", "input", "br", "circle", "polyline", "polygon"}


class Reader(HTMLParser):
    """Collects tags with their attributes and the text between them;
    fails on tags that do not close.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._open = "", []
        self.feed(data.decode())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def check_page(data: bytes) -> Reader:
    """What every page must be: whole, without network, handlers or styles of its own, and
    with a text for each image.
    """
    read = Reader(data)
    assert read.tags[0][0] == "html"
    policy = (
        next(
            m["content"]
            for m in read.attributes("meta")
            if m.get("http-equiv") == "Content-Security-Policy"
        )
        or ""
    )
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for name, pattern in (
        ("style", rb"<style>(.*?)</style>"),
        ("script", rb"<script>(.*?)</script>"),
    ):
        (content,) = re.findall(pattern, data, re.DOTALL)
        assert (
            f"{name}-src 'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"
            in policy
        )
    assert "unsafe" not in policy
    assert [s.get("type") for s in read.attributes("script")] == ["application/json"] * (
        len(read.attributes("script")) - 1
    ) + [None]
    for tag, attributes in read.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (
            tag,
            attributes,
        )
        assert (attributes.get("src") or "data:").startswith("data:")
        assert (attributes.get("href") or "data:").startswith(("data:", "http"))
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg" or (tag == "input" and attributes["type"] != "hidden"):
            assert attributes["aria-label"]
    # the empty icon
    assert len({"link", "iframe", "object", "base", "form"} & {tag for tag, _ in read.tags}) == 1
    return read


def test_text_from_files_stays_text():
    pair = html.Pair(HOSTILE, image(), image(seed=1))
    parts = [
        html.paragraph(HOSTILE, HOSTILE),
        html.table([HOSTILE, "b"], [[HOSTILE, HOSTILE], [1, float("nan")]], HOSTILE),
        html.figure(html.image(image(), HOSTILE), HOSTILE),
        html.folded(HOSTILE, html.preformatted(HOSTILE)),
        html.compare([pair, pair], HOSTILE, HOSTILE, HOSTILE, HOSTILE),
        html.script_data("codebook", {HOSTILE: [HOSTILE]}),
        html.chart(
            plots.Panel(
                HOSTILE, HOSTILE, [plots.Series(HOSTILE, [(1.0, 2.0), (2.0, 1.0)])], log=False
            )
        ),
        codes_page.bar([codes_page.Part(HOSTILE, 3), codes_page.Part("b", 1)]),
    ]
    data = html.page(HOSTILE, HOSTILE, [html.section(HOSTILE, *parts)])
    read = check_page(data)
    assert "alert(1)" in read.text  # it is there, as text
    assert not {"b"} & {tag for tag, _ in read.tags}
    assert len(read.attributes("script")) == 2
    assert "\x1b" not in data.decode()
    assert "\u202e" not in data.decode()
    (stored,) = re.findall(
        r'<script type="application/json" class="codebook">(.*?)</script>', data.decode(), re.DOTALL
    )
    assert json.loads(stored) == {HOSTILE: [HOSTILE]}
    assert "<" not in stored  # "<!--<script" would swallow the end of its element


@pytest.mark.slow
def test_small_images_are_kept_bit_for_bit_and_large_ones_shrink():
    def back(uri: str) -> np.ndarray:
        with Image.open(
            io.BytesIO(base64.b64decode(uri.removeprefix("data:image/webp;base64,")))
        ) as image:
            return np.asarray(image.convert("RGB"))

    assert (back(html.data_uri(image())) == image()).all()
    assert (back(html.data_uri(image(channels=1))) == image(channels=1)).all()
    big = np.zeros((4, 4000, 3), np.uint8)
    assert back(html.data_uri(big)).shape == (2, html.SIDE_MAX, 3)
    assert len(html.data_uri(image(600, 600))) < 0.7 * len(
        html.data_uri(image(600, 600), lossless=True)
    )


def test_a_long_table_is_cut_and_says_so():
    text = html.table(["a"], [[i] for i in range(html.ROWS_MAX + 7)])
    assert text.count("<tr>") == html.ROWS_MAX + 1
    assert "7 further rows" in text


def test_a_chart_tells_its_values_in_words_too():
    panel = plots.Panel(
        "PSNR, dB", "step", [plots.Series("validation", [(10.0, 20.5), (20.0, 22.25)])], log=False
    )
    chart = html.chart(panel, "Tokenizer, PSNR")
    assert 'aria-label="Tokenizer, PSNR over step: validation from 20.5 to 22.25"' in chart
    assert '<td class="n">22.25</td>' in chart
    assert html.chart(plots.Panel("x", "y", [plots.Series("s", [(1.0, float("nan"))])])) == ""


# Models

CARD = """# name (0123abcd)

Words with `code` and <b>tags</b>.

| levels | in files |
| -----: | -------: |
|      1 |     0.05 |

![an image](samples.png) [bad](javascript:alert(1))
"""
FIGURES = {
    "levels": [
        {"bpp_packed": 0.05, "psnr": 20.0, "lpips": None},
        "damaged",
        {"bpp_packed": True, "psnr": 20.0},
    ],
    "codecs": [
        {"codec": "jpeg", "bpp": 0.04, "psnr": 19.0},
        {"codec": HOSTILE, "bpp": 1, "psnr": 1},
    ],
}


def model_report(card: str = "", panels: list[plots.Panel] | None = None) -> model_page.ModelReport:
    return model_page.ModelReport(
        HOSTILE, "0123abcd", card, panels, HOSTILE, [("grid", HOSTILE)], {"data": {"size": HOSTILE}}
    )


def test_a_card_is_shown_as_it_is():
    read = check_page(model_page.page(model_report(CARD)))
    assert CARD.rstrip() in read.text
    assert "Quality over bits" not in read.text  # nothing was measured
    assert not {"b", "a", "img"} & {tag for tag, _ in read.tags}


def test_panels_come_from_figures():
    panels = plots.rate_panels({"m": FIGURES})
    assert list(panels) == ["psnr"]
    assert {series.name: series.points for series in panels["psnr"].series} == {
        "vqtok m": [(0.05, 20.0)],
        "JPEG": [(0.04, 19.0)],
        HOSTILE: [(1.0, 1.0)],
    }
    read = check_page(model_page.page(model_report(panels=list(panels.values()))))
    assert len(read.attributes("svg")) == 1
    one = plots.rate_panels({"m": {"levels": FIGURES["levels"]}})
    read = check_page(model_page.page(model_report(panels=list(one.values()))))
    assert read.attributes("svg") == []
    assert "there are no curves" in read.text


# Runs


def write_run(folder: Path, steps: list[int]) -> Path:
    """A run's folder as training leaves it, without weights: sheets of four images of 16x16."""
    folder.mkdir(parents=True)
    log = [
        {
            "stage": "tokenizer",
            "step": s,
            "loss": 1 / s,
            "val_loss": 2 / s,
            "psnr": 20.0 + s,
            "val_psnr": 21.0,
            "val_psnr_1": 19.0,
            "usage": 0.5,
            "seconds": float(s),
            "pictures_per_second": 9.0,
        }
        for s in steps
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (folder / "recipe.toml").write_text("seed = 1\n[data]\nsize = 16\n")
    originals = [image(16, 16, seed=i) for i in range(4)]
    for step in steps:
        decoded = [np.full_like(original, step % 256) for original in originals]
        images.write_image(
            folder / f"tokenizer-{step:06d}.png", plots.sheet([*originals, *decoded], 4, scale=6)
        )
    return folder


def test_a_run_is_read_and_shown(tmp_path: Path):
    run = run_page.read_run(write_run(tmp_path / "my run", [10, 20, 30]))
    assert (run.name, [sheet.step for sheet in run.sheets], run.notes) == (
        "my run",
        [10, 20, 30],
        [],
    )
    images = run_page.images_of(run.sheets[0], 16)
    assert all((got == image(16, 16, seed=i)).all() for i, got in enumerate(images))
    assert len(images) == 4
    assert (run.sheets[1].after[:96, 4:100] == 20).all()
    read = check_page(run_page.page(run, run_page.RunInspection()))
    assert [i["type"] for i in read.attributes("input")] == ["range", "range"]
    assert read.attributes("input")[1]["max"] == "2"
    assert "tokenizer: step 30, PSNR 21" in read.text
    panels = {panel.title: panel for panel in run_page.curves(run.lines)}
    assert list(panels)[:3] == ["loss", "PSNR, dB", "codes used, %"]
    assert [s.name for s in panels["PSNR, dB"].series] == [
        "training",
        "validation",
        "validation, 1 level",
    ]
    assert panels["codes used, %"].series[0].points[0] == (10.0, 50.0)


@pytest.mark.slow
def test_of_many_validations_a_few_are_shown(tmp_path: Path):
    run = run_page.read_run(write_run(tmp_path / "run", list(range(1, 31))))
    steps = [sheet.step for sheet in run.sheets]
    assert (len(steps), steps[0], steps[-1]) == (run_page.SHEETS_MAX, 1, 30)
    assert "of 30 validations, the images of 12 are shown" in run.notes


def test_a_damaged_or_hostile_run_is_shown_as_far_as_it_goes(tmp_path: Path):
    folder = write_run(tmp_path / HOSTILE.replace("/", "_").replace("\udcff", ""), [10, 20])
    lines = [
        "{",
        "[" * 100_000,
        "null",
        '{"stage": 3, "step": 1}',
        json.dumps({"stage": HOSTILE, "step": 1}),
        json.dumps({"stage": "tokenizer", "step": 30, HOSTILE: HOSTILE, "loss": HOSTILE}),
        '{"stage": "tokenizer", "step": 40, "loss": NaN, "psnr": 1e999, "x<y": 3}',
    ]
    with (folder / "log.jsonl").open("a") as log:
        log.write("\n".join(lines) + "\n")
    (folder / "recipe.toml").write_text("[data\n")
    (folder / "run.json").write_text(json.dumps({"command": HOSTILE}))
    (folder / "tokenizer-000030.png").write_bytes(b"no image")
    run = run_page.read_run(folder)
    assert run.notes[:2] == [
        "4 damaged lines of the log were left out",
        "its settings (recipe.toml) cannot be read",
    ]
    read = check_page(run_page.page(run, run_page.RunInspection(notes=[HOSTILE])))
    assert "x<y" in read.text
    with pytest.raises(InputError):
        run_page.read_run(tmp_path / "none")


# Codebooks and colors


def test_neighbors_are_the_nearest_other_codes():
    vectors = np.random.default_rng(0).normal(size=(40, 5))
    near, distances = codebook_page.neighbors(vectors, 3)
    for i in range(40):
        all_distances = np.linalg.norm(vectors - vectors[i], axis=1)
        wanted = [j for j in all_distances.argsort() if j != i][:3]
        assert near[i].tolist() == wanted
        assert distances[i] == pytest.approx(all_distances[wanted])


def test_the_map_puts_like_codes_side_by_side():
    side = np.arange(64) % 8, np.arange(64) // 8
    vectors = np.stack([10.0 * side[0], 1.0 * side[1]], axis=1)[
        np.random.default_rng(0).permutation(64)
    ]
    grid = vectors[codebook_page.arrangement(vectors, 8)].reshape(8, 8, 2)
    assert (np.abs(np.diff(grid, axis=1)) <= (0, 1)).all()
    assert (np.abs(np.diff(grid, axis=0))[..., 0] == 10).all()
    assert [codebook_page.columns_for(count) for count in (1, 2, 7, 128, 512, 1000)] == [
        1,
        2,
        4,
        16,
        32,
        40,
    ]


@pytest.mark.parametrize("K", [2, 3, 17])
def test_a_codebook_of_any_size_is_shown(K: int):
    draw = np.random.default_rng(0)
    counts = np.arange(2 * K).reshape(2, K)
    tiles = draw.integers(0, 256, (K, 4, 4, 1), dtype=np.uint8)
    read = check_page(
        html.page(
            "t",
            "s",
            [
                codebook_page.section(
                    codebook_page.CodebookMap(draw.normal(size=(K, 1)), tiles, counts, HOSTILE)
                )
            ],
        )
    )
    assert len(read.attributes("img")) == 2
    assert "never used" in read.text  # code 0


def test_colors_are_lighter_for_more_and_alike_for_the_alike():
    ramp = palette.heat(np.linspace(0, 5, 50), 5.0) @ (0.299, 0.587, 0.114)
    assert (np.diff(ramp) > 0).all()
    line = (
        np.linspace(0, 1, 200)[:, None] * [3.0, 1.0, 2.0]
        + np.random.default_rng(0).normal(size=(200, 3)) * 1e-9
    )
    light = palette.by_vectors(line) @ (0.299, 0.587, 0.114)
    assert abs(np.corrcoef(np.arange(200), light)[0, 1]) > 0.7
    numbered = palette.by_number(np.arange(1000).reshape(10, 100))
    assert numbered.shape == (10, 100, 3)
    assert len(np.unique(numbered.reshape(-1, 3), axis=0)) > 900


# Images as characters


@pytest.mark.parametrize(
    ("environment", "encoding", "wanted"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "utf-8", "truecolor"),
        ({"TERM": "xterm-256color"}, "UTF-8", "256"),
        ({"TERM": "xterm"}, "utf-8", "none"),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, "utf-8", "none"),
        ({}, "utf-8", "none"),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "utf-8", "none"),
        ({"TERM": "xterm-256color", "COLORTERM": "24bit"}, "ascii", "none"),
    ],
)
def test_colors_of_a_terminal(environment: dict[str, str], encoding: str, wanted: str):
    assert terminal_image.colors_of(environment, encoding) == wanted


def shown(lines: list[str]) -> np.ndarray:
    """The pixels (H, W, 3) that a terminal shows for half blocks of 24-bit color."""
    rows = []
    for line in lines:
        above, below = [], []
        for code, run in re.findall(r"\x1b\[([\d;]+)m(▀*)", line):
            if run:
                numbers = list(map(int, code.split(";")))
                assert (numbers[:2], numbers[5:7]) == ([38, 2], [48, 2])
                above += [numbers[2:5]] * len(run)
                below += [numbers[7:]] * len(run)
        rows += [above, below]
    return np.array(rows, np.uint8)


def test_half_blocks_hold_two_pixels_each():
    pixels = image(12, 20)
    assert (shown(terminal_image.lines(pixels, 20, 6, "truecolor")) == pixels).all()
    assert (
        shown(terminal_image.lines(pixels, 45, 50, "truecolor")) == pixels.repeat(2, 0).repeat(2, 1)
    ).all()
    odd = shown(terminal_image.lines(image(5, 3), 3, 3, "truecolor"))
    assert (odd == np.concatenate([image(5, 3), image(5, 3)[-1:]])).all()


@pytest.mark.parametrize("colors", terminal_image.COLORS)
@pytest.mark.parametrize("size", [(1, 1), (300, 2), (2, 300), (1000, 1000)])
def test_a_image_fits_its_terminal(colors: str, size: tuple[int, int]):
    lines = terminal_image.lines(image(*size), 30, 10, colors)
    plain = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in lines]
    assert 1 <= len(lines) <= 10
    assert max(map(len, plain)) <= 30
    assert all(line.endswith("\x1b[0m") for line in lines) == (colors != "none")


def test_256_colors_are_near_and_characters_follow_lightness():
    gray = np.linspace(0, 255, 24).astype(np.uint8)[None, :, None].repeat(2, 0)
    (line,) = terminal_image.lines(gray, 24, 1, "none")
    assert len(line) == 24
    assert [terminal_image.RAMP.index(c) for c in line] == sorted(
        terminal_image.RAMP.index(c) for c in line
    )
    assert line[-1] == "@"
    (line,) = terminal_image.lines(np.array([[[255, 0, 0], [0, 0, 0]]] * 2, np.uint8), 2, 1, "256")
    assert line == "\x1b[38;5;196;48;5;196m▀\x1b[38;5;16;48;5;16m▀\x1b[0m"
