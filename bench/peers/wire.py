"""A line as all peers send it: the same JSON, so that each sends the same number of bytes."""

from bench.produce import TIMESTAMP


def line_json(text: str, number: int) -> bytes:
    """The service's own JSON of a line; ``text`` needs no escapes."""
    line = f'{{"timestamp":"{TIMESTAMP}","message":"{text}","sequence_num":{number},"stream":"stdout"}}'
    return line.encode()
