"""Computes FID: the Fréchet distance of two sets of images in the features of Inception-v3 (Heusel
et al. 2017, arXiv 1706.08500).

The network is the one that FID is defined on, TensorFlow's of December 2015: unlike torchvision's,
its average poolings leave out the border, and the last block pools by maximum. The weights are a
file that the user gives, with the tensor names of the package pytorch-fid.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vqtok import weights
from vqtok.networks.vqvae import to_float

SIDE = 299  # of the images that the network looks at
FEATURES = 2048
PATCH = 256  # side of the patches that larger images are cut into
BATCH = 16  # patches that go through the network together
NORM_EPSILON = 1e-3  # of its batch norms
ORIGINAL = "original"  # the maker of originals
ENOUGH = FEATURES + 1  # patches: with fewer, the covariance has not its full rank


@dataclass(frozen=True)
class _Conv:
    """Describes a convolution, which a batch norm and a ReLU follow."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    pad: bool = True  # by half the kernel

    @property
    def padding(self) -> tuple[int, int]:
        padded = self.pad and self.stride == 1
        return (self.kernel[0] // 2, self.kernel[1] // 2) if padded else (0, 0)


# a branch: convolutions one after the other; two in a tuple both see the input, side by side
_Branch = tuple["_Conv | tuple[_Conv, _Conv]", ...]


@dataclass(frozen=True)
class _Block:
    """Describes parallel branches; the last sees its input pooled, with no convolution where it is
    empty.
    """

    name: str
    branches: tuple[_Branch, ...]
    pooled: _Branch
    pool: str  # mean, max, or half: the maximum, at half the sides


_STEM = (
    _Conv("Conv2d_1a_3x3", 32, (3, 3), 2),
    _Conv("Conv2d_2a_3x3", 32, (3, 3), pad=False),
    _Conv("Conv2d_2b_3x3", 64, (3, 3)),
    None,  # the maximum of 3x3 places, at half the sides
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, (3, 3), pad=False),
    None,
)


def _fine(name: str, pooled: int) -> _Block:
    return _Block(
        name,
        (
            (_Conv("branch1x1", 64),),
            (_Conv("branch5x5_1", 48), _Conv("branch5x5_2", 64, (5, 5))),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _Conv("branch3x3dbl_3", 96, (3, 3)),
            ),
        ),
        (_Conv("branch_pool", pooled),),
        "mean",
    )


def _middle(name: str, width: int) -> _Block:
    across, down = (1, 7), (7, 1)
    return _Block(
        name,
        (
            (_Conv("branch1x1", 192),),
            (
                _Conv("branch7x7_1", width),
                _Conv("branch7x7_2", width, across),
                _Conv("branch7x7_3", 192, down),
            ),
            (
                _Conv("branch7x7dbl_1", width),
                _Conv("branch7x7dbl_2", width, down),
                _Conv("branch7x7dbl_3", width, across),
                _Conv("branch7x7dbl_4", width, down),
                _Conv("branch7x7dbl_5", 192, across),
            ),
        ),
        (_Conv("branch_pool", 192),),
        "mean",
    )


def _coarse(name: str, pool: str) -> _Block:
    return _Block(
        name,
        (
            (_Conv("branch1x1", 320),),
            (
                _Conv("branch3x3_1", 384),
                (_Conv("branch3x3_2a", 384, (1, 3)), _Conv("branch3x3_2b", 384, (3, 1))),
            ),
            (
                _Conv("branch3x3dbl_1", 448),
                _Conv("branch3x3dbl_2", 384, (3, 3)),
                (_Conv("branch3x3dbl_3a", 384, (1, 3)), _Conv("branch3x3dbl_3b", 384, (3, 1))),
            ),
        ),
        (_Conv("branch_pool", 192),),
        pool,
    )


_BLOCKS = (
    _fine("Mixed_5b", 32),
    _fine("Mixed_5c", 64),
    _fine("Mixed_5d", 64),
    _Block(
        "Mixed_6a",
        (
            (_Conv("branch3x3", 384, (3, 3), 2),),
            (
                _Conv("branch3x3dbl_1", 64),
                _Conv("branch3x3dbl_2", 96, (3, 3)),
                _Conv("branch3x3dbl_3", 96, (3, 3), 2),
            ),
        ),
        (),
        "half",
    ),
    _middle("Mixed_6b", 128),
    _middle("Mixed_6c", 160),
    _middle("Mixed_6d", 160),
    _middle("Mixed_6e", 192),
    _Block(
        "Mixed_7a",
        (
            (_Conv("branch3x3_1", 192), _Conv("branch3x3_2", 320, (3, 3), 2)),
            (
                _Conv("branch7x7x3_1", 192),
                _Conv("branch7x7x3_2", 192, (1, 7)),
                _Conv("branch7x7x3_3", 192, (7, 1)),
                _Conv("branch7x7x3_4", 192, (3, 3), 2),
            ),
        ),
        (),
        "half",
    ),
    _coarse("Mixed_7b", "mean"),
    _coarse("Mixed_7c", "max"),
)


def _shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shape of each convolution's weight, by its name in the file."""
    found: dict[str, tuple[int, ...]] = {}
    channels = 3
    for conv in _STEM:
        if conv is not None:
            found[conv.name] = (conv.outputs, channels, *conv.kernel)
            channels = conv.outputs
    for block in _BLOCKS:
        outputs = 0 if block.pooled else channels
        for branch in (*block.branches, block.pooled):
            width = channels
            for step in branch:
                convs = step if isinstance(step, tuple) else (step,)
                for conv in convs:
                    found[f"{block.name}.{conv.name}"] = (conv.outputs, width, *conv.kernel)
                width = sum(conv.outputs for conv in convs)
            outputs += width if branch else 0
        channels = outputs
    return found


class Inception:
    """Computes the features that FID compares, with each batch norm folded into its convolution."""

    def __init__(self, tensors: Mapping[str, np.ndarray], origin: str) -> None:
        """Takes the tensors of a file; raises FormatError, naming `origin`, where they are not
        this network's.
        """
        norm = ("weight", "bias", "running_mean", "running_var")
        convs = _shapes()
        shapes = {f"{name}.conv.weight": shape for name, shape in convs.items()}
        shapes |= {f"{n}.bn.{key}": (shape[0],) for n, shape in convs.items() for key in norm}
        known = {name: array for name, array in tensors.items() if name in shapes}
        weights.check_tensors(known, shapes, f"{origin}, taken for FID's Inception-v3,")
        self.convs: dict[str, tuple[Tensor, Tensor]] = {}
        for name in convs:
            kernel = torch.from_numpy(np.asarray(known[f"{name}.conv.weight"], np.float64))
            scale, shift, mean, variance = (
                torch.from_numpy(np.asarray(known[f"{name}.bn.{key}"], np.float64)) for key in norm
            )
            scale = scale / (variance + NORM_EPSILON).sqrt()
            self.convs[name] = (
                (kernel * scale[:, None, None, None]).float(),
                (shift - mean * scale).float(),
            )

    def to(self, device: torch.device) -> "Inception":
        """Moves the weights."""
        self.convs = {name: (w.to(device), b.to(device)) for name, (w, b) in self.convs.items()}
        return self

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        """Computes features (B, 2048) of images (B, 3, H, W) in [-1, 1].

        They are scaled to 299x299 pixels between the nearest four, without a filter.
        """
        x = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        for conv in _STEM:
            x = self._convolve(x, conv.name, conv) if conv else F.max_pool2d(x, 3, 2)
        for block in _BLOCKS:
            found = [self._branch(x, block.name, branch) for branch in block.branches]
            found.append(self._branch(_pool(x, block.pool), block.name, block.pooled))
            x = torch.cat(found, 1)
        return x.mean((2, 3))

    def _branch(self, x: Tensor, block: str, branch: _Branch) -> Tensor:
        for step in branch:
            convs = step if isinstance(step, tuple) else (step,)
            x = torch.cat([self._convolve(x, f"{block}.{c.name}", c) for c in convs], 1)
        return x

    def _convolve(self, x: Tensor, name: str, conv: _Conv) -> Tensor:
        return F.relu(F.conv2d(x, *self.convs[name], conv.stride, conv.padding), inplace=True)


def _pool(x: Tensor, kind: str) -> Tensor:
    if kind == "mean":
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    return F.max_pool2d(x, 3, 1, 1) if kind == "max" else F.max_pool2d(x, 3, 2)


@dataclass
class FeatureSums:
    """Sums over the features of a set of images, enough for their mean and covariance."""

    count: int = 0
    sum: np.ndarray = field(default_factory=lambda: np.zeros(FEATURES))
    products: np.ndarray = field(default_factory=lambda: np.zeros((FEATURES, FEATURES)))

    def add(self, features: np.ndarray) -> None:
        """Adds features (n, 2048)."""
        rows = features.astype(np.float64)
        self.count += len(rows)
        self.sum += rows.sum(0)
        self.products += rows.T @ rows

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean (2048,) and covariance (2048, 2048), unbiased."""
        mean = self.sum / self.count
        return mean, (self.products - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(a: FeatureSums, b: FeatureSums) -> float | None:
    """Computes the squared Fréchet distance of two normal distributions; None of fewer than two
    samples.
    """
    if min(a.count, b.count) < 2:
        return None
    (mean_a, cov_a), (mean_b, cov_b) = a.statistics(), b.statistics()
    # tr sqrt(A B) = tr sqrt(sqrt(A) B sqrt(A)), whose argument is symmetric
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    difference = mean_a - mean_b
    return float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def patches(H: int, W: int) -> list[tuple[slice, slice]]:
    """Returns where an image is cut: squares of 256 pixels side by side from the top left corner,
    and those moved by half a square both ways (Mentzer et al. 2020, arXiv 2006.09965, A.7); an
    image with a shorter side is taken whole.
    """
    if min(H, W) < PATCH:
        return [(slice(0, H), slice(0, W))]
    return [
        (slice(top, top + PATCH), slice(left, left + PATCH))
        for start in (0, PATCH // 2)
        for top in range(start, H - PATCH + 1, PATCH)
        for left in range(start, W - PATCH + 1, PATCH)
    ]


class FIDMeter:
    """Gathers the features of originals and of what is made of them, by maker."""

    def __init__(self, network: Inception, device: torch.device) -> None:
        self.network, self.device = network.to(device), device
        self.sums: dict[object, FeatureSums] = {}

    def add(self, maker: object, image: np.ndarray) -> None:
        """Adds an image, uint8 (H, W, C); gray is repeated."""
        sums = self.sums.setdefault(maker, FeatureSums())
        for batch in _batches(image):
            x = to_float(torch.from_numpy(batch).to(self.device))
            sums.add(self.network.features(x.expand(-1, 3, -1, -1)).cpu().numpy())

    def count(self, maker: object) -> int:
        """Returns how many patches of a maker were added."""
        return self.sums[maker].count

    def distance(self, maker: object, other: object) -> float | None:
        """Computes the FID of two makers' images; None of fewer than two patches."""
        return frechet_distance(self.sums[maker], self.sums[other])


def _batches(image: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts uint8 (H, W, C) into batches of patches (n, C, h, w)."""
    cuts = patches(*image.shape[:2])
    for start in range(0, len(cuts), BATCH):
        parts = [image[cut].transpose(2, 0, 1) for cut in cuts[start : start + BATCH]]
        yield np.stack(parts)
