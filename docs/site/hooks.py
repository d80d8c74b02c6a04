"""What MkDocs does differently for this project's site (``mkdocs.yml``).

Links between documents are those of the repository, so that they also work there. Here they become those of the site:
the README is its first page, other documents outside of ``docs`` become pages too, and other files that are linked are
copied. The reference of HTTP is made from the OpenAPI document.
"""

import posixpath
import re
import tempfile
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from chronoverse.settings import Settings
from chronoverse.web.app import create_app

ROOT: Final = Path(__file__).resolve().parents[2]

#: The site's page of each document outside of ``docs``, and of directories that are linked.
PAGES: Final = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "clients/js/README.md": "javascript.md",
    "docs/adr": "adr/index.md",
    "docs/benchmarks": "benchmarks/README.md",
}
LINK: Final = re.compile(r"(\]\()([^):#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and files that are not in ``docs``."""
    for source, target in PAGES.items():
        if source.endswith(".md"):
            files.append(File.generated(config, target, content=(ROOT / source).read_text("utf-8")))
    files.append(File.generated(config, "adr/index.md", content=_decisions()))
    files.append(File.generated(config, "openapi.md", content=_openapi()))
    for document in [
        path for path in files.documentation_pages() if path.src_uri not in {"adr/index.md", "openapi.md"}
    ]:
        for _, link, _ in LINK.findall(document.content_string):
            source = _repository_path(document.src_uri, link)
            target = _site_path(source)
            if (ROOT / source).is_file() and files.get_file_from_path(target) is None:
                files.append(File.generated(config, target, content=(ROOT / source).read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes the links of the repository those of the site."""
    here = page.file.src_uri

    def move(link: re.Match[str]) -> str:
        target = _site_path(_repository_path(here, link[2]))
        return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(here) or '.')}{link[3]}"

    return markdown if here in {"adr/index.md", "openapi.md"} else LINK.sub(move, markdown)


def _repository_path(page: str, link: str) -> str:
    """What ``link`` means in the document of which the site's ``page`` is made."""
    documents = (source for source, target in PAGES.items() if target == page and source.endswith(".md"))
    source = next(documents, f"docs/{page}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _site_path(source: str) -> str:
    """Where the site has a file of the repository. MkDocs leaves out what begins with a dot."""
    return PAGES.get(source, source.removeprefix("docs/").removeprefix("."))


def _decisions() -> str:
    """A page with the titles of all ADRs."""
    lines = []
    for path in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")):
        title = path.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "# Decisions\n\n*For contributors.*\n\n" + "\n".join(lines)


def _openapi() -> str:
    """The reference of HTTP: each operation with its parameters and answers."""
    with tempfile.TemporaryDirectory() as name:
        settings = Settings(data_dir=Path(name), redis_url=f"unix://{name}/none.sock", jwt_secret=b"0" * 32)
        document = create_app(settings).test_client().get("/openapi.json").get_json()
    parts = [
        "# Every route\n\n*For authors of clients.*\n\n"
        "Made from the OpenAPI document, which the service has as `/openapi.json`, with all schemas."
        " [HTTP](http.md) explains events and offsets."
    ]
    for path, item in document["paths"].items():
        shared = item.get("parameters", [])
        for method, call in item.items():
            if method != "parameters":
                parts.append(
                    _operation(f"{method.upper()} {path}", call, [*shared, *call.get("parameters", [])], document)
                )
    return "\n\n".join(parts)


def _operation(title: str, call: dict[str, Any], parameters: list[dict[str, Any]], document: dict[str, Any]) -> str:
    text = [f"## `{title}`", call.get("summary", ""), call.get("description", "")]
    given = [_resolve(document, each) for each in parameters]
    if queries := [each for each in given if each["in"] != "path"]:
        rows = [
            f"| `{each['name']}` ({each['in']}) | {_bounds(each['schema'])} | {_cell(each.get('description', ''))} |"
            for each in queries
        ]
        text.append("\n".join(["| parameter | values | |", "|---|---|---|", *rows]))
    answers = [(status, _resolve(document, each)) for status, each in call["responses"].items() if status != "default"]
    rows = [f"| {status} | {_cell(each.get('description', ''))} |" for status, each in answers]
    text.append("\n".join(["| answer | |", "|---|---|", *rows]))
    return "\n\n".join(each for each in text if each)


def _bounds(schema: dict[str, Any]) -> str:
    """The values that a schema allows, in short."""
    if "enum" in schema:
        text = ", ".join(f"`{each}`" for each in schema["enum"])
    else:
        kind = schema.get("type", "")
        text = " or ".join(kind) if isinstance(kind, list) else kind
        if "minimum" in schema and "maximum" in schema:
            text += f" {schema['minimum']:,} to {schema['maximum']:,}"
    return f"{text}, default `{schema['default']}`" if "default" in schema else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _resolve(document: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in given:
        found: Any = document
        for name in given["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        given = found
    return given
