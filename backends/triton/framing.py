"""How this process and its workers talk: a line of JSON, then the bytes of the parts whose lengths it names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

Message = dict[str, Any]


def send(stream: BinaryIO, message: Message, parts: Sequence[bytes | memoryview] = ()) -> None:
    """Write one message."""
    header = {**message, "lengths": [memoryview(part).nbytes for part in parts]}
    stream.write(json.dumps(header).encode() + b"\n")
    for part in parts:
        stream.write(part)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[Message, list[bytes]] | None:
    """The next message and its parts; None where the other side is gone."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    message: Message = json.loads(line)
    parts = [stream.read(length) for length in message.pop("lengths")]
    return message, parts
