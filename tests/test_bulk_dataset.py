"""CodesDataset: codes shards as a data set, for torch and for priors;
damaged and hostile shards.
"""

import json
import pickle
import random
import shlex
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from bulk_helpers import contents, image_files, make_tar, png
from cli_helpers import fails, ok, train
from conftest import image, make_model
from test_cli_pack import add_entropy

import vqtok
from vqtok import CodesDataset, codec, weights
from vqtok.bulk import dataset as bulk_dataset
from vqtok.errors import FormatError, InputError, VqtokError
from vqtok.train.shards import CodesData

pytestmark = pytest.mark.usefixtures("toy")
SIZES = ((16, 16), (16, 20))


@pytest.fixture
def shards(toy: Path) -> Path:
    """Ten images of two grid sizes in three shards, from a tar and a folder."""
    make_tar("a.tar", image_files(7, SIZES))
    for name, content in image_files(3, first=7).items():
        Path("in").mkdir(exist_ok=True)
        Path("in", name).write_bytes(content)
    ok("encode", "a.tar", "in", "-o", "codes", "--shard-size", 4, "--workers", 0)
    return Path("codes")


def test_it_is_a_sequence(shards: Path):
    data = CodesDataset(shards)
    assert len(data) == len(list(data)) == 10
    assert data[-1][1] == data[9][1] == "009.png"
    assert (data[-1][0] == data[9][0]).all()
    for number in (10, -11):
        with pytest.raises(IndexError):
            data[number]
    assert [data.codes(i).sizes for i in (0, 1)] == [((16, 16),), ((16, 20),)]


def test_few_shards_are_open_at_a_time(shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk_dataset, "OPEN_SHARDS", 1)
    data = CodesDataset(shards)
    expected = [grid for grid, _ in CodesDataset(shards)]
    for number in (0, 9, 3, 5, 0):
        assert (data[number][0] == expected[number]).all()
        assert len(data._open) == 1


def test_reading_needs_no_torch(shards: Path):
    from test_layers import loaded_by

    code = (
        f"from vqtok import CodesDataset; data = CodesDataset({str(shards.absolute())!r}); "
        "indices, name = data[0]"
    )
    assert "torch" not in loaded_by(code)


def test_torch_loads_it_also_in_a_worker(shards: Path):
    """A worker gets the data set pickled."""
    ok("encode", "in", "-o", "one", "--bulk", "--workers", 0)
    data = CodesDataset("one")
    data[0]  # what is open is not sent to the workers
    sent = pickle.loads(pickle.dumps(data))
    assert len(sent._open) == 0 < len(data._open)
    ((batch, names),) = list(torch.utils.data.DataLoader(sent, batch_size=3))
    assert batch.dtype == torch.int64
    assert batch.shape == (3, 1, 4, 4)
    assert list(names) == ["007.png", "008.png", "009.png"]
    assert (batch.numpy() == np.stack([grid for grid, _ in data])).all()


def test_damage_is_told(shards: Path):
    head, *lines = Path("codes/00000-00000.jsonl").read_text().splitlines()
    stack = json.loads(head)["stacks"][0]

    def broken(new_head: str = head, new_lines: list[str] = lines) -> str:
        Path("codes/00000-00000.jsonl").write_text("\n".join([new_head, *new_lines]) + "\n")
        with pytest.raises((FormatError, InputError)) as caught:
            CodesDataset(shards)[0]
        Path("codes/00000-00000.jsonl").write_text("\n".join([head, *lines]) + "\n")
        return str(caught.value)

    def changed(**values: object) -> str:
        return json.dumps({**json.loads(head), **values})

    assert "newer than this vqtok reads" in broken(changed(format=2))
    assert "first line is damaged" in broken(changed(pictures=-1))
    assert "do not hold that many" in broken(changed(pictures=5))
    assert "past the end" in broken(changed(bytes=100))
    assert "not the 1000000 bytes" in broken(changed(bytes=1_000_000))
    assert "damaged" in broken(
        changed(stacks=[{**stack, "indices": 10**9}, *json.loads(head)["stacks"][1:]])
    )
    assert "damaged" in broken(
        changed(stacks=[{**stack, "grid": [4000, 4000]}, *json.loads(head)["stacks"][1:]])
    )
    assert "lines are missing" in broken(new_lines=lines[:-1])
    assert "is not in the shard" in broken(
        new_lines=[lines[0].replace('"row":0', '"row":9'), *lines[1:]]
    )
    assert "is not in the shard" in broken(
        new_lines=[lines[0].replace('"grid":[4,4]', '"grid":[5,5]'), *lines[1:]]
    )
    assert "a line is damaged" in broken(new_lines=["[]", *lines[1:]])
    CodesDataset(shards).verify()
    data = bytearray(Path("codes/00000-00000.tar").read_bytes())
    data[stack["indices"]] = 255
    Path("codes/00000-00000.tar").write_bytes(data)
    with pytest.raises(FormatError, match="an index is out of range"):
        CodesDataset(shards)[0]
    with pytest.raises(FormatError, match="does not match its checksum"):
        CodesDataset(shards).verify()
    Path("codes/manifest.json").unlink()
    with pytest.raises(InputError, match="does not exist"):
        CodesDataset(shards)


def test_missing_shards_are_told(shards: Path):
    for name in ("00000-00000", "00000-00001", "00001-00000"):
        path = Path("codes", f"{name}.jsonl")
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FormatError, match="shards of 1 of 2 inputs are missing"):
            CodesDataset(shards)
        path.write_bytes(content)
    assert len(CodesDataset(shards)) == 10


@pytest.mark.slow
def test_fuzzed_manifests_raise_nothing_else(shards: Path):
    draw = random.Random(0)
    files = contents(shards)
    for turn in range(400):
        name = draw.choice([name for name in files if name.endswith((".json", ".jsonl"))])
        data = bytearray(files[name])
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(data))
            data[at : at + draw.choice((0, 1, 1, 9))] = draw.choice(
                (b"", b"0", b"-", b"9" * 30, b'"', b"[]", b"null", b"\xff", b"1e9")
            )
        Path(shards, name).write_bytes(data)
        with suppress(VqtokError):
            list(CodesDataset(shards, partial=turn % 2 == 0))
        Path(shards, name).write_bytes(files[name])


# Priors

SMALL = shlex.split(
    "--prior-steps 2 --entropy-steps 2 --set prior.width=8 --set prior.layers=2 --set "
    "prior_training.batch=4 --set data.validation_max=2 --set prior_training.validate_every=2 "
    "--set data.prior_size=16 --set entropy.width=8 --set entropy.blocks=1 --set entropy.rank=4 "
    "--set entropy_training.batch=4 --set entropy_training.validate_every=2 --set "
    "data.flip=false --preset photo"
)


def trained(*words: object) -> str:
    done = train(*words, *SMALL)
    assert done.exit_code == 0, done.output
    return done.stderr


def prior_of(folder: str) -> str:
    return weights.fingerprint(
        weights.load_weights(Path(folder, "prior.safetensors"), "prior").tensors
    )


def test_a_prior_learns_the_same_from_codes_as_from_images(toy: Path):
    for name, content in image_files(9).items():
        Path("photos").mkdir(exist_ok=True)
        Path("photos", name).write_bytes(content)
    ok("encode", "photos", "--shard-size", 4, "-o", "codes", "--workers", 0)
    for out in ("images", "shards"):
        make_model(Path(out), prior=None)
    trained("photos", "--stage", "prior", "-o", "images")
    assert "codes of 9 images from codes -> shards" in trained(
        "codes", "--stage", "prior", "-o", "shards"
    )
    assert prior_of("images") == prior_of("shards")


@pytest.mark.slow
def test_a_prior_on_codes_gets_their_tokenizer(shards: Path, toy: Path):
    trained("codes", "--stage", "prior", "-o", "mine")
    assert (
        Path("mine/tokenizer.safetensors").read_bytes()
        == (toy / "tokenizer.safetensors").read_bytes()
    )
    assert len(codec.load("./mine").sample(2)) == 2
    # a run is there: its preset stays
    done = train("codes", "--stage", "entropy", "-o", "mine", *SMALL[:-2])
    assert done.exit_code == 0, done.output
    ok("encode", "in/007.png", "--compact", "--model", "./mine", "-o", "x.npz")
    assert (
        vqtok.read_codes("x.npz", "./mine").indices.tolist()
        == CodesDataset(shards).codes(7).indices.tolist()
    )
    assert train("codes", "--stage", "prior", "-o", "new", "--dry-run", *SMALL).exit_code == 0
    assert not Path("new").exists()


def test_compact_codes_train_a_prior_too(toy: Path):
    add_entropy(toy)
    make_tar("a.tar", image_files(5, SIZES))
    ok("encode", "a.tar", "-o", "plain", "--workers", 0)
    ok("encode", "a.tar", "-o", "compact", "--compact", "--workers", 0)
    plain, compact = (CodesData(Path(name)).grids for name in ("plain", "compact"))
    assert [grid.tolist() for grid in (plain[i] for i in range(5))] == [
        grid.tolist() for grid in (compact[i] for i in range(5))
    ]
    assert plain.select(np.array([4, 1]))[0].tolist() == compact[4].tolist()
    assert plain.shapes.tolist() == compact.shapes.tolist()


def test_folders_become_labels():
    make_tar(
        "a.tar",
        {f"{'cat' if i % 2 else 'dog'}/{i}.png": png(image(16, 16, seed=i)) for i in range(4)},
    )
    ok("encode", "a.tar", "-o", "codes", "--workers", 0)
    data = CodesData(Path("codes"))
    assert data.labels == ("cat", "dog")
    assert [data.label(i) for i in range(4)] == [1, 0, 1, 0]
    assert data.size == (16, 16)


def test_codes_that_do_not_fit_are_refused(shards: Path, toy: Path):
    make_model(Path("other"), seed=9)
    assert "the codes were made with model toy" in fails(
        "train", "codes", "--stage", "prior", "-o", "other", "-f"
    )
    assert "a tokenizer learns from images" in fails("train", "codes", "-o", "new", code=2)
    assert "no prior" not in fails("train", "codes", "--stage", "tokenizer", "-o", "new", code=2)
    (toy / "tokenizer.safetensors").unlink()
    assert "no model here has that fingerprint" in fails(
        "train", "codes", "--stage", "prior", "-o", "new"
    )
