"""Checks a request's head before anything acts on it: plain ASGI around `http_edge.head_rules`."""

from __future__ import annotations

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            self._rules.check(scope)
        except ApiError as error:
            exchange_of(scope).error_code = str(error.code)
            await send_error(send, error, self._form)
            let_go(error)
            return
        await self._app(scope, receive, send)
