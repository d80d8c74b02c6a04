"""The text of ``nginx.conf``. The tests in ``tests/system`` run nginx with it."""

import re
from typing import Final

import pytest

from chronoverse.settings import Settings
from chronoverse.web.http.schemas import MAX_WAIT_SECONDS
from tests.deploy.conftest import DEPLOY
from tests.support.service import ROOT

TEXT: Final = (DEPLOY / "nginx.conf").read_text("utf-8")


def location(route: str) -> str:
    """The directives for a route of a job, and those of the level above."""
    path = f"/workflows/w/jobs/j/{route}"
    blocks = re.findall(r"^        location ~ (\S+) \{\n(.*?)^        \}", TEXT, re.MULTILINE | re.DOTALL)
    (found,) = (body for expression, body in blocks if re.search(expression, path))
    return str(found)


def seconds(text: str, directive: str) -> int:
    (found,) = re.findall(rf"^ +{directive} ([0-9]+)s;", text, re.MULTILINE)
    return int(found)


@pytest.mark.parametrize("route", ["events", "logs/raw", "wait"])
def test_what_uses_a_streams_slot_is_limited_by_address(route: str) -> None:
    assert "limit_conn streams 300;" in location(route)


def test_nginx_waits_longer_than_the_service_is_silent() -> None:
    """A stream has four heartbeats in that time."""
    assert seconds(location("wait"), "proxy_read_timeout") > MAX_WAIT_SECONDS
    assert seconds(location("events"), "proxy_read_timeout") >= 4 * Settings.from_env({"HOME": "/"}).heartbeat_seconds
    assert "proxy_buffering off;" in location("events")


def test_nginx_closes_an_idle_connection_before_the_service() -> None:
    """Otherwise it could send a request to a connection that the service is closing."""
    upstream = TEXT.partition("upstream chronoverse {")[2].partition("}")[0]
    (kept,) = re.findall(r"^keepalive = ([0-9]+)$", (ROOT / "gunicorn.conf.py").read_text("utf-8"), re.MULTILINE)
    assert seconds(upstream, "keepalive_timeout") < int(kept)


def test_what_a_client_says_of_itself_is_replaced() -> None:
    headers = dict(re.findall(r"^ +proxy_set_header (\S+) (\S+);", TEXT, re.MULTILINE))
    assert {name: value for name, value in headers.items() if "Forwarded" in name} == {
        "X-Forwarded-For": "$remote_addr",
        "X-Forwarded-Proto": "$scheme",
        "X-Forwarded-Host": '""',
        "Forwarded": '""',
    }


def test_every_rejection_of_nginx_has_a_title() -> None:
    """Each status with a problem document is in the table of titles."""
    replaced = {int(code) for line in re.findall(r"error_page ([0-9 ]+) /.problem", TEXT) for code in line.split()}
    titled = {int(code) for code in re.findall(r"^ +([0-9]{3}) '\"title\"", TEXT, re.MULTILINE)}

    # nginx's internal number for 431 is 494.
    assert titled - replaced == {431}
    assert replaced - titled == set()
