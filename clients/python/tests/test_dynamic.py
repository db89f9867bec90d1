"""What a client without stubs can do, and what it is told of errors."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from watchpost.v1 import alert_rule_service_pb2, alert_rule_service_pb2_grpc, alert_rules_pb2

SERVICES = {
    "watchpost.v1.AlertRuleService",
    "watchpost.v1.AlertService",
    "watchpost.v1.CameraService",
    "watchpost.v1.CameraZoneService",
    "watchpost.v1.EventService",
    "watchpost.v1.GpuStatsService",
    "watchpost.v1.MonitorService",
    "watchpost.v1.SilenceService",
}


def test_a_client_without_stubs_finds_the_services_and_calls_one(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) >= SERVICES | {"grpc.health.v1.Health"}

    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("watchpost.v1.CameraService").FindMethodByName("CreateCamera")
    request = message_factory.GetMessageClass(method.input_type)()
    response = message_factory.GetMessageClass(method.output_type)
    json_format.ParseDict({"camera": {"name": "Front Door"}}, request)
    call = channel.unary_unary(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=response.FromString,
    )
    camera = json_format.MessageToDict(call(request))
    assert camera["id"] == "front_door"
    assert camera["status"] == "CAMERA_STATUS_ONLINE"


def test_the_health_of_the_server_and_of_each_service_is_told(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    # That of the GPU stats depends on the host.
    for service in {"", *SERVICES} - {"watchpost.v1.GpuStatsService"}:
        answer = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    with pytest.raises(grpc.RpcError) as unknown:
        health.Check(health_pb2.HealthCheckRequest(service="watchpost.v1.NoSuchService"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


def test_an_error_names_the_field_and_the_reason(channel: grpc.Channel) -> None:
    rule = alert_rules_pb2.AlertRule(name="rule", risk_threshold=101)
    with pytest.raises(grpc.RpcError) as refused:
        alert_rule_service_pb2_grpc.AlertRuleServiceStub(channel).CreateAlertRule(
            alert_rule_service_pb2.CreateAlertRuleRequest(alert_rule=rule)
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(refused.value).details:
        assert detail.Unpack(info) or detail.Unpack(request), detail
    assert (info.domain, info.reason) == ("watchpost.v1", "INVALID_FIELD")
    assert [violation.field for violation in request.field_violations] == ["alert_rule.risk_threshold"]
    assert request.field_violations[0].description
