"""Tokens with prefixes: ``python -m bench.prefixes [--workflows 10000] [--subjects 300] [--clients 4]``.

Fills a store with so many workflows, each with a job that has ended. Each has one of 300 teams in its name, and the
teams' workflows lie evenly in the list. Every subject lists its workflows, 100 on a page. Prints how long the
answers took, when one client asks after the other, and when some ask at the same time:

- of a token with one prefix: that of a team, of a third of all teams, of nobody, and of everything;
- of a token that names all workflows of a team;
- of a token with a hundred prefixes.
"""

import argparse
import statistics
import threading
import time
from typing import Final

from bench.across_jobs import Reader
from bench.peers.ours import TOKEN_SECONDS, Ours
from chronoverse.auth.tokens import READ, mint
from chronoverse.joblog.model import JobRef, Status
from chronoverse.store import Store

TEAMS: Final = 300
#: What the token of the subject with a number names, by kind.
KINDS: Final = {
    "a team": lambda team, workflows: [f"team-{team}.*"],
    "a third": lambda team, workflows: ["team-1*"],
    "nothing": lambda team, workflows: [f"nobody-{team}*"],
    "everything": lambda team, workflows: ["*"],
    "a team's ids": lambda team, workflows: [_name(number) for number in range(team, workflows, TEAMS)],
    "100 prefixes": lambda team, workflows: [f"team-{(team + each) % TEAMS}.*" for each in range(100)],
}


def _name(number: int) -> str:
    return f"team-{number % TEAMS}.workflow-{number}"


def fill(url: str, workflows: int) -> None:
    """Writes them, one a second."""
    began = time.time() - workflows
    store = Store(url, clock=lambda: began + number)
    for number in range(workflows):
        store.finish(store.open(JobRef(_name(number), "job"), "bench"), Status.COMPLETED, 0, 0, 1)
    store.close()


def measure(peer: Ours, kind: str, workflows: int, subjects: int, clients: int) -> None:
    """Prints how long the answers of a kind of token took."""
    left = list(range(subjects))
    seconds, lock = list[float](), threading.Lock()
    listed = set[int]()

    def ask() -> None:
        while True:
            with lock:
                if not left:
                    return
                subject = left.pop()
            entries = KINDS[kind](subject % TEAMS, workflows)
            token = mint(peer.secret.encode(), f"subject-{subject}", [READ], entries, TOKEN_SECONDS, time.time())
            reader = Reader(peer.port, token)
            answer, _ = reader.get("/workflows?limit=100")
            with lock:
                seconds.extend(reader.seconds)
                listed.add(len(answer["workflows"]))

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cuts = statistics.quantiles(seconds, n=100)
    times = f"p50 {1000 * cuts[49]:5.1f} ms, p99 {1000 * cuts[98]:5.1f} ms, longest {1000 * max(seconds):5.1f} ms"
    print(f"{kind:12}  {clients} at a time: {times}; {min(listed)} to {max(listed)} workflows listed", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.prefixes", description=__doc__)
    parser.add_argument("--workflows", type=int, default=10_000)
    parser.add_argument("--subjects", type=int, default=TEAMS)
    parser.add_argument("--clients", type=int, default=4)
    flags = parser.parse_args()
    with Ours() as peer:
        fill(peer.url, flags.workflows)
        print(f"{flags.workflows:,} workflows, {flags.subjects} subjects", flush=True)
        for kind in KINDS:
            for clients in sorted({1, flags.clients}):
                measure(peer, kind, flags.workflows, flags.subjects, clients)


if __name__ == "__main__":
    main()
