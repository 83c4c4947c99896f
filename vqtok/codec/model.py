"""Holds a model ready to use: images to codes and back, and new images."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from vqtok import images, losses, model_registry, ticks
from vqtok.codec import drawing, inputs
from vqtok.codec.base import CodesModel
from vqtok.codec.effort import CodeSearch, parse_effort
from vqtok.codec.loading import build_tokenizer, fill, has_bf16, load_prior, to_device
from vqtok.codes import (
    Codes,
    Compact,
    count_levels,
    has_levels,
    index_dtype,
    levels_fix,
    read_any_codes,
)
from vqtok.config import NETWORKS
from vqtok.errors import FormatError, ModelError, UsageError
from vqtok.losses import Likelihood
from vqtok.networks.streaming import Tiling, stream
from vqtok.networks.vqvae import VQVAE, AnyDecoder, AnyEncoder, to_uint8
from vqtok.priors import Prior
from vqtok.quantizers import LevelQuantizer, Quantizer
from vqtok.sampling import sample_grids

# worked on, at about 60 bytes each; in smaller parts a pixel costs up to 1.3 times as much (2**16)
PIXELS_AT_ONCE = 2**19
GPU_PIXELS_AT_ONCE = 2**22
# numbers in the finest features of what is worked on: 8 MiB of them and what is made of them still
# lie in a processor's cache. The small cifar10 takes 1.63 ms an image so, and 2.06 ms beyond it
FEATURES_AT_ONCE = 2**21
SIDE_MAX = 8192  # pixels of a sampled image
_CODES_FIX = (
    "give Codes, a codes file's path or bytes, or integers (n, L, h, w): images, levels, rows, "
    "columns"
)


class Model(CodesModel):
    """Encodes, decodes and samples on one device: a tokenizer, and its prior where it has one.

    Each part of the network takes its values when it is first used:
    encoding needs no decoder, and decoding no encoder. A model can be copied and pickled, with
    weights that were changed since it was loaded.
    """

    def __init__(
        self,
        tokenizer: model_registry.StoredTokenizer,
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        if precision not in ("fp32", "bf16", "fast"):
            raise UsageError(f"precision {precision!r} is not known", "choose fp32, bf16 or fast")
        if precision == "fast":
            precision = "bf16" if has_bf16(device) else "fp32"
        super().__init__(tokenizer)
        self.device, self.precision, self._fingerprint = device, precision, tokenizer.fingerprint
        self._network = build_tokenizer(tokenizer.stored, self.folder.tokenizer)
        self._waiting = dict(tokenizer.stored.tensors)  # of parts not used yet
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __repr__(self) -> str:
        """Shows name, fingerprint, grid, device and precision in one line."""
        return (
            f"<Model {self.name} ({self.fingerprint}): {self.config.grid}, "
            f"{self.device.type}, {self.precision}>"
        )

    @property
    def _family(self) -> Any:
        """Returns the network's class or module; no attribute, as a module cannot be pickled."""
        return NETWORKS[self.config.network].load()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _part(self, name: str) -> Any:
        """Returns a part of the network, with its values and on the device."""
        part = self._network.get_submodule(name)
        # off in any case: tensors made in inference mode never take part in a gradient
        with self._lock, torch.inference_mode(False):
            if any(tensor.startswith(f"{name}.") for tensor in self._waiting):
                fill(self._network, self._waiting, name)
                to_device(part, self.device)
        return part

    @property
    def encoder(self) -> AnyEncoder:
        if hasattr(self._network.encoder, "use_codes"):
            self._part("quantizer")
        return self._part("encoder")

    @property
    def decoder(self) -> AnyDecoder:
        return self._part("decoder")

    @property
    def quantizer(self) -> Quantizer:
        return self._part("quantizer")

    @property
    def likelihood(self) -> Likelihood:
        return self._part("likelihood")

    @property
    def network(self) -> VQVAE:
        """Returns the whole network."""
        for name, _ in self._network.named_children():
            self._part(name)
        return self._network

    @cached_property
    def _prior(self) -> tuple[Prior, dict[str, Any]]:
        if self.folder.prior is None:
            fix = "train one: vqtok train --stage prior, or choose another"
            raise ModelError(
                f"the model {self.name} has no prior", f"{fix} model", f"{fix} --model"
            )
        with torch.inference_mode(False):
            network, record = load_prior(self.folder.prior, self.config, self.fingerprint)
            return network.to(self.device), record

    @property
    def prior(self) -> Prior:
        """Returns the network that knows which grids are likely; ModelError where the model has
        none.
        """
        return self._prior[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Returns the names of the classes that `sample` can be asked for; none for an
        unconditional prior.
        """
        return self.prior.config.labels

    @property
    def native_size(self) -> tuple[int, int]:
        """Returns (H, W) in pixels of the windows that the prior has learned from: what `sample`
        draws by default.
        """
        grid = self._prior[1].get("grid")
        if (
            not isinstance(grid, list)
            or len(grid) != 2
            or not all(type(side) is int for side in grid)
        ):
            raise FormatError(
                f"{self.folder.prior} does not say which grid it has learned",
                "ask for a size",
                "ask for a size: --size 256",
            )
        return grid[0] * self.config.downsample, grid[1] * self.config.downsample

    @overload
    def encode(  # pyright: ignore[reportOverlappingOverload]
        self,
        image: Tensor,
        background: images.Color = images.WHITE,
        levels: int | None = None,
        effort: int = 0,
        goal: str = "looks",
        value_range: images.Range | None = None,
        compact: bool = False,
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        image: Any,
        background: images.Color = images.WHITE,
        levels: int | None = None,
        effort: int = 0,
        goal: str = "looks",
        value_range: images.Range | None = None,
        compact: bool = False,
    ) -> Codes: ...

    def encode(
        self,
        image: Any,
        background: images.Color = images.WHITE,
        levels: int | None = None,
        effort: int = 0,
        goal: str = "looks",
        value_range: images.Range | None = None,
        compact: bool = False,
    ) -> Codes | Tensor:
        """Encodes one image to Codes, or a batch of tensors to a tensor of indices.

        One image is a path, bytes, a PIL image, or an array uint8 (H, W), (H, W, 1), (H, W, 3) or
        (H, W, 4). Any size from 1x1; transparency is laid over `background`.

        A tensor holds images (B, C, H, W), or one (C, H, W), uint8 or float in [0, 1], on any
        device, with the model's C. It gives int64 (B, L, h, w) on that device, without gradient;
        `codes` makes Codes of these, to write to a file, and `decode` images.

        `levels` keeps the first few only. With an `effort` of 1 to 9, the codes are searched for,
        so that these levels together decode to a nearer image: from 4 on through the decoder,
        which takes many times as long (see `codec.effort`). `goal` says which image is near: by
        squared error and local contrast (looks), or by squared error alone (psnr). With `compact`
        the search also prefers indices that take few bits in a compact file. Of images deeper
        than 8 bits `value_range` becomes 0 to 255: by default the model's own `range`, else what
        `images.to_8_bits` chooses, with a warning where they use little of that.
        Raises InputError, UsageError.
        """
        if isinstance(image, Tensor):
            batch = inputs.checked_images(image, self.config.channels)
            return self._encode_all(batch, levels, effort, goal, compact).to(image.device)
        return self.encode_batch([image], levels, background, effort, goal, value_range, compact)

    def encode_batch(
        self,
        images: Iterable[Any] | Tensor,
        levels: int | None = None,
        background: images.Color = images.WHITE,
        effort: int = 0,
        goal: str = "looks",
        value_range: images.Range | None = None,
        compact: bool = False,
    ) -> Codes:
        """Encodes images whose sizes fill the same grid; UsageError where they do not.

        Each is of a kind that `encode` takes, or all are tensors (C, H, W); an array
        (n, H, W, C) or a tensor (n, C, H, W) holds n of them. Options are as in `encode`; a
        warning tells where images deeper than 8 bits use little of the range, or each its own.
        Raises InputError, UsageError.
        """
        batch, one_range = inputs.as_batch(
            images, self.config.channels, background, value_range or self.range
        )
        sizes = tuple(inputs.size_of(image) for image in batch)
        codes = self.codes(self._encode_all(batch, levels, effort, goal, compact), sizes)
        return replace(codes, range=one_range)

    def _encode_all(
        self, batch: inputs.Batch, levels: int | None, effort: int, goal: str, compact: bool
    ) -> Tensor:
        """Encodes images that `_batch` gave to indices int64 (n, L, h, w), on the device of a
        tensor.
        """
        f, count = self.config.downsample, self._count(levels)
        wanted = parse_effort(effort, goal)
        sizes = {inputs.size_of(image) for image in batch}
        if len({(-(-H // f), -(-W // f)) for H, W in sizes}) != 1:
            raise UsageError(
                f"these {len(batch)} images do not fill one grid",
                "encode images of different sizes one by one",
            )
        H, W = sizes.pop()
        h, w = -(-H // f), -(-W // f)
        device = batch[0].device if isinstance(batch[0], Tensor) else torch.device("cpu")
        # made out of inference mode: an ordinary tensor
        with torch.inference_mode(False):
            indices = torch.empty(len(batch), count, h, w, dtype=torch.int64, device=device)
        group = max(1, self.pixels_at_once // (h * w * f * f))
        for i in range(0, len(batch), group):
            if wanted is None or self.config.is_pixels:
                self._encode(batch[i : i + group], indices[i : i + group])
            else:
                coder = self.entropy_coder if compact else None
                prior = None if coder is None else coder.prior
                search = CodeSearch(self.quantizer, count, wanted, goal, prior)
                self._search(batch[i : i + group], indices[i : i + group], search)
        return indices

    def codes(self, indices: np.ndarray | Tensor, sizes: Iterable[Any] | None = None) -> Codes:
        """Makes Codes of index grids (n, L, h, w) from elsewhere, a transformer of your own for
        one: to decode, or to write to a file.

        indices are integers of any dtype, of the model's first L levels. sizes are the (H, W) of
        each image, pairs or an array (n, 2), by default all that the grid spans: h*f x w*f. Raises
        UsageError.
        """
        array = (
            indices.detach().cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        )
        K, f = self.config.codebook_size, self.config.downsample
        self._check_indices(array)
        n, _, h, w = array.shape
        shown = ((h * f, w * f),) * n if sizes is None else inputs.as_sizes(sizes)
        try:
            return Codes(
                array.astype(index_dtype(K)),
                self.name,
                self.fingerprint,
                K,
                f,
                self.config.channels,
                shown,
            )
        except FormatError as error:
            raise UsageError(
                str(error),
                f"give the (H, W) of each image, at most {h * f} and {w * f}: the grid is {w}x{h}",
            ) from None

    def _check_indices(self, indices: np.ndarray | Tensor) -> None:
        """Raises UsageError unless these are index grids (n, L, h, w) of the first levels."""
        inputs.check_indices(indices, self.config.codebook_size, self.name)
        self._count(indices.shape[1])

    def check_size(self, height: int, width: int) -> None:
        """Raises InputError where an image is too large for the network:
        one that sees it whole keeps all of it in memory.
        """
        if not self._family.STREAMABLE:
            f = self.config.downsample
            self._family.check_size(self.config, -(-height // f) * f, -(-width // f) * f)

    def _encode(self, batch: inputs.Batch, indices: Tensor) -> None:
        """Writes the indices (n, L, h, w) of n images that share a grid, or
        those of the first few levels.
        """
        count, h, w = indices.shape[1:]
        axis, position = self._tiling(h, w, len(batch)).axis, 0
        with self._inference():
            for vectors in self._encoded(batch, h, w):
                found = self.quantizer(vectors).indices[:, :count]
                indices.narrow(axis, position, found.shape[axis]).copy_(found)
                position += found.shape[axis]
                ticks.tell(position, indices.shape[axis])

    def _encoded(self, batch: inputs.Batch, h: int, w: int) -> Iterator[Tensor]:
        """Yields the encoder's vectors, part by part: (n, D, rows, w) or (n, D, h, columns)."""
        tiling, f = self._tiling(h, w, len(batch)), self.config.downsample
        parts = (
            inputs.floats(batch, *tiling.slices(part, f), f, self.device) for part in tiling.tiles
        )
        return stream(self.encoder, parts, tiling.axis, tiling.max_length * f)

    def _search(self, batch: inputs.Batch, indices: Tensor, search: CodeSearch) -> None:
        """Encodes as `_encode`, by a search."""
        f, (h, w) = self.config.downsample, indices.shape[2:]
        decoder, likelihood = self.decoder, self.likelihood
        for i in range(len(batch)):
            one = batch[i : i + 1]
            with self._inference():
                z = torch.cat(list(self._encoded(one, h, w)), self._tiling(h, w).axis)
            height, width = inputs.size_of(one[0])
            with torch.inference_mode(False):
                shown = inputs.floats(one, slice(0, h * f), slice(0, w * f), f, self.device)
                indices[i : i + 1] = search.improve(
                    z.float().clone(),
                    shown[:, :, :height, :width],
                    lambda vectors: likelihood.mean(decoder(vectors).float()),
                    whole=not self._family.STREAMABLE,
                )

    @overload
    def decode(  # pyright: ignore[reportOverlappingOverload]
        self, codes: Tensor, levels: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor: ...

    @overload
    def decode(
        self, codes: Any, levels: int | None = None, dtype: torch.dtype = torch.float32
    ) -> np.ndarray: ...

    def decode(
        self, codes: Any, levels: int | None = None, dtype: torch.dtype = torch.float32
    ) -> np.ndarray | Tensor:
        """Decodes codes of one image to uint8 (H, W, C), at its original size.

        They are Codes or Compact codes, the path or bytes of a codes file, or an array of indices
        (1, L, h, w) or (L, h, w), which gives all that the grid spans: h*f x w*f pixels.

        A tensor of indices (B, L, h, w) or (L, h, w), on any device, gives a tensor of images
        (B, C, h*f, w*f) on that device, without gradient: float in [0, 1] of the dtype asked for,
        or with torch.uint8 the bytes.

        Codes may hold the model's first levels only; `levels` takes fewer than they hold.
        Raises ModelError where another model made them, UsageError, InputError, FormatError.
        """
        if isinstance(codes, Tensor):
            return self._decode_tensor(codes, levels, dtype)
        found = self._as_codes(codes)
        if len(found) != 1:
            raise UsageError(f"these codes hold {len(found)} images", "use decode_all")
        return self.decode_all(found, levels)[0]

    def decode_all(self, codes: Any, levels: int | None = None) -> list[np.ndarray]:
        """Decodes codes of any number of images, of the kinds that `decode` takes, to uint8
        (H, W, C) each.

        UsageError where `levels` is more than the codes hold; other errors as `decode`.
        """
        codes = self._as_codes(codes)
        self._check(codes)
        codes = codes if levels is None else codes.first_levels(levels)
        return [self._decode(codes.indices[i : i + 1], *size) for i, size in enumerate(codes.sizes)]

    def _as_codes(self, given: Any) -> Codes:
        """Returns the Codes that something holds."""
        if isinstance(given, str | os.PathLike):
            given = read_any_codes(os.fspath(given))
        elif isinstance(given, bytes | bytearray | memoryview):
            given = read_any_codes(bytes(given))
        if isinstance(given, Codes | Compact):
            return self.unpack(given)
        if isinstance(given, np.ndarray | Tensor):
            if given.ndim == 3 and given.shape[2] in (1, 3, 4) and len(given) > self.config.levels:
                raise UsageError(
                    f"an array {tuple(given.shape)} is an image, not codes",
                    "encode it first: model.encode(image)",
                )
            return self.codes(given[None] if given.ndim == 3 else given)
        pair = isinstance(given, tuple) and len(given) == 2
        raise UsageError(
            f"a {type(given).__name__} holds no codes",
            "of a pair (indices, name) of a CodesDataset, give the indices" if pair else _CODES_FIX,
        )

    def _decode_tensor(self, given: Tensor, levels: int | None, dtype: torch.dtype) -> Tensor:
        """Decodes index tensors to images (B, C, h*f, w*f) of the dtype."""
        if dtype != torch.uint8 and not dtype.is_floating_point:
            raise UsageError(f"there are no images of {dtype}", "choose torch.uint8 or a float")
        indices = self._grids(given, levels)
        n, _, h, w = indices.shape
        C, f = self.config.channels, self.config.downsample
        # made out of inference mode: an ordinary tensor
        with torch.inference_mode(False):
            images = torch.empty(n, C, h * f, w * f, dtype=dtype, device=given.device)
        group = max(1, self.pixels_at_once // (h * w * f * f))
        with self._inference():
            for i in range(0, n, group):
                for where, output in self._outputs(indices[i : i + group]):
                    mean = self.likelihood.mean(output)
                    images[i : i + group, :, *where] = (
                        to_uint8(mean) if dtype == torch.uint8 else inputs.to_dtype(mean, dtype)
                    )
        return images

    def _grids(self, given: Tensor, levels: int | None) -> Tensor:
        """Checks indices (B, L, h, w) or (L, h, w); gives int64 (B, L, h, w) on the device, of the
        first few levels where `levels` says so.
        """
        indices = given[None] if given.ndim == 3 else given
        self._check_indices(indices)
        if levels is not None and not has_levels(levels, indices.shape[1]):
            raise UsageError(
                f"these codes hold {count_levels(indices.shape[1])}, not {levels}",
                levels_fix(indices.shape[1]),
            )
        return indices[:, :levels].to(self.device, torch.int64)

    def vectors(self, codes: Any, levels: int | None = None) -> Tensor:
        """Looks up the vectors of codes, float32 (n, D, h, w): what the decoder sees.

        codes are of the kinds that `decode` takes. The vectors are on the device of a tensor, else
        on the model's; gradients pass to the codebook. Errors as `decode`.
        """
        if isinstance(codes, Tensor):
            return self._vectors(self._grids(codes, levels)).to(codes.device)
        found = self._as_codes(codes)
        self._check(found)
        return self._vectors((found if levels is None else found.first_levels(levels)).indices)

    @property
    def codebook(self) -> Tensor:
        """Returns the vectors of all levels, float32 (L, K, D), on the model's device; a copy,
        without gradient.

        The sum over levels of a place's vectors, plus a mark of how many levels there are where
        there are several, is what `vectors` gives.
        """
        with torch.no_grad():
            return self.quantizer.codebooks().float().clone()

    def reconstruct(self, images: Tensor, levels: int | None = None) -> Tensor:
        """Encodes and decodes a batch with gradients: float32 (B, C, H, W) in [0, 1], of images of
        that shape, uint8 or float in [0, 1].

        For those who fine-tune through the model, or with its parts: the gradient passes straight
        through the quantizer, to the images and to the weights of encoder and decoder. Values are
        not cut off at 0 and 1. The whole batch is in memory at once. The loss of the codebook is
        in what `model.network(x)` gives, for x in [-1, 1]. Raises UsageError, InputError.
        """
        given = inputs.checked_images(images, self.config.channels)
        H, W = given.shape[2:]
        self.check_size(H, W)
        count = self._count(levels)
        x = inputs.pad(inputs.scale(given.to(self.device)), self.config.downsample)
        with self._autocast():
            z = self.encoder(x.contiguous(memory_format=torch.channels_last)).float()
            output = self.decoder(self._straight_through(z, count)).float()
        mean = self.likelihood.mean(output)[:, :, :H, :W]
        return ((mean + 1) / 2).to(images.device)

    def _straight_through(self, z: Tensor, count: int) -> Tensor:
        """Returns vectors (B, D, h, w) of the first levels of z, with its gradient."""
        quantizer = self.quantizer
        if count < self.config.levels and isinstance(quantizer, LevelQuantizer):
            return quantizer(z, torch.full((len(z),), count)).vectors
        quantized = quantizer(z)
        if count == self.config.levels and not self.config.is_pixels:
            return quantized.vectors
        return z + (quantizer.lookup(quantized.indices[:, :count]) - z).detach()

    def _decode(self, indices: np.ndarray, H: int, W: int) -> np.ndarray:
        """Decodes (1, L, h, w) to uint8 (H, W, C)."""
        image = np.empty((H, W, self.config.channels), np.uint8)
        with self._inference():
            for where, output in self._outputs(indices):
                # less than the output at the right and bottom edge: nothing, even
                part = image[where]
                part[:] = self.to_image(output)[: part.shape[0], : part.shape[1]]
        return image

    def output(self, codes: Codes, i: int) -> Tensor:
        """Returns what the decoder says of image i: the likelihood's float32 parameters (1, n*C, H,
        W), at the image's own size.
        """
        indices, (height, width) = codes.indices[i : i + 1], codes.sizes[i]
        f, (h, w) = self.config.downsample, indices.shape[2:]
        output = torch.empty(
            1, losses.output_channels(self.config), h * f, w * f, device=self.device
        )
        with self._inference():
            for where, part in self._outputs(indices):
                output[:, :, *where] = part
        return output[:, :, :height, :width]

    def _outputs(
        self, indices: np.ndarray | Tensor
    ) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """Yields rows and columns of pixels, and what the decoder says of them, float32 (B, n*C,
        rows, columns), from (B, L, h, w).
        """
        tiling = self._tiling(*indices.shape[2:], n=len(indices))
        lookups = (self._vectors(indices[:, :, *tiling.slices(part)]) for part in tiling.tiles)
        position = 0
        for output in stream(self.decoder, lookups, tiling.axis, tiling.max_length):
            end = position + output.shape[tiling.axis]
            yield tiling.slices(slice(position, end)), output.float()
            position = end
            ticks.tell(position, indices.shape[tiling.axis] * self.config.downsample)

    def _tiling(self, h: int, w: int, n: int = 1) -> Tiling:
        """Returns how n grids are cut: in parts of `pixels_at_once`, or in one where the network
        sees the whole image.
        """
        f, whole = self.config.downsample, not self._family.STREAMABLE
        return Tiling.of(h, w, f, n * h * w * f * f if whole else self.pixels_at_once, n)

    def _vectors(self, indices: np.ndarray | Tensor) -> Tensor:
        """Looks up vectors (B, D, h, w) for indices (B, L, h, w)."""
        if isinstance(indices, np.ndarray):
            indices = torch.from_numpy(indices.astype(np.int64))
        return self.quantizer.lookup(indices.to(self.device))

    def to_image(self, output: Tensor) -> np.ndarray:
        """Returns the image to show for a decoder's output (1, n*C, H, W): uint8 (H, W, C)."""
        with torch.inference_mode():
            decoded = to_uint8(self.likelihood.mean(output))
        return decoded[0].permute(1, 2, 0).contiguous().cpu().numpy()

    def sample(
        self, n: int = 1, size: int | tuple[int, int] | None = None, **options: Any
    ) -> list[np.ndarray]:
        """Draws n new images, uint8 (H, W, C); options as in `sample_codes`."""
        return self.decode_all(self.sample_codes(n, size, **options))

    def sample_codes(
        self,
        n: int = 1,
        size: int | tuple[int, int] | None = None,
        *,
        label: str | int | None = None,
        seed: int = 0,
        temperature: drawing.Numbers | None = None,
        top_k: int | None = None,
        top_p: drawing.Numbers | None = None,
        guidance: float | None = None,
        levels: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Codes:
        """Draws codes of n new images of size (H, W), or of one side for both; by default of the
        size that the prior has learned.

        label is one of `labels` or its number, None takes all in turn;
        temperature 0 takes the likeliest index everywhere;
        top_k and top_p keep the likeliest indices alone; levels draws the first few only.
        guidance W above 1 makes images more like their label: W times as far from what an
        image without one would be. temperature and top_p may be one number a level. Those three
        are by default what the prior's file says (`draw_defaults`), else 1, None and 1.
        On one machine's CPU the seed decides everything. progress gets rows done and rows in all.
        """
        f = self.config.downsample
        height, width = self.native_size if size is None else inputs.as_size(size)
        if not (0 < height <= SIDE_MAX and 0 < width <= SIDE_MAX and inputs.is_count(n)):
            raise UsageError(
                f"cannot sample {n} images of {width}x{height}",
                f"ask for one or more, of 1 to {SIDE_MAX} pixels a side",
            )
        count = self._count(levels)
        given = {"temperature": temperature, "top_p": top_p, "guidance": guidance}
        indices = sample_grids(
            self.prior,
            n,
            (-(-height // f), -(-width // f)),
            labels=self._labels(label, n),
            seed=seed,
            top_k=top_k,
            levels=count,
            progress=progress,
            **self.draw_defaults.fill(given, count),
        )
        return self.codes(indices, ((height, width),) * n)

    def complete(
        self,
        codes: Any,
        keep: str | None = None,
        n: int = 1,
        *,
        hole: Sequence[int] | None = None,
        candidates: int = 1,
        **options: Any,
    ) -> Codes:
        """Draws codes of n images that keep a part of an image and invent the rest.

        codes are of the kinds that `decode` takes. keep is SIDE:PART, as in "top:0.5" (the
        default), with SIDE one of top, bottom, left, right; or hole is x, y, width, height in
        pixels, and all around it is kept. Most priors read rows from the top and cannot look ahead
        at what is kept further on; a masked one sees all sides. Of several candidates for each
        image, that one is taken under which what is kept is likeliest. Levels that the codes lack
        are invented in the kept part, too.
        Options as in `sample_codes`, without size; without a label the prior goes by the image
        alone. `palette` W favors codes by the W-th power of their share of the kept part. By
        default all of these are what the prior's file says of completing; it may also say that
        the first few levels alone are drawn, where `levels` is not given, and what is invented has
        no more detail than those.
        """
        codes = self._as_codes(codes)
        self._check(codes)
        if len(codes) != 1:
            raise UsageError(f"these codes hold {len(codes)} images", "complete them one by one")
        if not inputs.is_count(n):
            raise UsageError(f"cannot complete {n} images", "ask for one or more")
        asked, palette = options.pop("levels", None), options.pop("palette", None)
        levels, defaults = self._count(asked), self.complete_defaults
        codes = codes.first_levels(min(levels, codes.levels))
        given = torch.from_numpy(codes.indices[0].astype(np.int64))  # (L, h, w)
        h, w = given.shape[1:]
        kept = drawing.known_part(keep, hole, h, w, self.config.downsample)
        known = torch.full((levels, h, w), -1)
        known[: codes.levels] = given.where(kept, -1)
        label = options.pop("label", None)
        options["labels"] = None if label is None else self._labels(label, n)
        drawn = min(levels, defaults.levels or levels) if asked is None else levels
        options = defaults.fill(options, levels, drawn)
        prior = drawing.leaning_to_known(
            self.prior, known[:drawn], defaults.palette if palette is None else palette
        )
        indices = drawing.complete_grids(prior, known[:drawn], n, candidates, **options)
        if drawn < levels:
            indices = drawing.with_plain_levels(indices, known, self.codebook)
        return self.codes(indices, codes.sizes * n)

    @cached_property
    def draw_defaults(self) -> drawing.DrawDefaults:
        """The temperature, top_p and guidance that the prior's file asks to be drawn with."""
        return drawing.DrawDefaults.of_record(self._prior[1], self.config.levels, self.folder.prior)

    @cached_property
    def complete_defaults(self) -> drawing.DrawDefaults:
        """The same for completing an image, and how many levels are drawn, and the palette."""
        return drawing.DrawDefaults.of_record(
            self._prior[1], self.config.levels, self.folder.prior, completing=True
        )

    def _labels(self, label: str | int | None, n: int) -> Tensor | None:
        """Returns class numbers (n,): one class for all, or all classes in turn; None where there
        are no classes and none is asked for.
        """
        if label is None:
            return torch.arange(n) % len(self.labels) if self.labels else None
        text = str(label)
        number = _label_number(text, self.labels)  # UsageError where several could be meant
        if not 0 <= number < len(self.labels):
            none = f"the model {self.name} has no labels: leave it out"
            more = ", ..." if len(self.labels) > 40 else ""
            known = f"choose one of {', '.join(self.labels[:40])}{more}" if self.labels else none
            raise UsageError(f"there is no label {text!r}", known)
        return torch.full((n,), number)

    @property
    def works_in_parts(self) -> bool:
        """Whether the network sees a part of an image at a time, in bounded memory."""
        return bool(self._family.STREAMABLE)

    @property
    def pixels_at_once(self) -> int:
        """Returns how many pixels, more or less, are worked on at a time."""
        if self.device.type != "cpu":
            return GPU_PIXELS_AT_ONCE
        if not self._family.STREAMABLE:
            return PIXELS_AT_ONCE
        return min(PIXELS_AT_ONCE, FEATURES_AT_ONCE * self.config.fold**2 // self.config.width)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with torch.inference_mode(), self._autocast():
            yield


def _label_number(text: str, labels: Sequence[str]) -> int:
    """Returns the number of the class called `text`, or that number itself; -1 for neither.

    Capitals count only where two names differ by nothing else: UsageError where neither is written
    as given. Where all names are numbers, a number is a name: of the classes 1 to 12, 0 is none.
    """
    if text in labels:
        return labels.index(text)
    alike = [i for i, name in enumerate(labels) if name.casefold() == text.casefold()]
    if len(alike) > 1:
        raise UsageError(
            f"several labels are {text!r} but for capitals",
            f"choose one of {', '.join(labels[i] for i in alike)}",
        )
    if alike:
        return alike[0]
    if not text.isdecimal():
        return -1
    if labels and all(name.isdecimal() for name in labels):
        return next((i for i, name in enumerate(labels) if int(name) == int(text)), -1)
    return int(text)
