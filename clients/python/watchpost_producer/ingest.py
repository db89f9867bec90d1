"""Hands sightings to Watchpost."""

from __future__ import annotations

import json
import logging
import mimetypes
import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from watchpost.v1 import cameras_pb2, cameras_pb2_grpc, events_pb2, events_pb2_grpc

from watchpost_producer.sightings import Seen, Sighting
from watchpost_producer.source import Medium

log = logging.getLogger(__name__)

# A call waits for a server that is away until its timeout, and is sent again, as
# it was and so with its request_id, if the server goes away while it lasts.
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "watchpost.v1.CameraService"}, {"service": "watchpost.v1.EventService"}],
            "waitForReady": True,
            "timeout": "60s",
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "5s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class CameraError(Exception):
    """The camera cannot be used."""


@dataclass
class Totals:
    """What came of it all."""

    frames: int = 0
    events: int = 0
    known: int = 0
    detections: int = 0
    alerts: int = 0

    def __str__(self) -> str:
        return (
            f"frames looked at: {self.frames}, events ingested: {self.events}, known before: {self.known}, "
            f"detections ingested: {self.detections}, alerts raised: {self.alerts}"
        )


def connect(server: str) -> grpc.Channel:
    """Opens a channel with the retry policy above."""
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG)), ("grpc.max_reconnect_backoff_ms", 5000)]
    return grpc.insecure_channel(server, options=options)


class Producer:
    """Ingests the sightings of one camera."""

    def __init__(self, channel: grpc.Channel, camera_id: str, risk_score: int | None = None) -> None:
        self.cameras = cameras_pb2_grpc.CameraServiceStub(channel)
        self.events = events_pb2_grpc.EventServiceStub(channel)
        self.camera_id = camera_id
        self.risk_score = risk_score

    def register(self, name: str) -> None:
        """Registers the camera; one that is registered already is left as it is."""
        camera = cameras_pb2.Camera(id=self.camera_id, name=name)
        try:
            self.cameras.CreateCamera(cameras_pb2.CreateCameraRequest(camera=camera))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            self.check_registered(name)

    def check_registered(self, name: str) -> None:
        """Makes sure that it is this camera that exists, and not another one of its name."""
        try:
            camera = self.cameras.GetCamera(cameras_pb2.GetCameraRequest(id=self.camera_id))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            raise CameraError(f"the name {name!r} belongs to another camera than {self.camera_id}") from error
        if camera.HasField("deleted_at"):
            raise CameraError(f"the camera {self.camera_id} is deleted; restore it first")

    def ingest(self, sighting: Sighting, totals: Totals) -> None:
        """Ingests one sighting, unless Watchpost has it already."""
        request = events_pb2.IngestEventRequest(
            event=event(sighting, self.camera_id, self.risk_score),
            detections=[detection(seen, sighting.medium) for seen in sighting.seen],
            request_id=str(uuid.uuid4()),
        )
        try:
            response = self.events.IngestEvent(request)
        except grpc.RpcError as error:
            if reason(error) != "IDEMPOTENCY_KEY_REUSED":
                raise
            totals.known += 1
            log.warning("%s was ingested before, with other content; left as it is", sighting.medium.path)
            return
        if response.replayed:
            totals.known += 1
            return
        totals.events += 1
        totals.detections += len(response.detections)
        totals.alerts += len(response.alerts)
        types = ", ".join(response.event.object_types)
        log.info("event %d: %s, alerts: %d", response.event.id, types, len(response.alerts))


def reason(error: grpc.RpcError) -> str:
    """Why a call failed, of `watchpost.v1.ErrorReason`; empty if the server does not say."""
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            return info.reason
    return ""


def event(sighting: Sighting, camera_id: str, risk_score: int | None) -> events_pb2.Event:
    """The event of a sighting. Only a video has an end, and only the user judges risk."""
    return events_pb2.Event(
        batch_id=sighting.batch_id,
        camera_id=camera_id,
        started_at=timestamp(sighting.started_at),
        ended_at=timestamp(sighting.ended_at) if sighting.medium.is_video else None,
        risk_score=risk_score,
    )


def detection(seen: Seen, medium: Medium) -> events_pb2.Detection:
    """The detection of one object."""
    return events_pb2.Detection(
        file_path=medium.path,
        file_type=mimetypes.guess_type(medium.path)[0] if medium.path else None,
        detected_at=timestamp(seen.at),
        object_type=seen.found.object_type,
        confidence=seen.found.confidence,
        bbox_x=seen.found.x,
        bbox_y=seen.found.y,
        bbox_width=seen.found.width,
        bbox_height=seen.found.height,
        media_type=events_pb2.MEDIA_TYPE_VIDEO if medium.is_video else events_pb2.MEDIA_TYPE_IMAGE,
        duration=None if medium.duration is None else timedelta(seconds=medium.duration),
        video_width=seen.width,
        video_height=seen.height,
    )


def timestamp(at: datetime) -> Timestamp:
    """A time as protobuf has it."""
    result = Timestamp()
    result.FromDatetime(at)
    return result
