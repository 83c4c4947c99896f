"""Compiles kernels.c to kernels.wasm: python build_kernels.py, with `ziglang` 0.17.1 of PyPI.

Whoever changes kernels.c runs it and commits both files.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
OPTIONS = (
    *("--target=wasm32-freestanding", "-msimd128", "-mbulk-memory", "-O3", "-nostdlib"),
    *("-Wl,--no-entry", "-Wl,--import-memory", "-Wl,--strip-all", "-Wl,-z,stack-size=65536"),
    "-Wl,--export=__heap_base",
)


def main() -> None:
    target, source = FOLDER / "kernels.wasm", FOLDER / "kernels.c"
    command = [sys.executable, "-m", "ziglang", "cc", *OPTIONS, "-o", str(target), str(source)]
    subprocess.run(command, check=True)
    target.chmod(0o644)
    for left in (target.with_suffix(".wasm.obj"), target.with_suffix(".pdb")):
        left.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
