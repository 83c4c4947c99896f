"""Writes the messages of onnx.proto that a graph needs, field by field.

A message is a list of byte strings, so that weights are copied once, when all is joined. The
numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, which never change.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Message = list["bytes | memoryview[int]"]
Value = int | float | str | Sequence[int]

FLOAT, UINT8, INT64, FLOAT16 = 1, 2, 7, 10  # TensorProto.DataType
_TYPES = {"float32": FLOAT, "uint8": UINT8, "int64": INT64, "float16": FLOAT16}
_A_FLOAT, _AN_INT, _A_STRING, _INTS = 1, 2, 3, 7  # AttributeProto.AttributeType


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number takes ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number(field: int, value: int) -> Message:
    """A field that holds an integer."""
    return [_varint(field << 3) + _varint(value)]


def message(field: int, content: Message) -> Message:
    """A field that holds a message."""
    length = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in content)
    return [_varint(field << 3 | 2) + _varint(length), *content]


def text(field: int, value: str | bytes) -> Message:
    """A field that holds text, or bytes."""
    return message(field, [value.encode() if isinstance(value, str) else value])


def node(kind: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Value]) -> Message:
    """A NodeProto of one output, whose name is the node's, too."""
    made: Message = []
    for name in inputs:
        made += text(1, name)
    made += text(2, output) + text(3, output) + text(4, kind)
    for name in sorted(attributes):
        made += message(5, _attribute(name, attributes[name]))
    return made


def _attribute(name: str, value: Value) -> Message:
    made = text(1, name)
    if isinstance(value, str):
        return made + text(4, value) + number(20, _A_STRING)
    if isinstance(value, int):
        return made + number(3, value) + number(20, _AN_INT)
    if isinstance(value, float):
        single = np.array(value, "<f4").tobytes()
        return [*made, _varint(2 << 3 | 5) + single, *number(20, _A_FLOAT)]
    for one in value:
        made += number(8, one)
    return made + number(20, _INTS)


def tensor(name: str, values: np.ndarray) -> Message:
    """A TensorProto of float32, float16, uint8 or int64."""
    made = _head(name, values)
    little = np.asarray(values, dtype=values.dtype.newbyteorder("<"), order="C")
    return made + message(9, [little.reshape(-1).view(np.uint8).data])


def tensor_apart(name: str, values: np.ndarray) -> Message:
    """A TensorProto, as `tensor`, whose values are given to the program that runs the graph."""
    made = _head(name, values)
    for key, value in (("location", name), ("offset", "0"), ("length", str(values.nbytes))):
        made += message(13, text(1, key) + text(2, value))
    return made + number(14, 1)  # DataLocation.EXTERNAL


def _head(name: str, values: np.ndarray) -> Message:
    made: Message = []
    for side in values.shape:
        made += number(1, side)
    return made + number(2, _TYPES[values.dtype.name]) + text(8, name)


def value_info(name: str, kind: int, shape: Sequence[str | int]) -> Message:
    """A ValueInfoProto: an input or output of a graph; a side of the shape that is text is free."""
    sides: Message = []
    for side in shape:
        sides += message(1, number(1, side) if isinstance(side, int) else text(2, side))
    of_tensor = message(1, number(1, kind) + message(2, sides))
    return text(1, name) + message(2, of_tensor)


def model(graph: Message, opset: int, ir_version: int, facts: Mapping[str, str]) -> bytes:
    """The bytes of a ModelProto; facts are its metadata."""
    made = number(1, ir_version) + text(2, "vqtok") + message(7, graph)
    made += message(8, text(1, "") + number(2, opset))
    for key, value in facts.items():
        made += message(14, text(1, key) + text(2, value))
    return b"".join(made)
