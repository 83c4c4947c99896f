"""The training step of a GPU, which never looks at its own numbers: run on a CPU, against the step
of a CPU."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from test_train_robust import nan_loss, spoil_images, spoil_loss
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from train_helpers import Interrupt, contents, go, log, recipe_for

from vqtok.config import Recipe, TokenizerConfig
from vqtok.data import Shapes, split_indices
from vqtok.errors import TrainingError
from vqtok.quantizers import build_quantizer, codebook, residual
from vqtok.train import graph, loop, runtime
from vqtok.train import state as states
from vqtok.train.ema import WeightAverage
from vqtok.train.muon import MOMENTUM, Muon
from vqtok.train.saver import Saver
from vqtok.train.spec import RunSpec
from vqtok.train.tokenizer import TokenizerTask

ms_ssim = importlib.import_module("vqtok.losses.ms_ssim")  # its package hides it behind a function

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# Everything at once: several levels, level dropout, dead codes, Muon, averages, MS-SSIM, and a
# discriminator from half of the run on.
EVERYTHING: dict[str, Any] = {
    "tokenizer": {
        "width": 32,
        "levels": 3,
        "level_dropout": 0.5,
        "normalize": False,
        "restart": 0.5,
        "decay": 0.8,
        "likelihood": "charbonnier",
    },
    "data": {"min_scale": 0.5},
    "losses": {"ms_ssim": 0.5, "adversarial": 0.2, "adversarial_start": 0.5},
    "tokenizer_training": {
        "steps": 12,
        "validate_every": 6,
        "optimizer": "muon",
        "learning_rate": 1e-3,
        "ema": 0.9,
    },
}


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, bank: bool = False) -> None:
    """Steps run as they do on a GPU, but for graphs; figures are read every 5 steps."""
    for module in ("loop", "muon", "adversary", "runtime"):
        monkeypatch.setattr(f"vqtok.train.{module}.sync_free", lambda device: True)
    monkeypatch.setattr("vqtok.train.loop.READ_EVERY", 5)
    for module in ("codebook", "residual"):
        monkeypatch.setattr(f"vqtok.quantizers.{module}.in_chunks", lambda device: False)
    if bank:
        monkeypatch.setattr("vqtok.train.tokenizer.bank_limit", lambda device: 2**30)


@pytest.fixture
def sync_free(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [(32, 40), (40, 40), (40, 40), (40, 64), (64, 3)]
    network = nn.Sequential(*(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def muon_steps(steps: int, spoiled: int = -1) -> tuple[nn.Sequential, Muon]:
    """A network after some steps of Muon, of which number `spoiled` has a gradient without end."""
    network = convolutions()
    optimizer = Muon(network.parameters(), 0.01, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    for step in range(steps):
        x = torch.randn(2, 32, 8, 8, generator=torch.Generator().manual_seed(step))
        (network(x).square().mean() * (float("nan") if step == spoiled else 1)).backward()
        ok = None if spoiled < 0 else torch.tensor(step != spoiled)
        optimizer.step(ok=ok)
        optimizer.zero_grad(set_to_none=True)
    return network, optimizer


# Muon, averages, bands


def test_muon_in_groups_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqtok.train.muon.PRECISION", torch.float32)
    alone, one = muon_steps(3)
    monkeypatch.setattr("vqtok.train.muon.sync_free", lambda device: True)
    grouped, many = muon_steps(3)
    assert len(many._groups) == 3
    for a, b in zip(alone.parameters(), grouped.parameters(), strict=True):
        torch.testing.assert_close(b, a, atol=1e-5, rtol=1e-5)
        for name, value in one.state[a].items():
            torch.testing.assert_close(many.state[b][name], value, atol=1e-6, rtol=1e-5)


def test_a_spoiled_step_of_muon_changes_nothing(sync_free: None) -> None:
    network, optimizer = muon_steps(3, spoiled=2)
    before, state = muon_steps(2, spoiled=9)
    for a, b in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
        assert all(
            torch.equal(optimizer.state[a][name], value) for name, value in state.state[b].items()
        )


def test_momenta_from_a_state_file_are_taken_up(sync_free: None) -> None:
    network, optimizer = muon_steps(1)
    weight = optimizer.matrices[0]
    optimizer.state[weight] = {"momentum": torch.ones_like(weight)}
    for matrix in network.parameters():
        matrix.grad = torch.zeros_like(matrix)
    optimizer.step()
    assert torch.allclose(optimizer.state[weight]["momentum"], torch.full_like(weight, MOMENTUM))


def test_averages_follow_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for free in (False, True):
        monkeypatch.setattr(runtime, "sync_free", lambda device, free=free: free)
        network = convolutions()
        average = WeightAverage(network, 0.9)
        for step in range(1, 4):
            with torch.no_grad():
                for p in network.parameters():
                    p.add_(step)
            average.schedule(step)
            average.update(None if step < 3 else torch.tensor(True))
        if free:
            before = {name: value.clone() for name, value in average.tensors.items()}
            average.update(torch.tensor(False))
            assert all(torch.equal(value, before[name]) for name, value in average.tensors.items())
        found.append(average.tensors)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-6, rtol=1e-6)


def test_bands_are_made_once_and_serve_everywhere() -> None:
    ms_ssim._kept_bands.clear()
    x = torch.rand(1, 1, 24, 24)
    with torch.inference_mode():
        first = ms_ssim.ms_ssim(x, x * 0.9)
    y = (x * 0.9).requires_grad_()
    second = ms_ssim.ms_ssim(x, y)
    second.backward()
    assert torch.equal(first, second.detach())
    assert sorted(key[0] for key in ms_ssim._kept_bands) == [12, 24]


# The quantizer


def quantize(
    kind: str, levels: int, monkeypatch: pytest.MonkeyPatch, whole: bool, **settings: Any
) -> list[Tensor]:
    """Vectors, indices, loss, gradients, and the state after `update_codebook`, of a
    quantizer that has seen one batch.
    """
    config = TokenizerConfig(
        quantizer=kind,
        levels=levels,
        codebook_size=32,
        code_dim=6,
        normalize=levels == 1,
        level_dropout=0.5 * (levels > 1),
        **settings,
    )
    for module in (codebook, residual):
        monkeypatch.setattr(module, "in_chunks", lambda device: not whole)
    torch.manual_seed(0)
    quantizer = build_quantizer(config)
    quantizer.initialize(torch.randn(500, 6))
    quantizer.train()
    z = torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    generator = torch.Generator().manual_seed(2)
    depths, rows = quantizer.draw_depths(3, generator), quantizer.draw_rows(192, generator)
    out = quantizer(z) if depths is None else quantizer(z, depths)
    weight = torch.randn(out.vectors.shape, generator=generator)
    (out.loss * 3 + (out.vectors * weight).sum()).backward()
    gradients = [p.grad for p in (z, *quantizer.parameters()) if p.grad is not None]
    revived = quantizer.update_codebook(rows)
    return [
        out.vectors.detach(),
        out.indices,
        out.loss.detach(),
        revived,
        *gradients,
        *quantizer.state_dict().values(),
    ]


@pytest.mark.parametrize("kind", ["ema", "vq", "simvq"])
@pytest.mark.parametrize("levels", [1, 3])
def test_the_search_without_chunks_finds_the_same(
    kind: str, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = quantize(kind, levels, monkeypatch, whole=False, restart=0.9, decay=0.5)
    found = quantize(kind, levels, monkeypatch, whole=True, restart=0.9, decay=0.5)
    assert kind == "simvq" or int(wanted[3]) > 0, "no code was dead"
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ema", "vq"])
def test_levels_updated_together_are_those_updated_one_by_one(kind: str) -> None:
    quantizers = []
    for together in (True, False):
        torch.manual_seed(0)
        quantizer: Any = build_quantizer(
            TokenizerConfig(
                quantizer=kind,
                levels=3,
                codebook_size=32,
                code_dim=6,
                normalize=False,
                restart=0.9,
                decay=0.5,
            )
        )
        quantizer.initialize(torch.randn(500, 6))
        quantizer.train()(torch.randn(3, 6, 8, 8, generator=torch.Generator().manual_seed(1)))
        rows = quantizer.draw_rows(192, torch.Generator().manual_seed(2))
        assert rows.shape == (3, 32)
        count = (
            quantizer.update_codebook(rows)
            if together
            else sum(
                level.update_codebook(rows[i : i + 1])
                for i, level in enumerate(quantizer.quantizers)
            )
        )
        quantizers.append((count, quantizer.state_dict()))
    assert int(quantizers[0][0]) == int(quantizers[1][0]) > 0
    assert all(
        torch.equal(value, quantizers[1][1][name]) for name, value in quantizers[0][1].items()
    )


def test_dead_codes_move_to_the_rows_drawn_for_them_and_to_no_more_than_a_quarter(
    sync_free: None,
) -> None:
    quantizer: Any = build_quantizer(
        TokenizerConfig(codebook_size=64, code_dim=6, restart=1.0, decay=0.0, normalize=False)
    )
    quantizer.initialize(torch.randn(500, 6))
    z = torch.randn(1, 6, 4, 5)
    quantizer.train()(z)
    rows = quantizer.draw_rows(20)
    assert rows.shape == (1, 5)
    assert int(quantizer.update_codebook(rows)) == 5
    vectors = z.permute(0, 2, 3, 1).reshape(-1, 6)
    dead = torch.isin(quantizer.average.counts, torch.tensor(1.0)).nonzero()[:, 0]
    for code, row in zip(dead[:5], rows[0], strict=True):
        assert torch.equal(quantizer.codebook[code], vectors[row])


def test_learn_that_is_not_ok_changes_nothing() -> None:
    quantizer: Any = build_quantizer(
        TokenizerConfig(levels=2, codebook_size=32, code_dim=6, normalize=False, restart=0.9)
    )
    quantizer.initialize(torch.randn(500, 6))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.train()(torch.full((1, 6, 4, 4), torch.nan))
    assert int(quantizer.update_codebook(ok=torch.tensor(False))) == 0
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


# Whole runs


@pytest.mark.slow
def test_a_run_without_looks_is_the_run_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Shapes(40)
    recipe = recipe_for(data, **EVERYTHING)
    monkeypatch.setattr("vqtok.train.muon.PRECISION", torch.float32)
    assert go(tmp_path / "seen", recipe, data, stage="tokenizer")
    as_on_a_gpu(monkeypatch)
    assert go(tmp_path / "unseen", recipe, data, stage="tokenizer")
    first, second = log(tmp_path / "seen"), log(tmp_path / "unseen")
    assert [line["step"] for line in second] == [6, 12]
    assert second[-1]["restarts"] > 0
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert {k: v for k, v in other.items() if k != "stage"} == pytest.approx(
            {k: v for k, v in one.items() if k != "stage"}, rel=1e-4
        )
    old, new = (
        states.read_state(tmp_path / run / "tokenizer.state.safetensors", "").tensors
        for run in ("seen", "unseen")
    )
    assert {name: value.shape for name, value in old.items()} == {
        name: value.shape for name, value in new.items()
    }
    for name, value in old.items():
        torch.testing.assert_close(
            torch.from_numpy(new[name]), torch.from_numpy(value), atol=1e-5, rtol=1e-3
        )


@pytest.mark.slow
@pytest.mark.parametrize("at", [2, 7, 9])
def test_a_run_without_looks_goes_on_as_if_it_had_not_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    as_on_a_gpu(monkeypatch, bank=True)
    data = Shapes(40)
    recipe = recipe_for(data, **EVERYTHING)
    whole = Interrupt()
    assert go(tmp_path / "whole", recipe, data, whole, stage="tokenizer")
    assert any("images lie on the device" in note for note in whole.notes)
    assert not go(tmp_path / "pieces", recipe, data, Interrupt("tokenizer", at), stage="tokenizer")
    assert go(tmp_path / "pieces", recipe, data, resume=True, stage="tokenizer")
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    assert log(tmp_path / "pieces") == log(tmp_path / "whole")


@pytest.mark.slow
def test_spoiled_steps_change_nothing_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    data = Shapes(40)
    recipe = recipe_for(data, **EVERYTHING)
    kept: list[dict[str, Tensor]] = []
    step = loop._Trainer._step

    def watched(self: Any, batch: Any) -> None:
        step(self, batch)
        kept.append(
            {
                name: value.clone()
                for name, value in states.tensors_of(self.learners, self._extra_tensors()).items()
            }
        )

    monkeypatch.setattr(loop._Trainer, "_step", watched)
    spoil_images(monkeypatch, {3, 4, 9})
    assert go(tmp_path, recipe, data, stage="tokenizer")
    assert [line["skipped"] for line in log(tmp_path)] == [2, 1]
    for number in (3, 4, 9):
        changed = [
            name
            for name, value in kept[number].items()
            if not torch.equal(value, kept[number - 1][name])
        ]
        assert changed == [], number
    assert any(not torch.equal(value, kept[4][name]) for name, value in kept[5].items())


@pytest.mark.slow
def test_ten_in_a_row_stop_the_run_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    data = Shapes(24)
    recipe = recipe_for(data, tokenizer_training={"steps": 40, "validate_every": 40})
    spoil_loss(monkeypatch, TokenizerTask, set(range(8, 99)), nan_loss)
    message = (
        r"^tokenizer: 13 steps in a row, the last of them by step 20, are not finite: "
        r"the loss is nan, the gradient norm is nan$"
    )
    with pytest.raises(TrainingError, match=message):
        go(tmp_path, recipe, data, stage="tokenizer")


@pytest.mark.slow
def test_nine_in_a_row_over_a_stop_and_one_more_are_ten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    data = Shapes(24)
    recipe = recipe_for(data, tokenizer_training={"steps": 40, "validate_every": 40})
    spoil_images(monkeypatch, set(range(3, 13)))
    assert not go(tmp_path, recipe, data, Interrupt("tokenizer", 9), stage="tokenizer")
    with pytest.raises(TrainingError, match="10 steps in a row, the last of them by step 15"):
        go(tmp_path, recipe, data, resume=True, stage="tokenizer")


@pytest.mark.slow
def test_priors_train_without_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Shapes(24)
    assert go(tmp_path / "seen", recipe_for(data), data)
    as_on_a_gpu(monkeypatch)
    assert go(tmp_path / "unseen", recipe_for(data), data)
    found = [
        [line["bits"] for line in log(tmp_path / run) if "bits" in line]
        for run in ("seen", "unseen")
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


class Looks(TorchDispatchMode):
    """Keeps the names of operations that take a number to the host, or whose result has a shape
    that numbers decide."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in (
            "_local_scalar_dense",
            "is_nonzero",
            "nonzero",
            "bincount",
            "masked_select",
            "equal",
            "_unique2",
        ):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def context(recipe: Recipe, folder: Path, device: str, precision: str = "fp32") -> loop.RunContext:
    spec = RunSpec(replace(recipe, precision=precision), folder=folder)
    return loop.RunContext(spec, torch.device(device))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ema", "vq", "simvq"])
def test_no_operation_of_a_step_needs_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = Shapes(40)
    values = {**EVERYTHING, "tokenizer": EVERYTHING["tokenizer"] | {"quantizer": kind}}
    recipe = recipe_for(data, **values)
    found = []
    for free in (False, True):
        if free:
            as_on_a_gpu(monkeypatch, bank=True)
        run = context(recipe, tmp_path, "cpu", "bf16")
        task = TokenizerTask(recipe, data, split_indices(data, 0.1, 4, 0), run, compiled=False)
        trainer = loop._Trainer(task, recipe.tokenizer_training, run)
        task.on_start()
        task.network.train()
        for number, batch in enumerate(task.batches(0, 9)):
            looks = Looks()
            if number in (3, 8):  # without the discriminator, and with it
                with looks:
                    trainer._step(batch)
            else:
                trainer._step(batch)
            found.append(looks.found)
    assert found[8], "a step on a CPU looks"
    assert [name for names in found[9:] for name in names] == []


@pytest.mark.slow
def test_a_progress_line_shows_what_has_been_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_on_a_gpu(monkeypatch)
    data, shown = Shapes(24), []
    listener = Interrupt()
    monkeypatch.setattr(listener, "status", lambda status: shown.append(status.metrics))
    assert go(
        tmp_path,
        recipe_for(data, tokenizer_training={"steps": 12, "validate_every": 12}),
        data,
        listener,
        stage="tokenizer",
    )
    assert shown[:4] == [{}] * 4
    assert shown[4] == shown[8]
    assert 0 < shown[4]["usage"] <= 1
    assert shown[4]["loss"] != shown[9]["loss"] > 0


# Capture, without a GPU


class FakeGraph:
    """Replays the step that was captured: a stand-in for torch.cuda.CUDAGraph."""

    made: list["FakeGraph"]

    def __init__(self) -> None:
        self.replays, self.calls = 0, []
        FakeGraph.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        for call in self.calls:
            call()


def fake_cuda(monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
    """torch.cuda's streams and graphs as far as GraphedStep uses them."""
    FakeGraph.made = []
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(graph, "_pinned", lambda tensor: tensor)

    @contextmanager
    def capture(made: FakeGraph, **options: Any) -> Iterator[None]:
        held = made.calls
        CAPTURING.append(held)
        yield
        CAPTURING.pop()
        if fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", capture)


CAPTURING: list[list[Any]] = []


class Pair(NamedTuple):
    step: int
    value: Tensor
    none: None = None


def test_a_step_is_run_captured_and_replayed_on_each_batch_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_cuda(monkeypatch)
    seen: list[float] = []

    def step(batch: Pair) -> None:
        call = lambda: seen.append(float(batch.value))  # noqa: E731
        CAPTURING[-1].append(call) if CAPTURING else call()

    graphed = graph.GraphedStep(step, torch.device("cpu"), pytest.fail, pytest.fail)
    for number in range(12):
        graphed(Pair(number, torch.tensor(float(number))), phase=number >= 6)
    assert seen == [float(number) for number in range(12)]
    # of each phase, the steps after the first three
    assert [made.replays for made in FakeGraph.made] == [
        3,
        3,
    ]


def test_a_step_that_cannot_be_captured_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda(monkeypatch, fails=True)
    seen: list[float] = []
    notes: list[str] = []
    forgotten: list[int] = []

    def step(batch: Pair) -> None:
        if not CAPTURING:
            seen.append(float(batch.value))

    graphed = graph.GraphedStep(
        step, torch.device("cpu"), notes.append, lambda: forgotten.append(len(seen))
    )
    for number in range(7):
        graphed(Pair(number, torch.tensor(float(number))), phase=True)
    assert seen == [float(number) for number in range(7)]
    assert notes == [
        "The step cannot be captured as a CUDA graph: "
        "operation not permitted when stream is capturing"
    ]
    assert forgotten == [3]


# Writing beside the steps


def test_a_state_is_that_of_its_moment_and_a_failure_is_told(tmp_path: Path) -> None:
    writer, value, written = Saver(torch.device("cpu"), beside=True), torch.zeros(2), []
    kept = writer.snapshot({"value": value})
    value += 1
    writer.write(lambda: written.append(kept["value"].tolist()))
    writer.write(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    with pytest.raises(ZeroDivisionError):
        writer.finish()
    assert written == [[0.0, 0.0]]


# Compiled


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(torch.serialization, "safe_globals"),
    reason="torch before 2.5 compiles no step that sets an attribute of a module",
)
def test_network_and_losses_compile_to_one_graph_that_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced for the forward and the backward pass, then run as it is: no compiler."""
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr("vqtok.train.tokenizer.in_chunks", lambda device: False)
    asked: list[dict[str, Any]] = []
    compiler = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda call, **options: (
            asked.append(options) or compiler(call, backend="aot_eager", **options)
        ),
    )
    data = Shapes(24)
    few = {
        **EVERYTHING,
        # what is traced: each layer is one more
        "tokenizer": EVERYTHING["tokenizer"] | {"levels": 2, "encoder_blocks": 0},
        "tokenizer_training": EVERYTHING["tokenizer_training"] | {"steps": 2, "validate_every": 2},
    }
    few["losses"] = {"ms_ssim": 0.5}
    recipe = recipe_for(data, **few)
    assert go(tmp_path / "plain", recipe, data, stage="tokenizer")
    ms_ssim._kept_bands.clear()
    assert go(tmp_path / "compiled", recipe, data, stage="tokenizer", compiled=True)
    assert asked == [{"fullgraph": True}]
    for one, other in zip(log(tmp_path / "plain"), log(tmp_path / "compiled"), strict=True):
        assert {k: v for k, v in other.items() if k != "stage"} == pytest.approx(
            {k: v for k, v in one.items() if k != "stage"}, rel=1e-4
        )


# On a GPU


@needs_gpu
@pytest.mark.parametrize("graph", [False, True])
def test_a_step_never_waits_for_its_gpu(tmp_path: Path, graph: bool) -> None:
    data = Shapes(40)
    recipe = recipe_for(data, **EVERYTHING)
    run = context(recipe, tmp_path, "cuda", "bf16")
    task = TokenizerTask(recipe, data, split_indices(data, 0.1, 4, 0), run, compiled=False)
    trainer = loop._Trainer(task, recipe.tokenizer_training, run)
    trainer.graph = trainer.graph if graph else None
    task.on_start()
    task.network.train()
    for number, batch in enumerate(task.batches(0, 12)):
        # without the discriminator, and with it: there it is captured from step 9 on
        if number in (
            4,
            8,
            11,
        ):
            torch.cuda.set_sync_debug_mode("error")
        try:
            trainer._step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert trainer.graph is None or trainer.graph._graph is not None


def steps_on(
    device: str, folder: Path, steps: int, monkeypatch: pytest.MonkeyPatch, graph: bool = True
) -> list[float]:
    """The loss of each step in fp32."""
    monkeypatch.setattr("vqtok.train.loop.READ_EVERY", 1)
    data = Shapes(64)
    values = {**EVERYTHING, "losses": {"ms_ssim": 0.5}}
    values["tokenizer_training"] = EVERYTHING["tokenizer_training"] | {"steps": 1000}
    recipe = recipe_for(data, **values)
    run = context(recipe, folder, device)
    task = TokenizerTask(recipe, data, split_indices(data, 0.1, 4, 0), run, compiled=False)
    trainer = loop._Trainer(task, recipe.tokenizer_training, run)
    if not graph:
        trainer.graph = None
    torch.manual_seed(0)
    task.on_start()
    task.network.train()
    losses = []
    for batch in task.batches(0, steps):
        before = trainer.progress.window.get("loss", 0.0)
        trainer._step(batch)
        losses.append(trainer.progress.window["loss"] - before)
    return losses


@needs_gpu
def test_a_captured_step_is_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = steps_on("cuda", tmp_path, 9, monkeypatch)
    assert captured == pytest.approx(
        steps_on("cuda", tmp_path, 9, monkeypatch, graph=False), rel=1e-4
    )


@needs_gpu
def test_fifty_steps_of_a_gpu_learn_what_those_of_a_cpu_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, cpu = (
        sum(steps_on(device, tmp_path, 50, monkeypatch)[-10:]) for device in ("cuda", "cpu")
    )
    assert gpu == pytest.approx(cpu, rel=0.01)
