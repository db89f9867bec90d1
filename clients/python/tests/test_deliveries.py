"""Alerts that are delivered: webhooks, verified by the published package, and mail, taken by a real mail server."""

from __future__ import annotations

import base64
import json
import os
import queue
import socket
import ssl
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from standardwebhooks import Webhook, WebhookVerificationError
from watchpost.v1 import alert_service_pb2, alerts_pb2, events_pb2, notifications_pb2

from tests.api import Api
from tests.server import Server

SECRET = "whsec_" + base64.b64encode(b"a secret of 24 bytes ...").decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(32))).decode()

SECONDS = 30
"""How long a test waits for what must come."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Receiver:
    """An HTTP server that keeps what is posted to it, and answers with the next of its statuses, else with 204."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.posts: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()
        self.statuses: queue.Queue[int] = queue.Queue()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.posts.put(({name.lower(): value for name, value in self.headers.items()}, body))
                status = 204 if receiver.statuses.empty() else receiver.statuses.get()
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        """Where to post."""
        return f"http://127.0.0.1:{self.server.server_port}/hook"

    def close(self) -> None:
        """Ends the server."""
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks."""
    receiver = Receiver()
    yield receiver
    receiver.close()


class Mailbox:
    """A mail server that keeps what it takes, and turns some away for now."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.mails: queue.Queue[tuple[Envelope, Message]] = queue.Queue()
        self.refusals: queue.Queue[str] = queue.Queue()
        self.logins: list[tuple[str, str]] = []

        def authenticate(_: SMTP, __: Session, ___: Envelope, mechanism: str, data: object) -> AuthResult:
            assert mechanism in ("PLAIN", "LOGIN")
            assert isinstance(data, LoginPassword)
            self.logins.append((data.login.decode(), data.password.decode()))
            return AuthResult(success=data.password == b"hunter2")

        self.controller = Controller(
            self,
            hostname="127.0.0.1",
            port=free_port(),
            authenticator=authenticate,
            auth_require_tls=False,
            tls_context=tls,
            require_starttls=tls is not None,
        )

    async def handle_DATA(self, _: SMTP, __: Session, envelope: Envelope) -> str:  # noqa: N802  (the name of a hook)
        """Takes a mail."""
        if not self.refusals.empty():
            return self.refusals.get()
        self.mails.put((envelope, message_from_bytes(envelope.original_content)))
        return "250 taken"


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    """A mail server."""
    mailbox = Mailbox()
    mailbox.controller.start()
    yield mailbox
    mailbox.controller.stop()


def ingest(api: Api) -> alerts_pb2.Alert:
    """Raises an alert."""
    event = events_pb2.Event(camera_id="front_door", risk_score=80, summary="Somebody at the door.")
    [alert] = api.events.IngestEvent(events_pb2.IngestEventRequest(event=event)).alerts
    return alert


def wait_for(api: Api, alert: alerts_pb2.Alert) -> notifications_pb2.Delivery:
    """The delivery of an alert, once it is made."""
    done = threading.Event()
    for _ in range(SECONDS * 50):
        filter_ = notifications_pb2.DeliveryFilter(alert_ids=[alert.id])
        [delivery] = api.deliveries.ListDeliveries(notifications_pb2.ListDeliveriesRequest(filter=filter_)).deliveries
        if delivery.status == notifications_pb2.DELIVERY_STATUS_DELIVERED:
            return delivery
        done.wait(0.02)
    pytest.fail(f"it is not delivered: {delivery}")


def test_the_published_package_verifies_what_is_posted(channel: grpc.Channel, receiver: Receiver) -> None:
    api = Api(channel)
    api.create_camera("front_door")
    webhook = notifications_pb2.WebhookChannel(
        url=receiver.url, signing_secrets=[SECRET, OTHER], headers={"Authorization": "Bearer hunter2"}
    )
    created = api.create_channel("ops", webhook=webhook)
    assert list(created.webhook.signing_secrets) == []
    assert dict(created.webhook.headers) == {}
    assert list(created.webhook.header_names) == ["authorization"]
    api.create_rule(channels=["ops"])
    alert = ingest(api)

    headers, body = receiver.posts.get(timeout=SECONDS)
    assert headers["authorization"] == "Bearer hunter2"
    for secret in (SECRET, OTHER):
        assert Webhook(secret).verify(body, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"another one of 24 bytes.").decode()).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"front_door", b"back_doorr"), headers)

    event = json.loads(body)
    assert event["specversion"] == "1.0"
    assert event["data"]["alert"]["id"] == alert.id
    delivery = wait_for(api, alert)
    assert event["id"] == headers["webhook-id"] == delivery.id
    delivered = api.alerts.GetAlert(alert_service_pb2.GetAlertRequest(id=alert.id))
    assert delivered.status == alerts_pb2.ALERT_STATUS_DELIVERED


def test_a_retry_is_signed_anew_and_has_the_same_id(channel: grpc.Channel, receiver: Receiver) -> None:
    api = Api(channel)
    api.create_camera("front_door")
    webhook = notifications_pb2.WebhookChannel(url=receiver.url, signing_secrets=[SECRET])
    api.create_channel("ops", webhook=webhook)
    api.create_rule(channels=["ops"])
    for status in (500, 302):
        receiver.statuses.put(status)
    alert = ingest(api)
    posts = [receiver.posts.get(timeout=SECONDS) for _ in range(3)]
    for headers, body in posts:
        Webhook(SECRET).verify(body, headers)
    assert len({headers["webhook-id"] for headers, _ in posts}) == 1
    assert len({body for _, body in posts}) == 1
    assert wait_for(api, alert).attempts == 3


def test_a_mail_server_takes_a_mail(channel: grpc.Channel, mailbox: Mailbox) -> None:
    api = Api(channel)
    api.create_camera("front_door")
    email = notifications_pb2.EmailChannel(
        host="127.0.0.1",
        port=mailbox.controller.port,
        security=notifications_pb2.SMTP_SECURITY_NONE,
        username="watchpost",
        password="hunter2",  # noqa: S106  (of a server that lives as long as the test)
        to_addresses=["ops@example.com", "Ann <ann@example.com>"],
        from_address="Watchpost <watchpost@example.com>",
    )
    created = api.create_channel("mail", email=email)
    assert (created.email.password, created.email.has_password) == ("", True)
    api.create_rule(name="Nachts 🌙", severity=4, channels=["mail"])
    mailbox.refusals.put("451 later")
    alert = ingest(api)

    envelope, mail = mailbox.mails.get(timeout=SECONDS)
    assert envelope.mail_from == "watchpost@example.com"
    assert envelope.rcpt_tos == ["ops@example.com", "ann@example.com"]
    delivery = wait_for(api, alert)
    assert (delivery.attempts, delivery.last_status_code) == (2, 250)
    assert mail["message-id"] == f"<{delivery.id}@watchpost>"
    assert str(make_header(decode_header(mail["subject"]))) == "[CRITICAL] Nachts 🌙 at front_door"
    text = mail.get_payload(decode=True).decode()
    assert "Somebody at the door." in text
    assert alert.id in text
    assert ("watchpost", "hunter2") in mailbox.logins
    tested = api.channels.SendTestNotification(notifications_pb2.SendTestNotificationRequest(id=created.id))
    assert tested.delivered
    _, mail = mailbox.mails.get(timeout=SECONDS)
    assert "test" in mail["subject"]


def test_certificates_are_verified(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    trusted = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(trusted))

    def context(of: trustme.CA, *names: str) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        of.issue_cert(*names).configure_cert(context)
        return context

    binary = Path(os.environ["WATCHPOST_TEST_SERVER_BIN"]).resolve()
    environment = {"SSL_CERT_FILE": str(trusted)}
    networks = ("--notification-networks", "127.0.0.0/8", "--notification-retry", "50ms")
    server = Server(binary, tmp_path / "data", *networks, environment=environment)
    server.start()
    good = Receiver(context(authority, "localhost"))
    unknown = Receiver(context(stranger, "localhost"))
    misnamed = Receiver(context(authority, "example.com"))
    mailbox = Mailbox(context(authority, "localhost"))
    mailbox.controller.start()
    with grpc.insecure_channel(server.address) as channel:
        api = Api(channel)
        api.create_camera("front_door")

        def try_(name: str, **kind: object) -> notifications_pb2.SendTestNotificationResponse:
            created = api.create_channel(name, **kind)
            return api.channels.SendTestNotification(notifications_pb2.SendTestNotificationRequest(id=created.id))

        def webhook(receiver: Receiver) -> notifications_pb2.WebhookChannel:
            url = f"https://localhost:{receiver.server.server_port}/hook"
            return notifications_pb2.WebhookChannel(url=url, signing_secrets=[SECRET])

        tested = try_("good", webhook=webhook(good))
        assert tested.delivered, tested.error
        headers, body = good.posts.get(timeout=SECONDS)
        Webhook(SECRET).verify(body, headers)
        for name, receiver in (("unknown", unknown), ("misnamed", misnamed)):
            tested = try_(name, webhook=webhook(receiver))
            assert not tested.delivered
            assert "certificate" in tested.error
            assert receiver.posts.empty()

        email = notifications_pb2.EmailChannel(
            host="localhost",
            port=mailbox.controller.port,
            to_addresses=["ops@example.com"],
            from_address="watchpost@example.com",
        )
        tested = try_("mail", email=email)
        assert tested.delivered, tested.error
        assert mailbox.mails.get(timeout=SECONDS)
    server.kill()
    mailbox.controller.stop()
    for receiver in (good, unknown, misnamed):
        receiver.close()
