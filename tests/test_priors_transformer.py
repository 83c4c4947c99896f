"""What is the transformer's own: rotary positions, its block beside one written in loops, its
cache, its way through the commands.
"""

import cmath
import math
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from cli_helpers import ok, small
from torch import Tensor

from vqtok import weights
from vqtok.config import PriorConfig
from vqtok.errors import UsageError
from vqtok.priors import Transformer
from vqtok.priors import transformer as blocks
from vqtok.priors import transformer as priors_transformer
from vqtok.priors.transformer import Block, attention
from vqtok.sampling import transformer as sampling_transformer

Module = TypeVar("Module", bound=torch.nn.Module)
CONFIG = PriorConfig(
    7,
    2,
    width=16,
    layers=2,
    dropout=0.0,
    labels=("cat", "dog"),
    architecture="transformer",
    heads=2,
)


def noisy(module: Module) -> Module:
    """With noise on every parameter, so that each of them matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


# Positions


def scores(q: Tensor, k: Tensor, asked: list[list[int]], carried: list[list[int]]) -> Tensor:
    """(T,) products of one query and one key (D,) at T pairs of places, as attention sees them."""
    turned = priors_transformer.angles(torch.tensor([asked, carried]).transpose(0, 1), len(q))[
        :, :, None
    ].double()  # (T, 2, 1, D/2)
    qkv = torch.stack([q, k, k]).expand(1, len(asked), 3, -1)[:, :, :, None]  # (1, T, 3, 1, D)
    q, k, _ = priors_transformer.rotate(qkv, turned.cos(), turned.sin())[0, :, :, 0].unbind(1)
    return (q * k).sum(-1)


def test_scores_depend_on_how_far_apart_rows_and_columns_are() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 16, dtype=torch.float64)
    # always two rows up, one column right
    same = scores(q, k, [[3, 4], [0, 0], [50, 9]], [[1, 5], [-2, 1], [48, 10]])
    torch.testing.assert_close(same, same[:1].expand(3))
    other = scores(q, k, [[3, 4], [3, 4], [3, 4], [3, 4]], [[1, 5], [2, 5], [1, 4], [5, 3]])
    assert len({round(float(score), 3) for score in other}) == 4
    swapped = scores(q, k, [[3, 4], [3, 4]], [[1, 4], [3, 2]])  # two rows are not two columns
    assert abs(float(swapped[0] - swapped[1])) > 0.01


def test_rows_turn_half_of_the_pairs_and_columns_the_others() -> None:
    frequencies = torch.tensor([1.0, 0.1])
    assert torch.equal(priors_transformer.angles(torch.tensor([3, 0]), 8)[2:], torch.zeros(2))
    torch.testing.assert_close(
        priors_transformer.angles(torch.tensor([3, 5]), 8),
        torch.cat([3 * frequencies, 5 * frequencies]),
    )


@pytest.mark.parametrize(("h", "w"), [(3, 4), (1, 5), (4, 1)])
def test_a_token_carries_the_index_before_the_one_it_asks_for(h: int, w: int) -> None:
    asked, carried = priors_transformer.token_positions(h, w)
    order = [(i, j) for i in range(h) for j in range(w)]
    assert list(map(tuple, asked.tolist())) == order
    assert list(map(tuple, carried.tolist())) == [(0, -1), *order[:-1]]


@pytest.mark.slow
def test_the_gradient_of_the_turn_is_the_turn_back() -> None:
    torch.manual_seed(0)
    turned = priors_transformer.angles(torch.randint(9, (5, 2, 2)), 8)[:, :, None].double()
    qkv = torch.randn(2, 5, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: priors_transformer.rotate(x, turned.cos(), turned.sin()), qkv
    )


def test_equal_indices_at_different_places_are_told_apart() -> None:
    torch.manual_seed(0)
    prior = noisy(Transformer(CONFIG))
    with torch.no_grad():
        features = prior(torch.full((1, 2, 4, 5), 3))[0, 0].flatten(0, 1)  # (20, K)
    assert float(torch.cdist(features, features).add(torch.eye(20)).min()) > 1e-4


# The block


def slow_norm(x: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    weight, bias = (p.detach().double().numpy() for p in (norm.weight, norm.bias))
    return (x - x.mean()) / math.sqrt(x.var() + 1e-5) * weight + bias


def slow_turn(head: np.ndarray, row: int, column: int) -> np.ndarray:
    """One head's query or key (D,), pair after pair as a complex number."""
    half, quarter = len(head) // 2, len(head) // 4
    turned = head.copy()
    for m in range(half):
        angle = (row if m < quarter else column) * 100.0 ** (-(m % quarter) / quarter)
        point = complex(head[m], head[m + half]) * cmath.exp(1j * angle)
        turned[m], turned[m + half] = point.real, point.imag
    return turned


def slow_block(block: Block, x: np.ndarray, w: int) -> np.ndarray:
    """(T, C) -> (T, C), with a loop over everything."""
    qkv, merge, up, down = (
        layer.weight.detach().double().numpy()
        for layer in (block.qkv, block.merge, block.up, block.down)
    )
    T, C = x.shape
    D = C // block.heads
    asked = [divmod(t, w) for t in range(T)]
    carried = [(0, -1), *asked[:-1]]
    projected = [np.split(qkv @ slow_norm(x[t], block.attention_norm), 3) for t in range(T)]
    result = x.copy()
    for t in range(T):
        attended = np.zeros(C)
        for head in range(block.heads):
            part = slice(head * D, (head + 1) * D)
            query = slow_turn(projected[t][0][part], *asked[t])
            score = np.array(
                [query @ slow_turn(projected[s][1][part], *carried[s]) for s in range(t + 1)]
            ) / math.sqrt(D)
            share = np.exp(score - score.max())
            attended[part] = sum(
                p * projected[s][2][part] for s, p in enumerate(share / share.sum())
            )
        result[t] += merge @ attended
        inner = up @ slow_norm(result[t], block.mlp_norm)
        result[t] += down @ np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in inner])
    return result


def test_a_block_is_what_loops_compute() -> None:
    torch.manual_seed(0)
    block = noisy(Block(CONFIG))
    x = torch.randn(1, 12, 16)
    with torch.no_grad():
        found = block(x, *priors_transformer.rotary_cos_sin(3, 4, 8, x.device))[0]
    torch.testing.assert_close(
        found.double(),
        torch.from_numpy(slow_block(block, x[0].double().numpy(), 4)),
        atol=1e-4,
        rtol=1e-4,
    )


def test_attention_is_the_same_for_short_and_long_sequences_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    qkv, turns = (
        torch.randn(2, 12, 3, 2, 8),
        priors_transformer.rotary_cos_sin(3, 4, 8, torch.device("cpu")),
    )
    wanted = attention(qkv, *turns)
    for most, kind in ((12, torch.float32), (11, torch.bfloat16)):
        monkeypatch.setattr(blocks, "SHORT", most)
        with torch.autocast("cpu", torch.bfloat16):
            found = attention(qkv.bfloat16(), *turns)
        assert found.dtype == kind
        torch.testing.assert_close(found.float(), wanted, atol=0.05, rtol=0.05)


def test_residual_layers_start_smaller_the_more_there_are() -> None:
    torch.manual_seed(0)
    deep = Block(PriorConfig(width=64, layers=32, architecture="transformer"))
    merge, qkv, down, up = (
        float(layer.weight.detach().std()) for layer in (deep.merge, deep.qkv, deep.down, deep.up)
    )
    assert merge / qkv == pytest.approx(1 / 8, rel=0.1)
    assert down / up == pytest.approx(1 / 16, rel=0.1)  # of 4 times as many inputs


# The cache


@pytest.mark.parametrize("together", [1024, 3, 1])
def test_places_nobody_asked_for_are_caught_up(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_transformer, "TOGETHER", together)
    torch.manual_seed(0)
    prior = noisy(Transformer(CONFIG))
    indices, labels = torch.randint(7, (3, 2, 5, 4)), torch.tensor([1, -1, 0])
    with torch.inference_mode():
        wanted = prior(indices, labels)
        rows = prior.label_rows(labels, 3, indices.device)
        sampler = sampling_transformer.TransformerSampler(prior, 3, 5, 4, rows)
        for level in range(2):
            cursor = sampler.start_level(level, indices)
            for i in range(5):
                cursor.next_row(indices[:, level, i - 1] if i else None)
                # the first two rows are known, and the ends of the next two
                for j in range((0, 0, 3, 1, 4)[i]):
                    cursor.next_column(indices[:, level, i, j - 1] if j else None)
                    torch.testing.assert_close(
                        cursor.logits(), wanted[:, level, i, j], atol=1e-4, rtol=0
                    )


# From outside


@pytest.mark.parametrize(("width", "heads"), [(128, 3), (24, 4), (8, 4)])
def test_heads_that_do_not_divide_the_width_are_refused(width: int, heads: int) -> None:
    with pytest.raises(
        UsageError, match=f"prior width {width} does not go with {heads} heads"
    ) as caught:
        PriorConfig(width=width, heads=heads, architecture="transformer")
    assert f"choose a multiple of {4 * heads}" in caught.value.fix
    PriorConfig(width=width, heads=heads)  # nobody else's business


@pytest.mark.slow
def test_train_sample_report(data: Path) -> None:
    result = small("-o", "m", "--prior", "transformer", "--set", "prior.heads=2")
    assert result.exit_code == 0, result.output
    stored = weights.load_weights(Path("m/prior.safetensors"), "prior")
    assert (stored.meta["config"]["architecture"], stored.meta["config"]["heads"]) == (
        "transformer",
        2,
    )
    assert "blocks.1.qkv.weight" in stored.tensors
    ok("sample", "--model", "./m", "-n", 2, "--label", "b", "-o", "new.png")
    ok("sample", "--model", "./m", "--complete", "data/a/00.png", "-o", "completed.png")
    ok("report", "m", "--samples", 1)
    assert (
        min(Path(name).stat().st_size for name in ("new.png", "completed.png", "report.html")) > 100
    )
