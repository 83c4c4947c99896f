"""The integer prior: training and inference agree to the last bit, and so
do all ways of inference.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch

from vqtok import entropy
from vqtok.config import EntropyConfig
from vqtok.errors import FormatError
from vqtok.integer_prior import (
    IMAGE,
    IntegerInference,
    Neighborhood,
    blas,
    integer_tensor_shapes,
    largest_sum,
)
from vqtok.integer_prior.arithmetic import LOGIT_STEP
from vqtok.integer_prior.inference import ContextSums, _Rows
from vqtok.integer_prior.neighborhood import AROUND, CAUSAL, LAG
from vqtok.priors import IntegerPrior
from vqtok.priors.integer import IntegerBlock, grid_round

GOLDEN = (
    "0000211d28c7000097f5f5ff56defcff1bf36d00f6ff9bfffdff0b009cffffff145ee400dc01ec00fefffcfffefff"
    "cfff9ff0600f1fff0ffd6f9fffff0fff6ff0000"
)
CONFIG = EntropyConfig(codebook_size=16, levels=3, embedding=8, width=16, blocks=1, rank=8)


@pytest.fixture(scope="module")
def network() -> IntegerPrior:
    torch.manual_seed(0)
    network = IntegerPrior(CONFIG)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.4)
    return network.eval()


@pytest.fixture(scope="module")
def prior(network: IntegerPrior) -> IntegerInference:
    return IntegerInference(CONFIG, network.integers())


def grids(n: int = 1, levels: int = 3, h: int = 6, w: int = 9) -> np.ndarray:
    return np.random.default_rng(h * w + n).integers(0, 16, (n, levels, h, w))


def wavefront(levels: int, h: int, w: int) -> list[np.ndarray]:
    return list(IMAGE.steps(levels, (h, w)))


def logits(prior: IntegerInference, sums: ContextSums, places: np.ndarray) -> torch.Tensor:
    """Rounded logits (n, K) of places (3, n) of one image, in the order of the indices."""
    rows = _Rows.of(places, 1)
    features = prior.features(sums.inputs(sums.centers(rows)), rows.runs)
    found = np.floor(prior.logits(features, rows.runs))
    found = found.reshape(len(found), entropy.BLOCK, -1).swapaxes(1, 2).reshape(len(found), -1)
    return torch.from_numpy(found[:, : prior.config.codebook_size].copy())


def full_logits(prior: IntegerInference, indices: np.ndarray) -> torch.Tensor:
    """Logits (l, h, w, K) of one image, of all places at once."""
    _, levels, h, w = indices.shape
    sums = ContextSums(prior, 1, levels, (h, w))
    sums.fill(indices)
    places = np.indices((levels, h, w)).reshape(3, -1)
    return logits(prior, sums, places).view(levels, h, w, -1)


def table(prior: IntegerInference, logits: torch.Tensor) -> torch.Tensor:
    """Cumulative frequencies (n, K + 1) of logits (n, K), K = 16."""
    found = prior.weighed(logits.numpy().reshape(-1, 1, 16).swapaxes(1, 2).reshape(-1, 16).copy())
    starts = [found.intervals(np.full(len(logits), k))[:, 0] for k in range(16)]
    last = found.intervals(np.full(len(logits), 15))[:, 1]
    return torch.from_numpy(np.stack([*starts, last], axis=1))


@torch.no_grad()
def test_training_computes_what_inference_does(network: IntegerPrior, prior: IntegerInference):
    indices = grids()
    trained = torch.floor(network(torch.from_numpy(indices))[:, 0] * 2**LOGIT_STEP + 0.5)
    exact = full_logits(prior, indices)
    assert exact.std() > 10
    torch.testing.assert_close(trained, exact, rtol=0, atol=0)


def test_a_place_sees_only_what_comes_before(prior: IntegerInference):
    indices = grids()
    before = full_logits(prior, indices)
    for level, row, column in ((0, 3, 4), (1, 0, 0), (2, 5, 8)):
        changed = indices.copy()
        changed[0, level, row, column] ^= 5
        seen = (full_logits(prior, changed) != before).any(-1)
        time = 2 * np.arange(6)[:, None] + np.arange(9) + LAG * np.arange(3)[:, None, None]
        assert seen.any() or (level, row, column) == (2, 5, 8)
        assert (time[seen.numpy()] > time[level, row, column]).all()


@pytest.mark.parametrize(("levels", "h", "w"), [(1, 1, 1), (3, 5, 7), (2, 1, 6), (8, 32, 48)])
def test_wavefront_has_each_place_once_after_those_it_sees(levels: int, h: int, w: int):
    steps = wavefront(levels, h, w)
    assert len(steps) <= w + 2 * (h - 1) + LAG * (levels - 1)
    when = np.full((levels, h, w), -1)
    for number, (level, row, column) in enumerate(steps):
        assert (when[level, row, column] == -1).all()
        when[level, row, column] = number
        assert (np.diff(level) >= 0).all()
    assert (when >= 0).all()
    for shift, places in ((0, CAUSAL), (1, AROUND)):
        for di, dj in places:
            for level in range(shift, levels):
                rows, columns = (
                    np.arange(max(0, -d), min(n, n - d)) for d, n in ((di, h), (dj, w))
                )
                here, seen = np.ix_(rows, columns), np.ix_(rows + di, columns + dj)
                assert (when[level - shift][seen] < when[level][here]).all()


def test_tables_rise_from_nothing_to_everything(prior: IntegerInference):
    logits = torch.cat(
        [full_logits(prior, grids())[0, 0], torch.zeros(1, 16), torch.eye(16)[:1] * 1e6]
    )
    found = table(prior, logits)
    assert (found[:, 0] == 0).all()
    assert (found[:, -1] == entropy.TOTAL).all()
    assert (found.diff(dim=1) > 0).all()
    assert (found[-2].diff() == entropy.TOTAL // 16).all()
    assert found[-1, 1] == entropy.TOTAL - 15


def test_tables_follow_the_logits(prior: IntegerInference):
    logits = torch.tensor([[0.0, -32.0, -64.0, -320.0] + [-1e4] * 12])  # 0, -1, -2 and -10 bits
    frequencies = table(prior, logits).diff()[0].double()
    wanted = (entropy.TOTAL - 16) * torch.tensor([1, 0.5, 0.25, 2.0**-10]) / (1.75 + 2.0**-10) + 1
    assert (frequencies[:4] - wanted).abs().max() <= 1
    assert (frequencies[4:] == 1).all()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """NumPy's BLAS works with so many threads, whatever the coder asks for."""
    functions = blas.thread_functions()
    if functions is None:
        pytest.skip("nothing says how many threads this BLAS has")
    before = functions[1]()
    functions[0](count)
    try:
        yield
    finally:
        functions[0](before)


VARIANTS = ("plain", "double", "two threads", "small parts", "one image at a time")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    ("n", "levels", "h", "w"),
    [(1, 3, 1, 1), (2, 3, 1, 7), (1, 1, 5, 1), (24, 3, 4, 5), (1, 2, 6, 9)],
)
def test_every_way_reads_what_every_other_wrote(
    network: IntegerPrior,
    prior: IntegerInference,
    name: str,
    n: int,
    levels: int,
    h: int,
    w: int,
    monkeypatch: pytest.MonkeyPatch,
):
    indices = grids(n, levels, h, w)
    streams = prior.encode(indices)
    dtype = np.float64 if name == "double" else np.float32
    other = IntegerInference(CONFIG, network.integers(), dtype=dtype)
    if name == "small parts":
        monkeypatch.setattr("vqtok.integer_prior.inference.ROWS_AT_ONCE", 3)
        monkeypatch.setattr("vqtok.integer_prior.neighborhood.PLACES_AT_ONCE", 5)
        monkeypatch.setattr("vqtok.integer_prior.inference.PLACES_AT_ONCE", 7)
    if name == "one image at a time":
        monkeypatch.setattr("vqtok.integer_prior.inference.IMAGES_AT_ONCE", 1)
    if name == "two threads":
        # the coder works on one thread; other numbers must give the same all the same
        monkeypatch.setattr(blas, "one_thread", lambda: threads(2))
    np.testing.assert_array_equal(other.decode(streams, levels, h, w), indices)
    assert other.encode(indices) == streams


def test_products_that_round_are_noticed(network: IntegerPrior, monkeypatch: pytest.MonkeyPatch):
    """Some libraries can be told to multiply in bfloat16: float64 is taken then."""
    assert blas.multiplies_exactly()
    monkeypatch.setattr(blas, "multiplies_exactly", lambda: False)
    assert IntegerInference(CONFIG, network.integers()).dtype == np.float64


def test_batches_and_single_images_are_coded_alike(prior: IntegerInference):
    indices = grids(24, 3, 4, 5)
    assert [prior.encode(one[None])[0] for one in indices] == prior.encode(indices)
    order = np.concatenate(wavefront(3, 4, 5), axis=1)
    together = prior.intervals(indices, order)
    np.testing.assert_array_equal(
        together, np.concatenate([prior.intervals(one[None], order) for one in indices])
    )


def test_one_pass_gives_the_streams_of_every_number_of_levels(prior: IntegerInference):
    indices = grids(3, 3, 4, 5)
    coded = prior.code(indices)
    for levels in (1, 2, 3):
        assert coded.streams(levels) == prior.encode(indices[:, :levels])


@pytest.mark.parametrize("n", [1, 24])
def test_the_coder_works_on_one_thread(
    prior: IntegerInference, n: int, monkeypatch: pytest.MonkeyPatch
):
    seen, inner = [], IntegerInference.logits
    functions = blas.thread_functions()
    if functions is None:
        pytest.skip("nothing says how many threads this BLAS has")

    def spy(self, *arguments):
        seen.append(functions[1]())
        return inner(self, *arguments)

    monkeypatch.setattr(IntegerInference, "logits", spy)
    indices = grids(n, 3, 4, 5)
    with threads(3):
        for work in (
            lambda: prior.encode(indices),
            lambda: prior.bits(indices),
            lambda: prior.decode(prior.encode(indices), 3, 4, 5),
        ):
            work()
            assert set(seen) == {1}
            assert functions[1]() == 3


def test_raster_order_gives_the_tables_of_the_wavefront(prior: IntegerInference):
    indices = grids()
    full = full_logits(prior, indices)
    sums = ContextSums(prior, 1, 3, (6, 9))
    for level in range(3):
        for row in range(6):
            for column in range(9):
                rows = _Rows.of(np.array([[level], [row], [column]]), 1)
                (found,) = logits(prior, sums, rows.places)
                torch.testing.assert_close(found, full[level, row, column], rtol=0, atol=0)
                sums.add(rows, sums.centers(rows), indices[:, level, row, column])


@torch.no_grad()
def test_a_float_network_would_not_decode(network: IntegerPrior):
    """The same network without rounding: a place computed alone differs in its last bits from
    the place in a full pass.
    """
    indices = torch.from_numpy(grids())
    network.quantize = False
    try:
        full = network(indices)[0, 0]  # (h, w, K) of the lowest level, by convolution
        sums = network.sums(indices)[:, 0]  # (l + 1, h, w, E)
        padded = torch.nn.functional.pad(sums, (0, 0, 4, 4, 4, 4))
        weight, bias = network.first.rounded(False)
        alone = torch.empty_like(full)
        for row in range(6):
            for column in range(9):
                seen = [padded[1, row + 4 + di, column + 4 + dj] for di, dj in CAUSAL]
                seen += [padded[0, row + 4 + di, column + 4 + dj] for di, dj in AROUND]
                x = torch.cat(seen) @ weight[0].T + bias[0]
                for block in network.blocks:
                    assert isinstance(block, IntegerBlock)
                    hidden = network._active(
                        network._active(x) @ block.rise.weight[0].T + block.rise.bias[0]
                    )
                    x = x + hidden @ block.fall.weight[0].T + block.fall.bias[0]
                features = (
                    network._active(x) @ network.features.weight[0].T + network.features.bias[0]
                )
                alone[row, column] = (
                    features @ network.readout.weight[0].T + network.readout.bias[0]
                )
    finally:
        network.quantize = True
    torch.testing.assert_close(alone, full, rtol=1e-4, atol=1e-4)
    assert (alone != full).any()
    tables = [
        torch.floor(torch.softmax(logits * np.log(2), -1).cumsum(-1) * entropy.TOTAL)
        for logits in (alone, full)
    ]
    assert (tables[0] != tables[1]).any()  # where one differs, nothing after it decodes


def test_the_bound_holds_and_is_checked(network: IntegerPrior, prior: IntegerInference):
    tensors = network.integers()
    assert prior.largest_sum == largest_sum(tensors)
    worst = {name: np.full_like(value, 127) for name, value in tensors.items()}
    assert largest_sum(worst) == (len(CAUSAL) + len(AROUND)) * 8 * 3 * 127 * 127 + 127 + (1 << 16)
    heavy = dict(tensors, **{"readout.bias": np.full_like(tensors["readout.bias"], 1 << 24)})
    with pytest.raises(FormatError, match="past what float32 holds"):
        IntegerInference(CONFIG, heavy)


def test_rounding_goes_up_at_halves_and_passes_gradients():
    x = torch.tensor([0.5, -0.5, 1.49, 9.0], requires_grad=True)
    rounded = grid_round(x, 0, -4, 4)
    assert rounded.tolist() == [1, 0, 1, 4]
    rounded.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1, 0]


@pytest.mark.slow
def test_damaged_streams_are_errors_or_other_indices(prior: IntegerInference):
    indices = grids()
    (stream,) = prior.encode(indices)
    draw = np.random.default_rng(0)
    for _ in range(20):
        at = int(draw.integers(len(stream)))
        with pytest.raises(FormatError, match="stream is"):
            prior.decode(
                [stream[:at] + bytes([stream[at] ^ 1 << int(draw.integers(8))]) + stream[at + 1 :]],
                3,
                6,
                9,
            )
    with pytest.raises(FormatError):
        prior.decode([stream + b"\0\0"], 3, 6, 9)


def test_starting_from_codebooks_tells_something():
    torch.manual_seed(0)
    network = IntegerPrior(CONFIG)
    codebooks = torch.randn(3, 16, 4)
    network.init_from_codebooks(codebooks)
    first = network.embedding.detach()[0, :, :4]
    distances = torch.cdist(first, first)
    ratio = distances / torch.cdist(codebooks[0], codebooks[0]).clamp(min=1e-3)
    off = ratio[~torch.eye(16, dtype=torch.bool)]
    assert off.std() < 0.01 * off.mean()  # turned and scaled, nothing else
    assert {
        name: tuple(value.shape) for name, value in network.integers().items()
    } == integer_tensor_shapes(CONFIG)


def test_grids_of_three_axes_are_coded_too():
    """Frames: a place sees the frame before, and the order follows from the offsets alone."""
    frames = Neighborhood(
        causal=((-1, 0, 0), (-1, 1, 1), (0, -1, 0), (0, -1, 1), (0, 0, -1)),
        around=((0, 0, 0), (-1, 0, 0)),
        speeds=(4, 2, 1),
        lag=1,
    )
    draw = np.random.default_rng(0)
    tensors = {
        name: draw.integers(-60, 61, shape).astype(np.int32 if name.endswith("bias") else np.int8)
        for name, shape in integer_tensor_shapes(CONFIG, frames).items()
    }
    prior = IntegerInference(CONFIG, tensors, frames)
    indices = draw.integers(0, 16, (3, 2, 4, 5, 6))
    order = np.concatenate(list(frames.steps(2, (4, 5, 6))), axis=1)
    assert len({tuple(place) for place in order.T.tolist()}) == order.shape[1] == 2 * 4 * 5 * 6
    streams = prior.encode(indices)
    np.testing.assert_array_equal(prior.decode(streams, 2, 4, 5, 6), indices)
    assert prior.encode(indices[:1]) == streams[:1]
    with pytest.raises(AssertionError):  # a place that is decoded later
        Neighborhood(((0, 0, 1),), (), (4, 2, 1), 1)


@pytest.mark.slow
def test_the_inference_needs_no_torch():
    code = "import sys; import vqtok.integer_prior; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def golden() -> tuple[IntegerInference, np.ndarray]:
    """A prior and grids that depend on NumPy's generator alone, which never changes."""
    draw = np.random.default_rng(1)
    tensors = {
        name: draw.integers(-99, 100, shape).astype(np.int8)
        if name.endswith(("weight", "embedding"))
        else draw.integers(-9999, 10000, shape).astype(np.int32)
        for name, shape in sorted(integer_tensor_shapes(CONFIG).items())
    }
    return IntegerInference(CONFIG, tensors), draw.integers(0, 16, (1, 3, 3, 4))


def test_golden_stream():
    """Format 1: these bytes never change, or files that are out there no longer decode."""
    prior, indices = golden()
    assert prior.encode(indices)[0].hex() == GOLDEN
    np.testing.assert_array_equal(prior.decode([bytes.fromhex(GOLDEN)], 3, 3, 4), indices)


def test_steps_come_in_order():
    times = [
        int((2 * row + column + LAG * level).max()) for level, row, column in wavefront(3, 4, 5)
    ]
    assert all(a < b for a, b in pairwise(times))
