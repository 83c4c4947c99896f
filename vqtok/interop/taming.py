"""VQGAN checkpoints of taming-transformers, and of latent-diffusion, which
names its VQ models alike.

Source: github.com/CompVis/taming-transformers, taming/modules/diffusionmodules/model.py
and taming/models/vqgan.py.
"""

from vqtok.interop.layout import SHARED, Layout

LAYOUT = Layout(
    name="taming-transformers VQGAN",
    mark="encoder.down.",
    parts=SHARED
    | {
        "encoder.stages.#.blocks.#": "encoder.down.#.block.#",
        "encoder.stages.#.attention.#": "encoder.down.#.attn.#",
        "encoder.stages.#.resample": "encoder.down.#.downsample.conv",
        "encoder.middle.before": "encoder.mid.block_1",
        "encoder.middle.attention": "encoder.mid.attn_1",
        "encoder.middle.after": "encoder.mid.block_2",
        "encoder.norm": "encoder.norm_out",
        "decoder.middle.before": "decoder.mid.block_1",
        "decoder.middle.attention": "decoder.mid.attn_1",
        "decoder.middle.after": "decoder.mid.block_2",
        "decoder.stages.#.blocks.#": "decoder.up.#.block.#",
        "decoder.stages.#.attention.#": "decoder.up.#.attn.#",
        "decoder.stages.#.resample": "decoder.up.#.upsample.conv",
        "decoder.norm": "decoder.norm_out",
    },
    block={"shortcut": "nin_shortcut"},
    attention={"query": "q", "key": "k", "value": "v", "out": "proj_out"},
    finest_first=True,
    # which codes were used, to renumber them: vqtok keeps the codebook's own numbers
    ignored=("quantize.used",),
)
