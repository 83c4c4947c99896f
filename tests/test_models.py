"""The bundled models: small enough to travel, whole, described, and fit to use."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import ok
from conftest import image
from test_criterion import alex  # noqa: F401

import vqtok
from vqtok import config, images, model_registry, plots, weights
from vqtok import train as training
from vqtok.config import Recipe, TokenizerConfig

MODELS = Path(__file__).resolve().parents[1] / "models"
NAMES = ("cifar10", "fashion", "photo")
LIMIT = 32 << 20  # bytes of all bundled models: they travel with every install


def test_models_are_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_card_recipe_and_samples_belong_to_the_weights(name: str) -> None:
    folder = MODELS / name
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith(
        f"# {name} ({weights.tokenizer_fingerprint(folder / 'tokenizer.safetensors')})"
    )
    for word in ("Data", "Command", "Machine", "seed", "PSNR", "license", "samples.png"):
        assert word in card, word
    assert (folder / "samples.png").exists()
    recipe = Recipe().override(config.read_recipe(folder / "recipe.toml"), "recipe.toml")
    stored = weights.read_meta(folder / "tokenizer.safetensors", "tokenizer")["config"]
    assert recipe.tokenizer == config.from_dict(TokenizerConfig, stored, "stored")


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_those_of_the_card(name: str) -> None:
    """figures.json was measured with these weights, and the card shows its numbers, rounded."""
    folder = MODELS / name
    figures = plots.read_figures(folder / plots.FIGURES_FILE)
    fingerprint = weights.tokenizer_fingerprint(folder / "tokenizer.safetensors")
    assert (figures["model"], figures["fingerprint"]) == (name, fingerprint)
    card = (folder / "README.md").read_text(encoding="utf-8")
    for key in ("psnr", "ms_ssim", "bpp", "bpp_packed", "bpp_coded", "bits_per_dim"):
        assert f"{figures[key]:.5g} |" in card, key
    for row in figures["levels"] if len(figures["levels"]) > 1 else []:
        assert f"{row['bpp_packed']:.4f} |" in card
        assert f"{row['lpips']:.4f} |" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bundled_model_encodes_decodes_and_samples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VQTOK_MODELS")
    model = vqtok.load(name)
    channels = model.config.channels
    original = image(37, 61, channels)
    decoded = model.decode(model.encode(original))
    assert decoded.shape == original.shape
    # Far better than the best single color, which the images' own variance stands for.
    error = np.square(decoded.astype(float) - original).mean()
    assert error < 0.25 * original.var(axis=(0, 1)).mean()
    (sampled,) = model.sample(1, size=(16, 24), top_k=50)
    assert sampled.shape == (16, 24, channels)
    assert sampled.std() > 1


@pytest.mark.slow
def test_photo_gives_the_indices_and_pixels_it_always_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an image none of whose vectors lies between two codes: the nearest is nearer than the
    next by 0.05% of the vector at the least, a thousand times what rounding in another order
    changes. No speed is worth another index.
    """
    monkeypatch.delenv("VQTOK_MODELS")
    model = vqtok.load("photo")
    with np.load(Path(__file__).parent / "golden" / "photo.npz", allow_pickle=False) as golden:
        codes = model.encode(golden["picture"])
        assert np.array_equal(codes.indices, golden["indices"])
        assert np.abs(model.decode(codes).astype(int) - golden["decoded"]).max() <= 1
        assert np.abs(model.decode(codes, 2).astype(int) - golden["decoded2"]).max() <= 1


def test_default_model_is_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VQTOK_MODELS")
    assert model_registry.find_model(None).name == "photo"
    assert [model.name for model in model_registry.list_models()] == sorted(NAMES)


@pytest.mark.slow
def test_what_is_drawn_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fashion`, in 2 MB; `photo` to complete an image, or where size or levels are asked for."""
    monkeypatch.delenv("VQTOK_MODELS")
    folder = MODELS / model_registry.DEFAULT_SAMPLED
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000
    image_file = Path("a.png")
    images.write_image(image_file, image(32, 32))
    for words, name in (
        (("-n", "1"), "fashion"),
        (("-n", "1", "--size", "32"), "photo"),
        (("-n", "1", "--size", "32", "--levels", "1"), "photo"),
        (("-n", "1", "--size", "32", "--label", "bag"), "fashion"),  # photo has no labels
        (("-n", "1", "--levels", "1", "--complete", str(image_file)), "photo"),
        (("-n", "1", "--model", "cifar10"), "cifar10"),
    ):
        done = json.loads(ok("sample", *words, "-f", "--json").stdout)
        assert done["model"] == name, words
    model = vqtok.load("fashion")
    assert model.draw_defaults.guidance > 1
    assert model.labels[0] == "T-shirt"  # class 0 of the data set
    assert model.labels[9] == "Ankle boot"


def test_readme_figures_are_those_of_the_cards() -> None:
    """Every figure in the README's tables of models stands in that model's card, or is one of its
    figures.json, rounded once.
    """
    readme = (MODELS.parent / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        rows = re.findall(rf"^\| `{name}` .*$", readme, re.MULTILINE)
        assert len(rows) == 2, "what it is, and how good"
        card = (MODELS / name / "README.md").read_text(encoding="utf-8")
        figures = plots.read_figures(MODELS / name / plots.FIGURES_FILE)
        exact = [value for value in figures.values() if isinstance(value, float)]
        for number in re.findall(r"(?<![\w.])\d+\.\d+", "".join(rows)):
            digits = len(number.split(".")[1])
            shown = map(float, re.findall(r"(?<![\w.])\d+(?:\.\d+)?", card))
            known = {f"{value:.{digits}f}" for value in (*shown, *exact)}
            assert number in known, (name, number)


@pytest.mark.parametrize("name", ["gpu.toml", "cpu.toml"])
def test_recipes_for_the_photo_tokenizer_are_runs_of_its_network(
    name: str,
    alex: Path,  # noqa: F811
) -> None:
    """What the card's commands would begin: the bundled network, with the perceptual loss."""
    values = config.read_recipe(MODELS / "photo" / name)
    request = training.RunSpec(preset="photo", values=values, perceptual=str(alex))
    spec, _ = training.new_run(request)
    stored = weights.tokenizer_config(MODELS / "photo" / "tokenizer.safetensors")
    assert spec.recipe.tokenizer == stored
    assert spec.recipe.losses.perceptual == 3.0
    batch = spec.recipe.tokenizer_training.batch * spec.recipe.data.size**2
    assert batch == {"gpu.toml": 128 * 192**2, "cpu.toml": 16 * 128**2}[name]
