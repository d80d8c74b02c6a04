"""What the ordinary answers of a worker hold of its memory until their clients have taken them, with shares."""

from typing import Final

from flask import Flask, Response, g, request

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.web.http.problems import problem_for
from chronoverse.web.http.shares import Shares

#: Bytes of an answer that is not counted: a connection's own buffer in the kernel takes it, once the last one is read.
UNCOUNTED_BYTES: Final = 64 * 2**10


def register(app: Flask, shares: Shares) -> None:
    """Has every answer to a token's bearer hold its size until it is sent or given up, or be refused."""

    @app.after_request
    def hold(response: Response) -> Response:
        size = 0 if response.is_streamed or request.method == "HEAD" else response.calculate_content_length() or 0
        if size <= UNCOUNTED_BYTES or "principal" not in g:
            return response
        subject = g.principal.subject
        try:
            shares.take(subject, size)
        except (AtCapacity, ShareExceeded) as error:
            response.close()
            return problem_for(error)
        response.call_on_close(lambda: shares.give_back(subject, size))
        return response
