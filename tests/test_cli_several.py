"""Several images at a time: equal files, errors in their place, and bounded memory."""

import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from cli_helpers import ok, run, save
from conftest import image
from torch import nn

from vqtok import codec, images
from vqtok.codec import several as module
from vqtok.codec.several import Several
from vqtok.networks.streaming import StreamingConv2d
from vqtok.prefetch import in_parallel
from vqtok.threads import threads


@pytest.fixture
def two_threads():
    with threads(2):
        yield


def test_results_come_in_order_and_no_more_than_twice_the_threads_are_begun() -> None:
    begun, may = list[int](), threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item:
            may.wait(10)
        if item == 3:
            raise ValueError("three")
        return item * 10

    asked = list[int]()

    def items():
        for item in range(9):
            asked.append(item)
            yield item

    results = in_parallel(work, items(), 2)
    first, future = next(results)
    assert (first, future.result()) == (0, 0)
    assert asked == [0, 1, 2, 3]
    may.set()
    rest = dict(results)
    assert list(rest) == list(range(1, 9))
    assert isinstance(rest[3].exception(), ValueError)
    assert [rest[i].result() for i in (1, 2, 4, 8)] == [10, 20, 40, 80]


def test_what_nobody_takes_is_not_begun() -> None:
    begun, may = list[int](), threading.Event()

    def work(item: int) -> None:
        begun.append(item)
        may.wait(10)

    results = in_parallel(work, range(100), 1)
    next(results)
    results.close()  # type: ignore[attr-defined]
    may.set()
    assert len(begun) <= 2


def test_a_batch_gives_the_bytes_of_single_commands(toy: Path, two_threads: None) -> None:
    for i in range(5):
        save(f"in/{i}.png", image(20 + i // 4, 30, seed=i))
    Path("in/1.png").write_bytes(b"no image")
    result = run("encode", "in", "-o", "together")
    assert (result.exit_code, "1.png is not an image" in result.stderr) == (1, True)
    for i in (0, 2, 3, 4):
        ok("encode", f"in/{i}.png", "-o", f"{i}.npz")
        assert Path(f"{i}.npz").read_bytes() == Path(f"together/{i}.npz").read_bytes()
        ok("decode", f"{i}.npz", "-o", f"{i}.png")
    Path("together/1.npz").write_bytes(b"no codes")
    result = run("decode", "together", "-o", "back")
    assert (result.exit_code, "together/1.npz" in result.stderr) == (1, True)
    for i in (0, 2, 3, 4):
        assert Path(f"{i}.png").read_bytes() == Path(f"back/{i}.decoded.png").read_bytes()
    assert torch.get_num_threads() == 2


def test_several_are_on_threads_of_their_own(
    toy: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, seen = threading.Barrier(2, timeout=20), set[tuple[str, int, int]]()
    for name in ("_encode", "_decode"):
        original = getattr(codec.Model, name)

        def watched(*args: object, name=name, original=original) -> object:
            if threading.current_thread() is not threading.main_thread():
                at_once.wait()  # both threads are at an image
                seen.add((name, threading.get_ident(), torch.get_num_threads()))
            return original(*args)

        monkeypatch.setattr(codec.Model, name, watched)
    for i in range(4):
        save(f"in/{i}.png", image(16, 16, seed=i))
    ok("encode", "in", "-o", "codes")
    save("in/4.png", image(16, 16, seed=4))
    ok("encode", "in/4.png", "-o", "codes/4.npz")
    ok("decode", "codes", "-o", "back")
    assert [sum(one == name for one, *_ in seen) for name in ("_encode", "_decode")] == [2, 2]
    assert {count for *_, count in seen} == {1}


def test_large_images_take_all_threads_one_at_a_time(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE", 100)
    several = Several(codec.load("cifar10", "cpu"), 4)
    inside, most = list[int](), list[int]()

    def work(pixels: int) -> int:
        with several.room(pixels), several.room(pixels):
            inside.append(pixels)
            most.append(len(inside))
            threading.Event().wait(0.01)
            inside.remove(pixels)
            return torch.get_num_threads()

    large: list[Future[int]] = [future for _, future in several.run(work, [101] * 4)]
    assert [future.result() for future in large] == [2] * 4
    assert max(most) == 1
    assert [future.result() for _, future in several.run(work, [100] * 4)] == [1] * 4


@pytest.mark.parametrize("differs", [0.0, 1e-6])
def test_one_at_a_time_where_the_numbers_depend_on_the_threads(
    two_threads: None, monkeypatch: pytest.MonkeyPatch, differs: float
) -> None:
    def encoder(_: object, parts: list[torch.Tensor], *__: int) -> list[torch.Tensor]:
        return [part + differs * torch.get_num_threads() for part in parts]

    monkeypatch.setattr(module, "stream", encoder)
    model = codec.load("cifar10", "cpu")
    several = Several(model, 4)
    several.check(model)
    assert several.count == (1 if differs else 2)


def test_a_kernel_of_one_place_sums_alike_on_any_number_of_threads() -> None:
    """By oneDNN alone it does not, and near ties would fall another way in a folder."""
    torch.manual_seed(0)
    layer = nn.Conv2d(256, 32, 1)
    x = torch.randn(1, 256, 32, 48).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        found = []
        for count in (1, 2):
            with threads(count):
                streaming = StreamingConv2d(layer, 2)
                found.append(streaming.convolve(streaming.extend(x, True)))
    assert found[0] is not None
    assert torch.equal(found[0], found[1])  # type: ignore[arg-type]


def test_pixels_are_counted_by_the_header(tmp_path: Path) -> None:
    save(str(tmp_path / "a.png"), image(20, 30))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert images.count_pixels(tmp_path / "a.png") == 600
    assert images.count_pixels(tmp_path / "b.png") == 0
    assert images.count_pixels(tmp_path / "missing.png") == 0
