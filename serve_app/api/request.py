"""A request, as the handlers receive it."""

from starlette.requests import Request
from starlette.types import Receive, Scope

from serve_app.service.requests import RequestScope


class ApiRequest(Request):
    """Starlette's request, with its scope in the service.

    Attributes:
        in_progress: admits the request and collects the data for its log line.
    """

    def __init__(self, scope: Scope, receive: Receive, in_progress: RequestScope) -> None:
        super().__init__(scope, receive)
        self.in_progress = in_progress
