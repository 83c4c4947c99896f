from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqtok import quantizers
from vqtok.config import TokenizerConfig
from vqtok.quantizers import codebook as module
from vqtok.quantizers.codebook import (
    AveragedCodebook,
    kmeans,
    nearest,
    sample_vectors,
    sums_by_code,
)

BOTH = pytest.mark.parametrize("kind", ["vq", "ema"])


def make(
    kind: str, size: int = 8, dim: int = 2, normalize: bool = False, **settings: float
) -> AveragedCodebook:
    config = TokenizerConfig(
        quantizer=kind,
        codebook_size=size,
        code_dim=dim,
        normalize=normalize,
        **settings,  # type: ignore[arg-type]
    )
    quantizer = quantizers.build_quantizer(config)
    assert isinstance(quantizer, AveragedCodebook)
    return quantizer


@torch.no_grad()
def place(quantizer: AveragedCodebook, entries: Tensor) -> None:
    """Sets the codebook as `initialize` would, were these its means."""
    quantizer.codebook.copy_(entries)
    quantizer.average.sums.copy_(entries)
    quantizer.average.initialized.fill_(True)


def as_grid(vectors: Tensor) -> Tensor:
    """(N, D) -> (1, D, 1, N)."""
    return vectors.T[None, :, None]


def circle(size: int, radius: float = 1.0) -> Tensor:
    """`size` points (size, 2), far from each other."""
    angles = torch.arange(size) * (2 * torch.pi / size)
    return radius * torch.stack([angles.cos(), angles.sin()], 1)


def step(quantizer: AveragedCodebook, vectors: Tensor) -> int:
    quantizer.train()
    quantizer(as_grid(vectors))
    return int(quantizer.update_codebook())


# Search


@pytest.mark.parametrize("size", [2, 7, 300])
@pytest.mark.parametrize("chunk", [1, 64, 1000, 2**22])
def test_nearest_is_brute_force_and_ties_go_to_the_lower_index(
    size: int, chunk: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "CHUNK", chunk)
    draws = torch.Generator().manual_seed(size)
    # small integers: exact in float32, with many ties
    codebook = torch.randint(-3, 4, (size, 3), generator=draws).float()
    vectors = torch.randint(-4, 5, (97, 3), generator=draws).float()
    distances = (vectors[:, None] - codebook[None]).square().sum(-1)  # (N, K)
    expected = torch.tensor([row.index(min(row)) for row in distances.tolist()])
    assert torch.equal(nearest(vectors, codebook), expected)


@pytest.mark.parametrize(("size", "dim"), [(512, 64), (1024, 32), (1000, 8)])
def test_nearest_is_the_plain_form(size: int, dim: int):
    draws = torch.Generator().manual_seed(size + dim)
    codebook, vectors = (
        torch.randn(size, dim, generator=draws),
        torch.randn(3001, dim, generator=draws),
    )
    two = torch.cdist(vectors.double(), codebook.double()).topk(2, dim=1, largest=False)
    decided = two.values[:, 1] - two.values[:, 0] > 1e-5  # what rounding cannot turn around
    assert decided.float().mean() > 0.999
    plain = torch.addmm(codebook.square().sum(1), vectors, codebook.T, beta=-1, alpha=2).argmax(1)
    assert torch.equal(nearest(vectors, codebook)[decided], plain[decided])
    assert torch.equal(plain[decided], two.indices[decided, 0])


@BOTH
def test_a_step_in_chunks_is_that_of_autograd(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ELEMENTS", 4 * 100)  # 14 chunks, the last of 37 vectors
    torch.manual_seed(0)
    quantizer, z = (
        make(kind, size=16, dim=4, beta=0.3).train(),
        torch.randn(1, 4, 1, 1337, requires_grad=True),
    )
    weight = torch.randn(1, 4, 1, 1337)
    quantized = quantizer(z)
    (quantized.loss * 3 + (quantized.vectors * weight).sum()).backward()
    flat = z.detach()[0, :, 0].T.clone().requires_grad_()  # (N, D)
    entries = quantizer.codebook.detach().clone().requires_grad_()
    chosen = entries[torch.cdist(flat.detach(), entries.detach()).argmin(1)]
    loss = 0.3 * F.mse_loss(flat, chosen.detach()) + (
        F.mse_loss(chosen, flat.detach()) if kind == "vq" else 0
    )
    (loss * 3 + ((flat + (chosen - flat).detach()) * weight[0, :, 0].T).sum()).backward()
    torch.testing.assert_close(quantized.loss, loss)
    assert z.grad is not None
    torch.testing.assert_close(z.grad[0, :, 0].T, flat.grad)
    if kind == "vq":
        torch.testing.assert_close(quantizer.codebook.grad, entries.grad)
    seen = quantizer._last_batch
    assert seen is not None
    for found, expected in zip(
        seen[1][3:], sums_by_code(flat.detach(), quantized.indices.flatten(), 16), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_nearest_of_65536_codes():
    draws = torch.Generator().manual_seed(0)
    codebook = F.normalize(torch.randn(65536, 8, generator=draws), dim=1)
    vectors = F.normalize(torch.randn(150, 8, generator=draws), dim=1)  # three chunks
    distances = torch.cdist(
        vectors.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist"
    )
    indices = nearest(vectors, codebook)
    chosen = distances.gather(1, indices[:, None])[:, 0]
    assert (chosen - distances.amin(1)).max() < 1e-6
    assert indices.unique().numel() > 140
    assert indices.max() > 60000


WAYS = pytest.mark.parametrize("onednn", [True, False])


def choose_product(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    if not onednn:
        monkeypatch.setattr(module, "has_onednn", lambda _: False)
    elif not module.has_onednn(torch.empty(0)):
        pytest.skip("no oneDNN here")


@WAYS
def test_nearest_holds_few_scores_at_a_time(monkeypatch: pytest.MonkeyPatch, onednn: bool):
    choose_product(monkeypatch, onednn)
    sizes, plain = [], module._largest
    monkeypatch.setattr(
        module,
        "_largest",
        lambda *a: sizes.append(a[0].untyped_storage().nbytes() // 4) or plain(*a),
    )
    nearest(torch.randn(1000, 4), torch.randn(16384, 4))
    assert max(sizes) <= module.CHUNK
    assert sum(sizes) >= 1000 * 16384


@pytest.mark.parametrize("dot", [False, True])
def test_both_products_choose_alike(monkeypatch: pytest.MonkeyPatch, dot: bool):
    choose_product(monkeypatch, True)
    draws = torch.Generator().manual_seed(0)
    for N, K, D in [(700, 1024, 8), (300, 50, 64), (70, 4096, 33), (9, 3, 1), (0, 16, 4)]:
        vectors = torch.randn(N, 2 * D, generator=draws)[:, ::2]
        entries = torch.randn(K, D, generator=draws)
        found = []
        for onednn in (True, False):
            with monkeypatch.context() as patch:
                choose_product(patch, onednn)
                indices = torch.empty(N, dtype=torch.int64)
                module.NearestSearch(entries, dot).write(vectors, indices)
                found.append(indices)
        assert torch.equal(*found)


def test_a_vector_alone_is_scored_as_among_others(monkeypatch: pytest.MonkeyPatch):
    choose_product(monkeypatch, True)
    vectors, entries = torch.randn(20, 24), torch.randn(300, 24)
    search = module.NearestSearch(entries)
    together = search._by_onednn(vectors)
    for count in (1, 2, 3, 19):
        assert torch.equal(search._by_onednn(vectors[:count]), together[:count])


def test_a_grid_of_entries_comes_back_as_it_was():
    quantizer = make("vq", size=6, dim=3)
    grid = torch.randint(6, (2, 1, 3, 5))
    z = quantizer.codebook.detach()[grid[:, 0]].permute(0, 3, 1, 2)  # (2, 3, 3, 5)
    quantized = quantizer(z)
    assert quantized.indices.dtype == torch.int64
    assert torch.equal(quantized.indices, grid)
    assert torch.equal(quantizer.lookup(grid), z)
    assert torch.equal(quantized.vectors, z)
    assert quantized.loss.detach() == 0


@BOTH
@pytest.mark.parametrize("normalize", [True, False])
def test_lookup_gives_what_forward_gave(kind: str, normalize: bool):
    quantizer = make(kind, size=16, dim=4, normalize=normalize)
    quantized = quantizer(torch.randn(3, 4, 2, 5))
    torch.testing.assert_close(quantizer.lookup(quantized.indices), quantized.vectors)


# Gradients


@BOTH
def test_the_gradient_passes_straight_through(kind: str):
    quantizer = make(kind, dim=4)
    z, weights = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randn(2, 4, 3, 5)
    (quantizer(z).vectors * weights).sum().backward()
    assert z.grad is not None
    assert torch.equal(z.grad, weights)
    assert all(p.grad is None or not p.grad.any() for p in quantizer.parameters())


def test_with_normalized_codes_the_gradient_is_that_of_the_normalized_vectors():
    quantizer = make("ema", dim=4, normalize=True)
    z, weights = torch.randn(2, 4, 3, 5, requires_grad=True), torch.randn(2, 4, 3, 5)
    (quantizer(z).vectors * weights).sum().backward()
    expected = torch.autograd.grad((F.normalize(z, dim=1) * weights).sum(), z)[0]
    torch.testing.assert_close(z.grad, expected)


@BOTH
@pytest.mark.parametrize("beta", [0.1, 0.25, 2.0])
def test_beta_weighs_the_encoders_term_and_not_the_codebooks(kind: str, beta: float):
    quantizer = make(kind, size=4, beta=beta)
    place(quantizer, circle(4))
    vectors = torch.tensor([[0.9, 0.2], [0.7, -0.1], [0.1, 1.3], [-2.0, 0.3], [0.2, -0.4]])
    chosen = torch.tensor([0, 0, 1, 2, 3])
    z = as_grid(vectors).requires_grad_()
    quantized = quantizer(z)
    quantized.loss.backward()
    assert torch.equal(quantized.indices.flatten(), chosen)
    differences = vectors - circle(4)[chosen]  # (5, 2)
    error = differences.square().mean()
    assert z.grad is not None
    torch.testing.assert_close(z.grad, as_grid(beta * 2 * differences / differences.numel()))
    torch.testing.assert_close(quantized.loss.detach(), error * (beta + (kind == "vq")))
    if kind == "vq":
        assert quantizer.codebook.grad is not None
        expected = torch.zeros(4, 2).index_add_(0, chosen, -2 * differences / differences.numel())
        torch.testing.assert_close(quantizer.codebook.grad, expected)
    else:
        assert not quantizer.codebook.requires_grad


# Averages


def test_ema_step_by_hand():
    quantizer = make("ema", size=3, decay=0.9, restart=0.0)
    place(quantizer, torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    assert step(quantizer, torch.tensor([[1.0, 0.0], [2.0, 0.0], [10.0, 2.0], [8.0, 0.0]])) == 0
    # Four vectors on three codes: each counts 3/4.
    # Code 0 has two of sum (3, 0), code 1 two of sum (18, 2), code 2 none.
    torch.testing.assert_close(quantizer.average.counts, torch.tensor([1.05, 1.05, 0.9]))
    expected = torch.tensor([[0.225 / 1.05, 0.0], [10.35 / 1.05, 0.15 / 1.05], [0.0, 10.0]])
    torch.testing.assert_close(quantizer.codebook, expected)


def test_ema_codebook_ends_at_the_means_of_its_vectors():
    quantizer = make("ema", size=4, decay=0.8)
    place(quantizer, circle(4))
    vectors = circle(4, 1.5).repeat(10, 1) + 0.1 * torch.randn(40, 2)
    for _ in range(100):
        step(quantizer, vectors)
    torch.testing.assert_close(quantizer.codebook, vectors.reshape(10, 4, 2).mean(0))


@pytest.mark.parametrize(("decay", "steps"), [(0.0, 1), (0.5, 40)])
def test_a_code_that_nothing_chooses_stays_where_it_is(decay: float, steps: int):
    quantizer = make("ema", size=4, decay=decay, restart=0.0)
    place(quantizer, circle(4))
    for _ in range(steps):
        assert step(quantizer, circle(4)[:2]) == 0
    torch.testing.assert_close(quantizer.codebook, circle(4))


def test_the_gradient_codebook_follows_its_optimizer_alone():
    quantizer = make("vq")
    before = quantizer.codebook.detach().clone()
    assert step(quantizer, torch.randn(64, 2)) == 0
    assert torch.equal(quantizer.codebook, before)


def test_eval_leaves_no_trace():
    quantizer = make("ema").eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(1, 2, 3, 4))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    with pytest.raises(AssertionError):
        quantizer.update_codebook()


def test_sums_by_code_are_a_loop():
    vectors, indices = torch.randn(50, 3), torch.randint(5, (50,))
    counts, sums = sums_by_code(vectors, indices, 7)
    for code in range(7):
        assert counts[code] == (indices == code).sum()
        torch.testing.assert_close(sums[code], vectors[indices == code].sum(0))


# Start


def test_draw_repeats_nothing_while_there_is_enough():
    vectors = torch.arange(10.0)[:, None]
    assert torch.equal(sample_vectors(vectors, 10).sort(0).values, vectors)
    assert sample_vectors(vectors, 25).shape == (25, 1)


def test_kmeans_ends_where_centers_are_means_and_no_vector_would_move():
    torch.manual_seed(0)
    vectors = torch.randn(500, 3)
    centers = kmeans(vectors, 12, rounds=100)
    indices = nearest(vectors, centers)
    counts, sums = sums_by_code(vectors, indices, 12)
    assert counts.min() > 0
    torch.testing.assert_close(centers, sums / counts[:, None])
    start = sample_vectors(vectors, 12)
    assert F.mse_loss(centers[indices], vectors) < 0.8 * F.mse_loss(
        start[nearest(vectors, start)], vectors
    )


def test_kmeans_draws_empty_centers_anew():
    # a random start is likely to be 5 times the same point
    vectors = torch.cat([torch.ones(99, 2), -torch.ones(1, 2)])
    torch.manual_seed(0)
    assert kmeans(vectors, 5, rounds=200).unique(dim=0).shape[0] == 2
    assert torch.isfinite(kmeans(vectors[:3], 5)).all()


@BOTH
@pytest.mark.parametrize("normalize", [True, False])
def test_initialize_puts_every_code_to_use(kind: str, normalize: bool):
    torch.manual_seed(0)
    quantizer = make(kind, size=32, dim=4, normalize=normalize)
    vectors = 5 + torch.randn(2000, 4)  # far from the codebook's random start
    assert quantizer.needs_init()
    quantizer.initialize(vectors)
    assert not quantizer.needs_init()
    assert quantizer(as_grid(vectors)).indices.unique().numel() == 32
    torch.testing.assert_close(quantizer.average.sums, quantizer.codebook.detach())
    assert torch.equal(quantizer.average.counts, torch.ones(32))


@BOTH
def test_a_saved_codebook_is_not_initialized_again(kind: str, tmp_path: Path):
    first, second = make(kind, size=8, decay=0.5), make(kind, size=8, decay=0.5)
    first.initialize(torch.randn(200, 2))
    for seed in range(3):
        torch.manual_seed(seed)
        step(first, torch.randn(100, 2))
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert not second.needs_init()
    for quantizer in (first, second):
        torch.manual_seed(3)
        step(quantizer, 0.1 * torch.randn(100, 2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


# Dead codes


@BOTH
@pytest.mark.parametrize("batch", [400, 1600])
def test_only_codes_below_a_part_of_the_mean_use_move(kind: str, batch: int):
    quantizer = make(kind, size=4, decay=0.0, restart=0.1)
    place(quantizer, circle(4))
    # In units of the mean use: 2, 1.75, 0.2 and 0.05.
    # Only the last is below 0.1, whatever the size of the batch.
    uses = [batch // 2, batch * 7 // 16, batch // 20, batch // 80]
    assert sum(uses) == batch
    vectors = circle(4).repeat_interleave(torch.tensor(uses), 0)
    vectors += 1e-3 * torch.randn_like(vectors)
    assert step(quantizer, vectors) == 1
    now = quantizer.codebook.detach()
    if kind == "vq":
        assert torch.equal(now[:3], circle(4)[:3])
    else:
        means = torch.stack([part.mean(0) for part in vectors.split(uses)])
        torch.testing.assert_close(now[:3], means[:3])
    assert (vectors == now[3]).all(1).any()  # onto a vector of the batch
    assert quantizer.average.counts[3] == 1
    assert torch.equal(quantizer.average.sums[3], now[3])


@BOTH
def test_an_unused_code_dies_when_its_average_has_faded(kind: str):
    quantizer = make(kind, size=8, decay=0.5, restart=0.1)
    place(quantizer, circle(8))
    revived = [step(quantizer, circle(8)[:6].repeat(10, 1)) for _ in range(6)]
    # 0.5^3 is above 0.1, 0.5^4 below; then they have their time again
    assert revived == [0, 0, 0, 2, 0, 0]


@BOTH
def test_restart_zero_never_moves_a_code(kind: str):
    quantizer = make(kind, size=8, decay=0.0, restart=0.0)
    place(quantizer, circle(8))
    assert [step(quantizer, circle(8)[:3]) for _ in range(3)] == [0, 0, 0]
    torch.testing.assert_close(quantizer.codebook.detach(), circle(8))


@BOTH
def test_at_most_a_quarter_of_the_vectors_revive_codes(kind: str):
    quantizer = make(kind, size=64, decay=0.0, restart=0.5)
    place(quantizer, circle(64))
    vectors = circle(64)[:1] + 1e-3 * torch.randn(12, 2)
    assert step(quantizer, vectors) == 3
    moved = (quantizer.codebook.detach() - circle(64)).norm(dim=1) > 1e-2
    assert moved.nonzero().flatten().tolist() == [1, 2, 3]


# The sphere, and precision


@BOTH
def test_normalized_codes_lie_on_the_sphere(kind: str):
    torch.manual_seed(0)
    quantizer = make(kind, size=32, dim=8, normalize=True, decay=0.0)
    everywhere = torch.arange(32).reshape(1, 1, 4, 8)
    optimizer = torch.optim.SGD(list(quantizer.parameters()) or [torch.zeros(1)], lr=10.0)

    def check(vectors: Tensor) -> None:
        torch.testing.assert_close(
            vectors.norm(dim=1), torch.ones(vectors.shape[0], *vectors.shape[2:])
        )

    check(quantizer.lookup(everywhere))
    quantizer.initialize(100 * torch.randn(500, 8))
    check(quantizer.lookup(everywhere))
    for _ in range(3):
        quantized = quantizer(100 * torch.randn(2, 8, 3, 5))
        if kind == "vq":
            quantized.loss.backward()
            optimizer.step()
        assert quantizer.update_codebook() > 0
        check(quantized.vectors)
        if kind == "ema":
            check(quantizer.codebook)  # as it is released
        check(quantizer.lookup(everywhere))


@BOTH
def test_the_length_of_a_vector_means_nothing_on_the_sphere(kind: str):
    quantizer, z = make(kind, size=64, dim=4, normalize=True), torch.randn(2, 4, 5, 6)
    lengths = torch.rand(2, 1, 5, 6) * 10 + 0.1
    assert torch.equal(quantizer(z).indices, quantizer(z * lengths).indices)


@BOTH
@pytest.mark.parametrize("normalize", [True, False])
def test_inside_bf16_autocast_the_quantizer_computes_in_fp32(kind: str, normalize: bool):
    torch.manual_seed(0)
    quantizer, z = make(kind, size=512, dim=8, normalize=normalize), torch.randn(4, 8, 16, 16)
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        inside, of_bf16 = quantizer(z), quantizer(z.bfloat16())
        flat, entries = z.permute(0, 2, 3, 1).reshape(-1, 8), quantizer.codebook.detach()
        if normalize:
            flat, entries = F.normalize(flat, dim=1), F.normalize(entries, dim=1)
        naive = (2 * flat @ entries.T - entries.square().sum(1)).argmax(1)
    assert not torch.equal(naive, plain.indices.flatten())  # so bf16 would have shown
    assert torch.equal(plain.indices.flatten(), nearest(flat, entries))
    assert torch.equal(inside.indices, plain.indices)
    assert torch.equal(inside.vectors, plain.vectors)
    assert torch.equal(inside.loss, plain.loss)
    assert of_bf16.vectors.dtype == torch.float32
    assert torch.equal(of_bf16.indices, quantizer(z.bfloat16().float()).indices)
