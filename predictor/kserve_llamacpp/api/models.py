"""Which models this server has, and whether they can answer: asked by every protocol."""

from __future__ import annotations

from collections.abc import Callable

from kserve_llamacpp.served_model import ServedModel
from openai_protocol.errors import Unavailable, model_not_found


class Models:
    """Finds served models by name; `names` and `find` come from KServe's repository.

    `check_accepting` raises Unavailable while the server is about to end.
    """

    def __init__(
        self,
        names: Callable[[], list[str]],
        find: Callable[[str], ServedModel | None],
        check_accepting: Callable[[], None],
    ) -> None:
        self.names = names
        self.check_accepting = check_accepting
        self._find = find

    def get(self, name: str | None) -> ServedModel:
        """Return a model; without a name the only one there is. Raises NotFound."""
        names = self.names()
        if name is None and len(names) == 1:
            name = names[0]
        model = self._find(name) if name is not None else None
        if model is None:
            raise model_not_found(name or "")
        return model

    def ready(self, name: str) -> ServedModel:
        """Return a model that can answer. Raises NotFound, or Unavailable while it cannot."""
        model = self.get(name)
        self.check_accepting()
        if not model.is_ready:
            raise Unavailable(f"The model `{model.name}` is not ready.", retry_after_seconds=1.0)
        return model

    def check_ready(self) -> None:
        """Raise Unavailable unless the repository has a model, and each in it can answer."""
        self.check_accepting()
        models = [self._find(name) for name in self.names()]
        if not models or not all(model is not None and model.is_ready for model in models):
            raise Unavailable("The model is not ready.", retry_after_seconds=1.0)

    def check_alive(self) -> None:
        """Raise Unavailable where only a new process can help a model; loading is alive."""
        for name in self.names():
            model = self._find(name)
            if model is not None and not model.is_alive:
                raise Unavailable("The server cannot go on; it must be started again.")
