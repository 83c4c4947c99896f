"""Steps of training against a plain PyTorch writing of the same networks, and the wait
for images from a folder.

    python benchmarks/training.py [tokenizer prior] [--rounds 9]
        [--threads 2] [--compile] [--profile]
    python benchmarks/training.py --data FOLDER [--steps 40] [--forget]

Tokenizer: 32x32 images x 128, f4, hidden 128 (64 at 16x16), two residual blocks a stage, K = 512,
D = 64. Prior: gated PixelCNN of 8 layers of 128 channels, K = 512, 64 grids of 8x8. The plain
networks have the same layers, sizes and losses, and the same weights give the same loss: that is
checked first. What differs is how they are written, as research repositories do it: NCHW, Adam as
it comes, all distances and one-hot matrices in the quantizer, masked convolutions in the prior,
`loss.item()` at every step, memory as the C library manages it. They do without what ours does
besides: bits per dimension, clipped gradients, restart of dead codes, means of all figures. Their
images lie in memory as floats. Each contestant is a process of its own, and they take turns.
"""

import argparse
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from timing import alternate, machine, seconds, table
from torch import Tensor, nn
from torch.profiler import profile

from vqtok.config import PRESETS, PriorConfig, Recipe, TokenizerConfig
from vqtok.data import ArrayData, Dataset, open_data, split_indices
from vqtok.data.decoded_cache import DecodedCache
from vqtok.losses.likelihood import PIXEL_VARIANCE
from vqtok.networks.vqvae import VQVAE
from vqtok.priors import PixelCNN
from vqtok.train import loop
from vqtok.train.grids import Grids
from vqtok.train.prior import PriorTask
from vqtok.train.run import fit_to_data
from vqtok.train.runtime import keep_memory
from vqtok.train.spec import RunSpec
from vqtok.train.tokenizer import TokenizerTask

CIFAR = PRESETS["cifar"]
RECIPE = replace(
    CIFAR,
    tokenizer=replace(CIFAR.tokenizer, encoder_blocks=2, decoder_blocks=2),
    tokenizer_training=replace(CIFAR.tokenizer_training, batch=128),
)
IMAGES = 4096
LEARNING_RATE = 1e-3


# The plain writings


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


class OneHotQuantizer(nn.Module):
    """Moving averages; all distances, and one-hot matrices for lookup and sums."""

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, K: int, D: int, beta: float, decay: float) -> None:
        super().__init__()
        self.beta, self.decay = beta, decay
        self.register_buffer("codebook", torch.randn(K, D))
        self.register_buffer("counts", torch.ones(K))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.permute(0, 2, 3, 1).contiguous()
        flat = z.view(-1, z.shape[-1])
        distances = (
            flat.pow(2).sum(1, keepdim=True)
            + self.codebook.pow(2).sum(1)
            - 2 * flat @ self.codebook.t()
        )
        one_hot = F.one_hot(distances.argmin(1), len(self.codebook)).float()
        quantized = (one_hot @ self.codebook).view_as(z)
        if self.training:
            self.counts.mul_(self.decay).add_(one_hot.sum(0), alpha=1 - self.decay)
            self.sums.mul_(self.decay).add_(one_hot.t() @ flat.detach(), alpha=1 - self.decay)
            self.codebook.copy_(self.sums / (self.counts + 1e-5).unsqueeze(1))
        loss = self.beta * F.mse_loss(z, quantized.detach())
        return (z + (quantized - z).detach()).permute(0, 3, 1, 2).contiguous(), loss


class PlainVQVAE(nn.Module):
    """The network of `VQVAE` at fold 2 and f4."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        C, D = config.width, config.code_dim
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(12, C, 3, padding=1),
            Block(C),
            Block(C),
            nn.Conv2d(C, 2 * C, 4, stride=2, padding=1),
            Block(2 * C),
            Block(2 * C),
            nn.SiLU(),
            nn.Conv2d(2 * C, D, 1),
        )
        self.quantizer = OneHotQuantizer(config.codebook_size, D, config.beta, config.decay)
        self.decoder = nn.Sequential(
            nn.Conv2d(D, 2 * C, 3, padding=1),
            Block(2 * C),
            Block(2 * C),
            nn.Conv2d(2 * C, 4 * C, 3, padding=1),
            nn.PixelShuffle(2),
            Block(C),
            Block(C),
            nn.SiLU(),
            nn.Conv2d(C, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The loss, a scalar."""
        quantized, loss = self.quantizer(self.encoder(images))
        return F.mse_loss(self.decoder(quantized), images) / (4 * PIXEL_VARIANCE) + loss


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees nothing below its place (vertical), or nothing to the
    right of it (horizontal).
    """

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int]) -> None:
        super().__init__(inputs, outputs, size, padding=(size[0] // 2, size[1] // 2))
        mask = torch.ones_like(self.weight)
        mask[:, :, size[0] // 2 + 1 :] = 0
        if size[0] == 1:
            mask[..., size[1] // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(input)


class PlainLayer(nn.Module):
    def __init__(self, C: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.vertical = MaskedConv2d(C, 2 * C, (kernel, kernel))
        self.horizontal = MaskedConv2d(C, 2 * C, (1, kernel))
        self.link = nn.Conv2d(2 * C, 2 * C, 1, bias=False)
        self.out = nn.Conv2d(C, 2 * C, 1, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        down = self.vertical(v)
        a, b = (self.horizontal(x) + self.link(down)).chunk(2, dim=1)
        residual, skip = self.out(self.dropout(torch.tanh(a) * torch.sigmoid(b))).chunk(2, dim=1)
        a, b = down.chunk(2, dim=1)
        return v + self.dropout(torch.tanh(a) * torch.sigmoid(b)), x + residual, skip


class PlainPixelCNN(nn.Module):
    """The network of `PixelCNN` with one level and no labels."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        C = config.width
        self.embedding = nn.Embedding(config.codebook_size, C)
        self.layers = nn.ModuleList(
            PlainLayer(C, config.kernel, config.dropout) for _ in range(config.layers)
        )
        self.head, self.readout = nn.Conv2d(C, 2 * C, 1), nn.Conv2d(2 * C, config.codebook_size, 1)

    def forward(self, indices: Tensor) -> Tensor:
        """Mean cross-entropy of indices (B, h, w), a scalar."""
        embedded = self.embedding(indices).permute(0, 3, 1, 2).contiguous()
        v, x, total = (
            F.pad(embedded, (0, 0, 1, -1)),
            F.pad(embedded, (1, -1, 0, 0)),
            torch.zeros(()),
        )
        for layer in self.layers:
            v, x, skip = layer(v, x)
            total = total + skip
        return F.cross_entropy(self.readout(F.relu(self.head(F.relu(total)))), indices)


def plain_tokenizer(source: VQVAE) -> PlainVQVAE:
    """The plain network with the weights of ours."""
    network = PlainVQVAE(source.config)
    network.encoder.load_state_dict(source.encoder.state_dict())
    network.decoder.load_state_dict(source.decoder.state_dict())
    network.quantizer.codebook.copy_(source.quantizer.codebooks()[0])
    return network


def plain_prior(source: PixelCNN) -> PlainPixelCNN:
    network, values = PlainPixelCNN(source.config), source.state_dict()
    for name, target in network.state_dict().items():
        given = values.get(name.replace("readout.", "readout.0."))
        if given is not None:
            part = (..., slice(given.shape[2]), slice(given.shape[3])) if given.dim() == 4 else ...
            target[part].copy_(
                given.view_as(target) if given.dim() == 2 and target.dim() == 4 else given
            )
    return network


# Contestants: each makes a call that does one step


def images() -> ArrayData:
    """Colored waves with a little noise: random, but not so that no code fits."""
    draw = np.random.default_rng(0)
    row, column = np.mgrid[:32, :32] / 32
    waves = draw.uniform(-6, 6, (4, 2, IMAGES, 1, 1, 3))
    # (N, 32, 32, 3)
    pixels = np.sum([np.sin(a * row[..., None] + b * column[..., None]) for a, b in waves], axis=0)
    return ArrayData(
        "waves",
        (127.5 + 25 * pixels + draw.normal(0, 8, pixels.shape)).clip(0, 255).astype(np.uint8),
    )


def grids() -> Grids:
    indices = (
        np.random.default_rng(0)
        .integers(0, RECIPE.tokenizer.codebook_size, IMAGES * 64)
        .astype(np.uint16)
    )
    return Grids.of(indices, np.tile([[1, 8, 8]], (IMAGES, 1)), np.full(IMAGES, -1))


def context(recipe: Recipe, folder: Path) -> loop.RunContext:
    return loop.RunContext(RunSpec(recipe, folder=folder), torch.device("cpu"))


def task_of(stage: str, recipe: Recipe, run: loop.RunContext, compiled: bool) -> loop.Task:
    data = images()
    recipe = fit_to_data(recipe, data)
    if stage == "tokenizer":
        return TokenizerTask(
            recipe,
            data,
            (np.arange(IMAGES - 64), np.arange(IMAGES - 64, IMAGES)),
            run,
            compiled,
        )
    t = recipe.tokenizer
    codebooks = torch.randn(t.levels, t.codebook_size, t.code_dim)
    return PriorTask(recipe, data, "", (grids(), grids()), run, codebooks)


def ours(stage: str, precision: str, compiled: bool, folder: Path) -> Callable[[], object]:
    keep_memory()
    recipe = replace(RECIPE, precision=precision)
    run = context(recipe, folder)
    task = task_of(stage, recipe, run, compiled)
    trainer = loop._Trainer(
        task, recipe.tokenizer_training if stage == "tokenizer" else recipe.prior_training, run
    )
    task.on_start()
    task.network.train()
    batches = task.batches(0, 10**6)
    return lambda: trainer._step(next(batches))


def plain(stage: str, precision: str, kept: bool) -> Callable[[], object]:
    if kept:
        keep_memory()
    if stage == "tokenizer":
        network: nn.Module = PlainVQVAE(RECIPE.tokenizer)
        data = (
            torch.from_numpy(images().images(np.arange(IMAGES))).permute(0, 3, 1, 2).contiguous()
            / 127.5
            - 1
        )
        batch = RECIPE.tokenizer_training.batch
    else:
        network, batch = PlainPixelCNN(RECIPE.prior), RECIPE.prior_training.batch
        data = torch.from_numpy(grids().flat.reshape(-1, 8, 8).astype(np.int64))
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        x = data[torch.randint(len(data), (batch,))]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = network(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def make(name: str, stage: str, folder: Path) -> Callable[[], object]:
    words = name.split()
    precision = "bf16" if "bf16" in words else "fp32"
    if words[0] == "plain":
        return plain(stage, precision, "kept" in words)
    return ours(stage, precision, "compiled" in words, folder)


def serve(connection: Any, name: str, stage: str, folder: Path, threads: int) -> None:
    """A contestant's process: makes its network, then does a step whenever it is told to,
    and answers when it is done.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    step = make(name, stage, folder)
    for _ in range(3):
        step()
    while True:
        connection.send(None)
        if not connection.recv():
            return
        step()


def compare(stage: str, names: list[str], rounds: int, threads: int) -> dict[str, float]:
    """Median seconds of a step of each contestant."""
    context = mp.get_context("spawn")
    with TemporaryDirectory() as folder:
        ends, processes = {}, []
        for name in names:
            ends[name], other = context.Pipe()
            processes.append(
                context.Process(target=serve, args=(other, name, stage, Path(folder), threads))
            )
            processes[-1].start()
            ends[name].recv()  # it is warm; one at a time, or they warm up in each other's way
        times = alternate(
            {name: lambda end=end: (end.send(True), end.recv()) for name, end in ends.items()},
            rounds,
        )
        for end in ends.values():
            end.send(False)
        for process in processes:
            process.join()
    return times


def check(stage: str) -> str:
    """That the plain network, given our weights, has our loss."""
    torch.manual_seed(1)
    with TemporaryDirectory() as folder, torch.no_grad():
        task = task_of(stage, RECIPE, context(RECIPE, Path(folder)), compiled=False)
        task.on_start()
        task.network.eval()
        batch = next(task.batches(0, 1))
        if isinstance(task, TokenizerTask):
            assert isinstance(task.network, VQVAE)
            x = torch.from_numpy(batch[1]).float() / 127.5 - 1
            both = float(task.network(x).loss), float(plain_tokenizer(task.network).eval()(x))
        else:
            assert isinstance(task.network, PixelCNN)
            indices = torch.from_numpy(batch[0])
            both = (
                float(task.network.loss(indices)),
                float(plain_prior(task.network).eval()(indices[:, 0])),
            )
    assert abs(both[0] - both[1]) < 1e-4 * abs(both[0]), both
    return f"equal weights give the losses {both[0]:.6f} and, written plainly, {both[1]:.6f}"


def compare_all(options: argparse.Namespace) -> None:
    for stage in options.stages:
        recipe = RECIPE.tokenizer_training if stage == "tokenizer" else RECIPE.prior_training
        units, unit = (
            (recipe.batch, "images/s") if stage == "tokenizer" else (64 * recipe.batch, "tokens/s")
        )
        names = ["plain", "plain, memory kept", "plain bf16", "vqtok fp32", "vqtok bf16"]
        names += (
            ["vqtok fp32 compiled", "vqtok bf16 compiled"]
            if options.compile and stage == "tokenizer"
            else []
        )
        print(f"{stage}: {check(stage)}", flush=True)
        times = compare(
            stage, [name.replace(", memory", "") for name in names], options.rounds, options.threads
        )
        pairs = zip(names, times.values(), strict=True)
        rows = [
            [name, f"{1e3 * t:.0f}", f"{units / t:,.0f}", f"{times['plain'] / t:.2f}"]
            for name, t in pairs
        ]
        print(f"\n{table([stage, 'ms a step', unit, 'of plain'], rows)}\n", flush=True)


def show_profile(stage: str, name: str) -> None:
    """What a step's time goes to, by operator."""
    with TemporaryDirectory() as folder:
        step = make(name, stage, Path(folder))
        for _ in range(4):
            step()
        with profile() as measured:
            for _ in range(4):
                step()
    rows = sorted(measured.key_averages(), key=lambda row: -row.self_cpu_time_total)
    whole = sum(row.self_cpu_time_total for row in rows)
    cells = [
        [
            row.key,
            f"{row.self_cpu_time_total / 4e3:.1f}",
            f"{row.self_cpu_time_total / whole:.1%}",
            f"{row.count / 4:.0f}",
        ]
        for row in rows[:20]
    ]
    print(
        f"{table([f'{stage}, {name}', 'ms a step', 'part', 'calls a step'], cells)}\n", flush=True
    )


def waiting(folder: Path, name: str, recipe: Recipe, steps: int, forget: bool) -> list[str]:
    """How long steps take on a folder of images, what part of that they wait for the next batch,
    steps on one batch again and again, and what part of the processor's time the data take, which
    other work on the machine disturbs less.

    The wait alone would flatter: threads that decode take the step's processors, so a step is
    longer where it does not wait, too.
    """
    data: Dataset = open_data(folder)
    recipe = fit_to_data(recipe, data)
    keep_memory()
    with TemporaryDirectory() as out:
        run = context(recipe, Path(out))
        parts = split_indices(data, recipe.data.validation, 16, 0)
        task = TokenizerTask(recipe, data, parts, run, compiled=False)
        trainer = loop._Trainer(task, recipe.tokenizer_training, run)
        task.network.train()
        if forget:
            task._batches._kept = DecodedCache(0)
        waits, whole = [], []
        with closing(task.batches(0, steps)) as batches:
            for _ in range(steps):
                begin = time.perf_counter()
                batch = next(batches)
                waits.append(time.perf_counter() - begin)
                trainer._step(batch)
                whole.append(time.perf_counter() - begin)
        # the threads have ended
        alone = statistics.median(seconds(lambda: trainer._step(batch)) for _ in range(8))
        made = processor(lambda turn: task._batches.batch(steps + turn))
        with closing(task.batches(steps, steps + 1)) as batches:
            last = next(batches)
        stepped = processor(lambda _: trainer._step(last))
    epoch = -(-len(parts[0]) // recipe.tokenizer_training.batch)
    cells = [name, f"{len(data)}", f"{recipe.tokenizer_training.batch} x {recipe.data.size}"]
    for part in (slice(1, epoch), slice(epoch, None)):
        count = len(whole[part])
        cells += (
            [f"{1e3 * sum(whole[part]) / count:.0f}", f"{sum(waits[part]) / sum(whole[part]):.1%}"]
            if count
            else ["", ""]
        )
    return [*cells, f"{1e3 * alone:.0f}", f"{made / (made + stepped):.0%}"]


def processor(work: Callable[[int], object]) -> float:
    """The processor's seconds, of all threads, that `work` takes: the median of four turns."""
    taken = []
    for turn in range(4):
        begin = time.process_time()
        work(turn)
        taken.append(time.process_time() - begin)
    return statistics.median(taken)


def show_waiting(folder: Path, steps: int, forget: bool) -> None:
    presets = ("photo preset", PRESETS["photo"]), ("CIFAR-size", RECIPE)
    rows = [waiting(folder, name, recipe, steps, forget) for name, recipe in presets]
    head = [
        f"{folder.name}",
        "images",
        "batch",
        "ms a step, first epoch",
        "waiting",
        "ms a step, later",
        "waiting",
        "without data work",
        "the data's share of the processor's time",
    ]
    print(table(head, rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "stages", nargs="*", default=["tokenizer", "prior"], help="tokenizer, prior"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--compile", action="store_true", help="also the tokenizer under torch.compile"
    )
    parser.add_argument(
        "--profile", action="store_true", help="print what takes the time in place of a comparison"
    )
    parser.add_argument(
        "--data", type=Path, help="measure the wait for images from this folder instead"
    )
    parser.add_argument(
        "--forget",
        action="store_true",
        help="keep no decoded images, as if they were far more than memory holds",
    )
    parser.add_argument("--steps", type=int, default=40, help="of each model with --data")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{machine()}\n", flush=True)
    if options.data:
        show_waiting(options.data, options.steps, options.forget)
    elif options.profile:
        for stage in options.stages:
            for precision in ("fp32", "bf16"):
                show_profile(stage, f"vqtok {precision}")
    else:
        compare_all(options)


if __name__ == "__main__":
    main()
