"""LPIPS against values worked out by hand, and against AlexNet and VGG-16
written once more in NumPy.
"""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from vqtok.errors import FormatError, InputError
from vqtok.losses import LPIPS, lpips

# torchvision's two networks, as their papers' tables print them: a convolution is (outputs, kernel,
# stride, padding), P a max pooling, and | stands where LPIPS reads.
ALEXNET = [
    (64, 11, 4, 2),
    "|",
    "P",
    (192, 5, 1, 2),
    "|",
    "P",
    (384, 3, 1, 1),
    "|",
    (256, 3, 1, 1),
    "|",
    (256, 3, 1, 1),
    "|",
]
PLACES = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
VGG16 = [
    step
    for count, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
    for step in ([(width, 3, 1, 1)] * count + ["|", "P"])
][:-1]


def tensors(layers: list, places: tuple[int, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of chance, in the names of torchvision and of the authors' heads;
    biases that keep half of the values alive.
    """
    draw = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    inputs, heads, todo = 3, 0, list(places)
    for layer in layers:
        if layer == "|":
            found[f"lin{heads}.model.1.weight"] = draw.uniform(0, 1, (1, inputs, 1, 1)).astype(
                np.float32
            )
            heads += 1
        elif layer != "P":
            outputs, kernel, _, _ = layer
            place, spread = todo.pop(0), math.sqrt(2 / (inputs * kernel**2))
            found[f"features.{place}.weight"] = (
                draw.standard_normal((outputs, inputs, kernel, kernel)) * spread
            ).astype(np.float32)
            found[f"features.{place}.bias"] = (draw.standard_normal(outputs) * 0.1).astype(
                np.float32
            )
            inputs = outputs
    return found


def windows(x: np.ndarray, size: int, stride: int) -> np.ndarray:
    """(C, h, w, size, size)"""
    return np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[
        :, ::stride, ::stride
    ]


def in_numpy(
    weights: dict[str, np.ndarray],
    layers: list,
    places: tuple[int, ...],
    pool: int,
    a: np.ndarray,
    b: np.ndarray,
) -> float:
    """The distance of two images (3, H, W) in [-1, 1], one layer after the other in float64."""
    mean, deviation = (
        np.array([-0.030, -0.088, -0.188])[:, None, None],
        np.array([0.458, 0.448, 0.450])[:, None, None],
    )
    pair = [(image.astype(np.float64) - mean) / deviation for image in (a, b)]
    total, head, todo = 0.0, 0, list(places)
    for layer in layers:
        if layer == "|":
            one, other = (x / (np.sqrt((x**2).sum(0)) + 1e-10) for x in pair)
            total += float(
                (weights[f"lin{head}.model.1.weight"][0] * (one - other) ** 2).sum(0).mean()
            )
            head += 1
        elif layer == "P":
            pair = [windows(x, pool, 2).max((3, 4)) for x in pair]
        else:
            _, kernel, stride, padding = layer
            w, bias = (
                weights[f"features.{todo[0]}.weight"].astype(np.float64),
                weights[f"features.{todo.pop(0)}.bias"][:, None, None],
            )
            edges = [(0, 0), (padding, padding), (padding, padding)]
            seen = [windows(np.pad(x, edges), kernel, stride) for x in pair]
            pair = [
                np.maximum(np.einsum("ihwkl,oikl->ohw", s, w, optimize=True) + bias, 0)
                for s in seen
            ]
    return total


def images(H: int, W: int, count: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).uniform(-1, 1, (count, 3, H, W)).astype(np.float32)
    )


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> LPIPS:
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    save_file(tensors(ALEXNET, PLACES["alex"]), path)
    return lpips.load_lpips(path)


@pytest.mark.slow
def test_alexnet_against_numpy(alex: LPIPS):
    a, b = images(71, 83)
    expected = in_numpy(
        tensors(ALEXNET, PLACES["alex"]), ALEXNET, PLACES["alex"], 3, a.numpy(), b.numpy()
    )
    assert float(alex(a[None], b[None])) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.1


@pytest.mark.slow
def test_vgg16_against_numpy(tmp_path: Path):
    weights = tensors(VGG16, PLACES["vgg"])
    save_file(weights, tmp_path / "vgg.safetensors")
    a, b = images(37, 50)
    expected = in_numpy(weights, VGG16, PLACES["vgg"], 2, a.numpy(), b.numpy())
    assert float(lpips.load_lpips(tmp_path / "vgg.safetensors")(a[None], b[None])) == pytest.approx(
        expected, rel=1e-4
    )


def test_a_case_by_hand():
    """Flat images, one channel that says how red they are, one that is always 1, and one
    head that reads the first.
    """
    network = LPIPS(lpips.ALEX)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        first = network.convs["0"]
        assert isinstance(first, torch.nn.Conv2d)
        assert first.bias is not None
        first.weight[0, 0, 5, 5] = 1.0
        first.bias[1] = 1.0
        network.heads[0][0] = 3.0
    a, b = torch.zeros(2, 1, 3, 64, 64)
    a[:, 0], b[:, 0] = 1.0, 0.5
    red_a, red_b = (1.0 + 0.030) / 0.458, (0.5 + 0.030) / 0.458
    one, other = red_a / math.hypot(red_a, 1), red_b / math.hypot(red_b, 1)
    assert float(network(a, b)) == pytest.approx(3 * (one - other) ** 2, rel=1e-4)


@pytest.mark.slow
def test_zero_for_equal_symmetric_and_growing_with_noise(alex: LPIPS):
    a, noise = images(64, 64)
    a = a / 2
    assert float(alex(a[None], a[None])) == 0
    steps = [float(alex(a[None], (a + part * noise)[None])) for part in (0.05, 0.1, 0.2, 0.5)]
    assert steps == sorted(steps)
    assert steps[0] > 0
    assert float(alex(a[None], noise[None])) == pytest.approx(
        float(alex(noise[None], a[None])), rel=1e-5
    )


def test_each_pair_of_a_batch_by_itself(alex: LPIPS):
    x, y = images(64, 70, 3, seed=2), images(64, 70, 3, seed=3)
    assert alex(x, y).tolist() == pytest.approx(
        [float(alex(x[i : i + 1], y[i : i + 1])) for i in range(3)], rel=1e-5
    )


def test_files_that_hold_no_such_weights(tmp_path: Path):
    path = tmp_path / "w.safetensors"
    good = {
        name: value.astype(np.float16) for name, value in tensors(ALEXNET, PLACES["alex"]).items()
    }
    wrong = {
        "lacks the tensor features.10.bias": {
            name: v for name, v in good.items() if name != "features.10.bias"
        },
        "lin1.model.1.weight has the shape": good
        | {"lin1.model.1.weight": np.zeros((1, 7, 1, 1), np.float16)},
        "features.3.bias holds NaN": good | {"features.3.bias": np.full(192, np.nan, np.float16)},
    }
    for message, weights in wrong.items():
        save_file(weights, path)
        with pytest.raises(FormatError, match=message):
            lpips.load_lpips(path)
    torch.save({"features.0.weight": torch.zeros(2)}, path)
    with pytest.raises(FormatError):
        lpips.load_lpips(path)
    with pytest.raises(InputError, match="missing"):
        lpips.load_lpips(tmp_path / "missing")


@pytest.mark.parametrize("elements", [300, 2**16])
def test_distances_a_cache_at_a_time_have_the_values_and_gradients_of_those_at_once(
    alex: LPIPS, monkeypatch: pytest.MonkeyPatch, elements: int
) -> None:
    monkeypatch.setattr(lpips, "ELEMENTS", elements)
    draws = torch.Generator().manual_seed(0)
    y = torch.rand(3, 3, 40, 51, generator=draws) * 2 - 1
    found = []
    for chunked in (True, False):
        x = (
            y + 0.2 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        ).requires_grad_()
        distances = alex(x, y) if chunked else alex.between(alex.features(x), alex.features(y))
        (distances * torch.tensor([1.0, 2.0, -3.0])).sum().backward()
        found.append((distances.detach(), x.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    dark, blind = torch.zeros(1, 3, 32, 32).requires_grad_(), copy.deepcopy(alex)
    with torch.no_grad():
        for name, value in blind.convs.named_parameters():
            value.fill_(-9.0 if name.endswith("bias") else 0.0)  # no feature at all
    blind(dark, torch.zeros_like(dark)).sum().backward()
    assert dark.grad is not None
    assert torch.isfinite(dark.grad).all()


def test_weights_cast_once_give_what_autocast_gives(alex: LPIPS) -> None:
    x, y = (
        torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(i)) * 2 - 1
        for i in range(2)
    )
    with torch.autocast("cpu", torch.bfloat16):
        wanted = alex(x, y)
        plain = alex(x, y)
        alex.keep_cast(torch.bfloat16)
        assert torch.equal(alex(x, y), wanted)
    assert torch.equal(plain, wanted)
    full = alex(x, y)
    alex._cast.clear()
    assert torch.equal(full, alex(x, y))  # without autocast, the weights themselves
