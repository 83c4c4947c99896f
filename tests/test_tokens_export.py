"""`vqtok export` of codes, `vqtok import-tokens`: every format parsed by its published layout, and
by its own reader where that is installed.
"""

import io
import json
import struct
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import fails, ok, save
from conftest import image
from token_helpers import flatten, make_shards, written_out

from vqtok import codes
from vqtok.codes import read_plain_codes
from vqtok.config import TOKEN_FORMATS
from vqtok.tokens import reader
from vqtok.tokens.formats import litdata, mds, webdataset

pytestmark = pytest.mark.usefixtures("toy")
SQUARE = [(4, 4)] * 10
MIXED = [(4, 4), (3, 5), (4, 4)]
FACTS: dict[str, Any] = {
    "label": [i % 3 for i in range(10)],
    "caption": [f"image {i}" if i != 6 else None for i in range(10)],
    "split": ["train"] * 7 + ["val"] * 3,
}


@pytest.fixture
def made() -> list[np.ndarray]:
    """Ten grids (2, 4, 4) in codes/, with labels, captions and splits."""
    return make_shards("codes", SQUARE, names=[f"{i:03}.v1.png" for i in range(10)], **FACTS)


def tokens_of(made: list[np.ndarray], **options: Any) -> list[list[int]]:
    return [written_out(grid, options.get("order", "raster"), 16, True) for grid in made]


def export(to: str, *words: object, source: str = "codes") -> dict[str, Any]:
    """Exports with --offset into out/; what meta.json says."""
    ok("export", source, "-o", "out", "--to", to, "--offset", *words)
    return json.loads(Path("out/meta.json").read_text())


def test_bin_is_flat_little_endian(made: list[np.ndarray]):
    meta = export("bin")
    data = np.memmap("out/tokens.bin", dtype="<u2", mode="r")
    assert data.reshape(10, 32).tolist() == tokens_of(made)
    assert meta["vocabulary_size"] == 32
    assert meta["level_starts"] == [0, 16]
    assert meta["digits"] == "first dimension fastest"
    only = meta["exports"]["tokens"]
    assert (only["sequences"], only["tokens"], only["length"], only["dtype"]) == (
        10,
        320,
        32,
        "uint16",
    )


def test_bin_is_wider_above_65536_ids():
    made = make_shards("codes", SQUARE, K=65536, L=2)
    assert export("bin")["exports"]["tokens"]["dtype"] == "uint32"
    data = np.fromfile("out/tokens.bin", "<u4").reshape(10, 32)
    assert data.tolist() == [written_out(grid, "raster", 65536, True) for grid in made]
    assert data.max() > 65535


@pytest.mark.parametrize(("K", "magic", "version"), [(16, 20240520, 1), (65536, 20240801, 7)])
def test_the_header_is_that_of_llm_c(K: int, magic: int, version: int):
    make_shards("codes", SQUARE, K=K)
    export("bin", "--header", 256)
    data = Path("out/tokens.bin").read_bytes()
    head = np.frombuffer(data, "<i4", 256)
    assert head[:3].tolist() == [magic, version, 320]
    assert not head[3:].any()
    assert len(data) == 1024 + 320 * (2 if K == 16 else 4)
    ok("import-tokens", "out/tokens.bin", "-o", "back.npz")
    assert len(read_plain_codes(Path("back.npz"))) == 10


def test_webdataset_samples_have_every_field_and_whole_keys(
    made: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(webdataset, "SHARD_BYTES", 20_000)
    export("webdataset")
    shards = sorted(Path("out").glob("*.tar"))
    assert len(shards) > 1
    assert [shard.name for shard in shards] == [f"tokens-{i:06}.tar" for i in range(len(shards))]
    samples: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                key, _, suffix = member.name.partition(".")
                file = archive.extractfile(member)
                assert file is not None
                samples.setdefault(key, {})[suffix] = file.read()
    assert sorted(samples) == [f"{i:09}" for i in range(10)]
    for i, sample in enumerate(samples.values()):
        assert sorted(sample) == ["cls", "json", "npy", "txt"]
        array = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
        assert (array.dtype, array.tolist()) == (np.uint16, tokens_of(made)[i])
        assert int(sample["cls"]) == i % 3
        assert sample["txt"].decode() == (FACTS["caption"][i] or "")
        facts = json.loads(sample["json"])
        assert (facts["name"], facts["h"], facts["w"]) == (f"{i:03}.v1.png", 4, 4)
        assert facts["caption"] == FACTS["caption"][i]


def test_jsonl(made: list[np.ndarray]):
    export("jsonl")
    lines = [json.loads(line) for line in Path("out/tokens.jsonl").read_text().splitlines()]
    assert lines == [{"class_id": i % 3, "tokens": row} for i, row in enumerate(tokens_of(made))]


def test_llamagen_has_int64_and_groups_copies():
    """The reader gives what is there to cross_entropy, whose targets are int64."""
    names = ["a.png", "a.png", "b.png", "b.png"]
    made = make_shards("codes", SQUARE[:4], names=names, label=[7, 7, 2, 2])
    export("llamagen")
    first = np.load("out/imagenet16_codes/0.npy", allow_pickle=False)
    assert (first.shape, first.dtype) == ((1, 2, 32), np.int64)
    assert first[0].tolist() == tokens_of(made)[:2]
    labels = [np.load(f"out/imagenet16_labels/{i}.npy", allow_pickle=False) for i in range(2)]
    assert [(label.shape, label.dtype) for label in labels] == [((1,), np.int64)] * 2
    assert [int(label[0]) for label in labels] == [7, 2]
    assert len(list(Path("out/imagenet16_codes").iterdir())) == 2


@pytest.mark.parametrize("to", ["llamagen", "litdata"])
def test_a_split_of_one_size_needs_no_others(to: str):
    """What one length takes holds for the images of the split, wherever these lie."""
    grids, split = [(2, 3), (2, 3), (3, 3), (2, 2), (3, 3), (4, 2)], [*"ttvtvt"]
    made = make_shards("codes", grids, each=2, split=[{"t": "train", "v": "val"}[s] for s in split])
    entry = export(to, "--split", "val")["exports"]["val"]
    assert entry["grid"] == [3, 3]
    if to == "llamagen":
        assert entry["folders"] == ["imagenet12_codes", "imagenet12_labels"]
        found = [np.load(f"out/imagenet12_codes/{i}.npy")[0, 0].tolist() for i in range(2)]
    else:
        found = read_litdata(Path("out"), entry["block"])
    assert found == tokens_of([made[2], made[4]])
    message = fails("export", "codes", "-o", "mixed", "--to", to, "--split", "train", code=2)
    assert "differ" in message


@pytest.mark.parametrize(("K", "code", "dtype"), [(16, 8, "<u2"), (65536, 4, "<i4")])
def test_megatron_index(K: int, code: int, dtype: str):
    made = make_shards("codes", MIXED, K=K)
    export("megatron")
    index = Path("out/tokens.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<QBQQ", index, 9) == (1, code, 3, 4)
    lengths = np.frombuffer(index, "<i4", 3, 34)
    pointers = np.frombuffer(index, "<i8", 3, 46)
    borders = np.frombuffer(index, "<i8", 4, 70)
    assert lengths.tolist() == [32, 30, 32]
    assert (pointers // np.dtype(dtype).itemsize).tolist() == [0, 32, 62]
    assert borders.tolist() == [0, 1, 2, 3]
    assert len(index) == 102
    data = np.fromfile("out/tokens.bin", dtype)
    assert data.tolist() == flatten(written_out(grid, "raster", K, True) for grid in made)


def read_litdata(folder: Path, block: int) -> list[list[int]]:
    """What a reader with that block size sees: never the end of a chunk that is no whole block."""
    index, blocks = json.loads((folder / "index.json").read_text()), []
    assert index["config"]["data_format"] == ["no_header_numpy:5"]
    for chunk in index["chunks"]:
        data = (folder / chunk["filename"]).read_bytes()
        start = 4 * (chunk["chunk_size"] + 2)
        offsets = np.frombuffer(data, "<u4", chunk["chunk_size"] + 2)
        assert offsets[0] == chunk["chunk_size"]
        assert (offsets[1], offsets[-1]) == (start, len(data))
        tokens = np.frombuffer(data, "<u2", offset=start)
        assert len(tokens) == chunk["dim"]
        blocks += tokens[: chunk["dim"] // block * block].reshape(-1, block).tolist()
    return blocks


def test_litdata_chunks_hold_whole_blocks(made: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(litdata, "SHARD_BYTES", 200)
    export("litdata")
    assert len(list(Path("out").glob("chunk-0-*.bin"))) == 4
    assert read_litdata(Path("out"), 32) == tokens_of(made)


def test_litdata_fills_the_last_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(litdata, "SHARD_BYTES", 40)
    made = make_shards("codes", MIXED)
    assert "sequences differ" in fails("export", "codes", "-o", "o", "--to", "litdata", code=2)
    words = ("--to", "litdata", "--block", 7)
    assert "add --eos" in fails("export", "codes", "-o", "o", *words, code=2)
    meta = export("litdata", "--block", 7, "--eos")
    flat = flatten([*row, 32] for row in tokens_of(made))
    assert meta["exports"]["tokens"]["filled"] == -len(flat) % 7
    flat += [32] * (-len(flat) % 7)
    assert flatten(read_litdata(Path("out"), 7)) == flat


def read_mds(folder: Path) -> list[dict[str, Any]]:
    index, samples = json.loads((folder / "index.json").read_text()), []
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", data)
        assert count == shard["samples"]
        offsets = np.frombuffer(data, "<u4", count + 1, 4).tolist()
        for start, stop in pairwise(offsets):
            samples.append(_mds_sample(data[start:stop], shard))
    return samples


def _mds_sample(data: bytes, shard: dict[str, Any]) -> dict[str, Any]:
    sizes, at, sample = list(shard["column_sizes"]), 0, {}
    for i, size in enumerate(sizes):
        if size is None:
            (sizes[i],) = struct.unpack_from("<I", data, at)
            at += 4
    columns = zip(shard["column_names"], shard["column_encodings"], sizes, strict=True)
    for name, encoding, size in columns:
        part, at = data[at : at + size], at + size
        if encoding.startswith("ndarray:"):
            width = 1 << (part[0] & 3)
            assert part[0] >> 2 == 1  # one axis
            length = int.from_bytes(part[1 : 1 + width], "little")
            values = np.frombuffer(part, np.dtype(encoding[8:]).newbyteorder("<"), -1, 1 + width)
            assert len(values) == length
            sample[name] = values.tolist()
        else:
            whole = int.from_bytes(part, "little", signed=True)
            sample[name] = part.decode() if encoding == "str" else whole
    assert at == len(data)
    return sample


def test_mds(made: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mds, "SHARD_BYTES", (1 << 16) + 400)
    export("mds")
    assert len(list(Path("out").glob("*.mds"))) > 1
    samples = read_mds(Path("out"))
    assert [sample["tokens"] for sample in samples] == tokens_of(made)
    assert samples[4] == {
        "tokens": tokens_of(made)[4],
        "h": 4,
        "w": 4,
        "levels": 2,
        "name": "004.v1.png",
        "label": 1,
        "caption": "image 4",
    }
    assert samples[6]["caption"] == ""


def test_mds_of_long_sequences():
    """A length above 255 takes two bytes."""
    make_shards("codes", [(12, 12)])
    export("mds")
    assert len(read_mds(Path("out"))[0]["tokens"]) == 288


def test_parquet_says_what_it_needs(monkeypatch: pytest.MonkeyPatch):
    import sys

    make_shards("codes", SQUARE)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    told = fails("export", "codes", "-o", "o", "--to", "parquet", code=2)
    assert "pip install 'vqtok[parquet]'" in told


def test_parquet(made: list[np.ndarray]):
    parquet = pytest.importorskip("pyarrow.parquet")
    export("parquet")
    table = parquet.read_table("out/tokens.parquet")
    assert str(table.schema.field("tokens").type) == "list<element: uint16>"
    assert table["tokens"].to_pylist() == tokens_of(made)
    assert table["label"].to_pylist() == FACTS["label"]
    assert table["caption"].to_pylist() == FACTS["caption"]
    assert table["split"].to_pylist() == FACTS["split"]
    ok("import-tokens", "out", "-o", "back.npz")
    assert (read_plain_codes(Path("back.npz")).indices == np.stack(made)).all()


# Choices that all formats have

HERMETIC = [name for name in TOKEN_FORMATS if name != "parquet"]
BACK = [name for name in HERMETIC if name not in ("litdata", "mds")]


@pytest.mark.parametrize("order", ["raster", "level-major"])
@pytest.mark.parametrize("to", BACK)
def test_every_format_comes_back(made: list[np.ndarray], to: str, order: str):
    export(to, "--order", order, "--bos", "--eol", "--eos", "--class-tokens")
    ok("import-tokens", "out", "-o", "back.npz")
    back = read_plain_codes(Path("back.npz"))
    assert (back.indices == np.stack(made)).all()
    assert (back.model, back.fingerprint, back.codebook_size) == ("toy", "0badcafe", 16)
    assert back.sizes == ((16, 16),) * 10


@pytest.mark.parametrize(
    ("to", "words"),
    [(name, ("--eol", "--eos")) for name in BACK if name != "llamagen"]
    + [(name, ()) for name in BACK if name in ("jsonl", "webdataset", "parquet")],
)
def test_mixed_grids_come_back(to: str, words: tuple[str, ...]):
    """By their EOL tokens, or by the h and w that stand beside the tokens."""
    made = make_shards("codes", MIXED)
    export(to, *words)
    ok("import-tokens", "out", "-o", "back")
    assert (read_plain_codes(Path("back/4x4.npz")).indices == np.stack(made[::2])).all()
    assert (read_plain_codes(Path("back/5x3.npz")).indices == made[1]).all()


@pytest.mark.parametrize("to", HERMETIC)
def test_equal_exports_give_equal_bytes(made: list[np.ndarray], to: str):
    contents = []
    for out in ("a", "b"):
        ok("export", "codes", "-o", out, "--to", to, "--shuffle", 3)
        files = sorted(path for path in Path(out).rglob("*") if path.is_file())
        contents.append([(str(path.relative_to(out)), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]
    assert not list(Path("a").glob(".*"))


def test_shuffle_keeps_every_sequence_and_its_label(made: list[np.ndarray]):
    export("jsonl", "--shuffle", 7)
    lines = [json.loads(line) for line in Path("out/tokens.jsonl").read_text().splitlines()]
    rows = tokens_of(made)
    numbers = [rows.index(line["tokens"]) for line in lines]
    assert numbers != sorted(numbers) == list(range(10))
    assert [line["class_id"] for line in lines] == [number % 3 for number in numbers]
    assert json.loads(Path("out/meta.json").read_text())["exports"]["tokens"]["shuffle"] == 7


def test_shuffle_of_many_pools_and_small_batches(
    made: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reader, "POOL", 40)
    monkeypatch.setattr(reader, "BATCH", 70)
    export("jsonl", "--shuffle", 7)
    lines = [json.loads(line) for line in Path("out/tokens.jsonl").read_text().splitlines()]
    assert sorted(line["tokens"] for line in lines) == sorted(tokens_of(made))


def test_splits_share_a_folder_and_a_vocabulary(made: list[np.ndarray]):
    for split in ("train", "val"):
        ok("export", "codes", "-o", "out", "--to", "bin", "--split", split)
    assert Path("out/train.bin").stat().st_size == 7 * 64
    assert Path("out/val.bin").stat().st_size == 3 * 64
    meta = json.loads(Path("out/meta.json").read_text())
    assert {name: each["sequences"] for name, each in meta["exports"].items()} == {
        "train": 7,
        "val": 3,
    }
    ok("import-tokens", "out/val.bin", "-o", "back.npz")
    assert (read_plain_codes(Path("back.npz")).indices == np.stack(made[7:])).all()
    other = ("export", "codes", "-o", "out/val.bin", "--to", "bin", "--eos")
    assert "is of other sequences" in fails(*other)
    assert "also of train.bin, whose sequences are others" in fails(*other, "-f")
    assert "choose train and val" in fails(
        "export", "codes", "-o", "out", "--to", "bin", "--split", "test", code=2
    )


def test_formats_of_one_file_share_a_folder(made: list[np.ndarray]):
    ok("export", "codes", "-o", "out/a.bin", "--to", "bin")
    ok("export", "codes", "-o", "out/b.jsonl", "--to", "jsonl")
    ok("export", "codes", "-o", "out/a.jsonl", "--to", "jsonl")
    assert "is of other sequences" in fails(
        "export", "codes", "-o", "out/c.jsonl", "--to", "jsonl", "--offset"
    )
    assert "exists" in fails("export", "codes", "-o", "out", "--to", "webdataset")
    for name in ("a.bin", "b.jsonl", "a.jsonl"):
        ok("import-tokens", f"out/{name}", "-o", f"{name}.npz")
        assert (read_plain_codes(Path(f"{name}.npz")).indices == np.stack(made)).all()
    # the same images three times
    assert "give one file: out/a.bin" in fails("import-tokens", "out", "-o", "x.npz", code=2)
    # both of these have an a.bin, and a.idx may not stay behind
    assert "a.bin exists" in fails("export", "codes", "-o", "out/a.bin", "--to", "megatron")
    ok("export", "codes", "-o", "out/a.bin", "--to", "megatron", "-f")
    assert Path("out/a.idx").exists()
    ok("export", "codes", "-o", "out/a.bin", "--to", "bin", "-f")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a.bin",
        "a.jsonl",
        "b.jsonl",
        "meta.json",
    ]
    ok("import-tokens", "out/a.bin", "-o", "again.npz")
    assert (read_plain_codes(Path("again.npz")).indices == np.stack(made)).all()


@pytest.mark.slow
def test_what_exists_stays_without_force(made: list[np.ndarray], monkeypatch: pytest.MonkeyPatch):
    for to in HERMETIC:
        ok("export", "codes", "-o", to, "--to", to)
        assert "exists" in fails("export", "codes", "-o", to, "--to", to)
    with monkeypatch.context() as small:
        small.setattr(webdataset, "SHARD_BYTES", 20_000)
        ok("export", "codes", "-o", "w", "--to", "webdataset")
    assert len(list(Path("w").glob("*.tar"))) > 1
    Path("w/mine.txt").write_text("mine")
    ok("export", "codes", "-o", "w", "--to", "webdataset", "-f")
    assert sorted(path.name for path in Path("w").iterdir()) == [
        "meta.json",
        "mine.txt",
        "tokens-000000.tar",
    ]


def test_one_codes_file_and_a_folder_of_them():
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        grids = draw.integers(0, 16, (1, 2, 4, 4)).astype(np.uint8)
        made = codes.Codes(grids, "toy", "0badcafe", 16, 4, 3, ((15, 13),))
        codes.write_codes(Path("files", f"{name}.npz"), made)
    ok("export", "files/a.npz", "-o", "one.jsonl", "--to", "jsonl")
    ok("import-tokens", "one.jsonl", "-o", "back.npz")
    # not only the grid: the image's size too
    assert read_plain_codes(Path("back.npz")) == read_plain_codes(Path("files/a.npz"))
    ok("export", "files", "-o", "all", "--to", "bin")
    assert Path("all/tokens.bin").stat().st_size == 2 * 64


def test_what_a_transformer_draws_becomes_an_image(toy: Path):
    """From tokens of its own, through import-tokens and decode, to a file."""
    from vqtok import codec
    from vqtok.codec import Model

    model: Model = codec.load("toy")
    made = model.codes(np.arange(16).reshape(1, 1, 4, 4))
    codes.write_codes(Path("a.npz"), made)
    ok("export", "a.npz", "-o", "train", "--to", "bin", "--bos")
    drawn = np.array([[16, *range(16)], [16, *range(15, -1, -1)]])
    np.save("drawn.npy", drawn)
    ok("import-tokens", "drawn.npy", "-o", "drawn.npz", "--meta", "train/meta.json")
    found = read_plain_codes(Path("drawn.npz"))
    assert found.indices[1, 0].ravel().tolist() == list(range(15, -1, -1))
    assert model.decode_all(found)[0].shape == (16, 16, 3)
    Path("lines.jsonl").write_text(json.dumps(drawn[0, 1:].tolist()) + "\n")
    ok("import-tokens", "lines.jsonl", "-o", "l.npz", "--meta", "train/meta.json")
    assert (read_plain_codes(Path("l.npz")).indices[0] == found.indices[0]).all()


def test_wrong_sequences_are_told(made: list[np.ndarray]):
    export("bin", "--eos")

    def told(array: np.ndarray, *words: object) -> str:
        np.save("x.npy", array, allow_pickle=False)
        return fails("import-tokens", "x.npy", "-o", "x.npz", "--meta", "out", *words)

    good = np.array(tokens_of(made))
    bad = good.copy()
    bad[3, 5] = 33
    assert "x.npy: sequence 3: the id 33 at place 5 is beyond the vocabulary of 33" in told(bad)
    bad[3, 5] = 2
    assert "sequence 3: the id 2 at place 5 is code 2 of level 1, where a code of level 2" in told(
        bad
    )
    assert "the sequence has 31 codes" in told(good[:, :-1])
    assert "and a grid of 5x4" in told(good, "--grid", "4x5")
    assert "float64" in told(good * 1.0)
    assert "(0, 32)" in told(good[:0])
    Path("x.npy").write_bytes(b"\x93NUMPY")
    assert "not an .npy array" in fails("import-tokens", "x.npy", "-o", "x.npz", "--meta", "out")
    np.save("x.npy", good)
    Path("x.npy").write_bytes(Path("x.npy").read_bytes()[:-8])
    assert "is cut" in fails("import-tokens", "x.npy", "-o", "x.npz", "--meta", "out")
    assert "no meta.json beside" in fails("import-tokens", "x.npy", "-o", "x.npz")
    Path("x.jsonl").write_text("[1, 2.5]\n")
    assert "line 1 has no list" in fails("import-tokens", "x.jsonl", "-o", "x.npz", "--meta", "out")
    assert "is no grid" in fails(
        "import-tokens", "x.npy", "-o", "x.npz", "--meta", "out", "--grid", "4", code=2
    )


def test_a_huge_npy_header_takes_no_memory(made: list[np.ndarray]):
    export("bin")
    head = b"\x93NUMPY\x01\x00\x76\x00"
    text = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776, 4), }"
    Path("x.npy").write_bytes(head + text.ljust(117) + b"\n")
    assert "is cut" in fails("import-tokens", "x.npy", "-o", "x.npz", "--meta", "out")


def test_a_damaged_meta_is_told(made: list[np.ndarray]):
    export("bin")
    meta = json.loads(Path("out/meta.json").read_text())

    def told(**changes: object) -> str:
        Path("out/meta.json").write_text(json.dumps(meta | changes))
        return fails("import-tokens", "out", "-o", "x.npz")

    for changes in (
        {"levels": "2"},
        {"codebook_size": 0},
        {"eos": 3},
        {"order": "spiral"},
        {"exports": []},
        {"exports": {"tokens": {"files": ["../../etc/x.bin"]}}},
        {"exports": {"tokens": {"files": [".hidden"]}}},
        {"model": 3},
        {"downsample": None},
    ):
        assert "damaged" in told(**changes), changes
    assert "newer than this vqtok reads" in told(format=2)
    assert "not the meta.json of an export" in told(kind="x")
    Path("out/meta.json").write_text("{")
    assert "damaged" in fails("import-tokens", "out", "-o", "x.npz")


def test_a_damaged_source_writes_nothing(made: list[np.ndarray]):
    path = Path("codes/00000-00001.npz")
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    for to in HERMETIC:
        assert "00000-00001.npz" in fails("export", "codes", "-o", "new/out", "--to", to)
    # an index beyond the codebook
    at = codes.data_offset(data, "indices")
    path.write_bytes(data[:at] + b"\xff" + data[at + 1 :])
    told = fails("export", "codes", "-o", "new/out", "--to", "bin")
    assert "00000-00001.npz: an index is out of range" in told


def test_options_that_do_not_go_together(made: list[np.ndarray]):
    def told(*words: object, code: int = 2) -> str:
        return fails("export", *words, "-o", "out", code=code)

    assert "--header does not go with --to jsonl" in told("codes", "--to", "jsonl", "--header", 256)
    assert "--block does not go with --to bin" in told("codes", "--to", "bin", "--block", 8)
    assert "no header of 3 words" in told("codes", "--to", "bin", "--header", 3)
    assert "there is no order 'spiral'" in told("codes", "--to", "bin", "--order", "spiral")
    assert "--bos is for codes, and diffusers is a format of models" in told("codes", "--bos")
    assert "codes holds codes" in told("codes")
    made_by_encode = Path("files/a")
    made_by_encode.mkdir(parents=True)
    ok("unpack", "codes/00000-00000.npz", "-o", made_by_encode / "1.npz")
    for to in ((), ("--to", "onnx")):  # a folder of codes files was taken for a model's
        assert "files holds codes" in told("files", *to)
    assert "cannot export to 'x'" in told("codes", "--to", "x")
    assert "nowhere does not exist" in told("nowhere", "--to", "bin", code=1)
    Path("file").write_text("")
    assert "it is a file" in fails("export", "codes", "-o", "file", "--to", "mds")
    assert "standard output" in fails("export", "codes", "-o", "-", "--to", "bin", code=2)


def test_codes_of_two_models_or_of_other_levels_are_told():
    for name, model, L in (("a", "0badcafe", 2), ("b", "1badcafe", 2), ("c", "0badcafe", 1)):
        grids = np.zeros((1, L, 2, 2), np.uint8)
        made = codes.Codes(grids, "toy", model, 16, 4, 3, ((8, 8),))
        codes.write_codes(Path(name if name == "c" else "ab", f"{name}.npz"), made)
    told = fails("export", "ab", "-o", "out", "--to", "bin", code=2)
    assert "one model at a time" in told
    Path("ab/b.npz").unlink()
    Path("c/c.npz").rename("ab/c.npz")
    assert "vqtok truncate --levels 1" in fails("export", "ab", "-o", "o", "--to", "bin", code=2)


def test_llamagen_refuses_lengths_that_differ():
    make_shards("codes", MIXED)
    told = fails("export", "codes", "-o", "out", "--to", "llamagen", code=2)
    assert "these grids differ" in told


def test_what_is_lost_is_said(made: list[np.ndarray]):
    make_shards("mixed", MIXED)
    told = ok("export", "mixed", "-o", "a", "--to", "bin").stderr
    assert "nothing in the sequences tells which" in told
    assert "share the ids 0 to 15" in told
    assert "tells which" not in ok("export", "mixed", "-o", "j", "--to", "jsonl").stderr
    facts = json.loads(ok("export", "mixed", "-o", "b", "--to", "bin", "--json").stdout)
    assert len(facts["notes"]) == 2
    assert (facts["sequences"], facts["tokens"], facts["files"]) == (3, 94, ["tokens.bin"])
    told = fails("import-tokens", "a", "-o", "x")
    assert "nothing tells where one sequence ends" in told


def test_memory_is_flat(monkeypatch: pytest.MonkeyPatch):
    """What an export holds does not grow with the number of shards."""
    import tracemalloc

    from vqtok.bulk import CodesDataset
    from vqtok.tokens import ExportRequest, export_tokens

    peaks = []
    for count in (40, 400):
        make_shards(f"codes-{count}", [(16, 16)] * count, each=20)
        data = CodesDataset(f"codes-{count}").sequences()
        tracemalloc.start()
        export_tokens(data, Path(f"out-{count}"), ExportRequest("bin"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


# Readers that are installed


def test_litdata_reads_it(made: list[np.ndarray]):
    package = pytest.importorskip("litdata")
    export("litdata")
    loader = package.TokensLoader(block_size=32)
    data = package.StreamingDataset(input_dir="out", item_loader=loader, shuffle=False)
    assert [data[i].tolist() for i in range(len(data))] == tokens_of(made)


def test_webdataset_reads_it(made: list[np.ndarray]):
    wds = pytest.importorskip("webdataset")
    export("webdataset")
    data = wds.WebDataset("out/tokens-000000.tar", shardshuffle=False).decode()
    assert [sample["npy"].tolist() for sample in data] == tokens_of(made)


def test_streaming_reads_it(made: list[np.ndarray]):
    try:
        streaming = pytest.importorskip("streaming")
    except RuntimeError as error:  # its torchvision does not load beside a CPU build of torch
        pytest.skip(str(error))
    export("mds")
    data = streaming.StreamingDataset(local="out", shuffle=False, batch_size=1)
    assert [data[i]["tokens"].tolist() for i in range(len(data))] == tokens_of(made)


@pytest.mark.parametrize("to", ["webdataset", "jsonl", "bin"])
@pytest.mark.parametrize("folder", [True, False])
def test_an_export_that_lacks_its_end_is_refused(to: str, folder: bool):
    """Cut between two sequences, it looks whole: meta.json tells how many there were."""
    for number in range(4):
        save(f"in/{number}.png", image(16, 16, seed=number))
    ok("encode", "in", "--bulk", "-o", "codes", "--workers", 0)
    ok("export", "codes", "-o", "data", "--to", to)
    path = next(p for p in Path("data").iterdir() if p.name != "meta.json")
    ok("import-tokens", "data" if folder else path, "-o", "back.npz")
    data = path.read_bytes()
    if to == "webdataset":
        with tarfile.open(path) as archive:
            end = archive.getmembers()[len(archive.getmembers()) // 4 * 3].offset
    else:
        end = len(data) // 4 * 3 if to == "bin" else data[:-1].rindex(b"\n") + 1
    path.write_bytes(data[:end])
    message = fails("import-tokens", "data" if folder else path, "-o", "cut.npz")
    assert "holds 3 sequences, and meta.json tells of 4" in message
    assert not Path("cut.npz").exists()
