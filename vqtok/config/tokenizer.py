"""Declares the settings of a tokenizer."""

from dataclasses import dataclass
from itertools import pairwise

from vqtok.config.coerce import check_added, check_choice, check_range, require
from vqtok.config.paper import check_paper
from vqtok.config.registry import LIKELIHOODS, NETWORKS, QUANTIZERS, with_settings
from vqtok.errors import UsageError

# Quantizers of what an encoder gives; `pixels` are the image's own, and nothing is learned.
LEARNED = tuple(name for name in QUANTIZERS if name != "pixels")
GRAY_LEVELS = 256
LEVELS_MAX = 32
CODES_MAX = 1 << 18  # K of one level
DISTANCES = ("l2", "dot")


@dataclass(frozen=True)
@with_settings(QUANTIZERS, LIKELIHOODS, NETWORKS)
class TokenizerConfig:
    """Configures the network that turns images into indices and back; with the tensors, all that
    decoding needs.
    """

    channels: int = 3  # of the images: 1 or 3
    downsample: int = 8  # f: pixels per code along each axis
    fold: int = 4  # pixels per side folded into channels before the first convolution
    width: int = 128  # channels at the finest stage; each coarser one has twice as many
    encoder_blocks: int = 2  # residual blocks at each stage
    decoder_blocks: int = 4
    shortcut: bool = True  # a path without weights around each change of resolution
    quantizer: str = "ema"
    codebook_size: int = 1024  # K
    code_dim: int = 8  # D
    # L: more than 1 quantizes what the levels before have left (residual quantization)
    levels: int = 1
    # part of the training images that are decoded from their first few levels only
    level_dropout: float = 0.0
    # codes and vectors on the unit sphere (Yu et al. 2022, arXiv 2110.04627); not fsq, lfq
    normalize: bool = True
    beta: float = 0.25  # weight of the commitment term
    decay: float = 0.99  # of the moving averages of the codebook
    restart: float = 0.1  # restart a code used less than this part of the mean use; 0 never
    likelihood: str = "mse"
    # or classic: the VQGAN's, which sees the whole image; the settings below are its own
    network: str = "folded"
    # channels of each stage, finest first; each but the last halves the resolution
    stages: tuple[int, ...] = ()
    # numbers of the stages with attention, 0 the finest; one past the last is the middle
    attention: tuple[int, ...] = ()
    groups: int = 0  # of its normalization over space
    z_channels: int = 0  # between encoder and codes, and codes and decoder
    # Of the paper's network: its layers one by one ("down 64", "relu", "block 32"; see
    # `config.paper`), () for the paper's own; and mean and standard deviation by which pixels in
    # [0, 1] are scaled, one or one a channel, () for pixels in [-1, 1].
    encoder_layers: tuple[str, ...] = ()
    decoder_layers: tuple[str, ...] = ()
    input_mean: tuple[float, ...] = ()
    input_std: tuple[float, ...] = ()
    # of vectors and codes: l2, or dot, where the code of the largest inner product is taken (IBQ)
    distance: str = "l2"
    # Of the folded network's decoder, where it is not the encoder's mirror image: channels and
    # residual blocks of each stage, finest first. s stages end at 2**(s - 1) / downsample of the
    # resolution and unfold what is missing at once.
    decoder_widths: tuple[int, ...] = ()
    decoder_depths: tuple[int, ...] = ()
    # each level quantizes a part of the vector of its own (product quantization)
    product: bool = False

    def __post_init__(self) -> None:
        require(
            self.channels in (1, 3), f"channels is {self.channels}", "choose 1 (gray) or 3 (color)"
        )
        if self.is_pixels:
            self._check_pixels()
        require(
            self.is_pixels or self.downsample in (2, 4, 8, 16),
            f"downsample is {self.downsample}",
            "choose 2, 4, 8 or 16",
        )
        require(
            self.fold in (1, 2, 4) and self.fold <= self.downsample,
            f"fold is {self.fold} at downsample {self.downsample}",
            "choose 1, 2 or 4, at most downsample",
        )
        check_range("codebook size", self.codebook_size, 2, CODES_MAX)
        check_range("code dimension", self.code_dim, 1, 1024)
        check_range("width", self.width, 4, 2048)
        check_range("encoder blocks", self.encoder_blocks, 0, 64)
        check_range("decoder blocks", self.decoder_blocks, 0, 64)
        check_range("beta", self.beta, 0.1, 2.0)
        check_range("decay", self.decay, 0.0, 0.9999)
        check_range("restart", self.restart, 0.0, 1.0)
        check_range("levels", self.levels, 1, LEVELS_MAX)
        check_range("level dropout", self.level_dropout, 0.0, 1.0)
        require(
            not (self.normalize and self.levels > 1 and not self.product),
            "codes on the unit sphere cannot hold what other levels have left, "
            "which differs in length",
            "use --no-normalize with several levels",
        )
        require(
            not (self.normalize and self.part_dim == 1),
            "code dimension 1 leaves two points on the unit sphere",
            "use a code dimension of 2 or more, or --no-normalize",
        )
        require(
            not self.product or (self.levels > 1 and self.code_dim % self.levels == 0),
            f"product levels are equal parts of a vector, and {self.levels} do not make code "
            f"dimension {self.code_dim}",
            "choose 2 levels or more, and a code dimension that they divide",
        )
        check_added(self)
        check_choice("quantizer", self.quantizer, QUANTIZERS)
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        check_choice("network", self.network, NETWORKS)
        check_choice("distance", self.distance, DISTANCES)
        require(
            self.distance == "l2" or (self.quantizer in ("vq", "ema") and not self.normalize),
            "distance=dot is for the quantizers vq and ema, without normalization",
            "leave distance out, or use --quantizer vq --no-normalize",
        )
        check_paper(self)
        if self.network in ("classic", "magvit2"):
            self._check_classic()
        else:
            own = (self.stages, self.attention, self.groups, self.z_channels)
            require(
                own == ((), (), 0, 0),
                "stages, attention, groups and z_channels are of the networks classic and magvit2",
                "leave them out",
            )
        if self.network == "vqvae2":
            self._check_two_grids()
        self._check_decoder()

    def _check_two_grids(self) -> None:
        found = (self.downsample, self.levels, self.product)
        require(
            found == (8, 5, True),
            "the vqvae2 network has downsample 8 and 5 product levels: a code of the top grid, and "
            "4 of the bottom",
            "set downsample=8, levels=5, product=true and a code_dim that 5 divides",
        )
        require(
            self.quantizer != "pixels" and min(self.encoder_blocks, self.decoder_blocks) > 0,
            "the vqvae2 network has blocks at each stage",
            "choose 1 or more blocks",
        )

    def _check_classic(self) -> None:
        count = len(self.stages)
        if not count:
            raise self._without_stages()
        made = f"{count} stages do not make downsample {self.downsample}"
        require(2 ** (count - 1) == self.downsample, made, "there is a halving between two stages")
        require(
            (self.fold, self.shortcut) == (1, False),
            f"the {self.network} network has no fold and no shortcut",
            "set fold=1, shortcut=false",
        )
        require(
            self.width == self.stages[0],
            f"width {self.width} is not that of the first stage",
            f"set width={self.stages[0]}",
        )
        require(
            min(self.encoder_blocks, self.decoder_blocks) > 0,
            f"the {self.network} network has blocks at each stage",
            "choose 1 or more blocks",
        )
        check_range("groups", self.groups, 1, 2048)
        if self.network == "magvit2":
            require(
                (self.attention, self.z_channels) == ((), 0),
                "the magvit2 network has no attention, and no z_channels between encoder and codes",
                "leave attention and z_channels out",
            )
        else:
            check_range("z channels", self.z_channels, 1, 2048)
        for channels in self.stages:
            check_range("channels of a stage", channels, 4, 2048)
            require(
                channels % self.groups == 0,
                f"{channels} channels make no {self.groups} equal groups",
                "choose another groups",
            )
        fits = all(0 <= stage <= count for stage in self.attention) and len(
            set(self.attention)
        ) == len(self.attention)
        require(
            fits,
            f"attention {list(self.attention)} does not fit {count} stages",
            f"choose from 0 to {count}, each once",
        )

    def _without_stages(self) -> UsageError:
        """Names all settings that these networks need, by values that go together."""
        halvings = self.downsample.bit_length() - 1
        stages = ",".join(str(min(32 << i, 256)) for i in range(halvings + 1))
        settings = [f"stages=[{stages}]", "width=32", "fold=1", "shortcut=false", "groups=8"]
        settings += [] if self.network == "magvit2" else ["z_channels=64"]
        return UsageError(
            f"the {self.network} network needs the channels of its stages, finest first",
            f"set for example {', '.join(settings)}",
            "for example " + " ".join(f"--set 'tokenizer.{setting}'" for setting in settings),
        )

    def _check_decoder(self) -> None:
        widths, depths = self.decoder_widths, self.decoder_depths
        if not widths and not depths:
            return
        plain = self.network == "folded" and not self.is_pixels
        require(
            plain,
            "decoder_widths and decoder_depths are of the folded network with an encoder",
            "leave them out",
        )
        require(
            len(widths) == len(depths),
            f"{len(widths)} decoder_widths and {len(depths)} decoder_depths",
            "give one of each a stage",
        )
        most = self.downsample.bit_length()
        require(
            len(widths) <= most,
            f"{len(widths)} stages are too many for downsample {self.downsample}",
            f"choose at most {most}",
        )
        for width, depth in zip(widths, depths, strict=True):
            check_range("width of a decoder's stage", width, 4, 2048)
            check_range("depth of a decoder's stage", depth, 0, 64)
        for finer, width in pairwise(widths):
            fits = not self.shortcut or 4 * finer % width == 0
            require(
                fits,
                f"4 x {finer} channels are no multiple of {width}, as a shortcut needs",
                "choose other decoder_widths",
            )

    @property
    def decoder_stages(self) -> list[tuple[int, int]]:
        """Returns channels and residual blocks of the folded decoder's stages, finest first."""
        if self.decoder_widths:
            return list(zip(self.decoder_widths, self.decoder_depths, strict=True))
        return [(width, self.decoder_blocks) for width in self.encoder_widths]

    @property
    def encoder_widths(self) -> list[int]:
        """Returns the channels of the folded encoder's stages, finest (1/fold of the image) to
        coarsest (1/f).
        """
        return [
            self.width * 2**stage for stage in range((self.downsample // self.fold).bit_length())
        ]

    def _check_pixels(self) -> None:
        found = (self.downsample, self.fold, self.levels, self.code_dim)
        require(
            found == (1, 1, self.channels, self.channels) and not self.normalize,
            f"the pixels quantizer needs downsample 1, fold 1, {self.channels} levels and code "
            "dimensions (channels), and no normalization",
            "use --preset pixels, and of the tokenizer's settings choose the codebook size alone",
        )
        fix = (
            f"choose a codebook size from 2 (black and white) to {GRAY_LEVELS} (bytes as they are)"
        )
        require(
            2 <= self.codebook_size <= GRAY_LEVELS,
            f"a channel has {GRAY_LEVELS} values, not {self.codebook_size}",
            fix,
        )
        shown = ("mse", "l1", "charbonnier", "logistic")
        require(
            self.likelihood in shown,
            f"pixels are no parameters of {self.likelihood}",
            f"choose one of {', '.join(shown)}",
        )

    @property
    def part_dim(self) -> int:
        """Dimension of what one level quantizes."""
        return self.code_dim // self.levels if self.product else self.code_dim

    @property
    def is_pixels(self) -> bool:
        """Whether indices are the pixels themselves:
        encoder and decoder are the identity then, and nothing is learned.
        """
        return self.quantizer == "pixels"

    @property
    def grid(self) -> str:
        """Describes in words what a position of the grid stands for."""
        if self.is_pixels:
            return (
                f"{'a gray value' if self.channels == 1 else '3 gray values'} of "
                f"{self.codebook_size} for each pixel"
            )
        levels = "" if self.levels == 1 else f"{self.levels} levels, each "
        return (
            f"{levels}one of {self.codebook_size} codes for "
            f"{self.downsample}x{self.downsample} pixels"
        )
