"""One process of a small run, for test_distributed.py:
trains each kind of quantizer for a few steps and writes what came out.

`python distributed_worker.py FOLDER` reads RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT, as torchrun sets them.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from train_helpers import Interrupt, recipe_for

from vqtok import distributed, weights
from vqtok import train as training
from vqtok.config import Recipe
from vqtok.data import Dataset, Shapes

CASES: dict[str, dict[str, Any]] = {
    # codes die, and are drawn anew, at nearly each step
    "ema": {"tokenizer": {"restart": 0.9, "decay": 0.5}},
    "vq": {
        "tokenizer": {"quantizer": "vq", "normalize": False, "restart": 0.9, "decay": 0.5},
        "tokenizer_training": {"ema": 0.9},
    },
    "simvq": {"tokenizer": {"quantizer": "simvq"}},
    "fsq": {"tokenizer": {"quantizer": "fsq"}},
    "lfq": {"tokenizer": {"quantizer": "lfq"}},
    "residual": {"tokenizer": {"levels": 3, "level_dropout": 0.7, "normalize": False}},
    "muon": {"tokenizer": {"width": 32}, "tokenizer_training": {"optimizer": "muon"}},
    "adversarial": {"losses": {"adversarial": 0.5, "adversarial_start": 0.3, "ms_ssim": 0.5}},
}
SHARED: dict[str, Any] = {
    "tokenizer_training": {"steps": 4, "validate_every": 2},
    "losses": {"ms_ssim": 0.0},
}
PRIORS = {"prior": {"dropout": 0.0}}


STOPPED = "simvq"  # the case that several processes train in two sessions


def train(folder: Path, case: str, stop_at: int = 0, resume: bool = False) -> bool:
    """One of the cases, trained into FOLDER/case, up to a step where one is given."""
    stage, listener = "all" if case == "ema" else "tokenizer", Interrupt("tokenizer", stop_at)
    dataset, recipe = shapes(), recipe_of(case)
    spec = training.RunSpec(
        recipe, "", len(dataset), folder=folder / case, stage=stage, resume=resume
    )
    if distributed.is_main_process() and not resume:
        training.create_run(spec.folder, spec, stage, force=False)
    run = training.RunContext(spec, torch.device("cpu"), listener.stop, listener)
    return training.train(run, dataset)


def shapes() -> Dataset:
    return Shapes(40, 16)


def recipe_of(case: str) -> Recipe:
    return recipe_for(shapes(), **training.merge([SHARED, PRIORS, CASES[case]]))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    from vqtok.train import tokenizer

    tokenizer.INITIAL_VECTORS = 256
    with distributed.process_group(torch.device("cpu")):
        for case in CASES:
            if case == STOPPED:
                assert not train(folder, case, stop_at=3)
            assert train(folder, case, resume=case == STOPPED)
        (folder / f"rank{distributed.rank()}.json").write_text(json.dumps(_checks(folder)))


def _checks(folder: Path) -> dict[str, Any]:
    """What can only be asked where there are several processes."""
    rank = distributed.rank()
    value = torch.tensor(float(rank), requires_grad=True)
    (distributed.mean_over_ranks(value) * 3).backward()
    assert value.grad is not None
    mine = (
        torch.arange(6.0).view(3, 2, 1)[rank::2].flatten(0, 1)
        if rank == 0
        else torch.tensor([[2.0], [3.0]])
    )
    error = ""
    try:
        distributed.broadcast_bytes(_refuse)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    stored = distributed.broadcast_weights(
        lambda: weights.load_weights(folder / "ema" / "tokenizer.safetensors", "tokenizer")
    )
    assert stored is not None
    late = training.Stop(signal=15 if rank == 1 else 0)
    return {
        "gradient": float(value.grad),
        "rows": distributed.gather_rows(mine[:2], torch.tensor([3, 0, 2]), 2).flatten().tolist(),
        "bytes": [len(part) for part in distributed.all_gather_bytes(b"x" * (3 * rank))],
        "error": error,
        "stops": [late.agree(), late.signal],
        "fingerprint": weights.fingerprint(stored.tensors),
        "own": distributed.local_count(5),
    }


def _refuse() -> bytes:
    from vqtok.errors import OutputError

    raise OutputError("the disk is full", "make room")


if __name__ == "__main__":
    os.environ.setdefault("VQTOK_DEBUG", "1")
    main(Path(sys.argv[1]))
    # Leave as the command does (`vqtok.__main__`):
    # while Python takes torch apart, a thread of gloo ended one run in 28 by SIGABRT.
    sys.stdout.flush()
    os._exit(0)
