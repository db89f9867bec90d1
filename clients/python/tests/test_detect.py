"""What the detectors find."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from watchpost_producer.detect import Detector, Found, boxes, logistic


def picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def overlap(found: Found, left: int, top: int, right: int, bottom: int) -> float:
    """How much of the given box is found, in [0, 1]."""
    width = min(found.x + found.width, right) - max(found.x, left)
    height = min(found.y + found.height, bottom) - max(found.y, top)
    return max(width, 0) * max(height, 0) / ((right - left) * (bottom - top))


def test_the_face_of_a_portrait_is_found(pictures: Path) -> None:
    [face] = Detector(["face"])(picture(pictures / "astronaut.png"))
    assert face.object_type == "face"
    assert overlap(face, 190, 85, 260, 155) > 0.9, "the box is not where the face is"
    assert face.confidence is not None and 0.9 < face.confidence < 1


def test_a_cyclist_of_a_street_scene_is_found(videos: Path) -> None:
    capture = cv2.VideoCapture(str(videos / "bikes.mp4"))
    for _ in range(81):
        read, image = capture.read()
        assert read
    capture.release()
    people = Detector(["person"])(image)
    assert [one.object_type for one in people] == ["person"] * len(people)
    assert max(overlap(one, 400, 45, 470, 190) for one in people) > 0.7, "the box is not where the cyclist is"


def test_nothing_is_found_where_nothing_is(pictures: Path) -> None:
    assert Detector()(picture(pictures / "brick.png")) == []


def test_the_same_picture_gives_the_same_list(pictures: Path) -> None:
    image = picture(pictures / "coins.png")
    first = Detector()(image)
    assert len(first) > 1
    assert Detector()(image) == first == sorted(first)


class Window:
    """Stands for the people detector, which writes beyond its memory if the picture is smaller than its window."""

    winSize = (64, 128)  # noqa: N815
    looked_at = 0

    def detectMultiScale(self, *_: object, **__: object) -> tuple:  # noqa: N802
        self.looked_at += 1
        return (), ()


@pytest.mark.parametrize(
    ("height", "width", "looked_at"), [(1, 1, 0), (25, 14, 0), (128, 63, 0), (127, 64, 0), (128, 64, 1)]
)
def test_people_are_not_looked_for_where_the_window_does_not_fit(height: int, width: int, looked_at: int) -> None:
    detector = Detector()
    assert detector.people.winSize == Window.winSize
    detector.people = Window()
    assert detector(np.full((height, width, 3), 127, np.uint8)) == []
    assert detector.people.looked_at == looked_at


def test_what_is_not_sure_enough_is_dropped(pictures: Path) -> None:
    image = picture(pictures / "coins.png")
    least = min(found.confidence or 0 for found in Detector()(image))
    assert len(Detector(min_confidence=least + 0.001)(image)) == len(Detector()(image)) - 1


def test_a_box_is_cut_to_the_picture() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    assert boxes("person", image, [(-5, -10, 300, 400)], [0.0]) == [Found("person", 0, 0, 200, 100, 0.5)]


def test_without_a_weight_there_is_no_confidence() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    assert boxes("face", image, [(1, 2, 3, 4)], []) == [Found("face", 1, 2, 3, 4, None)]


@pytest.mark.parametrize(("weight", "confidence"), [(0, 0.5), (1, 0.731), (-1, 0.269), (1e6, 1), (-1e6, 0)])
def test_a_weight_becomes_a_confidence(weight: float, confidence: float) -> None:
    assert logistic(weight) == pytest.approx(confidence, abs=0.001)
