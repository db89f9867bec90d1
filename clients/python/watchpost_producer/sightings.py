"""Groups what is found in single frames into sightings, each of which becomes an event."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from watchpost_producer.detect import Found
from watchpost_producer.source import Frame, Medium

LONGEST = timedelta(minutes=1)
"""A sighting is cut after this, so that a busy camera reports at all."""

MOST_DETECTIONS = 1000
"""What Watchpost takes in one event."""

NAMESPACE = uuid.UUID("6f0f4d0e-7d2a-5c55-9b1c-0a8f2f5f7b11")


@dataclass
class Seen:
    """One object, and the frame that it was found in."""

    found: Found
    at: datetime
    width: int
    height: int


@dataclass
class Sighting:
    """What was found in one image, or in frames of one video that are close together."""

    medium: Medium
    first_frame: int
    seen: list[Seen] = field(default_factory=list)

    @property
    def batch_id(self) -> str:
        """The same whenever the same file is looked at, so that Watchpost knows it again."""
        return str(uuid.uuid5(NAMESPACE, f"{self.medium.key}:{self.first_frame}"))

    @property
    def started_at(self) -> datetime:
        """When the first object was seen."""
        return self.seen[0].at

    @property
    def ended_at(self) -> datetime:
        """When the last object was seen."""
        return self.seen[-1].at

    def ends_before(self, frame: Frame, gap: timedelta) -> bool:
        """Whether the frame is too far away to belong to this sighting."""
        return frame.medium != self.medium or frame.at - self.ended_at > gap or frame.at - self.started_at > LONGEST


def sightings(
    frames: Iterable[Frame], detect: Callable[[np.ndarray], list[Found]], gap: timedelta
) -> Iterator[Sighting]:
    """Looks at every frame, and yields each sighting as soon as it has ended."""
    current: Sighting | None = None
    for frame in frames:
        if current and current.ends_before(frame, gap):
            yield current
            current = None
        height, width = frame.image.shape[:2]
        seen = [Seen(found, frame.at, width, height) for found in detect(frame.image)[:MOST_DETECTIONS]]
        if not seen:
            continue
        if current and len(current.seen) + len(seen) > MOST_DETECTIONS:
            yield current
            current = None
        current = current or Sighting(frame.medium, frame.number)
        current.seen += seen
    if current:
        yield current
