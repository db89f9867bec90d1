"""The command line of the producer."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import grpc

from watchpost_producer.detect import Detector
from watchpost_producer.ingest import CameraError, Producer, Totals, connect
from watchpost_producer.sightings import sightings
from watchpost_producer.source import Frame, SourceError, frames, without_password

log = logging.getLogger("watchpost_producer")


def main(arguments: list[str] | None = None) -> int:
    """Runs the producer to the end of its source; the exit status is 0 if all of it was ingested."""
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    totals = Totals()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        produce(options, totals, stop)
    except (CameraError, SourceError) as error:
        log.error("%s", error)
        return 1
    except grpc.RpcError as error:
        log.error("%s: %s", error.code().name, error.details())
        return 1
    finally:
        print(totals)
    return 0


def produce(options: argparse.Namespace, totals: Totals, stop: threading.Event) -> None:
    """Registers the camera, then ingests every sighting of the source, also the one that `stop` interrupts."""
    detector = Detector(options.detect, options.min_confidence)
    with connect(options.server) as channel:
        producer = Producer(channel, options.camera_id, options.risk_score)
        producer.register(options.name or options.camera_id)
        log.info("looking at %s", without_password(options.source))
        source = frames(options.source, options.every, options.started_at, stop)
        for sighting in sightings(until(stop, source, totals), detector, timedelta(seconds=options.gap)):
            producer.ingest(sighting, totals)


def until(stop: threading.Event, source: Iterable[Frame], totals: Totals) -> Iterator[Frame]:
    """Passes the frames on until `stop`, and counts them."""
    for frame in source:
        if stop.is_set():
            return
        totals.frames += 1
        yield frame


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="watchpost_producer",
        description="Looks for people and faces in images, a video or a camera's stream, "
        "and ingests what it finds into Watchpost.",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="?",
        default=os.environ.get("WATCHPOST_SOURCE"),
        help="an image, a folder of images, a video file, or a camera's URL. Give a URL with a password "
        "in the variable WATCHPOST_SOURCE instead: a command line can be read by everybody on the host",
    )
    parser.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--camera-id", required=True, metavar="ID", help="the camera that all of it comes from")
    parser.add_argument("--name", help="the camera's name if it is to be registered; default: its id")
    parser.add_argument(
        "--detect",
        action="append",
        choices=Detector.KINDS,
        help="what to look for; can be given twice; default: both",
    )
    parser.add_argument(
        "--min-confidence",
        type=number(0, 1),
        default=0.0,
        metavar="NUMBER",
        help="drop what is less sure than this, in [0, 1]; default: %(default)s",
    )
    parser.add_argument(
        "--every",
        type=number(0.04, 3600),
        default=1.0,
        metavar="SECONDS",
        help="how often to look at a video, in [0.04, 3600]; default: %(default)s",
    )
    parser.add_argument(
        "--gap",
        type=number(0, 3600),
        default=5.0,
        metavar="SECONDS",
        help="detections of a video further apart than this are two events, in [0, 3600]; default: %(default)s",
    )
    parser.add_argument(
        "--started-at",
        type=moment,
        metavar="TIME",
        help="when the picture was taken or the video began, in RFC 3339 with an offset; "
        "default: taken from the file's modification time",
    )
    parser.add_argument(
        "--risk-score",
        type=int,
        choices=range(101),
        metavar="SCORE",
        help="the risk to report with every event, in [0, 100]; default: none, for the detectors cannot judge it",
    )
    options = parser.parse_args(arguments)
    if not options.source:
        parser.error("no SOURCE, and WATCHPOST_SOURCE is not set")
    return options


def number(low: float, high: float):
    """Makes a reader of numbers in [low, high]."""

    def read(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in [{low}, {high}]")
        return value

    return read


def moment(text: str) -> datetime:
    """Reads a time with an offset."""
    value = datetime.fromisoformat(text)
    if value.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text} has no offset from UTC")
    return value.astimezone(UTC)


if __name__ == "__main__":
    sys.exit(main())
