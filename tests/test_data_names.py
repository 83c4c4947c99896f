"""What names tell: the split, the classes, one image a sample; and tars as they are found."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_data import png, red, targets, write_tar, write_tree

from vqtok.bulk.inputs import Inputs
from vqtok.data import DataOptions, Dataset, open_data, open_splits, splits
from vqtok.errors import InputError, UsageError


def both(path: Path, **options: str) -> tuple[list[int], list[int]]:
    """The reds of training and test images."""
    return tuple(sorted(red(open_data(path, s))) for s in ("train", "test"))  # type: ignore


# Splits

LAYOUTS = {
    "coco": ({"train2017/1.png": 1, "train2017/2.png": 2, "val2017/3.png": 3}, [1, 2], [3]),
    "div2k": ({"DIV2K_train_HR/1.png": 1, "DIV2K_valid_HR/2.png": 2}, [1], [2]),
    "names": ({"train_images/1.png": 1, "test_images/2.png": 2}, [1], [2]),
    "yolo": ({"images/train/1.png": 1, "images/val/2.png": 2}, [1], [2]),
    "mvtec": (
        {
            "bottle/train/good/1.png": 1,
            "bottle/test/broken/2.png": 2,
            "bottle/ground_truth/broken/2_mask.png": 9,
        },
        [1],
        [2],
    ),
    "places": ({"data_256/a/1.png": 1, "data_256/b/2.png": 2, "val_256/3.png": 3}, [1, 2], [3]),
    "cyclegan": ({"trainA/1.png": 1, "trainB/2.png": 2, "testA/3.png": 3}, [1, 2], [3]),
    "kaggle": ({"training_set/cats/1.png": 1, "test_set/cats/2.png": 2}, [1], [2]),
    "files": (
        {"COCO_train2014_000001.png": 1, "COCO_val2014_000002.png": 2},
        [1],
        [2],
    ),
    "upper": ({"TRAIN/1.png": 1, "Validation/2.png": 2}, [1], [2]),
    "nested": ({"cat/train/1.png": 1, "dog/train/2.png": 2, "cat/test/3.png": 3}, [1, 2], [3]),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_split_words_anywhere_in_a_name(tmp_path: Path, name: str) -> None:
    names, train, test = LAYOUTS[name]
    write_tree(tmp_path, names)
    assert both(tmp_path) == (train, test)
    data = open_data(tmp_path)
    assert data.split == "train"
    assert any(note.startswith("split: train: ") for note in data.notes), data.notes


@pytest.mark.parametrize(
    "names",
    [
        ("cat/1.png", "test/2.png"),
        ("bus/1.png", "car/2.png", "train/3.png"),
        ("bullet_train/1.png", "test_tube/2.png"),
        ("train_station/1.png", "forest/2.png"),
        ("test_tube/1.png", "beaker/2.png"),
    ],
)
def test_classes_with_such_words_are_no_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    write_tree(tmp_path, {name: i for i, name in enumerate(names)})
    data = open_data(tmp_path)
    assert len(data) == len(names)
    assert data.labels == tuple(name.split("/")[0] for name in sorted(names))
    assert data.split is None


WORDS = {
    "train": "train training trains trainset trainval trn TRAIN trainA train2017 train-00001",
    "val": "val valid validation valset dev eval Validation val_256",
    "test": "test testing testset tst heldout holdout testB test_images",
}


@pytest.mark.parametrize(("split", "word"), [(s, w) for s in WORDS for w in WORDS[s].split()])
def test_a_folder_or_tar_called_so_is_a_split(split: str, word: str) -> None:
    """One rule for `encode`, `export` and `train`; the list of words is that of training."""
    for name in (f"{word}/cat/1.png", f"images/{word}/1.png", f"imagenet-{word}-7.tar/cat/1.png"):
        assert splits.split_of_name(name) == split, name
    assert splits.split_of_name(f"a.tar/{word}/1.png") == split
    for name in (f"{word}.png", f"cat/{word}/1.png", f"cat/{word}.png", f"{word}_station/1.png"):
        assert splits.split_of_name(name) is None, name


def test_single_files_with_such_words_are_no_split(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train_station.png": 1, "test_print.png": 2, "cat.png": 3})
    assert len(open_data(tmp_path)) == 3


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("imagenet-train-000.tar", "imagenet-val-000.tar"),
        ("train2017_0.tar", "val2017_0.tar"),
        ("train/000.tar", "val/000.tar"),
        ("x/train/shard-0.tar", "x/test/shard-0.tar"),
    ],
)
def test_shards_of_a_split(tmp_path: Path, train: str, test: str) -> None:
    for n, name in enumerate((train, test)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / name, {"0.png": png(n)})
    assert both(tmp_path) == ([0], [1])
    parts = open_splits(tmp_path)
    assert {split: red(data) for split, data in parts.items()} == {"train": [0], "test": [1]}


def test_the_user_says_the_split(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a/1.png": 1, "b/2.png": 2, "holdout/c/3.png": 3})
    options = DataOptions.of(["test=holdout/*"])
    assert red(open_data(tmp_path, "train", options)) == [1, 2]
    assert red(open_data(tmp_path, "test", options)) == [3]
    assert open_data(tmp_path, "train", options).labels == ("a", "b")
    only = DataOptions.of(["train=a", "val=b"])
    assert red(open_data(tmp_path, "train", only)) == [1]
    assert red(open_data(tmp_path, "test", only)) == [2]
    with pytest.raises(InputError, match="no test images"):
        open_data(tmp_path, "test", DataOptions.of(["train=*"]))
    with pytest.raises(UsageError, match="'nothing' matches no image"):
        open_data(tmp_path, "test", DataOptions.of(["test=nothing"]))
    for bad in ("holdout/*", "test=", "other=x"):
        with pytest.raises(UsageError, match="is not understood"):
            DataOptions.of([bad])


def test_split_words() -> None:
    for name, kind in {
        "train_val": "train",
        "VOCtrainval": None,
        "DIV2K_train_HR": "train",
        "val_256": "test",
        "constrain": None,
        "interval": None,
        "trainHR": "train",
        "latest": None,
        "train-test": None,
    }.items():
        found = splits.split_word(name)
        assert (found and found[0]) == kind, name


# Classes


def numbered(tmp_path: Path, names: list[str]) -> Dataset:
    return open_data(write_tree(tmp_path, {name: i for i, name in enumerate(names)}))


@pytest.mark.parametrize(
    "names",
    [
        ["00000/000000000.png", "00000/000000001.png", "00001/000010000.png"],
        ["00000/00000.png", "00000/00001.png", "01000/01000.png", "01000/01001.png"],
        ["thumbs/0/0.png", "thumbs/0/1.png", "thumbs/1/2.png", "thumbs/1/3.png"],
        ["0456/123456.png", "0456/789456.png", "0457/111457.png"],
        ["a3/a3f0a1b2c3.png", "a3/a3ffffffff.png", "b4/b4f0a1b2c3.png"],
    ],
)
def test_folders_that_number_parts_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    data = numbered(tmp_path, names)
    assert (data.labels, targets(data)) == ((), [-1] * len(names))
    assert any("--labels folders" in note for note in data.notes)
    forced = open_data(tmp_path, options=DataOptions(labels="folders"))
    assert len(forced.labels) == 2


@pytest.mark.parametrize(
    "names",
    [
        ["0/1.png", "0/7.png", "1/2.png", "1/5.png"],  # MNIST as PNG: numbers over all classes
        [f"{c}/{i}.png" for c in range(1, 13) for i in range(2)],
        ["00000/00000_00000.png", "00000/00000_00001.png", "00001/00000_00000.png"],  # GTSRB
        ["7/a.png", "7/b.png", "8/a.png"],
    ],
)
def test_folders_of_digits_that_are_classes(tmp_path: Path, names: list[str]) -> None:
    data = numbered(tmp_path, names)
    assert set(data.labels) == {name.split("/")[0] for name in names}


def test_images_beside_annotations_are_no_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, {"images/1.png": 1, "images/2.png": 2, "annotations/1.png": 8})
    data = open_data(tmp_path)
    assert (red(data), data.labels) == ([1, 2], ())
    assert any("left out 1 in annotations" in note for note in data.notes)
    write_tree(tmp_path / "c", {"train/1.png": 1, "train_masks/1_mask.png": 8})
    assert red(open_data(tmp_path / "c")) == [1]
    write_tree(tmp_path / "b", {"images/a.png": 1, "masks/z.png": 8})
    assert open_data(tmp_path / "b").labels == ()


def test_classes_are_the_values_that_occur(tmp_path: Path) -> None:
    images = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
    np.savez(tmp_path / "x.npz", images=images, labels=np.array([60000, 7, 60000]))
    data = open_data(tmp_path / "x.npz")
    assert (data.labels, targets(data)) == (("7", "60000"), [1, 0, 1])
    none = open_data(tmp_path / "x.npz", options=DataOptions(labels="none"))
    assert (none.labels, targets(none)) == ((), [-1] * 3)
    (tmp_path / "labels.txt").write_text("cat\ndog\ncat\n")
    named = open_data(tmp_path / "x.npz", options=DataOptions(labels=str(tmp_path / "labels.txt")))
    assert (named.labels, targets(named)) == (("cat", "dog"), [0, 1, 0])


def test_cls_members_are_labels_and_txt_captions(tmp_path: Path) -> None:
    members = {
        "a.png": png(1), "a.cls": b"10", "a.txt": b"a cat\n",
        "b.png": png(2), "b.cls": b"9\n", "b.json": json.dumps({"caption": "a dog"}).encode(),
        "c.png": png(3),
    }  # fmt: skip
    write_tar(tmp_path / "s.tar", members)
    data = open_data(tmp_path / "s.tar")
    assert (data.labels, targets(data)) == (("9", "10"), [1, 0, -1])
    assert [data.caption(i) for i in range(3)] == ["a cat", "a dog", None]
    assert [data.image_name(i) for i in range(3)] == ["a.png", "b.png", "c.png"]
    assert any("1 of 3 images have no .cls" in note for note in data.notes)
    none = open_data(tmp_path / "s.tar", options=DataOptions(labels="none"))
    assert none.labels == ()
    with pytest.raises(UsageError, match="no folders"):
        open_data(tmp_path / "s.tar", options=DataOptions(labels="folders"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "file_name,label\nx/a.png,cat\nx/b.png,dog\n"),
        ("l.csv", "a.png,cat\nb.png,dog\n"),
        ("l.tsv", "class\tfilename\ncat\ta.png\ndog\tb.png\n"),
        ("l.csv", "\ufefffilename;label\r\na.png;cat\r\nb.png;dog\r\n"),  # of a spreadsheet
        ("l.txt", "x/a.png cat\nx/b.png dog\n"),
        ("l.txt", "cat\ndog\n"),
        ("l.json", '{"labels": [["x/a.png", "cat"], ["x/b.png", "dog"]]}'),
        ("metadata.jsonl", '{"file_name": "a.png", "label": "cat"}\n'
         '{"file_name": "b.png", "label": "dog"}\n'),
    ],
)  # fmt: skip
def test_labels_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    write_tree(tmp_path / "d", {"x/a.png": 1, "x/b.png": 2})
    (tmp_path / name).write_text(text)
    data = open_data(tmp_path / "d", options=DataOptions(labels=str(tmp_path / name)))
    assert (data.labels, targets(data)) == (("cat", "dog"), [0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("z.png,cat\n", "names none"),
        ("a\nb\nc\n", "3 labels for 2"),
        ("", "is empty"),
        ("a.png,cat\na.png,dog\n", "'a.png' has the labels cat and dog"),
    ],
)
def test_bad_files_of_labels(tmp_path: Path, text: str, message: str) -> None:
    write_tree(tmp_path / "d", {"a.png": 1, "b.png": 2})
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        open_data(tmp_path / "d", options=DataOptions(labels=str(tmp_path / "l.csv")))


def test_a_split_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    """Images that were to be set aside would be trained on."""
    write_tree(tmp_path, {"X_train/1.png": 1, "X_val/2.png": 2})
    good = open_data(tmp_path, "train", options=DataOptions.of(["test=X_val"]))
    assert len(good) == 1
    with pytest.raises(UsageError, match=r"'Q\*' matches no image") as caught:
        open_data(tmp_path, "train", options=DataOptions.of(["train=X_train", "val=Q*"]))
    assert "X_train/1.png" in caught.value.fix


# Several images a sample


def test_one_image_a_sample(tmp_path: Path) -> None:
    names = {f"s{i}.{f}.png" if f else f"s{i}.png": 10 * i + j
             for i in range(3) for j, f in enumerate(("", "depth", "seg"))}  # fmt: skip
    write_tree(tmp_path / "d", names)
    write_tar(tmp_path / "d.tar", {name: png(value) for name, value in names.items()})
    for path in (tmp_path / "d", tmp_path / "d.tar"):
        data = open_data(path)
        assert red(data) == [0, 10, 20]
        assert any("left out 3 depth.png, 3 seg.png" in note for note in data.notes)
        for member in ("seg.png", "seg", ".seg.png"):
            assert red(open_data(path, options=DataOptions(member=member))) == [2, 12, 22]
        with pytest.raises(InputError, match="no image has the member"):
            open_data(path, options=DataOptions(member="normal.png"))


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["photo.1.png", "photo.2.png"], 2),
        (["holiday.rome.png", "holiday.paris.png"], 2),
        (["a.rgb.png", "a.depth.png", "b.rgb.png", "b.depth.png"], 2),
        (["v1.2.final.png", "v1.3.png"], 2),
    ],
)
def test_names_with_dots_in_folders(tmp_path: Path, names: list[str], kept: int) -> None:
    data = numbered(tmp_path, names)
    assert len(data) == kept
    if kept < len(names):
        assert all(".rgb." in data.image_name(i) for i in range(kept))


# Tars as they are found


def test_an_empty_shard_and_a_cut_one(tmp_path: Path) -> None:
    (tmp_path / "000.tar").write_bytes(bytes(10240))  # what webdataset's writer leaves
    write_tar(tmp_path / "001.tar", {"0.png": png(1), "1.png": png(2)})
    whole = write_tar(tmp_path / "002.tar", {"2.png": png(3), "3.png": png(4)}).read_bytes()
    (tmp_path / "002.tar").write_bytes(whole[: whole.index(b"3.png") + 530])
    (tmp_path / "003.tar").write_bytes(b"")
    data = open_data(tmp_path)
    assert red(data) == [1, 2, 3]
    assert any("002.tar" in note for note in data.notes)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "0.tar").write_bytes(bytes(10240))
    with pytest.raises(InputError, match="holds no images"):
        open_data(tmp_path / "only")


def test_braces_and_compressed_tars(tmp_path: Path) -> None:
    for n in range(4):
        write_tar(tmp_path / f"s-{n:03}.tar", {"0.png": png(n)})
    assert red(open_data(str(tmp_path / "s-{000..002}.tar"))) == [0, 1, 2]
    assert red(open_data(str(tmp_path / "s-{001,003}.tar"))) == [1, 3]
    (tmp_path / "z").mkdir()
    write_tar(tmp_path / "z" / "a.tar.bz2", {"0.png": png(0)}, "w:bz2")
    with pytest.raises(InputError, match=r"1 compressed tars, such as a\.tar\.bz2") as caught:
        open_data(tmp_path / "z")
    assert "gzip, which is read" in caught.value.fix


def test_words_beside_a_bare_split_word_when_a_number_is_shared(tmp_path: Path) -> None:
    """torchvision unpacks Places365 so."""
    names = {"train_256_places365standard/a/1.png": 1, "val_256/2.png": 2}
    write_tree(tmp_path, names)
    assert both(tmp_path) == ([1], [2])


def test_classes_that_are_called_like_splits_are_said(tmp_path: Path) -> None:
    write_tree(tmp_path, {"bullet_train/1.png": 1, "test_tube/2.png": 2})
    data = open_data(tmp_path)
    assert data.labels == ("bullet_train", "test_tube")
    assert "folders bullet_train, test_tube are taken as classes" in " ".join(data.notes)
    assert "--split test='test_tube/*'" in " ".join(data.notes)


def test_archives_in_an_archive_are_named(tmp_path: Path) -> None:
    """ILSVRC2012_img_train.tar is one of tars."""
    inner = write_tar(tmp_path / "n01.tar", {"0.png": png(0)}).read_bytes()
    path = write_tar(tmp_path / "nest.tar", {"n01.tar": inner, "n02.tar": inner})
    with pytest.raises(InputError, match="2 archives: unpack them, and give the folder"):
        open_data(path)
    inputs = Inputs([str(path)])
    assert [len(chunk.entries) for chunk in inputs.chunks(inputs.all[0], 9)] == [0]
    assert "2 archives: unpack them" in inputs.recognizer.note()
    archive = tmp_path / "stl10_binary.tar.gz"
    write_tar(archive, {"stl10_binary/train_X.bin": bytes(27648)}, "w:gz")
    for read in (open_data, lambda path: Inputs([str(path)])):
        with pytest.raises(InputError, match="archive of STL-10") as caught:
            read(archive)
        assert "tar xf" in caught.value.fix
