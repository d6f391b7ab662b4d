"""Numbers of one source's blocks that came, in bounded memory.

Example::

    seen = SeenNumbers(-1, [])
    seen.add(0), 0 in seen         # 0 lost, True
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

__all__ = ["REMEMBERED", "SeenNumbers"]

REMEMBERED = 4096
"""Numbers above the last gap."""


@dataclass(slots=True)
class SeenNumbers:
    """All up to ``floor``, and those in ``above``, ascending, that came."""

    floor: int
    above: list[int]

    def __contains__(self, number: int) -> bool:
        if number <= self.floor:
            return True
        place = bisect_left(self.above, number)
        return place < len(self.above) and self.above[place] == number

    def add(self, number: int) -> int:
        """Remember a number that is new; how many others were given up for lost."""
        insort(self.above, number)
        lost = 0
        if len(self.above) > REMEMBERED:
            lost = self.above[0] - self.floor - 1
            self.floor = self.above.pop(0)
        done = 0
        while done < len(self.above) and self.above[done] == self.floor + 1:
            self.floor += 1
            done += 1
        del self.above[:done]
        return lost
