"""What parking, restoring and computing a token costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """What was measured on this model and device, in seconds.

    `parked_cell` is what a row pays for a cell that is parked; `restore_cell` what it takes to
    bring one back from the host; `prefill_token` to compute it again.
    """

    parked_cell: float
    restore_cell: float
    prefill_token: float

    def rows_worth_parking(self, has_host: bool) -> float:
        """Return after how many rows a parked cell has cost as much as fetching it would.

        Whoever gives up then never pays more than twice what the best choice would have cost,
        whenever the cell is wanted again (the ski rental problem).
        """
        if self.parked_cell <= 0:
            return float("inf")
        # saved, and restored
        fetch = 2 * self.restore_cell if has_host else self.prefill_token
        return min(fetch, self.prefill_token) / self.parked_cell
