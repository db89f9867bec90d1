"""The API as the tests use it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import grpc
from watchpost.v1 import (
    alert_rule_service_pb2,
    alert_rule_service_pb2_grpc,
    alert_rules_pb2,
    alert_service_pb2,
    alert_service_pb2_grpc,
    alerts_pb2,
    cameras_pb2,
    cameras_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    monitor_pb2,
    monitor_pb2_grpc,
    notifications_pb2,
    notifications_pb2_grpc,
)

SECONDS = 60
"""How long a watch may take before a test fails."""


class Api:
    """The stubs of one channel, and the calls that many tests make."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.cameras = cameras_pb2_grpc.CameraServiceStub(channel)
        self.rules = alert_rule_service_pb2_grpc.AlertRuleServiceStub(channel)
        self.alerts = alert_service_pb2_grpc.AlertServiceStub(channel)
        self.events = events_pb2_grpc.EventServiceStub(channel)
        self.monitor = monitor_pb2_grpc.MonitorServiceStub(channel)
        self.channels = notifications_pb2_grpc.NotificationChannelServiceStub(channel)
        self.deliveries = notifications_pb2_grpc.DeliveryServiceStub(channel)

    def create_camera(self, camera_id: str) -> cameras_pb2.Camera:
        """Registers a camera."""
        camera = cameras_pb2.Camera(id=camera_id, name=camera_id)
        return self.cameras.CreateCamera(cameras_pb2.CreateCameraRequest(camera=camera))

    def create_rule(self, **fields: object) -> alert_rules_pb2.AlertRule:
        """Creates a rule that raises an alert for every event that matches."""
        rule = alert_rules_pb2.AlertRule(**{"name": "rule", "cooldown": timedelta(0), **fields})
        return self.rules.CreateAlertRule(alert_rule_service_pb2.CreateAlertRuleRequest(alert_rule=rule))

    def create_channel(self, name: str, **kind: object) -> notifications_pb2.NotificationChannel:
        """Creates a notification channel."""
        channel = notifications_pb2.NotificationChannel(name=name, **kind)
        request = notifications_pb2.CreateNotificationChannelRequest(notification_channel=channel)
        return self.channels.CreateNotificationChannel(request)

    def list_events(self) -> list[events_pb2.Event]:
        """The newest events."""
        return list(self.events.ListEvents(events_pb2.ListEventsRequest(page_size=1000)).events)

    def list_detections(self) -> list[events_pb2.Detection]:
        """The newest detections."""
        return list(self.events.ListDetections(events_pb2.ListDetectionsRequest(page_size=1000)).detections)

    def list_alerts(self) -> Iterator[alerts_pb2.Alert]:
        """All alerts, newest first."""
        token, more = "", True
        while more:
            page = self.alerts.ListAlerts(alert_service_pb2.ListAlertsRequest(page_token=token))
            yield from page.alerts
            token, more = page.next_page_token, bool(page.next_page_token)

    def watch(self, cursor: str = "") -> Watch:
        """Opens a watch of alerts; it is open when this returns."""
        request = monitor_pb2.WatchRequest(topics=[monitor_pb2.TOPIC_ALERTS], cursor=cursor)
        return Watch(self.monitor.Watch(request, timeout=SECONDS))


class Watch:
    """A watch of alerts, and the cursor of what was read of it."""

    def __init__(self, stream: grpc.Call) -> None:
        self.stream = stream
        first = next(stream)
        assert first.WhichOneof("update") == "heartbeat"
        self.cursor = first.cursor

    def changes(self) -> Iterator[monitor_pb2.AlertChange]:
        """The changes, without the heartbeats between them."""
        for response in self.stream:
            self.cursor = response.cursor
            if response.HasField("alert"):
                yield response.alert

    def next_change(self) -> monitor_pb2.AlertChange:
        """The next change."""
        return next(self.changes())
