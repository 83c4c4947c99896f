"""Recipes to start from."""

from vqtok.config.recipe import (
    DataConfig,
    EntropyConfig,
    LossConfig,
    PriorConfig,
    PriorStageConfig,
    Recipe,
    SamplingConfig,
    StageConfig,
    TokenizerStageConfig,
)
from vqtok.config.tokenizer import TokenizerConfig

PRESETS: dict[str, Recipe] = {
    # Small enough for a laptop's CPU: a working model of 32x32 images, like the built-in shapes, in
    # seven minutes. A decoder that ended at 1/4 of the resolution blurred the shapes so much
    # that they could not be told apart.
    "tiny": Recipe(
        tokenizer=TokenizerConfig(
            downsample=4,
            width=64,
            encoder_blocks=1,
            decoder_blocks=2,
            decoder_widths=(32, 64),
            decoder_depths=(2, 1),
            codebook_size=256,
        ),
        prior=PriorConfig(codebook_size=256, width=64, layers=6, dropout=0.05),
        data=DataConfig(size=32, prior_size=32),
        tokenizer_training=TokenizerStageConfig(
            steps=1500,
            batch=32,
            learning_rate=2e-3,
            optimizer="muon",
            ema=0.99,
            validate_every=250,
        ),
        prior_training=PriorStageConfig(
            steps=3600, batch=32, learning_rate=2e-3, ema=0.995, validate_every=200
        ),
        entropy=EntropyConfig(codebook_size=256, width=96, blocks=1),
        entropy_training=StageConfig(steps=1000, batch=16, learning_rate=5e-3, validate_every=250),
        precision="bf16",
        sampling=SamplingConfig(guidance=3.0, temperature=0.8, top_p=0.9),
    ),
    # CIFAR-10 and other 32x32 images: 8x8 grid of 512 codes.
    "cifar": Recipe(
        tokenizer=TokenizerConfig(
            downsample=4,
            fold=2,
            width=64,
            encoder_blocks=2,
            decoder_blocks=3,
            shortcut=False,
            codebook_size=512,
            code_dim=64,
            normalize=False,
        ),
        prior=PriorConfig(codebook_size=512, layers=8, dropout=0.2),
        data=DataConfig(size=32, prior_size=32),
        tokenizer_training=TokenizerStageConfig(
            steps=7000, batch=64, warmup=200, validate_every=500
        ),
        prior_training=PriorStageConfig(steps=4000, batch=64, validate_every=500),
        entropy=EntropyConfig(codebook_size=512),
        entropy_training=StageConfig(steps=2000, batch=64, learning_rate=5e-3, validate_every=250),
        precision="bf16",
    ),
    # No tokenizer at all, for small images:
    # a prior over the gray values of each pixel, and with it a lossless codec.
    "pixels": Recipe(
        tokenizer=TokenizerConfig(
            downsample=1,
            fold=1,
            quantizer="pixels",
            codebook_size=256,
            code_dim=3,
            levels=3,
            normalize=False,
            likelihood="logistic",
        ),
        prior=PriorConfig(codebook_size=256, levels=3, width=64, layers=8, dropout=0.05),
        data=DataConfig(size=32, prior_size=32),
        prior_training=PriorStageConfig(steps=8000, batch=32, warmup=200, validate_every=500),
        entropy=EntropyConfig(codebook_size=256, levels=3, width=128),
        entropy_training=StageConfig(steps=2000, batch=16, learning_rate=5e-3, validate_every=250),
        precision="bf16",
    ),
    # Photographs of any size, f16: eight levels of 10 bits for 16x16 pixels,
    # 0.04 to 0.31 bits per pixel.
    "photo": Recipe(
        # The decoder is twice as deep as the encoder where texture is made, at 1/4, and ends at 1/2
        # of the resolution: what unfolds 4x4 pixels at once leaves a lattice of that period.
        tokenizer=TokenizerConfig(
            downsample=16,
            width=64,
            encoder_blocks=2,
            decoder_blocks=3,
            decoder_widths=(48, 96, 192, 256),
            decoder_depths=(2, 4, 3, 2),
            codebook_size=1024,
            code_dim=32,
            levels=8,
            level_dropout=0.5,
            normalize=False,
            likelihood="charbonnier",
        ),
        prior=PriorConfig(codebook_size=1024, levels=8, width=96, layers=6),
        data=DataConfig(size=128, min_scale=0.5),
        losses=LossConfig(ms_ssim=0.5),
        tokenizer_training=TokenizerStageConfig(
            steps=20000,
            batch=16,
            optimizer="muon",
            schedule="constant",
            ema=0.999,
            validate_every=500,
        ),
        prior_training=PriorStageConfig(steps=6000, batch=8, validate_every=500),
        entropy=EntropyConfig(codebook_size=1024, levels=8),
        entropy_training=StageConfig(steps=4000, batch=8, learning_rate=5e-3, validate_every=250),
        precision="bf16",
    ),
}
