"""Data sets: every kind of source gives the right images and labels,
and bad ones one InputError.
"""

import gzip
import io
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqtok.data import Batches, Dataset, open_data
from vqtok.errors import InputError


def png(value: int, width: int = 6, height: int = 4) -> bytes:
    """An image of one color that `red` finds again."""
    file = io.BytesIO()
    Image.new("RGB", (width, height), (value, 0, 255 - value)).save(file, "PNG")
    return file.getvalue()


def red(data: Dataset) -> list[int]:
    return [int(data.image(i)[0, 0, 0]) for i in range(len(data))]


def targets(data: Dataset) -> list[int]:
    return [data.label(i) for i in range(len(data))]


def write_tree(root: Path, names: dict[str, int]) -> Path:
    for name, value in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def cifar_batch(values: list[int]) -> bytes:
    """Records whose label is the value modulo 10;
    red is the value, green its row, blue its column.
    """
    rows, columns = np.mgrid[:32, :32].astype(np.uint8)
    planes = [
        np.concatenate([np.full(1024, v, np.uint8), rows.ravel(), columns.ravel()]) for v in values
    ]
    return b"".join(bytes([v % 10]) + p.tobytes() for v, p in zip(values, planes, strict=True))


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(np.uint8).tobytes()
    )


# Folders, zips, tars


def test_folder_of_images(tmp_path: Path) -> None:
    data = open_data(
        write_tree(tmp_path, {"b.png": 2, "a.png": 1, ".hidden.png": 9, "sub/c.png": 3})
    )
    assert red(data) == [1, 2, 3]
    assert data.labels == ()
    assert targets(data) == [-1] * 3
    assert data.image(0).shape == (4, 6, 3)
    assert data.image(0).dtype == np.uint8
    assert "3 images" in data.description


def test_subfolders_are_labels(tmp_path: Path) -> None:
    data = open_data(write_tree(tmp_path, {"dog/1.png": 20, "cat/x/1.png": 10, "cat/2.png": 11}))
    assert data.labels == ("cat", "dog")
    assert list(zip(red(data), targets(data), strict=True)) == [(11, 0), (10, 0), (20, 1)]


def test_train_and_test_folders(tmp_path: Path) -> None:
    names = {"train/cat/1.png": 1, "train/dog/1.png": 2, "val/cat/1.png": 3, "test/dog/1.png": 4}
    train, test = (open_data(write_tree(tmp_path / "d", names), s) for s in ("train", "test"))
    assert (red(train), train.labels, targets(train)) == ([1, 2], ("cat", "dog"), [0, 1])
    assert sorted(red(test)) == [3, 4]
    whole_set = open_data(write_tree(tmp_path / "e", {"cat/1.png": 1, "test/1.png": 2}), "test")
    assert whole_set.labels == ("cat", "test"), "a lone folder named test is a label"
    with pytest.raises(InputError, match="no test images"):
        open_data(write_tree(tmp_path / "f", {"train/1.png": 1}), "test")


def test_links_that_loop(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/1.png": 1})
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert red(open_data(tmp_path)) == [1]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "self").symlink_to(empty)
    with pytest.raises(InputError, match="holds no images"):
        open_data(empty)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archive(tmp_path: Path, kind: str) -> None:
    members = {"./set/b/1.png": png(1), "./set/a/2.png": png(2)}
    members |= {"./set/notes.txt": b"x", "__MACOSX/._1.png": b"x", "set/._x.png": b"x"}
    path = (write_zip if kind == "zip" else write_tar)(tmp_path / f"x.{kind}", members)
    data = open_data(path)
    assert data.labels == ("a", "b")
    assert sorted(zip(red(data), targets(data), strict=True)) == [(1, 1), (2, 0)]


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_archives_of_a_folder_above_begin_with_two_dots(tmp_path: Path, kind: str) -> None:
    """As `tar.add("../images")` in Python packs them. Dots inside a name are hidden, as before."""
    members = {"../../in/b/2.png": png(2), "./../in/a/1.png": png(1), "../a/../0.png": png(0)}
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        write_zip(path, members)
    else:
        write_tar(path, members, "w:gz" if kind == "tar.gz" else "w")
    data = open_data(path)
    assert data.labels == ("a", "b")
    assert sorted(zip(red(data), targets(data), strict=True)) == [(1, 0), (2, 1)]


def test_shards_by_split(tmp_path: Path) -> None:
    for n, name in enumerate(["train-000", "train-001", "val-000"]):
        write_tar(tmp_path / f"{name}.tar", {"0.png": png(10 * n), "1.png": png(10 * n + 1)})
    (tmp_path / "index.jsonl").write_text("{}")
    assert red(open_data(tmp_path, "train")) == [0, 1, 10, 11]
    assert red(open_data(tmp_path, "test")) == [20, 21]
    assert red(open_data(tmp_path / "train-001.tar")) == [10, 11]
    assert red(open_data(tmp_path / "*-000.tar", "test")) == [0, 1, 20, 21], (
        "what is named is used as it is"
    )
    assert red(open_data([tmp_path / "val-000.tar"])) == [20, 21]
    (tmp_path / "val-000.tar").unlink()
    with pytest.raises(InputError, match="no test images"):
        open_data(tmp_path, "test")


def test_shards_without_split_names(tmp_path: Path) -> None:
    for n in range(2):
        write_tar(tmp_path / f"{n}.tar", {"0.png": png(n)})
    assert red(open_data(tmp_path, "train")) == red(open_data(tmp_path, "test")) == [0, 1]


def test_globs_and_single_images(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/1.png": 1, "b/2.png": 2})
    assert red(open_data(str(tmp_path / "*" / "*.png"))) == [1, 2]
    assert red(open_data(tmp_path / "a" / "1.png")) == [1]


# Arrays


def test_cifar_binaries(tmp_path: Path) -> None:
    for n in (1, 2):
        (tmp_path / f"data_batch_{n}.bin").write_bytes(cifar_batch([10 * n + 3, 10 * n + 4]))
    (tmp_path / "test_batch.bin").write_bytes(cifar_batch([99]))
    (tmp_path / "batches.meta.txt").write_text(
        "plane car bird cat deer dog frog horse ship truck\n\n"
    )
    data = open_data(tmp_path)
    assert (red(data), targets(data), data.labels[3]) == ([13, 14, 23, 24], [3, 4, 3, 4], "cat")
    assert data.image(0)[5, 7].tolist() == [13, 5, 7], "planes become channels, rows stay rows"
    assert red(open_data(tmp_path, "test")) == [99]
    assert red(open_data(tmp_path / "data_batch_2.bin", "test")) == [23, 24]


def test_cifar_archive(tmp_path: Path) -> None:
    folder = "cifar-10-batches-bin/"
    members = {
        folder + "data_batch_2.bin": cifar_batch([2]),
        folder + "data_batch_1.bin": cifar_batch([1]),
    }
    members |= {
        folder + "test_batch.bin": cifar_batch([7]),
        folder + "batches.meta.txt": b"a b c d e f g h i j\n",
    }
    path = write_tar(tmp_path / "cifar-10-binary.tar.gz", members, "w:gz")
    data = open_data(path)
    assert (red(data), targets(data), data.labels[1]) == ([1, 2], [1, 2], "b")
    assert red(open_data(path, "test")) == [7]
    path = write_tar(
        tmp_path / "cifar-10-python.tar.gz",
        {"cifar-10-batches-py/batches.meta": b"\x80\x04"},
        "w:gz",
    )
    with pytest.raises(InputError, match="pickles"):
        open_data(path)


@pytest.mark.parametrize("packed", [False, True])
def test_idx(tmp_path: Path, packed: bool) -> None:
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    files = {"train-images-idx3-ubyte": images, "train-labels-idx1-ubyte": np.array([1, 0])}
    files |= {"t10k-images-idx3-ubyte": images[:1] + 100, "t10k-labels-idx1-ubyte": np.array([2])}
    for name, array in files.items():
        (tmp_path / (name + ".gz" * packed)).write_bytes(
            gzip.compress(idx(array)) if packed else idx(array)
        )
    data = open_data(tmp_path)
    assert (len(data), data.channels, targets(data), data.labels) == (2, 1, [1, 0], ("0", "1"))
    assert (data.image(1)[..., 0] == images[1]).all()
    test = open_data(tmp_path, "test")
    assert (red(test), targets(test), test.labels) == ([100], [0], ("2",))
    assert red(open_data(tmp_path / ("t10k-images-idx3-ubyte" + ".gz" * packed))) == [100]
    (tmp_path / "outer").mkdir()
    (tmp_path / "letters-train-images-idx3-ubyte").write_bytes(idx(images))
    with pytest.raises(InputError, match="2 IDX files") as caught:
        open_data(tmp_path)
    assert Path(caught.value.fix.removeprefix("name one, such as ")).is_file()


def test_arrays(tmp_path: Path, rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (5, 4, 6, 3), np.uint8)
    np.save(tmp_path / "x.npy", images)
    np.save(tmp_path / "f.npy", np.asfortranarray(images))
    np.savez_compressed(
        tmp_path / "plain.npz",
        images=images,
        labels=np.array([[0], [1], [2], [1], [0]], np.int32),
    )
    np.savez(
        tmp_path / "parts.npz",
        x_train=images[:3],
        y_train=[1, 1, 0],
        x_test=images[3:],
        y_test=[0, 1],
    )
    np.savez(tmp_path / "other.npz", note=np.zeros(3), stuff=images)
    np.savez(tmp_path / "gray.npz", images[..., 0])
    for name in ("x.npy", "f.npy", "plain.npz", "other.npz"):
        data = open_data(tmp_path / name)
        assert all((data.image(i) == images[i]).all() for i in range(5)), name
    assert targets(open_data(tmp_path / "plain.npz")) == [0, 1, 2, 1, 0]
    test = open_data(tmp_path / "parts.npz", "test")
    assert (test.image(0) == images[3]).all()
    assert targets(test) == [0, 1]
    gray = open_data(tmp_path / "gray.npz")
    assert gray.channels == 1
    assert (gray.image(2)[..., 0] == images[2, :, :, 0]).all()


# Bad input


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (1048576, 1024, 1024, 1)}"
BAD_FILES = {
    "missing": (None, "there is no"),
    "empty.tar": (b"", "is empty"),
    "text.txt": (b"hello" * 200, "no kind of data set"),
    "noise.zip": (b"PK\3\4" + bytes(range(256)), "damaged zip"),
    "x.tar.gz": (gzip.compress(b"x" * 2000), "no whole tar"),
    "x.tar.bz2": (b"BZh9" + bytes(600), "is compressed"),
    "cut.tar": (b"a.png".ljust(257, b"\0") + b"ustar" + b"x" * 10, "no whole tar"),
    "short.bin": (b"\1" * 3000, "no batch of CIFAR-10"),
    "label.bin": (b"\xff" * 3073, "label 255"),
    "huge.npy": (npy(HUGE), "damaged"),
    "complex.npy": (npy(HUGE.replace("|u1", "<c8")), "complex64, not numbers"),
    "object.npy": (npy(HUGE.replace("|u1", "|O")), "Python objects"),
    "flat.npy": (
        npy(HUGE.replace("(1048576, 1024, 1024, 1)", "(4, 4)"), bytes(16)),
        r"shape \(4, 4\)",
    ),
    "first.npy": (
        npy(HUGE.replace("(1048576, 1024, 1024, 1)", "(1, 3, 8, 8)"), bytes(192)),
        "8 channels",
    ),
    "bad.npy": (npy("{'descr': import os}"), "bad .npy header"),
    "cut-images-idx3-ubyte": (gzip.compress(idx(np.zeros((2, 4, 4)))[:-1]), "ends after 31 of 32"),
    "none-images-idx3-ubyte": (idx(np.zeros((0, 4, 4))), "shape"),
    "bomb-images-idx3-ubyte.gz": (
        gzip.compress(b"\0\0\x08\x03" + b"\0\xff\xff\xff" * 3),
        "asks for",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_data(tmp_path / name)
    assert caught.value.fix
    assert name in str(caught.value).replace(tmp_path.name, name)


def test_npz_that_asks_for_a_terabyte(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.npz", {"images.npy": npy(HUGE)})
    assert path.stat().st_size < 300
    with pytest.raises(InputError, match="asks for"):
        open_data(path)


def test_npz_labels_must_match(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    for labels, message in (
        ([0, 1], "2 labels"),
        ([0.0, 1.5, 2.0], "whole numbers"),
        ([0.0, np.nan, 2.0], "whole numbers"),
        ([1j, 1, 2], "are complex128"),
    ):
        np.savez(tmp_path / "x.npz", images=images, labels=np.array(labels))
        with pytest.raises(InputError, match=message):
            open_data(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("labels", "names", "targets"),
    [
        (np.array([5, -1, 3]), ("3", "5"), [1, -1, 0]),  # -1 is none
        (np.array([-2, 5, 5]), ("-2", "5"), [0, 1, 1]),
        (np.array([2.0, 0.0, 2.0]), ("0", "2"), [1, 0, 1]),
        (np.array(["dog", "cat", "dog"]), ("cat", "dog"), [1, 0, 1]),
        (np.array([b"10", b"9", b"9"]), ("9", "10"), [1, 0, 0]),
        (np.array([-1, -1, -1]), (), [-1, -1, -1]),
    ],
)
def test_npz_labels_are_named_by_the_values_that_occur(
    labels: np.ndarray, names: tuple[str, ...], targets: list[int], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8), labels=labels)
    data = open_data(tmp_path / "x.npz")
    assert (data.labels, [data.label(i) for i in range(3)]) == (names, targets)
    assert ("-1" in " ".join(data.notes)) == bool(
        (labels == -1).any() if labels.dtype.kind == "i" else 0
    )


def test_folder_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="holds no images"):
        open_data(tmp_path)
    with pytest.raises(InputError, match=r"holds no images|matches|match"):
        open_data(tmp_path / "*.tar")
    write_tar(tmp_path / "x.tar", {"notes.txt": b"x"})
    with pytest.raises(InputError, match="holds no images"):
        open_data(tmp_path / "x.tar")


def test_bad_images_are_skipped_and_counted(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"{i}.png": i for i in range(8)})
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "5.png").write_bytes(png(5)[:40])
    data = open_data(tmp_path)
    with pytest.raises(InputError, match=r"5\.png"):
        data.image(5)
    batches = Batches(data, np.arange(8), batch=16, size=4)
    shown = batches.batch(0).pixels[:, 0, 0, 0].tolist()
    assert set(shown) <= {1, 2, 3, 4, 6, 7}
    assert len(shown) == 16
    assert (
        Batches(open_data(tmp_path), np.arange(8), 16, 4).batch(0).pixels[:, 0, 0, 0].tolist()
        == shown
    )
    assert data.skipped == 2
    with pytest.raises(InputError, match="cannot be read"):
        Batches(data, np.array([0, 5]), 4, 4).batch(0)


def test_labels_follow_replaced_images(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"{'even' if i % 2 == 0 else 'odd'}/{i}.png": i for i in range(8)})
    (tmp_path / "even" / "2.png").write_bytes(b"")
    data = open_data(tmp_path)
    pixels, labels = Batches(data, np.arange(8), batch=64, size=4).batch(0)
    assert data.skipped == 1
    assert (pixels[:, 0, 0, 0] % 2 == labels).all()


def test_all_images_bad(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the 3 images"):
        open_data(tmp_path)


FUZZ = int(os.environ.get("VQTOK_FUZZ", "120"))  # mutations of each file


def mutations(data: bytes, n: int) -> Iterator[bytes]:
    draw = random.Random(1)
    for _ in range(n):
        changed = bytearray(data[: draw.randrange(1, len(data))] if draw.random() < 0.3 else data)
        for _ in range(draw.randrange(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        yield bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["x.zip", "x.tar", "x.npz", "x.npy", "a-images-idx3-ubyte", "cifar.tar.gz"]
)
def test_damage_raises_input_error_only(tmp_path: Path, name: str) -> None:
    images = np.zeros((2, 4, 4, 3), np.uint8)
    path = tmp_path / name
    {
        "x.zip": lambda: write_zip(path, {"a.png": png(1), "b.png": png(2)}),
        "x.tar": lambda: write_tar(path, {"a.png": png(1), "b" * 200 + ".png": png(2)}),
        "x.npz": lambda: np.savez_compressed(path, images=images, labels=np.array([0, 1])),
        "x.npy": lambda: np.save(path, images),
        "a-images-idx3-ubyte": lambda: path.write_bytes(idx(images[..., 0])),
        "cifar.tar.gz": lambda: write_tar(path, {"data_batch_1.bin": cifar_batch([1])}, "w:gz"),
    }[name]()
    for changed in mutations(path.read_bytes(), FUZZ):
        path.write_bytes(changed)
        with suppress(InputError):
            data = open_data(path)
            assert all(data.image(i).ndim == 3 for i in range(len(data)))


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="permissions bind neither root nor Windows"
)
def test_no_permission(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": png(1)})
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        open_data(path)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_many_built_in_images_are_those_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtok.data.shapes.AT_ONCE", 3)
    data, wanted = open_data(None), np.array([7, 0, 19_999, 7, 3, 12, 5])
    np.testing.assert_array_equal(
        data.images(wanted),  # type: ignore[attr-defined]
        np.stack([data.image(int(i)) for i in wanted]),
    )
