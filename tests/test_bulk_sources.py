"""Data sets, labels, captions and splits: what `vqtok encode` finds and keeps with the codes."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bulk_helpers import contents, make_tar, png
from cli_helpers import fails, ok, run, save
from conftest import image
from PIL import Image

from vqtok import codec
from vqtok.bulk import CodesDataset, pool
from vqtok.bulk.inputs import Inputs
from vqtok.train.shards import CodesData

pytestmark = pytest.mark.usefixtures("toy")
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def encode(*words: object, out: str = "out") -> list[dict[str, Any]]:
    """Encodes, and returns the images' lines."""
    ok("encode", *words, "-o", out, "--workers", 0, "-q")
    return lines(out)


def lines(out: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in sorted(Path(out).glob("*.jsonl"))
        for line in path.read_text().splitlines()[1:]
    ]


def column(found: list[dict[str, Any]], key: str) -> list[Any]:
    return [line.get(key) for line in found]


def labels_of(out: str) -> list[str]:
    return json.loads(Path(out, "manifest.json").read_text()).get("labels", [])


def pixels(count: int, side: int = 16, C: int = 3) -> np.ndarray:
    return np.stack([image(side, side, seed=i)[..., :C] for i in range(count)])


def cifar(folder: str, train: list[int], test: list[int], names: bool = True) -> dict[str, bytes]:
    """The files of cifar-10-batches-bin with images of these classes."""
    found = {}
    for name, classes in (("data_batch_1.bin", train), ("test_batch.bin", test)):
        x = pixels(len(classes), 32).transpose(0, 3, 1, 2).reshape(len(classes), -1)
        rows = np.concatenate([np.array(classes, np.uint8)[:, None], x], 1)
        found[f"{folder}/{name}"] = rows.tobytes()
    if names:
        found[f"{folder}/batches.meta.txt"] = "\n".join(NAMES).encode()
    return found


def write(members: dict[str, bytes]) -> None:
    for name, content in members.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def idx(array: np.ndarray) -> bytes:
    sizes = b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


# Data sets


def test_cifar_is_encoded_with_classes_and_splits():
    write(cifar("cifar-10-batches-bin", [3, 9, 0], [5]))
    found = encode("cifar-10-batches-bin", "--shard-size", 2)
    assert labels_of("out") == NAMES
    assert column(found, "name") == ["train/000000", "train/000001", "train/000002", "test/000000"]
    assert column(found, "label") == [3, 9, 0, 5]
    assert column(found, "split") == ["train", "train", "train", "test"]
    data, model = CodesDataset("out"), codec.load("toy")
    assert data[2][1] == "cifar-10-batches-bin/train/000002"
    for i, x in enumerate([*pixels(3, 32), *pixels(1, 32)]):
        assert data.codes(i) == model.encode(x)
    sequences = data.sequences(split="test", class_tokens=True)
    assert (len(sequences), sequences.labels.tolist()) == (1, [5])
    assert sequences.class_names == tuple(NAMES)


def test_cifar_archives_and_single_batches_are_taken():
    members = cifar("cifar-10-batches-bin", [1, 2], [7])
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    write({"cifar-10-binary.tar.gz": buffer.getvalue(), **members})
    assert column(encode("cifar-10-binary.tar.gz", out="a"), "label") == [1, 2, 7]
    one = encode("cifar-10-batches-bin/test_batch.bin", out="b")
    assert (column(one, "label"), column(one, "split")) == ([7], ["test"])


def test_images_of_a_data_set_are_encoded_many_at_once(monkeypatch: pytest.MonkeyPatch):
    """Without a process or a thread for each, which would take longer than to encode them."""
    write(cifar("c", [i % 10 for i in range(90)], [1] * 10))
    sizes = []
    encode_batch = codec.Model.encode_batch

    def counted(model: codec.Model, images: list[np.ndarray], levels: int | None = None) -> Any:
        sizes.append(len(images))
        return encode_batch(model, images, levels)

    def never(*_: object) -> None:
        raise AssertionError("a process or thread was asked")

    monkeypatch.setattr(codec.Model, "encode_batch", counted)
    monkeypatch.setattr(pool, "_start", never)
    monkeypatch.setattr(pool.Pool, "_enter", never)
    ok("encode", "c", "-o", "out", "--workers", 2, "-q")
    assert sizes == [100]


@pytest.mark.parametrize("packed", [False, True])
def test_idx_keeps_its_numbers(packed: bool):
    pack, end = (gzip.compress, ".gz") if packed else (bytes, "")
    gray = pixels(5, 28, 1)[..., 0]
    write(
        {
            f"mnist/train-images-idx3-ubyte{end}": pack(idx(gray[:3])),
            f"mnist/train-labels-idx1-ubyte{end}": pack(idx(np.array([7, 2, 7], np.uint8))),
            f"mnist/t10k-images-idx3-ubyte{end}": pack(idx(gray[3:])),
            f"mnist/t10k-labels-idx1-ubyte{end}": pack(idx(np.array([9, 2], np.uint8))),
        }
    )
    found = encode("mnist")
    assert column(found, "label") == [7, 2, 7, 9, 2]
    assert column(found, "split") == ["train"] * 3 + ["test"] * 2
    assert labels_of("out") == []
    one = encode(f"mnist/train-images-idx3-ubyte{end}", out="one")
    assert (column(one, "label"), column(one, "split")) == ([7, 2, 7], ["train"] * 3)
    model = codec.load("toy")
    assert CodesDataset("out").codes(4) == model.encode(np.repeat(gray[4][..., None], 3, 2))


def test_npz_like_medmnist_has_three_splits():
    np.savez(
        "pathmnist.npz",
        train_images=pixels(3),
        train_labels=np.array([[4], [0], [8]], np.uint8),
        val_images=pixels(2),
        val_labels=np.array([[1], [4]], np.uint8),
        test_images=pixels(1),
        test_labels=np.array([[7]], np.uint8),
    )
    found = encode("pathmnist.npz")
    assert column(found, "label") == [4, 0, 8, 1, 4, 7]
    assert column(found, "split") == ["train"] * 3 + ["val"] * 2 + ["test"]
    assert column(found, "name")[3] == "val/000000"
    Path("in").mkdir()
    os.rename("pathmnist.npz", "in/pathmnist.npz")  # a folder of its own
    assert encode("in", out="again") == found


@pytest.mark.slow
def test_globs_and_codes_files_are_told_apart():
    for i in range(2):
        np.savez(f"part{i}.npz", images=pixels(1), labels=np.array([i]))
    assert column(encode("part*.npz", out="a"), "label") == [0, 1]
    assert column(encode("part{0,1}.npz", out="b"), "label") == [0, 1]
    save("x.png", image(16, 16))
    ok("encode", "x.png")
    ok("encode", "x*", "-o", "files")  # a glob of all names images
    assert [path.name for path in Path("files").iterdir()] == ["x.npz"]
    assert [path.name for path in ok_files("*")] == ["x.npz"]
    assert "x.npz is not an image" in fails("encode", "x.npz", "-o", "y.npz")


def ok_files(word: str) -> list[Path]:
    ok("encode", word, "-o", "all")
    return list(Path("all").iterdir())


def test_arrays_without_splits():
    np.savez("a.npz", images=pixels(2), labels=np.array([5, 3]))
    np.save("imgs.npy", pixels(2, C=1)[..., 0])
    np.save("labels.npy", np.array([1, 0]))
    first, second = encode("a.npz", out="a"), encode("imgs.npy", out="b")
    assert (column(first, "name"), column(first, "label")) == (["000000", "000001"], [5, 3])
    assert column(first, "split") == [None, None]
    assert column(second, "label") == [1, 0]
    np.save("kmnist-test-imgs.npy", pixels(1))
    assert column(encode("kmnist-test-imgs.npy", out="c"), "split") == ["test"]


def test_a_zip_has_folders_texts_and_damage():
    with zipfile.ZipFile("set.zip", "w") as archive:
        for i, name in enumerate(("train/cat/0", "train/dog/1", "val/cat/2")):
            archive.writestr(f"set/{name}.png", png(image(16, 16, seed=i)))
        archive.writestr("set/train/cat/0.txt", "a cat\n")
        archive.writestr("set/train/dog/1.json", '{"caption": "ein Hund"}')
        archive.writestr("set/val/dog/3.png", b"no image")
    done = run("encode", "set.zip", "-o", "out", "--workers", 0)
    assert done.exit_code == 1
    found = lines("out")
    assert labels_of("out") == ["cat", "dog"]
    assert column(found, "label") == [0, 1, 0, None]
    assert column(found, "split") == ["train", "train", "val", None]
    assert column(found, "caption") == ["a cat", "ein Hund", None, None]
    assert "not an image" in found[3]["error"]
    assert CodesDataset("out").codes(1) == codec.load("toy").encode(image(16, 16, seed=1))


def test_several_data_sets_share_one_list_of_classes():
    write(cifar("c", [3], [9]))
    np.savez("d.npz", images=pixels(1), labels=np.array([6]))
    np.savez("e/d.npz", images=pixels(1)) if Path("e").mkdir() is None else None
    make_tar(
        "f.tar",
        {"0.png": png(image(16, 16)), "0.cls": b"cat", "1.png": png(image(16, 16)), "1.cls": b"2"},
    )
    found = encode("c", "d.npz", "e/d.npz", "f.tar")
    inputs = json.loads(Path("out/manifest.json").read_text())["inputs"]
    assert [each["name"] for each in inputs] == ["f.tar", "c", "d.npz", "d.npz-2"]
    assert labels_of("out") == [*NAMES, "6"]
    assert column(found, "label") == [3, "2", 3, 9, 10, None]
    data = CodesDataset("out").sequences()
    assert [data.class_names[i] if i >= 0 else "" for i in data.labels] == [
        "cat",
        "2",
        "cat",
        "truck",
        "6",
        "",
    ]


@pytest.mark.slow
def test_data_sets_go_on_and_notice_other_pixels():
    write(cifar("c", [3, 4, 5], [9]))
    common = ("encode", "c", "--shard-size", 2, "--workers", 0, "-q", "--size", 24, "--flip")
    ok(*common, "-o", "whole")
    for part in range(3):
        ok(*common, "-o", "parts", "--shard", f"{part}/3")
    for path in Path("parts").glob("00000-00000.*"):
        path.unlink()
    ok(*common, "-o", "parts", "--resume")
    assert contents("whole") == contents("parts")
    assert len(CodesDataset("whole")) == 8
    changed = Path("c/data_batch_1.bin").read_bytes()
    Path("c/data_batch_1.bin").write_bytes(changed[:1] + bytes(3072) + changed[3073:])
    assert "c has changed since" in fails(*common, "-o", "whole", "--resume")


def test_a_range_holds_for_data_sets_too():
    """12 bits in 16 encode as what their 8 bits encode to."""
    shallow = pixels(3)
    np.savez("deep.npz", images=shallow.astype(np.uint16) * 16)
    np.savez("shallow.npz", images=shallow)
    with zipfile.ZipFile("deep.zip", "w") as archive:
        for i, image in enumerate(shallow):
            content = io.BytesIO()
            Image.fromarray(image[..., 0].astype(np.uint16) * 16).save(content, "png")
            archive.writestr(f"{i}.png", content.getvalue())
    ok("encode", "shallow.npz", "-o", "shallow")
    ok("encode", "deep.npz", "-o", "deep", "--range", "0:4080")
    wide, narrow = (CodesDataset(name) for name in ("deep", "shallow"))
    for (a, _), (b, _) in zip(wide, narrow, strict=True):
        assert (a == b).all()
    ok("encode", "deep.zip", "-o", "zip", "--range", "0:4080")
    ok("encode", "deep.zip", "-o", "auto", "--range", "auto")
    given, auto = (CodesDataset(name) for name in ("zip", "auto"))
    assert any((a != b).any() for (a, _), (b, _) in zip(given, auto, strict=True))


def test_bad_data_sets_are_refused_in_two_lines():
    Path("short.npy").write_bytes(b"\x93NUMPY\1\0")
    np.savez("complex.npz", images=np.zeros((2, 8, 8, 3), np.complex64))
    Path("bad.bin").write_bytes(b"\1" * 3000)
    with zipfile.ZipFile("none.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    Path("cut.zip").write_bytes(b"PK\3\4" + bytes(40))
    for name, what in {
        "short.npy": "is damaged",
        "complex.npz": "not numbers",
        "bad.bin": "no batch of CIFAR-10",
        "none.zip": "holds no images",
        "cut.zip": "damaged zip",
    }.items():
        assert what in fails("encode", name, "-o", "out")
    Path("pages").mkdir()
    for name in ("rows.parquet", "pages/0.parquet", "a.h5"):
        Path(name).write_bytes(b"PAR1xxxxPAR1")
    for words in (["rows.parquet"], ["pages"], ["pages", "-o", "out"]):
        assert "Parquet files (of Hugging Face, perhaps), which" in fails("encode", *words)
    assert "a.h5 is HDF5" in fails("encode", "a.h5", "-o", "out")
    save("pages/0.png")
    ok("encode", "pages", "-o", "images")  # what can be read is
    np.savez("a.npz", images=pixels(1))
    assert "give one: -o DIR" in fails("encode", "a.npz", code=2)
    assert "--member does not go with" in fails(
        "encode", "a.npz", "-o", "out", "--member", "x", code=2
    )


@pytest.mark.parametrize("kind", ["cifar", "stl", "idx"])
def test_a_damaged_split_does_not_pass_as_missing(kind: str):
    """Without its test images a set is encoded; with damaged ones it is not."""
    train, test = {
        "cifar": ("data_batch_1.bin", "test_batch.bin"),
        "stl": ("train_X.bin", "test_X.bin"),
        "idx": ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte"),
    }[kind]
    if kind == "cifar":
        whole = cifar("d", [3], [5])["d/data_batch_1.bin"]
    else:
        whole = bytes(3 * 96 * 96) if kind == "stl" else idx(pixels(1)[..., 0])
    write({f"d/{train}": whole, f"d/{test}": whole[:-5]})
    assert test in fails("encode", "d", "-o", "out")
    Path("d", test).unlink()
    assert column(encode("d"), "split") == ["train"]


def test_an_empty_split_is_left_out():
    empty = np.zeros((0, 16, 16), np.uint8)
    np.savez("some.npz", train_images=pixels(2)[..., 0], val_images=empty, test_images=empty)
    assert column(encode("some.npz"), "split") == ["train"] * 2
    np.savez("none.npz", train_images=empty, val_images=empty, test_images=empty)
    assert "the shape (0, 16, 16)" in fails("encode", "none.npz", "-o", "o")


# Labels, captions and splits of files


def test_tars_keep_classes_captions_and_splits():
    first = {
        "a.png": png(image(16, 16)),
        "a.cls": b"3\n",
        "a.txt": "größe\n".encode(),
        "b.png": png(image(16, 16)),
        "b.json": b'{"text": "a text", "x": 1}',
        "c.png": b"bad",
        "c.cls": b"9",
    }
    make_tar("train-000.tar", first)
    make_tar(
        "val-000.tar",
        {"a.jpg.txt": b"", "d.cls": b"-1", "d.png": png(image(16, 16)), "d.txt": b"x" * 70_000},
    )
    done = run("encode", "train-000.tar", "val-000.tar", "-o", "out", "--workers", 0)
    assert done.exit_code == 1
    found = lines("out")
    assert column(found, "label") == [3, None, None, None]
    assert column(found, "caption") == ["größe", "a text", None, None]
    assert column(found, "split") == ["train", "train", None, "val"]
    assert found[3]["notes"] == [".txt left out: over 64 KiB, or unreadable"]
    assert "1 .cls, .txt and .json stand apart from their image" in done.stderr
    assert CodesDataset("out").sequences().captions == ["größe", "a text", None]


def test_classes_of_tars_may_be_names():
    make_tar(
        "a.tar",
        {
            "0.png": png(image(16, 16)),
            "0.cls": b"dog",
            "train/1.png": png(image(16, 16)),
            "train/1.cls": b"cat",
        },
    )
    found = encode("a.tar")
    assert column(found, "label") == ["dog", "cat"]
    assert column(found, "split") == [None, "train"]
    assert CodesDataset("out").sequences().labels.tolist() == [1, 0]


def test_folders_keep_classes_captions_and_splits():
    for name in ("train/cat/0", "train/dog/1", "validation/dog/2", "test/cat/3"):
        save(f"in/{name}.png", image(16, 16))
    Path("in/train/dog/1.txt").write_text("a dog")
    found = encode("in", "--bulk")
    by_name = {line["name"]: line for line in found}
    assert {name: line["label"] for name, line in by_name.items()} == {
        "test/cat/3.png": 0,
        "train/cat/0.png": 0,
        "train/dog/1.png": 1,
        "validation/dog/2.png": 1,
    }
    assert sorted(column(found, "split")) == ["test", "train", "train", "val"]
    assert by_name["validation/dog/2.png"]["split"] == "val"
    assert by_name["train/dog/1.png"]["caption"] == "a dog"
    assert labels_of("out") == ["cat", "dog"]
    assert [line["label"] for line in encode("in/train/*/*.png", "--bulk", out="glob")] == [0, 1]


def test_folders_that_are_no_classes_and_cls_beside_images():
    for folder in ("00000", "00001"):  # FFHQ
        for i in range(3):
            save(f"ffhq/{folder}/{int(folder) * 1000 + i:05}.png", image(16, 16))
    assert column(encode("ffhq", "--bulk", out="a"), "label") == [None] * 6
    for i in range(2):
        save(f"cls/{'xy'[i]}/{i}.png", image(16, 16))
        Path(f"cls/{'xy'[i]}/{i}.cls").write_text(str(5 - i))
    assert column(encode("cls", "--bulk", out="b"), "label") == [5, 4]
    for name in ("3/a", "10/b"):
        save(f"numbers/{name}.png", image(16, 16))
    assert column(encode("numbers", "--bulk", out="c"), "label") == [10, 3]


def test_the_names_of_large_folders_are_not_held(monkeypatch: pytest.MonkeyPatch):
    from vqtok.bulk import facts

    monkeypatch.setattr(facts, "_NAMES_KEPT", 2)
    some = facts.SomeNames()
    for i in range(9):
        some.add(f"a/{i}")
        some.add(f"b/{i}")
    assert list(some) == ["a/0", "a/1", "a/7", "a/8", "b/0", "b/1", "b/7", "b/8"]
    for name in ("cat", "dog"):
        for i in range(9):
            save(f"in/{name}/{name}{i}.png", image(16, 16))
    inputs = Inputs(["in"])
    (chunk,) = inputs.chunks(inputs.all[0], 99)
    assert [inputs.facts(entry).label for entry in chunk.entries] == [0] * 9 + [1] * 9


def test_shards_of_before_stay_without_labels():
    for name in ("cat/0", "dog/1", "dog/2"):
        save(f"in/{name}.png", image(16, 16))
    words = ("in", "--bulk", "--shard-size", 1)
    encode(*words)
    manifest = json.loads(Path("out/manifest.json").read_text())
    del manifest["labels"]
    Path("out/manifest.json").write_text(json.dumps(manifest))
    for path in Path("out").glob("00000-00001.*"):
        path.unlink()
    found = encode(*words, "--resume")
    assert column(found, "label")[1] is None
    manifest["labels"] = ["cow", "dog"]
    Path("out/manifest.json").write_text(json.dumps(manifest))
    assert "with another labels" in fails("encode", *words, "-o", "out", "--resume")


@pytest.mark.slow
def test_all_stays_through_truncate_pack_unpack_and_export(toy: Path):
    make_tar("train.tar", {"0.png": png(image(16, 16)), "0.cls": b"4", "0.txt": b"four"})
    write(cifar("c", [3], [9]))
    ok("encode", "train.tar", "c", "-o", "out", "--workers", 0, "--flip")
    before = lines("out")
    assert column(before, "name") == ["0.png"] * 2 + ["train/000000"] * 2 + ["test/000000"] * 2
    ok("pack", "out", "-o", "packed")
    ok("unpack", "packed", "-o", "unpacked")
    ok("truncate", "unpacked", "--levels", 1, "-o", "first")
    for out in ("packed", "unpacked", "first"):
        assert lines(out) == before
        assert labels_of(out) == NAMES
        assert json.loads(Path(out, "manifest.json").read_text())["crops"] == "flip"
    ok("export", "unpacked", "-o", "exported", "--to", "webdataset")
    (path,) = Path("exported").glob("*.tar")
    with tarfile.open(path) as archive:
        captions = [archive.extractfile(m) for m in archive if m.name.endswith(".txt")]
        texts = [caption.read() for caption in captions if caption is not None]
    assert texts[:2] == [b"four", b"four"]


def test_a_prior_sees_the_classes_of_the_shards():
    write(cifar("c", [3, 9], [0]))
    encode("c")
    data = CodesData(Path("out"))
    assert (data.labels, [data.label(i) for i in range(2)]) == (tuple(NAMES), [3, 9])  # 0: of test


def test_images_and_data_sets_may_be_mixed():
    for name in ("cat/0", "eel/1"):
        save(f"in/{name}.png", image(16, 16))
    write(cifar("c", [9], [0]))
    found = encode("in", "c")
    assert labels_of("out") == [*NAMES, "eel"]
    assert column(found, "label") == [9, 0, 3, 10]


@pytest.mark.parametrize("compact", [False, True])
def test_a_prior_learns_from_the_training_split_alone(compact: bool):
    write(cifar("d", [3, 5, 3], [5, 0]))
    encode("d", *["--compact"] * compact)
    data = CodesData(Path("out"))
    assert len(data) == 3
    assert data.notes == ("split: left out 2 of test.",)
    assert [data.labels[data.label(i)] for i in range(3)] == ["cat", "dog", "cat"]
    train = [i for i, line in enumerate(lines("out")) if line["split"] == "train"]
    stored = CodesDataset("out")
    for mine, theirs in enumerate(train):
        assert (data.grids[mine] == stored[theirs][0]).all()
    assert len(data.grids.shapes) == 3
    write({"alone/test_batch.bin": cifar("x", [3], [5, 0])["x/test_batch.bin"]})  # all there is
    encode("alone", out="other")
    assert len(CodesData(Path("other"))) == 2


def test_codes_of_folders_leave_out_the_validation_images():
    for name in ("train/cat/0.png", "train/dog/1.png", "val/cat/2.png"):
        save(name)
    encode("train", "val", "--bulk")
    data = CodesData(Path("out"))
    assert (len(data), data.labels) == (2, ("cat", "dog"))
