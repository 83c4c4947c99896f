"""How commands start, work beside their network, and end."""

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import fails, ok, run, save
from conftest import TOKENIZER, image
from test_cli_pack import add_entropy

from vqtok import codec
from vqtok.cli import start
from vqtok.config import EntropyConfig, TokenizerConfig
from vqtok.meta_init import init_empty_weights
from vqtok.networks.vqvae import VQVAE
from vqtok.prefetch import read_ahead, run_in_thread, write_behind
from vqtok.priors import IntegerPrior


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )


# Starting


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, "active"])
def test_threads_sleep_while_they_wait_unless_told_otherwise(
    given: str | None,
):
    """Set before torch loads its OpenMP, and NumPy its OpenBLAS, which read it once."""
    names = ("OMP_WAIT_POLICY", "OPENBLAS_THREAD_TIMEOUT")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment |= {} if given is None else dict.fromkeys(names, given)
    script = """
import os, sys
from vqtok import __main__
early = "numpy" in sys.modules
from vqtok import cli
cli.main = lambda: print(*map(os.environ.get, %r), early, "torch" in sys.modules)
__main__.main()
""" % (names,)  # noqa: UP031 - braces
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.split() == [given or "passive", given or "4", "False", "False"]


def test_the_collector_rests_until_the_command_begins(toy: Path):
    ok("encode", save("a.png"), "-o", "a.npz")
    frozen = gc.get_freeze_count()
    gc.disable()
    try:
        ok("info", "a.npz")
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
        gc.enable()


def test_values_that_need_no_check_are_passed_on(toy: Path, monkeypatch: pytest.MonkeyPatch):
    """Typer 0.29 imports Pydantic to check even what was not given."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("pydantic", "typer")]:
        if name.startswith("pydantic") or name == "typer._adapters":
            monkeypatch.setitem(sys.modules, name, None)  # whose import then fails
    monkeypatch.setitem(sys.modules, "pydantic", None)
    save("a.png")
    ok("encode", "a.png", "-o", "b.npz", "-m", "toy", "--background", "black", "-f", "-q")
    ok("info", "b.npz", "--json")
    ok("decode", "b.npz", "-o", "b.png")
    assert Path("b.png").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["encode"], "missing argument 'IN"),
        (["encode", "a.png", "--levels", "x"], "--levels"),
        (["encode", "a.png", "--levels", "0"], "--levels"),
        (["encode", "a.png", "--effort", "12"], "--effort"),
        (["encode", "a.png", "--goal", "no"], "--goal"),
        (["sample", "--top-p", "no"], "--top-p"),
    ],
)
def test_values_that_need_a_check_get_it(words: list[str], said: str, toy: Path):
    save("a.png")
    assert said in fails(*words, code=2)


@pytest.mark.slow
def test_commands_import_no_compiler(toy: Path):
    """torch._dynamo and sympy take as long to import as half of torch,
    and nothing here needs them. One image is drawn without tables, curves and other networks.
    """
    add_entropy(toy)
    save("a.png")
    script = """
import sys
from vqtok.cli import main
unused = ("rich.table", "vqtok.plots.curves", "vqtok.losses.lpips", "vqtok.priors.pixelrnn",
          "vqtok.integer_prior.inference", "vqtok.onnx.tokenizer")
for words in ("sample -n 1 -o one.png", "encode a.png", "decode a.npz",
              "encode a.png --compact -o b.npz", "decode b.npz", "pack a.npz", "sample"):
    sys.argv = ["vqtok", *words.split()]
    try:
        main()
    except SystemExit as done:
        assert not done.code, words
    for name in ("sympy", "torch._dynamo", "torch._inductor", "torch.distributed.tensor"):
        assert name not in sys.modules, (words, name)
    for name in unused if "-n 1" in words else ():
        assert name not in sys.modules, (words, name)
"""
    done = python(script)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("quantizer", ["ema", "vq", "simvq", "fsq", "lfq"])
def test_an_outline_has_the_names_and_shapes_of_the_network(quantizer: str):
    settings = TokenizerConfig(
        downsample=4,
        width=8,
        codebook_size=16,
        code_dim=4,
        levels=2,
        normalize=False,
        quantizer=quantizer,
    )
    entropy = EntropyConfig(codebook_size=16, levels=2, embedding=4, width=8, blocks=1, rank=4)
    state = torch.get_rng_state()
    with init_empty_weights():
        drawn = [VQVAE(settings), IntegerPrior(entropy)]
    assert torch.equal(torch.get_rng_state(), state)
    for network, real in zip(drawn, [VQVAE(settings), IntegerPrior(entropy)], strict=True):
        expected = {name: (value.shape, value.dtype) for name, value in real.state_dict().items()}
        assert {
            name: (value.shape, value.dtype) for name, value in network.state_dict().items()
        } == expected
        assert all(value.is_meta for value in network.parameters())


def test_each_part_is_filled_when_it_is_first_used(toy: Path):
    def empty(part: str) -> bool:
        return any(
            value.is_meta for value in model._network.get_submodule(part).state_dict().values()
        )

    model = codec.load("toy")
    assert [empty("encoder"), empty("decoder")] == [True, True]
    codes = model.encode(image())
    assert [empty("encoder"), empty("decoder")] == [False, True]
    model.decode(codes)
    assert not empty("decoder")
    again = codec.load("toy")
    whole = again.network.state_dict()
    assert not any(value.is_meta for value in whole.values())
    assert all(
        torch.equal(value, model.network.state_dict()[name]) for name, value in whole.items()
    )
    assert (again.decode(codes) == model.decode(codes)).all()
    assert again.config == TOKENIZER


# Beside the network


def test_the_next_is_read_ahead_and_no_more():
    spec: list[int] = []
    may = threading.Event()

    def read(item: int) -> int:
        spec.append(item)
        may.wait(10)
        if item == 2:
            raise ValueError("two")
        return item * 10

    results = read_ahead(read, [0, 1, 2, 3])
    may.set()
    first = next(results)
    assert first.result() == 0
    assert max(spec) <= 1
    second, third = next(results), next(results)
    assert second.result() == 10
    with pytest.raises(ValueError, match="two"):
        third.result()
    assert next(results).result() == 30
    assert list(results) == []
    assert spec == [0, 1, 2, 3]


def test_results_come_one_behind_and_in_order():
    spec: list[str] = []

    def work(item: str, given: int) -> "Future[int]":
        spec.append(item)
        if item == "b":
            raise ValueError("b")
        return run_in_thread(lambda: given)

    seen = write_behind(work, zip("abc", (1, 2, 3), strict=True))
    item, future = next(seen)
    assert (item, future.result(), spec) == ("a", 1, ["a", "b"])
    item, future = next(seen)
    with pytest.raises(ValueError, match="b"):
        future.result()
    assert [(item, future.result()) for item, future in seen] == [("c", 3)]


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_an_interrupted_batch_ends_after_its_last_write(
    verb: str, toy: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file that appeared later would be in another folder where the caller has changed it."""
    for i in range(3):
        save(f"in/{i}.png", image(seed=i))
    ok("encode", "in", "-o", "codes")
    ended: list[str] = []

    def write(self: object, *_: object, **__: object) -> None:
        time.sleep(0.1)
        ended.append("write")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vqtok.cli.output.write", write)  # of encode
    monkeypatch.setattr("vqtok.images.write_image", write)  # of decode
    monkeypatch.setattr("vqtok.cli.batch.Batch._report_one", interrupt)
    done = run(verb, {"encode": "in", "decode": "codes"}[verb], "-o", "out")
    assert (done.exit_code, ended) == (130, ["write"] * 2)  # the first, and the next


@pytest.mark.slow
def test_a_batch_gives_the_bytes_of_single_commands(toy: Path):
    for i in range(6):
        save(f"in/{i}.png", image(20 + i // 4, 30, seed=i))
    ok("encode", "in", "-o", "together")
    for i in range(6):
        ok("encode", f"in/{i}.png", "-o", f"{i}.npz")
        assert Path(f"{i}.npz").read_bytes() == Path(f"together/{i}.npz").read_bytes()
    assert len({Path(f"{i}.npz").read_bytes() for i in range(6)}) == 6


def test_messages_keep_the_order_of_the_inputs(toy: Path):
    for i in range(4):
        save(f"in/{i}.png", image(seed=i))
    Path("in/1.png").write_bytes(b"no image")
    Path("in/3.npz").mkdir()
    done = run("encode", "in")
    assert done.exit_code == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  fix")]
    assert [
        "in/3" in lines[0],
        "in/0.png ->" in lines[1],
        "in/1.png" in lines[2],
        "in/2.png ->" in lines[3],
    ] == [True] * 4, lines
    assert lines[4] == "2 of 4 failed"


def test_a_result_that_cannot_be_written_fails(toy: Path, monkeypatch: pytest.MonkeyPatch):
    save("a.png")
    save("b.png", np.zeros((8, 8, 3), np.uint8))
    Path("file").write_bytes(b"")
    assert "cannot write" in fails("encode", "a.png", "-o", "file/a.npz")


# Ending


LEAVING = """
import atexit, sys, threading, time, types
sys.modules["torch"] = types.ModuleType("torch")
from vqtok import __main__
atexit.register(lambda: print("third"))
print("first", end=" ")
{more}
__main__._leave({code})
"""
WRITING = "threading.Thread(target=lambda: (time.sleep(0.2), print('second', end=' '))).start()"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("", "first third\n"),
        (WRITING, "first second third\n"),
        ("del atexit._run_exitfuncs", "first third\n"),  # a Python that has no such function
    ],
)
def test_nothing_is_lost_by_leaving_at_once(more: str, told: str):
    for code, expected in (("None", 0), ("0", 0), ("3", 3)):
        done = python(LEAVING.format(more=more, code=code))
        assert (done.returncode, done.stdout, done.stderr) == (expected, told, "")


def test_a_reader_that_hangs_does_not_keep_the_process():
    hang = "from vqtok.prefetch import read_ahead; read_ahead(lambda item: time.sleep(100), [1])"
    done = python(LEAVING.format(more=hang, code=130))
    assert (done.returncode, done.stdout) == (130, "first third\n")


def test_few_kinds_of_products_are_kept_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1,000 sizes of images, two caches of 1,024 kinds of products hold some 270 MB."""
    names = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"
    for name in names:
        monkeypatch.setenv(name, "1")
        monkeypatch.delenv(name)
    start.ModelOptions(None, None)
    assert [os.environ[name] for name in names] == ["64", "64"]
    monkeypatch.setenv(names[1], "7")
    start.ModelOptions(None, None)
    assert os.environ[names[1]] == "7"
