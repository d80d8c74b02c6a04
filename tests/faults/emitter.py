"""The fault suite's job: prints lines with a hash, and records in a file how many it started to print.

    python emitter.py PROGRESS WRITER COUNT RATE PADDING

Line k is ``w=<writer> n=<k> h=<sha1 of "writer:k">``, followed by PADDING bytes. RATE is in lines/s. The number of
lines is written to the file PROGRESS before they are printed. The program exits with 7 after COUNT lines, or once the
file PROGRESS.stop exists. Once PROGRESS.half exists, it prints half a line, and exits when it has no reader left.
"""

import hashlib
import os
import select
import sys
import time

TICK_SECONDS = 0.05
EXIT_CODE = 7


def line(writer: str, number: int, padding: int = 0) -> str:
    """Line ``number`` of ``writer``, without its newline."""
    digest = hashlib.sha1(f"{writer}:{number}".encode(), usedforsecurity=False).hexdigest()
    text = f"w={writer} n={number} h={digest}"
    return f"{text} {'.' * (padding - 1)}" if padding else text


def write(data: bytes) -> None:
    """Writes all of ``data`` to stdout."""
    while data:
        data = data[os.write(1, data) :]


def wait_for_reader_end(seconds: float) -> None:
    """Waits until stdout has no reader left, but no longer than that."""
    poller = select.poll()
    poller.register(1, 0)
    poller.poll(seconds * 1000)


def main(path: str, writer: str, count: int, rate: float, padding: int) -> int:
    """Prints the lines and returns the exit code."""
    progress = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    began = time.monotonic()
    done = 0
    while done < count and not os.path.exists(f"{path}.stop"):
        due = min(count, int((time.monotonic() - began) * rate) + 1, done + 1000)
        if os.path.exists(f"{path}.half"):
            write(line(writer, done + 1).encode()[:20])
            wait_for_reader_end(60)
            return EXIT_CODE
        os.pwrite(progress, b"%012d" % due, 0)
        write("".join(f"{line(writer, number, padding)}\n" for number in range(done + 1, due + 1)).encode())
        done = due
        time.sleep(TICK_SECONDS)
    return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])))
