"""Finds and loads the model that a command's options name."""

import os
import sys
from functools import cached_property
from typing import TYPE_CHECKING

from vqtok import model_registry
from vqtok.cli import output
from vqtok.cli.collector import without_collector
from vqtok.errors import UsageError

if TYPE_CHECKING:
    from vqtok.bulk.shards import Manifest
    from vqtok.codec import FastModel, Model
    from vqtok.codes import Codes, Compact
    from vqtok.config import TokenizerConfig
    from vqtok.images import Range
    from vqtok.model_registry import ModelFolder, StoredTokenizer


# Kinds of products that oneDNN, and PyTorch above it, each keep compiled, in place of 1,024. Images
# of many sizes make some 10 new kinds each: `encode` of 1,000 sizes held 573 MB, with 64 kinds 327,
# and took the same time. `photo` has 23 at one size, and up to 48 where it decodes tile by tile.
_PRODUCTS_KEPT = 64
RUNTIMES = ("auto", "onnxruntime", "torch")  # of VQTOK_RUNTIME


class ModelOptions:
    """The options --model, --device and --precision.

    The model is searched for once, and its header is read once, when first asked for.
    """

    def __init__(
        self,
        name: str | None,
        device: str | None,
        precision: str = "fp32",
        verbose: bool = False,
        default: str = model_registry.DEFAULT_MODEL,
    ) -> None:
        """default is the model where neither `name` nor VQTOK_MODEL says one."""
        for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
            os.environ.setdefault(variable, str(_PRODUCTS_KEPT))  # read at the first product
        self.name, self.device, self.precision, self.verbose = name, device, precision, verbose
        self.default = default

    @cached_property
    def folder(self) -> "ModelFolder":
        """Returns the model's folder. Raises ModelError where there is none."""
        return model_registry.find_model(self.name, self.default)

    @cached_property
    def config(self) -> "TokenizerConfig":
        """Returns the tokenizer's settings, from the file's header. Raises FormatError where it is
        damaged.
        """
        from vqtok import weights

        return weights.tokenizer_config(self.folder.tokenizer)

    def value_range(self, given: str | None) -> "Range | None":
        """Returns the range of deep images: as given, else the model's; None is auto. Raises
        UsageError.
        """
        from vqtok import images, weights

        if given is not None:
            return images.parse_range(given)
        record = weights.read_meta(self.folder.tokenizer, "tokenizer")["record"]
        return images.range_of_record(record)

    def check_levels(self, levels: int | None) -> None:
        """Raises UsageError where the model has fewer levels, before torch is imported."""
        if levels is None or levels <= self.config.levels:
            return
        from vqtok import codes

        raise UsageError(
            f"the model {self.folder.name} has {codes.count_levels(self.config.levels)}, "
            f"not {levels}",
            codes.levels_fix(self.config.levels),
        )

    def load(self) -> "Model":
        """Loads the model that --model names. Errors as `codec.load`."""
        from vqtok import codec

        folder = self.folder
        with without_collector():
            model = codec.load(folder, self.device, self.precision)
        self._say(model)
        return model

    def load_for(self, codes: "Codes | Compact | Manifest") -> "Model":
        """Loads the model that made these codes, whatever --model says."""
        from vqtok import codec

        with without_collector():
            model = codec.load_for(codes, self.device, self.precision)
        self._say(model)
        return model

    def load_codec(self) -> "FastModel | Model":
        """Loads the model that --model names to encode and decode: with onnxruntime where that is
        installed and the options allow it, else with torch. Errors as `codec.load`.
        """
        if not self.without_torch():
            return self.load()
        from vqtok import codec

        folder = self.folder
        with without_collector():
            model = codec.load_fast(folder, self._load_stored)
        self._say_fast(model)
        return model

    def load_codec_for(self, codes: "Codes | Compact | Manifest") -> "FastModel | Model":
        """Loads the model that made these codes as `load_codec`, whatever --model says."""
        if not self.without_torch():
            return self.load_for(codes)
        from vqtok import codec

        with without_collector():
            model = codec.load_fast_for(codes, self._load_stored)
        self._say_fast(model)
        return model

    def without_torch(self) -> bool:
        """Whether to encode and decode by onnxruntime: on the CPU, in fp32, where it is installed
        and VQTOK_RUNTIME does not say torch. UsageError where that asks for what there is not.
        """
        from vqtok.onnx import session

        runtime = os.environ.get("VQTOK_RUNTIME") or "auto"
        if runtime not in RUNTIMES:
            raise UsageError(
                f"VQTOK_RUNTIME is {runtime!r}", f"choose {', '.join(RUNTIMES[:-1])} or torch"
            )
        if runtime == "torch":
            return False
        if runtime == "onnxruntime" and not session.is_installed():
            raise UsageError(
                "VQTOK_RUNTIME asks for onnxruntime, which is not installed",
                "pip install 'vqtok[fast]', or leave VQTOK_RUNTIME out",
            )
        device = self.device or os.environ.get("VQTOK_DEVICE") or "auto"
        on_cpu = device == "cpu" or (device == "auto" and not may_have_gpu())
        return on_cpu and self.precision == "fp32" and session.is_installed()

    def _load_stored(self, stored: "StoredTokenizer") -> "Model":
        from vqtok import codec

        with without_collector():
            model = codec.load_stored(stored, self.device, self.precision)
        self._say(model)
        return model

    def _say(self, model: "Model") -> None:
        if self.verbose:
            import torch

            self._say_all(model, model.device.type, model.precision, f"torch {torch.__version__}")

    def _say_fast(self, model: "FastModel | Model") -> None:
        from vqtok.codec import FastModel

        if self.verbose and isinstance(model, FastModel):
            self._say_all(model, "cpu", "fp32", model.runtime)

    def _say_all(
        self, model: "FastModel | Model", device: str, precision: str, runtime: str
    ) -> None:
        output.say(
            f"model {model.name} ({model.fingerprint}) from {model.folder.path}, "
            f"{device}, {precision}, {runtime}"
        )


def may_have_gpu() -> bool:
    """Whether torch may find a GPU here, as far as can be told without it: where there is a device
    that its driver makes.
    """
    if sys.platform == "darwin":
        return os.uname().machine == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    system = os.environ.get("SYSTEMROOT", r"C:\Windows")
    drivers = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", rf"{system}\System32\nvcuda.dll")
    return any(map(os.path.exists, drivers))
