"""Makes the OpenAPI document from the blueprints and their schemas, with problem documents for errors."""

from typing import Any, Final

from flask import Flask
from flask_smorest import Api

from chronoverse.web.http.schemas import ProblemSchema

#: A workflow route's answer if the resource does not exist or the token has no access.
_NOT_FOUND: Final = {
    "description": "Not Found",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


class OpenApiDocument(Api):
    """flask-smorest's document, which describes its registered blueprints."""

    ERROR_SCHEMA = ProblemSchema

    def render(self) -> dict[str, Any]:
        """The whole document. Errors have the type ``application/problem+json``."""
        document: dict[str, Any] = self.spec.to_dict()
        answers = list(document["components"]["responses"].values())
        for name, path in document["paths"].items():
            for operation in path.values():
                if "responses" not in operation:
                    continue
                if "security" not in operation:
                    # Any route with a token can give these answers, besides those that it declares.
                    refusal = {"$ref": "#/components/responses/DEFAULT_ERROR"}
                    refusals = dict.fromkeys(("401", "403", "429", "503"), refusal)
                    operation["responses"] = refusals | operation["responses"]
                if "{workflow_id}" in name:
                    operation["responses"] = {"404": _NOT_FOUND} | operation["responses"]
                answers += operation["responses"].values()
        document["components"]["schemas"].pop("PaginationMetadata", None)
        for answer in answers:
            content = answer.get("content", {})
            if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
                content["application/problem+json"] = content.pop("application/json")
        return document


def create_document(app: Flask) -> OpenApiDocument:
    app.config.update(
        API_TITLE="Chronoverse",
        API_VERSION="1",
        OPENAPI_VERSION="3.1.0",
        API_SPEC_OPTIONS={
            "info": {
                "description": "Job logs as Server-Sent Events, live and from any offset, and their history.\n\n"
                "With the request header `Prefer: status=200`, responses with status 400, 404 or 409 are sent with "
                "status 200, unless after a wait; their problem documents contain the real status."
            },
            "components": {
                "securitySchemes": {
                    "bearer": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "Its claim `workflows` has ids, prefixes such as `team-a.*`, or `*`.",
                    }
                }
            },
            "security": [{"bearer": []}],
        },
    )
    return OpenApiDocument(app)
