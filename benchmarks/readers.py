"""Every format of `vqtok export`, read by the package that trainers read it with: how many of
1,000,000 tokens differ from the codes that were exported.

    python benchmarks/readers.py [--tokens 1000000] [--only FORMAT ...]

It wants vqtok and pip install webdataset litdata mosaicml-streaming datasets pyarrow; a reader that
is not there is left out. nanoGPT, llm.c, LlamaGen, 1d-tokenizer and Megatron-LM are no packages:
their reading is written out here from their published layouts.
"""

import argparse
import importlib.machinery
import importlib.metadata
import json
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqtok import codes
from vqtok.bulk import CodesDataset, shards
from vqtok.bulk.inputs import Input

K, LEVELS, SIDE = 1024, 2, 16  # 512 tokens an image: the photo model's first two levels at 256x256
OPTIONS = ["--order", "raster", "--offset"]


def make_shards(folder: Path, images: int, each: int = 500) -> np.ndarray:
    """Codes shards with random indices, class labels and captions; the indices (n, L, h, w)."""
    draw = np.random.default_rng(0)
    indices = draw.integers(0, K, (images, LEVELS, SIDE, SIDE)).astype(np.uint16)
    folder.mkdir(parents=True)
    source, size = Input(0, "pictures", None, None), (16 * SIDE, 16 * SIDE)
    manifest = shards.Manifest(
        "random", "0badcafe", K, 16, 3, LEVELS, False, "fp32", "white", each, (("pictures", None),)
    )
    (folder / shards.MANIFEST).write_bytes(manifest.to_bytes())
    for chunk, start in enumerate(range(0, images, each)):
        part = indices[start : start + each]
        lines = [
            shards.ShardRecord(
                f"{start + i:06}.v1.png",
                size,
                (SIDE, SIDE),
                i,
                label=(start + i) % 1000,
                caption=f"image {start + i}",
            )
            for i in range(len(part))
        ]
        stack = codes.Codes(part, "random", "0badcafe", K, 16, 3, (size,) * len(part))
        last = start + each >= images
        data, text = shards.build_shard(source, last, 0, lines, [stack])
        (folder / f"00000-{chunk:05}.npz").write_bytes(data)
        (folder / f"00000-{chunk:05}.jsonl").write_bytes(text)
    return indices


def expected(indices: np.ndarray) -> np.ndarray:
    """The tokens (n, T), written without vqtok: the levels of a place side by side, level l's from
    l K on.
    """
    ids = indices.astype(np.int64) + (np.arange(LEVELS) * K)[:, None, None]
    return ids.transpose(0, 2, 3, 1).reshape(len(ids), -1)


# Readers: each gives the sequences in order, and the labels where the format has them

Row = tuple[Any, int | None]


def read_nanogpt(folder: Path) -> Iterator[Row]:
    data = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
    T = LEVELS * SIDE * SIDE
    for start in range(0, len(data), T):  # as in get_batch: a block at a place
        yield torch.from_numpy(data[start : start + T].astype(np.int64)), None


def read_llmc(folder: Path) -> Iterator[Row]:
    with (folder / "tokens.bin").open("rb") as file:
        header = np.frombuffer(file.read(256 * 4), dtype=np.int32)
        assert header[0] == 20240520
        assert header[1] == 1
        tokens = np.frombuffer(file.read(), dtype=np.uint16)
    assert len(tokens) == header[2]
    yield from ((row, None) for row in tokens.reshape(-1, LEVELS * SIDE * SIDE))


def read_webdataset(folder: Path) -> Iterator[Row]:
    import webdataset as wds  # type: ignore[import-not-found]

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = wds.WebDataset(urls, shardshuffle=False).decode()
    yield from ((sample["npy"], sample["cls"]) for sample in data)


def read_hf_webdataset(folder: Path) -> Iterator[Row]:
    from datasets import load_dataset  # type: ignore[import-not-found]

    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = load_dataset(
        "webdataset",
        data_files={"train": urls},
        split="train",
        streaming=True,
        cache_dir=str(folder / "cache"),
    )
    for sample in data:
        assert sample["txt"].startswith("image ")
        yield np.asarray(sample["npy"]), sample["cls"]


def read_jsonl(folder: Path) -> Iterator[Row]:
    for line in (folder / "tokens.jsonl").open():
        data = json.loads(line.strip())
        yield torch.tensor(data["tokens"]), int(torch.tensor(data["class_id"]))


def read_hf_jsonl(folder: Path) -> Iterator[Row]:
    from datasets import load_dataset  # type: ignore[import-not-found]

    data = load_dataset(
        "json",
        data_files=str(folder / "tokens.jsonl"),
        split="train",
        streaming=True,
        cache_dir=str(folder / "cache"),
    )
    yield from ((sample["tokens"], sample["class_id"]) for sample in data)


def read_llamagen(folder: Path) -> Iterator[Row]:
    for i in range(len(list((folder / "imagenet256_codes").iterdir()))):
        x = torch.from_numpy(np.load(folder / "imagenet256_codes" / f"{i}.npy", allow_pickle=False))
        y = torch.from_numpy(
            np.load(folder / "imagenet256_labels" / f"{i}.npy", allow_pickle=False)
        )
        # as its training step takes a batch: the targets of cross_entropy must be int64
        assert x[None, :, 0].reshape(1, -1).dtype == torch.int64
        yield x[:, 0].reshape(-1), int(y.reshape(-1))


def read_megatron(folder: Path) -> Iterator[Row]:
    index = (folder / "tokens.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code = int.from_bytes(index[9:17], "little"), index[17]
    count, documents = (int.from_bytes(index[at : at + 8], "little") for at in (18, 26))
    assert (version, code, documents) == (1, 8, count + 1)
    lengths = np.frombuffer(index, np.int32, count, 34)
    pointers = np.frombuffer(index, np.int64, count, 34 + 4 * count)
    borders = np.frombuffer(index, np.int64, documents, 34 + 12 * count)
    assert borders.tolist() == list(range(count + 1))
    data = np.memmap(folder / "tokens.bin", mode="r")
    for start, length in zip(pointers.tolist(), lengths.tolist(), strict=True):
        yield np.frombuffer(data.data, np.uint16, length, start), None


def read_litdata(folder: Path) -> Iterator[Row]:
    from litdata import StreamingDataset, TokensLoader  # type: ignore[import-not-found]

    loader = TokensLoader(block_size=LEVELS * SIDE * SIDE)
    data = StreamingDataset(input_dir=str(folder), item_loader=loader, shuffle=False)
    yield from ((data[i], None) for i in range(len(data)))


def read_mds(folder: Path) -> Iterator[Row]:
    _stand_in_for_torchvision()
    from streaming import StreamingDataset  # type: ignore[import-not-found]

    data = StreamingDataset(local=str(folder), shuffle=False, batch_size=1)
    yield from ((data[i]["tokens"], data[i]["label"]) for i in range(len(data)))


def _stand_in_for_torchvision() -> None:
    """streaming imports torchvision for its image data sets; the published one does not load beside
    a CPU build of torch.
    """
    try:
        import torchvision  # type: ignore[import-not-found]  # noqa: F401

        return
    except (ImportError, RuntimeError):
        pass

    class StandIn(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

    for name in ("", ".datasets", ".transforms", ".transforms.functional"):
        module = StandIn("torchvision" + name)
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__path__, module.__version__ = [], "0"  # type: ignore[attr-defined]
        sys.modules[module.__name__] = module


def read_hf_parquet(folder: Path) -> Iterator[Row]:
    from datasets import load_dataset  # type: ignore[import-not-found]

    data = load_dataset(
        "parquet",
        data_files=str(folder / "tokens.parquet"),
        split="train",
        cache_dir=str(folder / "cache"),
    )
    assert data.features["tokens"].feature.dtype == "uint16"
    yield from ((sample["tokens"], sample["label"]) for sample in data)


def read_pyarrow(folder: Path) -> Iterator[Row]:
    from pyarrow import parquet  # type: ignore[import-not-found]

    table = parquet.read_table(folder / "tokens.parquet")
    labels = table["label"].to_pylist()
    yield from zip((row.values.to_numpy() for row in table["tokens"]), labels, strict=True)


READERS: list[tuple[str, list[str], str, str | None, Callable[[Path], Iterator[Row]]]] = [
    ("bin", [], "nanoGPT's get_batch", None, read_nanogpt),
    ("bin", ["--header", "256"], "llm.c's dataloader", None, read_llmc),
    ("webdataset", [], "webdataset", "webdataset", read_webdataset),
    ("webdataset", [], "datasets", "datasets", read_hf_webdataset),
    ("jsonl", [], "1d-tokenizer's data set", None, read_jsonl),
    ("jsonl", [], "datasets", "datasets", read_hf_jsonl),
    ("llamagen", [], "LlamaGen's CustomDataset", None, read_llamagen),
    ("megatron", [], "Megatron-LM's IndexedDataset", None, read_megatron),
    ("litdata", [], "litdata", "litdata", read_litdata),
    ("mds", [], "streaming", "mosaicml-streaming", read_mds),
    ("parquet", [], "datasets", "datasets", read_hf_parquet),
    ("parquet", [], "pyarrow", "pyarrow", read_pyarrow),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*")
    given = parser.parse_args()
    T = LEVELS * SIDE * SIDE
    images = -(-given.tokens // T)
    print("| command | reader | version | tokens compared | differing | labels differing |")
    print("|---|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wanted = expected(make_shards(folder / "codes", images))
        assert len(CodesDataset(folder / "codes")) == images
        for to, options, reader, package, read in READERS:
            if given.only and to not in given.only:
                continue
            version = _version(package)
            if version is None:
                print(f"| `--to {to}` | {reader} | not installed | | | |")
                continue
            out = folder / "out"
            command = ["export", str(folder / "codes"), "-o", str(out), "--to", to]
            subprocess.run(
                [sys.executable, "-m", "vqtok", *command, *OPTIONS, *options, "-q"], check=True
            )
            compared = differing = labels = count = 0
            for count, (row, label) in enumerate(read(out), 1):
                row = np.asarray(row).astype(np.int64)
                compared += len(row)
                differing += int((row != wanted[count - 1]).sum())
                labels += label is not None and int(label) != (count - 1) % 1000
            assert count == images, (count, images)
            words = " ".join(["--to", to, *OPTIONS, *options])
            print(f"| `{words}` | {reader} | {version} | {compared:,} | {differing} | {labels} |")
            shutil.rmtree(out)


def _version(package: str | None) -> str | None:
    """That of an installed package; None where it is not there."""
    if package is None:
        return "as published"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
