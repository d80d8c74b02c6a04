"""A model of Redis: the commands that the code under test uses, and its real Lua scripts.

``tests/simulation/test_store_model.py`` compares it with real servers. Replies are Python values: bytes, int, float,
None, list, dict, set, :class:`Status` and :class:`Refusal`. Time is the loop's. Every value that is about to change is
copied first, so a restart can undo what was not yet synced (:meth:`Data.restore`).
"""

import hashlib
import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final

from lupa.lua51 import LuaRuntime

Id = tuple[int, int]
MOST: Final = 2**64 - 1


class Status(bytes):
    """A simple string, such as OK."""


class Refusal(Exception):
    """An error reply."""


OK: Final = Status(b"OK")
_WRONG: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"


class Stream:
    """A stream: ids in order, and the fields of each. ``last`` is the last id that was generated."""

    def __init__(self) -> None:
        self.ids: list[Id] = []
        self.fields: list[tuple[bytes, ...]] = []
        self.last: Id = (0, 0)
        #: The greatest id that XDEL has removed.
        self.deleted: Id = (0, 0)
        self.added = 0
        self.groups: set[bytes] = set()
        #: What XINFO tells scripts, until the stream changes.
        self.info: Any = None

    def copy(self) -> "Stream":
        new = Stream()
        new.ids, new.fields, new.last, new.added = self.ids[:], self.fields[:], self.last, self.added
        new.groups, new.deleted = set(self.groups), self.deleted
        return new

    def entries(self, start: int, stop: int) -> list[Any]:
        pairs = zip(self.ids[start:stop], self.fields[start:stop], strict=True)
        return [[b"%d-%d" % id_, list(fields)] for id_, fields in pairs]


class ZSet(dict[bytes, float]):
    def ordered(self) -> list[tuple[float, bytes]]:
        return sorted((score, member) for member, score in self.items())


class Set(dict[bytes, None]):
    """A set in the order of insertion."""


_TYPES: Final = {bytes: b"string", dict: b"hash", Stream: b"stream", ZSet: b"zset", list: b"list", Set: b"set"}
#: Commands that a server without memory refuses.
_DENIED: Final = frozenset({b"SET", b"HSET", b"HSETNX", b"XADD", b"ZADD", b"RPUSH", b"SADD", b"XGROUP", b"XSETID"})
_OTHER_WRITES: Final = frozenset({
    b"DEL", b"UNLINK", b"PEXPIRE", b"PERSIST", b"HDEL", b"HINCRBY", b"LTRIM", b"SREM", b"ZREM", b"ZREMRANGEBYSCORE",
    b"XTRIM", b"XDEL",
})  # fmt: skip


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, Stream) else None if value is None else type(value)(value)


def _int(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        raise Refusal("ERR value is not an integer or out of range") from None


def _float(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:
        raise Refusal("ERR value is not a valid float") from None


def number(value: float) -> bytes:
    """A score as RESP2 and scripts see it."""
    if math.isinf(value):
        return b"inf" if value > 0 else b"-inf"
    return b"%d" % value if value == int(value) and abs(value) < 1e17 else b"%.17g" % value


def _id(text: bytes, part: int) -> Id:
    ms, _, seq = text.partition(b"-")
    try:
        found = int(ms), int(seq) if seq else part
    except ValueError:
        found = -1, -1
    if min(found) < 0 or max(found) > MOST:
        raise Refusal("ERR Invalid stream ID specified as stream command argument")
    return found


class Data:
    """The keys of one server. ``clock`` is Unix time in seconds. ``changed`` is called with each key that changes."""

    def __init__(
        self, clock: Callable[[], float], chance: Callable[[int], int], changed: Callable[[bytes], object]
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._changed = changed
        self.values: dict[bytes, Any] = {}
        self.expires: dict[bytes, float] = {}
        #: By key, its value and expiry at the last sync.
        self._undo: dict[bytes, tuple[Any, float | None]] = {}
        #: The same at the last moment up to which the replica has everything. None without a replica.
        self.unreplicated: dict[bytes, tuple[Any, float | None]] | None = None
        self.started_at = clock()
        #: Whether there is no memory for writes.
        self.is_full = False
        #: Whether its disk is full: then it refuses all writes.
        self.cannot_write = False
        self.writes = 0
        self.scripts: dict[str, tuple[Any, bool]] = {}
        self._script: list[bool] = []
        self._methods = {
            name.removeprefix("do_").upper().encode(): getattr(self, name) for name in dir(self) if name[:3] == "do_"
        }
        self._lua = LuaRuntime(encoding=None, unpack_returned_tuples=False, register_eval=False)
        self._drive = self._lua.execute(_DRIVER, self._from_script, _sha1, _to_json, self._from_json)

    # What happens to the server

    def sync(self) -> None:
        """All that was written is on the disk."""
        self._undo.clear()

    def restore(self) -> None:
        """Goes back to the last sync."""
        for key, (value, expires) in self._undo.items():
            self._put(key, value, expires)
        self._undo.clear()

    def become_replica_of(self, other: "Data") -> None:
        """Takes what the replica of ``other`` has."""
        self.values = {key: _copy(value) for key, value in other.values.items()}
        self.expires = dict(other.expires)
        for key, (value, expires) in (other.unreplicated or {}).items():
            self._put(key, _copy(value), expires)
        self.unreplicated = {}

    def clear(self) -> None:
        """All is lost, as after FLUSHALL."""
        for key in self.values:
            self._changed(key)
        for each in (self.values, self.expires, self._undo):
            each.clear()

    def _put(self, key: bytes, value: Any, expires: float | None) -> None:
        self.values.pop(key, None)
        self.expires.pop(key, None)
        if value is not None:
            self.values[key] = value
            if expires is not None:
                self.expires[key] = expires

    def expire_due(self) -> None:
        """Removes all keys that have expired."""
        now = self._clock()
        for key in [key for key, at in self.expires.items() if at <= now]:
            self._remove(key)

    # Keys

    def _get(self, key: bytes, kind: type) -> Any:
        value = self.values.get(key)
        if value is None:
            return None
        at = self.expires.get(key)
        if at is not None and at <= self._clock():
            self._remove(key)
            return None
        if type(value) is not kind:
            raise Refusal(_WRONG)
        return value

    def _any(self, key: bytes) -> Any:
        value = self.values.get(key)
        return None if value is None else self._get(key, type(value))

    def _write(self, key: bytes) -> None:
        """Before a change of the key."""
        for log in (self._undo, self.unreplicated):
            if log is not None and key not in log:
                log[key] = _copy(self.values.get(key)), self.expires.get(key)
        self.writes += 1
        if isinstance(value := self.values.get(key), Stream):
            value.info = None
        if self._script:
            self._script[-1] = True
        self._changed(key)

    def _make(self, key: bytes, kind: type) -> Any:
        value = self._get(key, kind)
        self._write(key)
        if value is None:
            value = self.values[key] = kind()
        return value

    def _remove(self, key: bytes) -> bool:
        if key not in self.values:
            return False
        self._write(key)
        del self.values[key]
        self.expires.pop(key, None)
        return True

    def _discard(self, key: bytes, kind: type, members: tuple[bytes, ...]) -> int:
        found = self._get(key, kind) or ()
        old = [each for each in dict.fromkeys(members) if each in found]
        if old:
            self._write(key)
            for each in old:
                del self.values[key][each]
            self._drop_if_empty(key)
        return len(old)

    def _drop_if_empty(self, key: bytes) -> None:
        if not self.values[key]:
            self._remove(key)

    # Commands

    def run(self, args: Sequence[bytes]) -> Any:
        """The reply to a command. Raises :class:`Refusal`."""
        name = args[0].upper()
        method = self._methods.get(name)
        if method is None:
            raise Refusal(f"ERR unknown command '{name.decode()}'")
        if self.is_full and name in _DENIED and not (self._script and self._script[-1]):
            raise Refusal("OOM command not allowed when used memory > 'maxmemory'.")
        if self.cannot_write and (name in _DENIED or name in _OTHER_WRITES):
            raise Refusal("MISCONF Errors writing to the AOF file: No space left on device")
        try:
            return method(*args[1:])
        except TypeError as error:
            if "positional argument" not in str(error):
                raise
            raise Refusal(f"ERR wrong number of arguments for '{name.decode().lower()}' command") from error

    def do_ping(self) -> Any:
        return Status(b"PONG")

    def do_time(self) -> Any:
        now = round(self._clock() * 1e6)
        return [b"%d" % (now // 1_000_000), b"%d" % (now % 1_000_000)]

    def do_info(self, *sections: bytes) -> Any:
        uptime = int(self._clock() - self.started_at)
        return b"\r\n".join(
            [
                b"# Server", b"run_id:%040x" % int(1000 * self.started_at), b"uptime_in_seconds:%d" % uptime,
                b"# Memory", b"maxmemory_policy:noeviction",
                b"# Persistence", b"aof_enabled:1", b"aof_buffer_length:0", b"# Stats", b"evicted_keys:0",
                b"# Replication", b"role:master", b"connected_slaves:%d" % (self.unreplicated is not None),
            *([] if self.unreplicated is None else [b"slave0:ip=replica,port=6379,state=online"]),
            b"repl_backlog_active:0", b"",
            ]
        )  # fmt: skip

    def do_role(self) -> Any:
        return [b"master", 0, []]

    def do_acl(self, *args: bytes) -> Any:
        return OK

    def do_get(self, key: bytes) -> Any:
        return self._get(key, bytes)

    def do_set(self, key: bytes, value: bytes, *options: bytes) -> Any:
        words = [each.upper() for each in options]
        for unit in (b"PX", b"EX"):
            if unit in words and _int(options[words.index(unit) + 1]) <= 0:
                raise Refusal("ERR invalid expire time in 'set' command")
        if (b"NX" in words and self._any(key) is not None) or (b"XX" in words and self._any(key) is None):
            return None
        self._write(key)
        self.values[key] = value
        self.expires.pop(key, None)
        for unit, scale in ((b"PX", 0.001), (b"EX", 1.0)):
            if unit in words:
                self.expires[key] = self._clock() + _int(options[words.index(unit) + 1]) * scale
        return OK

    def do_del(self, *keys: bytes) -> Any:
        return sum([self._any(key) is not None and self._remove(key) for key in keys])

    do_unlink = do_del

    def do_exists(self, *keys: bytes) -> Any:
        return sum([self._any(key) is not None for key in keys])

    def do_type(self, key: bytes) -> Any:
        return Status(_TYPES.get(type(self._any(key)), b"none"))

    def do_pexpire(self, key: bytes, ms: bytes, option: bytes = b"") -> Any:
        wanted, value, at = _int(ms), self._any(key), self.expires.get(key)
        due = self._clock() + wanted / 1000
        option = option.upper()
        if value is None or (option == b"NX" and at is not None):
            return 0
        if (option == b"LT" and at is not None and due >= at) or (option == b"GT" and (at is None or due <= at)):
            return 0
        if wanted <= 0:
            self._remove(key)
            return 1
        self._write(key)
        self.expires[key] = due
        return 1

    def do_persist(self, key: bytes) -> Any:
        if self._any(key) is None or key not in self.expires:
            return 0
        self._write(key)
        del self.expires[key]
        return 1

    def do_scan(self, cursor: bytes, *options: bytes) -> Any:
        self.expire_due()
        pattern = options[options.index(b"MATCH") + 1] if b"MATCH" in options else b"*"
        prefix = pattern.removesuffix(b"*")
        return [b"0", [key for key in self.values if key.startswith(prefix)]]

    def do_memory(self, what: bytes, key: bytes, *options: bytes) -> Any:
        value = self._any(key)
        if isinstance(value, Stream):
            return 300 + 110 * len(value.ids)
        return None if value is None else 100

    # Hashes

    def do_hget(self, key: bytes, field: bytes) -> Any:
        return (self._get(key, dict) or {}).get(field)

    def do_hmget(self, key: bytes, *fields: bytes) -> Any:
        value = self._get(key, dict)
        return [None] * len(fields) if value is None else [value.get(field) for field in fields]

    def do_hset(self, key: bytes, *pairs: bytes) -> Any:
        if not pairs or len(pairs) % 2:
            raise Refusal("ERR wrong number of arguments for 'hset' command")
        value = self._make(key, dict)
        before = len(value)
        value.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(value) - before

    def do_hsetnx(self, key: bytes, field: bytes, text: bytes) -> Any:
        if field in (self._get(key, dict) or {}):
            return 0
        self._make(key, dict)[field] = text
        return 1

    def do_hdel(self, key: bytes, *fields: bytes) -> Any:
        return self._discard(key, dict, fields)

    def do_hexists(self, key: bytes, field: bytes) -> Any:
        return int(field in (self._get(key, dict) or {}))

    def do_hincrby(self, key: bytes, field: bytes, more: bytes) -> Any:
        value = _int((self._get(key, dict) or {}).get(field, b"0")) + _int(more)
        self._make(key, dict)[field] = b"%d" % value
        return value

    def do_hlen(self, key: bytes) -> Any:
        return len(self._get(key, dict) or ())

    def do_hgetall(self, key: bytes) -> Any:
        return dict(self._get(key, dict) or {})

    # Lists and sets

    def do_rpush(self, key: bytes, *values: bytes) -> Any:
        found = self._make(key, list)
        found += values
        return len(found)

    def do_lrange(self, key: bytes, start: bytes, stop: bytes) -> Any:
        found = self._get(key, list) or []
        return found[_range(len(found), start, stop)]

    def do_ltrim(self, key: bytes, start: bytes, stop: bytes) -> Any:
        if (found := self._get(key, list)) is not None:
            self._write(key)
            self.values[key] = found[_range(len(found), start, stop)]
            self._drop_if_empty(key)
        return OK

    def do_sadd(self, key: bytes, *members: bytes) -> Any:
        before = self._get(key, Set) or ()
        new = [each for each in dict.fromkeys(members) if each not in before]
        if new:
            self._make(key, Set).update(dict.fromkeys(new))
        return len(new)

    def do_srem(self, key: bytes, *members: bytes) -> Any:
        return self._discard(key, Set, members)

    def do_smembers(self, key: bytes) -> Any:
        return list(self._get(key, Set) or ())

    def do_scard(self, key: bytes) -> Any:
        return len(self._get(key, Set) or ())

    def do_srandmember(self, key: bytes, count: bytes) -> Any:
        members = list(self._get(key, Set) or ())
        wanted = min(_int(count), len(members))
        return [members.pop(self._chance(len(members))) for _ in range(wanted)]

    # Sorted sets

    def do_zadd(self, key: bytes, *args: bytes) -> Any:
        words: list[bytes] = []
        while args and args[0].upper() in (b"NX", b"XX", b"GT", b"LT", b"INCR", b"CH"):
            words.append(args[0].upper())
            args = args[1:]
        if not args or len(args) % 2:
            raise Refusal("ERR syntax error")
        pairs = [(_float(score), member) for score, member in zip(args[::2], args[1::2], strict=True)]
        found, added, answer = self._get(key, ZSet), 0, None
        for score, member in pairs:
            old = None if found is None else found.get(member)
            if (b"NX" in words and old is not None) or (b"XX" in words and old is None):
                continue
            if b"INCR" in words:
                score += old or 0.0
            if (b"GT" in words and old is not None and score <= old) or (
                b"LT" in words and old is not None and score >= old
            ):
                continue
            answer = score
            added += old is None
            if score != old:
                found = self._make(key, ZSet)
                found[member] = score
        return answer if b"INCR" in words else added

    def do_zrem(self, key: bytes, *members: bytes) -> Any:
        return self._discard(key, ZSet, members)

    def do_zcard(self, key: bytes) -> Any:
        return len(self._get(key, ZSet) or ())

    def do_zscore(self, key: bytes, member: bytes) -> Any:
        return (self._get(key, ZSet) or {}).get(member)

    def do_zmscore(self, key: bytes, *members: bytes) -> Any:
        found = self._get(key, ZSet) or {}
        return [found.get(each) for each in members]

    def do_zrange(self, key: bytes, start: bytes, stop: bytes, *options: bytes) -> Any:
        words = [each.upper() for each in options]
        ordered = (self._get(key, ZSet) or ZSet()).ordered()
        if b"REV" in words:
            ordered.reverse()
        if b"BYSCORE" in words:
            low, high = (stop, start) if b"REV" in words else (start, stop)
            found = _by_score(ordered, low, high)
        else:
            found = ordered[_range(len(ordered), start, stop)]
        if b"LIMIT" in words:
            skip, count = map(_int, options[words.index(b"LIMIT") + 1 : words.index(b"LIMIT") + 3])
            found = found[skip : skip + count if count >= 0 else None]
        return [[member, score] for score, member in found] if b"WITHSCORES" in words else [each[1] for each in found]

    def do_zrangebyscore(self, key: bytes, low: bytes, high: bytes, *options: bytes) -> Any:
        return self.do_zrange(key, low, high, b"BYSCORE", *options)

    def do_zremrangebyscore(self, key: bytes, low: bytes, high: bytes) -> Any:
        found = _by_score((self._get(key, ZSet) or ZSet()).ordered(), low, high)
        return self.do_zrem(key, *[member for _, member in found]) if found else 0

    def do_zrevrangebyscore(self, key: bytes, high: bytes, low: bytes, *options: bytes) -> Any:
        return self.do_zrange(key, high, low, b"BYSCORE", b"REV", *options)

    # Streams

    def do_xadd(self, key: bytes, *args: bytes) -> Any:
        most = None
        if args[0].upper() == b"MAXLEN":
            at = 2 if args[1] in (b"~", b"=") else 1
            most, args = _int(args[at]), args[at + 1 :]
        text, *fields = args
        if not fields or len(fields) % 2:
            raise Refusal("ERR wrong number of arguments for 'xadd' command")
        id_ = (0, 0) if text == b"*" else _id(text, 0)
        if text != b"*" and id_ == (0, 0):
            raise Refusal("ERR The ID specified in XADD must be greater than 0-0")
        stream = self._get(key, Stream)
        last = stream.last if stream else (0, 0)
        if text == b"*":
            ms = max(int(self._clock() * 1000), last[0])
            id_ = (ms, last[1] + 1 if ms == last[0] else 0)
        elif id_ <= last:
            raise Refusal("ERR The ID specified in XADD is equal or smaller than the target stream top item")
        stream = self._make(key, Stream)
        stream.ids.append(id_)
        stream.fields.append(tuple(fields))
        stream.last = id_
        stream.added += 1
        if most is not None and len(stream.ids) > most + 100:
            del stream.ids[:-most], stream.fields[:-most]
        return b"%d-%d" % id_

    def do_xrange(self, key: bytes, start: bytes, stop: bytes, *options: bytes, newest: bool = False) -> Any:
        low, high = _bound(start, 0), _bound(stop, MOST)
        stream = self._get(key, Stream)
        count = _int(options[1]) if options else None
        if stream is None:
            return []
        first, last = bisect_left(stream.ids, low), bisect_right(stream.ids, high)
        if count is not None:
            first, last = (max(first, last - count), last) if newest else (first, min(last, first + count))
        return stream.entries(first, last)

    def do_xrevrange(self, key: bytes, start: bytes, stop: bytes, *options: bytes) -> Any:
        return self.do_xrange(key, stop, start, *options, newest=True)[::-1]

    def do_xread(self, *args: bytes) -> Any:
        words = [each.upper() for each in args]
        at = words.index(b"STREAMS") + 1
        count = _int(args[words.index(b"COUNT") + 1]) if b"COUNT" in words[:at] else MOST
        names = args[at:]
        half, found = len(names) // 2, {}
        for key, after in zip(names[:half], names[half:], strict=True):
            stream = self._get(key, Stream)
            if stream is not None:
                first = bisect_right(stream.ids, _id(after, 0))
                if first < len(stream.ids):
                    found[key] = stream.entries(first, first + count)
        return found or None

    def do_xtrim(self, key: bytes, kind: bytes, least: bytes, *options: bytes) -> Any:
        stream = self._get(key, Stream)
        count = bisect_left(stream.ids, _id(least, 0)) if stream else 0
        if count:
            self._write(key)
            del stream.ids[:count], stream.fields[:count]
        return count

    def do_xdel(self, key: bytes, *ids: bytes) -> Any:
        stream, removed = self._get(key, Stream), 0
        for id_ in [_id(text, 0) for text in ids]:
            at = bisect_left(stream.ids, id_) if stream else 0
            if stream and at < len(stream.ids) and stream.ids[at] == id_:
                self._write(key)
                del stream.ids[at], stream.fields[at]
                stream.deleted = max(stream.deleted, id_)
                removed += 1
        return removed

    def do_xsetid(self, key: bytes, last: bytes, *options: bytes) -> Any:
        stream, id_ = self._get(key, Stream), _id(last, 0)
        if stream is None:
            raise Refusal("ERR no such key")
        if stream.ids and id_ < stream.ids[-1]:
            raise Refusal("ERR The ID specified in XSETID is smaller than the target stream top item")
        if id_ < stream.deleted:
            raise Refusal("ERR The ID specified in XSETID is smaller than current max_deleted_entry_id")
        if options and _int(options[1]) < len(stream.ids):
            raise Refusal("ERR The entries_added specified in XSETID is smaller than the target stream length")
        self._write(key)
        stream.last = id_
        if options:
            stream.added = _int(options[1])
        return OK

    def do_xgroup(self, what: bytes, key: bytes, name: bytes, *options: bytes) -> Any:
        stream = self._get(key, Stream)
        if what.upper() == b"CREATE":
            if stream is None and b"MKSTREAM" not in options:
                raise Refusal("ERR The XGROUP subcommand requires the key to exist.")
            if stream is not None and name in stream.groups:
                raise Refusal("BUSYGROUP Consumer Group name already exists")
            self._make(key, Stream).groups.add(name)
            return OK
        if stream is None:
            raise Refusal("ERR The XGROUP subcommand requires the key to exist.")
        if name not in stream.groups:
            return 0
        self._write(key)
        stream.groups.discard(name)
        return 1

    def do_xinfo(self, what: bytes, key: bytes) -> Any:
        stream = self._get(key, Stream)
        if stream is None:
            raise Refusal("ERR no such key")
        return {
            b"length": len(stream.ids),
            b"last-generated-id": b"%d-%d" % stream.last,
            b"entries-added": stream.added,
            b"groups": len(stream.groups),
            b"first-entry": stream.entries(0, 1)[0] if stream.ids else None,
            b"last-entry": stream.entries(len(stream.ids) - 1, len(stream.ids))[0] if stream.ids else None,
        }

    # Scripts

    def do_eval(self, source: bytes, count: bytes, *args: bytes) -> Any:
        sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
        if sha not in self.scripts:
            first, rest = source.partition(b"\n")[::2] if source.startswith(b"#!") else (b"", source)
            function = self._lua.eval(b"function(KEYS, ARGV) " + rest + b"\nend")
            self.scripts[sha] = function, b"allow-oom" in first
        return self.do_evalsha(sha.encode(), count, *args)

    def do_evalsha(self, sha: bytes, count: bytes, *args: bytes) -> Any:
        function, allows_oom = self.scripts.get(sha.decode(), (None, False))
        if function is None:
            raise Refusal("NOSCRIPT No matching script. Please use EVAL.")
        self._script.append(allows_oom)
        try:
            return Raw(self._drive(function, _int(count), *args))
        finally:
            self._script.pop()

    def _from_script(self, *args: Any) -> Any:
        """``redis.call``."""
        command = [
            each if type(each) is bytes else b"%d" % each if type(each) is int else b"%.17g" % each for each in args
        ]
        try:
            # Most of all calls. A script changes no answer.
            stream = self._get(command[2], Stream) if command[0] == b"XINFO" else None
            if stream is None:
                return self._to_lua(self.run(command))
            if stream.info is None:
                stream.info = self._to_lua(self.run(command))
            return stream.info
        except Refusal as refusal:
            return self._lua.table_from({b"err": str(refusal).encode()})

    def _to_lua(self, value: Any) -> Any:
        kind = type(value)
        if kind is bytes or kind is int:
            return value
        if value is None:
            return False
        if kind is Status:
            return self._lua.table_from({b"ok": bytes(value)})
        if kind is float:
            return number(value)
        if kind is dict:
            value = [each for pair in value.items() for each in pair]
        to_lua = self._to_lua
        return self._lua.table_from(
            [each if type(each) is bytes else False if each is None else to_lua(each) for each in value]
        )

    def _from_json(self, text: bytes) -> Any:
        """``cjson.decode``; None for what is no JSON."""
        try:
            found = json.loads(text)
        except ValueError:
            return None
        return self._to_table(found)

    def _to_table(self, value: Any) -> Any:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, list):
            return self._lua.table_from([self._to_table(each) for each in value])
        if isinstance(value, dict):
            return self._lua.table_from({name.encode(): self._to_table(each) for name, each in value.items()})
        return value


class Raw(bytes):
    """A reply that is encoded already."""


_DRIVER: Final = b"""
local call, sha1, to_json, from_json = ...
redis = {
  pcall = call,
  call = function(...)
    local reply = call(...)
    if type(reply) == 'table' and reply.err then error(reply, 0) end
    return reply
  end,
  sha1hex = sha1,
  error_reply = function(text) return {err = text} end,
  status_reply = function(text) return {ok = text} end,
}
cjson = {
  encode = to_json,
  decode = function(text)
    local found = from_json(text)
    if found == nil then error('Expected value but found invalid token') end
    return found
  end,
}
local function encode(value, out)
  local kind = type(value)
  if kind == 'string' then
    out[#out + 1] = '$' .. #value .. '\\r\\n' .. value .. '\\r\\n'
  elseif kind == 'number' then
    out[#out + 1] = string.format(':%.0f\\r\\n', value < 0 and math.ceil(value) or math.floor(value))
  elseif kind == 'boolean' then
    out[#out + 1] = value and ':1\\r\\n' or '_\\r\\n'
  elseif kind == 'table' and value.err then
    out[#out + 1] = '-' .. value.err .. '\\r\\n'
  elseif kind == 'table' and value.ok then
    out[#out + 1] = '+' .. value.ok .. '\\r\\n'
  elseif kind == 'table' then
    local length = 0
    while value[length + 1] ~= nil do length = length + 1 end
    out[#out + 1] = '*' .. length .. '\\r\\n'
    for at = 1, length do encode(value[at], out) end
  else
    out[#out + 1] = '_\\r\\n'
  end
end
return function(script, count, ...)
  local all, keys, argv = {...}, {}, {}
  for at = 1, count do keys[at] = all[at] end
  for at = count + 1, #all do argv[at - count] = all[at] end
  local fine, found = pcall(script, keys, argv)
  if not fine and type(found) ~= 'table' then found = {err = 'ERR ' .. tostring(found)} end
  local out = {}
  encode(found, out)
  return table.concat(out)
end
"""


def _sha1(text: bytes) -> bytes:
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


def _to_json(value: Any) -> bytes:
    """``cjson.encode``."""
    if isinstance(value, bytes):
        return json.dumps(value.decode("latin-1"), ensure_ascii=False).encode("latin-1").replace(b"/", b"\\/")
    if not hasattr(value, "items"):
        return json.dumps(value).encode()
    pairs = sorted(value.items(), key=lambda pair: (str(type(pair[0])), pair[0]))
    if pairs and all(isinstance(name, int) for name, _ in pairs):
        return b"[%b]" % b",".join([_to_json(each) for _, each in pairs])
    return b"{%b}" % b",".join([b"%b:%b" % (_to_json(name), _to_json(each)) for name, each in pairs])


def _range(length: int, start: bytes, stop: bytes) -> slice:
    first, last = _int(start), _int(stop)
    first = max(first + length, 0) if first < 0 else first
    last = last + length if last < 0 else last
    return slice(first, max(last + 1, 0))


def _by_score(ordered: list[tuple[float, bytes]], low: bytes, high: bytes) -> list[tuple[float, bytes]]:
    least, most = _float(low.lstrip(b"(")), _float(high.lstrip(b"("))
    return [
        each
        for each in ordered
        if (least < each[0] if low.startswith(b"(") else least <= each[0])
        and (each[0] < most if high.startswith(b"(") else each[0] <= most)
    ]


def _bound(text: bytes, part: int) -> Id:
    """An end of a range, both inclusive."""
    if text in (b"-", b"+"):
        return (0, 0) if text == b"-" else (MOST, MOST)
    if not text.startswith(b"("):
        return _id(text, part)
    ms, seq = _id(text[1:], part)
    if part == 0:
        return (ms, seq + 1) if seq < MOST else (ms + 1, 0)
    if (ms, seq) == (0, 0):
        raise Refusal("ERR invalid end ID for the interval")
    return (ms, seq - 1) if seq else (ms - 1, MOST)


def encode(value: Any) -> bytes:
    """A reply in RESP3."""
    kind = type(value)
    if kind is Raw:
        return bytes(value)
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(value), value)
    if kind is int or kind is bool:
        return b":%d\r\n" % value
    if value is None:
        return b"_\r\n"
    if kind is Status:
        return b"+%b\r\n" % value
    if kind is float:
        return b",%b\r\n" % number(value)
    if kind is Refusal:
        return b"-%b\r\n" % str(value).encode()
    if kind is dict:
        return b"%%%d\r\n%b" % (len(value), b"".join([encode(each) for pair in value.items() for each in pair]))
    return b"*%d\r\n%b" % (len(value), b"".join(map(encode, value)))
