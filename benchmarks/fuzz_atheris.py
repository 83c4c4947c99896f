"""The readers of codes and weights under atheris (libFuzzer):
inputs are kept and changed by the branches that they reach.

    pip install atheris
    python benchmarks/fuzz_atheris.py --kind codes --seconds 300
    python benchmarks/fuzz_atheris.py --kind weights --seconds 300

It starts from the whole files of tests/attacks, and changes members inside of a zip, and headers of
weights, with their checksums and lengths made right. Anything but a result or a VqtokError stops
the run, exit code 77, and leaves the input in crash-*.
"""

import argparse
import io
import sys
import tempfile
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports]

with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue]
    include=["vqtok.codes", "vqtok.weights", "vqtok.config", "vqtok.entropy"]
):
    from vqtok import codes, weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from attacks import mutate
from attacks.codes_files import CodesFiles
from attacks.weights_files import _joined, _split, wholes

from vqtok.errors import VqtokError


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=("codes", "weights"), required=True)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    corpus = Path(tempfile.mkdtemp(prefix="vqtok-atheris-"))
    for i, data in enumerate(CodesFiles().files if options.kind == "codes" else wholes().values()):
        (corpus / str(i)).write_bytes(data)
    flags = [
        f"-max_total_time={options.seconds}",
        f"-seed={options.seed}",
        "-timeout=5",
        "-rss_limit_mb=2048",
        "-max_len=65536",
    ]
    weights_file = corpus.with_suffix(".safetensors")
    read, change = (
        (read_codes, change_zip)
        if options.kind == "codes"
        else (read_weights(weights_file), change_header)
    )
    atheris.Setup([sys.argv[0], str(corpus), *flags], read, custom_mutator=change)
    atheris.Fuzz()


def read_codes(data: bytes) -> None:
    with suppress(VqtokError):
        found = codes.read_any_codes(data)
        if isinstance(found, codes.Compact) and found.prior is None:
            codes.unpack(found)
        codes.read_codes_meta(data)


def read_weights(path: Path):
    def read(data: bytes) -> None:
        path.write_bytes(data)
        for call in (
            weights.read_meta,
            weights.read_tensors,
            lambda path: weights.load_weights(path, "tokenizer"),
            weights.tokenizer_config,
        ):
            with suppress(VqtokError):
                call(path)

    return read


def change_zip(data: bytes, most: int, seed: int) -> bytes:
    """One member changed, in a zip that is whole again;
    every fourth time the bytes of the file themselves.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        LookupError,
    ):
        members = []
    if not members or seed % 4 == 0:
        return atheris.Mutate(data, most)
    chosen = seed // 4 % len(members)
    name, content = members[chosen]
    members[chosen] = (name, atheris.Mutate(content, most))
    return mutate.zipped(members)[:most]


def change_header(data: bytes, most: int, seed: int) -> bytes:
    """The header changed, under its new length;
    every fourth time the bytes of the file themselves.
    """
    if len(data) < 9 or seed % 4 == 0 or int.from_bytes(data[:8], "little") > len(data):
        return atheris.Mutate(data, most)
    header, body = _split(data)
    return _joined(atheris.Mutate(header, most), body)[:most]


if __name__ == "__main__":
    main()
