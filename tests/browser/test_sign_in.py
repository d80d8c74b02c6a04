"""Signing in at a real OpenID provider: links, renewals, revocation and sign-out."""

import json
import re
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route

from tests.browser.browsing import PATIENCE_SECONDS, Tab, wait_until
from tests.browser.conftest import Job
from tests.support.commands import run_chronoverse, start_chronoverse
from tests.support.provider import Provider, providing
from tests.support.servers import RedisServer
from tests.support.service import Service, serving

pytestmark = pytest.mark.long

#: Time limit of waiting in the browser, in milliseconds.
PATIENCE_MS: Final = PATIENCE_SECONDS * 1000

#: This browser's clock is five minutes fast. ``window.seen`` has all lines that the page reads from streams.
INIT: Final = """
const now = Date.now;
Date.now = () => now() + 300000;
const fetched = window.fetch;
window.seen = [];
window.fetch = async (...given) => {
    const response = await fetched(...given);
    if (response.headers.get("Content-Type")?.startsWith("text/event-stream")) watch(response);
    return response;
};
function watch(response) {
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let text = "";
    async function read() {
        const given = await reader.read();
        const blocks = (text + decoder.decode(given.value, { stream: true })).split("\\n\\n");
        text = blocks.pop();
        for (const block of blocks) {
            if (/^event: log$/m.test(block)) window.seen.push(Number(/^id: (\\d+)$/m.exec(block)[1]));
        }
        return given;
    }
    // A clone of the response would lose or repeat lines when the page gives up a connection that has stood still.
    Object.defineProperty(response, "body", { value: { getReader: () => ({ read }) } });
}
"""
SEEN: Final = "() => window.seen"


@pytest.fixture(scope="module")
def provider(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """The issuer; not started without a browser."""
    with providing(tmp_path_factory.mktemp("provider")) as provider:
        yield provider


@pytest.fixture(scope="module")
def signed_in_service(
    tmp_path_factory: pytest.TempPathFactory, page_server: RedisServer, provider: Provider
) -> Iterator[Service]:
    """The service that trusts this issuer."""
    with serving(
        tmp_path_factory.mktemp("signed-in"), page_server.url, heartbeat_seconds=1, **provider.settings()
    ) as service:
        yield service


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser with a fresh profile."""
    context = browser.new_context(viewport={"width": 1280, "height": 760})
    yield context
    context.close()


def address_of(service: Service, job: Job) -> str:
    """The address of the page of ``job``."""
    return f"{service.url}/ui/workflows/{job.ref.workflow_id}/jobs/{job.ref.job_id}"


def sign_in(page: Page, user: str) -> None:
    """Goes from the dialog to the issuer and back, as a reader would."""
    page.click("dialog.sign-in button")
    page.fill("input[name=user]", user)
    page.click("button")


def stored(page: Page) -> dict[str, str]:
    """The tab's session storage."""
    kept: dict[str, str] = page.evaluate("() => ({ ...sessionStorage })")
    return kept


def emptied(page: Page) -> bool:
    """Whether the tab has stored nothing."""
    return not stored(page)


def test_a_reader_signs_in_and_follows_a_log_until_the_sign_in_is_revoked(
    context: BrowserContext, signed_in_service: Service, provider: Provider, job: Job
) -> None:
    """A shared link leads to its line. Streams continue across tokens, in two tabs, without losing a line."""
    provider.change(ttl=3)
    job.lines(*(f"line {number}." for number in range(1, 301)))
    context.add_init_script(INIT)
    tokens: set[str] = set()
    urls: list[str] = []
    referers: list[str] = []

    def note(request: Any) -> None:
        headers = request.headers
        tokens.update(re.findall("Bearer (.+)", headers.get("authorization", "")))
        urls.append(request.url)
        referers.append(headers.get("referer", ""))

    context.on("request", note)
    tab = Tab(context, signed_in_service)
    tab.page.goto(f"{address_of(signed_in_service, job)}#L125")
    tab.page.wait_for_selector("dialog.sign-in")
    assert tab.text("dialog.sign-in p") == "Sign in to read logs."
    sign_in(tab.page, "ann")
    tab.page.wait_for_selector(".row", timeout=PATIENCE_MS)

    tab.wait_number(125)
    assert tab.address.endswith(f"{job.ref.job_id}#L125")
    assert tab.text("#range") == "Line 125"
    other = Tab(context, signed_in_service)
    other.page.goto(address_of(signed_in_service, job))
    other.page.wait_for_selector(".row", timeout=PATIENCE_MS)
    other.wait_number(300)
    # Over at least three tokens, in addition to those used so far.
    until, used = time.monotonic() + PATIENCE_SECONDS, len(tokens)
    while len(tokens) < used + 2:
        job.lines(*(f"line {number}." for number in range(job.last + 1, job.last + 21)))
        # Each time both tabs redraw their rows, which is most of this test's cost.
        tab.page.wait_for_timeout(400)
        assert time.monotonic() < until, "the token is renewed"
    for each in (tab, other):
        each.page.evaluate("() => document.getElementById('log').focus()")
        each.page.keyboard.press("G")
        each.wait_number(job.last)
        assert each.page.evaluate(SEEN) == list(range(301, job.last + 1))

    session = json.loads(stored(tab.page)["chronoverse.session"])
    secrets = {*tokens, session["refresh"]}
    tab.expected = other.expected = "status of 400"
    answer = httpx.post(f"{provider.url}/token/revocation", data={"token": session["refresh"], "client_id": "page"})
    assert answer.status_code == 200
    for each in (tab, other):
        each.wait_text("dialog.sign-in p", "Signed out: the issuer returned: grant request is invalid.")
        assert each.numbers()[-1] == job.last
        assert "chronoverse.token" not in stored(each.page)
    # The issuer still knows this browser. Both tabs stay where they are, and continue.
    with context.expect_page() as opened:
        tab.page.click("dialog.sign-in button")
    tab.wait(lambda _: opened.value.is_closed(), "the issuer's tab closes")
    job.lines("the last line").end()
    for each in (tab, other):
        # A stream starts with the job's state, followed by the lines.
        each.wait_text("#badge", "Completed")
        each.wait_number(job.last)
        assert each.page.query_selector("dialog.sign-in") is None
        assert each.page.evaluate(SEEN) == list(range(301, job.last + 1))
    assert json.loads(stored(tab.page)["chronoverse.session"]) == json.loads(stored(other.page)["chronoverse.session"])

    secrets |= {*tokens, json.loads(stored(tab.page)["chronoverse.session"])["refresh"]}
    other.page.click("#account")
    other.page.click("text=Sign out")
    for each in (tab, other):
        each.page.wait_for_selector("dialog.sign-in", timeout=PATIENCE_MS)
        wait_until(partial(emptied, each.page), PATIENCE_SECONDS, "nothing is stored")
    assert sum(each["target"] == "/token/revocation" for each in provider.requests()) == 2

    history = context.new_cdp_session(tab.page).send("Page.getNavigationHistory")
    visited = [*urls, *(entry["url"] for entry in history["entries"])]
    requests = provider.requests()
    public = "\n".join([*visited, *referers, signed_in_service.logs(), json.dumps(requests)])
    assert not [secret for secret in secrets if secret in public]
    assert not re.search(r"code=|id_token", signed_in_service.logs() + "".join(map(str, history["entries"])))
    assert not any(signed_in_service.url in (each["referer"] or "") for each in requests)
    # A token is valid for three seconds, and can expire in transit. The page then retries with another one.
    assert not [fault for fault in (*tab.faults, *other.faults) if "401 (UNAUTHORIZED)" not in fault]


def test_commands_sign_in_and_renew_their_token(
    tmp_path: Path, signed_in_service: Service, provider: Provider, job: Job
) -> None:
    """``login`` gets the issuer from the service. Concurrent commands take turns renewing the token."""
    provider.change(ttl=3)
    data: dict[str, Any] = {"CHRONOVERSE_DATA_DIR": str(tmp_path)}
    job.lines(*(f"line {number}." for number in range(1, 101)))
    workflow, name = job.ref

    def read(*arguments: str, **settings: Any) -> tuple[int, list[str], str]:
        done = run_chronoverse(signed_in_service, "logs", workflow, name, *arguments, **data, **settings)
        return done.returncode, done.stdout.decode().splitlines(), done.stderr.decode()

    def log_in(*options: str) -> None:
        login = start_chronoverse(signed_in_service, "login", "--yes", *options, **data)
        assert login.stderr is not None
        if "--issuer" not in options:
            named = f"requires a token from {provider.url} (client page, audience chronoverse, scopes "
            assert named in login.stderr.readline().decode()
        asked = login.stderr.readline().decode() + login.stderr.readline().decode()
        found = re.fullmatch(f"Open {provider.url}/device and enter the code (.*)\nor open (\\S+)\n", asked)
        assert found, asked
        provider.approve(found[2], "ben")
        _, said = login.communicate(timeout=PATIENCE_SECONDS)
        assert (login.returncode, said.decode()) == (0, f"chronoverse: signed in to {signed_in_service.url}\n")

    log_in()
    (path,) = tmp_path.glob("login-*.json")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    follower = start_chronoverse(signed_in_service, "logs", "-f", workflow, name, **data)
    first = json.loads(path.read_text())
    wait_until(lambda: json.loads(path.read_text())["until"] > first["until"] + 3, PATIENCE_SECONDS, "two renewals")
    job.lines(*(f"line {number}." for number in range(101, 201)))
    several = [start_chronoverse(signed_in_service, "jobs", workflow, **data) for _ in range(3)]
    for each in several:
        assert (each.wait(PATIENCE_SECONDS), each.communicate()[1]) == (0, b"")
    job.end()
    output, said = follower.communicate(timeout=PATIENCE_SECONDS)
    assert output.decode().splitlines() == [f"line {number}." for number in range(1, 201)]
    assert (follower.returncode, said) == (0, b"")

    refresh = json.loads(path.read_text())["refresh_token"]
    httpx.post(f"{provider.url}/token/revocation", data={"token": refresh, "client_id": "page"})
    wait_until(lambda: time.time() > json.loads(path.read_text())["until"], PATIENCE_SECONDS, "the token ends")
    over = f"chronoverse: the sign-in at {provider.url} has ended (grant request is invalid): run `chronoverse login`\n"
    assert read() == (77, [], over)
    log_in("--issuer", provider.url, "--client-id", provider.client_id)
    assert read("--tail", "1") == (0, ["line 200."], "")
    assert read(CHRONOVERSE_TOKEN="another")[0] == 77
    assert run_chronoverse(signed_in_service, "logout", **data).returncode == 0
    assert not path.exists()
    assert provider.requests()[-1]["target"] == "/token/revocation"
    assert read()[2].endswith("requires a token: set CHRONOVERSE_TOKEN, or run `chronoverse login`\n")


def test_the_page_waits_for_a_slow_issuer_when_a_token_expires(
    context: BrowserContext, signed_in_service: Service, provider: Provider, job: Job
) -> None:
    """It names the issuer and retries. What is on the screen stays, and nothing is lost."""
    provider.change(ttl=3)
    page = Tab(context, signed_in_service)
    page.expected = "Failed to load resource"
    context.add_init_script(INIT)
    job.lines("line 1.")
    page.page.goto(address_of(signed_in_service, job))
    sign_in(page.page, "ann")
    page.page.wait_for_selector(".row", timeout=PATIENCE_MS)
    page.wait_number(1)
    held: list[Route] = []
    page.page.route(f"{provider.url}/token", lambda route: held.append(route))
    page.wait_text("#link", "reconnecting…")
    job.lines("line 2.")
    held[0].continue_()
    page.wait_number(2)
    page.page.unroute(f"{provider.url}/token")
    page.page.route(f"{provider.url}/token", lambda route: route.abort())
    said = f"The issuer {provider.url} is not responding."
    page.page.wait_for_selector(f"aside.trouble:has-text('{said}')", timeout=PATIENCE_MS)
    job.lines("line 3.")
    page.page.unroute(f"{provider.url}/token")
    page.page.click("aside.trouble button")
    page.wait_number(3)
    assert page.page.evaluate(SEEN) == [2, 3]
    assert page.faults == []
