"""The model of Redis answers as real servers do, to random commands and to our scripts.

Known differences, which no part of the simulation depends on: texts of errors after their first word; the order in
which SMEMBERS and HGETALL answer; SCAN answers in one page; XTRIM's and MAXLEN's ``~`` keep another number of entries;
MEMORY USAGE, INFO, ACL and CLIENT are as far as our code reads them; times differ by some milliseconds.
"""

import os
import random
import re
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import hiredis
import pytest

from chronoverse.store.driver import Script
from tests.conftest import EVERY_KIND
from tests.support.servers import RedisServer

pytest.importorskip("lupa", reason="Lua, which runs the store's scripts, is not installed")
from tests.simulation.store_model import Data, Refusal, encode

#: How many commands: `MODEL_COMMANDS=100000` for all that was asked for once.
COMMANDS: Final = int(os.environ.get("MODEL_COMMANDS", "5000"))
#: Commands that are sent in one go.
AT_ONCE: Final = 250
_NEAR_NOW: Final = re.compile(rb"\b1[789]\d{8}(\d{3})?\b")

Command = list[bytes]


class Commands:
    """Random commands on a few keys below ``prefix``, most of which are valid, and calls of our scripts."""

    def __init__(self, prefix: str, chance: random.Random) -> None:
        self._prefix = prefix
        self._chance = chance
        self._scripts = {name: Script(name) for name in _SCRIPTS}

    def key(self, kind: str) -> str:
        job = self._chance.choice(("a", "b"))
        return f"{self._prefix}:{{w}}:{kind}" if kind in ("jobs", "settings", "running") else self.of(job, kind)

    def of(self, job: str, kind: str) -> str:
        return f"{self._prefix}:{{w}}:{job}:{kind}"

    def next(self) -> Command:
        make = self._chance.choices((self._plain, self._script), (3, 1))[0]
        return [each if isinstance(each, bytes) else str(each).encode() for each in make()]

    def _plain(self) -> list[Any]:
        chance, pick = self._chance, self._chance.choice
        kind = pick(("log", "job", "lease", "archive", "jobs", "audit", "running"))
        # Now and then a key of another type.
        key = self.key(kind if chance.random() < 0.95 else pick(("log", "job", "lease", "jobs")))
        small, id_ = chance.randint(-3, 6), f"{chance.randint(0, 30)}-{chance.choice((0, 0, 0, 1))}"
        field, value = pick("fgh"), pick(("1", "x", "", "12", "\u00e9"))
        commands: dict[str, list[list[Any]]] = {
            "log": [
                ["XADD", key, id_, "f", value], ["XADD", key, id_, "event", "end", "status", "FAILED"],
                ["XRANGE", key, "-", "+", "COUNT", 3], ["XRANGE", key, id_, "+"], ["XREVRANGE", key, "+", id_],
                ["XREVRANGE", key, f"({id_}", "-", "COUNT", 2], ["XREAD", "COUNT", 2, "STREAMS", key, id_],
                ["XTRIM", key, "MINID", id_], ["XDEL", key, id_], ["XINFO", "STREAM", key],
                ["XSETID", key, id_, "ENTRIESADDED", chance.randint(0, 40)], ["EXISTS", key, key],
                ["XGROUP", "CREATE", key, "made", "$", "MKSTREAM"], ["XGROUP", "DESTROY", key, "made"],
            ],
            "job": [
                ["HSET", key, field, value, pick("fgh"), "2"], ["HGET", key, field], ["HMGET", key, "f", "g", "z"],
                ["HDEL", key, field, "z"], ["HSETNX", key, field, value], ["HLEN", key], ["HEXISTS", key, field],
                ["HINCRBY", key, "n", small], ["HSET", key, "f"], ["PERSIST", key],
            ],
            "lease": [
                ["GET", key], ["SET", key, value], ["SET", key, value, "PX", 900_000], ["SET", key, value, "NX"],
                ["PEXPIRE", key, 900_000, "LT"], ["PEXPIRE", key, 900_000, "NX"], ["PERSIST", key], ["DEL", key],
                ["TYPE", key], ["UNLINK", key, key],
            ],
            "archive": [
                ["ZADD", key, small, value], ["ZADD", key, "NX", small, field], ["ZADD", key, "XX", "INCR", 1, field],
                ["ZADD", key, "GT", small, field, 2, value], ["ZSCORE", key, field], ["ZMSCORE", key, field, value],
                ["ZRANGE", key, 0, -1], ["ZRANGE", key, small, "+inf", "BYSCORE", "LIMIT", 0, 2], ["ZCARD", key],
                ["ZRANGE", key, 0, 2, "REV", "WITHSCORES"], ["ZREM", key, field], ["ZRANGE", key, -2, small],
                ["ZREVRANGEBYSCORE", key, "+inf", f"({small}", "WITHSCORES", "LIMIT", 1, 2], ["ZADD", key, "x", "y"],
                ["ZREMRANGEBYSCORE", key, 4, "+inf"],
            ],
            "audit": [
                ["RPUSH", key, value, field], ["LRANGE", key, small, -1], ["LTRIM", key, -5, -1],
                ["LRANGE", key, 0, small],
            ],
            "running": [["SADD", key, field, value], ["SREM", key, field], ["SCARD", key], ["DEL", key]],
        }  # fmt: skip
        return pick(commands["archive" if kind == "jobs" else kind])

    def _script(self) -> list[Any]:
        chance, pick = self._chance, self._chance.choice
        job, token, at = pick("ab"), pick(("t1", "t2")), "2026-01-01T00:00:00.000Z"
        first, attempt = chance.randint(1, 20), chance.randint(1, 3)
        runner = [self.of(job, each) for each in ("log", "job", "lease")]
        jobs, settings = self.key("jobs"), self.key("settings")
        lock, archive, garbage = (self.of(job, each) for each in ("sealer", "archive", "garbage"))
        name, last = pick(("o1", "o2")), first + chance.randint(0, 4)
        record = f'{{"first":{first},"last":{last}}}'
        calls: dict[str, tuple[list[str], list[Any]]] = {
            "open": ([*runner, jobs, settings], [token, 900_000, at, 5, job, "", pick(("", "1")), 0, pick((0, 40))]),
            "append": (runner, [
                token, attempt, 900_000, first, at, "stdout", pick(("", "1")), 2, "line", "", at, "stderr", "", 1, "x",
            ]),
            "append_lost": (runner, [token, attempt, 900_000, first, last, at]),
            "renew": (runner[1:], [token, attempt, 900_000]),
            "settle_job": (runner, [at, 0, 900_000, pick((0, 500_000))]),
            "finish": (runner, [token, at, pick(("FAILED", "PENDING")), pick(("", 3)), 0, 900_000, first, attempt, ""]),
            "register": ([runner[1], jobs], [at, 5, job, 900_000, "k", pick("vw")]),
            "confirm": (runner, [token, 900_000, 900_000, attempt]),
            "acquire_lock": ([lock], [token, 900_000]),
            "release_lock": ([lock], [token]),
            "begin_upload": ([lock, garbage], [token, name]),
            "mark_garbage": ([lock, garbage], [token, name, "mark_garbage"]),
            "commit_chunk": (
                [runner[0], runner[1], lock, archive, garbage],
                [token, first, last, record, pick((0, last)), "", "", name, "", ""],
            ),
            "archive_state": ([runner[0], runner[1], archive, settings], ["archive_state"]),
            "mark_deleting": ([*runner, lock, self.of(job, "deleted")], [token, pick((0, 0, 900_000))]),
        }  # fmt: skip
        name = pick(sorted(calls))
        keys, args = calls[name]
        return ["EVAL", self._scripts[name].source, len(keys), *keys, *args]


_SCRIPTS: Final = (
    "open", "append", "append_lost", "renew", "settle_job", "finish", "register", "confirm", "acquire_lock",
    "release_lock", "begin_upload", "mark_garbage", "commit_chunk", "archive_state", "mark_deleting",
)  # fmt: skip


class Real:
    """A connection to a real server."""

    def __init__(self, url: str) -> None:
        self._reader = hiredis.Reader()
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(urlsplit(url).path)
        self.run([[b"HELLO", b"3"]])

    def run(self, commands: list[Command]) -> list[Any]:
        self._sock.sendall(b"".join(hiredis.pack_command(tuple(each)) for each in commands))  # type: ignore[arg-type]
        answers: list[Any] = []
        while len(answers) < len(commands):
            while (answer := self._reader.gets()) is not False:
                answers.append(answer)
                if len(answers) == len(commands):
                    return answers
            self._reader.feed(self._sock.recv(65_536))
        return answers

    def close(self) -> None:
        self._sock.close()


def comparable(answer: Any) -> Any:
    """An answer, without what may differ."""
    if isinstance(answer, hiredis.ReplyError):
        return str(answer).split()[:1]
    if isinstance(answer, bytes):
        return _NEAR_NOW.sub(b"now", answer)
    if isinstance(answer, list):
        return [comparable(each) for each in answer]
    if isinstance(answer, dict):
        # XINFO has more fields than our scripts read.
        return {name: comparable(value) for name, value in answer.items() if name not in _XINFO}
    return answer


_XINFO: Final = (b"radix-tree-keys", b"radix-tree-nodes", b"max-deleted-entry-id", b"recorded-first-entry-id")


@pytest.fixture
def model() -> Callable[[Command], Any]:
    data, reader = Data(time.time, lambda count: 0, lambda key: None), hiredis.Reader()

    def run(command: Command) -> Any:
        try:
            answer = encode(data.run(command))
        except Refusal as refusal:
            answer = encode(refusal)
        reader.feed(answer)
        return reader.gets()

    return run


@pytest.fixture(params=EVERY_KIND)
def real(request: pytest.FixtureRequest, servers: Callable[[str], RedisServer]) -> Iterator[Real]:
    connection = Real(servers(request.param).url)
    yield connection
    connection.close()


def test_the_model_answers_as_a_real_server(real: Real, model: Callable[[Command], Any], prefix: str) -> None:
    commands = Commands(prefix, random.Random(int(os.environ.get("MODEL_SEED", "1"))))
    for start in range(0, COMMANDS, AT_ONCE):
        batch = [commands.next() for _ in range(AT_ONCE)]
        if start % 5_000 == 0:
            # So the keys do not all stay in the same state.
            everything = [commands.of(job, kind) for job in "ab" for kind in _KINDS]
            batch[0] = [b"DEL", *(each.encode() for each in (*everything, commands.key("jobs")))]
        for command, answer in zip(batch, real.run(batch), strict=True):
            shown = [each[:60] if not each.startswith((b"#!", b"local")) else b"..." for each in command]
            modelled, answer = comparable(model(command)), comparable(answer)
            if b"archive_state" in command and len(modelled) == len(answer) > 9:
                # For how many milliseconds the job has ended.
                modelled[4], modelled[9] = answer[4], answer[9]
            if b"mark_garbage" in command and isinstance(answer, list):
                # The seconds since each was marked.
                modelled[1::3] = answer[1::3]
            assert modelled == answer, shown


_KINDS: Final = ("log", "job", "lease", "archive", "audit", "sealer", "garbage", "deleted", "files")
