"""Workflows' settings and watches, as objects in the archive, for an import."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import orjson

from chronoverse.archive.object_store import ObjectStore
from chronoverse.archive.retention import apply_retention
from chronoverse.archive.store_history import StoreHistory
from chronoverse.errors import ArchiveDamaged
from chronoverse.joblog.model import IDENTIFIER, MAX_NUMBER
from chronoverse.joblog.watches import Watch
from chronoverse.store import Store
from chronoverse.store.catalog import WorkflowSettings

#: No job's folder has these names, because no id begins with an underscore.
_NAME: Final = "_settings.json"
_WATCHES_NAME: Final = "_watches.json"


def change_settings(
    store: Store,
    workflow_id: str,
    changes: Mapping[str, int | None],
    default_retention: int,
    record: Callable[[str, str], object],
) -> None:
    """Changes some of a workflow's settings, also for jobs that have begun. None removes a setting.

    First calls ``record`` with the action and its details. Applies a retention in ``changes`` to the jobs even if it
    was already set, so that the call can be retried. Raises the store's errors.
    """
    own = store.catalog.settings_of(workflow_id).own
    changed = {name: value for name, value in changes.items() if value != own[name]}
    texts = {name: "default" if value is None else str(value) for name, value in changed.items()}
    if seconds := texts.pop("retention_seconds", None):
        record("retention", seconds if seconds == "default" else f"{seconds} s")
    if texts:
        record("limits", ", ".join(f"{name} {text}" for name, text in texts.items()))
    if changed:
        store.catalog.change_settings(workflow_id, **changed)
    if "retention_seconds" in changes:
        apply_retention(store, workflow_id, changes["retention_seconds"], default_retention)


def settings_name(workflow_id: str) -> str:
    return f"{workflow_id}/{_NAME}"


def settings_owner(name: str) -> str | None:
    """The workflow whose settings or watches an object contains, or None."""
    workflow_id, _, rest = name.partition("/")
    return workflow_id if rest in (_NAME, _WATCHES_NAME) and IDENTIFIER.fullmatch(workflow_id) else None


def save_settings(
    store: Store,
    objects: ObjectStore,
    history: StoreHistory,
    workflow_ids: Sequence[str],
    isolated: Callable[[str], contextlib.AbstractContextManager[object]] = contextlib.nullcontext[str],
) -> None:
    """Saves settings and watches that changed since they were last saved, unless the store was rolled back.

    ``isolated``, called with a workflow's id, handles errors that concern only this workflow.
    """
    for workflow_id, found in store.catalog.settings(workflow_ids).items():
        changed_ms = found.changed_ms
        if not changed_ms and any(value is not None for value in found.own.values()):
            # Settings written by an earlier version have no time. This call sets it.
            store.catalog.change_settings(workflow_id)
        elif changed_ms != found.saved_ms and not history.went_back():
            with isolated(workflow_id):
                fields = store.watches.fields(workflow_id)
                watches = {name: text.decode() for name, text in fields.items() if ":" not in name}
                objects.put(f"{workflow_id}/{_WATCHES_NAME}", orjson.dumps(watches))
                objects.put(settings_name(workflow_id), orjson.dumps({**found.own, "changed_ms": changed_ms}))
                store.catalog.settings_saved(workflow_id, changed_ms)


def import_settings(store: Store, objects: ObjectStore, workflow_id: str) -> bool:
    """Restores a workflow's lost settings and watches from the archive. Returns whether there were any.

    Keeps settings that the store got since the loss. Raises :class:`ArchiveDamaged`, and the errors of the store and
    the object store.
    """
    saved = _read(objects, workflow_id)
    known = store.catalog.settings([workflow_id]).get(workflow_id)
    if known is None or known.saved_ms >= saved.changed_ms:
        return False
    kept = saved.own
    if known.changed_ms > saved.changed_ms:
        kept |= {name: value for name, value in known.own.items() if value is not None}
    # Restores watches first, as an interrupted import is repeated until settings exist. Older archives lack watches.
    with contextlib.suppress(ArchiveDamaged):
        store.watches.restore(workflow_id, read_watches(objects, workflow_id))
    store.catalog.change_settings(workflow_id, **kept)
    store.catalog.settings_saved(workflow_id, saved.changed_ms)
    return True


def _read(objects: ObjectStore, workflow_id: str) -> WorkflowSettings:
    name = settings_name(workflow_id)
    try:
        found = WorkflowSettings(**orjson.loads(objects.get(name)))
    except (ValueError, TypeError) as error:
        raise ArchiveDamaged(f"{name} cannot be read") from error
    numbers = [found.changed_ms, *(value for value in found.own.values() if value is not None)]
    if not all(type(each) is int and 0 <= each <= MAX_NUMBER for each in numbers):
        raise ArchiveDamaged(f"{name} cannot be read")
    return found


def read_watches(objects: ObjectStore, workflow_id: str) -> dict[str, bytes]:
    """The workflow's watches, in the form of :meth:`WatchStore.fields`. Raises :class:`ArchiveDamaged`."""
    name = f"{workflow_id}/{_WATCHES_NAME}"
    try:
        found = {watch_id: str(text).encode() for watch_id, text in orjson.loads(objects.get(name)).items()}
        for watch_id, text in found.items():
            watch = Watch(**orjson.loads(text))
            if (watch.workflow_id, watch.id) != (workflow_id, watch_id):
                raise ValueError
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ArchiveDamaged(f"{name} cannot be read") from error
    return found
