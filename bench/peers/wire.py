"""A line as all peers send it: the same JSON, so that all send the same number of bytes."""

from bench.produce import TIMESTAMP


def line_json(text: str, number: int) -> bytes:
    """The service's JSON of a line whose ``text`` needs no escapes."""
    line = f'{{"timestamp":"{TIMESTAMP}","message":"{text}","sequence_num":{number},"stream":"stdout"}}'
    return line.encode()
