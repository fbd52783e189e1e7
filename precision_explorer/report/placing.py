"""Where the labels of a chart go so that they don't cover one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Of the chart's label font: average advance and line height in pixels.
_ADVANCE, _LINE = 6.7, 15.0
_MARK = 8.0


@dataclass(frozen=True)
class Box:
    """A rectangle of the chart."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def holds(self, other: Box) -> bool:
        """Whether `other` lies within."""
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.top <= other.top
            and other.bottom <= self.bottom
        )


@dataclass(frozen=True)
class Place:
    """Anchor point and alignment of a label; `far` from its mark, it needs a line to it."""

    x: float
    y: float
    anchor: str
    far: bool


def place(
    spots: Sequence[tuple[float, float]],
    labels: Sequence[str],
    area: Box,
    obstacles: Sequence[Box] = (),
) -> list[Place]:
    """One place per label: the nearest free one beside its spot, left to right; `obstacles` are
    taken already."""
    marks = [Box(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in spots]
    taken: list[Box] = [*obstacles]
    places: dict[int, Place] = {}
    for index in sorted(range(len(spots)), key=lambda i: spots[i]):
        candidates = _candidates(spots[index])
        boxes = ((c, covered(c, labels[index])) for c in candidates)
        free = (
            c
            for c, box in boxes
            if area.holds(box) and not any(box.overlaps(b) for b in [*taken, *marks])
        )
        # Where all is taken a label covers another, but is not cut off at the edge.
        within = (c for c in candidates if area.holds(covered(c, labels[index])))
        chosen = next(free, None) or next(within, candidates[0])
        taken.append(covered(chosen, labels[index]))
        places[index] = chosen
    return [places[i] for i in range(len(spots))]


def _candidates(spot: tuple[float, float]) -> list[Place]:
    """Beside the mark, then above and below it, then farther away."""
    x, y = spot
    near = [
        Place(x + 11, y + 4, "start", False),
        Place(x, y - 13, "middle", False),
        Place(x, y + 22, "middle", False),
        Place(x - 11, y + 4, "end", False),
    ]
    far = []
    for step in range(1, 10):
        for sign in (-1, 1):
            height = round(y + 4 + sign * (12 + 16 * step), 1)
            far += [
                Place(round(x + 10, 1), height, "start", True),
                Place(x, height, "middle", True),
                Place(round(x - 10, 1), height, "end", True),
            ]
    return near + far


def covered(where: Place, label: str) -> Box:
    """About the area that `label` takes at `where`."""
    width = _ADVANCE * len(label)
    left = {"start": where.x, "middle": where.x - width / 2, "end": where.x - width}[where.anchor]
    return Box(left, where.y - _LINE + 3, left + width, where.y + 4)
