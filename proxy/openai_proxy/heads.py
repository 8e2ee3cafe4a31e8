"""Checks a request's head before anything acts on it: plain ASGI around `http_edge.head_rules`."""

from __future__ import annotations

from collections.abc import Awaitable

from http_edge.head_rules import HeadRules
from openai_protocol.errors import ApiError
from openai_proxy.error_forms import ErrorForm
from openai_proxy.exchange import exchange_of
from openai_proxy.middleware import App, Receive, Scope, Send, let_go, send_error


class CheckHead:
    """Refuses requests whose head is not clear; what comes after it sees each header once."""

    def __init__(self, app: App, rules: HeadRules, form: ErrorForm) -> None:
        """`form` is that of a refusal: it comes before all that renders errors."""
        self._app = app
        self._rules = rules
        self._form = form

    # It returns what the application returns instead of waiting for it: a coroutine less on the way
    # of each request, and of each part of its answer.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve one request."""
        try:
            self._rules.check(scope)
        except ApiError as error:
            return self._refuse(scope, send, error)
        return self._app(scope, receive, send)

    async def _refuse(self, scope: Scope, send: Send, error: ApiError) -> None:
        exchange_of(scope).error_code = str(error.code)
        await send_error(send, error, self._form)
        let_go(error)
