"""The page: five HTML documents and their files. Loads nothing from other hosts."""

import gzip
import hashlib
import html
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

from flask import Blueprint, Response, request
from werkzeug.exceptions import NotFound

from chronoverse.joblog.causes import ERROR_WORDS, EXIT_MEANINGS, NOTHING_WRONG
from chronoverse.joblog.model import IDENTIFIER
from chronoverse.settings import Settings

_HEADERS: Final = {
    # No other hosts, no inline scripts; log text cannot become markup or script.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Browsers revalidate files without a version in their address (304).
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
_CONTENT_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_STATIC: Final = Path(__file__).parents[1] / "static"
_SCRIPT: Final = re.compile(rb'<script type="module" src="/ui/static/(.+?)">')
_IMPORT: Final = re.compile(rb"""^(?:import|export) .*?from ["'](.+?)["'];""", re.MULTILINE)


def blueprint(settings: Settings) -> Blueprint:
    """The routes of the page. They need no token, because they contain no job data."""
    headers = dict(_HEADERS)
    if settings.oidc_issuer:
        issuer = urlsplit(settings.oidc_issuer)
        headers["Content-Security-Policy"] += f"; connect-src 'self' {issuer.scheme}://{issuer.netloc}"
    routes = Blueprint("ui", __name__)
    files = {path.relative_to(_STATIC).as_posix(): path for path in _STATIC.rglob("*") if path.is_file()}
    bodies = {name: path.read_bytes() for name, path in files.items() if path.suffix in _CONTENT_TYPES}
    values = {
        "heartbeat": str(settings.heartbeat_seconds),
        "errors": ERROR_WORDS,
        "harmless": NOTHING_WRONG,
        "exits": json.dumps(EXIT_MEANINGS),
    }
    values = {name: html.escape(value) for name, value in values.items()}
    values["sign-in"] = "".join(
        f' data-{name.replace("_", "-")}="{html.escape(value or "")}"' for name, value in settings.sign_in.items()
    )
    version = hashlib.sha256(b"".join(bodies.values())).hexdigest()[:16].encode()
    frame, parts = bodies.pop("_page.html"), ("search", "results")
    values |= {name: bodies.pop(f"_{name}.html").decode() for name in parts}
    for name in (name for name in bodies if name.endswith(".html")):
        page = name.removesuffix(".html")
        body = frame.replace(b"{body}", bodies[name])
        for key, value in {**values, "script": page, "class": "job" if page == "job" else "lists"}.items():
            body = body.replace(f"{{{key}}}".encode(), value.encode())
        bodies[name] = body
        body = body.replace(b"{modules}", _preloads(bodies, name))
        bodies[name] = body.replace(b'"/ui/static/', b'"/ui/static/%b/' % version)
    tags = {name: hashlib.sha256(body).hexdigest()[:16] for name, body in bodies.items()}
    # A job's page needs 88 kB instead of 238 kB.
    gzipped = {name: gzip.compress(body, mtime=0) for name, body in bodies.items()}

    def answer(name: str) -> Response:
        if name not in bodies:
            raise NotFound
        coding = "gzip" if request.accept_encodings["gzip"] > 0 else ""
        body = (gzipped if coding else bodies)[name]
        response = Response(body, content_type=_CONTENT_TYPES[files[name].suffix], headers=headers)
        if coding:
            response.headers["Content-Encoding"] = coding
        response.set_etag(f"{tags[name]}{coding}")
        response.make_conditional(request)
        return response

    @routes.route("/")
    def home() -> Response:
        """The list of workflows. Redirects ``?workflow=``, the former address of a workflow's jobs."""
        workflow_id = request.args.get("workflow", "")
        if IDENTIFIER.fullmatch(workflow_id):
            return Response(status=302, headers={**headers, "Location": f"/ui/workflows/{workflow_id}"})
        return answer("home.html")

    @routes.route("/ui/workflows/<id:workflow_id>")
    def workflow(workflow_id: str) -> Response:
        return answer("workflow.html")

    @routes.route("/ui/workflows/<id:workflow_id>/jobs/<id:job_id>")
    def job(workflow_id: str, job_id: str) -> Response:
        return answer("job.html")

    @routes.route("/ui/sign-in")
    def sign_in() -> Response:
        """The page to which the issuer redirects the browser, with or without a code."""
        return answer("sign_in.html") if settings.oidc_issuer else unknown()

    @routes.route("/ui")
    @routes.route("/ui/")
    def short() -> Response:
        """Redirects a shortened address to the list of workflows."""
        return Response(status=302, headers={"Location": "/"})

    @routes.route("/ui/<path:rest>")
    def unknown(rest: str = "") -> Response:
        return Response(bodies["unknown.html"], status=404, content_type=_CONTENT_TYPES[".html"], headers=headers)

    @routes.route("/ui/static/<path:name>")
    def static(name: str) -> Response:
        """A file. Browsers cache it for a year under this version's address, and revalidate it under any other."""
        found = re.fullmatch("([0-9a-f]{16})/(.+)", name)
        response = answer(found[2] if found else name)
        if found and found[1].encode() == version:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response

    return routes


def _preloads(bodies: Mapping[str, bytes], page: str) -> bytes:
    waiting = [name.decode() for name in _SCRIPT.findall(bodies[page])]
    modules: dict[str, None] = {}
    while waiting:
        script = waiting.pop()
        found = [urljoin(script, target.decode()) for target in _IMPORT.findall(bodies[script])]
        waiting += [name for name in found if name not in modules]
        modules |= dict.fromkeys(found)
    return "\n".join(f'<link rel="modulepreload" href="/ui/static/{name}">' for name in modules).encode()
