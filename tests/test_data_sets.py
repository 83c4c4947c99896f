"""Published data sets in their own files, and others' formats, which are named."""

import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from test_data import cifar_batch, idx, red, targets, write_tar

from vqtok.data import open_data
from vqtok.errors import InputError


def cifar100(values: list[int]) -> bytes:
    """Records of CIFAR-100: the coarse label 19, the fine one, and pixels as `cifar_batch`."""
    records = [cifar_batch([value])[1:] for value in values]
    return b"".join(bytes([19, v % 100]) + r for v, r in zip(values, records, strict=True))


def test_cifar_100(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    names = "".join(f"class{i}\n" for i in range(100))
    members = {
        "train.bin": cifar100([42, 99]),
        "test.bin": cifar100([7]),
        "fine_label_names.txt": names.encode(),
    }
    for name, data in members.items():
        (folder / name).write_bytes(data)
    packed = {f"cifar-100-binary/{name}": data for name, data in members.items()}
    archive = write_tar(tmp_path / "cifar-100-binary.tar.gz", packed, "w:gz")
    for path in (folder, archive):
        data = open_data(path)
        assert (red(data), targets(data), data.labels[42]) == ([42, 99], [42, 99], "class42")
        assert data.image(0)[5, 7].tolist() == [42, 5, 7]
        assert red(open_data(path, "test")) == [7]
    assert red(open_data(folder / "train.bin")) == [42, 99]


def test_stl_10(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:96, :96].astype(np.uint8)
    image = np.stack([np.full((96, 96), 9, np.uint8), rows, columns])  # (3, H, W)
    for name in ("train", "test", "unlabeled"):
        (tmp_path / f"{name}_X.bin").write_bytes(image.transpose(0, 2, 1).tobytes() * 2)
    (tmp_path / "train_y.bin").write_bytes(bytes([10, 1]))
    (tmp_path / "test_y.bin").write_bytes(bytes([2, 2]))
    (tmp_path / "class_names.txt").write_text("airplane\nbird\nc\nd\ne\nf\ng\nh\ni\ntruck\n")
    data = open_data(tmp_path)
    assert data.image(1)[5, 7].tolist() == [9, 5, 7], "columns in the file become rows"
    assert [data.labels[t] for t in targets(data)] == ["truck", "airplane"]
    assert any("unlabeled_X.bin" in note for note in data.notes)
    test = open_data(tmp_path, "test")
    assert [test.labels[t] for t in targets(test)] == ["bird", "bird"]
    assert len(open_data(tmp_path / "unlabeled_X.bin")) == 2
    (tmp_path / "train_X.bin").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="is damaged"):
        open_data(tmp_path)


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-100-python"])
def test_cifar_as_pickles(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    parts = ("batches.meta", "data_batch_1") if "10-" in name else ("meta", "train")
    for part in parts:
        (folder / part).write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match="Python pickles") as caught:
        open_data(folder)
    assert caught.value.fix.startswith(f"use {name[:8].rstrip('-')}"[:9])
    assert "binary.tar.gz" in caught.value.fix


def test_emnist_letters_begin_at_1(tmp_path: Path) -> None:
    images = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
    (tmp_path / "emnist-letters-train-images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "emnist-letters-train-labels-idx1-ubyte").write_bytes(idx(np.array([1, 26, 1])))
    data = open_data(tmp_path)
    assert (data.labels, targets(data)) == (("1", "26"), [0, 1, 0])


def test_qmnist_labels_are_read(tmp_path: Path) -> None:
    images = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    (tmp_path / "qmnist-train-images-idx3-ubyte").write_bytes(idx(images))
    labels = np.array([[5, 0, 1, 2, 3, 4, 5, 6], [0, 1, 1, 2, 3, 4, 5, 6]], ">i4")
    head = bytes([0, 0, 12, 2]) + struct.pack(">2I", 2, 8)
    (tmp_path / "qmnist-train-labels-idx2-int").write_bytes(head + labels.tobytes())
    data = open_data(tmp_path)
    assert (data.labels, targets(data)) == (("0", "5"), [1, 0])


def test_pairs_of_npz_like_kmnists(tmp_path: Path) -> None:
    images = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    for split, values in (("train", [3, 9]), ("test", [4, 4])):
        np.savez(tmp_path / f"kmnist-{split}-imgs.npz", images)
        np.savez(tmp_path / f"kmnist-{split}-labels.npz", np.array(values, np.uint8))
    data = open_data(tmp_path)
    assert (data.labels, targets(data), data.split) == (("3", "9"), [0, 1], "train")
    assert open_data(tmp_path, "test").labels == ("4",)
    assert open_data(tmp_path / "kmnist-test-imgs.npz").labels == ("4",)


def test_medmnist(tmp_path: Path) -> None:
    images = np.arange(2 * 16, dtype=np.uint8).reshape(2, 4, 4)
    several = np.array([[0, 1, 1], [0, 0, 0]], np.uint8)
    np.savez(tmp_path / "chestmnist.npz", train_images=images, train_labels=several)
    data = open_data(tmp_path / "chestmnist.npz")
    assert (len(data), data.labels, targets(data)) == (2, (), [-1, -1])
    assert any("has 3 for each image" in note for note in data.notes)
    np.savez(tmp_path / "hot.npz", images=images, labels=np.array([[0, 1, 0], [0, 0, 1]]))
    assert open_data(tmp_path / "hot.npz").labels == ("1", "2")


def test_dsprites(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    images[:, 2:4] = 1
    path = tmp_path / "dsprites.npz"
    np.savez(
        path,
        metadata=np.array({"author": "x"}, dtype=object),
        latents_classes=np.zeros((3, 6), np.int64),
        sprites=images,
    )
    data = open_data(path)
    assert data.image(1)[..., 0].max() == 255
    assert (len(data), data.labels) == (3, ())
    assert any("taken as 0 and 255" in note for note in data.notes)
    np.save(tmp_path / "b.npy", images.astype(bool))
    assert open_data(tmp_path / "b.npy").image(0).max() == 255


FORMATS = {
    "mds": ({"index.json": json.dumps({"shards": []}), "shard.00000.mds": "x"}, "MDS"),
    "litdata": ({"index.json": json.dumps({"chunks": []}), "chunk-0-0.bin": "x"}, "litdata"),
    "parquet": ({"data/train-00000-of-00001.parquet": "PAR1"}, "Parquet"),
    "saved": ({"state.json": "{}", "dataset_info.json": "{}", "data.arrow": "x"}, "save_to_disk"),
    "dict": ({"dataset_dict.json": "{}", "train/state.json": "{}"}, "save_to_disk"),
    "tfrecord": ({"train.tfrecord-00000-of-00001": "x"}, "TFRecord"),
    "lmdb": ({"data.mdb": "x", "lock.mdb": "x"}, "LMDB"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_named(tmp_path: Path, name: str) -> None:
    files, told = FORMATS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    with pytest.raises(InputError, match=told) as caught:
        open_data(tmp_path)
    assert "save" in caught.value.fix


def test_other_files_are_named(tmp_path: Path) -> None:
    for name, head, told in (
        ("x.parquet", b"PAR1", "Parquet"),
        ("x.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("x.pkl", b"\x80\x04x", "pickles"),
        ("data_batch_1", b"\x80\x02x", "pickles"),
    ):
        (tmp_path / name).write_bytes(head + bytes(600))
        with pytest.raises(InputError, match=told):
            open_data(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"x")
    with pytest.raises(InputError, match="pickles"):
        open_data(tmp_path / "x.pt")


def test_codes_are_no_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", indices=np.zeros((1, 1, 2), np.uint8), meta=np.array("{}"))
    with pytest.raises(InputError, match="holds codes"):
        open_data(tmp_path / "c.npz")
