"""The names that a program gives the tensors of the classic network."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
_OWN = re.compile(r"(?:encoder|decoder|quantize|quant_conv|post_quant_conv)\.")


@dataclass(frozen=True)
class Layout:
    """One program's names.

    In a name # stands for a number; parts of blocks and of attention are named
    apart from where they stand.
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

    def theirs(self, name: str, stages: int) -> str:
        """Their name of our tensor in a network with so many stages."""
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
        """The stages and numbers of which there is a part like STAGE_BLOCKS, in
        their count; names are theirs.
        """
        pattern = re.compile(re.escape(self.parts[part]).replace(r"\#", r"(\d{1,3})") + r"\.")
        return {(int(match[1]), int(match[2])) for match in map(pattern.match, names) if match}

    def needed(self, names: Iterable[str]) -> list[str]:
        """Those of their tensors that encoding and decoding need."""
        return [name for name in names if _OWN.match(name) and name not in self.ignored]


def _filled(template: str, numbers: list[int]) -> str:
    for number in numbers:
        template = template.replace("#", str(number), 1)
    return template
