"""Token sequences: order, ids, labels, the way back, and the stream for training."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from token_helpers import flatten, make_shards, written_out
from torch.utils.data import DataLoader

from vqtok import codes
from vqtok.bulk import CodesDataset
from vqtok.errors import FormatError, UsageError
from vqtok.tokens import CodesFiles, Layout, Sequences, Vocabulary, collate, reader

MIXED = [(4, 4), (4, 5), (3, 4), (4, 4), (4, 4), (4, 5), (4, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("order", ["raster", "level-major"])
@pytest.mark.parametrize("offset", [False, True])
def test_order_and_offsets_are_as_written_out(order: str, offset: bool):
    made = make_shards("codes", MIXED, K=16, L=3)
    data = CodesDataset("codes").sequences(order=order, offset=offset)  # type: ignore[arg-type]
    assert len(data) == 9
    assert data.vocabulary.size == (48 if offset else 16)
    for row, grid in zip(data, made, strict=True):
        assert row.dtype == np.int64
        assert row.tolist() == written_out(grid, order, 16, offset)
        assert (data.inverse(row, (grid.shape[1], grid.shape[2])) == grid).all()


@pytest.mark.parametrize("order", ["raster", "level-major"])
def test_special_tokens_stand_where_they_belong(order: str):
    made = make_shards("codes", [(2, 3)], K=4, L=2, label=[1], labels=["cat", "dog", "eel"])
    data = CodesDataset("codes").sequences(
        order=order,  # type: ignore[arg-type]
        offset=True,
        bos=True,
        eol=True,
        eos=True,
        class_tokens=True,
    )
    v = data.vocabulary
    assert (v.codes, v.bos, v.eol, v.eos, v.class_start, v.classes) == (8, 8, 9, 10, 11, 3)
    assert v.size == 14
    flat = written_out(made[0], order, 4, True)
    rows, per_row = (2, 6) if order == "raster" else (4, 3)
    body = flatten([*flat[i * per_row : (i + 1) * per_row], 9] for i in range(rows))
    assert data[0].tolist() == [8, 12, *body, 10]
    assert (data.inverse(data[0]) == made[0]).all()
    assert (data.inverse(torch.from_numpy(data[0])[2:]) == made[0]).all()  # without the prompt
    assert data.layout.decode(data[0])[1] == 1
    assert (data.inverse(np.stack([data[0]] * 3)) == made[0]).all()
    assert data.inverse(data[0][None]).shape == (1, 2, 2, 3)


@pytest.mark.parametrize(("size", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_width_by_rule(size: int, dtype: type):
    assert Vocabulary(size, 1).dtype == dtype
    assert Vocabulary.make(32768, 2, offset=True).dtype == np.uint16
    assert Vocabulary.make(32768, 2, offset=True, bos=True).dtype == np.uint32


def test_a_wide_vocabulary_holds_its_last_id():
    layout = Layout(Vocabulary.make(65536, 3, offset=True, eos=True))
    grids = np.full((1, 3, 1, 1), 65535, np.uint16)
    assert layout.encode(grids).tolist() == [[65535, 131071, 196607, 196608]]


def test_overflow_is_an_error():
    with pytest.raises(UsageError, match="does not fit into the 31 bits"):
        Vocabulary.make(1 << 31, 2, offset=True)


def test_an_index_beyond_the_codebook_is_an_error():
    with pytest.raises(FormatError, match="out of range"):
        Layout(Vocabulary(4, 1)).encode(np.full((1, 1, 1, 1), 4, np.uint8))


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([0, 4, 1, 5, 2, 6, 3, 99], "the id 99 at place 7 is beyond the vocabulary of 10"),
        ([0, 4, 1, 5, 2, 6, 3, -1], "the id -1 at place 7 is beyond the vocabulary of 10"),
        ([0, 4, 5, 1, 2, 6, 3, 7], "the id 5 at place 2 is code 1 of level 2, where a code of lev"),
        ([0, 4, 8, 5, 2, 6, 3, 7], "the id 8 at place 2 is the BOS token, where a code"),
        ([0, 4, 1, 5, 2, 6, 3], "the sequence has 7 codes, and a grid of 2x2"),
        ([0, 4, 1, 5, 2, 6, 3, 7, 0], "the sequence has 9 codes"),
        ([], "the sequence has 0 codes"),
        ([0.5] * 8, "no line of integers"),
    ],
)
def test_wrong_ids_are_told(tokens: list[float], told: str):
    layout = Layout(Vocabulary.make(4, 2, offset=True, bos=True, eos=True))
    array = np.array(tokens, None if tokens else np.int64)
    with pytest.raises(FormatError) as caught:
        layout.decode(array, (2, 2))
    assert told in str(caught.value)


def test_eol_tokens_tell_the_grid_and_are_checked():
    layout = Layout(Vocabulary.make(4, 1, eol=True))
    assert layout.decode(np.array([0, 1, 4, 2, 3, 4]))[0].tolist() == [[[0, 1], [2, 3]]]
    for wrong in ([0, 1, 4, 2, 4], [0, 1, 4, 2, 3], [4, 0, 4], [0, 1, 2, 4, 4]):
        with pytest.raises(FormatError, match="rows of one length"):
            layout.decode(np.array(wrong))
    with pytest.raises(FormatError, match="tell of a grid of 2x2, not 3x2"):
        layout.decode(np.array([0, 1, 4, 2, 3, 4]), (2, 3))
    with pytest.raises(FormatError, match="nothing tells the grid"):
        layout.decode(np.array([0, 1, 2, 3]))


def test_round_trips_of_random_layouts():
    draw = np.random.default_rng(1)
    for _ in range(100):
        K, L, h, w = (int(draw.integers(low, 9)) for low in (2, 1, 1, 1))
        flags = [bool(flag) for flag in draw.integers(0, 2, 4)]
        order = ("raster", "level-major")[int(draw.integers(2))]
        layout = Layout(Vocabulary.make(K, L, *flags, classes=int(draw.integers(0, 4))), order)
        grids = draw.integers(0, K, (3, L, h, w)).astype(np.uint8)
        classes = draw.integers(0, max(1, layout.vocabulary.classes), 3)
        for row, grid, label in zip(layout.encode(grids, classes), grids, classes, strict=True):
            assert len(row) == layout.length(h, w)
            assert row.max() < layout.vocabulary.size
            found, told = layout.decode(row, (h, w))
            assert (found == grid).all()
            assert told == (label if layout.vocabulary.classes else None)
        assert Layout.from_json(layout.to_json()) == layout


# Labels, captions, splits


def test_labels_captions_and_splits_come_from_the_shards():
    facts: dict[str, Any] = {
        "label": ["dog", None, "cat", "dog", "cat"],
        "caption": ["a", "b", None, "d", "e"],
        "split": ["train", "val", "train", None, "val"],
    }
    make_shards("codes", [(2, 2)] * 5, each=2, **facts)
    data = CodesDataset("codes").sequences()
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [1, -1, 0, 1, 0]
    assert data.captions == facts["caption"]
    assert data.splits == facts["split"]
    val = CodesDataset("codes").sequences(split="val")
    assert (len(val), val.left_out, val.names) == (2, 3, ["001.png", "004.png"])
    assert (val[1] == data[4]).all()
    with pytest.raises(UsageError, match="no image is of the split 'test'"):
        CodesDataset("codes").sequences(split="test")
    with pytest.raises(UsageError, match=r"001\.png has no class"):
        CodesDataset("codes").sequences(class_tokens=True)[1]


def test_a_manifest_may_list_the_labels():
    make_shards("a", [(2, 2)] * 2, label=["dog", "cat"], labels=["eel", "dog", "cat"])
    assert CodesDataset("a").sequences().labels.tolist() == [1, 2]
    make_shards("b", [(2, 2)] * 2, label=[2, 0], labels=["eel", "dog"])
    data = CodesDataset("b").sequences()
    assert (data.labels.tolist(), data.class_names) == ([2, 0], ("eel", "dog", ""))
    make_shards("c", [(2, 2)] * 3, label=["dog", 0, "cat"])  # CIFAR-10 and tars: all are names
    data = CodesDataset("c").sequences()
    assert (data.labels.tolist(), data.class_names) == ([2, 0, 1], ("0", "cat", "dog"))
    make_shards("d", [(2, 2)] * 3, label=["dog", 0, "cat"], labels=["cat", "eel"])
    data = CodesDataset("d").sequences()
    assert (data.labels.tolist(), data.class_names) == ([2, 0, 0], ("cat", "eel", "dog"))


@pytest.mark.parametrize(
    "wrong", ['"label":1.5', '"label":-1', '"label":[]', '"caption":3', '"split":{}']
)
def test_damaged_facts_are_told(wrong: str):
    make_shards("codes", [(2, 2)] * 2)
    path = Path("codes/00000-00000.jsonl")
    path.write_text(path.read_text().replace('"row":1', f'"row":1,{wrong}'))
    with pytest.raises(FormatError, match="a line is damaged"):
        _ = CodesDataset("codes").sequences().labels


def test_folders_are_labels_and_splits_where_none_are_stored():
    names = ["train/cat/0.png", "train/dog/1.png", "val/cat/2.png"]
    make_shards("codes", [(2, 2)] * 3, names=names)
    data = CodesDataset("codes").sequences(class_tokens=True)
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [0, 1, 0])
    assert data.splits == ["train", "train", "val"]
    make_shards("flat", [(2, 2)] * 2)
    assert CodesDataset("flat").sequences().labels.tolist() == [-1, -1]
    with pytest.raises(UsageError, match="class tokens need classes"):
        CodesDataset("flat").sequences(class_tokens=True)


def test_folders_are_splits_by_the_words_of_training():
    names = ["data/trainA/cat/0.png", "data/trainB/dog/1.png", "data/heldout/cat/2.png"]
    make_shards("codes", [(2, 2)] * 3, names=names)
    data = CodesDataset("codes").sequences(class_tokens=True)
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [0, 1, 0])
    assert data.splits == ["train", "train", "test"]
    make_shards("classes", [(2, 2)] * 2, names=["train_station/0.png", "test_tube/1.png"])
    assert CodesDataset("classes").sequences().splits == [None, None]


def test_codes_files_are_a_source_too():
    draw = np.random.default_rng(0)
    for name, n in (("cat/a", 1), ("cat/b", 3), ("dog/c", 1)):
        grids = draw.integers(0, 16, (n, 2, 3, 2)).astype(np.uint8)
        made = codes.Codes(grids, "toy", "0badcafe", 16, 4, 3, ((12, 8),) * n)
        stored = made if name != "dog/c" else codes.to_compact(made)
        codes.write_codes(Path("codes", f"{name}.npz"), stored)
    data = Sequences(CodesFiles(["codes"]), class_tokens=True)
    assert data.names == ["cat/a", "cat/b/0", "cat/b/1", "cat/b/2", "dog/c"]
    assert data.labels.tolist() == [0, 0, 0, 0, 1]
    found = codes.read_plain_codes(Path("codes/dog/c.npz"))
    assert (data.inverse(data[4]) == found.indices[0]).all()


# Windows


def test_a_window_cuts_the_center_and_leaves_small_grids_out():
    made = make_shards("codes", MIXED, L=2)
    data = CodesDataset("codes").sequences(window=(4, 3))
    assert (len(data), data.left_out) == (7, 2)
    assert data[1].tolist() == written_out(made[1][:, :, 1:4], "raster", 16, False)
    assert (data.inverse(data[1]) == made[1][:, :, 1:4]).all()
    with pytest.raises(UsageError, match="at least 9 rows and 9 columns"):
        CodesDataset("codes").sequences(window=9)


# The stream


@pytest.fixture
def data() -> Sequences:
    """23 images of several sizes in six shards."""
    make_shards("codes", [MIXED[i % 9] for i in range(23)], label=[i % 3 for i in range(23)])
    return CodesDataset("codes").sequences(bos=True)


def images(batches: object) -> list[list[int]]:
    return [batch["image"].tolist() for batch in batches]  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
def test_two_ranks_with_two_workers_see_each_grid_once(data: Sequences, batch_size: int):
    seen: list[int] = []
    for rank in range(2):
        stream = data.stream(batch_size, seed=5, rank=rank, world_size=2)
        loader = DataLoader(stream, batch_size=None, num_workers=2)
        parts = images(loader)
        assert parts == images(data.stream(batch_size, seed=5, rank=rank, world_size=2))
        assert len(parts) == len(stream)
        seen += flatten(parts)
        # the next iteration is the next epoch, by all workers
        again = images(loader)
        other = data.stream(batch_size, seed=5, rank=rank, world_size=2)
        other.set_epoch(1)
        assert again == images(other)
        assert again != parts
    assert sorted(seen) == list(range(23))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_resumed_stream_gives_the_same_rest(data: Sequences, workers: int):
    whole = list(data.stream(3, seed=1))
    saved = whole[2]["position"]
    assert saved == {"epoch": 0, "done": 3}
    stream = data.stream(3, seed=1)
    stream.load_state_dict(saved)
    rest = list(DataLoader(stream, batch_size=None, num_workers=workers))
    assert images(rest) == images(whole)[3:]
    for one, two in zip(rest, whole[3:], strict=True):
        assert (one["tokens"] == two["tokens"]).all()
        assert one["position"] == two["position"]
    assert stream.position == {"epoch": 1, "done": 0}


@pytest.mark.slow
def test_persistent_and_spawned_workers_count_epochs(data: Sequences):
    expected = [images(stream) for stream in [data.stream(4)] for _ in range(3)]
    assert len({str(epoch) for epoch in expected}) == 3
    loader = DataLoader(
        data.stream(4),
        batch_size=None,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    assert [images(loader) for _ in range(3)] == expected


def test_a_stream_is_a_function_of_seed_and_epoch(data: Sequences):
    first = images(data.stream(4, seed=0))
    assert first == images(data.stream(4, seed=0))
    assert first != images(data.stream(4, seed=1))
    assert flatten(images(data.stream(4, shuffle=False))) == list(range(23))
    assert [sample["image"] for sample in data.stream(None, shuffle=False)] == list(range(23))


def test_the_end_of_an_epoch_is_the_start_of_the_next(data: Sequences):
    stream = data.stream(4)
    last = [*stream][-1]["position"]
    stream.resume(last)
    assert stream.position == {"epoch": 1, "done": 0}


def test_drop_last_gives_all_ranks_as_many_full_batches(data: Sequences):
    for rank in range(3):
        stream = data.stream(3, rank=rank, world_size=3, drop_last=True)
        assert [len(part) for part in images(stream)] == [3, 3]
        assert len(stream) == 2


def test_samples_hold_what_they_say(data: Sequences):
    for batch in data.stream(4, seed=2):
        for i, number in enumerate(batch["image"].tolist()):
            row = batch["tokens"][i][batch["mask"][i]].numpy()
            assert (row == data[number]).all()
            assert int(batch["label"][i]) == number % 3
            h, w = batch["grid"][i].tolist()
            assert len(row) == 1 + 2 * h * w


def test_collate_pads_the_end():
    samples = [
        {"tokens": torch.tensor([1, 2, 3]), "grid": torch.tensor([1, 3]), "image": 0},
        {"tokens": torch.tensor([4]), "grid": torch.tensor([1, 1]), "image": 7},
    ]
    batch = collate(samples, pad=9)
    assert batch["tokens"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["image"].tolist() == [0, 7]


def test_windows_of_a_stream_move_and_come_again(data: Sequences):
    made = [grid for grid, _ in CodesDataset("codes")]
    cut = CodesDataset("codes").sequences(window=2)
    places = set()
    for epoch in range(3):
        stream = cut.stream(None, seed=4)
        stream.set_epoch(epoch)
        for sample in stream:
            grid = made[sample["image"]]
            window = cut.inverse(sample["tokens"])
            found = [
                (y, x)
                for y in range(grid.shape[1] - 1)
                for x in range(grid.shape[2] - 1)
                if (grid[:, y : y + 2, x : x + 2] == window).all()
            ]
            assert found
            places.add(found[0])
    assert len(places) > 6


def test_shuffling_reaches_over_shards(data: Sequences, monkeypatch: pytest.MonkeyPatch):
    order = flatten(images(data.stream(23)))
    assert len({number // 4 for number in order[:8]}) > 3
    monkeypatch.setattr(reader, "POOL", 1)  # each shard alone
    order = flatten(images(data.stream(23)))
    assert sorted(order) == list(range(23))
    runs = [order[i] // 4 for i in range(23)]
    assert sum(a != b for a, b in pairwise(runs)) == 5


def test_ranks_are_checked(data: Sequences):
    with pytest.raises(UsageError, match="no rank 2 of 2"):
        data.stream(3, rank=2, world_size=2)
    with pytest.raises(UsageError, match="at least one sample"):
        data.stream(0)


@pytest.mark.slow
def test_sequences_need_no_torch():
    from test_layers import loaded_by

    make_shards("codes", [(2, 2)])
    path = Path("codes").absolute()
    code = f"from vqtok import CodesDataset; CodesDataset({str(path)!r}).sequences(bos=True)[0]"
    assert "torch" not in loaded_by(code)
