"""Bounds the memory for ordinary answers that their clients have not read yet, with a share for each subject."""

from typing import Final

from flask import Flask, Response, g, request

from chronoverse.errors import AtCapacity, ShareExceeded
from chronoverse.web.guards.memory import Shares
from chronoverse.web.http.problems import problem_for

#: An answer of up to this many bytes is not counted. The kernel's buffer takes it, once the answer before it is read.
UNCOUNTED_BYTES: Final = 64 * 2**10


def register(app: Flask, shares: Shares) -> None:
    """Counts every answer to a valid token until it is sent or given up. Refuses an answer that is over the share."""

    @app.after_request
    def count_answer(response: Response) -> Response:
        # A download and an event stream are no sequence. They are sent as they are made.
        has_bytes = response.is_sequence and request.method != "HEAD"
        size = (response.calculate_content_length() or 0) if has_bytes else 0
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
