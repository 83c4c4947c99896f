"""`vqtok encode` and `vqtok decode` as typed: results, where they go, and what is said."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import fails, ok, run, save, size_of
from conftest import image
from PIL import Image

from vqtok import codec, codes, images

pytestmark = pytest.mark.usefixtures("toy")


def test_encode_and_decode_write_beside_the_input():
    save("a.png")
    done = ok("encode", "a.png")
    assert done.stdout == ""
    assert re.fullmatch(
        r"a\.png -> a\.npz  8x5x1, \d+ B, \d\.\d\d bpp, [\d.]+x fewer bytes than a\.png, "
        r"\d+\.\d\d s\n",
        done.stderr,
    )
    done = ok("decode", "a.npz")
    assert re.fullmatch(r"a\.npz -> a\.decoded\.png  30x20, \d+\.\d\d s\n", done.stderr)
    expected = codec.load("toy").decode(codec.load("toy").encode("a.png"))
    assert (images.read_image(Path("a.decoded.png")).pixels == expected).all()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def odd_images() -> dict[str, tuple[tuple[int, int], str]]:
    """Writes odd images; name -> (W, H) when shown upright, and the note that `encode` gives."""
    save("one.png", image(1, 1))
    save("alpha.png", image(77, 31, 4))
    save("strip.png", image(3, 5000))
    save("column.bmp", image(500, 2))
    Image.fromarray(image(20, 30)).quantize(16).save("palette.png")
    Image.fromarray(image(20, 30, 1)[..., 0].astype(np.uint16) * 257).save("deep.png")
    Image.fromarray(image(20, 30)).convert("CMYK").save("press.jpg")
    Image.fromarray(image(20, 30)).convert("1").save("bits.png")
    Image.fromarray(image(20, 30)).convert("L").save("gray.png")
    save("turned.jpg", image(20, 30), exif=exif(6))
    frames = [Image.fromarray(image(20, 30, seed=seed)) for seed in range(3)]
    frames[0].save("moving.gif", save_all=True, append_images=frames[1:])
    return {
        "one.png": ((1, 1), ""),
        "alpha.png": ((31, 77), "transparency laid over white"),
        "strip.png": ((5000, 3), ""),
        "column.bmp": ((2, 500), ""),
        "palette.png": ((30, 20), ""),
        "deep.png": ((30, 20), "16-bit values reduced to 8 bits"),
        "press.jpg": ((30, 20), "CMYK turned into RGB without a color profile"),
        "bits.png": ((30, 20), ""),
        "gray.png": ((30, 20), ""),
        "turned.jpg": ((20, 30), ""),
        "moving.gif": ((30, 20), "first of 3 frames"),
    }


@pytest.mark.slow
def test_odd_images_come_back_in_their_size_and_are_noted():
    expected = odd_images()
    done = ok("encode", *expected, "-o", "codes")
    lines = done.stderr.splitlines()
    notes = {f"{name}: {note}" for name, (_, note) in expected.items() if note}
    assert {line for line in lines if " -> " not in line} == notes
    ok("decode", "codes", "-o", "back", "-q")
    for name, (size, _) in expected.items():
        assert size_of(Path("back", name).with_suffix(".decoded.png")) == size, name
    ok("decode", "codes/strip.npz", "-o", "strip.webp")
    assert size_of("strip.webp") == (5000, 3)


def test_folders_are_mirrored_and_made():
    for name in ("in/a.png", "in/sub/b.png", "in/sub/.hidden.png"):
        save(name)
    Path("in/notes.txt").write_text("no image")
    ok("encode", "in", "-o", "out/deep")
    assert sorted(str(p) for p in Path("out").rglob("*.npz")) == [
        "out/deep/a.npz",
        "out/deep/sub/b.npz",
    ]
    ok("decode", "out", "-o", "back")
    assert sorted(str(p) for p in Path("back").rglob("*.png")) == [
        "back/deep/a.decoded.png",
        "back/deep/sub/b.decoded.png",
    ]


def test_dash_is_standard_input_and_output():
    content = save("a.png").read_bytes()
    made = ok("encode", "-", stdin=content)
    assert codes.read_plain_codes(made.stdout_bytes) == codec.load("toy").encode("a.png")
    assert re.match(
        "standard input -> standard output  8x5x1, .* fewer bytes than the source", made.stderr
    )
    back = ok("decode", "-", stdin=made.stdout_bytes)
    assert size_of(back.stdout_bytes) == (30, 20)
    assert ok("encode", "a.png", "-o", "-").stdout_bytes == made.stdout_bytes
    ok("encode", "-", "-o", "x.npz", stdin=content)
    assert Path("x.npz").read_bytes() == made.stdout_bytes
    assert json.loads(ok("info", "-", "--json", stdin=made.stdout_bytes).stdout)["sizes"] == [
        [30, 20]
    ]
    assert "empty" in fails("encode", "-", stdin=b"")
    for words in (["encode", "a.png"], ["decode", "x.npz"], ["sample"]):
        assert "both go to standard output" in fails(*words, "-o", "-", "--json", code=2)


def test_json_is_one_object_a_line_on_stdout():
    for name in ("a.png", "b.png"):
        save(name)
    done = ok("encode", "a.png", "b.png", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert done.stderr == ""
    data = Path("a.npz").read_bytes()
    assert (
        first.items()
        >= {
            "input": "a.png",
            "output": "a.npz",
            "model": "toy",
            "size": [30, 20],
            "grid": [8, 5, 1],
            "bytes": len(data),
            "bpp": round(8 * len(data) / 600, 4),
            "raw_bpp": round(40 * 4 / 600, 4),
            "source_bytes": Path("a.png").stat().st_size,
        }.items()
    )
    assert second["input"] == "b.png"
    one = json.loads(ok("decode", "a.npz", "--json").stdout)
    assert (one["output"], one["size"], one["fingerprint"]) == (
        "a.decoded.png",
        [30, 20],
        first["fingerprint"],
    )


def test_quiet_and_verbose():
    save("alpha.png", image(9, 9, 4))
    assert ok("encode", "alpha.png", "-q").output == ""
    assert ok("decode", "alpha.npz", "-q").output == ""
    assert ok("sample", "-q").output == ""
    loud = ok("encode", "alpha.png", "-fv").stderr.splitlines()
    assert re.fullmatch(
        r"model toy \([0-9a-f]{8}\) from .*models/toy, \w+, fp32, torch [\w.+]+", loud[0]
    )
    assert "vqtok: error" in run("encode", "missing.png", "-q").stderr


def test_existing_results_are_kept_replaced_or_left_out():
    save("a.png")
    save("b.png")
    Path("a.npz").write_bytes(b"old")
    assert "a.npz exists" in fails("encode", "a.png")
    assert "-f/--force" in fails("encode", "a.png")
    skipped = ok("encode", "a.png", "b.png", "--skip-existing")
    assert skipped.stderr.startswith("1 of 2 exist already and are left out\nb.png -> b.npz")
    assert Path("a.npz").read_bytes() == b"old"
    ok("encode", "a.png", "-f")
    assert Path("a.npz").read_bytes() == Path("b.npz").read_bytes()
    assert ok("encode", "a.png", "b.png", "--skip-existing", "-q").output == ""
    assert "contradict" in fails("encode", "a.png", "-f", "--skip-existing", code=2)


def test_results_that_exist_are_told_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    Path("a.npz").write_bytes(b"old")
    monkeypatch.setattr(codec, "Model", lambda *_: pytest.fail("loaded"))
    assert "exists" in fails("encode", "a.png")
    ok("encode", "a.png", "--skip-existing")


def test_several_images_in_one_file_are_numbered():
    ok("sample", "-n", "3", "-o", "s.npz")
    done = ok("decode", "s.npz")
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"s\.npz -> s\.decoded-0001\.png \.\.\. s\.decoded-0003\.png  3 images, \d+\.\d\d s", line
    )
    facts = [json.loads(x) for x in ok("decode", "s.npz", "-f", "--json").stdout.splitlines()]
    assert [(row["image"], row["images"]) for row in facts] == [(1, 3), (2, 3), (3, 3)]
    assert sorted(p.name for p in Path().glob("*.png")) == [
        f"s.decoded-000{i}.png" for i in (1, 2, 3)
    ]
    assert "s.decoded-0001.png exists" in fails("decode", "s.npz")
    assert ok("decode", "s.npz", "--skip-existing").output == ""
    assert "3 images do not go to standard output" in fails("decode", "s.npz", "-o", "-")


@pytest.mark.slow
def test_two_inputs_of_one_stem_both_get_a_file():
    save("in/a.png")
    save("in/a.bmp", image(seed=1))
    save("in/b.png", image(seed=2))
    done = ok("encode", "in", "-o", "codes", "--json")
    note = "in/a.bmp becomes codes/a.npz, so this becomes a.png.npz"
    assert f"in/a.png: {note}\n" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["output"] for row in rows] == ["codes/a.npz", "codes/a.png.npz", "codes/b.npz"]
    assert [row["notes"] for row in rows] == [[], [note], []]
    model = codec.load("toy")
    for row in rows:
        assert codes.read_plain_codes(row["output"]) == model.encode(row["input"])
    ok("decode", "codes", "-o", "back")
    assert sorted(path.name for path in Path("back").iterdir()) == [
        "a.decoded.png",
        "a.png.decoded.png",
        "b.decoded.png",
    ]
    ok("encode", "in", "-o", "codes", "--skip-existing")
    ok("encode", "in/a.png", "in/a.bmp")  # in the order given
    assert codes.read_plain_codes("in/a.npz") == model.encode("in/a.png")
    assert codes.read_plain_codes("in/a.bmp.npz") == model.encode("in/a.bmp")


def test_two_inputs_for_one_result_are_refused():
    for name in ("a.png", "a.bmp", "a.bmp.png", "x/a.png"):
        save(name)
    message = fails("encode", "a.png", "a.bmp", "a.bmp.png", code=2)
    assert "a.png and a.bmp would both become a.npz" in message
    assert "would both become" in fails("encode", "a.png", "x/a.png", "-o", "out", code=2)
    assert "several results" in fails("encode", "a.png", "x/a.png", "-o", "one.npz", code=2)


@pytest.mark.slow
def test_codes_do_not_go_into_a_file_called_otherwise():
    save("a.png")
    save("b.png")
    ok("encode", "a.png", "-o", "a.npz")
    for name in ("out.png", "out.JPG", "out.zip", "out.tar"):
        for command, source in (("encode", "a.png"), ("pack", "a.npz"), ("unpack", "a.npz")):
            message = fails(command, source, "-o", name, code=2)
            assert f"cannot write codes to {name}: a codes file is a .npz" in message
            assert "-o DIR" in message
        assert "out." in fails("truncate", "a.npz", "--levels", 1, "-o", name, code=2)
    assert "codes to out.png" in fails("encode", "a.png", "b.png", "-o", "out.png", code=2)
    assert "image format" in fails("decode", "a.npz", "-o", "out.npz", code=2)
    Path("folder.png").mkdir()
    ok("encode", "a.png", "b.png", "-o", "folder.png")
    ok("encode", "a.png", "b.png", "-o", "new.v2")
    assert Path("new.v2/b.npz").is_file()


def test_a_batch_goes_on_after_bad_files():
    for i in range(4):
        save(f"in/{i}.png", image(8 + i, 9))
    Path("in/0.png").write_bytes(b"no image")
    Path("in/2.png").write_bytes(Path("in/2.png").read_bytes()[:50])
    done = run("encode", "in", "missing.png", "-o", "out")
    assert done.exit_code == 1
    assert done.stderr.count("vqtok: error: ") == 3
    assert done.stderr.endswith("\n3 of 5 failed\n")
    assert sorted(p.name for p in Path("out").iterdir()) == ["1.npz", "3.npz"]
    Path("out/4.npz").write_bytes(Path("out/1.npz").read_bytes()[:100])
    done = run("decode", "out", "-o", "back")
    assert done.exit_code == 1
    assert "4.npz" in done.stderr
    assert done.stderr.endswith("\n1 of 3 failed\n")
    assert sorted(p.name for p in Path("back").iterdir()) == ["1.decoded.png", "3.decoded.png"]
    done = run("encode", "in", "-o", "out", "-f", "--json", "-q")
    assert [json.loads(line)["input"] for line in done.stdout.splitlines()] == [
        "in/1.png",
        "in/3.png",
    ]


def test_file_names_are_shown_as_they_are_and_on_one_line():
    for name, shown in (
        (":smile:[red]x[/].png", ":smile:[red]x[/].png"),
        ("a\nb\x1b[31m.png", "a b?[31m.png"),
    ):
        save(name)
        assert ok("encode", name).stderr.startswith(f"{shown} -> ")
        assert shown.replace(".png", ".npz") + " exists" in fails("encode", name)
