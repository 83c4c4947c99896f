"""Codes shards where commands take codes files: info, decode, view, pack, unpack, truncate, report
and eval.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from bulk_helpers import contents, image_files, make_tar, png
from cli_helpers import fails, ok, run, save
from conftest import image, make_default, make_levels, make_model
from test_cli_pack import add_entropy

from vqtok import codec, images
from vqtok.bulk import CodesDataset


@pytest.fixture(autouse=True)
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default model has two levels of 16 codes for 4x4 pixels."""
    return make_default(make_levels(tmp_path / "models" / "two", 2), monkeypatch)


@pytest.fixture
def sources() -> dict[str, np.ndarray]:
    """A tar of five images of two sizes, two of one stem, one of which is damaged; and two loose
    images. Name -> pixels of those that can be read.
    """
    members = image_files(4, ((16, 16), (20, 31))) | {"deep/000.png": png(image(16, 16, seed=9))}
    members |= {"000.bmp": png(image(16, 16, seed=8)), "bad.png": b"no image"}
    make_tar("a.tar", members)
    save("loose/x.png", image(16, 16, seed=20))
    save("loose/below/x.png", image(9, 9, seed=21))
    found = {f"a.tar/{name}": data for name, data in members.items() if name != "bad.png"}
    pixels = {name: images.read_image(data).pixels for name, data in found.items()}
    for name in ("x.png", "below/x.png"):
        pixels[name] = images.read_image(Path("loose", name)).pixels
    return pixels


def encode(out: str, *words: str) -> str:
    done = run("encode", "a.tar", "loose", "--shard-size", 3, "--workers", 0, "-o", out, *words)
    assert done.exit_code == 1  # one image is damaged
    return out


def target(name: str) -> Path:
    plain = Path(name).with_suffix(".decoded.png")
    # 000.bmp comes after 000.png
    return plain.with_name("000.bmp.decoded.png") if name.endswith(".bmp") else plain


@pytest.mark.slow
@pytest.mark.parametrize("form", ["plain", "compact"])
def test_decode_restores_the_names(two: Path, sources: dict[str, np.ndarray], form: str):
    encode("codes", *(["--compact"] if form == "compact" else []))
    done = ok("decode", "codes", "-o", "back")
    model = codec.load("two")
    written = {str(p.relative_to("back")) for p in Path("back").rglob("*") if p.is_file()}
    assert written == {str(target(name)) for name in sources}
    for name, pixels in sources.items():
        shown = images.read_image(Path("back") / target(name)).pixels
        assert (shown == model.decode(model.encode(pixels))).all()
    assert "codes: 1 images are missing: they could not be encoded" in done.stderr
    assert "codes -> back  8 images" in done.stderr
    # again: all are there
    assert run("decode", "codes", "-o", "back").stderr.endswith("8 of 8 failed\n")
    ok("decode", "codes", "-o", "back", "--skip-existing")
    ok("decode", "codes/", "--levels", 1)  # beside the shards
    shown = images.read_image(Path("codes.decoded") / target("x.png")).pixels
    assert (shown == model.decode(model.encode(sources["x.png"], levels=1))).all()
    assert "holds 2 levels, not 3" in fails("decode", "codes", "--levels", 3, "-o", "more")
    lines = ok("decode", "codes", "-o", "json", "--json").stdout.splitlines()
    facts = [json.loads(line) for line in lines]
    assert {row["name"] for row in facts} == set(sources)
    assert facts[0]["output"] == str(Path("json") / target(facts[0]["name"]))


@pytest.mark.slow
def test_decode_takes_shards_beside_files_and_several_folders(sources: dict[str, np.ndarray]):
    encode("codes")
    shutil.copytree("codes", "more")
    ok("encode", "loose/x.png", "-o", "one.npz")
    ok("decode", "codes", "one.npz", "more", "-o", "back")
    assert Path("back/one.decoded.png").is_file()
    assert Path("back/codes/below/x.decoded.png").is_file()
    assert Path("back/more/a.tar/001.decoded.png").is_file()


@pytest.mark.slow
def test_names_in_shards_lead_nowhere_else(sources: dict[str, np.ndarray]):
    encode("codes")
    for path in Path("codes").glob("*.jsonl"):
        head, *lines = path.read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            record["name"] = "/../../../" + record["name"].replace("001.png", "..")
        path.write_text("\n".join([head, *map(json.dumps, records)]) + "\n")
    before = {p for p in Path.cwd().parent.rglob("*") if "back" not in p.parts}
    ok("decode", "codes", "-o", "back")
    assert {p for p in Path.cwd().parent.rglob("*") if "back" not in p.parts} == before
    assert len(list(Path("back").rglob("*.png"))) == len(sources)


@pytest.mark.slow
@pytest.mark.parametrize("prior", [True, False])
def test_rewritten_shards_are_those_that_encode_makes(
    two: Path, sources: dict[str, np.ndarray], prior: bool
):
    if prior:
        add_entropy(two, levels=2)
    plain, packed = encode("plain"), encode("packed", "--compact")
    fewer = encode("fewer", "--levels", "1")
    few_packed = encode("few-packed", "--levels", "1", "--compact")
    ok("pack", plain)
    assert contents("plain.compact") == contents(packed)
    ok("unpack", packed, "-o", "back")
    assert contents("back") == contents(plain)
    ok("truncate", plain, "--levels", 1)
    assert contents("plain.truncated") == contents(fewer)
    ok("truncate", packed, "--levels", 1, "-o", "cut")
    assert contents("cut") == contents(few_packed)
    CodesDataset("cut").verify()


def test_info_names_the_prior_that_coded_shards(two: Path):
    pixels = np.full((80, 120, 3), 90, np.uint8)  # 3, and some that zip cannot pack
    spots = np.random.default_rng(0).random((80, 120)) < 0.002
    pixels[spots] = image(80, 120)[spots]
    save("loose/x.png", pixels)
    add_entropy(two, bias=100_000, levels=2)
    ok("encode", "loose", "--bulk", "--compact", "--levels", 1, "-o", "packed")
    found = json.loads(ok("info", "packed", "--json").stdout)
    assert len(found["prior"]) == 4
    assert found["model_path"] == str(two)
    add_entropy(two, levels=2, seed=1)  # another one, which does not decode them
    assert f"no model here with the entropy prior {found['prior']}" in ok("info", "packed").stdout


@pytest.mark.slow
def test_rewriting_goes_on_and_refuses(sources: dict[str, np.ndarray]):
    encode("codes")
    before = contents("codes")
    assert "over themselves" in fails("pack", "codes", "-o", "codes", "-f", code=2)
    assert "--levels" in fails("truncate", "codes", "--max-bytes", "1k", code=2)
    assert "--levels" in fails("truncate", "codes", "--bpp", 1, code=2)
    assert "not 3" in fails("truncate", "codes", "--levels", 3)
    assert "one file" in fails("pack", "codes", "-o", "-", code=2)
    done = ok("pack", "codes", "-o", "small")
    assert "8 images in 4 shards -> small" in done.stderr
    whole = contents("small")
    assert "--skip-existing" in fails("pack", "codes", "-o", "small")
    for path in sorted(Path("small").glob("*.jsonl"))[1:]:
        path.unlink()
    done = ok("pack", "codes", "-o", "small", "--skip-existing")
    assert "8 images in 4 shards, 1 of them before -> small" in done.stderr
    assert contents("small") == whole
    ok("pack", "codes", "-o", "small", "-f")
    assert contents("small") == whole
    assert contents("codes") == before
    facts = [json.loads(x) for x in ok("unpack", "small", "--json", "-f").stdout.splitlines()]
    assert [row["pictures"] for row in facts] == [3, 3, 0, 2]


@pytest.mark.slow
def test_a_damaged_shard_is_told_and_the_rest_goes_on(sources: dict[str, np.ndarray]):
    encode("codes")
    name = next(path for path in sorted(Path("codes").iterdir()) if path.suffix == ".tar")
    name.write_bytes(name.read_bytes()[:-9])
    done = run("decode", "codes", "-o", "back")
    assert done.exit_code == 1
    assert str(name) in done.stderr
    assert done.stderr.endswith("\n3 of 8 failed\n")
    assert len(list(Path("back").rglob("*.png"))) == 5
    done = run("pack", "codes", "-o", "small")
    assert done.exit_code == 1
    assert str(name) in done.stderr
    assert done.stderr.endswith("\n1 of 4 failed\n")
    assert len(list(Path("small").glob("*.jsonl"))) == 3


def test_info_describes_shards_without_torch(two: Path, sources: dict[str, np.ndarray]):
    encode("codes")
    facts = json.loads(ok("info", "codes", "--json").stdout)
    size = sum(os.path.getsize(p) for p in Path("codes").iterdir() if p.suffix in (".npz", ".tar"))
    pixels = sum(p.shape[0] * p.shape[1] for p in sources.values())
    assert facts["kind"] == "codes shards"
    assert (facts["pictures"], facts["failed"], facts["shards"], facts["missing"]) == (8, 1, 4, 0)
    assert (facts["levels"], facts["model_levels"], facts["form"]) == (2, 2, "plain")
    assert facts["model_path"] == str(two)
    assert facts["grids"] == [[3, 3], [4, 4], [8, 5]]
    assert facts["bytes"] == size
    assert facts["bpp"] == pytest.approx(8 * size / pixels, abs=1e-4)
    table = ok("info", "codes").stdout
    assert "decodes with" in table
    for path in Path("codes").glob("00001*.jsonl"):
        path.unlink()
    assert json.loads(ok("info", "codes", "--json").stdout)["missing"] == 1


@pytest.mark.slow
def test_view_and_report_show_images_of_shards(sources: dict[str, np.ndarray]):
    encode("codes")
    data = CodesDataset("codes")
    number = next(i for i in range(len(data)) if data.name(i) == "a.tar/001.png")
    done = ok("view", "codes", "--always", "--picture", number + 1)
    assert "a.tar/001.png: 31x20 decoded by two" in done.stderr
    ok("encode", "loose/x.png", "-o", "one.npz")
    last = next(i for i in range(len(data)) if data.name(i) == "x.png")
    shown = ok("view", "codes", "--always", "--picture", last + 1).stdout
    assert shown == ok("view", "one.npz", "--always").stdout
    assert "grid 8x5x2" in ok("view", "codes", "--grid", "--always", "--picture", number + 1).stderr
    assert "holds 8 images, not 9" in fails("view", "codes", "--always", "--picture", 9, code=2)
    ok("report", "codes", "-o", "page.html")
    page = Path("page.html").read_text()
    assert "of the 8 images in these codes shards" in page


@pytest.mark.slow
def test_eval_measures_the_codes_of_shards(two: Path, sources: dict[str, np.ndarray]):
    add_entropy(two, levels=2)
    encode("codes")
    figures = json.loads(ok("eval", "codes", "--json").stdout)
    assert (figures["pictures"], figures["skipped"], figures["psnr"]) == (8, 1, None)
    for name, pixels in sources.items():
        images.write_image(Path("all", name.replace("/", "_")).with_suffix(".png"), pixels, True)
    # 000.bmp and 000.png would be one
    images.write_image(Path("all/bmp.png"), sources["a.tar/000.bmp"])
    images.write_image(Path("all/a.tar_000.png"), sources["a.tar/000.png"], True)
    known = json.loads(ok("eval", "all", "--json", "--codecs", "none").stdout)
    keys = ("pictures", "usage", "perplexity", "bpp", "bpp_packed", "bpp_coded")
    for key in keys:
        assert figures[key] == pytest.approx(known[key]), key
    for row, other in zip(figures["levels"], known["levels"], strict=True):
        assert row["coders"] == pytest.approx(other["coders"])
        assert row["bpp_compact"] == pytest.approx(other["bpp_compact"])
        assert row["psnr"] is row["ssim"] is None
    done = ok("eval", "codes", "--levels", "1")
    assert "codes used" in done.stdout
    assert "PSNR" not in done.stdout
    assert "hold no originals" in done.stderr
    assert "holds 2 levels" in fails("eval", "codes", "--levels", 3, code=2)
    for words in (["--codecs", "jpeg"], ["--sheet", "s.png"], ["--plot", "p.svg"]):
        assert "compares with the originals" in fails("eval", "codes", *words, code=2)
    other = make_model(Path("models/other"), seed=5)
    assert "written with model two" in fails("eval", "codes", "-m", other)


def test_a_shard_alone_points_at_its_folder(sources: dict[str, np.ndarray]):
    encode("codes")
    tar = next(Path("codes").glob("*.tar"))
    for command in ("decode", "pack", "unpack"):
        message = fails(command, tar)
        assert f"{tar} is a tar" in message
        assert "give the folder" in message
    # damaged manifests are told by name, not passed over
    Path("codes/manifest.json").write_text("{")
    assert "codes/manifest.json" in fails("decode", "codes", "-o", "back")
    assert "codes/manifest.json" in fails("info", "codes")
