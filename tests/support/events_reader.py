"""TensorBoard's event files in a page, written from their description alone: a second opinion on dtrain's.

A file is TFRecords: length (8 bytes), its masked crc32c, a protocol buffer Event, its masked crc32c.

    Event       1 wall_time: double   2 step   3 file_version   5 Summary   7 SessionLog
    Summary     1 Value, repeated; Value: 1 tag   2 simple_value: float
    SessionLog  1 status, START is 1
"""

import struct


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


assert crc32c(b"123456789") == 0xE3069283


def masked_crc(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(data):
    """The bytes of each TFRecord; AssertionError when a crc is wrong."""
    while data:
        length, length_crc = struct.unpack_from("<QI", data)
        record, (record_crc,) = data[12:12 + length], struct.unpack_from("<I", data, 12 + length)
        assert length_crc == masked_crc(data[:8]) and record_crc == masked_crc(record)
        yield record
        data = data[16 + length:]


def varint(data):
    """A number of 7 bits a byte, the lowest first, and the bytes behind it."""
    value = shift = 0
    while data[0] >= 0x80:
        value |= (data[0] & 0x7F) << shift
        shift, data = shift + 7, data[1:]
    return value | data[0] << shift, data[1:]


def fields(message):
    """(field number, value) of a protocol buffer."""
    while message:
        key, message = varint(message)
        if key & 7 == 0:
            value, message = varint(message)
        elif key & 7 == 2:
            length, message = varint(message)
            value, message = message[:length], message[length:]
        else:
            form = {1: "<d", 5: "<f"}[key & 7]
            (value,) = struct.unpack_from(form, message)
            message = message[struct.calcsize(form):]
        yield key >> 3, value


def wall_times(directory):
    """Of all events, in the order they were written."""
    return [dict(fields(record))[1] for path in sorted(directory.glob("events.out.tfevents.*"),
                                                       key=lambda path: path.stat().st_mtime)
            for record in records(path.read_bytes())]


def read(directory):
    """{tag: {step: value}} as TensorBoard shows it: the START of a session forgets what earlier files hold
    from its step on."""
    scalars = {}
    for path in sorted(directory.glob("events.out.tfevents.*")):
        version, *events = [dict(fields(record)) for record in records(path.read_bytes())]
        assert version[3] == b"brain.Event:2"
        for event in events:
            assert event[1] >= version[1] > 1.6e9  # seconds since 1970
            if 7 in event:
                assert dict(fields(event[7])) == {1: 1}
                scalars = {tag: {step: value for step, value in steps.items() if step < event[2]}
                           for tag, steps in scalars.items()}
            for _, value in fields(event.get(5, b"")):
                value = dict(fields(value))
                scalars.setdefault(value[1].decode(), {})[event[2]] = value[2]
    return scalars
