"""The job of each try of an Airflow task: ``TASK..RUN..TRY`` or ``TASK..RUN..TRY-MAP`` in the DAG's workflow."""

import hashlib
import re
from typing import Final, NamedTuple

from chronoverse.joblog.labels import Labels, read_labels
from chronoverse.joblog.model import JobRef

#: Characters that an id must not contain, and dots that would look like a separator or an escape.
_ESCAPED: Final = re.compile(r"[^A-Za-z0-9._-]|^\.|\.(?![A-Za-z0-9_-])|\.(?=[0-9A-F]{2})")
#: The end of a log file's path by Airflow's default ``log_filename_template``. A triggerer appends its name.
_PATH: Final = re.compile(
    r"dag_id=([^/]+)/run_id=([^/]+)/task_id=([^/]+)/(?:map_index=([0-9]+)/)?attempt=([0-9]+)\.log(\.trigger\.[^/]*)?\Z"
)


class TaskTry(NamedTuple):
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int

    @property
    def job(self) -> JobRef:
        """The job of the try. An id that would be too long ends with a digest instead of the try."""
        number = f"{self.try_number}" if self.map_index < 0 else f"{self.try_number}-{self.map_index}"
        return JobRef(_identifier(self.dag_id), _identifier(self.task_id, self.run_id, number))

    @property
    def labels(self) -> Labels:
        """Labels for the parts of the id, named as in Airflow, and complete even if the id ends with a digest."""
        labels = {"dag": self.dag_id, "task": self.task_id, "run": self.run_id, "try": str(self.try_number)}
        return read_labels(labels if self.map_index < 0 else {**labels, "map": str(self.map_index)})


def try_of_path(path: str) -> TaskTry | None:
    """The try of a log file, including a triggerer's. None for other files, or if another template is used."""
    found = _PATH.search(path)
    if found is None:
        return None
    dag_id, run_id, task_id, map_index, try_number, _ = found.groups()
    return TaskTry(dag_id, run_id, task_id, int(map_index or -1), int(try_number))


def is_of_triggerer(path: str) -> bool:
    """Whether the log file is a triggerer's. A triggerer waits for deferred tasks."""
    return (found := _PATH.search(path)) is not None and found[6] is not None


def _identifier(*parts: str) -> str:
    # Escaping ensures that no part contains the separator.
    text = "..".join(_ESCAPED.sub(_escape, part) for part in parts)
    if not text[:1].isalnum():  # an id begins with a letter or a digit, and an escape with a dot
        text = f"0..{text}"
    # Leaves room for suffixes such as JOB.2 within 128 characters.
    if len(text) > 120:
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        text = f"{text[:78].rstrip('.')}..sha256..{digest}"
    return text


def _escape(found: re.Match[str]) -> str:
    return "".join(f".{byte:02X}" for byte in found[0].encode("utf-8", "replace"))
