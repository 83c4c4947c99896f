"""What the tests of token sequences share: folders of codes shards with labels, made in memory."""

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vqtok import codes
from vqtok.bulk import shards
from vqtok.bulk.inputs import Input


def make_shards(
    folder: str | Path,
    grids: Sequence[tuple[int, int]],
    K: int = 16,
    L: int = 2,
    each: int = 4,
    names: Sequence[str] | None = None,
    seed: int = 0,
    labels: list[str] | None = None,
    **facts: Sequence[Any],
) -> list[np.ndarray]:
    """A folder of shards of `each` images of f = 4, with random indices; those (L, h, w) of each
    image. `facts` are the label, caption and split of each; `labels` are the manifest's.
    """
    folder, draw = Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True)
    dtype = codes.index_dtype(K)
    made = [draw.integers(0, K, (L, h, w)).astype(dtype) for h, w in grids]
    manifest = shards.Manifest(
        "toy", "0badcafe", K, 4, 3, L, False, "fp32", "white", each, (("pictures", None),)
    )
    text = manifest.to_bytes()
    if labels is not None:
        import json

        text = json.dumps(json.loads(text) | {"labels": labels}).encode()
    (folder / "manifest.json").write_bytes(text)
    for chunk, start in enumerate(range(0, len(grids), each)):
        stop = min(start + each, len(grids))
        _write(folder, chunk, stop == len(grids), range(start, stop), made, names, facts, K)
    return made


def _write(
    folder: Path,
    chunk: int,
    last: bool,
    images: range,
    made: list[np.ndarray],
    names: Sequence[str] | None,
    facts: dict[str, Sequence[Any]],
    K: int,
) -> None:
    rows: dict[tuple[int, int], list[np.ndarray]] = {}
    lines = []
    for i in images:
        _, h, w = made[i].shape
        of_grid = rows.setdefault((w, h), [])
        lines.append(
            shards.ShardRecord(
                names[i] if names else f"{i:03}.png",
                (4 * w, 4 * h),
                (w, h),
                len(of_grid),
                **{name: values[i] for name, values in facts.items()},
            )
        )
        of_grid.append(made[i])
    stacks = [
        codes.Codes(np.stack(grids), "toy", "0badcafe", K, 4, 3, ((4 * h, 4 * w),) * len(grids))
        for (w, h), grids in rows.items()
    ]
    data, text = shards.build_shard(Input(0, "pictures", None, None), last, 0, lines, stacks)
    suffix = ".npz" if len(stacks) == 1 else ".tar"
    (folder / f"00000-{chunk:05}{suffix}").write_bytes(data)
    (folder / f"00000-{chunk:05}.jsonl").write_bytes(text)


def written_out(grid: np.ndarray, order: str, K: int, offset: bool) -> list[int]:
    """The tokens of a grid (L, h, w), by three loops."""
    L, h, w = grid.shape
    places = [(y, x) for y in range(h) for x in range(w)]
    walk = (
        [(level, y, x) for y, x in places for level in range(L)]
        if order == "raster"
        else [(level, y, x) for level in range(L) for y, x in places]
    )
    return [int(grid[level, y, x]) + (level * K if offset else 0) for level, y, x in walk]


def flatten(lists: Iterable[list[int]]) -> list[int]:
    """One list of all."""
    return list(chain.from_iterable(lists))
