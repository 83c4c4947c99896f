"""Encodes and decodes on a CPU by onnxruntime, which starts in a small part of PyTorch's time.

PyTorch stays the reference, and does what this does not: images that would take too much memory in
one piece, searches for better codes, networks of which no graph is known.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from vqtok import onnx
from vqtok.codec.base import CodesModel
from vqtok.codes import Codes, index_dtype
from vqtok.config import TokenizerConfig
from vqtok.config.paper import layers_of, parse_layer
from vqtok.errors import UsageError, VqtokError
from vqtok.model_registry import StoredTokenizer
from vqtok.onnx import session

if TYPE_CHECKING:
    from vqtok.codec.model import Model

# an image is worked on in one piece, of which a few of the largest features are alive at once:
# some 0.5 GB
PIXELS_MAX = 2**21
FEATURES_MAX = 2**25
ENTRIES_MAX = 2**24  # numbers in the table of all levels' codes, 64 MiB
SCORES_MAX = 2**26  # numbers: each vector's products with all codes of a level, 256 MiB


class FastModel(CodesModel):
    """Encodes and decodes by onnxruntime; what it does not take goes to a `Model`, which is loaded
    then.
    """

    def __init__(
        self, tokenizer: StoredTokenizer, load: "Callable[[StoredTokenizer], Model]"
    ) -> None:
        """Checks the tensors; raises VqtokError where they are not those of the config, and where
        no graph is known of the network. ImportError where onnxruntime cannot be imported.
        """
        super().__init__(tokenizer)
        tokenizer.packed.check(onnx.tensor_shapes(self.config))
        self.runtime = f"onnxruntime {session.start()}"
        self._stored, self._load = tokenizer, load

    @property
    def fingerprint(self) -> str:
        """Waits until the tensors are hashed."""
        return self._stored.fingerprint

    def prepare_decoder(self) -> None:
        """Makes ready what `decode` needs; otherwise the first image does."""
        _ = self._decoder

    def encode_batch(
        self,
        images: Sequence[np.ndarray],
        levels: int | None = None,
        *,
        effort: int = 0,
        goal: str = "looks",
        compact: bool = False,
    ) -> Codes:
        """Encodes images uint8 (H, W, C) of one size, as `Model.encode_batch`."""
        count = self._count(levels)
        sizes = tuple((int(image.shape[0]), int(image.shape[1])) for image in images)
        grids = None if effort or len(set(sizes)) != 1 else self._encode(images, sizes[0])
        if grids is None:
            return self._torch.encode_batch(
                images, levels, effort=effort, goal=goal, compact=compact
            )
        K, f, channels = self.config.codebook_size, self.config.downsample, self.config.channels
        kept = np.ascontiguousarray(grids[:, :count].astype(index_dtype(K)))
        return Codes(kept, self.name, self.fingerprint, K, f, channels, sizes)

    def decode(self, codes: Codes, levels: int | None = None) -> np.ndarray:
        """Decodes codes of one image to uint8 (H, W, C), as `Model.decode`."""
        if len(codes) != 1:
            raise UsageError(f"these codes hold {len(codes)} images", "use decode_all")
        return self.decode_all(codes, levels)[0]

    def decode_all(self, codes: Codes, levels: int | None = None) -> list[np.ndarray]:
        """Decodes codes to images uint8 (H, W, C), as `Model.decode_all`."""
        self._check(codes)
        codes = codes if levels is None else codes.first_levels(levels)
        images = []
        for grid, (H, W) in zip(codes.indices, codes.sizes, strict=True):
            image = self._decode(grid.astype(np.int64)[None])
            if image is None:
                return self._torch.decode_all(codes)
            images.append(np.ascontiguousarray(image[0].transpose(1, 2, 0)[:H, :W]))
        return images

    def _encode(self, images: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray | None:
        """Returns indices int64 (n, L, h, w), or None where PyTorch is to do it."""
        f = self.config.downsample
        h, w = (-(-side // f) for side in size)
        encoder = self._encoder if self._fits(h, w, self.config.codebook_size) else None
        grids = []
        for image in images if encoder is not None else ():
            one = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
            grids.append(_run(encoder, "image", one))
        if encoder is None or any(grid is None for grid in grids):
            return None
        return np.concatenate(grids)

    def _decode(self, grid: np.ndarray) -> np.ndarray | None:
        """Returns an image uint8 (1, C, h*f, w*f) of indices (1, L, h, w), or None where PyTorch is
        to do it.
        """
        h, w = grid.shape[2:]
        decoder = self._decoder if self._fits(h, w) else None
        return None if decoder is None else _run(decoder, "indices", grid)

    def _fits(self, h: int, w: int, codes: int = 1) -> bool:
        """Whether an image of h x w positions, and the distances of each to so many codes, fit into
        the memory that one piece may take.
        """
        pixels = h * w * self.config.downsample**2
        return (
            pixels <= PIXELS_MAX
            and pixels * _features(self.config) <= FEATURES_MAX
            and h * w * codes <= SCORES_MAX
        )

    @cached_property
    def _encoder(self) -> session.Session | None:
        return self._session("encoder")

    @cached_property
    def _decoder(self) -> session.Session | None:
        return self._session("decoder")

    def _session(self, part: str) -> session.Session | None:
        """Makes encoder or decoder ready; None where onnxruntime or the graph's format refuses."""
        if self.config.levels * self.config.codebook_size * self.config.code_dim > ENTRIES_MAX:
            return None
        build = onnx.build_encoder if part == "encoder" else onnx.build_decoder
        try:
            graph = build(self._stored.packed.widened(), self.config, apart=True)
            return session.Session(graph.model(part, {}), graph.arrays)
        except (VqtokError, RuntimeError):
            return None

    @cached_property
    def _torch(self) -> "Model":
        """The model with PyTorch, which does all that is left."""
        return self._load(self._stored)


def _run(part: session.Session | None, name: str, value: np.ndarray) -> np.ndarray | None:
    """Returns the output of a part, or None where onnxruntime fails."""
    try:
        return None if part is None else part.run(name, value)
    except RuntimeError:
        return None


def _features(config: TokenizerConfig) -> float:
    """Returns how many numbers the largest features hold, for each pixel of the image: at most."""
    if config.is_pixels:
        return config.channels
    if config.network == "folded":
        finest = config.downsample / 2 ** (len(config.decoder_stages) - 1)
        decoder = config.decoder_stages[0][0] / finest**2
        return max(config.channels, config.width / config.fold**2, decoder)
    if config.network == "paper":
        specs = [spec for layers in layers_of(config) for spec in layers]
        return max(config.width, *(parse_layer(spec)[1] for spec in specs))
    return max(config.width, *config.stages, config.channels)
