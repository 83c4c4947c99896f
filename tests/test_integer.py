"""The integer prior: training and inference agree to the last bit, and so
do all ways of inference.
"""

import shutil
import subprocess
import sys
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch

from vqtok import entropy
from vqtok.config import EntropyConfig
from vqtok.errors import FormatError
from vqtok.priors import IntegerInference, IntegerPrior, largest_sum
from vqtok.priors.integer import AROUND, CAUSAL, LOGIT_STEP, IntegerBlock, grid_round
from vqtok.priors.integer_inference import (
    LAG,
    ContextSums,
    Positions,
    integer_tensor_shapes,
    wavefront,
)

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


def full_logits(prior: IntegerInference, indices: np.ndarray) -> torch.Tensor:
    """Logits (l, h, w, K) of one image, of all places at once."""
    known = torch.from_numpy(indices)
    _, levels, h, w = known.shape
    sums = ContextSums(prior, 1, levels, h, w)
    sums.fill(known)
    places = Positions.of(
        *(part.ravel() for part in np.meshgrid(range(levels), range(h), range(w), indexing="ij"))
    )
    return torch.cat(list(prior._logits(sums, places))).view(levels, h, w, -1)


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
    table = prior.table(logits)
    assert (table[:, 0] == 0).all()
    assert (table[:, -1] == entropy.TOTAL).all()
    assert (table.diff(dim=1) > 0).all()
    assert (table[-2].diff() == entropy.TOTAL // 16).all()
    assert table[-1, 1] == entropy.TOTAL - 15
    indices = torch.arange(len(table)) % 16
    torch.testing.assert_close(
        prior.interval(logits, indices)[:, 0], table[torch.arange(len(table)), indices].long()
    )


def test_tables_follow_the_logits(prior: IntegerInference):
    logits = torch.tensor([[0.0, -32.0, -64.0, -320.0] + [-1e4] * 12])  # 0, -1, -2 and -10 bits
    frequencies = prior.table(logits).diff()[0].double()
    wanted = (entropy.TOTAL - 16) * torch.tensor([1, 0.5, 0.25, 2.0**-10]) / (1.75 + 2.0**-10) + 1
    assert (frequencies[:4] - wanted).abs().max() <= 1
    assert (frequencies[4:] == 1).all()


VARIANTS = {
    "plain": {},
    "double": {"dtype": torch.float64},
    "two threads": {"threads": 2},
    "no mkldnn": {"mkldnn": False},
    "bf16 products allowed": {"products": "medium"},
    "autocast": {"autocast": True},
}


@pytest.mark.filterwarnings("ignore:TF32")  # mkldnn.flags looks at devices that are not here
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
    # the coder works on one thread; other numbers must give the same all the same
    monkeypatch.setattr("vqtok.priors.integer_inference.one_thread", lambda wanted: nullcontext())
    streams = prior.encode(indices)
    variant = VARIANTS[name]
    other = IntegerInference(CONFIG, network.integers(), dtype=variant.get("dtype", torch.float32))
    before = torch.get_float32_matmul_precision()
    torch.set_num_threads(variant.get("threads", 1))
    torch.set_float32_matmul_precision(variant.get("products", "highest"))
    try:
        with (
            torch.backends.mkldnn.flags(enabled=variant.get("mkldnn", True)),
            torch.autocast("cpu", torch.bfloat16, enabled=variant.get("autocast", False)),
        ):
            np.testing.assert_array_equal(other.decode(streams, levels, h, w), indices)
            assert other.encode(indices) == streams
        assert torch.get_float32_matmul_precision() == variant.get("products", "highest")
    finally:
        torch.set_float32_matmul_precision(before)


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

    def spy(self, *arguments):
        seen.append(torch.get_num_threads())
        return inner(self, *arguments)

    monkeypatch.setattr(IntegerInference, "logits", spy)
    torch.set_num_threads(3)  # `_hermetic` puts it back
    indices = grids(n, 3, 4, 5)
    for work in (
        lambda: prior.encode(indices),
        lambda: prior.bits(indices),
        lambda: prior.decode(prior.encode(indices), 3, 4, 5),
    ):
        work()
        assert set(seen) == {1}
        assert torch.get_num_threads() == 3


def test_raster_order_gives_the_tables_of_the_wavefront(prior: IntegerInference):
    indices = grids()
    known, full = torch.from_numpy(indices), full_logits(prior, indices)
    sums = ContextSums(prior, 1, 3, 6, 9)
    for level in range(3):
        for row in range(6):
            for column in range(9):
                places = Positions.of(*np.array([[level], [row], [column]]))
                (logits,) = prior._logits(sums, places)
                torch.testing.assert_close(logits[0], full[level, row, column], rtol=0, atol=0)
                sums.add(places, known[:, level, row, column, None])


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


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None or sys.platform != "linux",
    reason="torch.compile needs a C++ compiler",
)
def test_compiled_inference_is_the_same():
    code = (
        "import numpy as np, torch\nfrom vqtok.config import EntropyConfig\n"
        "from vqtok.priors import IntegerInference, IntegerPrior\n"
        f"torch.manual_seed(0); config = {CONFIG!r}\n"
        "prior = IntegerInference(config, IntegerPrior(config).integers())\n"
        "indices = np.random.default_rng(0).integers(0, 16, (2, 3, 4, 5)); streams = "
        "prior.encode(indices)\nprior.table = torch.compile(prior.table, dynamic=True); "
        "prior.interval = torch.compile(prior.interval, dynamic=True)\n"
        "prior._matmul = torch.compile(prior._matmul, dynamic=True)\n"
        "assert prior.encode(indices) == streams; assert (prior.decode(streams, 3, 4, 5) == "
        "indices).all(); print('same')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


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
