"""Losses besides the likelihood: MS-SSIM and LPIPS, their values, their weights files, and
what a recipe makes of them.
"""

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import image
from torch import Tensor

from vqtok import metrics
from vqtok.config import LossConfig
from vqtok.errors import FormatError, InputError, UsageError
from vqtok.losses import Criterion, lpips
from vqtok.losses.lpips import ALEX, VGG
from vqtok.losses.ms_ssim import ms_ssim
from vqtok.networks.vqvae import to_float


def tensor(pixels: np.ndarray) -> Tensor:
    return to_float(torch.from_numpy(pixels.copy()).permute(2, 0, 1))[None]


def noisy(pixels: np.ndarray, amount: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, amount, pixels.shape)
    return (pixels + noise).clip(0, 255).round().astype(np.uint8)


def lpips_tensors(backbone: lpips._Backbone, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights in the layout of the published files."""
    draw, tensors = np.random.default_rng(seed), {}
    for i, part in enumerate(backbone.slices):
        for c in part:
            shape = (c.outputs, c.inputs, c.kernel, c.kernel)
            deviation = (2 / (c.inputs * c.kernel**2)) ** 0.5
            tensors[f"features.{c.position}.weight"] = draw.normal(0, deviation, shape).astype(
                np.float32
            )
            tensors[f"features.{c.position}.bias"] = draw.normal(0, 0.1, c.outputs).astype(
                np.float32
            )
        tensors[f"lin{i}.model.1.weight"] = draw.random((1, part[-1].outputs, 1, 1)).astype(
            np.float32
        )
    return tensors


@pytest.fixture(scope="module")
def alex(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lpips") / "alex.safetensors"
    path.write_bytes(safetensors.numpy.save(lpips_tensors(ALEX)))
    return path


# MS-SSIM


@pytest.mark.parametrize(
    ("size", "amount"), [((200, 240), 10.0), ((200, 240), 60.0), ((64, 48), 25.0)]
)
def test_ms_ssim_is_that_of_the_metrics(size: tuple[int, int], amount: float):
    pixels = image(*size, 1)
    other = noisy(pixels, amount)
    assert float(ms_ssim(tensor(pixels), tensor(other))) == pytest.approx(
        metrics.ms_ssim(pixels, other), abs=2e-4
    )


def test_ms_ssim_has_a_gradient_that_makes_images_more_alike():
    x, y = tensor(image(32, 32)), tensor(noisy(image(32, 32), 40)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        before = ms_ssim(x, y)
    before.backward()
    assert y.grad is not None
    assert before.dtype == torch.float32
    assert (
        float(ms_ssim(x, y.detach() + 0.01 * y.grad / y.grad.abs().max()))
        > float(before.detach()) + 1e-4
    )
    assert float(ms_ssim(x, x)) == pytest.approx(1.0, abs=1e-6)
    assert torch.isfinite(ms_ssim(x, -x))


# LPIPS


def by_hand(tensors: dict[str, np.ndarray], x: Tensor, y: Tensor) -> float:
    """The distance on AlexNet, in double precision, written out layer by layer."""

    def features(image: Tensor) -> list[Tensor]:
        f = torch.nn.functional
        shift, scale = (
            torch.tensor([-0.030, -0.088, -0.188]).double(),
            torch.tensor([0.458, 0.448, 0.450]).double(),
        )
        w = {name: torch.from_numpy(value).double() for name, value in tensors.items()}
        value = (image.double() - shift[:, None, None]) / scale[:, None, None]
        a = f.relu(f.conv2d(value, w["features.0.weight"], w["features.0.bias"], 4, 2))
        b = f.relu(
            f.conv2d(f.max_pool2d(a, 3, 2), w["features.3.weight"], w["features.3.bias"], 1, 2)
        )
        c = f.relu(
            f.conv2d(f.max_pool2d(b, 3, 2), w["features.6.weight"], w["features.6.bias"], 1, 1)
        )
        d = f.relu(f.conv2d(c, w["features.8.weight"], w["features.8.bias"], 1, 1))
        return [
            a,
            b,
            c,
            d,
            f.relu(f.conv2d(d, w["features.10.weight"], w["features.10.bias"], 1, 1)),
        ]

    total = 0.0
    for i, (a, b) in enumerate(zip(features(x), features(y), strict=True)):
        head = tensors[f"lin{i}.model.1.weight"].ravel()
        for row in range(a.shape[2]):
            for column in range(a.shape[3]):
                p, q = a[0, :, row, column].numpy(), b[0, :, row, column].numpy()
                total += float(
                    (head * (p / np.linalg.norm(p) - q / np.linalg.norm(q)) ** 2).sum()
                ) / (a.shape[2] * a.shape[3])
    return total


@pytest.mark.slow
def test_lpips_is_the_published_formula(alex: Path):
    x, y = tensor(image(64, 80)), tensor(noisy(image(64, 80), 30))
    network = lpips.load_lpips(alex)
    assert float(network(x, y)) == pytest.approx(by_hand(lpips_tensors(ALEX), x, y), rel=1e-4)


@pytest.mark.slow
def test_lpips_is_a_distance(alex: Path):
    network, pixels = lpips.load_lpips(alex), image(70, 64)
    x, near, far = tensor(pixels), tensor(noisy(pixels, 5)), tensor(noisy(pixels, 60))
    assert float(network(x, x)) == 0
    assert float(network(x, near)) == pytest.approx(float(network(near, x)), rel=1e-5)
    assert 0 < float(network(x, near)) < float(network(x, far))
    assert network(torch.cat([x, x]), torch.cat([near, far])).shape == (2,)
    assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.slow
def test_vgg_weights_are_told_by_their_shapes(tmp_path: Path):
    path = tmp_path / "vgg.safetensors"
    path.write_bytes(
        safetensors.numpy.save(
            {name: value.astype(np.float16) for name, value in lpips_tensors(VGG).items()}
        )
    )
    network = lpips.load_lpips(path)
    x, y = tensor(image(32, 32)), tensor(noisy(image(32, 32), 30)).requires_grad_()
    network(x, y).sum().backward()
    assert network.backbone.name == "VGG-16"
    assert [f.shape[1] for f in network.features(x)] == [64, 128, 256, 512, 512]
    assert y.grad is not None
    assert torch.isfinite(y.grad).all()


def test_what_is_no_lpips_file_is_refused(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    with pytest.raises(InputError):
        lpips.load_lpips(path)
    tensors = lpips_tensors(ALEX)
    wrong = {**tensors, "lin2.model.1.weight": np.zeros((1, 7, 1, 1), np.float32)}
    for bad, words in [
        (wrong, "lin2.model.1.weight has the shape"),
        ({"a": np.zeros(3)}, "lacks the tensor features.0.bias"),
    ]:
        path.write_bytes(safetensors.numpy.save(bad))
        with pytest.raises(FormatError, match=words):
            lpips.load_lpips(path)
    pickle = "looks like a pickle"
    for data, words in [
        (b"\x80\x02}q\x00." + bytes(20), pickle),
        (b"PK\3\4" + bytes(90), pickle),
        (b"", "is empty"),
    ]:
        path.write_bytes(data)
        with pytest.raises(FormatError, match=words):
            lpips.load_lpips(path)


# The criterion of a recipe


@pytest.mark.slow
def test_terms_bear_their_weights(alex: Path):
    x, y = (
        torch.cat([tensor(image(64, 64, 3, seed)) for seed in seeds]) for seeds in ((0, 1), (0, 2))
    )
    assert Criterion(LossConfig(), None, 64)(x, y) == {}
    network = lpips.load_lpips(alex)
    terms = Criterion(LossConfig(ms_ssim=0.5, perceptual=2.0), alex, 64)(x, y)
    assert float(terms["ms_ssim"]) == pytest.approx(0.5 * (1 - float(ms_ssim(x, y))))
    assert float(terms["perceptual"]) == pytest.approx(float(2 * network(x, y).mean()))
    half = Criterion(LossConfig(perceptual=2.0, perceptual_part=0.5), alex, 64)
    assert float(half(x, y)["perceptual"]) == 0  # the first pair's, which are equal


def test_gray_images_have_a_perceptual_distance(alex: Path):
    x, y = tensor(image(64, 64, 1, 0)), tensor(image(64, 64, 1, 1))
    assert float(Criterion(LossConfig(perceptual=1.0), alex, 64)(x, y)["perceptual"]) > 0


def test_a_criterion_that_cannot_be_is_a_usage_error():
    with pytest.raises(UsageError, match="needs the weights"):
        Criterion(LossConfig(perceptual=1.0), None, 64)
    with pytest.raises(UsageError, match="MS-SSIM needs"):
        Criterion(LossConfig(ms_ssim=1.0), None, 8)
