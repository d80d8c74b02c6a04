"""The cases of ``chronoverse conformance``, in the order in which they are printed."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from chronoverse.cli.conformance.proxy import RETRY_AFTER_SECONDS, Fault
from chronoverse.cli.conformance.trial import Case, Trial, check_end, check_exit, check_log
from chronoverse.errors import AppendRefused
from chronoverse.joblog.labels import Labels
from chronoverse.joblog.model import Gap, Status, seconds_of

_SLOW: Final = ("echo one; sleep 1.2; echo two; sleep 1.2; echo three", ("one", "two", "three"))
_FAILING: Final = 'touch "$1"; echo one; exit 5'
_ARGUMENTS: Final = ("a  b", "*", "", "$HOME", "'")
_WAIT: Final = 'i=0; while [ ! -e "$1" ] && [ $i -lt 600 ]; do sleep 0.1; i=$((i + 1)); done'


def _other_run(trial: Trial, end: Status | None, labels: Labels = ()) -> None:
    trial.open_other("theirs", labels=labels)
    if end is not None:
        trial.end_other(end)


def _take_over(trial: Trial, end: Status | None) -> None:
    trial.proxy.is_out = True
    _other_run(trial, end)
    trial.proxy.is_out = False
    trial.gate.touch()


def _check_only(*messages: str) -> Callable[[Trial], Iterator[str]]:
    """A check that the log has only these lines, that the runner did not end the job, and that its command ran."""

    def check(trial: Trial) -> Iterator[str]:
        if messages:
            # Ignored, because the checks below report a job that the runner has ended.
            with contextlib.suppress(AppendRefused):
                if trial.case.during:
                    trial.open_other()
                trial.end_other(Status.COMPLETED)
            trial.read_back()
            if (found := tuple(trial.messages("stdout"))) != messages:
                yield f"the log has the lines {found} and should have {messages}"
            if trial.job["status"] != "COMPLETED":
                yield f"the job is {trial.job['status']}, and a second runner has ended it as COMPLETED"
        if not trial.gate.exists():
            yield "the command did not run"
        yield from check_exit(trial)

    return check


def _check_last_state(trial: Trial) -> Iterator[str]:
    trial.read_back()
    messages = trial.messages("stdout")
    if messages[-1:] != ["100%"] or any("\r" in message for message in messages):
        yield f"the lines are {messages}: the last should be 100%, and none may have a carriage return"
    yield from check_end(trial)


def _check_times(trial: Trial) -> Iterator[str]:
    yield from check_log(trial)
    times = [seconds_of(line.timestamp) or 0 for line in trial.lines]
    if times and not trial.began - 1 <= min(times) <= max(times) <= trial.ended + 1:
        yield "the times of the lines are not those of the run"
    elif times and max(times) - min(times) < 1:
        yield "lines printed 2.4 s apart have nearly the same time"


def _check_pause(trial: Trial) -> Iterator[str]:
    yield from check_log(trial)
    for (refused, status), (following, _) in itertools.pairwise(trial.proxy.appends):
        if status == 429 and following - refused < RETRY_AFTER_SECONDS - 0.2:
            yield f"lines were sent again {following - refused:.1f} s after a 429, before Retry-After"


def _check_gap(trial: Trial) -> Iterator[str]:
    """Checks that lines lost by the store were sent again, or are in a gap."""
    trial.read_back()
    numbers = {line.sequence_num: line.message for line in trial.lines}
    lost = [
        range(each.first, each.last + 1) for each in trial.events if isinstance(each, Gap) and each.reason == "lost"
    ]
    for number, expected in enumerate(trial.case.out, 1):
        if numbers.get(number) != expected and not any(number in each for each in lost):
            yield f"line {number} is {numbers.get(number)!r} and should be {expected!r}, or named as lost"
    if trial.job["status"] != "COMPLETED":
        yield f"the job is {trial.job['status']}"
    yield from check_exit(trial)


CASES: Final = (
    # Lines
    Case("one-line", "The first line is number 1; then COMPLETED, 0", "echo hello", ("hello",)),
    Case("no-output", "A command may print nothing", ":", ()),
    Case("empty-lines", "Empty lines are published", r"printf 'a\n\n\nb\n\n'", ("a", "", "", "b", "")),
    Case("no-newline", "A last line without a newline is published", r"printf 'one\ntwo'", ("one", "two")),
    Case("crlf", "CRLF ends a line", r"printf 'a\r\n\r\nb\r\n'", ("a", "", "b")),
    Case(
        "carriage-return",
        "Of text overwritten by carriage returns, the last state is published",
        r"printf '10%%\r50%%\r100%%\n'",
        check=_check_last_state,
    ),
    Case(
        "unicode", "Text is UTF-8", r"printf 'gr\303\274\303\237e \360\237\216\211 e\314\201\n'", ("grüße 🎉 e\u0301",)
    ),
    Case(
        "split-character",
        "A character may be written in two parts",
        r"printf '\360\237'; sleep 0.5; printf '\216\211b\n'",
        ("🎉b",),
    ),
    Case(
        "not-utf8",
        "A byte that is not UTF-8 becomes U+FFFD",
        r"printf 'a\377b\200c\n\303\nd\n'",
        ("a\ufffdb\ufffdc", "\ufffd", "d"),
    ),
    Case(
        "controls",
        "Control characters are kept",
        r"printf 'a\000b\tc\033[31md\033[0m\177\n'",
        ("a\0b\tc\x1b[31md\x1b[0m\x7f",),
    ),
    Case(
        "quotes",
        "Quotes, backslashes and spaces are kept",
        r"""printf '%s\n' ' {"a": "\n"}  $HOME `x` %s </p>\ '""",
        (r' {"a": "\n"}  $HOME `x` %s </p>\ ',),
    ),
    Case(
        "long-line",
        "A line of 200,000 bytes is split; all pieces but the last are partial",
        r"head -c 200000 /dev/zero | tr '\0' x; echo end",
        ("x" * 200_000 + "end",),
    ),
    Case(
        "long-unicode",
        "Long lines are split between characters",
        r"""u=$(printf '\342\202\254%.0s' 1 2 3 4 5 6 7 8 9 0)
        i=0; while [ $i -lt 4000 ]; do printf %s "$u"; i=$((i + 1)); done; echo""",
        ("€" * 40_000,),
    ),
    Case(
        "longest-line",
        "A line can have 65,536 bytes",
        r"head -c 65536 /dev/zero | tr '\0' x; echo; echo two",
        ("x" * 65_536, "two"),
    ),
    Case("many-lines", "3,000 lines; an append has at most 500", "seq 1 3000", tuple(map(str, range(1, 3_001)))),
    Case(
        "many-bytes",
        "9 MB; a request has at most 8 MiB",
        r"""x=$(head -c 60000 /dev/zero | tr '\0' x); i=0; while [ $i -lt 150 ]; do echo "$x$i"; i=$((i + 1)); done""",
        tuple("x" * 60_000 + str(number) for number in range(150)),
    ),
    Case("stderr", "Lines of stderr are on stderr", "echo one >&2; echo two >&2", (), ("one", "two")),
    Case(
        "order",
        "Lines of both streams keep their order",
        "for i in 1 2 3; do echo out $i; sleep 0.7; echo err $i >&2; sleep 0.7; done",
        ("out 1", "out 2", "out 3"),
        ("err 1", "err 2", "err 3"),
        both=("out 1", "err 1", "out 2", "err 2", "out 3", "err 3"),
    ),
    Case(
        "both-streams",
        "A line of one stream does not end a line of the other",
        "printf 'out '; sleep 0.3; echo error >&2; sleep 0.3; echo goes on",
        ("out goes on",),
        ("error",),
    ),
    Case(
        "live",
        "A line is in the log while the command runs",
        f"echo one; {_WAIT}; echo two",
        during=lambda trial: trial.gate.touch(),
    ),
    Case("times", "A line's time is when it was printed", *_SLOW, check=_check_times),
    # Ends
    Case("exit-code", "FAILED, and the runner's own exit code", "echo one; exit 3", ("one",), code=3),
    Case("killed-command", "128 + n if signal n ends the command", "echo one; kill -9 $$", ("one",), code=137),
    Case("not-found", "127 if the command does not exist", out=(), err=None, argv=("/nonexistent/command",), code=127),
    Case(
        "terminated",
        "SIGTERM reaches the command; then CANCELED",
        f"exec 2>/dev/null; trap 'echo stopping; exit 3' TERM; echo one; {_WAIT}",
        ("one", "stopping"),
        code=3,
        job={"status": "CANCELED"},
        during=lambda trial: trial.process.send_signal(signal.SIGTERM),
    ),
    Case(
        "arguments",
        "Arguments are passed unchanged",
        out=_ARGUMENTS,
        argv=("sh", "-c", r"printf '%s\n' " + '"$@"', "sh", *_ARGUMENTS),
    ),
    Case("environment", "The command does not get the token", 'echo "token:$CHRONOVERSE_TOKEN"', ("token:",)),
    # Attempts
    Case(
        "second-attempt",
        "Lines follow those of an earlier attempt",
        out=("theirs", "one", "two"),
        before=partial(_other_run, end=Status.PENDING),
        job={"attempt": 2},
    ),
    # Reading a job whose lease has expired declares it LOST.
    Case(
        "silent",
        "The lease is renewed while nothing is printed",
        "echo one; sleep 14; echo two",
        during=lambda trial: trial.wait_for_line("two"),
        job={"attempt": 1},
    ),
    Case(
        "killed-runner",
        "LOST, with the lines published so far",
        f"echo one; {_WAIT}",
        ("one",),
        code=-signal.SIGKILL,
        job={"status": "LOST", "exit_code": None},
        during=Trial.kill,
    ),
    Case(
        "fenced",
        "A runner stops publishing when another one takes over its job",
        f"echo one; {_WAIT}; echo two; sleep 2; echo three; exit 5",
        code=5,
        during=partial(_take_over, end=None),
        check=_check_only("one", "theirs"),
    ),
    Case(
        "taken-over",
        "It also stops if the other runner has ended meanwhile",
        f"echo one; {_WAIT}; echo two; echo three; echo four; exit 5",
        code=5,
        during=partial(_take_over, end=Status.PENDING),
        check=_check_only("one", "theirs"),
    ),
    Case(
        "held",
        "A job held by a live runner is not changed",
        _FAILING,
        code=5,
        before=partial(_other_run, end=None),
        check=_check_only("theirs"),
    ),
    Case(
        "ended",
        "An ended job is not changed",
        _FAILING,
        code=5,
        before=partial(_other_run, end=Status.COMPLETED),
        check=_check_only("theirs"),
    ),
    # Labels
    Case("labels", "The job gets its labels", labels={"branch": "main", "step": "grüße = 2"}),
    Case(
        "label-refused",
        "A label with another value is omitted",
        labels={"branch": "main", "step": "test"},
        out=("theirs", "one", "two"),
        before=partial(_other_run, end=Status.PENDING, labels=(("branch", "other"),)),
        job={"labels": {"branch": "other", "step": "test"}},
    ),
    # Faults
    Case("open-unanswered", "Responses to opening the job are lost", faults=(Fault("lose answer", "attempts", 2),)),
    Case(
        "lines-unanswered", "Responses to appending lines are lost", *_SLOW, faults=(Fault("lose answer", "logs", 2),)
    ),
    Case("end-unanswered", "Responses to ending the job are lost", faults=(Fault("lose answer", "end", 2),)),
    Case(
        "requests-lost",
        "Requests are lost",
        faults=(Fault("lose request", "attempts"), Fault("lose request", "logs", 2), Fault("lose request", "end")),
    ),
    Case("delayed", "Each answer is a second late", *_SLOW, faults=(Fault("delay", "", 1_000),)),
    Case("repeated", "Each request arrives twice", *_SLOW, faults=(Fault("repeat", "", 1_000),)),
    Case("unavailable", "503 for 3 s", *_SLOW, faults=(Fault(503, "logs", seconds=3),)),
    Case("bad-gateway", "502 with an HTML page, for 3 s", *_SLOW, faults=(Fault(502, "logs", seconds=3),)),
    Case("end-unavailable", "Ending the job gets 503, twice", faults=(Fault(503, "end", 2),)),
    Case(
        "away-at-start", "No responses in the first 3 s", *_SLOW, faults=(Fault("lose request", "attempts", seconds=3),)
    ),
    Case(
        "too-fast",
        "429: lines are sent again after Retry-After",
        *_SLOW,
        faults=(Fault(429, "logs"),),
        check=_check_pause,
    ),
    Case(
        "gap",
        "Lines that the store lost are sent again, or named as lost",
        *_SLOW,
        faults=(Fault("swallow", "logs"),),
        check=_check_gap,
    ),
    Case(
        "refused", "401: the command still runs", _FAILING, code=5, faults=(Fault(401, "", 1_000),), check=_check_only()
    ),
)
