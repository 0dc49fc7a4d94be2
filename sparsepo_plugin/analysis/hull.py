"""The frontier of reward against KL: the upper left of the convex hull of points, and the area under it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy

Dot = tuple[float, float]  # KL in nats, reward


@dataclass(frozen=True)
class Frontier:
    """The best reward that can be had for at most so many nats: concave, and never falling.

    Between two vertices lies what choosing one of the two policies at random for each prompt gives, and beyond the
    last what the best policy gives, whose KL is less than allowed.

    Attributes:
        vertices: The points that it goes through, by KL.
        reach: The largest KL of any point, also of those below it.
    """

    vertices: list[Dot]
    reach: float

    @classmethod
    def of(cls, dots: Iterable[Dot]) -> "Frontier":
        """That of one point or more."""
        dots = sorted(dots)
        best = max(dots, key=lambda dot: (dot[1], -dot[0]))
        vertices: list[Dot] = []
        for dot in dots[: dots.index(best) + 1]:
            while vertices and (dot[0] == vertices[-1][0] or (len(vertices) > 1 and not _bends(*vertices[-2:], dot))):
                vertices.pop()
            vertices.append(dot)
        return cls(vertices, dots[-1][0])

    def at(self, kl: float) -> float:
        """The reward at a KL; not a number left of the first vertex."""
        kls, rewards = zip(*self.vertices, strict=True)
        return float(numpy.interp(kl, kls, rewards, left=numpy.nan))

    def mean(self, low: float, high: float) -> float:
        """The area below it between two KLs, divided by their distance: a reward."""
        kls = numpy.array([low, *(kl for kl, _ in self.vertices if low < kl < high), high])
        return float(numpy.trapezoid([self.at(kl) for kl in kls], kls) / (high - low))


def _bends(first: Dot, second: Dot, third: Dot) -> bool:
    """Whether the second lies above the line through the others."""
    (x, y), (own_x, own_y) = ((dot[0] - first[0], dot[1] - first[1]) for dot in (third, second))
    return own_y * x > y * own_x
