"""What a newer OpenAPI document breaks for programs written against an older one."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

Document = Mapping[str, Any]

METHODS: Final = ("get", "put", "post", "delete", "head", "patch")
#: The bounds of request values. A lower upper bound or a higher lower bound makes a value narrower.
UPPER_BOUNDS: Final = ("maximum", "maxLength", "maxItems")
LOWER_BOUNDS: Final = ("minimum", "minLength", "minItems")


def breaking_changes(before: Document, after: Document) -> Iterator[str]:
    """A sentence for each change after which a request can be refused, or an answer can lack something."""
    for path, item in before["paths"].items():
        for method in METHODS:
            if method not in item:
                continue
            where = f"{method.upper()} {path}"
            new_item = after["paths"].get(path, {})
            if method not in new_item:
                yield f"{where} is gone"
                continue
            yield from _operation(where, (before, item, item[method]), (after, new_item, new_item[method]))


def _operation(where: str, old: tuple[Document, ...], new: tuple[Document, ...]) -> Iterator[str]:
    """The same for one operation. ``old`` and ``new`` are a document, a path in it, and the operation."""
    parameters, new_parameters = (
        {
            (each["in"], each["name"]): each
            for given in (*item.get("parameters", ()), *call.get("parameters", ()))
            for each in [_resolve(document, given)]
        }
        for document, item, call in (old, new)
    )
    for key, parameter in parameters.items():
        name = f"{where}: the parameter {key[1]}"
        if key not in new_parameters:
            yield f"{name} is gone"
        else:
            yield from _values(name, old[0], parameter["schema"], new[0], new_parameters[key]["schema"], sent=True)
    for key, parameter in new_parameters.items():
        if parameter.get("required") and not parameters.get(key, {}).get("required"):
            yield f"{where}: the parameter {key[1]} is required"
    bodies = (_content(document, call.get("requestBody", {})) for document, _item, call in (old, new))
    yield from _contents(f"{where}: the body", old[0], next(bodies), new[0], next(bodies), sent=True)
    for status, response in old[2]["responses"].items():
        found = new[2]["responses"].get(status)
        if found is None:
            yield f"{where}: the answer {status} is gone"
            continue
        answers = (old[0], _content(old[0], response), new[0], _content(new[0], found))
        yield from _contents(f"{where}: the answer {status}", *answers, sent=False)


def _contents(
    where: str, before: Document, old: Document, after: Document, new: Document, *, sent: bool
) -> Iterator[str]:
    for media, content in old.items():
        if media not in new:
            yield f"{where} as {media} is gone"
        elif "schema" in content:
            yield from _values(where, before, content["schema"], after, new[media].get("schema", {}), sent=sent)


def _values(
    where: str, before: Document, old: Document, after: Document, new: Document, *, sent: bool
) -> Iterator[str]:
    """Changes of a schema. ``sent`` values must not become narrower; answers must not lose members."""
    old, new = _resolve(before, old), _resolve(after, new)
    types, new_types = ({*_list(schema.get("type"))} for schema in (old, new))
    if new_types and types and not (types <= new_types if sent else new_types - {"null"} <= types | {"integer"}):
        yield f"{where} has another type"
        return
    if sent:
        if "enum" in new and (gone := [each for each in old.get("enum", ()) if each not in new["enum"]]):
            yield f"{where} can no longer be {', '.join(map(str, gone))}"
        if new.get("pattern") not in (None, old.get("pattern")):
            yield f"{where} has another pattern"
        for bound in (*UPPER_BOUNDS, *LOWER_BOUNDS):
            if bound not in new:
                continue
            if bound not in old or (new[bound] < old[bound] if bound in UPPER_BOUNDS else new[bound] > old[bound]):
                yield f"{where} has a narrower {bound}"
        for name in new.get("required", ()):
            if name not in old.get("required", ()):
                yield f"{where}: {name} is required"
    for name, schema in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            yield f"{where}: {name} is gone"
        else:
            yield from _values(f"{where}: {name}", before, schema, after, new["properties"][name], sent=sent)
    if "items" in old and "items" in new:
        yield from _values(f"{where}: its items", before, old["items"], after, new["items"], sent=sent)


def _content(document: Document, given: Document) -> Document:
    content: Document = _resolve(document, given).get("content", {})
    return content


def _resolve(document: Document, given: Document) -> Document:
    """``given``, or the target of its ``$ref``."""
    while "$ref" in given:
        found: Any = document
        for name in given["$ref"].removeprefix("#/").split("/"):
            found = found[name]
        given = found
    return given


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
