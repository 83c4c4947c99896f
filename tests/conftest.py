"""What all tests share: no environment of the user's, one torch thread, and
small models made on the spot.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from vqtok import images, model_registry, weights
from vqtok.config import PriorConfig, TokenizerConfig

# their failures show values too
pytest.register_assert_rewrite("cli_helpers", "image_helpers", "train_helpers")

TOKENIZER = TokenizerConfig(
    downsample=4, width=8, encoder_blocks=1, decoder_blocks=1, codebook_size=16, code_dim=4
)
PRIOR = PriorConfig(codebook_size=16, width=8, layers=2, labels=("cat", "dog", "eel"))
RECIPE = """
seed = 3
precision = "fp32"
[tokenizer]
downsample = 4
width = 8
encoder_blocks = 1
decoder_blocks = 1
codebook_size = 16
code_dim = 4
levels = 1
normalize = true
[prior]
width = 8
layers = 2
[entropy]
embedding = 4
width = 8
blocks = 1
rank = 4
[data]
size = 16
prior_size = 16
validation_max = 4
flip = false
[tokenizer_training]
steps = 6
batch = 4
validate_every = 3
[prior_training]
steps = 4
batch = 4
validate_every = 2
[entropy_training]
steps = 2
batch = 4
validate_every = 2
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Of xdist's workers on the whole suite, each first imports a part of the files of its own, and
    finds the others compiled: after a change, their asserts take 5 s.
    """
    worker, count = (os.environ.get(f"PYTEST_XDIST_WORKER{end}", "") for end in ("", "_COUNT"))
    here = Path(__file__).parent
    if worker and [Path(path).resolve() for path in session.config.args] == [here]:
        names = sorted(path.stem for path in here.glob("test_*.py"))
        for name in names[len(names) * int(worker[2:]) // int(count) :]:
            with suppress(Exception):  # collection will show it
                import_module(name)


@pytest.fixture(scope="session", autouse=True)
def _signals_arrive() -> Iterator[None]:
    """SIGINT and SIGTERM do what they do at a terminal, here and in the processes that tests start:
    a script ignores SIGINT in what it starts in the background.
    """
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def few_vectors() -> Iterator[None]:
    """Training starts its codebook from 256 vectors, not from 20,000: those take a second of each
    run.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqtok.train.tokenizer.INITIAL_VECTORS", 256)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_workers() -> Iterator[None]:
    """A bulk encode without --workers decodes in this process: each other takes 0.35 s to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqtok.bulk.encode.default_workers", lambda: 0)
        yield


@pytest.fixture(autouse=True)
def _hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every VQTOK_* variable is unset or points below tmp_path, which is also where relative paths
    go; torch runs all models.
    """
    for name in ("VQTOK_MODEL", "VQTOK_DEVICE", "VQTOK_DEBUG", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VQTOK_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("VQTOK_RUNTIME", "torch")  # also where onnxruntime is installed
    monkeypatch.chdir(tmp_path)
    import torch  # not above: the process that only hands out the tests needs none

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(
    folder: Path,
    tokenizer: TokenizerConfig = TOKENIZER,
    prior: PriorConfig | None = PRIOR,
    seed: int = 0,
) -> Path:
    """A model folder with untrained weights: everything works, nothing looks good.

    Each is drawn once a session, and written as often as asked for.
    """
    key = repr((tokenizer, prior, seed))
    if key not in _made:
        _draw_model(folder, tokenizer, prior, seed)
        parts = ("tokenizer",) if prior is None else ("tokenizer", "prior")
        _made[key] = {
            name: (folder / name).read_bytes() for name in (f"{part}.safetensors" for part in parts)
        }
    else:
        import torch

        torch.manual_seed(seed)  # as drawing does
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in _made[key].items():
            (folder / name).write_bytes(data)
    return folder


_made: dict[str, dict[str, bytes]] = {}


def _draw_model(
    folder: Path, tokenizer: TokenizerConfig, prior: PriorConfig | None, seed: int
) -> None:
    import torch

    from vqtok.networks.vqvae import VQVAE
    from vqtok.priors import PixelCNN

    torch.manual_seed(seed)
    network = VQVAE(tokenizer)
    tensors = {
        name: value.detach().half().numpy() for name, value in network.release_state().items()
    }
    record = {
        "data": "noise",
        "pictures": 1,
        "seed": seed,
        "step": 0,
        "seconds": 0.0,
        "metrics": {"psnr": 10.0},
        "version": "0",
    }
    weights.save_weights(
        folder / "tokenizer.safetensors",
        weights.Weights(tensors, _meta("tokenizer", asdict(tokenizer), record)),
    )
    if prior is not None:
        state = {
            name: value.detach().half().numpy()
            for name, value in PixelCNN(prior).state_dict().items()
        }
        more = record | {
            "tokenizer": weights.fingerprint(tensors),
            "grid": [4, 5],
            "metrics": {"bits": 4.0},
        }
        weights.save_weights(
            folder / "prior.safetensors",
            weights.Weights(state, _meta("prior", asdict(prior), more)),
        )


def make_default(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a model the default of every command, hides the bundled ones; a terminal has 120
    columns.
    """
    monkeypatch.setattr(model_registry, "bundled_models", lambda: model.parent / ".none")
    monkeypatch.setenv("VQTOK_MODEL", model.name)
    monkeypatch.setenv("COLUMNS", "120")
    return model


def make_levels(folder: Path, levels: int) -> Path:
    """A model like that of `make_model`, with so many levels of 16 codes for 4x4 pixels."""
    tokenizer = replace(TOKENIZER, levels=levels, normalize=False)
    return make_model(folder, tokenizer, replace(PRIOR, levels=levels))


def _meta(kind: str, config: dict[str, object], record: dict[str, object]) -> dict[str, object]:
    return {"kind": kind, "config": config, "record": record}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model called `toy` in the folder that VQTOK_MODELS names: f 4, K 16, three labels."""
    return make_model(tmp_path / "models" / "toy")


@pytest.fixture
def toy(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default model of every command is the toy of `model`, and no bundled model is there."""
    return make_default(model, monkeypatch)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve images in two sub-folders, and small.toml in the working folder."""
    for i in range(12):
        images.write_image(tmp_path / "data" / "ab"[i % 2] / f"{i:02}.png", image(16, 16, seed=i))
    (tmp_path / "small.toml").write_text(RECIPE)
    return tmp_path / "data"


def image(height: int = 20, width: int = 30, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth noise, uint8 (height, width, channels)."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = draw.uniform(0.05, 0.3, (2, channels))
    values = 127 + 100 * np.sin(rows[..., None] * waves[0] + columns[..., None] * waves[1])
    return (values + draw.normal(0, 5, values.shape)).clip(0, 255).astype(np.uint8)
