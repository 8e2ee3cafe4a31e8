"""A model's name as a part of a path: decoded once the route is found, so that it may hold a slash.

The gate leaves `%2F` and `%25` in the path as they are (`http_edge.paths`).
"""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor

from http_edge import paths

# What stands for it in a route's path.
NAME = "{model_name:name}"


class _Name(Convertor[str]):
    """One part of a path."""

    regex = "[^/]+"

    def convert(self, value: str) -> str:
        """Return the name that a part means."""
        return paths.part(value)

    def to_string(self, value: str) -> str:
        """Return the name: no route's path is made here."""
        return value


register_url_convertor("name", _Name())
