"""The range of deep images through the commands: encode, bulk, train, eval, codes and model; and
files that are passed over.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from bulk_helpers import contents, make_tar
from cli_helpers import fails, ok, save, train
from test_images_depth import RAMP, png16, tiff

from vqtok import codec, codes, weights
from vqtok.data import DataOptions, open_data
from vqtok.errors import InputError, UsageError
from vqtok.evaluate import reference_codecs

pytestmark = pytest.mark.usefixtures("toy")
RANGE = (0.0, 4095.0)


def deep(folder: str, count: int = 3) -> Path:
    """A folder of 12-bit TIFFs."""
    path = Path(folder)
    path.mkdir(parents=True)
    for i in range(count):
        (path / f"{i}.tif").write_bytes(tiff(np.roll(RAMP, 7 * i, axis=1)))
    return path


def facts(*words: object) -> list[dict]:
    return [json.loads(line) for line in ok(*words, "--json").stdout.splitlines()]


def test_encode_says_what_is_used_and_keeps_the_range():
    deep("in", 2)
    done = ok("encode", "in", "-o", "auto")
    assert "in/0.tif: only 6.25% of the range 0:65535 is used: --range 0:4095" in done.stderr
    assert "2 images use little of their range: --range 0:4095 fits all" in done.stderr
    assert codes.read_plain_codes(Path("auto/0.npz")).range == (0, 65535)
    (first, _) = facts("encode", "in", "-o", "wide", "--range", "0:4095")
    assert first["range"] == [0, 4095]
    assert not any("is used" in note for note in first["notes"])
    kept = codes.read_plain_codes(Path("wide/0.npz"))
    assert kept.range == RANGE
    model = codec.load("toy")
    assert kept == model.encode("in/0.tif", value_range=RANGE)
    assert np.array_equal(
        kept.indices, model.encode(np.rint(RAMP / 4095 * 255).astype(np.uint8)).indices
    )
    with pytest.warns(UserWarning, match=r"values 0:4095, and 0:65535 became .*value_range=\(0.0"):
        dark = model.encode("in/0.tif")
    assert not np.array_equal(kept.indices, dark.indices)
    both = model.encode_batch(["in/0.tif"] * 2, value_range=RANGE)
    assert both.range == RANGE
    assert np.array_equal(both.indices[1], kept.indices[0])


def test_both_forms_keep_the_range_and_8_bits_have_none():
    deep("in", 1)
    ok("encode", "in/0.tif", "-o", "c.npz", "--compact", "--range", "0:4095")
    ok("unpack", "c.npz", "-o", "p.npz")
    assert codes.read_plain_codes(Path("p.npz")).range == RANGE
    assert codes.read_codes_meta(Path("p.npz"))["range"] == [0, 4095]
    assert codec.load("toy").pack(codes.read_plain_codes(Path("p.npz"))).range == RANGE
    save("a.png")
    assert codec.load("toy").encode("a.png").range is None
    fails("encode", "a.png", "--range", "7:5", code=2)


@pytest.mark.slow
def test_bulk_keeps_the_range_and_says_what_is_used():
    deep("in")
    words = ("encode", "in", "--bulk", "--workers", 0)
    done = ok(*words, "-o", "auto")
    assert "3 images use little of their range: --range 0:4095 fits" in done.stderr
    assert "6.25%" in Path("auto/00000-00000.jsonl").read_text()
    assert facts(*words, "-o", "json")[0]["range_narrow"] == 3
    done = ok(*words, "-o", "wide", "--range", "0:4095")
    assert "fits" not in done.stderr
    stack = codes.read_plain_codes(Path("wide/00000-00000.npz"))
    assert stack.range == RANGE
    assert np.array_equal(
        stack.indices[:1], codec.load("toy").encode("in/0.tif", value_range=RANGE).indices
    )
    ok("encode", "in", "--bulk", "--workers", 1, "-o", "there", "--range", "0:4095")
    assert contents("there") == contents("wide")  # a process is told the range
    assert "another range" in fails(*words, "-o", "wide", "--resume")
    ok(*words, "-o", "wide", "--range", "0:4095", "--resume")


@pytest.mark.slow
def test_train_keeps_the_range_in_the_model_and_others_take_it(data: Path):
    deep("in", 6)
    done = train(
        "in", "--recipe", "small.toml", "-o", "m", "--range", "0:4095", "--stage", "tokenizer"
    )
    assert done.exit_code == 0, done.output
    assert "values 0:4095 become 8 bits" in done.stderr
    record = weights.read_meta(Path("m/tokenizer.safetensors"))["record"]
    assert record["range"] == [0, 4095]
    assert json.loads(Path("m/run.json").read_text())["options"]["range"] == "0:4095"
    assert codec.load("m").range == RANGE
    assert facts("encode", "in/0.tif", "-m", "m")[0]["range"] == [0, 4095]
    assert facts("encode", "in/0.tif", "-m", "m", "-f", "--range", "auto")[0]["range"] == [0, 65535]
    (found,) = facts("eval", "in", "-m", "m", "--codecs", "none")
    assert found["range"] == [0, 4095]
    assert any("0:4095" in note for note in found["notes"])


@pytest.mark.slow
def test_train_and_eval_say_what_auto_leaves_unused(data: Path):
    deep("in", 6)
    done = train("in", "--recipe", "small.toml", "-o", "m", "--stage", "tokenizer", "--json")
    assert done.exit_code == 0, done.output
    assert "--range 0:4095 would use it all" in done.output
    assert "range" not in weights.read_meta(Path("m/tokenizer.safetensors"))["record"]
    (found,) = facts("eval", "in", "-m", "m", "--codecs", "none")
    assert any("--range 0:4095 would use it all" in note for note in found["notes"])


def test_ranges_of_floats_are_their_own_and_all_used():
    Path("in").mkdir()
    values = np.linspace(-3, 5, 64, dtype=np.float32).reshape(8, 8)
    PIL.Image.fromarray(values).save("in/0.tif")
    assert open_data(Path("in")).notes == ("images deeper than 8 bits: values -3:5 become 8 bits.",)
    PIL.Image.fromarray(values * 2).save("in/1.tif")
    assert open_data(Path("in")).notes == (
        "images deeper than 8 bits: values -6:10 or -3:5 become 8 bits. Each image has a range of "
        "its own, from its lowest to its highest value. --range -6:10 would be one for all.",
    )
    wide = open_data(Path("in"), options=DataOptions.of(range="-6:100"))
    assert wide.notes == (
        "images deeper than 8 bits: values -6:100 become 8 bits. Of 2 images looked at, 2 use "
        "little of that, such as -3:5. --range -6:10 would use it all.",
    )


@pytest.mark.parametrize("form", ["npy", "npz"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_arrays_of_deep_values(form: str, dtype: type):
    values = np.stack([RAMP, RAMP // 2]).astype(dtype)
    values = values / 4095 if dtype is np.float32 else values
    path = Path(f"x.{form}")
    np.save(path, values) if form == "npy" else np.savez(path, images=values)
    found = open_data(path)
    if dtype is np.float32:
        assert np.array_equal(found.image(0)[..., 0], np.rint(values[0].astype(float) * 255))
        return
    assert found.image(0).max() == 15
    assert any("--range 0:4095" in note for note in found.notes)
    wide = open_data(path, options=DataOptions.of(range="0:4095"))
    assert np.array_equal(wide.image(1)[..., 0], np.rint(values[1] / 4095 * 255))
    assert wide.range == RANGE
    assert wide.image(0).dtype == np.uint8


def test_one_range_for_all_of_an_array():
    values = np.array([300, 350, np.nan, 310], np.float32).reshape(4, 1, 1)
    values[2, 0, 0] = 320
    np.save("x.npy", values)
    found = open_data(Path("x.npy"))
    assert [int(found.image(i)[0, 0, 0]) for i in range(4)] == [0, 255, 102, 51]
    np.save("x.npy", np.full((2, 4, 4), np.nan, np.float32))
    with pytest.raises(InputError, match="no value of the images is a finite number"):
        open_data(Path("x.npy"))


def test_what_is_passed_over_is_counted_and_content_counts():
    jpeg = save("a.jpg").read_bytes()
    for name in ("in/one", "in/two.image", "in/three.0001"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(jpeg)
    Path("in/a.heic").write_bytes(b"x")
    Path("in/b.HEIC").write_bytes(b"x")
    Path("in/c.jxl").write_bytes(b"x")
    Path("in/README").write_text("text")
    done = ok("encode", "in", "-o", "out")
    assert "passed over 2 .heic, 1 .jxl: vqtok does not read these" in done.stderr
    assert sorted(p.name for p in Path("out").iterdir()) == ["one.npz", "three.npz", "two.npz"]
    done = ok("encode", "in", "--bulk", "--workers", 0, "-o", "bulk")
    assert "passed over 2 .heic, 1 .jxl" in done.stderr
    assert "3 images in" in done.stderr
    found = open_data(Path("in"))
    assert len(found) == 3
    assert any("passed over 2 .heic, 1 .jxl" in note for note in found.notes)


def test_images_under_other_suffixes_in_tars():
    jpeg = save("a.jpg").read_bytes()
    make_tar("x.tar", {"0.image": jpeg, "1.img": jpeg, "2.npy": b"\x93NUMPY", "3.heic": b"x"})
    done = ok("encode", "x.tar", "-o", "out", "--workers", 0)
    assert "2 images in" in done.stderr
    assert "passed over 1 .heic" in done.stderr
    found = open_data(Path("x.tar"))
    assert len(found) == 2
    assert any("passed over 1 .heic" in note for note in found.notes)
    assert tarfile.is_tarfile("x.tar")


def test_a_folder_of_what_is_not_read_says_so():
    Path("in").mkdir()
    Path("in/a.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"passed over 1 \.heic"):
        open_data(Path("in"))


@pytest.mark.slow
def test_resuming_under_another_pillow_is_said(data: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(6):
        save(f"in/{i}.png")
    done = train("in", "--recipe", "small.toml", "-o", "m", "--stage", "tokenizer")
    assert done.exit_code == 0, done.output
    before = PIL.__version__
    monkeypatch.setattr(PIL, "__version__", "99.0")
    done = train("in", "--recipe", "small.toml", "-o", "m", "--stage", "tokenizer", "--resume")
    assert f"The run began with Pillow {before}" in done.stderr
    assert "this is 99.0" in done.stderr


def test_avif_is_written_by_one_thread():
    assert reference_codecs._FORMATS["avif"].options == {"max_threads": 1}


def test_png_of_twelve_bits_in_a_zip_of_images():
    """The look at a few images reads archives, too."""
    import zipfile

    with zipfile.ZipFile("x.zip", "w") as archive:
        for i in range(3):
            archive.writestr(f"{i}.png", png16(np.stack([RAMP] * 3, 2)))
    assert any("--range 0:4095" in note for note in open_data(Path("x.zip")).notes)


def test_a_search_keeps_the_range():
    deep("in", 1)
    words = ("encode", "in/0.tif", "--range", "0:4095", "--effort", 1)
    for i, more in enumerate(((), ("--max-bytes", "1M"))):
        ok(*words, "-o", f"{i}.npz", *more)
        assert codes.read_plain_codes(Path(f"{i}.npz")).range == RANGE


def test_a_range_of_integers_in_python():
    wide, model = RAMP.copy(), codec.load("toy")
    assert model.encode(wide, value_range=(0, 4095)) == model.encode(wide, value_range=RANGE)
    for bad in ((5, 5), (9, 1), (0, float("inf"))):
        with pytest.raises(UsageError, match="is no range of values"):
            model.encode(wide, value_range=bad)


def test_nan_is_said_of_sets_too():
    """Of a file `encode` said it; arrays, training, `eval` and the last lines of --bulk did not."""
    Path("in").mkdir()
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    values[0, :3] = np.nan
    for i in range(2):
        PIL.Image.fromarray(values).save(f"in/{i}.tif")
    np.save("array.npy", np.stack([values] * 2))
    np.savez("array.npz", images=np.stack([values] * 2))
    (note,) = open_data(Path("in")).notes
    assert note.endswith("Of 2 images looked at, 2 have NaN, which become black.")
    for array in ("array.npy", "array.npz"):
        assert "6 of 128 values are NaN and become black." in open_data(Path(array)).notes
    done = ok("encode", "in", "--bulk", "--workers", 0, "-o", "bulk", "--json")
    assert json.loads(done.stdout.splitlines()[0])["nan_pictures"] == 2
    assert "2 images with NaN, which became black" in done.stderr
