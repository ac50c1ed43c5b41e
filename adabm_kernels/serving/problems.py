"""What the service answers where it gives no picture: one sentence, as JSON of the kind that RFC 9457 describes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

MEDIA_TYPE = "application/problem+json"

# The statuses of the service, with the words for the page that describes it.
REASONS = {
    400: "The request is not one that HTTP allows.",
    404: "There is nothing at this path.",
    405: "The path has no such method.",
    406: "The Accept header allows no format that the service writes.",
    408: "The body did not come in time.",
    413: "The body has too many bytes, or the picture too many pixels.",
    415: "The body is no picture of a kind that is read, or is sent in another way than as its bytes.",
    422: "The picture is damaged or cannot be upscaled as asked, or a query parameter is wrong.",
    429: "As many pictures as allowed are under way. Retry-After says when to ask again.",
    500: "The service failed.",
    503: "The service is stopping, or has not enough memory for the picture.",
    504: "The picture was not done in time.",
}


class Problem(Exception):
    """A request that is answered without a picture. status: the HTTP status. sentence: what is wrong, for the user. headers:
    further headers of the answer."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}

    def body(self) -> dict[str, Any]:
        """The members of the JSON object."""
        return {"title": HTTPStatus(self.status).phrase, "status": self.status, "detail": self.sentence}


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["title", "status", "detail"],
    "properties": {
        "title": {"type": "string", "description": "the name of the HTTP status"},
        "status": {"type": "integer", "description": "the HTTP status"},
        "detail": {"type": "string", "description": "one sentence that says what is wrong"},
    },
}


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses as OpenAPI describes them."""
    return {status: {"description": REASONS[status], "content": {MEDIA_TYPE: {"schema": SCHEMA}}} for status in statuses}
