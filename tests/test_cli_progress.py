"""Progress lines on a terminal: how many of how many, the pace, the time left, and one large
image; and the last line of many images.
"""

import io
import re

import pytest
from bulk_helpers import image_files, make_tar
from cli_helpers import ok, save
from conftest import image
from rich.console import Console
from rich.progress import Progress

from vqtok import ticks
from vqtok.cli import output, progress
from vqtok.codec import model as codec_model

pytestmark = pytest.mark.usefixtures("toy")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error is a terminal of 80 columns, whose content is returned."""
    text = io.StringIO()
    monkeypatch.setattr(output, "is_plain", lambda: False)
    monkeypatch.setattr(
        "rich.console.Console",
        lambda **options: Console(
            file=text,
            force_terminal=True,
            width=80,
            highlight=False,
            soft_wrap=options.get("soft_wrap", False),
            color_system=None,
        ),
    )
    return text


def shown(text: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue()).replace("\r", "\n")


@pytest.mark.slow
def test_many_images_are_counted_on_one_line(terminal: io.StringIO):
    for i in range(3):
        save(f"in/{i}.png", image(20, 30, seed=i))
    ok("encode", "in", "-o", "codes")
    text = shown(terminal)
    assert re.search(r"encode \d/3 ", text)
    assert "in/2.png -> codes/2.npz" in text  # messages stand above the line
    assert re.search(r"^encode -> codes  3 images, [\d.]+ k?B, [\d.]+ s, \d+ a second", text, re.M)
    for command, words in (
        ("decode", ["codes", "-o", "back"]),
        ("pack", ["codes", "-o", "small"]),
        ("unpack", ["small", "-o", "plain"]),
        ("truncate", ["codes", "--levels", 1, "-o", "less"]),
    ):
        terminal.truncate(0)
        ok(command, *words)
        assert re.search(rf"{command} 3/3 ", shown(terminal)), command
        assert f"{command} -> {words[-1]}  3 images, " in shown(terminal)
        terminal.truncate(0)
        ok(command, *words, "-f", "-q")
        assert terminal.getvalue() == ""


def test_the_last_line_is_there_without_a_terminal_and_for_several_only():
    for i in range(2):
        save(f"in/{i}.png", image(20, 30, seed=i))
    done = ok("encode", "in", "-o", "codes")
    assert re.fullmatch(
        r"encode -> codes  2 images, [\d.]+ k?B, [\d.]+ s(, \d+ a second)?",
        done.stderr.splitlines()[-1],
    )
    assert "images," not in ok("encode", "in/0.png").stderr
    assert ok("encode", "in", "-f", "--json").stderr == ""


@pytest.mark.slow
def test_shards_are_counted(terminal: io.StringIO):
    make_tar("a.tar", image_files(5))
    save("loose/x.png")
    ok("encode", "a.tar", "loose", "--shard-size", 2, "--workers", 0, "-o", "codes")
    assert re.search(r"encode 6/6 ", shown(terminal))
    assert "6 images in 4 shards -> codes  " in shown(terminal)
    terminal.truncate(0)
    ok("decode", "codes", "-o", "back")
    assert re.search(r"decode codes 6/6 ", shown(terminal))
    terminal.truncate(0)
    ok("pack", "codes", "-o", "small")
    assert re.search(r"pack 6/6 ", shown(terminal))


@pytest.mark.slow
def test_one_large_image_tells_its_parts(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codec_model, "PIXELS_AT_ONCE", 2**10)
    monkeypatch.setattr(progress, "LONG", -1.0)
    update = Progress.update

    def drawn(self, *arguments, **options):
        update(self, *arguments, **options)
        self.refresh()  # not ten times a second, but each time

    monkeypatch.setattr(Progress, "update", drawn)
    save("large.png", image(300, 40))
    ok("encode", "large.png")
    parts = {int(n) for n in re.findall(r"encode +(\d+)/75 ", shown(terminal))}
    assert 75 in parts
    terminal.truncate(0)
    ok("decode", "large.npz")
    assert re.search(r"decode 300/300 ", shown(terminal))


def test_ticks_reach_the_listener_alone():
    heard = []
    ticks.tell(1, 2)
    with ticks.listen(lambda done, total: heard.append((done, total))):
        ticks.tell(1, 3)
        with ticks.listen(lambda done, total: None):
            ticks.tell(2, 3)
    ticks.tell(3, 3)
    assert heard == [(1, 3)]


def test_training_shows_step_total_and_time_left_first_at_80_columns(terminal: io.StringIO):
    figures = "  ".join(["PSNR 21.53 dB", "codes used 97%", "perplexity 812"] * 3)
    with progress.lines("{task.fields[text]}") as line:
        task = line.add_task("tokenizer", total=120_000, text="")
        line.update(task, completed=12_345, text=f"123 images/s  {figures}")
        line.refresh()
    last = [row for row in shown(terminal).split("\n") if "12345" in row][-1]
    assert re.match(r"tokenizer *12345/120000 [\d:-]+ ", last)
    assert len(last.rstrip()) <= 80
    assert "123 images/s" in last


def test_numbers_are_those_of_the_work(terminal: io.StringIO):
    with progress.bar("eval toys", quiet=False) as tell:
        assert tell is not None
        tell(3, 40)
    assert re.search("eval toys +3/40 ", shown(terminal))
    with progress.bar("eval toys", quiet=True) as tell:
        assert tell is None
