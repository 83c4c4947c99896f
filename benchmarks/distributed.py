"""What torchrun does with `vqtok train`: equal to one process, killed and resumed, restarted
by itself, over two nodes.

    python benchmarks/distributed.py [equal] [kill] [restart] [nodes]

All on this machine with gloo: they show that the numbers and files are right, not how fast it is.
`nodes` connects two network namespaces by a pair of virtual interfaces (Linux, root, iproute2),
each with a torchrun of its own and a loopback of its own; where that cannot be, two torchruns meet
on the loopback interface.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import timing

from vqtok import weights

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = (
    "tokenizer.width=16",
    "tokenizer.levels=2",
    "tokenizer.normalize=false",
    "tokenizer.level_dropout=0.5",
    "tokenizer.codebook_size=64",
    "tokenizer_training.batch=8",
    "tokenizer_training.steps=120",
    "tokenizer_training.validate_every=10",
    "data.validation_max=16",
    "prior.width=16",
    "prior.layers=2",
    "prior.dropout=0",
    "prior_training.batch=8",
    "prior_training.steps=30",
    "prior_training.validate_every=10",
    "entropy.width=16",
    "entropy.blocks=1",
    "entropy_training.batch=8",
    "entropy_training.steps=20",
    "entropy_training.validate_every=10",
)
TRAIN = [
    "-m",
    "vqtok",
    "train",
    "--preset",
    "tiny",
    "--device",
    "cpu",
    *(word for s in SETTINGS for word in ("--set", s)),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
PARTS = ("tokenizer", "prior", "entropy")


def start(command: list[str], inside: str = "", interface: str = "lo") -> subprocess.Popen[str]:
    """A command, in a network namespace where one is named; gloo uses that interface.

    Its messages come as one text.
    """
    prefix = ["ip", "netns", "exec", inside] if inside else []
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "GLOO_SOCKET_IFNAME": interface,
    }
    return subprocess.Popen(
        [*prefix, *command], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=900)
    return text


def together(out: Path, *options: str, count: int = 2) -> subprocess.Popen[str]:
    """A run by a torchrun that starts `count` processes."""
    mine = [option for option in options if option.startswith("--max-restarts")]
    rest = [option for option in options if option not in mine]
    return start(
        [
            *TORCHRUN,
            "--standalone",
            "--nproc-per-node",
            str(count),
            *mine,
            *TRAIN,
            "-o",
            str(out),
            *rest,
        ]
    )


def workers(process: subprocess.Popen[str]) -> list[int]:
    """The training processes that a torchrun has started, by their numbers in the run."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[1]
            env = dict(
                part.split("=", 1)
                for part in (folder / "environ").read_text().split("\0")
                if "=" in part
            )
        except (OSError, IndexError):
            continue
        if parent == str(process.pid) and "RANK" in env:
            found[int(env["RANK"])] = int(folder.name)
    return [found[rank] for rank in sorted(found)]


def strike(process: subprocess.Popen[str], out: Path, after: int) -> float:
    """Kills process 1 of a run once step `after` is in its log; returns when."""
    log = out / "log.jsonl"
    while process.poll() is None and not (log.exists() and f'"step": {after}' in log.read_text()):
        time.sleep(0.02)
    os.kill(workers(process)[1], signal.SIGKILL)
    return time.monotonic()


def difference(a: Path, b: Path) -> list[str]:
    """Row of a table: the largest difference of any weight, of each part of two models;
    "equal" where every bit is.
    """
    row = []
    for part in PARTS:
        x, y = (
            weights.load_weights(folder / f"{part}.state.safetensors", "state").tensors
            for folder in (a, b)
        )
        names = [name for name in x if name.startswith("network.")]
        largest = max(float(np.abs(x[name].astype(float) - y[name]).max()) for name in names)
        row.append(
            "equal" if all(np.array_equal(x[name], y[name]) for name in x) else f"{largest:.1e}"
        )
    return row


def said(text: str) -> str:
    """The lines of vqtok's own among those of torchrun."""
    return "\n".join(
        line for line in text.splitlines() if line.startswith(("vqtok:", "  fix:", "A process of"))
    )


def equal(folder: Path, whole: Path) -> list[list[str]]:
    """2 and 4 processes against the one that wrote `whole`."""
    rows = []
    for count in (2, 4):
        print(said(finish(together(folder / str(count), "-q", count=count))), end="")
        rows.append([f"{count} processes", *difference(folder / str(count), whole)])
    return rows


def kill(folder: Path, whole: Path) -> list[list[str]]:
    """One of two processes is killed, and the run resumed: by two, and by one."""
    rows = []
    process = together(folder / "lost")
    begin = strike(process, folder / "lost", 50)
    text = finish(process)
    taken = time.monotonic() - begin
    print(
        f"One of two killed at step 50; torchrun ended {taken:.1f} s later, "
        f"exit code {process.returncode}:\n{said(text)}"
    )
    shutil.copytree(folder / "lost", folder / "alone")
    print(f"Once more without --resume:\n{said(finish(together(folder / 'lost', '-q')))}")
    resume = [*TRAIN[:3], "--resume", "-q", "-o"]
    for name, launcher in (
        ("lost", [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]),
        ("alone", [sys.executable]),
    ):
        print(said(finish(start([*launcher, *resume, str(folder / name)]))), end="")
        rows.append(
            [f"killed, resumed by {2 if name == 'lost' else 1}", *difference(folder / name, whole)]
        )
    if (folder / "2").exists():
        rows.append(
            [
                "killed, resumed by 2, against 2 never killed",
                *difference(folder / "lost", folder / "2"),
            ]
        )
    return rows


def restart(folder: Path, whole: Path) -> list[list[str]]:
    """One of two processes is killed, and torchrun starts both again."""
    process = together(folder / "again", "--max-restarts=1")
    strike(process, folder / "again", 50)
    text = finish(process)
    print(f"One of two killed with --max-restarts 1; exit code {process.returncode}:\n{said(text)}")
    return [["killed, restarted by torchrun", *difference(folder / "again", whole)]]


def nodes(folder: Path, whole: Path) -> list[list[str]]:
    """Two torchruns that meet by the c10d rendezvous:
    each in a network namespace of its own, or on the loopback.
    """
    apart = _connect()
    address = "10.213.0.1" if apart else "127.0.0.1"
    places = ("vqtok-a", "vqtok-b") if apart else ("", "")
    runs = []
    try:
        for number, place in enumerate(places):
            options = [
                "--nnodes",
                "2",
                "--nproc-per-node",
                "1",
                "--rdzv-id",
                "benchmark",
                "--rdzv-backend",
                "c10d",
            ]
            options += ["--rdzv-endpoint", f"{address}:29413"]
            if apart:
                # One host name is known in both, so a torchrun cannot tell by it whether the
                # meeting place is its own.
                options += [
                    "--local-addr",
                    f"10.213.0.{number + 1}",
                    "--rdzv-conf",
                    f"is_host={int(number == 0)}",
                ]
            # only that of the node which has the first process is written to
            out = folder / "nodes" / str(number)
            runs.append(
                start(
                    [*TORCHRUN, *options, *TRAIN, "-o", str(out), "-q"],
                    place,
                    f"vqtok{number}" if apart else "lo",
                )
            )
        for process in runs:
            print(said(finish(process)), end="")
    finally:
        if apart:
            _disconnect()
    written = list((folder / "nodes").iterdir())
    print(
        f"Two nodes {'in two network namespaces' if apart else 'on the loopback interface'}; "
        f"written to: {len(written)} folder"
    )
    return [
        [f"2 nodes {'in namespaces' if apart else 'on loopback'}", *difference(written[0], whole)]
    ]


def _connect() -> bool:
    """Two namespaces with a pair of virtual interfaces between them; whether that could be done."""
    commands = [
        "ip netns add vqtok-a",
        "ip netns add vqtok-b",
        "ip link add vqtok0 netns vqtok-a type veth peer name vqtok1 netns vqtok-b",
        "ip -n vqtok-a addr add 10.213.0.1/24 dev vqtok0",
        "ip -n vqtok-b addr add 10.213.0.2/24 dev vqtok1",
        *(
            f"ip -n vqtok-{n} link set {device} up"
            for n, device in (("a", "lo"), ("b", "lo"), ("a", "vqtok0"), ("b", "vqtok1"))
        ),
    ]
    for command in commands:
        if (
            shutil.which("ip") is None
            or subprocess.run(command.split(), capture_output=True).returncode
        ):
            print(f"no network namespaces here ({command}): loopback instead")
            _disconnect()
            return False
    return True


def _disconnect() -> None:
    for name in ("vqtok-a", "vqtok-b"):
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def main() -> None:
    wanted = sys.argv[1:] or ["equal", "kill", "restart", "nodes"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(timing.machine())
        print(said(finish(start([sys.executable, *TRAIN, "-o", str(folder / "1"), "-q"]))), end="")
        rows = []
        for part in (equal, kill, restart, nodes):
            if part.__name__ in wanted:
                rows += part(folder, folder / "1")
        print(
            timing.table(
                ["against one process", *(f"{part}: largest difference" for part in PARTS)], rows
            )
        )


if __name__ == "__main__":
    main()
