"""Random arrivals, cancels and steps in tiny caches: nothing leaks, nobody starves."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kserve_llamacpp.engine.backend import DecodeFailed
from kserve_llamacpp.engine.cache.costs import Costs
from kserve_llamacpp.engine.cache.memory import KVCache, common_length
from kserve_llamacpp.engine.cache.radix import RadixCache
from kserve_llamacpp.engine.cache.snapshots import SnapshotCache
from kserve_llamacpp.engine.sampling.seed import draw_seed
from tests.predictor.engine_run import EngineRun
from tests.predictor.fake_backend import END, FakeBackend
from tests.predictor.fake_memory import FakeMemory

_MAX_LENGTH = 20
_KINDS = ["radix", "split", "recurrent", "split+pool"]
_NAMED = ("xxyxx", "xxyxxyx")  # prompts that all tenants may share
_prompts = st.builds(
    str.__add__, st.sampled_from(["", *_NAMED]), st.text(alphabet="xy", min_size=1, max_size=7)
) | st.text(alphabet="xy", min_size=1, max_size=14)
_stops = st.lists(st.sampled_from(["ab", "c", "bbb"]), max_size=2)


def _answer(prompt: tuple[int, ...], position: int) -> int:
    """Answer with a few letters, so that stop strings occur, and with an end now and then."""
    return [*b"aabbbbccd", END][draw_seed(hash(prompt), 0, position) % 10]


@dataclass
class _Asked:
    prompt: str
    max_tokens: int | None
    stops: list[str]
    salt: str
    owner: str
    is_apart: bool
    is_cancelled: bool = False

    @property
    def num_named(self) -> int:
        """How much of its beginning all may share."""
        lengths = [len(named) for named in _NAMED if self.prompt.startswith(named)]
        return 0 if self.is_apart else max(lengths, default=0)

    def alone(self) -> tuple[str, str]:
        """Say plainly what the answer is: its text and its reason."""
        room = _MAX_LENGTH - len(self.prompt)
        limit = room if self.max_tokens is None else min(room, self.max_tokens)
        text = ""
        for position in range(limit):
            token = _answer(tuple(self.prompt.encode()), position)
            if token == END:
                return text, "stop"
            text += chr(token)
            complete = [stop for stop in self.stops if text.endswith(stop)]
            if complete:
                return text[: -max(len(stop) for stop in complete)], "stop"
        return text, "length"


class RandomOperations(RuleBasedStateMachine):
    """Does anything that a server may do to its engine; every step checks cells and slots."""

    @initialize(
        num_cells=st.integers(min_value=_MAX_LENGTH, max_value=3 * _MAX_LENGTH),
        num_missing=st.integers(min_value=0, max_value=10),
        max_sequences=st.integers(min_value=1, max_value=4),
        step_tokens=st.integers(min_value=4, max_value=16),
        beside=st.integers(min_value=1, max_value=8),
        kind=st.sampled_from(_KINDS),
        host_bytes=st.sampled_from([0, 400, 100_000]),
        mixed_rows=st.sampled_from([1, 6, 100]),
        own_length=st.integers(min_value=2, max_value=_MAX_LENGTH),
    )
    def begin(
        self,
        num_cells: int,
        num_missing: int,
        max_sequences: int,
        step_tokens: int,
        beside: int,
        kind: str,
        host_bytes: int,
        mixed_rows: int,
        own_length: int,
    ) -> None:
        """Set up an engine whose backend may have fewer cells than the scheduler counts."""
        num_real = max(_MAX_LENGTH, num_cells - num_missing)
        num_ids = max_sequences + (6 if kind == "radix" else 0)
        own_length = own_length if kind == "split+pool" else 0
        memory = FakeMemory(
            num_real,
            2 * max_sequences if own_length else max_sequences,
            None if own_length else num_ids,
            can_cut=kind != "recurrent",
            num_own=max_sequences if own_length else 0,
            own_length=own_length,
        )
        cache: KVCache
        if kind == "radix":
            cache = RadixCache(memory, num_cells, Costs(1e-6, 1e-6, 2e-5), host_bytes)
        else:
            cache = SnapshotCache(memory, num_cells, host_bytes, can_cut=kind != "recurrent")
        backend = FakeBackend(
            _answer,
            num_cells=num_real,
            max_length=_MAX_LENGTH,
            max_mixed_rows=mixed_rows,
            memory=memory,
        )
        self.run = EngineRun(
            backend, num_cells, max_sequences, step_tokens, beside, cache, own_length
        )
        self.asked: dict[int, _Asked] = {}
        self.num_seen = 0
        assert self.run.share(*_NAMED) == [len(named) for named in _NAMED]
        # where nothing can be cut, another one before the next token ends the engine
        self.num_faults_left = 1 if kind == "recurrent" else 1000

    @rule(
        prompt=_prompts,
        max_tokens=st.none() | st.integers(1, 12),
        stops=_stops,
        tenant=st.sampled_from(["", "a", "b"]),
        is_apart=st.sampled_from([False, False, True]),
        shares_all=st.booleans(),
    )
    def submit(
        self,
        prompt: str,
        max_tokens: int | None,
        stops: list[str],
        tenant: str,
        is_apart: bool,
        shares_all: bool,
    ) -> None:
        """Someone asks, sharing with its own tenant or with all, or under a salt of its own."""
        salt = ("all" if shares_all else f"only {tenant}") + " s" * is_apart
        asked = _Asked(prompt, max_tokens, stops, salt, tenant, is_apart)
        one = self.run.submit(
            prompt,
            max_tokens=max_tokens,
            stops=stops,
            tenant=tenant,
            cache_salt=salt,
            is_apart=is_apart,
            owner=tenant,
        )
        self.asked[one] = asked

    @precondition(lambda self: not self.run.backend.faults and self.num_faults_left > 0)
    @rule()
    def fail(self) -> None:
        """A batch fails inside llama.cpp, when a part of it was computed."""
        self.num_faults_left -= 1
        self.run.backend.leave_behind = 2
        self.run.backend.faults.append(DecodeFailed("code -3"))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Someone leaves, whatever their request does at that time."""
        one = data.draw(st.sampled_from(sorted(self.asked)))
        if not self.run.is_done(one):
            self.asked[one].is_cancelled = True
        self.run.engine.cancel(one)
        self.run.check_integrity()

    @rule(count=st.integers(min_value=1, max_value=8))
    def step(self, count: int) -> None:
        """The engine goes on."""
        for _ in range(count):
            self.run.step()
            for one in self.run.started[self.num_seen :]:
                self._check_what_was_cached(one)
            self.num_seen = len(self.run.started)

    def _check_what_was_cached(self, one: int) -> None:
        """It found what it may share with others, and is told what its own tenant has asked."""
        me = self.asked[one]
        shareable = own = 0
        for other, asked in self.asked.items():
            if other == one:
                continue
            text = asked.prompt + "".join(map(chr, self.run.tokens(other)))
            common = common_length(me.prompt, text)
            if asked.owner == me.owner:
                own = max(own, common)
            if asked.salt != me.salt:
                common = min(common, asked.num_named, me.num_named)
            shareable = max(shareable, common)
        assert self.run.cached[one] <= shareable
        assert self.run.own_cached[one] <= own

    @invariant()
    def what_was_told_is_right(self) -> None:
        """What anybody got so far begins the answer that they get alone."""
        for one, asked in getattr(self, "asked", {}).items():
            assert asked.alone()[0].startswith(self.run.text(one))

    def teardown(self) -> None:
        """Every request ends within a bounded number of steps, with its own answer."""
        if not hasattr(self, "run"):
            return
        # the oldest gets on in every other step at least: it can be asked to wait once for room
        most = 2 * sum(len(a.prompt) + _MAX_LENGTH for a in self.asked.values()) + 1
        self.run.finish(max_steps=most)
        for one, asked in self.asked.items():
            if not asked.is_cancelled:
                assert (self.run.text(one), self.run.reason(one)) == asked.alone()


RandomOperations.TestCase.settings = settings(
    deadline=None, max_examples=100, stateful_step_count=30
)
TestRandomOperations = RandomOperations.TestCase
