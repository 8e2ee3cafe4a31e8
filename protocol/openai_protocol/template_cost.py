"""Whether a chat template is so plain that its cost is bounded by its messages. Pure.

Only what is listed here is plain: one loop over the messages at a time, conditions, texts joined
to each other, and few of them all. No template of such parts can loop for long, make a text grow
but by adding, or copy all messages for each of them.
"""

from __future__ import annotations

from itertools import islice

from jinja2 import nodes

_MAX_SOURCE = 32 * 1024
_MAX_PARTS = 128  # expressions, with those inside them: usual templates have some fifty
_TESTS = frozenset({"defined", "undefined", "none", "string", "mapping", "true", "false"})
_LENGTHS = frozenset({"length", "count"})
_FILTERS = _LENGTHS | {"trim"}
_METHODS = frozenset({"strip", "lstrip", "rstrip"})
_MESSAGES = "messages"
_JOINS = (nodes.Add, nodes.Concat)
_AS_THEIR_PARTS = (
    nodes.Add,
    nodes.And,
    nodes.Compare,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Const,
    nodes.Getattr,
    nodes.Not,
    nodes.Operand,
    nodes.Or,
)


def is_plain(source: str, tree: nodes.Template) -> bool:
    """Return whether a parsed template costs little for few and short messages, whatever they say.

    Its output is not bounded by that: whoever renders counts it.
    """
    if len(source) > _MAX_SOURCE:
        return False
    num_parts = sum(1 for _ in islice(tree.find_all(nodes.Expr), _MAX_PARTS + 1))
    return num_parts <= _MAX_PARTS and _Judge().takes(tree.body)


class _Judge:
    """Looks at one template; owner: `is_plain`."""

    def __init__(self) -> None:
        self._lists = {_MESSAGES}  # names of the messages, or of a part of them
        self._others: set[str] = set()  # names that may hold anything else
        self._joined: set[str] = set()  # names of texts that were made of others

    def takes(self, body: list[nodes.Node], is_in_loop: bool = False) -> bool:
        """Whether statements are plain."""
        return all(self._statement(node, is_in_loop) for node in body)

    def _statement(self, node: nodes.Node, is_in_loop: bool) -> bool:
        match node:
            case nodes.Output():
                return all(
                    isinstance(part, nodes.TemplateData) or self._value(part) for part in node.nodes
                )
            case nodes.If():
                return (
                    self._value(node.test)
                    and self.takes(node.body, is_in_loop)
                    and self.takes(list(node.elif_), is_in_loop)
                    and self.takes(node.else_, is_in_loop)
                )
            case nodes.For():
                return self._loop(node) and not is_in_loop
            case nodes.Assign(target=nodes.Name(name=name), node=value):
                return self._assignment(name, value)
        return False

    def _loop(self, node: nodes.For) -> bool:
        is_over_messages = self._is_list(node.iter) and not node.recursive
        target = node.target
        if not is_over_messages or not isinstance(target, nodes.Name) or target.name == "loop":
            return False
        self._others.add(target.name)
        test = node.test is None or self._value(node.test)
        return test and self.takes(node.body, is_in_loop=True) and self.takes(node.else_)

    def _assignment(self, name: str, value: nodes.Node) -> bool:
        if name in ("loop", _MESSAGES):
            return False
        if self._is_list(value):
            self._lists.add(name)
            return True
        self._others.add(name)
        is_joined = isinstance(value, _JOINS) or any(value.find_all(_JOINS))
        if is_joined or self._num_joined(value):
            if self._num_joined(value) > 1:
                return False  # a text that is joined to itself doubles
            self._joined.add(name)
        return self._value(value)

    def _num_joined(self, value: nodes.Node) -> int:
        names = [value] if isinstance(value, nodes.Name) else value.find_all(nodes.Name)
        return sum(name.name in self._joined for name in names)

    def _is_list(self, node: nodes.Node) -> bool:
        match node:
            case nodes.Name(name=name):
                return name in self._lists and name not in self._others
            case nodes.Getitem(node=outer, arg=nodes.Slice() as part):
                return self._is_list(outer) and self._is_place(part)
        return False

    def _value(self, node: nodes.Node) -> bool:
        """Whether an expression is plain. Of a list only an element and its length are."""
        is_plain = False
        match node:
            case nodes.Name(name=name):
                is_plain = name not in self._lists
            case nodes.Getitem():
                is_slice = isinstance(node.arg, nodes.Slice)
                is_of_list = self._is_list(node.node) and not is_slice
                is_plain = (is_of_list or self._value(node.node)) and self._is_place(node.arg)
            case nodes.Mod():
                is_plain = self._is_of_loop(node.left) and isinstance(node.right, nodes.Const)
            case nodes.Test():
                is_of_list = self._is_list(node.node)
                is_known = node.name in _TESTS and not node.args
                is_plain = is_known and (is_of_list or self._value(node.node))
            case nodes.Filter(node=inner) if inner is not None:
                is_known = node.name in _FILTERS and not node.args
                is_of_list = self._is_list(inner) and node.name in _LENGTHS
                is_plain = is_known and (is_of_list or self._value(inner))
            case nodes.Call():
                is_plain = self._call(node)
            case _ if isinstance(node, _AS_THEIR_PARTS):
                is_plain = all(map(self._value, node.iter_child_nodes()))
        return is_plain

    def _call(self, node: nodes.Call) -> bool:
        if node.kwargs or node.dyn_args is not None or node.dyn_kwargs is not None:
            return False
        called = node.node
        if isinstance(called, nodes.Name) and called.name == "raise_exception":
            return all(self._value(arg) for arg in node.args)
        is_method = isinstance(called, nodes.Getattr) and called.attr in _METHODS
        return is_method and not node.args and self._value(called.node)  # type: ignore[attr-defined]  # a Getattr

    @staticmethod
    def _is_of_loop(node: nodes.Node) -> bool:
        return (
            isinstance(node, nodes.Getattr)
            and isinstance(node.node, nodes.Name)
            and node.node.name == "loop"
        )

    @staticmethod
    def _is_place(node: nodes.Node) -> bool:
        """Whether an index, or the ends of a slice, are written in the template."""
        if isinstance(node, nodes.Slice):
            parts = (node.start, node.stop, node.step)
            return all(part is None or _Judge._is_place(part) for part in parts)
        if isinstance(node, nodes.Neg):
            node = node.node
        return isinstance(node, nodes.Const)
