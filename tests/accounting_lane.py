"""A lane to a device that keeps account of its copies, for tests of staging without a GPU."""

from __future__ import annotations

import torch


class AccountingLane:
    """A lane whose device is the CPU and whose copies last until somebody waits for them.

    It delivers nothing before ``receive``, and complains when a block changes, or is sent again,
    before its copy was waited for.
    """

    def __init__(self) -> None:
        self.under_way: dict[int, AccountedCopy] = {}
        self.sent = self.blocks = 0

    def memory(self, nbytes: int) -> torch.Tensor:
        self.blocks += 1
        return torch.full((nbytes,), 0xEE, dtype=torch.uint8)

    def send(self, block: torch.Tensor) -> tuple[torch.Tensor, AccountedCopy]:
        assert block.data_ptr() not in self.under_way, "sent again before its copy was done"
        copy = AccountedCopy(self, block)
        self.under_way[block.data_ptr()] = copy
        self.sent += 1
        return copy.arrived, copy

    def receive(self, sent: torch.Tensor, copied: AccountedCopy) -> None:
        assert sent is copied.arrived
        sent.copy_(copied.as_sent)


class AccountedCopy:
    def __init__(self, lane: AccountingLane, block: torch.Tensor) -> None:
        self.lane, self.block, self.as_sent = lane, block, block.clone()
        self.arrived = torch.full_like(block, 0xEE)

    def synchronize(self) -> None:
        assert torch.equal(self.block, self.as_sent), "the block changed under its copy"
        self.lane.under_way.pop(self.block.data_ptr(), None)
