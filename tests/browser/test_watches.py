"""The watches on a workflow's page: who sees them, and sending a test message."""

import ssl
import threading
from collections.abc import Callable

from chronoverse.auth.tokens import ADMIN, READ
from chronoverse.cli.notify.notifier import Notifier
from chronoverse.joblog.watches import Watch
from chronoverse.store import Store
from tests.browser.browsing import Tab
from tests.support.receiver import Receiver
from tests.support.service import Service


def test_an_administrator_sees_watches_and_sends_a_test(
    open_tab: Callable[..., Tab], page_service: Service, page_store: Store
) -> None:
    """The result is shown. Other readers see no watches."""
    stop = threading.Event()
    with Receiver() as receiver:
        rest = {"on": "end", "url": receiver.url, "secret": "whsec_" + "a" * 32}
        page_store.watches.put(Watch(workflow_id="watched", id="main", **rest))  # type: ignore[arg-type]
        notifier = Notifier(page_store, lambda _: {}, {"127.0.0.1": True}, "", ssl.create_default_context(), stop)
        thread = threading.Thread(target=notifier.run)
        thread.start()
        try:
            tab = open_tab()
            token = page_service.token("watched", scopes=[READ, ADMIN])
            tab.page.goto(f"{tab.url}/ui/workflows/watched#token={token}")
            tab.wait_text("#watches li", f"main on end to 127.0.0.1:{receiver.port}, ok Send a test")
            tab.page.click("#watches button")
            tab.wait_text("#watches li span", "delivered")
            assert len(receiver.messages) == 1
            receiver.status = 404
            tab.page.click("#watches button")
            tab.wait_text("#watches li span", "retrying: 127.0.0.1 answered 404, 1 waiting")
        finally:
            stop.set()
            thread.join(30)
    other = open_tab()
    other.page.goto(f"{other.url}/ui/workflows/watched#token={page_service.token('watched')}")
    other.page.wait_for_selector("#notice:has-text('No jobs yet')")
    assert not other.page.is_visible("#watches")
