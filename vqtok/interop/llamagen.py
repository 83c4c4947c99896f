"""Tokenizers of LlamaGen: VQ-8 and VQ-16, whose codes are on the unit sphere.

Source: github.com/FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py.
"""

from vqtok.interop import taming
from vqtok.interop.layout import SHARED, Layout

LAYOUT = Layout(
    name="LlamaGen VQ model",
    mark="encoder.conv_blocks.",
    parts=SHARED
    | {
        "encoder.stages.#.blocks.#": "encoder.conv_blocks.#.res.#",
        "encoder.stages.#.attention.#": "encoder.conv_blocks.#.attn.#",
        "encoder.stages.#.resample": "encoder.conv_blocks.#.downsample.conv",
        "encoder.middle.before": "encoder.mid.0",
        "encoder.middle.attention": "encoder.mid.1",
        "encoder.middle.after": "encoder.mid.2",
        "encoder.norm": "encoder.norm_out",
        "decoder.middle.before": "decoder.mid.0",
        "decoder.middle.attention": "decoder.mid.1",
        "decoder.middle.after": "decoder.mid.2",
        "decoder.stages.#.blocks.#": "decoder.conv_blocks.#.res.#",
        "decoder.stages.#.attention.#": "decoder.conv_blocks.#.attn.#",
        "decoder.stages.#.resample": "decoder.conv_blocks.#.upsample.conv",
        "decoder.norm": "decoder.norm_out",
    },
    block=taming.LAYOUT.block,  # its layers are taming's
    attention=taming.LAYOUT.attention,
    normalize=True,
    ignored=("quantize.codebook_used",),
)
