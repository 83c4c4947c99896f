"""`encode --effort`, `--goal` and `--target`: better codes of the same format."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import run
from PIL import Image

from vqtok import codec, codes, metrics, read_codes
from vqtok.codec.effort import EFFORTS, CodeSearch, Effort, _windows, beam_search, contrast
from vqtok.errors import UsageError


@pytest.fixture(scope="module")
def photo() -> codec.Model:
    return codec.load("photo")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (10, 12, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(base).resize((100, 80), Image.Resampling.BICUBIC))


def error(model: codec.Model, made: codes.Codes, pixels: np.ndarray) -> float:
    return float(np.square(model.decode(made).astype(float) - pixels).mean())


def test_a_beam_of_all_sums_finds_the_nearest() -> None:
    """Against all 8^3 sums; the nearest entry of each level in turn does worse."""
    generator = torch.Generator().manual_seed(0)
    codebooks = torch.randn(3, 8, 4, generator=generator)
    z = torch.randn(2, 4, 5, 3, generator=generator)
    sums = (
        codebooks[0][:, None, None] + codebooks[1][None, :, None] + codebooks[2][None, None]
    ).reshape(-1, 4)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 4)
    best = torch.cdist(rows, sums).amin(1)

    def distances(width: int) -> torch.Tensor:
        found = beam_search(codebooks, z, width).permute(0, 2, 3, 1).reshape(-1, 3)
        parts = [codebooks[level][found[:, level]] for level in range(3)]
        return (rows - torch.stack(parts).sum(0)).norm(dim=1)

    torch.testing.assert_close(distances(64), best)
    assert distances(1).mean() > distances(2).mean() > best.mean()


@pytest.mark.slow
def test_a_beam_of_one_is_the_quantizer(photo: codec.Model) -> None:
    z = photo.encoder(torch.rand(1, 3, 32, 48) * 2 - 1).detach()
    quantizer = photo.quantizer
    wide = CodeSearch(quantizer, 4, Effort(1, 0)).nearest(z)
    assert torch.equal(beam_search(quantizer.codebooks()[:4], z, 1), wide)


def test_windows_cover_a_grid_once() -> None:
    seen = np.zeros((70, 33), int)
    for window in _windows(70, 33, 32):
        seen[window.cells] += 1
        around = np.zeros((70, 33), int)[window.around]
        around[window.inside] += 1
        assert around.sum() == seen[window.cells].size
    assert (seen == 1).all()


def test_contrast_is_the_deviation_of_the_surroundings() -> None:
    flat = torch.zeros(1, 1, 12, 12)
    assert contrast(flat).max() == pytest.approx(0.01)
    board = torch.ones(1, 1, 12, 12)
    board[..., ::2, ::2] = -1
    board[..., 1::2, 1::2] = -1
    assert contrast(board)[..., 4:-4, 4:-4].mean() == pytest.approx(1.0, abs=0.05)


@pytest.mark.slow
def test_effort_pays(photo: codec.Model, pixels: np.ndarray) -> None:
    plain = photo.encode(pixels, levels=2)
    wide = photo.encode(pixels, levels=2, effort=3)
    assert not np.array_equal(wide.indices, plain.indices)
    deep = photo.encode(pixels, levels=2, effort=4, goal="psnr")
    assert plain.shape == wide.shape == deep.shape
    assert error(photo, deep, pixels) < 0.97 * error(photo, plain, pixels)
    again = photo.encode(pixels, levels=2, effort=4, goal="psnr")
    assert np.array_equal(again.indices, deep.indices)
    looks = photo.encode(pixels, levels=2, effort=4)
    assert not np.array_equal(looks.indices, deep.indices)


@pytest.mark.slow
def test_effort_after_other_work(pixels: np.ndarray) -> None:
    """Weights that inference has loaded pass gradients too."""
    model = codec.load("photo")
    model.decode(model.encode(pixels[:32, :32]))
    model.encode(pixels[:32, :32], levels=1, effort=4)


def test_costs_are_what_indices_take(photo: codec.Model, pixels: np.ndarray) -> None:
    """All K of each place: those of the chosen are the bits of a stream, and all sum to 1."""
    assert photo.entropy_coder is not None
    prior = photo.entropy_coder.prior
    indices = photo.encode(pixels, levels=2).indices.astype(np.int64)
    h, w = indices.shape[2:]
    step = np.concatenate([np.full((1, h * w), 1), np.indices((h, w)).reshape(2, -1)])
    costs = prior.costs(prior.context(indices).seen(step), 1)
    np.testing.assert_allclose(np.exp2(-costs).sum(1), 1, atol=1e-4)
    chosen = np.take_along_axis(costs, indices[0, 1].reshape(-1, 1), 1)[:, 0]
    np.testing.assert_allclose(chosen, prior.bits(indices)[0, 1].ravel(), atol=0.1)


@pytest.mark.parametrize("levels", [1, 3])
def test_a_compact_file_takes_fewer_bytes_at_the_same_error(
    photo: codec.Model, pixels: np.ndarray, levels: int
) -> None:
    assert photo.entropy_coder is not None
    plain = photo.encode(pixels, levels=levels)
    found = photo.encode(pixels, levels=levels, effort=2, compact=True)
    bits = [photo.entropy_coder.prior.bits(each.indices).sum() for each in (plain, found)]
    assert bits[1] < 0.97 * bits[0]
    assert error(photo, found, pixels) < 1.1 * error(photo, plain, pixels)


def test_windows_are_priced_as_a_whole_is(photo: codec.Model) -> None:
    """A window's places see those around it; the first pass of the first window knows no other."""
    assert photo.entropy_coder is not None
    torch.manual_seed(0)
    z = photo.encoder(torch.rand(2, 3, 64, 80) * 2 - 1).detach()
    search = CodeSearch(photo.quantizer, 2, Effort(2, 0), "looks", photo.entropy_coder.prior)
    assert search.priced is not None
    known = search.nearest(z)
    whole, _ = search.priced.choose(z, known, (slice(0, 4), slice(0, 5)), 0.1)
    part, bits = search.priced.choose(z[:, :, 1:3, 2:5], known, (slice(1, 3), slice(2, 5)), 0.1)
    assert torch.equal(part, whole[:, :, 1:3, 2:5])
    alone, _ = search.priced.choose(z[1:], known[1:], (slice(0, 4), slice(0, 5)), 0.1)
    assert torch.equal(alone, whole[1:])
    assert bits.shape == (2,)


def test_wrong_efforts_and_goals(photo: codec.Model, pixels: np.ndarray) -> None:
    for effort, goal in ((len(EFFORTS), "looks"), (-1, "looks"), (0, "bytes")):
        with pytest.raises(UsageError):
            photo.encode(pixels, effort=effort, goal=goal)


# The command


@pytest.mark.usefixtures("folder")
def test_the_command_minds_the_bytes_of_compact_files(
    photo: codec.Model, pixels: np.ndarray
) -> None:
    run("encode", "a.png", "--effort", "1", "--levels", "2", "--compact")
    expected = photo.encode(pixels, levels=2, effort=1, compact=True)
    assert np.array_equal(read_codes("a.npz").indices, expected.indices)
    assert not np.array_equal(expected.indices, photo.encode(pixels, levels=2, effort=1).indices)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pixels).save("a.png")
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_the_command_searches(photo: codec.Model, pixels: np.ndarray) -> None:
    result = run("encode", "a.png", "--effort", "3", "--levels", "2", "--json")
    assert json.loads(result.stdout)["effort"] == 3
    found = read_codes("a.npz")
    assert np.array_equal(found.indices, photo.encode(pixels, levels=2, effort=3).indices)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_rate_decides_the_levels_that_are_searched_for(
    photo: codec.Model, pixels: np.ndarray
) -> None:
    result = run("encode", "a.png", "--effort", "2", "--max-bytes", "800", "--json")
    facts = json.loads(result.stdout)
    assert facts["bytes"] <= 800
    expected = photo.encode(pixels, levels=facts["levels"], effort=2)
    assert np.array_equal(read_codes("a.npz").indices, expected.indices)


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_target_takes_as_few_levels_as_reach_it(photo: codec.Model, pixels: np.ndarray) -> None:
    whole = photo.encode(pixels)
    reached = [metrics.psnr(photo.decode(whole, levels=n), pixels) for n in range(1, 9)]
    wanted = reached[3] - 0.001
    expected = next(n for n, value in enumerate(reached, 1) if value >= wanted)
    facts = json.loads(run("encode", "a.png", "--target", f"psnr:{wanted}", "--json").stdout)
    assert facts["levels"] == expected
    # what cannot be reached takes all levels, and says so
    result = run("encode", "a.png", "-f", "--target", "psnr:99", "--json")
    assert json.loads(result.stdout)["levels"] == 8
    assert "psnr:99" in " ".join(json.loads(result.stdout)["notes"])


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--target", "psnr"), "write it like psnr:30"),
        (("--target", "dssim:3"), "write it like psnr:30"),
        (("--target", "lpips:.2"), "--lpips FILE"),
        (("--target", "psnr:30", "--levels", "2"), "leave one of them out"),
        (("--lpips", "x.safetensors"), "--target lpips:X"),
        (("--goal", "size"), "choose looks or psnr"),
        (("--goal", "psnr"), "add --effort 3"),  # it did nothing
        (("--effort", "3", "--bulk", "-o", "out"), "--effort does not go with codes shards"),
    ],
)
def test_options_that_make_no_sense(flags: tuple[str, ...], words: str) -> None:
    result = run("encode", "a.png", *flags)
    assert result.exit_code == 2
    assert words in result.stderr, result.stderr
    assert not Path("a.npz").exists()
