"""Finds people and faces with the detectors that OpenCV ships."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np


@dataclass(frozen=True, order=True)
class Found:
    """One object in one picture; the box is in pixels and lies within the picture."""

    object_type: str
    x: int
    y: int
    width: int
    height: int
    confidence: float | None


class Detector:
    """Looks for people and faces.

    Both detectors give a weight, the distance from their decision boundary:
    above 0 is a find, and there is no upper bound. The confidence is the
    weight's logistic, 1 / (1 + e^-weight), so it grows with the weight and is
    above 0.5; it is not a measured probability. Where OpenCV gives no weight,
    there is no confidence.
    """

    KINDS: ClassVar = ("person", "face")

    def __init__(self, kinds: Collection[str] | None = None, min_confidence: float = 0.0) -> None:
        self.kinds = kinds or self.KINDS
        self.min_confidence = min_confidence
        self.people = cv2.HOGDescriptor()
        self.people.setSVMDetector(cv2.HOGDescriptor.getDefaultPeopleDetector())
        self.faces = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_default.xml")

    def __call__(self, image: np.ndarray) -> list[Found]:
        """Finds the objects of a BGR picture; the same picture gives the same list."""
        found = []
        if "person" in self.kinds:
            found += boxes("person", image, *self.find_people(image))
        if "face" in self.kinds:
            found += boxes("face", image, *self.find_faces(image))
        sure = [one for one in found if one.confidence is None or one.confidence >= self.min_confidence]
        return sorted(sure)

    def find_people(self, image: np.ndarray) -> tuple:
        """Finds upright people with histograms of oriented gradients."""
        height, width = image.shape[:2]
        # OpenCV writes beyond its memory if the picture is smaller than the detector's window.
        if width < self.people.winSize[0] or height < self.people.winSize[1]:
            return (), ()
        return self.people.detectMultiScale(image, winStride=(8, 8), padding=(8, 8), scale=1.05)

    def find_faces(self, image: np.ndarray) -> tuple:
        """Finds frontal faces with a cascade of Haar features."""
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        rectangles, _, weights = self.faces.detectMultiScale3(
            gray, scaleFactor=1.1, minNeighbors=5, outputRejectLevels=True
        )
        return rectangles, weights


def boxes(object_type: str, image: np.ndarray, rectangles: Sequence, weights: Sequence) -> list[Found]:
    """Cuts the rectangles to the picture and turns weights into confidences."""
    height, width = image.shape[:2]
    found = []
    for number, (x, y, w, h) in enumerate(rectangles):
        left, top = max(int(x), 0), max(int(y), 0)
        right, bottom = min(int(x + w), width), min(int(y + h), height)
        confidence = logistic(float(weights[number])) if number < len(weights) else None
        found.append(Found(object_type, left, top, right - left, bottom - top, confidence))
    return found


def logistic(weight: float) -> float:
    """Maps a weight to [0, 1], 0 to 0.5."""
    return 1 / (1 + math.exp(-weight)) if weight >= 0 else 1 - logistic(-weight)
