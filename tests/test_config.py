import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from vqtok import config
from vqtok.config import (
    PRESETS,
    DataConfig,
    EntropyConfig,
    LossConfig,
    PriorConfig,
    PriorStageConfig,
    Recipe,
    SamplingConfig,
    StageConfig,
    TokenizerConfig,
    TokenizerStageConfig,
    from_dict,
    read_recipe,
    to_toml,
)
from vqtok.errors import FormatError, InputError, UsageError

# Class, setting, values that are allowed, values that are not.
LOSS_WEIGHTS = ("ms_ssim", "perceptual", "adversarial", "feature_matching", "lecam")
RANGES: list[tuple[type, str, tuple[Any, ...], tuple[Any, ...]]] = [
    (TokenizerConfig, "channels", (1, 3), (0, 2, 4)),
    (TokenizerConfig, "downsample", (4, 8, 16), (0, 1, 3, 32, -8)),
    (TokenizerConfig, "fold", (1, 2, 4), (0, 3, 8, 16)),
    (TokenizerConfig, "width", (4, 2048), (3, 2049)),
    (TokenizerConfig, "encoder_blocks", (0, 64), (-1, 65)),
    (TokenizerConfig, "decoder_blocks", (0, 64), (-1, 65)),
    (TokenizerConfig, "codebook_size", (2, 1 << 18), (0, 1, (1 << 18) + 1)),
    (TokenizerConfig, "code_dim", (2, 1024), (0, 1, 1025)),  # 1 only where codes are not normalized
    (TokenizerConfig, "levels", (1,), (0, 2, 33)),  # 2 only where codes are not normalized
    (TokenizerConfig, "level_dropout", (0.0, 1.0), (-0.1, 1.1, math.nan)),
    (TokenizerConfig, "beta", (0.1, 0.25, 2.0), (0.0, 0.099, 2.01, -1.0, math.nan, math.inf)),
    (TokenizerConfig, "decay", (0.0, 0.9999), (-0.1, 1.0, math.nan)),
    (TokenizerConfig, "restart", (0.0, 1.0), (-0.1, 1.1, math.nan)),
    (TokenizerConfig, "quantizer", ("vq", "ema", "simvq", "fsq", "lfq"), ("", "VQ", "residual")),
    (
        TokenizerConfig,
        "likelihood",
        ("mse", "l1", "charbonnier", "bce", "logistic", "heteroscedastic"),
        ("", "l2"),
    ),
    # classic and its settings: test_classic.py
    (TokenizerConfig, "network", ("folded",), ("", "classic")),
    (TokenizerConfig, "encoder_layers", ((),), (("down 64",), ("x",))),
    (TokenizerConfig, "decoder_layers", ((),), (("up 3",), ("relu",))),
    (TokenizerConfig, "input_mean", ((),), ((0.5,), (0.5, 0.5, 0.5))),
    (TokenizerConfig, "input_std", ((),), ((0.5,), (0.0,))),
    (TokenizerConfig, "distance", ("l2",), ("", "dot")),
    (TokenizerConfig, "stages", ((),), ((64,), (64, 64, 64, 64))),
    (TokenizerConfig, "attention", ((),), ((0,),)),
    (TokenizerConfig, "groups", (0,), (1, 32)),
    (TokenizerConfig, "z_channels", (0,), (1, 256)),
    (TokenizerConfig, "middle_blocks", (1, 64), (0, 65)),
    (TokenizerConfig, "hidden", (1, 4096), (0, 4097)),
    # together: the next test but one
    (TokenizerConfig, "decoder_widths", ((),), ((64,), (64, 128))),
    (TokenizerConfig, "decoder_depths", ((),), ((1,), (1, 2))),
    (PriorConfig, "codebook_size", (2, 1 << 18), (1, (1 << 18) + 1)),
    (PriorConfig, "levels", (1, 32), (0, 33)),
    (PriorConfig, "width", (4, 2048), (3, 2049)),
    (PriorConfig, "layers", (1, 64), (0, 65)),
    (PriorConfig, "kernel", (3, 5, 7, 9), (1, 2, 4, 11)),
    (PriorConfig, "dropout", (0.0, 0.9), (-0.1, 1.0, math.nan)),
    (
        PriorConfig,
        "labels",
        ((), ("Größe", "大", "👩‍🚀"), ("a b",)),
        (("a\nb",), ("a", "\x1b[2J"), ("\udc80",), ("\x7f",)),
    ),
    (
        PriorConfig,
        "architecture",
        ("pixelcnn", "pixelrnn", "transformer", "fvsbn", "masked"),
        ("", "PixelCNN"),
    ),
    (PriorConfig, "output", ("softmax", "logistic"), ("", "mixture")),
    (PriorConfig, "mixtures", (1, 100), (0, 101)),
    (PriorConfig, "heads", (1, 64), (0, 65)),
    (PriorConfig, "rows", (0, 4096), (-1, 4097)),
    (PriorConfig, "columns", (0, 4096), (-1, 4097)),
    (StageConfig, "steps", (1, 10**9), (0, -1)),
    (StageConfig, "batch", (1, 65536), (0, 65537)),
    (StageConfig, "learning_rate", (1e-9, 1.0), (0.0, -1e-3, 1.1, math.nan)),
    (StageConfig, "warmup", (0,), (-1,)),
    (StageConfig, "schedule", ("cosine", "constant"), ("", "linear")),
    (StageConfig, "cooldown", (0.01, 1.0), (0.0, -0.1, 1.1, math.nan)),
    (StageConfig, "clip", (1e-3, math.inf), (0.0, -1.0, math.nan)),
    (StageConfig, "optimizer", ("adamw", "muon"), ("", "sgd")),
    (StageConfig, "ema", (0.0, 0.99999), (-0.1, 1.0, math.nan)),
    (StageConfig, "validate_every", (1,), (0,)),
    (PriorStageConfig, "label_dropout", (0.0, 1.0), (-0.1, 1.1, math.nan)),
    (SamplingConfig, "temperature", (0.0, 100.0), (-0.1, 101.0, math.nan)),
    (SamplingConfig, "top_p", (1e-9, 1.0), (0.0, 1.1, math.nan)),
    (SamplingConfig, "guidance", (0.0, 100.0), (-0.1, 101.0, math.nan)),
    *((LossConfig, name, (0.0, 100.0), (-0.1, 101.0, math.nan)) for name in LOSS_WEIGHTS),
    (LossConfig, "perceptual_part", (0.01, 1.0), (0.0, 1.1, math.nan)),
    (LossConfig, "adversarial_start", (0.0, 1.0), (-0.1, 1.1, math.nan)),
    (LossConfig, "perceptual_start", (0.0, 1.0), (-0.1, 1.1, math.nan)),
    (DataConfig, "size", (2, 4096), (1, 4097)),
    (DataConfig, "prior_size", (2, 4096), (1, 4097)),
    (DataConfig, "min_scale", (0.01, 1.0), (0.0, 1.5, math.nan)),
    (DataConfig, "validation", (0.0, 0.5), (-0.1, 0.6)),
    (DataConfig, "validation_max", (1,), (0,)),
    (Recipe, "seed", (0, 2**31 - 1), (-1, 2**31)),
    (Recipe, "precision", ("fp32", "bf16"), ("fp16", "")),
]


# Ranges


@pytest.mark.parametrize(
    ("kind", "name", "good", "bad"),
    RANGES,
    ids=lambda value: getattr(value, "__name__", str(value))[:20],
)
def test_values_in_range_pass_and_others_are_usage_errors(
    kind: type, name: str, good: tuple[Any, ...], bad: tuple[Any, ...]
):
    for value in good:
        assert getattr(kind(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(UsageError) as caught:
            kind(**{name: value})
        assert caught.value.exit_code == 2
        assert caught.value.fix


def test_every_setting_has_its_range_tested():
    tested = {(kind, name) for kind, name, _, _ in RANGES}
    free = {("flip", bool), ("normalize", bool), ("shortcut", bool), ("product", bool)}
    for kind in (TokenizerConfig, PriorConfig, StageConfig, DataConfig, LossConfig):
        assert {(kind, f.name) for f in fields(kind) if (f.name, f.type) not in free} <= tested


def test_what_must_fit_together():
    assert TokenizerConfig(downsample=2, fold=2).fold == 2
    with pytest.raises(UsageError, match="fold is 4 at downsample 2"):
        TokenizerConfig(downsample=2, fold=4)
    assert TokenizerConfig(levels=32, normalize=False).levels == 32
    with pytest.raises(UsageError, match="unit sphere") as caught:
        TokenizerConfig(levels=2)
    assert "--no-normalize" in str(caught.value.fix)
    assert TokenizerConfig(code_dim=1, normalize=False).code_dim == 1
    with pytest.raises(UsageError, match="unit sphere") as caught:
        TokenizerConfig(code_dim=1)
    assert "--no-normalize" in caught.value.fix
    with pytest.raises(UsageError, match="size 100 is no multiple of downsample 8"):
        Recipe(data=DataConfig(size=100))


def test_stages_of_a_decoder():
    assert TokenizerConfig(downsample=8, width=16, decoder_blocks=3).decoder_stages == [
        (16, 3),
        (32, 3),
    ]
    assert TokenizerConfig(
        downsample=8, decoder_widths=(8, 16, 16), decoder_depths=(0, 1, 2)
    ).decoder_stages == [(8, 0), (16, 1), (16, 2)]
    with pytest.raises(UsageError, match="2 decoder_widths and 1 decoder_depths"):
        TokenizerConfig(decoder_widths=(8, 16), decoder_depths=(1,))
    with pytest.raises(UsageError, match="4 x 8 channels are no multiple of 24"):
        TokenizerConfig(decoder_widths=(8, 24), decoder_depths=(1, 1))
    assert TokenizerConfig(
        decoder_widths=(8, 24), decoder_depths=(1, 1), shortcut=False
    ).decoder_stages == [(8, 1), (24, 1)]
    with pytest.raises(UsageError, match="5 stages are too many for downsample 8"):
        TokenizerConfig(decoder_widths=(8,) * 5, decoder_depths=(1,) * 5)
    with pytest.raises(UsageError, match="width of a decoder's stage"):
        TokenizerConfig(decoder_widths=(3,), decoder_depths=(1,))
    with pytest.raises(UsageError, match="depth of a decoder's stage"):
        TokenizerConfig(decoder_widths=(8,), decoder_depths=(65,))


# Overrides


def test_override_changes_what_it_names_and_nothing_else():
    recipe = PRESETS["tiny"]
    changed = recipe.override({"tokenizer": {"beta": 1, "quantizer": "vq"}, "seed": 7})
    assert changed == replace(
        recipe, tokenizer=replace(recipe.tokenizer, beta=1.0, quantizer="vq"), seed=7
    )
    assert type(changed.tokenizer.beta) is float
    assert recipe.override({}) == recipe
    assert recipe.override({"prior": {"labels": ["a", "b"]}}).prior.labels == ("a", "b")


@pytest.mark.parametrize(
    ("values", "near"),
    [
        ({"tokenizer": {"codebok_size": 3}}, "codebook_size"),
        ({"tokeniser": {}}, "tokenizer"),
        ({"sede": 3}, "seed"),
        ({"tokenizer_training": {"learning_rat": 1.0}}, "learning_rate"),
        ({"data": {"min-scale": 1.0}}, "min_scale"),
        ({"prior": {"kernel_size": 3}}, "kernel"),
        ({"data": {"": 1}}, ""),
    ],
)
def test_an_unknown_key_names_the_nearest(values: dict[str, Any], near: str):
    with pytest.raises(UsageError, match=r"^my\.toml has the unknown key") as caught:
        Recipe().override(values, "my.toml")
    assert near in caught.value.fix


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"tokenizer": {"width": "wide"}}, "a whole number"),
        ({"tokenizer": {"width": 64.0}}, "a whole number"),
        ({"tokenizer": {"width": True}}, "a whole number"),
        ({"tokenizer": {"width": 2**63}}, "a whole number"),
        ({"tokenizer": {"beta": "0.25"}}, "a number"),
        ({"tokenizer": {"beta": True}}, "a number"),
        ({"tokenizer": {"beta": 10**400}}, "a number"),
        ({"tokenizer": {"normalize": 1}}, "true or false"),
        ({"tokenizer": {"normalize": "False"}}, "true or false"),
        ({"tokenizer": {"quantizer": 3}}, "text in quotes"),
        ({"precision": None}, "text in quotes"),
        ({"prior": {"labels": "cat"}}, "a list of texts"),
        ({"prior": {"labels": ["cat", 3]}}, "a list of texts"),
        ({"prior": 3}, "[prior]"),
        ({"seed": 16**5000}, "a whole number"),
        ({"seed": {}}, "a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_says_which_is_right(values: dict[str, Any], fix: str):
    with pytest.raises(UsageError, match=r"^my\.toml: ") as caught:
        Recipe().override(values, "my.toml")
    assert fix in caught.value.fix


# TOML


def round_trip(recipe: Recipe, path: Path) -> Recipe:
    path.write_text(to_toml(recipe), encoding="utf-8")
    return Recipe().override(read_recipe(path))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_toml(name: str, tmp_path: Path):
    assert round_trip(PRESETS[name], tmp_path / "recipe.toml") == PRESETS[name]


def test_everything_that_a_recipe_can_hold_survives_toml(tmp_path: Path):
    recipe = Recipe(
        TokenizerConfig(1, 2, 2, 16, 0, 5, False, "vq", 7, 1, 3, 0.5, False, 0.1, 0.5, 0.0, "bce"),
        PriorConfig(
            7, 3, 9, 3, 5, 0.0, ('quo"te', "back\\slash", "Größe", "👩‍🚀", "[x] = # 3", "", "true")
        ),
        DataConfig(64, 0.1 + 0.2, False, 10, 0.0, 3),
        LossConfig(0.5, 1.5, 0.25, 0.2, 0.1, 0.7, 2.0, 0.0),
        TokenizerStageConfig(5, 1, 1e-9, "muon", 0, "constant", 0.2, math.inf, 0.9, 2, True),
        PriorStageConfig(10**9, 2, 5e-324, "muon", 3, "constant", 1.0, 1e300, 0.1, 4, 0.3),
        3,
        "bf16",
        EntropyConfig(7, 3, 8, 16, 1, 9, 2),
        StageConfig(8, 3, 1e-4, "muon", 1, "constant", 0.1, 2.0, 0.5, 6),
        SamplingConfig(0.5, 0.9, 3.0),
    )
    for part in fields(Recipe):
        assert getattr(recipe, part.name) != getattr(Recipe(), part.name)
    assert round_trip(recipe, tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    "text",
    [
        b"[tokenizer",
        b"a = ",
        b"\xff\xfe",
        b"a = 1\na = 2",
        b"a = " + b"9" * 5000,
        b"a = " + b"[" * 100_000,
    ],
)
def test_what_is_not_toml_is_an_input_error(text: bytes, tmp_path: Path):
    (tmp_path / "bad.toml").write_bytes(text)
    with pytest.raises(InputError, match="not TOML"):
        read_recipe(tmp_path / "bad.toml")


def test_a_recipe_that_cannot_be_read_is_an_input_error(tmp_path: Path):
    with pytest.raises(InputError, match="No such file"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot read"):
        read_recipe(tmp_path)


# Files


@pytest.mark.parametrize(
    "settings", [TokenizerConfig(), TokenizerConfig(beta=1.0), PriorConfig(labels=("cat", "dog"))]
)
def test_a_config_survives_json(settings: TokenizerConfig | PriorConfig):
    values = json.loads(json.dumps(asdict(settings)))
    assert from_dict(type(settings), values, "x.safetensors") == settings


def test_settings_younger_than_a_file_are_what_it_was_made_with():
    values = {
        key: value
        for key, value in asdict(TokenizerConfig(beta=1.0)).items()
        if key not in config.OLD_DEFAULTS
    }
    assert from_dict(TokenizerConfig, values, "x.safetensors") == TokenizerConfig(
        beta=1.0, shortcut=False
    )


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        "x",
        3,
        {},
        {"channels": 3},
        {**asdict(TokenizerConfig()), "new": 1},
        {key: value for key, value in asdict(TokenizerConfig()).items() if key != "beta"},
    ],
)
def test_wrong_keys_in_a_file_are_format_errors(values: Any):
    with pytest.raises(FormatError, match=r"^x\.safetensors holds no valid TokenizerConfig"):
        from_dict(TokenizerConfig, values, "x.safetensors")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "3",
        [],
        {},
        True,
        -1,
        0,
        1e300,
        math.nan,
        math.inf,
        2**63,
        10**400,
        "\ud800",
        "\x1b[2J",
        [[]],
        ["a\nb"],
        ["\ud800"],
        "x" * 10**6,
    ],
)
@pytest.mark.parametrize("kind", [TokenizerConfig, PriorConfig])
def test_wrong_values_in_a_file_are_format_errors(kind: type, value: Any):
    """Each setting in turn holds the value: it is either in range or refused, with a short
    message that terminals can show.
    """
    messages = []
    for name in (f.name for f in fields(kind)):
        try:
            read = from_dict(kind, {**asdict(kind()), name: value}, "x.safetensors")
            assert getattr(read, name) == (tuple(value) if isinstance(value, list) else value)
        except FormatError as error:
            messages.append(str(error))
    assert len(messages) >= len(fields(kind)) - 11
    assert all(
        text.startswith("x.safetensors: ") and len(text) < 300 and text.isprintable()
        for text in messages
    )


# What is typed


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("prior.width=192", {"prior": {"width": 192}}),
        ("seed = 3", {"seed": 3}),
        ("tokenizer.beta=1e-1", {"tokenizer": {"beta": 0.1}}),
        ("tokenizer.normalize=false", {"tokenizer": {"normalize": False}}),
        ("precision=bf16", {"precision": "bf16"}),
        ("precision='bf16'", {"precision": "bf16"}),
        ('precision="bf16"', {"precision": "bf16"}),
        ("a=1h30m", {"a": "1h30m"}),
        ('prior.labels=["a", "b"]', {"prior": {"labels": ["a", "b"]}}),
        ("a=b=c", {"a": "b=c"}),
        ("a=", {"a": ""}),
        ("a=👩‍🚀", {"a": "👩‍🚀"}),
        (r"a=C:\x", {"a": r"C:\x"}),
        ("prior_training.clip=inf", {"prior_training": {"clip": math.inf}}),
    ],
)
def test_settings(text: str, setting: dict[str, Any]):
    assert config.parse_setting(text) == setting


@pytest.mark.parametrize(
    "text",
    [
        "",
        "=",
        "=3",
        "prior.width",
        "prior..width=3",
        "a b=3",
        "#a=3",
        "a=" + "9" * 5000,
        "a=" + "[" * 100_000,
    ],
)
def test_what_is_no_setting(text: str):
    with pytest.raises(UsageError, match="is no setting"):
        config.parse_setting(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("1.5", 1.5),
        ("0.5s", 0.5),
        ("10m", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1h2m3s", 3723),
        ("2h5s", 7205),
        (" 10m ", 600),
        ("0", 0),
    ],
)
def test_durations(text: str, seconds: float):
    assert config.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "h",
        "-5",
        "10 m",
        "5m1h",
        "1h30",
        "10x",
        "1e3",
        "inf",
        "nan",
        "1:30",
        "m10",
        ".5h",
        "10M",
    ],
)
def test_what_is_no_duration(text: str):
    with pytest.raises(UsageError, match="is no duration"):
        config.parse_duration(text)
