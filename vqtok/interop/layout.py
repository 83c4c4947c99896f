"""Maps our names of the classic network's tensors to those of another program."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

FIRST, CODEBOOK = "encoder.first.weight", "quantizer.codebook"
STAGE_BLOCKS, STAGE_ATTENTION = "encoder.stages.#.blocks.#", "encoder.stages.#.attention.#"
DECODER_BLOCKS, MIDDLE_ATTENTION = "decoder.stages.#.blocks.#", "encoder.middle.attention"
SHARED = {  # what all three programs call alike: our names to theirs
    "encoder.first": "encoder.conv_in",
    "encoder.last": "encoder.conv_out",
    "encoder.project": "quant_conv",
    CODEBOOK: "quantize.embedding.weight",
    "decoder.project": "post_quant_conv",
    "decoder.first": "decoder.conv_in",
    "decoder.last": "decoder.conv_out",
}
# beside them: losses, averages, schedules
_AVERAGES = (".cluster_size", ".embed_avg")  # of taming's EMA quantizer, for training alone
_OWN = re.compile(r"(?:encoder|decoder|quantize|quant_conv|post_quant_conv)\.")


@dataclass(frozen=True)
class Layout:
    """The tensor names of one program, and its settings that shapes do not tell.

    In a name # is a number; the layers of blocks and of attention are named once for all stages.
    """

    name: str  # for people
    mark: str  # what only its tensors' names begin with
    parts: Mapping[str, str]  # our names to theirs
    block: Mapping[str, str]  # layers of a residual block, where theirs differ
    attention: Mapping[str, str]  # layers of attention
    normalize: bool = False  # whether its codes are on the unit sphere, which shapes cannot tell
    # whether the decoder's stages are numbered so; ours stand coarsest first
    finest_first: bool = False
    ignored: tuple[str, ...] = ()  # tensors of the quantizer that training alone looks at
    rename: Callable[[str], str] = str  # a tensor's name in an older release to that of today
    # of the normalization, by the checkpoint's folder: taming-transformers and LlamaGen fix 32
    groups: Callable[[Path], int] = lambda _folder: 32

    def theirs(self, name: str, stages: int) -> str:
        """Returns their name of our tensor in a network with so many stages."""
        if name == CODEBOOK:
            return self.parts[CODEBOOK]
        numbers = [int(number) for number in re.findall(r"\.(\d+)(?=\.)", name)]
        part, layer, leaf = re.fullmatch(
            r"(.+?)(?:\.(\w+))?\.(weight|bias)", re.sub(r"\.\d+(?=\.)", ".#", name)
        ).groups()  # type: ignore[union-attr]
        if f"{part}.{layer}" in self.parts:
            part, layer = f"{part}.{layer}", None
        if self.finest_first and part.startswith("decoder.stages."):
            numbers[0] = stages - 1 - numbers[0]
        if layer is not None:
            layer = (self.attention if "attention" in part else self.block).get(layer, layer)
        return ".".join(filter(None, (_filled(self.parts[part], numbers), layer, leaf)))

    def positions(self, part: str, names: Iterable[str]) -> set[tuple[int, int]]:
        """Returns (stage, number), as they count, of each part like STAGE_BLOCKS in their names."""
        pattern = re.compile(re.escape(self.parts[part]).replace(r"\#", r"(\d{1,3})") + r"\.")
        return {(int(match[1]), int(match[2])) for match in map(pattern.match, names) if match}

    def needed(self, names: Iterable[str]) -> list[str]:
        """Returns those of their tensors that encoding and decoding need."""
        return [
            name
            for name in names
            if _OWN.match(name) and name not in self.ignored and not name.endswith(_AVERAGES)
        ]


def _filled(template: str, numbers: list[int]) -> str:
    for number in numbers:
        template = template.replace("#", str(number), 1)
    return template
