"""Orders the convolutions of a checkpoint with the paper's network into encoder and decoder."""

import re
from dataclasses import replace

import numpy as np

from vqtok.errors import FormatError
from vqtok.interop.paper_tensors import OTHER_NETWORK, Conv, Item, natural_key, number_gap, side_of

TRANSPOSED = re.compile(r"trans|inverse|deconv|conv_?t(?:[._\d]|$)|tr_conv|(?:^|[._])up", re.I)


def encoder_layers(convs: list[Conv], origin: str) -> list[Item]:
    """Returns the layers of the encoder: halvings, 3x3 convolutions, residual blocks, 1x1
    convolutions.
    """
    blocks, rest = _blocks(convs, origin)
    items: list[Item] = []
    downs = _chain([conv for conv in rest if conv.kernel == 4], (1, 3), origin)
    items += [("down", (conv,)) for conv in downs]
    threes = [conv for conv in rest if conv.kernel == 3]
    # a 3x3 convolution outside the encoder, or after the blocks in its Sequential, ends it
    late = [
        conv
        for conv in threes
        if side_of(conv.stem) == "" or (blocks and (number_gap(blocks[-1][1][0], conv) or 0) > 0)
    ]
    for conv in threes:
        if conv not in late:
            items.append(("conv", (conv,)))
    items += blocks
    items += [("conv", (conv,)) for conv in late]
    items += [("point", (conv,)) for conv in rest if conv.kernel == 1]
    _check_chain(items, downs[0].weight.shape[1], origin)
    other = [conv.stem for conv in rest if conv.kernel not in (1, 3, 4)]
    if other:
        raise FormatError(
            f"{origin}: {other[0][:80]} is no 1x1, 3x3 or 4x4 convolution", OTHER_NETWORK
        )
    return items


def decoder_layers(
    convs: list[Conv], dim: int, channels: int, origin: str
) -> tuple[list[Item], str | None]:
    """Returns the layers of the decoder (1x1 and 3x3 convolutions, residual blocks, doublings), and
    the name of a 3x3 convolution that could as well be a transposed one.
    """
    blocks, rest = _blocks(convs, origin)
    ups = [conv for conv in rest if conv.kernel == 4]
    threes = [conv for conv in rest if conv.kernel == 3]
    other = [conv.stem for conv in rest if conv.kernel not in (1, 3, 4)]
    if other or not ups:
        named = f"{other[0][:80]} is no 1x1, 3x3 or 4x4 convolution" if other else "no doublings"
        raise FormatError(f"{origin}: {named}", OTHER_NETWORK)
    last = [conv for conv in threes if conv.weight.shape[0] == channels and len(threes) > 1]
    items: list[Item] = [("point", (conv,)) for conv in rest if conv.kernel == 1]
    current = items[-1][1][0].weight.shape[0] if items else dim
    square = None
    for conv in threes:
        if conv in last:
            continue
        out, into = conv.weight.shape[:2]
        transposed = into != current and out == current
        if out == into == current:
            square = conv.stem
            transposed = bool(TRANSPOSED.search(conv.stem))
        if transposed:  # of stride 1: a convolution with the kernel turned around
            weight = np.ascontiguousarray(conv.weight.swapaxes(0, 1)[:, :, ::-1, ::-1])
            conv = replace(conv, weight=weight)
        items.append(("conv", (conv,)))
        current = conv.weight.shape[0]
    items += blocks
    turned = [replace(conv, weight=conv.weight.swapaxes(0, 1)) for conv in ups]
    chained = _chain(turned, (current,), origin)
    items += [("up", (replace(conv, weight=conv.weight.swapaxes(0, 1)),)) for conv in chained]
    items += [("conv", (conv,)) for conv in last]
    _check_chain(items, dim, origin)
    final = items[-1]
    out = final[1][0].weight.shape[1 if final[0] == "up" else 0]
    if out != channels:
        raise FormatError(
            f"{origin}: the decoder ends in {out} channels, not in the {channels} of the images",
            OTHER_NETWORK,
        )
    return items, square


def _blocks(convs: list[Conv], origin: str) -> tuple[list[Item], list[Conv]]:
    """Returns the residual blocks, and the convolutions that are in none."""
    strided = {conv.stem.rpartition(".")[0] for conv in convs if conv.kernel == 4}
    groups: dict[tuple[str, str], list[Conv]] = {}
    rest = []
    for conv in convs:
        parent, _, last = conv.stem.rpartition(".")
        if conv.kernel == 4 or not parent or (parent in strided and "res" not in last):
            rest.append(conv)
        else:
            groups.setdefault((parent, ""), []).append(conv)
    for (parent, _), members in list(groups.items()):
        if len(members) > 2:  # all blocks of a side in one module: res3x3_0, res1x1_0, ...
            del groups[parent, ""]
            for conv in members:
                number = re.findall(r"\d+", conv.stem.rpartition(".")[2])
                groups.setdefault((parent, number[-1] if number else ""), []).append(conv)
    blocks: list[Item] = []
    for (parent, _), members in groups.items():
        members.sort(key=lambda conv: (-conv.kernel, natural_key(conv.stem)))
        if len(members) == 1:
            rest.append(members[0])
            continue
        first, second = members[0], members[-1]
        fits = (
            len(members) == 2
            and first.kernel == 3
            and second.kernel in (1, 3)
            and first.weight.shape[1] == second.weight.shape[0]
            and first.weight.shape[0] == second.weight.shape[1]
        )
        if not fits:
            raise FormatError(
                f"{origin}: {parent[:80]} is no residual block of a 3x3 and a 1x1 convolution",
                OTHER_NETWORK,
            )
        blocks.append(("block" if second.kernel == 1 else "block3", (first, second)))
    blocks.sort(key=lambda item: natural_key(item[1][0].stem))
    rest.sort(key=lambda conv: natural_key(conv.stem))
    return blocks, rest


def _chain(convs: list[Conv], starts: tuple[int, ...], origin: str) -> list[Conv]:
    """Convolutions (out, in, 4, 4) so ordered that each takes what the one before gives; natural
    order of their names where several fit.
    """
    left, ordered = list(convs), []
    allowed: tuple[int, ...] = starts
    while left:
        fits = [conv for conv in left if conv.weight.shape[1] in allowed]
        if not fits:
            raise FormatError(
                f"{origin}: {left[0].stem[:80]} takes {left[0].weight.shape[1]} channels, and none "
                "of the layers before it gives so many",
                OTHER_NETWORK,
            )
        ordered.append(fits[0])
        left.remove(fits[0])
        allowed = (fits[0].weight.shape[0],)
    if not ordered:
        raise FormatError(f"{origin} has no 4x4 convolutions in its encoder", OTHER_NETWORK)
    return ordered


def _check_chain(items: list[Item], channels: int, origin: str) -> None:
    """Raises FormatError where a layer does not take the channels that the one before gives."""
    for kind, convs in items:
        out, into = convs[0].weight.shape[:2]
        out, into = (into, out) if kind == "up" else (out, into)
        if into != channels:
            raise FormatError(
                f"{origin}: {convs[0].stem[:80]} takes {into} channels, and the layer before it "
                f"gives {channels}",
                OTHER_NETWORK,
            )
        channels = channels if kind.startswith("block") else out


def check_order(items: list[Item], origin: str) -> None:
    """Raises FormatError where the numbers of a Sequential say another order."""
    for i, (_, convs) in enumerate(items):
        for _, others in items[i + 1 :]:
            gap = number_gap(convs[-1], others[0])
            if gap is not None and gap < 0:
                raise FormatError(
                    f"{origin}: {others[0].stem[:80]} stands before {convs[-1].stem[:80]}, which "
                    "is not the order of the paper's network",
                    OTHER_NETWORK,
                )
