"""Libraries that surprise, and vqtok right despite them: the table of docs/trust.md."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
import torch.nn.functional as F
from bulk_helpers import make_tar, png
from cli_helpers import ok
from conftest import TOKENIZER, image, make_model
from PIL import Image
from torch import Tensor

import vqtok
from vqtok import CodesDataset, codec, distributed, metrics, weights
from vqtok.config import EntropyConfig, PriorConfig, TokenizerConfig
from vqtok.config.registry import PRIORS
from vqtok.images import from_any
from vqtok.interop.diffusers import to_vqmodel
from vqtok.model_registry import ModelFolder
from vqtok.networks.vqvae import VQVAE
from vqtok.priors import IntegerPrior, build_prior

# safetensors 0.8.0 writes arrays that are not in C order with their values in the wrong places

BLOCK = np.arange(24, dtype=np.float32).reshape(4, 6)
LAYOUTS: dict[str, np.ndarray] = {
    "C order": BLOCK,
    "transposed": BLOCK.T,
    "Fortran": np.asfortranarray(BLOCK),
    "strided": BLOCK[::2, ::3],
    "reversed": BLOCK[::-1],
    "broadcast": np.broadcast_to(BLOCK[0], (3, 6)),
    "big-endian": BLOCK.astype(">f4"),
    "transposed, big-endian": BLOCK.astype(">f4").T,
    "channels last": BLOCK.reshape(1, 2, 3, 4).transpose(0, 3, 1, 2),
    "no axes": np.array(7, np.int64),
    "empty": BLOCK[:0].T,
}
META: dict[str, Any] = {"kind": "state", "config": {}, "record": {}}


def assert_same(found: dict[str, np.ndarray]) -> None:
    assert found.keys() == LAYOUTS.keys()
    for name, array in LAYOUTS.items():
        assert found[name].shape == array.shape, name
        assert np.array_equal(found[name], array), name


def test_weights_are_written_right_in_any_memory_layout(tmp_path: Path):
    assert_same(safetensors.numpy.load(weights.to_safetensors(LAYOUTS)))
    path = tmp_path / "a.safetensors"
    weights.save_weights(path, weights.Weights(dict(LAYOUTS), META))
    assert_same(weights.load_weights(path, "state").tensors)


def test_weights_reach_other_processes_right(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast_bytes", lambda make: make())
    found = distributed.broadcast_weights(lambda: weights.Weights(dict(LAYOUTS), META))
    assert found is not None
    assert_same(found.tensors)


def test_exported_weights_are_right_in_any_memory_layout(tmp_path: Path):
    settings = TokenizerConfig(
        network="classic",
        stages=(32, 32),
        width=32,
        downsample=2,
        fold=1,
        encoder_blocks=1,
        decoder_blocks=2,
        codebook_size=16,
        code_dim=4,
        z_channels=4,
        attention=(),
        groups=32,
        shortcut=False,
        normalize=False,
        quantizer="vq",
    )
    folder = make_model(tmp_path / "classic", settings, None)
    stored = weights.load_weights(folder / "tokenizer.safetensors", "tokenizer")
    turned = {name: np.asfortranarray(array) for name, array in stored.tensors.items()}
    assert any(not array.flags.c_contiguous for array in turned.values())
    model = ModelFolder("classic", folder)
    written = [
        to_vqmodel(weights.Weights(tensors, stored.meta), settings, model).contents
        for tensors in (stored.tensors, turned)
    ]
    assert written[0] == written[1]


def calls_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.slow
def test_one_function_writes_safetensors():
    package = Path(vqtok.__file__).parent
    writers = [
        (path.name, name)
        for path in package.rglob("*.py")
        for name in calls_in(path)
        if "safetensors" in name and name.split(".")[-1].startswith("save")
    ]
    assert writers == [("weights.py", "safetensors.numpy.save")]


# The gradient of codebook[indices] differs from run to run on a CPU with several threads (torch
# 2.13.0 and 2.14.1). Those of `embedding` and `index_select` do not.


def indexed_parameters(result: Tensor) -> list[str]:
    """Backward steps of x[tensor] on the way of a gradient to something learned."""
    found, seen, waiting = [], set(), [(result.grad_fn, ())]
    while waiting:
        node, through = waiting.pop()
        if node is None or (node, through) in seen:
            continue
        seen.add((node, through))
        name = type(node).__name__
        through = (*through, name) if name.startswith("IndexBackward") else through
        if name == "AccumulateGrad" and through:
            found.append(through[-1])
        waiting += [(parent, through[-1:]) for parent, _ in node.next_functions]
    return found


def test_a_lookup_by_indexing_is_found():
    table, indices = torch.nn.Parameter(torch.randn(8, 4)), torch.randint(8, (5,))
    assert indexed_parameters((2 * table)[indices].sum())
    assert indexed_parameters(torch.cat([table[indices], table[indices]]).sum())
    for lookup in (
        F.embedding(indices, table),
        table.index_select(0, indices),
        table[2:4, None],
        table[3],
        torch.randn(8, 4)[indices] * table[:5],
    ):
        assert not indexed_parameters(lookup.sum())


TOKENIZERS = {
    "vq": replace(TOKENIZER, quantizer="vq"),
    "ema": TOKENIZER,
    "levels": replace(TOKENIZER, quantizer="vq", levels=3, normalize=False, level_dropout=0.5),
    "simvq": replace(TOKENIZER, quantizer="simvq"),
    "fsq": replace(TOKENIZER, quantizer="fsq", codebook_size=64, normalize=False),
    "lfq": replace(TOKENIZER, quantizer="lfq", normalize=False),
    "heteroscedastic": replace(TOKENIZER, likelihood="heteroscedastic"),
}


@pytest.mark.parametrize("settings", TOKENIZERS.values(), ids=TOKENIZERS)
def test_no_tokenizer_looks_up_what_it_learns_by_indexing(settings: TokenizerConfig):
    network = VQVAE(settings).train()
    assert not indexed_parameters(network(torch.rand(2, 3, 16, 16)).loss)
    indices = torch.randint(settings.codebook_size, (2, settings.levels, 4, 4))
    looked_up = network.quantizer.lookup(indices).sum()
    assert not (looked_up.requires_grad and indexed_parameters(looked_up))


@pytest.mark.parametrize("architecture", sorted(PRIORS))
@pytest.mark.parametrize("levels", [1, 3])
def test_no_prior_looks_up_what_it_learns_by_indexing(architecture: str, levels: int):
    settings = PriorConfig(
        7, levels, width=8, layers=2, labels=("a", "b"), architecture=architecture, heads=2
    )
    prior = build_prior(settings.for_grid(4, 4)).train()
    loss = prior.loss(torch.randint(7, (2, levels, 4, 4)), torch.tensor([0, 1]))
    assert not indexed_parameters(loss)


@pytest.mark.parametrize("levels", [1, 3])
def test_the_integer_prior_looks_up_nothing_by_indexing(levels: int):
    settings = EntropyConfig(7, levels, embedding=4, width=8, blocks=1, rank=4)
    prior = IntegerPrior(settings).train()
    assert not indexed_parameters(prior.bits(torch.randint(7, (2, levels, 4, 4))).mean())


# uint16 of torch 2.13.0 cannot be added, compared or used as an index


def test_grids_are_what_torch_computes_with(tmp_path: Path):
    make_model(tmp_path / "models" / "wide", replace(TOKENIZER, codebook_size=512), None)
    make_tar("a.tar", {f"{i}.png": png(image(16, 16, seed=i)) for i in range(3)})
    ok("encode", "a.tar", "-o", "codes", "--bulk", "-m", "wide")
    data = CodesDataset("codes")
    assert data.codes(0).indices.dtype == np.uint16
    batch = torch.from_numpy(np.stack([indices for indices, _ in data[0:3]]))  # (B, L, h, w)
    assert batch.dtype == torch.int64
    logits = torch.zeros(3, 512, 1, 4, 4)
    assert float(F.cross_entropy(logits, batch)) == pytest.approx(np.log(512))
    assert F.embedding(batch, torch.zeros(512, 2)).shape == (3, 1, 4, 4, 2)
    assert (batch + 1 > batch).all()


def test_slices_of_a_data_set(toy: Path):
    make_tar("a.tar", {f"{i}.png": png(image(16, 16, seed=i)) for i in range(5)})
    ok("encode", "a.tar", "-o", "codes", "--bulk", "-m", "toy")
    data = CodesDataset("codes")
    names = [f"a.tar/{i}.png" for i in range(5)]
    for part in (slice(0, 3), slice(None), slice(-2, None), slice(None, None, -2), slice(9, 12)):
        assert [name for _, name in data[part]] == names[part]
    assert all((grid == data[i][0]).all() for i, (grid, _) in enumerate(data[:]))
    assert data[np.int64(2)][1] == data[torch.tensor(2)][1] == names[2]
    for wrong in ("0", 1.0, None, [0, 1], (0, 1)):
        with pytest.raises(vqtok.VqtokError, match="no number of an image"):
            data[wrong]  # type: ignore[call-overload]
        with pytest.raises(vqtok.VqtokError, match="no number of an image"):
            data.codes(wrong)  # type: ignore[arg-type]
    for past in (5, -6):
        with pytest.raises(IndexError):
            data[past]


# One member that is a string makes a whole .npz unreadable for MLX 0.32.4


def test_a_line_makes_a_file_of_numbers_alone(model: Path):
    """The line of docs/trust.md."""
    toy = codec.load("toy")
    codes = toy.encode(image(20, 30))
    vqtok.write_codes("photo.npz", codes)
    np.savez("indices.npz", indices=np.load("photo.npz")["indices"])
    with np.load("indices.npz") as found:
        assert list(found) == ["indices"]
        assert toy.codes(found["indices"], codes.sizes) == codes


# SSIM and MS-SSIM of other packages


def pair(H: int, W: int) -> tuple[np.ndarray, np.ndarray]:
    """Two images that differ by a pattern, of integers alone."""
    y, x, c = np.mgrid[:H, :W, :3]
    a = (y * y // 64 + x * y // 90 + 3 * x + 40 * c) % 200 + 20
    return a.astype(np.uint8), (a + (31 * y + 17 * x + 7 * c) % 23 - 11).astype(np.uint8)


# By scikit-image 0.26.0: structural_similarity(a, b, channel_axis=2, gaussian_weights=True,
# sigma=1.5, use_sample_covariance=False); piq 0.8.0 gives the same in float64, downsample=False
SSIM = {(192, 256): 0.8614652041987593, (48, 40): 0.7305617785206583}
# By piq 0.8.0: multi_scale_ssim in float64. Its weights add up to 1.0001, as the paper's do.
PIQ_MS_SSIM = 0.9914580809059309


@pytest.mark.parametrize(("size", "expected"), SSIM.items())
def test_ssim_is_that_of_scikit_image(size: tuple[int, int], expected: float):
    assert metrics.ssim(*pair(*size)) == pytest.approx(expected, rel=1e-13)


def test_ms_ssim_is_that_of_piq_but_for_the_sum_of_its_weights():
    assert sum(metrics.SCALE_WEIGHTS) == pytest.approx(1.0001)
    found = metrics.ms_ssim(*pair(192, 256))
    assert found**1.0001 == pytest.approx(PIQ_MS_SSIM, rel=1e-11)
    assert found == pytest.approx(PIQ_MS_SSIM, abs=1e-6)


# datasets and a codec of Pillow go back to the file of an image that was edited after it was opened


def test_an_edited_image_is_encoded_as_it_is_in_memory(tmp_path: Path, toy: Path):
    model = codec.load()
    path = tmp_path / "a.jpg"
    Image.fromarray(image(24, 32)).save(path)
    edited = Image.open(path)
    edited.paste((250, 0, 0), (0, 0, 12, 12))
    pixels = np.asarray(edited)
    assert (model.encode(edited).indices == model.encode(pixels).indices).all()
    assert (model.encode(edited).indices != model.encode(path).indices).any()
    small = Image.open(path)
    small.thumbnail((16, 16))
    assert model.encode_batch([small]).sizes == ((12, 16),)


# libvips reads YCbCr as RGB, and Pillow's arrays of LAB have a* and b* turned by 128


@pytest.mark.parametrize("mode", ["YCbCr", "LAB"])
def test_colors_of_other_modes_become_rgb_before_they_are_an_array(mode: str, tmp_path: Path):
    """A light gray that is slightly yellow, from a file and from memory."""
    other = Image.new(mode, (8, 6), {"YCbCr": (200, 120, 130), "LAB": (204, 127, 136)}[mode])
    path = tmp_path / "a.tif"
    other.save(path)
    for given in (path, other):
        pixels = from_any(given).pixels
        assert pixels.shape == (6, 8, 3)
        assert np.abs(pixels.astype(int) - (202, 201, 185)).max() <= 2


# Under one block of torch.autocast a weight that is changed in place goes on with its old values


def changes_in_blocks(source: str) -> list[str]:
    """Calls that change weights inside of a block that casts them."""
    return [
        ast.unparse(call.func)
        for block in ast.walk(ast.parse(source))
        if isinstance(block, ast.With)
        and any("autocast(" in ast.unparse(item) for item in block.items)
        for statement in block.body
        for call in ast.walk(statement)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).split(".")[-1]
        in ("backward", "step", "step_if", "after_step", "load_state_dict", "update", "copy_")
    ]


def test_no_weight_changes_while_autocast_keeps_its_copy():
    package = Path(vqtok.__file__).parent
    sources = [path.read_text() for path in package.glob("*/*.py")]
    sources = [source for source in sources if "autocast(" in source]
    assert len(sources) >= 5
    assert [found for source in sources for found in changes_in_blocks(source)] == []
    wrong = "with torch.autocast('cpu'):\n    loss.backward()\n    self.optimizer.step()"
    assert changes_in_blocks(wrong) == ["loss.backward", "self.optimizer.step"]
