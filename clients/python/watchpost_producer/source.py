"""Where the pictures come from: image files, a video file, or a camera's stream."""

from __future__ import annotations

import hashlib
import logging
import mimetypes
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import cv2
import numpy as np

log = logging.getLogger(__name__)

# FFmpeg tells of its troubles by itself, and prints URLs with their passwords.
os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"

RECONNECT_AFTER_SECONDS = (1, 2, 5, 10, 30)


class SourceError(Exception):
    """The source cannot be read."""


@dataclass(frozen=True)
class Medium:
    """What a frame was taken from."""

    key: str
    """Tells it from all others; the same whenever the same file is looked at."""
    path: str = ""
    """The file. Empty for a stream."""
    is_video: bool = False
    duration: float | None = None
    """The length of a video, in seconds. Absent for images and streams."""


@dataclass(frozen=True)
class Frame:
    """One picture, and when it was taken."""

    medium: Medium
    number: int
    at: datetime
    image: np.ndarray


def frames(source: str, every: float, started_at: datetime | None, stop: threading.Event) -> Iterator[Frame]:
    """Reads the frames of a source: every image, one frame of a video in `every` seconds.

    A stream has no end but `stop`.
    """
    if "://" in source:
        return stream(source, every, stop)
    path = Path(source)
    if path.is_dir():
        return images(path, sorted(path.rglob("*")), started_at)
    if not path.is_file():
        raise SourceError(f"{source}: no such file or folder")
    if is_image(path):
        return images(path.parent, [path], started_at)
    return video(path, every, started_at)


def images(folder: Path, paths: list[Path], started_at: datetime | None) -> Iterator[Frame]:
    """Reads those of the files that are images, each taken at its modification time."""
    for path in filter(is_image, paths):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None:
            log.warning("%s: not an image that OpenCV can read; left out", path)
            continue
        medium = Medium(key=f"{path.relative_to(folder).as_posix()}:{sha256(path)}", path=str(path))
        yield Frame(medium, 0, started_at or modified_at(path), image)


def video(path: Path, every: float, started_at: datetime | None) -> Iterator[Frame]:
    """Samples a video file, which was recorded up to its modification time."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise SourceError(f"{path}: neither an image nor a video that OpenCV can read")
        rate = capture.get(cv2.CAP_PROP_FPS)
        duration = capture.get(cv2.CAP_PROP_FRAME_COUNT) / rate if rate > 0 else None
        medium = Medium(f"{path.name}:{sha256(path)}", str(path), is_video=True, duration=duration)
        began = started_at or modified_at(path) - timedelta(seconds=duration or 0)
        number, due = 0, 0.0
        while capture.grab():
            seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if seconds >= due:
                due = seconds + every
                read, image = capture.retrieve()
                if read:
                    yield Frame(medium, number, began + timedelta(seconds=seconds), image)
            number += 1
    finally:
        capture.release()


def stream(url: str, every: float, stop: threading.Event) -> Iterator[Frame]:
    """Samples a camera's stream by the clock of this host; connects again whenever it breaks."""
    medium = Medium(key=str(uuid.uuid4()), is_video=True)
    number = failures = 0
    while not stop.is_set():
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG)
        due = time.monotonic()
        try:
            while not stop.is_set() and capture.grab():
                failures = 0
                # Every frame is grabbed so that none gets old; few are decoded in full.
                if time.monotonic() < due:
                    continue
                due = time.monotonic() + every
                read, image = capture.retrieve()
                if read:
                    yield Frame(medium, number, datetime.now(UTC), image)
                    number += 1
        finally:
            capture.release()
        if number == 0 and not stop.is_set():
            raise SourceError(f"{without_password(url)}: cannot be read")
        wait = RECONNECT_AFTER_SECONDS[min(failures, len(RECONNECT_AFTER_SECONDS) - 1)]
        failures += 1
        if not stop.is_set():
            log.warning("%s: the stream broke; connecting again in %d s", without_password(url), wait)
        stop.wait(wait)


def without_password(source: str) -> str:
    """The source as it may be printed: a URL without its credentials and query."""
    if "://" not in source:
        return source
    url = urlsplit(source)
    host = url.netloc.rpartition("@")[2]
    return urlunsplit((url.scheme, host, url.path, "", ""))


def is_image(path: Path) -> bool:
    """Whether the name of the file is one of an image."""
    return (mimetypes.guess_type(path.name)[0] or "").startswith("image/")


def modified_at(path: Path) -> datetime:
    """When the file was last written."""
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def sha256(path: Path) -> str:
    """The hash of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
