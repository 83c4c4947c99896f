"""Damaged and hostile weights files: tokenizers, priors, entropy priors and training state."""

import json
import random
import struct
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attacks import mutate
from attacks.codes_files import FINGERPRINT
from attacks.harness import Case
from vqtok import codec, config, model_registry, weights
from vqtok.codec import loading
from vqtok.config import EntropyConfig, PriorConfig, TokenizerConfig
from vqtok.networks.vqvae import VQVAE
from vqtok.priors import IntegerPrior, PixelCNN

TOKENIZER = TokenizerConfig(
    downsample=4, width=8, encoder_blocks=1, decoder_blocks=1, codebook_size=16, code_dim=4
)
PRIOR = PriorConfig(codebook_size=16, width=8, layers=1, labels=("cat", "[red]dog"))
ENTROPY = EntropyConfig(codebook_size=16, levels=1, embedding=4, width=8, blocks=1, rank=4)
_DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
    "C64",
    "O",
    "",
    "\x1b[2J",
    7,
    None,
)
# bytes that a byte of JSON takes as Python objects:
# an empty dict is 64 and its place in a list 8, for "{},"
JSON_EACH = 24
# bytes that the largest network of a valid config takes as modules, before any tensor
NETWORK = 16 << 20


def wholes() -> dict[str, bytes]:
    """One whole file of each kind."""
    torch.manual_seed(0)
    tokenizer = {
        name: value.detach().half().numpy()
        for name, value in VQVAE(TOKENIZER).release_state().items()
    }
    prior = {
        name: value.detach().half().numpy() for name, value in PixelCNN(PRIOR).state_dict().items()
    }
    state = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3),
        "b": np.ones((), np.bool_),
        "c": np.zeros((0, 4), np.float32),
    }
    made = {
        "tokenizer": (tokenizer, asdict(TOKENIZER)),
        "prior": (prior, asdict(PRIOR)),
        "entropy": (IntegerPrior(ENTROPY).integers(), asdict(ENTROPY)),
        "state": (state, {}),
    }
    with tempfile.TemporaryDirectory() as folder:
        path, files = Path(folder, "x.safetensors"), {}
        for kind, (tensors, settings) in made.items():
            record = {"tokenizer": FINGERPRINT, "grid": [4, 4], "data": "noise"}
            weights.save_weights(
                path, weights.Weights(tensors, {"kind": kind, "config": settings, "record": record})
            )
            files[kind] = path.read_bytes()
    return files


class WeightsFiles:
    """Readers: `weights.read_meta`, `load`, `read_tensors`, and the networks
    that are built of a file.
    """

    name = "weights"

    def __init__(self, folder: Path) -> None:
        self.files = wholes()
        self.folder = folder

    def warm(self) -> None:
        for kind, data in self.files.items():
            self.write(Case(data, "whole", 0, kind))
            self.run(Case(data, "whole", 0, kind))

    def case(self, draw: random.Random) -> Case:
        kind = draw.choice(list(self.files))
        data, origin = draw.choice(_MAKERS)(self.files[kind], list(self.files.values()), draw)
        head = int.from_bytes(data[:8], "little") if len(data) >= 8 else 0
        return Case(
            data,
            f"{kind}: {origin}",
            NETWORK + 2 * len(data) + JSON_EACH * min(head, len(data)),
            kind,
        )

    def write(self, case: Case) -> None:
        for name in ("tokenizer", "prior", "entropy", "state"):
            self.path(name).write_bytes(case.data if name == case.more else self.files[name])

    def path(self, kind: str) -> Path:
        return self.folder / f"{kind}.safetensors"

    def run(self, case: Case) -> str:
        """Everything that one of the readers can say of it; the file must be on disk: `write`."""
        path = self.path(case.more)
        weights.read_meta(path)
        stored = weights.load_weights(path, case.more)
        weights.read_tensors(path)
        weights.fingerprint(stored.tensors)
        if case.more == "tokenizer":
            codec.load_tokenizer(path)
        elif case.more == "prior":
            loading.load_prior(path, TOKENIZER, FINGERPRINT)
        elif case.more == "entropy":
            codec.EntropyCoder(model_registry.ModelFolder("toy", self.folder), FINGERPRINT)
        return "valid"


def _bytes(data: bytes, others: list[bytes], draw: random.Random) -> tuple[bytes, str]:
    changed, origin = mutate.damage(data, others, draw)
    return changed, f"bytes: {origin}"


def _header(data: bytes, others: list[bytes], draw: random.Random) -> tuple[bytes, str]:
    """Bytes of the header, its length being right."""
    header, body = _split(data)
    changed, origin = mutate.damage(header, [_split(other)[0] for other in others], draw)
    return _joined(changed, body), f"header: {origin}"


def _length(data: bytes, others: list[bytes], draw: random.Random) -> tuple[bytes, str]:
    return (draw.choice(mutate.NUMBERS) % 2**64).to_bytes(8, "little") + data[8:], "length"


def _split(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return data[8 : 8 + length], data[8 + length :]


def _joined(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def _tensors(data: bytes, others: list[bytes], draw: random.Random) -> tuple[bytes, str]:
    """What the header says of a tensor: its type, shape, or place."""
    header, body = _split(data)
    entries = json.loads(header)
    name = draw.choice([name for name in entries if name != "__metadata__"])
    entry, what = entries[name], draw.randrange(5)
    if what == 0:
        entry["dtype"] = draw.choice(_DTYPES)
    elif what == 1:
        entry["shape"] = [draw.choice(mutate.NUMBERS) for _ in range(draw.randint(0, 40))]
    elif what == 2:
        entry["data_offsets"] = [
            draw.choice((*mutate.NUMBERS, *entry["data_offsets"]))
            for _ in range(draw.choice((2, 2, 2, 0, 3)))
        ]
    elif what == 3:
        entries[draw.choice((*mutate.NAMES, "__metadata__", *entries))] = entry
    else:
        del entries[name]
    return _joined(json.dumps(entries).encode(), body), "tensor"


def _meta(data: bytes, others: list[bytes], draw: random.Random) -> tuple[bytes, str]:
    """The JSON in the metadata: keys missing, hostile values, a config that asks for a giant."""
    header, body = _split(data)
    entries = json.loads(header)
    meta = json.loads(entries["__metadata__"]["vqtok"])
    place: dict[str, Any] = draw.choice((meta, meta["config"], meta["config"], meta["record"]))
    for _ in range(draw.randint(1, 3)):
        key = draw.choice([*place, "x"])
        place[key] = f"\0{mutate.json_value(draw)}\0"
    if draw.random() < 0.1:
        del place[draw.choice(list(place))]
    text = json.dumps(meta)
    for part in [value for value in place.values() if isinstance(value, str) and value[:1] == "\0"]:
        text = text.replace(json.dumps(part), part[1:-1])  # raw, so that it may be no JSON at all
    entries["__metadata__"]["vqtok"] = text
    return _joined(json.dumps(entries).encode(), body), "meta"


def _giant(data: bytes, others: list[bytes], draw: random.Random) -> tuple[bytes, str]:
    """A config that is valid, and of the largest network that there is."""
    header, body = _split(data)
    entries = json.loads(header)
    meta = json.loads(entries["__metadata__"]["vqtok"])
    largest = {
        "tokenizer": replace(
            TOKENIZER,
            width=2048,
            encoder_blocks=64,
            decoder_blocks=64,
            downsample=16,
            fold=1,
            codebook_size=65536,
            code_dim=1024,
            levels=32,
            normalize=False,
            quantizer=draw.choice(config.LEARNED),
        ),
        "prior": replace(PRIOR, width=2048, layers=64, kernel=9, labels=("x",) * 10_000),
        "entropy": replace(
            ENTROPY, width=1024, blocks=16, rank=512, embedding=256, levels=32, codebook_size=4096
        ),
    }
    chosen = largest.get(meta["kind"])
    meta["config"] = asdict(chosen) if chosen else {"x": "y" * 100_000}
    entries["__metadata__"]["vqtok"] = json.dumps(meta)
    return _joined(json.dumps(entries).encode(), body), "giant"


def _bulky(data: bytes, others: list[bytes], draw: random.Random) -> tuple[bytes, str]:
    """A header of a megabyte: many tensors, many lists, deep nesting, one long text."""
    _, body = _split(data)
    n = draw.choice((1000, 200_000))
    header = draw.choice(
        (
            b"{"
            + b",".join(
                b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i
                for i in range(min(n, 20_000))
            )
            + b"}",
            b'{"__metadata__":[' + b"{}," * n + b"0]}",
            b'{"__metadata__":' + b"[" * n + b"]" * n + b"}",
            b'{"a":' * n,
            b'{"__metadata__":{"vqtok":"' + b"[" * n + b'"}}',
            b'{"__metadata__":{"vqtok":"' + b"x" * n + b'"}}',
            b'{"a":' + b"9" * n + b"}",
        )
    )
    return _joined(header, body), "bulky"


Maker = Callable[[bytes, list[bytes], random.Random], tuple[bytes, str]]
_MAKERS: tuple[Maker, ...] = (
    *(_bytes,) * 6,
    *(_header,) * 8,
    _length,
    *(_tensors,) * 8,
    *(_meta,) * 12,
    _giant,
    _bulky,
)
