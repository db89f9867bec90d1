"""From a picture to an acknowledged alert, through a real server."""

from __future__ import annotations

import base64
import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import grpc
import pytest
from watchpost.v1 import alert_service_pb2, alerts_pb2, cameras_pb2, common_pb2, events_pb2, monitor_pb2

from tests.api import Api
from tests.server import Server

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "pa55-w0rd"  # noqa: S105


def command(server: str, *arguments: str | Path) -> list[str]:
    """The producer's command line for the camera of these tests."""
    common = ["--server", server, "--camera-id", "front_door", "--name", "Front Door"]
    return [sys.executable, "-m", "watchpost_producer", *common, *map(str, arguments)]


def produce(server: Server, *arguments: str | Path) -> str:
    """Runs the producer to its end, and returns the totals that it prints."""
    done = subprocess.run(command(server.address, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def totals(frames: int, events: int, known: int, detections: int, alerts: int) -> str:
    return (
        f"frames looked at: {frames}, events ingested: {events}, known before: {known}, "
        f"detections ingested: {detections}, alerts raised: {alerts}"
    )


@pytest.fixture
def album(tmp_path: Path, pictures: Path) -> Path:
    """A folder with a portrait, a picture without anybody, and a file that is no picture."""
    folder = tmp_path / "album"
    (folder / "inner").mkdir(parents=True)
    shutil.copy2(pictures / "astronaut.png", folder / "inner" / "portrait.png")
    shutil.copy2(pictures / "brick.png", folder)
    (folder / "notes.txt").write_text("no picture")
    os.utime(folder / "inner" / "portrait.png", (1_767_323_045, 1_767_323_045))
    return folder


def test_a_face_in_a_picture_raises_an_alert_that_is_watched_and_acknowledged(
    server: Server, channel: grpc.Channel, album: Path
) -> None:
    api = Api(channel)
    rule = api.create_rule(
        name="Face at the door", severity=common_pb2.SEVERITY_HIGH, object_types=["face"], min_confidence=0.9
    )
    watch = api.watch()

    assert produce(server, "--detect", "face", album) == totals(2, 1, 0, 1, 1)

    raised = watch.next_change()
    assert raised.kind == monitor_pb2.ALERT_CHANGE_KIND_CREATED
    assert raised.alert.rule_id == rule.id
    assert raised.alert.severity == common_pb2.SEVERITY_HIGH
    assert raised.alert.status == alerts_pb2.ALERT_STATUS_PENDING
    assert raised.alert.camera_id == "front_door"

    [event] = api.list_events()
    assert raised.alert.event_id == event.id
    assert event.object_types == ["face"]
    assert not event.HasField("risk_score")
    assert event.started_at.seconds == 1_767_323_045
    assert not event.HasField("ended_at")
    [face] = api.list_detections()
    assert face.file_path == str(album / "inner" / "portrait.png")
    assert face.file_type == "image/png"
    assert face.media_type == events_pb2.MEDIA_TYPE_IMAGE
    assert (face.video_width, face.video_height) == (512, 512)
    assert face.confidence > 0.9
    assert 0 < face.bbox_x < face.bbox_x + face.bbox_width < 512
    assert 0 < face.bbox_y < face.bbox_y + face.bbox_height < 512

    answer = api.alerts.AcknowledgeAlert(
        alert_service_pb2.AcknowledgeAlertRequest(id=raised.alert.id, expected_version_id=raised.alert.version_id)
    )
    assert answer.status == alerts_pb2.ALERT_STATUS_ACKNOWLEDGED
    acknowledged = watch.next_change()
    assert acknowledged.kind == monitor_pb2.ALERT_CHANGE_KIND_ACKNOWLEDGED
    assert acknowledged.alert == answer


def test_the_same_folder_is_ingested_once(server: Server, channel: grpc.Channel, album: Path) -> None:
    assert produce(server, "--detect", "face", album) == totals(2, 1, 0, 1, 0)
    assert produce(server, "--detect", "face", album) == totals(2, 0, 1, 0, 0)
    # Known, although it is another request by now.
    assert produce(server, "--detect", "face", "--risk-score", "80", album) == totals(2, 0, 1, 0, 0)
    [event] = Api(channel).list_events()
    assert not event.HasField("risk_score")


def test_a_risk_is_reported_if_the_user_says_so(server: Server, channel: grpc.Channel, album: Path) -> None:
    produce(server, "--risk-score", "0", album)
    [event] = Api(channel).list_events()
    assert event.HasField("risk_score") and event.risk_score == 0
    assert event.risk_level == common_pb2.SEVERITY_LOW


def test_frames_of_a_video_that_are_close_together_are_one_event(
    server: Server, channel: grpc.Channel, videos: Path
) -> None:
    film = videos / "carphone_pristine.mp4"
    began = "2026-01-02T03:04:05+01:00"
    produce(server, "--detect", "face", "--every", "0.2", "--gap", "0.3", "--started-at", began, film)
    api = Api(channel)
    events = sorted(api.list_events(), key=lambda event: event.started_at.ToNanoseconds())
    assert len(events) > 1, "the face is lost and found again in this film"
    assert events[0].started_at.ToJsonString() == "2026-01-02T02:04:05Z"
    gaps = [later.started_at.ToNanoseconds() - event.ended_at.ToNanoseconds() for event, later in pairwise(events)]
    assert min(gaps) > 0.3e9
    seen = api.list_detections()
    assert len(seen) > len(events)
    assert {(one.media_type, one.video_width, one.video_height) for one in seen} == {
        (events_pb2.MEDIA_TYPE_VIDEO, 176, 144)
    }
    assert all(one.duration.ToNanoseconds() == pytest.approx(4e9, abs=1e8) for one in seen)


def test_a_camera_whose_name_is_taken_is_refused(server: Server, channel: grpc.Channel, album: Path) -> None:
    camera = cameras_pb2.Camera(id="back_door", name="Front Door")
    Api(channel).cameras.CreateCamera(cameras_pb2.CreateCameraRequest(camera=camera))
    done = subprocess.run(command(server.address, album), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "the name 'Front Door' belongs to another camera" in done.stderr


def test_a_deleted_camera_is_refused(server: Server, channel: grpc.Channel, album: Path) -> None:
    api = Api(channel)
    api.create_camera("front_door")
    api.cameras.DeleteCamera(cameras_pb2.DeleteCameraRequest(id="front_door"))
    done = subprocess.run(command(server.address, album), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "is deleted" in done.stderr


@pytest.fixture
def camera(videos: Path) -> Iterator[str]:
    """A camera on the network as HOST:PORT, which asks for a password and streams a few JPEGs."""
    capture = cv2.VideoCapture(str(videos / "carphone_pristine.mp4"))
    pictures = [cv2.imencode(".jpg", capture.read()[1])[1].tobytes() for _ in range(5)]
    capture.release()
    secret = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] != f"Basic {secret}":
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=picture")
            self.end_headers()
            for picture in pictures:
                head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
                self.wfile.write(head.encode() + picture + b"\r\n")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"127.0.0.1:{site.server_port}"
        site.shutdown()
        thread.join()


def test_a_stream_is_ingested_until_it_is_interrupted(server: Server, channel: grpc.Channel, camera: str) -> None:
    url = f"http://admin:{PASSWORD}@{camera}/stream?key={PASSWORD}"
    environment = {**os.environ, "WATCHPOST_SOURCE": url}
    arguments = command(server.address, "--detect", "face", "--every", "0.04")
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    printed = []
    for line in process.stderr or ():
        printed.append(line)
        if "connecting again" in line:
            process.send_signal(signal.SIGTERM)
            break
    out, rest = process.communicate(timeout=60)
    text = "".join(printed) + rest + out
    assert process.returncode == 0, text
    assert PASSWORD not in text
    assert f"http://{camera}/stream" in text
    [event] = Api(channel).list_events()
    assert event.object_types == ["face"]
    assert {one.file_path for one in Api(channel).list_detections()} == {""}


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        (f"rtsp://admin:{PASSWORD}@127.0.0.1:1/stream?key={PASSWORD}", "rtsp://127.0.0.1:1/stream"),
        (f"http://admin:{PASSWORD}@127.0.0.1:1/%03d.jpg", "http://127.0.0.1:1/%03d.jpg"),
    ],
)
def test_the_password_of_a_camera_that_does_not_answer_is_not_printed(server: Server, url: str, printed: str) -> None:
    done = subprocess.run(command(server.address, url), cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"{printed}: cannot be read" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr
