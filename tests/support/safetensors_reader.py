"""The safetensors format in a page, written from its description alone: a second opinion on dtrain's files.

    8 bytes, little-endian: length of the header
    the header, JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}
    the tensors' bytes; offsets count from here

A tensor is (shape, array of floats).
"""

import array
import json
import math
import struct
import sys

assert sys.byteorder == "little" and array.array("f").itemsize == 4


def split(data):
    """The header, decoded, and the tensors' bytes. Raises ValueError on anything the format forbids."""
    if len(data) < 8:
        raise ValueError("no header length")
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError("the header is longer than the file")
    text = data[8:8 + length].decode()
    if not text.startswith("{"):
        raise ValueError("the header does not begin with {")
    return json.loads(text, object_pairs_hook=_no_twins), data[8 + length:]


def _no_twins(pairs):
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def read(path):
    """({name: (shape, values)}, {key: value}); every tensor must be F32."""
    with open(path, "rb") as file:
        header, data = split(file.read())
    metadata = header.pop("__metadata__", {})
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata that is not a string")
    tensors, reached = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        fits = begin == reached and end - begin == 4 * math.prod(shape) and end <= len(data)
        if entry["dtype"] != "F32" or not fits:
            raise ValueError(f"tensor {name} does not fit: {entry}")
        tensors[name] = (tuple(shape), array.array("f", data[begin:end]))
        reached = end
    if reached != len(data):
        raise ValueError("data that belongs to no tensor")
    return tensors, metadata


def write(path, tensors, metadata=None, dtype="F32"):
    """Tensors in the dictionary's order, without padding. `dtype` only names the type: values are stored as
    they lie in their arrays."""
    header, data = {}, b""
    if metadata is not None:
        header["__metadata__"] = metadata
    for name, (shape, values) in tensors.items():
        begin, data = len(data), data + values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
