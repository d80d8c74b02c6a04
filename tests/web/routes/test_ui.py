"""The page's documents and files: their headers, and that they load nothing from other hosts."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urljoin

import httpx
import pytest

from chronoverse.auth.rights import READ
from chronoverse.auth.tokens import Verifier
from chronoverse.cli.serve import banner
from chronoverse.settings import Settings
from tests.support.service import ROOT, Service

STATIC: Final = ROOT / "chronoverse" / "web" / "static"
PAGES: Final = {
    "/": "home.html",
    "/ui/workflows/wf_1": "workflow.html",
    "/ui/workflows/wf_1/jobs/job-1": "job.html",
}
SCRIPTS: Final = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.js"))
IMPORT: Final = re.compile(r"""^(?:import|export) .*?from ["'](.+?)["'];""", re.MULTILINE)


@pytest.fixture
def anybody(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, verify=False) as client:
        yield client


@pytest.mark.parametrize("path", [*PAGES, "/ui/static/page.css", "/ui/static/js/job.js", "/ui/static/icon.svg"])
def test_everything_is_served_with_a_strict_policy(anybody: httpx.Client, path: str) -> None:
    """They are public, because they contain nothing of any job, and gzipped. A second request gets 304."""
    response, plain = anybody.get(path), anybody.get(path, headers={"Accept-Encoding": "identity"})

    assert response.status_code == 200
    assert [each.headers.get("content-encoding") for each in (response, plain)] == ["gzip", None]
    assert response.content == plain.content
    assert response.headers["etag"] != plain.headers["etag"]
    policy = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert not any("unsafe" in rule or "*" in rule or "http" in rule for rule in policy.values())
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    again = anybody.get(path, headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/ui/static/",
        "/ui/static/none.js",
        "/ui/static/../ui.py",
        "/ui/static/%2e%2e/ui.py",
        "/ui/workflows/",
        "/ui/workflows/wf_1/jobs",
        "/ui/workflows/-/jobs/job-1",
        "/ui/nope",
        "/ui/sign-in",
    ],
)
def test_other_paths_are_404(anybody: httpx.Client, path: str) -> None:
    """With an HTML page that links to the others, except under the path of files."""
    response = anybody.get(path)

    assert response.status_code == 404
    is_file = re.match("/ui/static/.", response.url.path) is not None
    assert response.headers["content-type"].startswith("application/problem" if is_file else "text/html")
    if not is_file:
        assert "<h1>Page not found</h1>" in response.text
        assert "default-src 'self'" in response.headers["content-security-policy"]


def test_with_an_issuer_the_page_can_connect_to_it(in_process: Callable[..., httpx.Client]) -> None:
    client = in_process(oidc_issuer="https://id.example:8443/realm", oidc_client_id="page")
    assert client.get("/").headers["content-security-policy"].endswith("; connect-src 'self' https://id.example:8443")


def test_old_and_short_addresses_redirect(anybody: httpx.Client) -> None:
    """That of a workflow only with a valid id: nothing else is copied into the answer."""
    assert {anybody.get(path).headers["location"] for path in ("/ui", "/ui/")} == {"/"}
    assert anybody.get("/", params={"workflow": "wf_1"}).headers["location"] == "/ui/workflows/wf_1"
    assert anybody.get("/", params={"workflow": "/example.org\r\nx: y"}).status_code == 200


@pytest.mark.parametrize("path", [*PAGES, "/ui/nope"])
def test_a_page_loads_all_of_its_scripts_at_once(anybody: httpx.Client, path: str) -> None:
    """It preloads every module that is imported, directly or not, and nothing else. Nothing is inline.

    A module that is loaded later could be missing, because the service can restart in between.
    """
    text = anybody.get(path).text
    ((version, root),) = re.findall(r'<script type="module" src="/ui/static/(\w{16})/(.+?)"></script>', text)
    modules, waiting = set(), [root]
    while waiting:
        script = waiting.pop()
        for target in IMPORT.findall((STATIC / script).read_text("utf-8")):
            found = urljoin(script, target)
            if found not in modules:
                modules.add(found)
                waiting.append(found)

    assert set(re.findall(rf'rel="modulepreload" href="/ui/static/{version}/(.+?)"', text)) == modules
    assert text.count("<script") == 1
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?://", text)


def test_a_browser_caches_the_files_of_a_version(anybody: httpx.Client) -> None:
    """A page loads no file twice. A node of another version sends its own file, which is not cached."""
    (path,) = re.findall(r'<link rel="stylesheet" href="(.+?)">', anybody.get("/").text)
    own, other = anybody.get(path), anybody.get(f"/ui/static/{'0' * 16}/page.css")
    assert own.text == other.text == (STATIC / "page.css").read_text("utf-8")
    caching = [each.headers["cache-control"] for each in (own, other)]
    assert caching == ["public, max-age=31536000, immutable", "no-cache"]


@pytest.mark.parametrize("script", [name for name in SCRIPTS if "/vendor/" not in name])
def test_no_script_creates_markup_or_code_from_text(script: str) -> None:
    """The browser would block it; the scripts do not even try."""
    text = (STATIC / script).read_text("utf-8")

    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function|srcdoc"
    assert re.findall(sinks, text) == []


def test_vendored_files_have_version_licence_and_checksum() -> None:
    """The README lists each folder of ``vendor/``, each folder has its licence, and no file was modified."""
    vendor = STATIC / "vendor"
    readme = (vendor / "README.txt").read_text("utf-8")
    folders = [path for path in vendor.iterdir() if path.is_dir()]

    assert folders
    scripts = {path.relative_to(vendor).as_posix(): path for path in vendor.rglob("*.js")}
    sums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in scripts.items()}
    assert {name: found for found, name in re.findall("sha256 ([0-9a-f]{64}) (.+)", readme)} == sums
    for folder in folders:
        assert re.search(rf"^{folder.name} \d+\.\d+\.\d+, \w+ \({folder.name}/LICENSE\.txt\)", readme, re.MULTILINE)
        assert (folder / "LICENSE.txt").read_text("utf-8")


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
def test_serve_prints_a_link_that_is_signed_in(tmp_path: Path, bound: str) -> None:
    """For 12 hours. The token follows the ``#``, which browsers do not send. The link does not contain 0.0.0.0."""
    settings = Settings(data_dir=tmp_path)
    (link,) = re.findall(r"http://\S+#token=\S+", banner(settings, f"http://{bound}:8000", "chronoverse"))
    page, _, token = link.partition("#token=")
    assert page == "http://127.0.0.1:8000/ui/workflows/demo"
    Verifier(settings).verify(f"Bearer {token}", time.time() + 12 * 3_600 - 60).require(READ, "demo")
