"""Several levels of every quantizer: each starts at the scale of what is left, the first n levels
decode, gradients arrive.
"""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from vqtok import quantizers
from vqtok.config import LEARNED, TokenizerConfig
from vqtok.quantizers import ResidualQuantizer
from vqtok.quantizers.codebook import AveragedCodebook

EVERY = pytest.mark.parametrize("kind", LEARNED)


def make(
    kind: str, levels: int = 4, size: int = 64, dim: int = 6, dropout: float = 0.0
) -> ResidualQuantizer:
    config = TokenizerConfig(
        quantizer=kind,
        codebook_size=size,
        code_dim=dim,
        levels=levels,
        normalize=False,
        level_dropout=dropout,
    )
    quantizer = quantizers.build_quantizer(config)
    assert isinstance(quantizer, ResidualQuantizer)
    return quantizer


def started(kind: str, levels: int = 4, vectors: Tensor | None = None) -> ResidualQuantizer:
    torch.manual_seed(0)
    quantizer = make(kind, levels)
    quantizer.initialize(gaussian() if vectors is None else vectors)
    return quantizer


def gaussian(count: int = 5000, scale: float = 1.0) -> Tensor:
    """(N, 6), correlated and off center."""
    draws = torch.Generator().manual_seed(1)
    mix = torch.randn(6, 6, generator=draws)  # first: it must not depend on count
    return scale * (2 + torch.randn(count, 6, generator=draws) @ mix)


def as_grid(vectors: Tensor) -> Tensor:
    """(N, D) -> (1, D, 1, N)."""
    return vectors.T[None, :, None]


@EVERY
@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_each_level_starts_in_use_and_brings_the_vectors_nearer(kind: str, scale: float):
    vectors = gaussian(scale=scale)
    quantizer = started(kind, vectors=vectors).eval()
    assert not quantizer.needs_init()
    with torch.no_grad():
        indices = quantizer(as_grid(vectors)).indices
        back = [quantizer.lookup(indices[:, :n])[0, :, 0].T for n in range(1, 5)]
    errors = [float((part - vectors).square().mean() / vectors.var(0).mean()) for part in back]
    assert errors[0] < 0.6
    assert all(after < 0.75 * before for before, after in pairwise(errors)), errors
    assert all(indices[:, level].unique().numel() > 0.9 * 64 for level in range(4))


@EVERY
def test_lookup_of_all_levels_is_what_forward_gave(kind: str):
    quantizer = started(kind).eval()
    with torch.no_grad():
        quantizer.depth.normal_()
    z = as_grid(gaussian(60)).reshape(1, 6, 6, 10)
    quantized = quantizer(z)
    assert quantized.indices.shape == (1, 4, 6, 10)
    torch.testing.assert_close(quantizer.lookup(quantized.indices), quantized.vectors)


@EVERY
def test_the_levels_are_those_of_the_base_quantizer_on_what_is_left(kind: str):
    quantizer = started(kind, levels=3).eval()
    residual = as_grid(gaussian(50))
    indices = quantizer(residual).indices
    for level in range(3):
        part = quantizer._level(level)(residual)
        assert torch.equal(part.indices, indices[:, level : level + 1])
        residual = residual - part.vectors


@EVERY
def test_each_level_commits_z_once(kind: str):
    """The gradient of the loss is that of the mean over the levels of beta |z - sum of the
    levels up to this one|^2.
    """
    if kind not in ("ema", "vq", "simvq"):
        return  # they have no commitment of their own
    quantizer, z = started(kind, levels=3).train(), as_grid(gaussian(200)).requires_grad_()
    quantized = quantizer(z)
    (gradient,) = torch.autograd.grad(quantized.loss, z)
    totals = [quantizer.lookup(quantized.indices[:, :n]).detach() for n in (1, 2, 3)]
    totals = [total - quantizer.depth[n][:, None, None].detach() for n, total in enumerate(totals)]
    expected = 0.25 * torch.stack([(z - total).square().mean() for total in totals]).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, z)[0])
    if kind == "ema":
        torch.testing.assert_close(quantized.loss, expected)


@EVERY
def test_gradients_reach_z_and_all_that_learns_by_them(kind: str):
    quantizer = started(kind, levels=3).train()
    z = as_grid(gaussian(200)).requires_grad_()
    quantized = quantizer(z)
    (gradient,) = torch.autograd.grad(quantized.vectors.sum(), z, retain_graph=True)
    if kind in ("ema", "vq", "simvq"):
        torch.testing.assert_close(gradient, torch.ones_like(z))
    else:  # through linear layers and tanh; the more levels, the nearer to all of it
        assert 0.3 < gradient.mean() < 1.2
    (quantized.loss + (quantized.vectors - z.detach()).square().mean()).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
    assert (z.grad.abs().amax(1) > 0).all()
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@EVERY
def test_training_brings_the_vectors_nearer_and_keeps_the_codes_alive(kind: str):
    quantizer = started(kind, levels=2).train()
    vectors = gaussian(1000)
    shift = torch.nn.Parameter(torch.zeros(6))
    optimizer = torch.optim.Adam([*quantizer.parameters(), shift], 1e-2)
    errors = []
    for step in range(30):
        torch.manual_seed(step)
        optimizer.zero_grad()
        quantized = quantizer(as_grid(vectors + shift))
        error = (quantized.vectors - as_grid(vectors)).square().mean()
        errors.append(float(error.detach()))
        (error + quantized.loss).backward()
        optimizer.step()
        quantizer.update_codebook()
    # k-means leaves little to do
    assert errors[-1] < errors[0] * (0.99 if kind in ("ema", "vq") else 0.85)
    quantizer.eval()
    with torch.no_grad():
        indices = quantizer(as_grid(vectors + shift)).indices
    assert all(indices[:, level].unique().numel() > 0.8 * 64 for level in range(2))


@EVERY
def test_a_saved_state_is_not_initialized_again(kind: str):
    first = started(kind)
    second = make(kind)
    assert second.needs_init()
    second.load_state_dict(first.state_dict())
    assert not second.needs_init()
    before = {name: value.clone() for name, value in second.state_dict().items()}
    second.initialize(gaussian(500, 3.0))  # asks each level, and each says that it has started
    assert all(torch.equal(value, before[name]) for name, value in second.state_dict().items())


@EVERY
def test_training_state_lies_in_modules_called_average(kind: str):
    quantizer = make(kind)
    names = [name for name in quantizer.state_dict() if ".average." in name]
    assert sum(name.endswith("average.initialized") for name in names) == 4
    release = {
        name: value for name, value in started(kind).state_dict().items() if name not in names
    }
    for module in list(quantizer.modules()):
        if "average" in dict(module.named_children()):
            del module.average
    quantizer.load_state_dict(release)
    quantizer.eval()
    expected = started(kind).eval()
    z = as_grid(gaussian(40))
    assert torch.equal(quantizer(z).indices, expected(z).indices)


def test_level_dropout_decodes_images_from_their_first_levels():
    quantizer = started("ema").train()
    quantizer.dropout = 1.0
    z = as_grid(gaussian(10)).repeat(200, 1, 1, 1)
    torch.manual_seed(0)
    quantized = quantizer(z)
    # (L, D, 1, N)
    each = torch.stack([quantizer.lookup(quantized.indices[:1, :n])[0] for n in range(1, 5)])
    depths = (quantized.vectors[:, None] - each[None]).abs().amax((2, 3, 4)).argmin(1)  # (B,)
    assert (quantized.vectors - each[depths]).abs().max() < 1e-4
    counts = torch.bincount(depths, minlength=4)
    assert (counts > 0).all()
    assert counts[0] > counts[3]  # log n is uniform
    assert torch.equal(quantizer.eval()(z).indices, quantized.indices)


@pytest.mark.parametrize("kind", ["vq", "ema"])
def test_a_step_keeps_one_set_of_vectors_for_all_levels(kind: str):
    quantizer = started(kind).train()
    z = as_grid(gaussian(3000)).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = quantizer(z)
    for level in quantizer.quantizers:
        assert isinstance(level, AveragedCodebook)
        assert level._last_batch is not None
        rest, chosen = level._last_batch
        for tensor in (rest.vectors, *sum(rest.taken, ()), *chosen):
            keep(tensor)
    vectors = z.numel() * 4
    # z, and the indices of four levels, of 8 bytes for the 24 of a vector
    assert sum(kept.values()) < 2.6 * vectors
    assert output.vectors.shape == z.shape


@pytest.mark.parametrize("dropout", [0.0, 0.8])
@pytest.mark.parametrize("kind", ["vq", "ema", "simvq"])
def test_levels_in_a_chain_are_those_one_after_another(
    kind: str, dropout: float, monkeypatch: pytest.MonkeyPatch
):
    found = []
    for chained in (True, False):
        if not chained:
            monkeypatch.setattr(ResidualQuantizer, "_is_chain", lambda *_: False)
        quantizer = started(kind).train()
        draws = torch.Generator().manual_seed(0)
        z = torch.randn(9, quantizer.depth.shape[1], 20, 17, generator=draws).requires_grad_()
        weight = torch.randn(z.shape, generator=draws)
        depths = torch.randint(1, 5, (9,), generator=draws) if dropout else None
        output = quantizer(z, depths)
        (3 * output.loss + (output.vectors * weight).sum()).backward()
        gradients = [z.grad, *(parameter.grad for parameter in quantizer.parameters())]
        with torch.no_grad():  # as an optimizer does, before dead codes move to what was left
            for parameter in quantizer.parameters():
                parameter.add_(0.1)
        for level in quantizer.quantizers:
            level.dead_code_threshold = 0.5  # type: ignore[assignment]
        rows = torch.randperm(9 * 20 * 17, generator=draws)[None].expand(4, -1)
        quantizer.update_codebook(rows)
        found.append((output, gradients, list(quantizer.state_dict().values())))
    (output, gradients, state), (expected, wanted, left) = found
    assert torch.equal(output.indices, expected.indices)
    torch.testing.assert_close(output.vectors, expected.vectors, rtol=0, atol=0)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-7, atol=0)
    torch.testing.assert_close(gradients, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, left, rtol=0, atol=0)
