"""Labels: keys and values that describe a job, such as its ``branch``. A runner sets each once.

In the store, a label is the field ``label:KEY`` of the job's hash. Foreign programs can write any value there.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import orjson

Labels = tuple[tuple[str, str], ...]

MAX_LABELS: Final = 16
_KEY: Final = re.compile(r"[a-z][a-z0-9._/-]{0,62}", re.ASCII)
#: No control characters and no lone surrogates, which UTF-8 cannot encode.
_VALUE: Final = re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,256}")


def parse_label(text: str) -> tuple[str, str]:
    """Parses KEY=VALUE. Raises ValueError, whose message says what is invalid."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"invalid label {text[:100]!r}: expected KEY=VALUE, such as branch=main")
    return _check(key, value)


def parse_choice(text: str) -> tuple[()] | tuple[str, str]:
    """Parses a label that good runs must have. ``*`` (any run) becomes an empty pair. Raises ValueError."""
    return () if text == "*" else parse_label(text)


def _check(key: str, value: str) -> tuple[str, str]:
    if not _KEY.fullmatch(key):
        raise ValueError(
            f"invalid label {key[:100]!r}: a key is 1 to 63 of a-z 0-9 . _ / - and starts with a letter from a to z"
        )
    if not _VALUE.fullmatch(value):
        raise ValueError(f"invalid value of the label {key}: expected 1 to 256 characters without control characters")
    return key, value


def check_labels(labels: object) -> Labels:
    """Validates a mapping of labels. Raises ValueError, whose message says what is invalid."""
    if not isinstance(labels, Mapping) or any(type(text) is not str for pair in labels.items() for text in pair):
        raise ValueError("labels must be an object of strings")
    if len(labels) > MAX_LABELS:
        raise ValueError(f"a job can have at most {MAX_LABELS} labels")
    return tuple(sorted(_check(key, value) for key, value in labels.items()))


def read_labels(found: object) -> Labels:
    """The valid labels of an untrusted mapping, at most :data:`MAX_LABELS`."""
    return tuple(
        sorted(
            (key, value)
            for key, value in (found.items() if isinstance(found, Mapping) else ())
            if isinstance(key, str) and isinstance(value, str) and _KEY.fullmatch(key) and _VALUE.fullmatch(value)
        )[:MAX_LABELS]
    )


def has_labels(labels: Labels, wanted: Iterable[Sequence[str]]) -> bool:
    """Whether ``labels`` contain all ``wanted`` (key, value) pairs."""
    return all((key, value) in labels for key, value in wanted)


def fit_labels(labels: Mapping[str, str], max_bytes: int) -> dict[str, str]:
    """The first ``labels``, as many as fit into ``max_bytes`` of JSON. A job's labels can take 17 KB."""
    fitting = dict(labels)
    while fitting and len(orjson.dumps(fitting)) > max_bytes:
        fitting.popitem()
    return fitting
