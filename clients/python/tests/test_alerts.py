"""The life of an alert, from its rule to its numbers."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from watchpost.v1 import alert_service_pb2, alerts_pb2, events_pb2, monitor_pb2

from tests.api import Api

PENDING = alerts_pb2.ALERT_STATUS_PENDING
ACKNOWLEDGED = alerts_pb2.ALERT_STATUS_ACKNOWLEDGED
DISMISSED = alerts_pb2.ALERT_STATUS_DISMISSED


def ingest(api: Api, camera_id: str) -> events_pb2.IngestEventResponse:
    """Ingests an event without detections."""
    event = events_pb2.Event(camera_id=camera_id)
    return api.events.IngestEvent(events_pb2.IngestEventRequest(event=event))


def test_an_alert_is_raised_repeated_acknowledged_and_dismissed(channel: grpc.Channel) -> None:
    api = Api(channel)
    api.create_camera("front_door")
    rule = api.create_rule(cooldown=timedelta(hours=1))
    watch = api.watch()
    [raised] = ingest(api, "front_door").alerts
    for _ in range(2):
        assert not ingest(api, "front_door").alerts
    alert = api.alerts.GetAlert(alert_service_pb2.GetAlertRequest(id=raised.id))
    assert (alert.suppressed_count, alert.version_id) == (2, 1)
    assert alert.HasField("last_suppressed_at")

    acknowledge = alert_service_pb2.AcknowledgeAlertRequest(id=raised.id, expected_version_id=1, actor="ann")
    assert api.alerts.AcknowledgeAlert(acknowledge).acknowledged_by == "ann"
    dismiss = alert_service_pb2.DismissAlertsRequest(
        filter=alerts_pb2.AlertFilter(camera_ids=["front_door"]), actor="bob", reason="the postman"
    )
    moved = api.alerts.DismissAlerts(dismiss)
    assert (moved.matched, moved.moved, list(moved.not_moved)) == (1, 1, [])
    with pytest.raises(grpc.RpcError) as refused:
        api.alerts.AcknowledgeAlert(acknowledge)
    assert refused.value.code() == grpc.StatusCode.ABORTED

    # Repeats are not announced: the next change is the next move.
    kinds = [watch.next_change().kind for _ in range(3)]
    assert kinds == [
        monitor_pb2.ALERT_CHANGE_KIND_CREATED,
        monitor_pb2.ALERT_CHANGE_KIND_ACKNOWLEDGED,
        monitor_pb2.ALERT_CHANGE_KIND_DISMISSED,
    ]
    listed = alert_service_pb2.ListAlertTransitionsRequest(filter=alerts_pb2.AlertTransitionFilter(alert_id=raised.id))
    transitions = api.alerts.ListAlertTransitions(listed).alert_transitions
    assert not transitions[0].HasField("from_status")
    assert [(row.to_status, row.actor) for row in transitions] == [
        (PENDING, f"rule:{rule.id}"),
        (ACKNOWLEDGED, "ann"),
        (DISMISSED, "bob"),
    ]
    assert transitions[2].reason == "the postman"


def test_an_alert_that_is_raised_by_hand_counts_its_repeats(channel: grpc.Channel) -> None:
    api = Api(channel)
    api.create_camera("front_door")
    event = ingest(api, "front_door").event
    metadata = Struct()
    metadata.update({"note": "a stranger at the gate"})
    alert = alerts_pb2.Alert(event_id=event.id, dedup_key="guard:gate", metadata=metadata)
    request = alert_service_pb2.CreateAlertRequest(alert=alert, actor="guard")
    first, second = (api.alerts.CreateAlert(request) for _ in range(2))
    assert (first.created, second.created) == (True, False)
    assert second.alert.id == first.alert.id
    text = alerts_pb2.AlertFilter(text="STRANGER", suppressed=True, open=True)
    found = api.alerts.ListAlerts(alert_service_pb2.ListAlertsRequest(filter=text))
    assert list(found.alerts) == [second.alert]

    stats = api.alerts.GetAlertStats(alert_service_pb2.GetAlertStatsRequest())
    assert (stats.total, stats.suppressed, stats.open, stats.dedup_ratio) == (1, 1, 1, 0.5)
    assert stats.oldest_open_at == first.alert.created_at
    assert not stats.HasField("mean_time_to_acknowledge")
