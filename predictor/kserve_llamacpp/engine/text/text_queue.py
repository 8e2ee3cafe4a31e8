"""Which text is tokenized next: tenants in turn, short texts apart from long ones. Pure."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from enum import Enum

from kserve_llamacpp.wire.frames import Submit

_SHORT_BYTES = 64 << 10
_MAX_RUNNING = 8  # of a kind at once; the machine shares its processors among them
_MAX_SHORT, _MAX_LONG = 2, 1  # of a tenant


class Failure(Enum):
    """Why a text has no tokens."""

    TOO_LONG = "too long"
    UNREADABLE = "unreadable"  # it ended the process that was forked for it
    LOST = "lost"  # nobody had begun with it


@dataclass(eq=False)
class Text:
    """A prompt that is to be tokenized, and the choices that share it; owner: the tokenizer."""

    prompt: str
    data: bytes
    add_special: bool
    tenant: str
    request_id: str
    requests: list[Submit]
    num_lost: int = 0  # processes that were lost before they began with it
    result: list[int] | Failure | None = None

    @classmethod
    def of(cls, request: Submit) -> Text:
        """Return the text of a request."""
        assert isinstance(request.prompt, str)
        data = request.prompt.encode("utf-8", "replace")
        rest = (request.add_special, request.tenant, request.request_id, [request])
        return cls(request.prompt, data, *rest)

    def is_of(self, request: Submit) -> bool:
        """Whether it is also the text of another choice."""
        own = (self.request_id, self.add_special, self.prompt)
        return own == (request.request_id, request.add_special, request.prompt)

    @property
    def is_long(self) -> bool:
        """Whether it may take seconds."""
        return len(self.data) > _SHORT_BYTES


class TextQueue:
    """The texts that wait and those that are being tokenized; owner: the tokenizer.

    No tenant's texts keep another's waiting, as long as fewer tenants than may run have some.
    """

    def __init__(self) -> None:
        self._kinds = {False: _Kind(_MAX_SHORT), True: _Kind(_MAX_LONG)}

    def __bool__(self) -> bool:
        return any(kind.waiting for kind in self._kinds.values())

    def put(self, text: Text) -> None:
        """Let a text wait for its turn."""
        self._kinds[text.is_long].waiting.setdefault(text.tenant, deque()).append(text)

    def next(self) -> Text | None:
        """Return a text that is to be tokenized now, if there is one; it runs until `ended`."""
        for kind in self._kinds.values():
            if (text := kind.take()) is not None:
                return text
        return None

    def ended(self, text: Text) -> None:
        """Take note that a text is no longer being tokenized."""
        kind = self._kinds[text.is_long]
        kind.running[text.tenant] -= 1
        kind.running += Counter()  # forgets who has none

    def drop(self, text: Text) -> None:
        """Forget a text that waits; one that does not is ignored."""
        waiting = self._kinds[text.is_long].waiting
        queue = waiting.get(text.tenant)
        if queue is not None and text in queue:
            queue.remove(text)
            if not queue:
                del waiting[text.tenant]


class _Kind:
    """Texts of about one length; the tenant that comes first had its turn longest ago."""

    def __init__(self, max_of_tenant: int) -> None:
        self._max_of_tenant = max_of_tenant
        self.waiting: dict[str, deque[Text]] = {}
        self.running: Counter[str] = Counter()

    def take(self) -> Text | None:
        if self.running.total() >= _MAX_RUNNING:
            return None
        for tenant, queue in self.waiting.items():
            if self.running[tenant] < self._max_of_tenant:
                text = queue.popleft()
                del self.waiting[tenant]
                if queue:
                    self.waiting[tenant] = queue
                self.running[tenant] += 1
                return text
        return None
