"""What survives when the server goes away."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import grpc
import pytest
from watchpost.v1 import events_pb2, events_pb2_grpc

from tests.api import Api
from tests.server import Server
from watchpost_producer.detect import Found
from watchpost_producer.ingest import SERVICE_CONFIG, Producer, Totals, connect
from watchpost_producer.sightings import Seen, Sighting
from watchpost_producer.source import Medium


def request(number: int) -> events_pb2.IngestEventRequest:
    """The n-th event of the yard."""
    event = events_pb2.Event(camera_id="yard", batch_id=f"batch-{number}")
    return events_pb2.IngestEventRequest(event=event, request_id=f"request-{number}")


def test_a_watch_goes_on_without_loss_after_the_server_was_killed(server: Server) -> None:
    with grpc.insecure_channel(server.address) as channel:
        api = Api(channel)
        api.create_camera("yard")
        api.create_rule()
        watch = api.watch()
        answered: list[str] = []
        many = threading.Event()

        def ingest_until_it_fails() -> None:
            with pytest.raises(grpc.RpcError):
                for number in range(100_000):
                    response = api.events.IngestEvent(request(number))
                    answered.extend(alert.id for alert in response.alerts)
                    if len(answered) == 60:
                        many.set()

        with ThreadPoolExecutor() as pool:
            ingesting = pool.submit(ingest_until_it_fails)
            seen = [watch.next_change().alert.id for _ in range(20)]
            # What comes from here on is not dealt with before the server dies.
            assert many.wait(60), "too few events were ingested"
            server.kill()
            ingesting.result(timeout=60)

    server.start()
    with grpc.insecure_channel(server.address) as channel:
        api = Api(channel)
        # The request that the kill cut off, again: it had been carried out or it is now, but not both.
        first, last = len(answered), len(answered) + 1
        api.events.IngestEvent(request(first))
        [end] = api.events.IngestEvent(request(last)).alerts
        for change in api.watch(watch.cursor).changes():
            seen.append(change.alert.id)
            if change.alert.id == end.id:
                break
        assert len(seen) == len(set(seen)) == last + 1, "an alert was missed or came twice"
        assert set(answered) <= set(seen)
        assert [alert.id for alert in api.list_alerts()] == seen[::-1]


def sighting() -> Sighting:
    """A face in a picture."""
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    return Sighting(Medium("picture", "picture.png"), 0, [Seen(Found("face", 1, 2, 3, 4, 0.9), at, 64, 48)])


class Unavailable(events_pb2_grpc.EventServiceServicer):
    """An event service that fails `times` times before it answers."""

    def __init__(self, times: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.times = times
        self.code = code
        self.requests: list[events_pb2.IngestEventRequest] = []

    def IngestEvent(  # noqa: N802
        self, request: events_pb2.IngestEventRequest, context: grpc.ServicerContext
    ) -> events_pb2.IngestEventResponse:
        self.requests.append(request)
        if len(self.requests) <= self.times:
            context.abort(self.code, "gone for a moment")
        return events_pb2.IngestEventResponse(event=request.event, detections=request.detections)


def ingest_into(service: Unavailable) -> Totals:
    """Ingests one sighting into a server that has only this service."""
    server = grpc.server(ThreadPoolExecutor())
    events_pb2_grpc.add_EventServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    totals = Totals()
    try:
        with connect(f"127.0.0.1:{port}") as channel:
            Producer(channel, "yard").ingest(sighting(), totals)
    finally:
        server.stop(None).wait()
    return totals


def test_an_event_is_sent_again_as_it_was_while_the_server_is_unavailable() -> None:
    service = Unavailable(times=3)
    assert ingest_into(service).events == 1
    assert len(service.requests) == 4
    assert service.requests[0].request_id
    assert all(request == service.requests[0] for request in service.requests)


def test_an_event_that_is_refused_is_not_sent_again() -> None:
    service = Unavailable(times=1, code=grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(grpc.RpcError):
        ingest_into(service)
    assert len(service.requests) == 1


def test_an_event_waits_for_a_server_that_is_not_there_yet(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    # Waiting is not one of the attempts, of which there are few.
    monkeypatch.delitem(SERVICE_CONFIG["methodConfig"][0], "retryPolicy")
    address = server.address
    with grpc.insecure_channel(address) as channel:
        Api(channel).create_camera("yard")
    server.kill()
    totals = Totals()
    with connect(address) as channel, ThreadPoolExecutor() as pool:
        refused = threading.Event()
        channel.subscribe(lambda state: refused.set() if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE else None)
        ingesting = pool.submit(Producer(channel, "yard").ingest, sighting(), totals)
        assert refused.wait(60), "the channel did not even try"
        server.start(address)
        ingesting.result(timeout=60)
    assert totals.events == 1
