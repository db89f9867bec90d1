"""Which detections become one event."""

from datetime import UTC, datetime, timedelta

import numpy as np

from watchpost_producer.detect import Found
from watchpost_producer.sightings import MOST_DETECTIONS, Sighting, sightings
from watchpost_producer.source import Frame, Medium

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FILM = Medium("film", "film.mp4", is_video=True, duration=100)
FACE = Found("face", 1, 2, 3, 4, 0.9)


def film(*seconds: float, medium: Medium = FILM) -> list[Frame]:
    """Frames of the given seconds of a film."""
    image = np.zeros((48, 64, 3), np.uint8)
    return [Frame(medium, number, BEGAN + timedelta(seconds=at), image) for number, at in enumerate(seconds)]


def group(frames: list[Frame], found: int = 1) -> list[Sighting]:
    return list(sightings(frames, lambda _: [FACE] * found, timedelta(seconds=5)))


def test_frames_that_are_close_together_are_one_sighting() -> None:
    [sighting] = group(film(0, 5, 10))
    assert (sighting.started_at, sighting.ended_at) == (BEGAN, BEGAN + timedelta(seconds=10))
    assert [(seen.width, seen.height) for seen in sighting.seen] == [(64, 48)] * 3


def test_frames_that_are_apart_are_two_sightings() -> None:
    assert [len(sighting.seen) for sighting in group(film(0, 5, 10.1))] == [2, 1]


def test_frames_of_two_files_are_two_sightings() -> None:
    assert len(group(film(0) + film(0, medium=Medium("other", "other.mp4")))) == 2


def test_frames_without_detections_make_no_sighting() -> None:
    assert group(film(0, 1, 2), found=0) == []


def test_a_long_sighting_is_cut() -> None:
    assert [len(sighting.seen) for sighting in group(film(*range(0, 64, 4)))] == [16]
    assert [len(sighting.seen) for sighting in group(film(*range(0, 68, 4)))] == [16, 1]


def test_a_sighting_has_no_more_detections_than_an_event_may() -> None:
    assert [len(sighting.seen) for sighting in group(film(0, 1, 2), found=400)] == [800, 400]
    assert [len(sighting.seen) for sighting in group(film(0), found=1500)] == [MOST_DETECTIONS]


def test_a_batch_id_tells_sightings_apart_and_stays_the_same() -> None:
    ids = [sighting.batch_id for sighting in group(film(0, 10, 20) + film(0, medium=Medium("other")))]
    assert len(set(ids)) == 4
    assert ids[:3] == [sighting.batch_id for sighting in group(film(0, 10, 20))]
    assert ids[0] == "48549dc2-7ad8-5987-b913-4745d555f71f", "events that were ingested before would not be known again"
