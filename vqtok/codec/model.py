"""A model ready to use: images to codes and back, and codes that never were."""

import shlex
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtok import images, losses, model_registry, ticks
from vqtok.codec.entropy_coder import EntropyCoder
from vqtok.codec.loading import build_tokenizer, fill, load_prior, to_device
from vqtok.codes import Codes, Compact, count_levels, index_dtype, levels_fix, to_compact, unpack
from vqtok.config import NETWORKS, TokenizerConfig
from vqtok.errors import FormatError, ModelError, UsageError
from vqtok.losses import Likelihood
from vqtok.networks.streaming import Tiling, stream
from vqtok.networks.vqvae import VQVAE, AnyDecoder, AnyEncoder, to_float, to_uint8
from vqtok.priors import Prior
from vqtok.quantizers import Quantizer
from vqtok.sampling import sample_grids

# worked on, at about 60 bytes each; in smaller parts a pixel costs up to 1.3 times as much (2**16)
PIXELS_AT_ONCE = 2**19
GPU_PIXELS_AT_ONCE = 2**22
SIDES = ("top", "bottom", "left", "right")


class Model:
    """A tokenizer, and its prior where it has one, ready to use on one device.

    Each part of the network takes its values when it is first used:
    encoding needs no decoder, and decoding no encoder.
    """

    def __init__(
        self,
        tokenizer: model_registry.StoredTokenizer,
        device: torch.device,
        precision: str = "fp32",
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise UsageError(f"precision {precision!r} is not known", "choose fp32 or bf16")
        self.folder, self.device, self.precision = tokenizer.folder, device, precision
        self.name: str = self.folder.name
        self.fingerprint = tokenizer.fingerprint
        self.record: dict[str, Any] = tokenizer.stored.meta["record"]
        self._network = build_tokenizer(tokenizer.stored, self.folder.tokenizer)
        self.config: TokenizerConfig = self._network.config
        self._family = NETWORKS[self.config.network].load()
        self._waiting = dict(tokenizer.stored.tensors)  # of parts not used yet
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """One line: name, fingerprint, grid, device and precision."""
        return (
            f"<Model {self.name} ({self.fingerprint}): {self.config.grid}, "
            f"{self.device.type}, {self.precision}>"
        )

    def _part(self, name: str) -> Any:
        """A part of the network, with its values and on the device."""
        part = self._network.get_submodule(name)
        with self._lock:
            if any(tensor.startswith(f"{name}.") for tensor in self._waiting):
                fill(self._network, self._waiting, name)
                to_device(part, self.device)
        return part

    @property
    def encoder(self) -> AnyEncoder:
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
        """The whole of it."""
        for name, _ in self._network.named_children():
            self._part(name)
        return self._network

    @cached_property
    def _prior(self) -> tuple[Prior, dict[str, Any]]:
        if self.folder.prior is None:
            fix = "train one: vqtok train --stage prior, or choose another --model"
            raise ModelError(f"the model {self.name} has no prior", fix)
        network, record = load_prior(self.folder.prior, self.config, self.fingerprint)
        return network.to(self.device), record

    @cached_property
    def entropy_coder(self) -> EntropyCoder | None:
        """What compact files are coded with; None where the model has no entropy prior."""
        return None if self.folder.entropy is None else EntropyCoder(self.folder, self.fingerprint)

    def pack(self, codes: Codes) -> Compact:
        """The compact form of codes: `write_codes` makes a small file of it.

        Bit-packed where the model has no entropy prior.
        """
        self._check(codes)
        return to_compact(codes) if self.entropy_coder is None else self.entropy_coder.pack(codes)

    def pack_levels(self, codes: Codes) -> Callable[[int], Compact]:
        """Codes the levels once; the result gives the compact form of any number of the first."""
        self._check(codes)
        if self.entropy_coder is None:
            return lambda count: to_compact(codes.first_levels(count))
        return self.entropy_coder.pack_levels(codes)

    def unpack(self, codes: Codes | Compact) -> Codes:
        """Gives codes of either form in the plain one. Raises ModelError, FormatError."""
        if isinstance(codes, Compact):
            self._check(codes)
        return unpack(codes, lambda _: self.entropy_coder)

    @property
    def prior(self) -> Prior:
        """The network that knows which grids are likely; ModelError where the model has none."""
        return self._prior[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that `sample` can be asked for; none for an unconditional prior."""
        return self.prior.config.labels

    @property
    def native_size(self) -> tuple[int, int]:
        """(H, W) in pixels of the windows that the prior has learned from:
        what `sample` draws unless it is told a size.
        """
        grid = self._prior[1].get("grid")
        if (
            not isinstance(grid, list)
            or len(grid) != 2
            or not all(type(side) is int for side in grid)
        ):
            raise FormatError(
                f"{self.folder.prior} does not say which grid it has learned",
                "ask for a size: --size 256",
            )
        return grid[0] * self.config.downsample, grid[1] * self.config.downsample

    def encode(
        self, image: Any, background: images.Color = images.WHITE, levels: int | None = None
    ) -> Codes:
        """The codes of one image: a path, bytes, a PIL image, or uint8 (H, W), (H, W,
        1), (H, W, 3) or (H, W, 4).

        Any size from 1x1; transparency is laid over `background`;
        `levels` keeps the first few only. Raises InputError, UsageError.
        """
        pixels = images.from_any(image, self.config.channels, background).pixels
        return self.encode_batch([pixels], levels)

    def encode_batch(self, images: list[np.ndarray], levels: int | None = None) -> Codes:
        """The codes of images uint8 (H, W, C), with the model's C, whose sizes fill the same
        grid; UsageError where they do not.
        """
        f, count = self.config.downsample, self._count(levels)
        if len({(-(-p.shape[0] // f), -(-p.shape[1] // f)) for p in images}) != 1:
            raise UsageError(
                f"these {len(images)} images do not fill one grid",
                "encode images of different sizes one by one",
            )
        h, w = (-(-side // f) for side in images[0].shape[:2])
        indices = torch.empty(len(images), count, h, w, dtype=torch.int64)
        group = max(1, self.pixels_at_once // (h * w * f * f))
        for i in range(0, len(images), group):
            self._encode(images[i : i + group], indices[i : i + group])
        return self.codes(indices, tuple((p.shape[0], p.shape[1]) for p in images))

    def codes(
        self, indices: np.ndarray | Tensor, sizes: tuple[tuple[int, int], ...] | None = None
    ) -> Codes:
        """Codes of index grids (n, L, h, w) from elsewhere, a transformer of your own for one:
        to decode, or to write to a file.

        indices are integers of any dtype, of the model's first L levels. sizes are the (H, W) of
        each image, by default all that the grid spans: h*f x w*f. Raises UsageError.
        """
        array = (
            indices.detach().cpu().numpy() if isinstance(indices, Tensor) else np.asarray(indices)
        )
        K, f = self.config.codebook_size, self.config.downsample
        if array.ndim != 4 or array.size == 0 or array.dtype.kind not in "iu":
            what = f"indices of {array.dtype} in the shape {array.shape} are no index grids"
            raise UsageError(what, "give integers (n, L, h, w): images, levels, rows, columns")
        if array.min() < 0 or array.max() >= K:
            raise UsageError(
                f"these indices go from {array.min()} to {array.max()}",
                f"the model {self.name} has 0 to {K - 1}",
            )
        n, levels, h, w = array.shape
        self._count(levels)
        shown = ((h * f, w * f),) * n if sizes is None else sizes
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

    def check_size(self, height: int, width: int) -> None:
        """Raises InputError where an image is too large for the network:
        one that sees it whole keeps all of it in memory.
        """
        if not self._family.STREAMABLE:
            f = self.config.downsample
            self._family.check_size(self.config, -(-height // f) * f, -(-width // f) * f)

    def _encode(self, images: list[np.ndarray], indices: Tensor) -> None:
        """Writes the indices (n, L, h, w) of n images that share a grid, or
        those of the first few levels.
        """
        f, (count, h, w) = self.config.downsample, indices.shape[1:]
        tiling = self._tiling(h, w, len(images))
        position = 0
        with self._inference():
            parts = (
                self._floats([p[tiling.slices(part, f)] for p in images]) for part in tiling.tiles
            )
            # (n, D, rows, w) or (n, D, h, columns)
            for vectors in stream(self.encoder, parts, tiling.axis, tiling.max_length * f):
                found = self.quantizer(vectors).indices[:, :count]
                indices.narrow(tiling.axis, position, found.shape[tiling.axis]).copy_(found)
                position += found.shape[tiling.axis]
                ticks.tell(position, indices.shape[tiling.axis])

    def _floats(self, batch: list[np.ndarray]) -> Tensor:
        """(n, C, h*f, w*f) in [-1, 1], channels last, of uint8 (H, W, C)."""
        # (n, h*f, w*f, C)
        padded = np.stack([images.pad(p, self.config.downsample) for p in batch])
        x = to_float(torch.from_numpy(padded).to(self.device).permute(0, 3, 1, 2))
        return x.contiguous(memory_format=torch.channels_last)

    def decode(self, codes: Codes, levels: int | None = None) -> np.ndarray:
        """The one image in the codes, uint8 (H, W, C), at its original size.

        Raises ModelError where another model made them.

        Codes may hold the model's first levels only; `levels` takes fewer than they hold.
        """
        if len(codes) != 1:
            raise UsageError(f"these codes hold {len(codes)} images", "use decode_all")
        return self.decode_all(codes, levels)[0]

    def decode_all(self, codes: Codes, levels: int | None = None) -> list[np.ndarray]:
        """Each image in the codes, uint8 (H, W, C).

        UsageError where `levels` is more than the codes hold.
        """
        self._check(codes)
        codes = codes if levels is None else codes.first_levels(levels)
        return [self._decode(codes.indices[i : i + 1], *size) for i, size in enumerate(codes.sizes)]

    def _decode(self, indices: np.ndarray, H: int, W: int) -> np.ndarray:
        """uint8 (H, W, C) from (1, L, h, w)."""
        image = np.empty((H, W, self.config.channels), np.uint8)
        with self._inference():
            for where, output in self._outputs(indices):
                # less than the output at the right and bottom edge: nothing, even
                part = image[where]
                part[:] = self.to_image(output)[: part.shape[0], : part.shape[1]]
        return image

    def output(self, codes: Codes, i: int) -> Tensor:
        """What the decoder says of image i: the likelihood's float32 parameters (1, n*C, H, W),
        at the image's own size.
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

    def _outputs(self, indices: np.ndarray) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
        """Rows and columns of pixels, and what the decoder says of them, float32 (1, n*C, rows,
        columns), from (1, L, h, w).
        """
        tiling = self._tiling(*indices.shape[2:])
        lookups = (self._vectors(indices[:, :, *tiling.slices(part)]) for part in tiling.tiles)
        position = 0
        for output in stream(self.decoder, lookups, tiling.axis, tiling.max_length):
            end = position + output.shape[tiling.axis]
            yield tiling.slices(slice(position, end)), output.float()
            position = end
            ticks.tell(position, indices.shape[tiling.axis] * self.config.downsample)

    def _tiling(self, h: int, w: int, n: int = 1) -> Tiling:
        """How n grids are worked on: in parts of `pixels_at_once`, or in one where the
        network sees the whole image.
        """
        f, whole = self.config.downsample, not self._family.STREAMABLE
        return Tiling.of(h, w, f, n * h * w * f * f if whole else self.pixels_at_once, n)

    def _vectors(self, indices: np.ndarray) -> Tensor:
        """(1, D, h, w) from (1, L, h, w)."""
        return self.quantizer.lookup(torch.from_numpy(indices.astype(np.int64)).to(self.device))

    def to_image(self, output: Tensor) -> np.ndarray:
        """The image to show for a decoder's output (1, n*C, H, W): uint8 (H, W, C)."""
        with torch.inference_mode():
            decoded = to_uint8(self.likelihood.mean(output))
        return decoded[0].permute(1, 2, 0).contiguous().cpu().numpy()

    def sample(
        self, n: int = 1, size: tuple[int, int] | None = None, **options: Any
    ) -> list[np.ndarray]:
        """n new images, uint8 (H, W, C); options as in `sample_codes`."""
        return self.decode_all(self.sample_codes(n, size, **options))

    def sample_codes(
        self,
        n: int = 1,
        size: tuple[int, int] | None = None,
        *,
        label: str | int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        levels: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Codes:
        """Codes of n new images of size (H, W), by default the size that the prior has learned.

        label is one of `labels` or its number, None takes all in turn;
        temperature 0 takes the likeliest index everywhere;
        top_k and top_p keep the likeliest indices alone; levels draws the first few only.
        On one machine's CPU the seed decides everything. progress gets rows done and rows in all.
        """
        f = self.config.downsample
        height, width = size or self.native_size
        if not (0 < height <= 8192 and 0 < width <= 8192 and n > 0):
            raise UsageError(
                f"cannot sample {n} images of {width}x{height}",
                "ask for one or more, of 1 to 8192 pixels a side",
            )
        indices = sample_grids(
            self.prior,
            n,
            -(-height // f),
            -(-width // f),
            labels=self._labels(label, n),
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            levels=self._count(levels),
            progress=progress,
        )
        return self.codes(indices, ((height, width),) * n)

    def complete(self, codes: Codes, keep: str, n: int = 1, **options: Any) -> Codes:
        """Codes of n images that keep a part of an image and invent the rest.

        keep is SIDE:PART, as in "top:0.5", with SIDE one of top, bottom, left, right. The prior
        reads rows from the top: it cannot look ahead at a part kept at the bottom or right. Levels
        that the codes lack are invented in the kept part, too.
        Options as in `sample_codes`, without size;
        without a label the prior goes by the image alone.
        """
        self._check(codes)
        if len(codes) != 1:
            raise UsageError(f"these codes hold {len(codes)} images", "complete them one by one")
        levels = self._count(options.pop("levels", None))
        codes = codes.first_levels(min(levels, codes.levels))
        h, w = codes.indices.shape[2:]
        rows, columns = parse_keep(keep, h, w)
        known = torch.full((n, levels, h, w), -1)
        known[:, : codes.levels, rows, columns] = torch.from_numpy(codes.indices.astype(np.int64))[
            :, :, rows, columns
        ]
        label = options.pop("label", None)
        options["labels"] = None if label is None else self._labels(label, n)
        indices = sample_grids(self.prior, n, h, w, known=known, levels=levels, **options)
        return self.codes(indices, codes.sizes * n)

    def _labels(self, label: str | int | None, n: int) -> Tensor | None:
        """Class numbers (n,): one class for all, or all classes in turn;
        None where there are no classes and none is asked for.
        """
        if label is None:
            return torch.arange(n) % len(self.labels) if self.labels else None
        text = str(label)
        number = (
            self.labels.index(text)
            if text in self.labels
            else int(text)
            if text.isdecimal()
            else -1
        )
        if not 0 <= number < len(self.labels):
            none = f"the model {self.name} has no labels: leave it out"
            known = f"choose one of {', '.join(self.labels)}" if self.labels else none
            raise UsageError(f"there is no label {text!r}", known)
        return torch.full((n,), number)

    def _count(self, levels: int | None) -> int:
        """How many levels are meant: all, unless fewer are asked for.

        UsageError where the model has not so many.
        """
        if levels is None or 1 <= levels <= self.config.levels:
            return levels or self.config.levels
        raise UsageError(
            f"the model {self.name} has {count_levels(self.config.levels)}, not {levels}",
            levels_fix(self.config.levels),
        )

    def _check(self, codes: Codes | Compact) -> None:
        if codes.fingerprint != self.fingerprint:
            again = (
                "the model was trained again since"
                if codes.model == self.name
                else f"or give --model {shlex.quote(codes.model)}"
            )
            raise ModelError(
                f"the codes were made with model {codes.model} ({codes.fingerprint}), "
                f"but this is {self.name} ({self.fingerprint})",
                f"leave --model out to look for it; {again}",
            )
        mine = (self.config.codebook_size, self.config.downsample, self.config.channels)
        theirs = (codes.codebook_size, codes.downsample, codes.channels)
        if mine != theirs or codes.levels > self.config.levels:
            raise ModelError(
                f"the codes do not fit the model {self.name}",
                "the codes file is damaged: make it again",
            )

    @property
    def pixels_at_once(self) -> int:
        """How many pixels, more or less, are worked on at a time."""
        return PIXELS_AT_ONCE if self.device.type == "cpu" else GPU_PIXELS_AT_ONCE

    @contextmanager
    def _inference(self) -> Iterator[None]:
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"),
        ):
            yield


def parse_keep(keep: str, h: int, w: int) -> tuple[slice, slice]:
    """Rows and columns of an h x w grid that SIDE:PART keeps: at least one, and never all.

    Raises UsageError.
    """
    side, _, number = keep.partition(":")
    try:
        part = float(number)
    except ValueError:
        part = -1.0
    if side not in SIDES or not 0 < part < 1:
        raise UsageError(
            f"cannot keep {keep!r}", "write it like top:0.5; sides are top, bottom, left and right"
        )
    length = h if side in ("top", "bottom") else w
    if length == 1:
        raise UsageError(
            f"nothing is left to invent: the grid is {h} high and {w} wide",
            "complete a larger image, or keep another side",
        )
    count = min(max(1, round(part * length)), length - 1)
    whole = slice(None)
    return {
        "top": (slice(0, count), whole),
        "bottom": (slice(h - count, h), whole),
        "left": (whole, slice(0, count)),
        "right": (whole, slice(w - count, w)),
    }[side]
