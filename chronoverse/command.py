"""One command, from its start to its exit code: started in a group of its own, heard out, and reaped."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from chronoverse.capture import Capture
from chronoverse.cutter import MAX_LINE_BYTES, Block
from chronoverse.echo import Echo
from chronoverse.foreground import lent_to
from chronoverse.joblog import iso_timestamp
from chronoverse.relay import Relay

#: What a shell exits with when it finds no command of that name, and when it may not run it. POSIX, XCU 2.8.2.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
#: A command ended by signal n exits a shell with this and n. POSIX, XCU 2.8.2.
BY_SIGNAL: Final = 128


class Command:
    """``argv``, its output shown by ``echoes`` and given to ``publish``, its signals passed on by ``relay``."""

    def __init__(
        self,
        argv: Sequence[str],
        echoes: Mapping[str, Echo],
        publish: Callable[[Block], None],
        relay: Relay,
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
        popen: Callable[..., "subprocess.Popen[bytes]"] = subprocess.Popen,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._argv = list(argv)
        self._echoes = echoes
        self._publish = publish
        self._relay = relay
        self._max_line_bytes = max_line_bytes
        self._popen = popen
        self._clock = clock

    def run(self) -> int:
        """The command's exit code, 128 + n for signal n; or the code that says why there was no command."""
        if self._relay.received:
            return BY_SIGNAL + self._relay.received[0]
        try:
            child = self._popen(self._argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, process_group=0)
        except FileNotFoundError:
            return self._not_run("command not found", NOT_FOUND)
        except (OSError, ValueError) as error:
            return self._not_run(str(error), NOT_EXECUTABLE)
        code = self._attend(child)
        return BY_SIGNAL - code if code < 0 else code

    def _attend(self, child: "subprocess.Popen[bytes]") -> int:
        self._relay.attach(child.pid)
        with lent_to(child.pid) as lent:
            try:
                Capture(
                    child, self._echoes, self._publish, max_line_bytes=self._max_line_bytes, clock=self._clock
                ).run()
            except BaseException:
                os.killpg(child.pid, signal.SIGKILL)
                raise
            finally:
                self._relay.detach()
                code = child.wait()
        if lent and code == -signal.SIGINT:
            # The terminal's Ctrl-C went straight to the command.
            self._relay.received.append(signal.SIGINT)
        return code

    def _not_run(self, reason: str, code: int) -> int:
        text = f"{self._argv[0]}: {reason}"
        self._echoes["stderr"].say(text)
        message = f"chronoverse: {text}".encode("utf-8", "replace")
        self._publish(Block("stderr", iso_timestamp(self._clock()), message, 1))
        return code
