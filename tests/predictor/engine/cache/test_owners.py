"""Who has used what is in the cache."""

from __future__ import annotations

from dataclasses import dataclass, field

from kserve_llamacpp.engine.cache.owners import Owners


@dataclass(eq=False)
class _Entry:
    owner: str
    tokens: list[int] = field(default_factory=lambda: list(range(10)))


def test_an_owner_has_used_all_and_others_what_was_noted() -> None:
    """Who has made an entry has used all of it; of others the most counts that they have used."""
    owners: Owners[_Entry] = Owners()
    entry = _Entry("a")
    for count in (4, 7, 5):
        owners.note(entry, "b", count)

    assert [owners.count(entry, tenant) for tenant in "abc"] == [10, 7, 0]
    assert owners.used_by(entry) == {"a": 10, "b": 7}


def test_what_is_left_of_an_entry_was_used_as_far() -> None:
    """Of an entry that has lost tokens nobody has used more than there are."""
    owners: Owners[_Entry] = Owners()
    entry = _Entry("a")
    owners.note(entry, "b", 10)
    del entry.tokens[3:]

    assert owners.used_by(entry) == {"a": 3, "b": 3}


def test_entries_that_are_gone_leave_nothing() -> None:
    """What was known of an entry goes with it."""
    owners: Owners[_Entry] = Owners()
    entry, other = _Entry("a"), _Entry("a")
    owners.note(entry, "b", 10)
    owners.note_all(other, owners.used_by(entry))
    owners.forget(entry)

    assert (len(owners), owners.count(entry, "b"), owners.count(other, "b")) == (1, 0, 10)
    owners.check_integrity({other})


def test_a_million_tenants_are_not_remembered() -> None:
    """So many uses are remembered, the latest; makers of entries need no memory of their own."""
    owners: Owners[_Entry] = Owners(max_pairs=3)
    entries = [_Entry("a"), _Entry("a")]
    for number in range(50):
        owners.note(entries[number % 2], f"tenant {number}", 10)
        owners.check_integrity(set(entries))

    assert len(owners) == 3
    assert [owners.count(entries[n % 2], f"tenant {n}") for n in (46, 47, 48, 49)] == [
        0,
        10,
        10,
        10,
    ]
    assert owners.count(entries[0], "a") == 10
