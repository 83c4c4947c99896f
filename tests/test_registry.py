"""Adding a quantizer, network, loss, data source and others takes one file and one line."""

import json
import shutil
from pathlib import Path

import pytest
from warm import Warm

import vqtok
from vqtok.config import registry

TOY = """
from torch import nn
from vqtok.config.registry import setting_of
from vqtok.quantizers.codebook import VectorQuantizer

class ToyQuantizer(VectorQuantizer):
    def __init__(self, config):
        super().__init__(config)
        self.temperature = setting_of(config, "temperature")

    def forward(self, z, *depths):
        return super().forward(z * self.temperature, *depths)
"""
LIKELIHOOD = """
from vqtok.losses.likelihood import MeanSquared

class Toy(MeanSquared):
    def error(self, output, image):
        return 2 * super().error(output, image)
"""
LOSS = """
from vqtok.losses.base import LossTerm

class Toy(LossTerm):
    def forward(self, reconstruction, images, shared):
        return (reconstruction - images).abs().mean()
"""
OPTIMIZER = """
import torch

class Toy(torch.optim.AdamW):
    pass
"""
NETWORK = """
from vqtok.networks.vqvae import STREAMABLE, Decoder, Encoder
"""
SOURCE = """
import numpy as np
from vqtok.data.dataset import ArrayData

def open_toy(place, split, options):
    if not place.named(".toy"):
        return None
    value = int(place.head)
    return ArrayData(place.path.name, np.full((6, 8, 8, 3), value, np.uint8))
"""
# file, its text, table of the registry, and the one line in it
TOYS = (
    (
        "quantizers/toy.py",
        TOY,
        "QUANTIZERS",
        'Entry("vqtok.quantizers.toy:ToyQuantizer", "a toy",'
        ' adds={"temperature": Setting(1.0, 0.5, 4.0)})',
    ),
    ("losses/toy.py", LIKELIHOOD, "LIKELIHOODS", 'Entry("vqtok.losses.toy:Toy", "a toy")'),
    (
        "losses/toy_term.py",
        LOSS,
        "LOSSES",
        'Entry("vqtok.losses.toy_term:Toy", "a toy", adds={"toy": Setting(0.0, 0.0, 100.0)})',
    ),
    ("train/toy.py", OPTIMIZER, "OPTIMIZERS", 'Entry("vqtok.train.toy:Toy", "a toy")'),
    ("networks/toy.py", NETWORK, "NETWORKS", 'Entry("vqtok.networks.toy", "a toy")'),
    ("data/toy.py", SOURCE, "DATA_SOURCES", 'Entry("vqtok.data.toy:open_toy", "a toy")'),
)
TINY = (
    "fold=1 width=4 encoder_blocks=0 decoder_blocks=1 codebook_size=8 code_dim=2 downsample=2"
    " normalize=false network=toy temperature=2"
)
# Trains with all toys at once; prints one JSON line with what came out.
SCRIPT = """
import io, json, sys
import numpy as np
from contextlib import redirect_stdout
from PIL import Image
from typer.testing import CliRunner
import vqtok
from vqtok.cli import app
from vqtok import config

def run(*words):
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output

Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save("a.png")
sets = [word for text in sys.argv[1].split() for word in ("--set", "tokenizer." + text)]
sets += ["--set", "tokenizer_training.optimizer=toy", "--set", "losses.toy=0.5"]
sets += ["--set", "tokenizer_training.validate_every=2", "--set", "data.prior_size=8"]
open("six.toy", "w").write("77")
train = ["train", "six.toy", "-o", "m",
         "--stage", "tokenizer", "--quantizer", "toy", "--likelihood", "toy",
         "--steps", "2", "--batch", "2", "--size", "8", "--device", "cpu", "-q", *sets]
model = None
found = {"train": run(*train), "help": run("train", "--help")[1]}
if found["train"][0] == 0:
    model = vqtok.load("m", device="cpu")
    found["data"] = json.loads(open("m/run.json").read())["pictures"]
    found["eval"] = run("eval", "six.toy", "-m", "m", "--codecs", "none", "--json")
    found["image"] = model.decode(model.encode("a.png")).shape
    found["setting"] = model.quantizer.temperature
found["range"] = run(*train, "-f", "--set", "tokenizer.temperature=9")
found["log"] = json.loads(open("m/log.jsonl").read().splitlines()[-1])
found["old"] = config.from_dict(
    config.TokenizerConfig,
    {k: v for k, v in vars(config.TokenizerConfig()).items() if k != "temperature"}, "a file"
).temperature
from vqtok.cli import options
found["completed"] = options.complete_setting("QUANTIZERS")("to")
print(json.dumps(found))
"""


@pytest.mark.slow
def test_one_file_and_one_line_add_each_of_them(tmp_path: Path) -> None:
    source = Path(vqtok.__file__).parent
    copy = tmp_path / "lib" / "vqtok"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "models", "web"))
    table = copy / "config" / "registry.py"
    text = table.read_text(encoding="utf-8")
    for name, code, kind, line in TOYS:
        assert not (copy / name).exists()
        (copy / name).write_text(code, encoding="utf-8")
        start = f"{kind}: Table = {{\n"
        assert text.count(start) == 1
        text = text.replace(start, f'{start}    "toy": {line},\n')
    table.write_text(text, encoding="utf-8")
    (tmp_path / "work").mkdir()
    environment = {"PYTHONPATH": str(copy.parent), "PATH": "", "COLUMNS": "200"}
    process = Warm(SCRIPT, [TINY], environment, tmp_path / "work")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    found = json.loads(output.splitlines()[-1])
    assert found["train"] == [0, found["train"][1]], found["train"]
    assert found["image"] == [16, 16, 3]
    assert found["setting"] == 2.0
    assert found["data"] == 6
    assert found["eval"][0] == 0, found["eval"]
    assert json.loads(found["eval"][1])["data"] == "six.toy"
    assert found["log"]["val_toy"] > 0
    code, message = found["range"]
    assert code == 2
    assert "temperature is 9.0, outside [0.5, 4.0]" in message
    assert found["old"] == 1.0  # a file that is older than the setting
    assert found["completed"] == ["toy"]
    help_text = " ".join(found["help"].split())
    assert "toy, ema, vq, simvq, fsq, lfq, or pixels (by its preset)." in help_text
    assert "toy, mse, l1" in help_text


@pytest.mark.parametrize(
    "table",
    [
        registry.QUANTIZERS,
        registry.LIKELIHOODS,
        registry.NETWORKS,
        registry.LOSSES,
        registry.OPTIMIZERS,
        registry.PRIORS,
        registry.SAMPLERS,
        registry.OUTPUTS,
        registry.DATA_SOURCES,
    ],
)
def test_each_path_names_something_and_its_settings_are_fields(table: registry.Table) -> None:
    from vqtok import config

    kinds = (config.TokenizerConfig, config.PriorConfig, config.LossConfig, config.StageConfig)
    known = {name for kind in kinds for name in kind.__dataclass_fields__}
    for entry in table.values():
        assert entry.load() is not None
        assert entry.help
        assert {*entry.settings, *entry.adds} <= known
