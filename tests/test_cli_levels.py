"""The rate as typed: `encode --levels`, `--bpp` and `--max-bytes`, `truncate`, and what `decode`
and `info` make of fewer levels.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli_helpers import fails, ok, run, save
from conftest import image, make_default, make_levels

from vqtok import codec, codes, images
from vqtok.cli.rate import parse_bytes
from vqtok.errors import UsageError


@pytest.fixture(autouse=True)
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default model has three levels of 16 codes for 4x4 pixels."""
    return make_default(make_levels(tmp_path / "models" / "three", 3), monkeypatch)


@pytest.fixture
def whole() -> codes.Codes:
    """all.npz, and the codes in it: all levels of a.png, 96 rows by 128 columns."""
    save("a.png", image(96, 128))
    ok("encode", "a.png", "-o", "all.npz", "-q")
    return codes.read_plain_codes(Path("all.npz"))


def sizes_by_levels(whole: codes.Codes) -> list[int]:
    return [len(codes.to_bytes(whole.first_levels(count))) for count in (1, 2, 3)]


def test_encode_levels(whole: codes.Codes):
    done = ok("encode", "a.png", "--levels", "2")
    assert re.search(r"  32x24x2, \d", done.stderr)
    assert codes.read_plain_codes(Path("a.npz")) == whole.first_levels(2)
    facts = json.loads(ok("encode", "a.png", "--levels", "1", "-f", "--json").stdout)
    assert (facts["grid"], facts["levels"], facts["bytes"]) == (
        [32, 24, 1],
        1,
        Path("a.npz").stat().st_size,
    )
    assert facts["raw_bpp"] == 0.25


@pytest.mark.parametrize("count", [1, 2, 3])
def test_encode_keeps_the_most_levels_that_fit(whole: codes.Codes, count: int):
    size = sizes_by_levels(whole)[count - 1]
    bpp = 8 * size / (96 * 128)
    for words in (
        ["--max-bytes", size],
        ["--max-bytes", f"{(size + 1) / 1000}k"],
        ["--bpp", bpp],
        ["--bpp", round(bpp + 1e-3, 3)],
    ):
        ok("encode", "a.png", *words, "-o", "cut.npz", "-f")
        assert codes.read_plain_codes(Path("cut.npz")) == whole.first_levels(count), words
    if count > 1:
        ok("encode", "a.png", "--max-bytes", size - 1, "-o", "cut.npz", "-f")
        assert codes.read_plain_codes(Path("cut.npz")).levels == count - 1


@pytest.mark.parametrize("command", ["encode", "truncate"])
def test_what_does_not_fit_says_what_would(whole: codes.Codes, command: str):
    source, size = {"encode": "a.png", "truncate": "all.npz"}[command], sizes_by_levels(whole)[0]
    message = fails(command, source, "--max-bytes", "10")
    assert f"{source} takes {size} bytes with one level, more than --max-bytes 10" in message
    message = fails(command, source, "--bpp", "0.01")
    assert re.search(rf"{source} takes [\d.]+ bpp with one level, more than --bpp 0\.01\n", message)
    words = re.search(r"fix: give (--bpp [\d.]+) or more", message)
    assert words is not None
    ok(command, source, *words[1].split(), "-o", "fits.npz")
    assert codes.read_plain_codes(Path("fits.npz")).levels == 1


def test_the_batch_goes_on_after_a_image_that_does_not_fit(whole: codes.Codes):
    save("in/a.png", image(96, 128))
    save("in/b.png", image(8, 8))
    limit = sizes_by_levels(whole)[0] - 1
    done = run("encode", "in", "-o", "out", "--max-bytes", limit)
    assert done.exit_code == 1
    assert done.stderr.endswith("\n1 of 2 failed\n")
    assert [p.name for p in Path("out").iterdir()] == ["b.npz"]


def test_rates_that_make_no_sense(whole: codes.Codes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(codec, "Model", lambda *_: pytest.fail("loaded"))
    for command, source in (("encode", "a.png"), ("truncate", "all.npz")):
        assert "--levels and --bpp do not go together" in fails(
            command, source, "--levels", "1", "--bpp", "1", code=2
        )
        assert "--bpp and --max-bytes" in fails(
            command, source, "--bpp", "1", "--max-bytes", "9", code=2
        )
        assert "no size of a file" in fails(command, source, "--max-bytes", "two", code=2)
        for bad in ("0", "-1", "nan", "inf"):
            assert f"--bpp is {bad}" in fails(command, source, "--bpp", bad, code=2)
        assert "levels" in fails(command, source, "--levels", "0", code=2)
    message = fails("encode", "a.png", "--levels", "4", code=2)
    assert "the model three has 3 levels, not 4" in message
    assert "choose 1 to 3 levels" in message
    assert "the model three has 3 levels, not 4" in fails("sample", "--levels", "4", code=2)
    assert "nothing says how much to keep" in fails("truncate", "all.npz", code=2)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2000", 2000),
        ("2k", 2000),
        ("2kB", 2000),
        ("2 kB", 2000),
        ("1.5k", 1500),
        ("1.005K", 1005),
        ("2KiB", 2048),
        ("2ki", 2048),
        ("1M", 10**6),
        ("0.5MiB", 2**19),
        ("1g", 10**9),
        ("17B", 17),
        (" 9 ", 9),
        ("1.9", 1),
    ],
)
def test_sizes_are_read(text: str, size: int):
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "k", "2x", "-2", "0", "0.2", "2kk", "2iB", "1e3", "1,5k", "²", "٣", "9" * 20, "2 k B"],
)
def test_what_is_no_size(text: str):
    with pytest.raises(UsageError, match="no size of a file"):
        parse_bytes(text)


def test_bits_per_pixel_given_back_are_met():
    """What a file takes, as a number, suffices to get that file, whatever
    float rounding makes of it.
    """
    for side in range(1, 60):
        grid = codes.Codes(
            images.pad(image(side, side, 1), 1)[None, None, ..., 0],
            "m",
            "0badcafe",
            256,
            1,
            1,
            ((side, side),),
        )
        target = codes.RateTarget(bpp=8 * len(codes.to_bytes(grid)) / side**2)
        encoded = codes.encode_at_rate(grid, target)
        assert (encoded.codes, encoded.form, encoded.data) == (grid, "plain", codes.to_bytes(grid))
        assert len(encoded.data) <= (target.byte_limit(side**2) or 0)


def test_decode_levels(whole: codes.Codes):
    model = codec.load("three")
    for words, count, part in (([], 3, ""), (["--levels", "2"], 2, "2 of 3 levels, ")):
        done = ok("decode", "all.npz", *words, "-o", "d.png", "-f")
        assert re.fullmatch(rf"all\.npz -> d\.png  128x96, {part}\d+\.\d\d s\n", done.stderr)
        assert (images.read_image(Path("d.png")).pixels == model.decode(whole, count)).all()
    codes.write_codes("one.npz", whole.first_levels(1))
    assert "1 of 3 levels" in ok("decode", "one.npz", "-o", "one.png").stderr
    facts = json.loads(ok("decode", "one.npz", "-f", "--json").stdout)
    assert (facts["levels"], facts["model_levels"]) == (1, 3)
    assert (images.read_image(Path("one.png")).pixels == model.decode(whole, 1)).all()
    message = fails("decode", "one.npz", "--levels", "2", "-f")
    assert "one.npz: these codes hold 1 level, not 2" in message
    done = run("decode", "one.npz", "all.npz", "--levels", "2", "-o", "two")
    assert done.exit_code == 1
    assert [p.name for p in Path("two").iterdir()] == ["all.decoded.png"]


def test_truncate_cuts_and_says_so(whole: codes.Codes):
    done = ok("truncate", "all.npz", "--levels", "2")
    assert re.fullmatch(
        r"all\.npz -> all\.truncated\.npz  32x24x2, [\d.]+ k?B, \d\.\d+ bpp, "
        r"2 of 3 levels, \d+\.\d\d s\n",
        done.stderr,
    )
    assert codes.read_plain_codes(Path("all.truncated.npz")) == whole.first_levels(2)
    assert "all.truncated.npz exists" in fails("truncate", "all.npz", "--levels", "1")
    facts = json.loads(ok("truncate", "all.npz", "--levels", "1", "-f", "--json").stdout)
    assert (
        facts.items()
        >= {
            "input": "all.npz",
            "output": "all.truncated.npz",
            "levels": 1,
            "source_levels": 3,
            "model": "three",
        }.items()
    )
    assert facts["bytes"] == sizes_by_levels(whole)[0] == Path("all.truncated.npz").stat().st_size
    assert "hold 3 levels, not 4" in fails("truncate", "all.npz", "--levels", "4", "-f")
    ok("truncate", "all.npz", "--levels", "3", "-o", "all.npz", "-fq")
    assert codes.read_plain_codes(Path("all.npz")) == whole


def test_truncate_equals_encoding_to_that_rate(whole: codes.Codes):
    for words in (["--levels", 1], ["--bpp", 0.8], ["--max-bytes", sizes_by_levels(whole)[1]]):
        ok("encode", "a.png", *words, "-o", "encoded.npz", "-fq")
        piped = ok("truncate", "-", *words, stdin=Path("all.npz").read_bytes())
        assert piped.stdout_bytes == Path("encoded.npz").read_bytes()
        assert piped.stderr.startswith("standard input -> standard output")


def test_truncate_takes_folders_and_its_own_results_not_twice(whole: codes.Codes):
    for name in ("in/a.npz", "in/sub/b.npz"):
        codes.write_codes(name, whole)
    Path("in/bad.npz").write_bytes(b"PK, but not really")
    done = run("truncate", "in", "--levels", "1", "-o", "out")
    assert done.exit_code == 1
    assert "in/bad.npz" in done.stderr
    assert done.stderr.endswith("\n1 of 3 failed\n")
    assert sorted(str(p) for p in Path("out").rglob("*.npz")) == [
        "out/a.truncated.npz",
        "out/sub/b.truncated.npz",
    ]
    Path("in/bad.npz").unlink()
    ok("truncate", "in", "--levels", "1")
    again = ok("truncate", "in", "--levels", "2", "--skip-existing")
    assert "2 of 4 are results of others and are left out" in again.stderr
    assert len(list(Path("in").rglob("*.npz"))) == 4
    assert ok("truncate", "in", "--levels", "2", "-fq").output == ""
    assert codes.read_plain_codes(Path("in/a.truncated.npz")).levels == 2


def test_truncate_and_info_need_no_torch_and_truncate_no_model(whole: codes.Codes, three: Path):
    three.rename(three.with_name("elsewhere"))
    (three.with_name("elsewhere") / "tokenizer.safetensors").unlink()
    code = """
import sys
from vqtok.cli import app
for words in ("truncate all.npz --max-bytes 1k", "info all.npz"):
    app(words.split(), standalone_mode=False)
    assert "torch" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("all.truncated.npz").stat().st_size <= 1000


def test_info_and_models_tell_levels(whole: codes.Codes, three: Path):
    codes.write_codes("two.npz", whole.first_levels(2))
    facts = json.loads(ok("info", "two.npz", "--json").stdout)
    assert (facts["levels"], facts["model_levels"], facts["grid"]) == (2, 3, [32, 24, 2])
    assert re.search(r"\n +levels +2 of 3\n", ok("info", "two.npz").stdout)
    assert json.loads(ok("models", "--json").stdout)["levels"] == 3
    assert re.search(r"three +4 +16 +3 +0\.750 ", ok("models").stdout)
    (three / "tokenizer.safetensors").unlink()
    text = ok("info", "two.npz").stdout
    assert re.search(r"\n +levels +2\n", text)
    assert "no model here" in text


def test_sample_levels():
    ok("sample", "-n", "2", "-o", "all.npz", "--seed", "3")
    ok("sample", "-n", "2", "-o", "one.npz", "--seed", "3", "--levels", "1")
    assert codes.read_plain_codes(Path("one.npz")) == codes.read_plain_codes(
        Path("all.npz")
    ).first_levels(1)
    ok("sample", "-n", "2", "-o", "sheet.png", "--levels", "1")
