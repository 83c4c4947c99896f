"""`vqtok sample` as typed: sheets, folders and codes, seeds, and completions."""

import json
import re
from pathlib import Path

import pytest
from cli_helpers import fails, ok, save, size_of
from conftest import image, make_model

from vqtok import codec, codes

pytestmark = pytest.mark.usefixtures("toy")


def test_seed_decides_the_bytes():
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        ok("sample", "-n", "4", "--seed", seed, "-o", f"{name}.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes() != Path("c.png").read_bytes()


@pytest.mark.slow
def test_sample_to_sheet_folder_and_codes():
    done = ok("sample", "-n", "3")
    assert re.fullmatch(
        r"3 images of 20x16 from toy, seed 0 -> samples\.png  \d+\.\d\d s\n", done.stderr
    )
    width, height = size_of("samples.png")
    assert width > 3 * 20 * 4  # enlarged; a column for each label
    assert height > 16 * 4
    done = ok("sample", "-n", "1", "--size", "24x16", "-o", "one.png")
    assert done.stderr.startswith("1 image of 24x16")
    assert size_of("one.png") == (24, 16)
    ok("sample", "-n", "3", "--size", "24x16", "-o", "many", "--seed", "5")
    ok("sample", "-n", "3", "--size", "24x16", "-o", "many.npz", "--seed", "5")
    ok("decode", "many.npz", "-o", "again.png")
    for i in (1, 2, 3):
        ours, theirs = Path(f"many/000{i}.png"), Path(f"again-000{i}.png")
        assert size_of(ours) == (24, 16)
        assert ours.read_bytes() == theirs.read_bytes()
    assert "many/0001.png exists" in fails("sample", "-n", "3", "-o", "many")
    ok("sample", "-n", "3", "-o", "many", "-f")
    piped = ok("sample", "-n", "1", "--size", "24x16", "-o", "-").stdout_bytes
    assert piped == Path("one.png").read_bytes()


def test_sample_json():
    lines = [
        json.loads(line)
        for line in ok("sample", "-n", "2", "-o", "d", "--json", "--seed", "7").stdout.splitlines()
    ]
    assert [line["output"] for line in lines] == ["d/0001.png", "d/0002.png"]
    assert lines[0].items() >= {"model": "toy", "seed": 7, "size": [20, 16], "pictures": 1}.items()
    assert json.loads(ok("sample", "-n", "2", "--json").stdout)["pictures"] == 2


def test_sample_options_reach_the_library():
    words = [
        "--label",
        "dog",
        "--temperature",
        "0.7",
        "--top-k",
        "9",
        "--top-p",
        "0.8",
        "--seed",
        "3",
        "--size",
        "30x22",
        "-n",
        "2",
    ]
    ok("sample", *words, "-o", "s.npz")
    expected = codec.load("toy").sample_codes(
        2, (22, 30), label="dog", temperature=0.7, top_k=9, top_p=0.8, seed=3
    )
    assert codes.read_plain_codes(Path("s.npz")) == expected
    ok("sample", "--temperature", "0", "--label", "1", "-n", "2", "-o", "cold.npz")
    cold = codes.read_plain_codes(Path("cold.npz")).indices
    assert (cold[0] == cold[1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["top:0.5", "bottom:0.3", "left:0.5", "right:0.25"])
def test_complete_keeps_the_codes(keep: str):
    save("a.png")
    ok("encode", "a.png")
    given = codes.read_plain_codes(Path("a.npz")).indices
    done = ok("sample", "--complete", "a.png", "--keep", keep, "-n", "2", "-o", "c.npz")
    assert done.stderr.startswith("2 images of 30x20")
    made = codes.read_plain_codes(Path("c.npz")).indices
    rows, columns = codec.parse_keep(keep, *given.shape[2:])
    assert (made[..., rows, columns] == given[..., rows, columns]).all()
    assert (made != given).any()
    ok(
        "sample",
        "--complete",
        "-",
        "--keep",
        keep,
        "-n",
        "2",
        "-o",
        "d.npz",
        stdin=Path("a.png").read_bytes(),
    )
    assert Path("d.npz").read_bytes() == Path("c.npz").read_bytes()


def test_complete_shows_notes():
    save("alpha.png", image(20, 30, 4))
    assert ok("sample", "--complete", "alpha.png", "-n", "1").stderr.startswith(
        "alpha.png: transparency laid over white\n"
    )


@pytest.mark.slow
def test_models_without_a_prior_or_with_a_wrong_one(tmp_path: Path):
    make_model(tmp_path / "models" / "bare", prior=None)
    make_model(tmp_path / "models" / "mixed", seed=3)
    stranger = tmp_path / "models" / "toy" / "prior.safetensors"
    (tmp_path / "models" / "mixed" / "prior.safetensors").write_bytes(stranger.read_bytes())
    assert "the model bare has no prior" in fails("sample", "-m", "bare")
    assert "prior of another tokenizer" in fails("sample", "-m", "mixed")
    assert "prior of another tokenizer" in fails("eval", "-m", "mixed", "--limit", "2")
    table = ok("eval", "-m", "bare", "--limit", "2").stdout
    assert "by the prior" not in table
