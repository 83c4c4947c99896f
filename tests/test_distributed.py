"""One run in several processes: the same numbers as in one, one voice, and what happens
when one of them is lost.
"""

import json
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import distributed_worker as worker
import numpy as np
import pytest
import torch
import warm
from cli_helpers import run
from train_helpers import recipe_for

from vqtok import distributed, weights
from vqtok import train as training
from vqtok.config import Recipe
from vqtok.data import Batches, Shapes
from vqtok.errors import InputError, UsageError
from vqtok.train import run as train_run
from vqtok.train.grids import GridBatches, Grids

# seconds for what takes ten on a free machine; a process that hangs fails its test, not the suite
PATIENCE = 240
VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
)


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def start(source: str, words: list[str], where: Path, count: int = 2) -> list[warm.Warm]:
    """`python -c SOURCE WORDS` in `count` processes of one run, on the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = Path(weights.__file__).parents[1]
    common = {
        "PYTHONPATH": f"{root}{os.pathsep}{Path(__file__).parent}",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    places = [{"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]
    return [warm.Warm(source, words, common | place, where) for place in places]


def finish(processes: list[warm.Warm]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each."""
    try:
        return [(process.wait(PATIENCE), *process.communicate(PATIENCE)) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of all of the worker's cases: trained by two processes, and by this one."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    run_worker = f"import runpy; runpy.run_path({worker.__file__!r}, run_name='__main__')"
    processes = start(run_worker, [str(two)], two)
    try:
        for case in worker.CASES:
            worker.train(one, case)
    finally:
        told = finish(processes)
    for code, _, errors in told:
        assert code == 0, errors
    return two, one


def close(two: Path, one: Path, tolerance: float = 2e-4) -> None:
    """Asserts that two state files hold the same numbers, but for rounding."""
    found, expected = weights.load_weights(two, "state"), weights.load_weights(one, "state")
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        np.testing.assert_allclose(
            found.tensors[name], value, rtol=tolerance, atol=tolerance, err_msg=name
        )
    assert found.record["step"] == expected.record["step"]
    assert found.record["best"] == pytest.approx(expected.record["best"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", worker.CASES)
def test_two_processes_train_the_network_that_one_does(both: tuple[Path, Path], case: str) -> None:
    """They stop in the middle of one case, and go on."""
    two, one = (place / case for place in both)
    # Muon makes its matrices orthogonal in bfloat16, whose numbers have steps of 2^-8
    tolerance, of_figures = (2**-8, 0.02) if case == "muon" else (2e-4, 2e-3)
    close(two / "tokenizer.state.safetensors", one / "tokenizer.state.safetensors", tolerance)
    for found, expected in zip(log(two), log(one), strict=True):
        assert found == pytest.approx(expected, rel=of_figures, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["prior", "entropy"])
def test_two_processes_train_the_priors_that_one_does(both: tuple[Path, Path], stage: str) -> None:
    two, one = (place / "ema" for place in both)
    grids = [
        weights.load_weights(place / "indices.state.safetensors", "state").tensors
        for place in (two, one)
    ]
    np.testing.assert_array_equal(grids[0]["labels"], grids[1]["labels"])
    # the tokenizers differ in the last bits
    assert (grids[0]["indices"] == grids[1]["indices"]).mean() > 0.99
    close(two / f"{stage}.state.safetensors", one / f"{stage}.state.safetensors", 2e-3)


@pytest.mark.slow
def test_codes_were_restarted_in_the_runs_compared(both: tuple[Path, Path]) -> None:
    for case in ("ema", "vq"):
        assert sum(line.get("restarts", 0) for line in log(both[0] / case)) > 0


@pytest.mark.slow
def test_what_two_processes_tell_each_other(both: tuple[Path, Path]) -> None:
    first, second = (json.loads((both[0] / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert [told.pop("own") for told in (first, second)] == [3, 2]  # of five images
    assert first == second
    assert first["gradient"] == 3
    assert first["rows"] == [3.0, 0.0, 2.0]
    assert first["bytes"] == [0, 3]
    assert first["error"] == "OutputError: the disk is full"
    assert first["stops"] == [True, 15]
    assert first["fingerprint"] == weights.tokenizer_fingerprint(
        both[0] / "ema" / "tokenizer.safetensors"
    )


@pytest.mark.slow
def test_a_lost_process_ends_the_run_and_any_number_of_them_goes_on(
    data: Path, tmp_path: Path
) -> None:
    """Two train, of which only the first speaks, and one goes on."""
    command = ["train", str(data), "--stage", "tokenizer", "--device", "cpu"]
    new = ["--recipe", "small.toml", "--steps", "30"]
    first, second = start(warm.TRAIN, [*command, *new, "-o", "lost", "--json"], tmp_path)
    state, deadline = tmp_path / "lost" / "tokenizer.state.safetensors", time.monotonic() + PATIENCE
    while not state.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    second.send_signal(signal.SIGKILL)
    (code, lines, errors), (killed, *said) = finish([first, second])
    assert killed == -signal.SIGKILL
    assert code == 1, errors
    assert errors.splitlines()[-2:] == [
        "vqtok: error: process 0 of 2 has lost another one, which has ended or cannot be reached",
        (
            "  fix: see what that one said; then go on with --resume, "
            "or have torchrun do so by itself: --max-restarts 3"
        ),
    ]
    assert json.loads(lines.splitlines()[0])["step"] == 3
    assert said == ["", ""]
    assert weights.load_weights(state, "state").record["step"] < 30
    assert run(*command, "-o", "lost", "--resume", "-q").exit_code == 0
    assert run(*command, *new, "-o", "whole", "-q").exit_code == 0
    close(state, tmp_path / "whole" / "tokenizer.state.safetensors")


# What one process can tell


@pytest.mark.parametrize("size", [16, 12])  # all images at once, and crops
def test_shares_of_a_batch_make_up_the_batch(size: int) -> None:
    data, indices = Shapes(10, 16), np.arange(10)
    whole = Batches(data, indices, 6, size, seed=4, flip=True)
    for step in (0, 3):
        shares = [
            Batches(data, indices, 6, size, seed=4, flip=True, share=(rank, 3)).batch(step)
            for rank in range(3)
        ]
        for rank, share in enumerate(shares):
            np.testing.assert_array_equal(share.pixels, whole.batch(step).pixels[rank::3])
            np.testing.assert_array_equal(share.labels, whole.batch(step).labels[rank::3])


def test_shares_of_a_batch_of_grids_make_up_the_batch() -> None:
    draws = np.random.default_rng(0)
    grids = Grids.of_list(
        [draws.integers(0, 9, (2, 5, 6)).astype(np.uint8) for _ in range(7)], np.arange(7)
    )
    whole = GridBatches(grids, 4, (3, 4), 1, 0.5).batch(5)
    for rank in range(2):
        share = GridBatches(grids, 4, (3, 4), 1, 0.5, (rank, 2)).batch(5)
        np.testing.assert_array_equal(share[0], whole[0][rank::2])
        np.testing.assert_array_equal(share[1], whole[1][rank::2])


def test_a_batch_that_processes_cannot_share_equally() -> None:
    recipe = recipe_for(Shapes(24), prior_training={"batch": 6})
    training.check_processes(recipe, "all", 2)
    training.check_processes(recipe, "tokenizer", 4)
    with pytest.raises(
        UsageError, match="the prior's batch of 6 cannot be shared equally by 4 processes"
    ) as caught:
        training.check_processes(recipe, "all", 4)
    assert "--set prior_training.batch=8" in caught.value.fix


def test_a_process_alone_gets_back_what_it_gives() -> None:
    value = torch.randn(3, 2, requires_grad=True)
    assert distributed.mean_over_ranks(value) is value
    before = value.detach().clone()
    distributed.all_reduce_mean(value.detach())
    distributed.broadcast([value])
    assert torch.equal(value, before)
    assert distributed.all_reduce_max(3, False) == [3, False]
    assert distributed.broadcast_bytes(lambda: b"x") == b"x"
    assert (
        distributed.world_size(),
        distributed.rank(),
        distributed.is_main_process(),
        distributed.local_count(5),
    ) == (
        1,
        0,
        True,
        5,
    )


def test_sums_go_over_every_tensor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "BUCKET", 5)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat: flat.mul_(2))
    tensors = [
        torch.randn(2, 2),
        torch.randn(3),
        torch.randn(9),
        torch.randn(2, 2, 2, 2).to(memory_format=torch.channels_last),
    ]
    before = [tensor.clone() for tensor in tensors]
    distributed.all_reduce_sum(*tensors)
    assert all(torch.equal(tensor, 2 * old) for tensor, old in zip(tensors, before, strict=True))
    distributed.all_reduce_mean(*tensors)
    assert all(torch.equal(tensor, 2 * old) for tensor, old in zip(tensors, before, strict=True))


def test_each_process_opens_the_data_that_the_first_one_saw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = Shapes(24)
    spec = training.RunSpec(recipe_for(data), "", 20000, "vqtok train", job="7")
    monkeypatch.setattr(distributed, "broadcast_bytes", lambda make: train_run.spec_to_json(spec))
    assert training.broadcast_spec(lambda: pytest.fail("only the first begins"))[0] == spec
    other = replace(spec, pictures=24)
    monkeypatch.setattr(distributed, "broadcast_bytes", lambda make: train_run.spec_to_json(other))
    with pytest.raises(InputError, match=r"finds 20,000 images .* but the first one 24 images"):
        training.broadcast_spec(lambda: pytest.fail("only the first begins"))


@pytest.mark.slow
def test_a_run_goes_on_when_the_torchrun_that_began_it_starts_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (
        "train",
        str(data),
        "--recipe",
        "small.toml",
        "--stage",
        "tokenizer",
        "-o",
        "run",
        "--device",
        "cpu",
        "--preset",
        "photo",
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "one")
    assert run(*command, "--max-time", "0s").exit_code == 0
    first = weights.load_weights(tmp_path / "run" / "tokenizer.state.safetensors", "state").record[
        "step"
    ]
    again = run(*command, "--force")  # the same torchrun: what is there is its own
    assert again.exit_code == 0, again.stderr
    assert "A process of this run has ended: it goes on from what is saved in run" in again.stderr
    assert (
        weights.load_weights(tmp_path / "run" / "tokenizer.state.safetensors", "state").record[
            "step"
        ]
        > first
    )
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "two")
    assert "run holds a run already" in run(*command).stderr


def test_a_torchrun_without_a_name_must_say_that_it_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    training.save_run(tmp_path, training.RunSpec(Recipe(), "", 1, job=distributed.torchrun_job()))
    assert not training.is_restart_of(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert training.is_restart_of(tmp_path)
    assert not training.is_restart_of(tmp_path / "nothing")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    training.save_run(tmp_path, training.RunSpec(Recipe(), "", 1))
    assert not training.is_restart_of(tmp_path)


def test_several_processes_need_a_device_that_can_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UsageError, match="cannot train together on mps"),
        distributed.process_group(torch.device("mps")),
    ):
        pass


def log(out: Path) -> list[dict[str, float]]:
    """The numbers of log.jsonl but for those that tell the time."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in ("stage", "seconds", "pictures_per_second")}
        for line in lines
    ]


@pytest.mark.slow
def test_one_process_tells_an_error_of_all(data: Path, tmp_path: Path) -> None:
    command = ["train", str(data), "--recipe", "small.toml", "--batch", "3", "--device", "cpu"]
    first, second = start(warm.COMMAND, command, tmp_path)
    code, _, errors = finish([first])[0]
    # as torchrun does when it sees that the first has failed
    second.send_signal(signal.SIGTERM)
    assert code == 2
    assert errors.startswith(
        "vqtok: error: the tokenizer's batch of 3 cannot be shared equally by 2 processes\n  fix: "
    )
    assert finish([second])[0][2] in ("", errors)  # it may have been told a second later
    assert not (tmp_path / "vqtok-model").exists()
