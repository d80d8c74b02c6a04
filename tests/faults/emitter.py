"""The fault suite's job: prints lines with a hash, and records in a file how many it started to print.

    python emitter.py PROGRESS WRITER RATE

Line k is ``w=<writer> n=<k> h=<sha1 of "writer:k">``. RATE is in lines/s. The number of lines is written to the file
PROGRESS before they are printed. The program exits with 7 once the file PROGRESS.stop exists.
"""

import hashlib
import os
import sys
import time

TICK_SECONDS = 0.05
EXIT_CODE = 7


def line(writer: str, number: int) -> str:
    """Line ``number`` of ``writer``, without its newline."""
    digest = hashlib.sha1(f"{writer}:{number}".encode(), usedforsecurity=False).hexdigest()
    return f"w={writer} n={number} h={digest}"


def main(path: str, writer: str, rate: float) -> int:
    """Prints the lines and returns the exit code."""
    progress = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    began, done = time.monotonic(), 0
    while not os.path.exists(f"{path}.stop"):
        due = min(int((time.monotonic() - began) * rate) + 1, done + 1000)
        os.pwrite(progress, b"%012d" % due, 0)
        for number in range(done + 1, due + 1):
            print(line(writer, number))
        sys.stdout.flush()
        done = due
        time.sleep(TICK_SECONDS)
    return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
