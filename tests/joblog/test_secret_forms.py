"""Secrets with a known form become ``[masked]``."""

import json
import re
import time
from itertools import cycle, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronoverse.errors import SettingsError
from chronoverse.joblog.line_splitter import LineSplitter
from chronoverse.joblog.matcher import strip_sequences
from chronoverse.joblog.secret_forms import MAX_SECRETS, SecretForms, StreamMask
from tests.support.secret_keys import GITHUB, LETTERS, MASKED_PEM, PEM

FORMS = SecretForms()
UPPER = "QWERTYUIOP234567"
KEYS = {
    "aws": "AK" + "IA" + UPPER,
    "aws temporary": "AS" + "IA" + UPPER,
    "aws session": "IQoJb3Jp" + "Z2lu" + LETTERS * 4,
    "github": GITHUB,
    "github app": "gh" + "s_" + LETTERS * 2,
    "github fine-grained": "github_" + "pat_" + LETTERS[:22] + "_" + LETTERS * 2,
    "gitlab": "gl" + "pat-" + LETTERS[:20],
    "gitlab runner": "gl" + "rt-t1_" + LETTERS[:20],
    "slack": "xo" + "xb-123456789012-1234567890123-" + LETTERS[:24],
    "slack session": "xo" + "xd-" + LETTERS + "%2B" + LETTERS,
    "slack app": "xa" + "pp-1-A0123-4567-" + LETTERS,
    "stripe": "sk_" + "live_" + LETTERS,
    "stripe webhook": "whs" + "ec_" + LETTERS,
    "google": "AI" + "za" + LETTERS + "_-x",
    "google client": "GOC" + "SPX-" + LETTERS[:28],
    "google access": "ya" + "29." + LETTERS * 2,
    "npm": "np" + "m_" + LETTERS + "Zz12",
    "pypi": "py" + "pi-AgE" + LETTERS * 3,
    "jwt": "ey" + "J" + LETTERS + ".ey" + "J" + LETTERS + "." + LETTERS,
}
#: A text with {} in place of the secret, if the form includes its context.
AROUND = {
    "aws secret": ("aws_secret_" + "access_key = {}", LETTERS + "/+Zz12/+"),
    "slack hook": ("https://hooks." + "slack.com/services/{}", "T00000000/B00000000/" + LETTERS[:24]),
    "npm registry": ("//registry.example/:_auth" + "Token={}", "0b1c2d3e-" + LETTERS[:12]),
    "url": ("postgres" + "://app:{}@db.example:5432/shop", "hunter22" + "x"),
    "url without a user": ("redis" + "://:{}@cache:6379", "hunter22" + "x"),
    "url, a password with @": ("https" + "://app:{}@h.example/x", "hun@ter22"),
    "url, a token in a password": ("https" + "://app:{}@h.example/x", "a." + GITHUB + ".b"),
}
CASES = [*((name, "{}", key) for name, key in KEYS.items()), *((name, *rest) for name, rest in AROUND.items())]

SURROUNDED = [
    ("", ""),
    ("web-1  | ", ""),
    ("\x1b[32m", "\x1b[0m"),
    ("\x1b[1;32mweb-1\x1b[0m | \x1b[33m", "\x1b[0m"),
    ('{"log":"', '\\n","stream":"stdout"}'),
    ("2026-03-03T10:00:05.123Z key: ", "\r"),
]
#: The same key in a line of JSON.
IN_JSON = json.dumps({"name": "deploy", "key": "\n".join([PEM[0], *PEM[3:]]), "id": 7})


def masked(text: str) -> str:
    return StreamMask(FORMS)(text.encode()).decode()


@pytest.mark.parametrize(("name", "around", "key"), CASES, ids=[name for name, *_ in CASES])
def test_each_form_is_masked(name: str, around: str, key: str) -> None:
    """Whole, twice in a line, in color, partly highlighted, in JSON, and in a URL's path."""
    text = around.format(key)
    expected = around.format("[masked]")
    assert masked(text) == expected
    assert masked(f"one\nfound {text} in it\ntwo") == f"one\nfound {expected} in it\ntwo"
    assert masked(f"{text} {text}") == f"{expected} {expected}"
    for coloured in (f"\x1b[31m{text}\x1b[0m", around.format(f"\x1b[1m{key[:3]}\x1b[0m{key[3:]}")):
        assert key[3:] not in masked(coloured)
        assert masked(coloured).count("[masked]") == 1
    for quoted in (json.dumps({"message": f"first\n{text}\n"}), json.dumps(json.dumps({"a": f"\t{text}", "b": 1}))):
        assert masked(quoted) == quoted.replace(key, "[masked]")
    assert masked(expected) == expected
    if around == "{}":
        assert masked(f"https://h.example/p/{key}?a={key}&b") == "https://h.example/p/[masked]?a=[masked]&b"


@pytest.mark.parametrize(("name", "around", "key"), CASES, ids=[name for name, *_ in CASES])
def test_a_secret_that_comes_in_two_chunks_is_masked(name: str, around: str, key: str) -> None:
    """However it is cut, even if its first chunk is published as a partial line because the newline is late.

    Then the chunk can show a part that all keys of the form have in common.
    """
    parts = [key[:length] for length in range(len(key) if around == "{}" else 1)]
    begun = [part for part in parts if not FORMS.may_be_in(part.encode())]
    for within in ("with {} in it", "\x1b[31m{} \x1b[0m", '{{"message":"first\\n{}\\n"}}'):
        line = within.format(around.format(key)).encode()
        for cut in range(1, len(line) + 1):
            for shown in ([""], begun):
                splitter = LineSplitter("stdout", 65_536, FORMS)
                batches = splitter.feed(line[:cut], "")
                batches += splitter.flush() if shown is begun else []
                batches += splitter.feed(line[cut:] + b"\n", "") + splitter.close()
                found = b"".join(batch.text for batch in batches).decode()
                assert found in [within.format(around.format(f"{each}[masked]")) for each in shown], cut
                assert len(batches) == 1 or shown is begun


@pytest.mark.parametrize("sizes", [[1], [2], [3], [5, 1, 1], [300]], ids=str)
@pytest.mark.parametrize(
    ("name", "around", "key"),
    [
        *CASES,
        ("long", "{}", "ya" + "29." + LETTERS * 20),
        ("long JWT", "{}", f"ey{'J'}{LETTERS * 10}.eyJ{LETTERS * 10}.{LETTERS}"),
    ],
)
def test_a_secret_that_comes_in_many_chunks_is_masked(name: str, around: str, key: str, sizes: list[int]) -> None:
    """Each is published as soon as it can be. A secret that is longer than a line gets several masks."""
    parts = [key[:length] for length in range(len(key) if around == "{}" else 1)]
    begun = [part for part in parts if not FORMS.may_be_in(part.encode())]
    data, splitter, batches = f"{around} end".format(key).encode(), LineSplitter("stdout", 256, FORMS), []
    for size in cycle(sizes):
        batches += splitter.feed(data[:size], "") + splitter.flush()
        if not (data := data[size:]):
            break
    batches += splitter.feed(b"\n", "") + splitter.close()
    shown = re.sub(r"(\[masked\])+", "\0", b"".join(batch.text for batch in batches).decode())
    assert shown in [f"{around} end".format(f"{each}\0") for each in begun]
    assert max(len(batch.text) for batch in batches) <= 256


def test_a_secret_at_the_cut_of_a_long_line_is_masked() -> None:
    """The pieces do not exceed the limit."""
    key = GITHUB
    for before in range(1_000 - len(key), 1_001):
        for is_whole in (True, False):
            splitter = LineSplitter("stdout", 1_000, FORMS)
            text = f"{'x' * before} {key} {'y' * 3_000}\n".encode()
            batches = splitter.feed(text, "") if is_whole else splitter.feed(text[:-1], "") + splitter.feed(b"\n", "")
            whole = b"".join(batch.text for batch in batches)
            assert whole in [
                text[:-1].replace(key.encode(), f"{each}[masked]".encode()) for each in ("", "g", "gh", "ghp")
            ]
            assert max(len(batch.text) for batch in batches) <= 1_000
            assert [batch.partial for batch in batches] == [True] * (len(batches) - 1) + [False]


@pytest.mark.parametrize(("before", "after"), SURROUNDED)
def test_a_private_key_over_several_lines_is_masked(before: str, after: str) -> None:
    """Any number of lines, with any text around each, at once or line by line. Later text is kept."""
    lines = ["reading", *PEM, "done", "MIIEow" * 10]
    texts = [f"{before}{line}{after}" for line in lines]
    line_by_line = [text.decode() for text in map(StreamMask(FORMS), map(str.encode, texts))]
    for shown in (masked("\n".join(texts)).split("\n"), line_by_line):
        assert len(shown) == len(lines)
        assert [shown[0], *shown[-2:]] == [texts[0], *texts[-2:]]
        assert not any(LETTERS[:11] in text or "PRIVATE" in text for text in shown)
        assert sum("[masked]" in text for text in shown) >= len(PEM) - 2


@pytest.mark.parametrize("before", ["key: ", "2026-03-03T10:00:05.123Z INFO the key that decrypts the deployment is "])
def test_a_private_key_after_text_in_its_first_line_is_masked(before: str) -> None:
    """The text around it stays, once."""
    after = f" was read, and {'x' * 100}"
    first, *others, last = masked("\n".join([before + PEM[0], *PEM[1:-1], PEM[-1] + after, "ok"])).split("\n")
    assert (first, others[-1], last) == (f"{before}[masked]", f"[masked]{after}", "ok")
    assert set(others[:-1]) <= {"[masked]", ""}


@pytest.mark.parametrize("max_line_bytes", [65_536, 256])
@pytest.mark.parametrize(
    "lines",
    [
        *([f"{before}{line}{after}" for line in ["reading", *PEM, "done"]] for before, after in SURROUNDED),
        ["reading", IN_JSON, "done"],
        ["reading", json.dumps({"log": f"{IN_JSON}\n", "stream": "stdout"}), "done"],
        ["reading", f"\x1b[33m{IN_JSON[:60]}\x1b[0m{IN_JSON[60:]}", "done"],
    ],
    ids=["plain", "named", "coloured", "both", "log", "time", "json", "json twice", "json in part"],
)
def test_a_private_key_in_chunks_is_masked(lines: list[str], max_line_bytes: int) -> None:
    """However it is cut, and published as partial lines."""
    text = "\n".join(lines).encode()
    for cut in range(len(lines[0]), len(text) - len(lines[-1]), 13):
        splitter = LineSplitter("stdout", max_line_bytes, FORMS)
        batches = splitter.feed(text[:cut], "") + splitter.flush()
        batches += splitter.feed(text[cut : cut + 30], "") + splitter.flush()
        batches += splitter.feed(text[cut + 30 :], "") + splitter.close()
        found = b"".join(batch.text + b"\n" * (not batch.partial) for batch in batches).decode()
        shown = strip_sequences(found)
        assert not any(LETTERS[at : at + 4] in shown for at in range(28)), cut
        assert len(found.splitlines()) == len(lines)
        assert found.splitlines()[-1] == lines[-1].rstrip()


def test_a_private_key_in_one_line_is_masked() -> None:
    """As in JSON, also if it is cut. Text after an unfinished key is kept: a program may only mention one."""
    assert masked(IN_JSON) == '{"name": "deploy", "key": "[masked]", "id": 7}'
    assert masked(f"{IN_JSON[:418]}\nand more") == '{"name": "deploy", "key": "[masked]\nand more'
    assert masked(f"{PEM[0]} {PEM[-1]} text {PEM[0]}\nok") == "[masked] text [masked]\nok"
    assert masked(f"no {PEM[0]} in id_rsa\nok\ndone") == "no [masked] in id_rsa\nok\ndone"
    assert masked(f"{PEM[0]}\n{PEM[3]}\nStep 2\n{PEM[3]}") == f"[masked]\n[masked]\nStep 2\n{PEM[3]}"


@pytest.mark.parametrize(
    "text",
    [
        "https" + "://app:${PASSWORD}@db.example and https" + "://app:***@db.example, https" + "://{user}:{password}@h",
        "docker" + "://alpine:3.18@sha256:0123456789abcdef",
        "https" + "://h.example:8443/@scope/name, ssh" + "://git@h.example:22/x, npm:react@18.2.0",
        "task_test_" + "averylongnameofafunctioninatest",
        "npm_config_registry=https" + "://registry.example npm_package_name=x",
        "data:image/png;base64," + "QUl6Y" + "AIza" + LETTERS * 3,
        "eyJ is how a token begins; a sha is 0123456789abcdef0123456789abcdef01234567",
        "The END PRIVATE KEY of -----BEGIN PUBLIC KEY-----",
        "Password: ",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


def test_a_prompt_is_not_held_back() -> None:
    """Only the possible beginning of a secret is."""
    for prompt in ("Password:", "Go on? [y/N] ", "....", "-----", "user@host:~$ ", "12 s", "https://h.example/ready"):
        splitter = LineSplitter("stdout", 65_536, FORMS)
        assert not splitter.feed(prompt.encode(), "")
        assert [batch.text for batch in splitter.flush()] == [prompt.encode()]
        assert not splitter.flush()
    splitter = LineSplitter("stdout", 65_536, SecretForms(None))
    splitter.feed(GITHUB[:9].encode(), "")
    assert [batch.text for batch in splitter.flush()] == [GITHUB[:9].encode()]


@given(st.lists(st.sampled_from([*PEM[:1], *PEM[3:4], *PEM[-1:], "x", "", *KEYS.values(), "\\n", " ", "\n"])))
def test_the_number_of_lines_is_unchanged(parts: list[str]) -> None:
    """And masking again changes nothing."""
    text = " ".join(parts)
    found = masked(text)
    assert found.count("\n") == text.count("\n")
    assert not any(key in found for key in KEYS.values())


def test_lists_are_masked_in_place() -> None:
    """A private key can continue in its stream's next list."""
    out, err, rest = [*map(str.encode, PEM[:5])], [b"fine"], [*map(str.encode, PEM[5:])]
    FORMS.mask_lists([("stdout", False, out), ("stderr", False, err), ("stdout", False, rest), ("stderr", False, [])])
    assert err == [b"fine"]
    assert [*out, *rest] == [*map(str.encode, MASKED_PEM)]


def test_a_line_of_many_secrets_is_masked_as_a_whole() -> None:
    """8 MiB of short passwords would take four seconds. Between lines, the caller can pause."""
    url, pauses = "https" + "://a:{}@h ", list[None]()
    lines = [(url.format("hunter22") * count).encode() for count in (MAX_SECRETS, MAX_SECRETS + 1)]
    FORMS.mask_lists([("stdout", False, lines)], lambda: pauses.append(None))
    assert lines == [(url.format("[masked]") * MAX_SECRETS).encode(), b"[masked]"]
    assert len(pauses) >= len(lines)


@given(cuts=st.sets(st.integers(1, len(GITHUB) + 11), min_size=1), ended=st.booleans())
def test_a_secret_is_masked_in_the_pieces_of_a_line(cuts: set[int], ended: bool) -> None:
    """However the line is cut, and even if its last piece is sent later."""
    line = f"token={GITHUB} end.".encode()
    pieces = [line[start:end] for start, end in pairwise([0, *sorted(cuts), len(line)])]
    first, last, other = pieces[:-1], [pieces[-1], b"fine", GITHUB.encode()], [b"fine"]
    FORMS.mask_lists([("stdout", True, first), ("stderr", False, other), ("stdout", not ended, last)])
    shown = b"".join([*first, last[0]])
    assert (len(first), len(last), other) == (len(cuts), 3, [b"fine"])
    assert re.fullmatch(rb"token=(\[masked\])+ end\.", shown)
    assert last[1:] == [b"fine", b"[masked]"]


def test_more_forms() -> None:
    """The first matching group is the secret. A form can match a whole line, or contain another."""
    more = [("acme", "acme_[a-z]{8}"), ("pin", "(?i)pin: ([0-9]{4})|code=([0-9]{6})"), ("line", "^tok-[a-z]{8}$")]
    forms = SecretForms(more)
    text = f"acme_abcdefgh PIN: 1234 code=123456 https://a:b.{GITHUB}.c@h"
    assert StreamMask(forms)(text.encode()) == b"[masked] PIN: [masked] code=[masked] https://a:[masked]@h"
    assert StreamMask(forms)(b"fine\ntok-abcdefgh\nfine") == b"fine\n[masked]\nfine"
    # Although many lines are searched at once, a form applies to each.
    for form in (r"\Atok-[a-z]{8}", r"tok-[a-z]{8}\z", "(?-m:^tok-[a-z]{8}$)", r"\Qtok-abcdefgh"):
        assert StreamMask(SecretForms([("token", form)]))(b"fine\ntok-abcdefgh\nfine") == b"fine\n[masked]\nfine"
    nothing = SecretForms(None)
    assert StreamMask(nothing)("\n".join(PEM).encode()) == "\n".join(PEM).encode()


@pytest.mark.parametrize(
    ("expressions", "reason"),
    [(["("], "missing"), (["x*"], "empty string"), ([f"x{number}\\pL{{60}}" for number in range(10)], "too expensive")],
)
def test_an_invalid_form_is_named(expressions: list[str], reason: str) -> None:
    with pytest.raises(SettingsError, match=f"CHRONOVERSE_MASK_FORMS: (form acme|the forms together): .*{reason}"):
        SecretForms([("acme", each) for each in expressions])


def test_a_hostile_line_takes_linear_time() -> None:
    """A megabyte of beginnings of secrets."""
    for text in (PEM[0] + " ", "-----", "https" + "://a:", KEYS["github"][:20], "\x1b]", "ey" + "Jaaaaaaaaaaaa."):
        lines = (text * (2**20 // len(text))).encode()
        start = time.process_time()
        StreamMask(FORMS)(lines)
        assert time.process_time() - start < 2
