/** Shows that a Node program with generated stubs can do the main job: be told of an alert, and act on it. */

import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";

import {
  type CallOptions,
  type ChannelCredentials,
  type Client,
  type ClientUnaryCall,
  Metadata,
  type ServiceError,
  credentials,
  status,
} from "@grpc/grpc-js";

import { BadRequest, ErrorInfo } from "../gen/google/rpc/error_details.js";
import { Status } from "../gen/google/rpc/status.js";
import { AlertRuleServiceClient, CreateAlertRuleRequest } from "../gen/watchpost/v1/alert_rule_service.js";
import { AcknowledgeAlertRequest, AlertServiceClient } from "../gen/watchpost/v1/alert_service.js";
import { CameraServiceClient, CreateCameraRequest } from "../gen/watchpost/v1/cameras.js";
import { Severity } from "../gen/watchpost/v1/common.js";
import { EventServiceClient, IngestEventRequest } from "../gen/watchpost/v1/events.js";
import {
  type AlertChange,
  AlertChangeKind,
  MonitorServiceClient,
  Topic,
  WatchRequest,
  type WatchResponse,
} from "../gen/watchpost/v1/monitor.js";
import { patience, startServer } from "./server.js";

test("an alert is watched and acknowledged", async (test) => {
  const connect = await connector(test);
  const rules = connect(AlertRuleServiceClient);
  const cameras = connect(CameraServiceClient);
  const events = connect(EventServiceClient);
  const alerts = connect(AlertServiceClient);
  const monitor = connect(MonitorServiceClient);

  const camera = await call(
    cameras.createCamera.bind(cameras),
    CreateCameraRequest.fromPartial({ camera: { name: "Front Door" } }),
  );
  const rule = await call(
    rules.createAlertRule.bind(rules),
    CreateAlertRuleRequest.fromPartial({
      alertRule: {
        name: "Person at night",
        severity: Severity.SEVERITY_HIGH,
        objectTypes: ["person"],
        minConfidence: 0.8,
        cameraIds: [camera.id],
      },
    }),
  );

  const watch = monitor.watch(WatchRequest.fromPartial({ topics: [Topic.TOPIC_ALERTS] }), deadline());
  test.after(() => watch.destroy());
  const responses = watch[Symbol.asyncIterator]() as AsyncIterator<WatchResponse>;
  const first = await responses.next();
  assert.equal(first.value.update?.$case, "heartbeat");
  assert.notEqual(first.value.cursor, "");

  const ingested = await call(
    events.ingestEvent.bind(events),
    IngestEventRequest.fromPartial({
      event: { cameraId: camera.id, riskScore: 80 },
      detections: [{ objectType: "person", confidence: 0.9 }],
      requestId: "1",
    }),
  );
  assert.equal(ingested.replayed, false);
  assert.equal(ingested.alerts.length, 1);

  const raised = await nextAlert(responses);
  assert.equal(raised.kind, AlertChangeKind.ALERT_CHANGE_KIND_CREATED);
  assert.deepEqual(raised.alert, ingested.alerts[0]);
  assert.equal(raised.alert?.ruleId, rule.id);
  assert.equal(raised.alert?.eventId, ingested.event?.id);

  const acknowledged = await call(
    alerts.acknowledgeAlert.bind(alerts),
    AcknowledgeAlertRequest.fromPartial({ id: raised.alert.id, expectedVersionId: raised.alert.versionId }),
  );
  const changed = await nextAlert(responses);
  assert.equal(changed.kind, AlertChangeKind.ALERT_CHANGE_KIND_ACKNOWLEDGED);
  assert.deepEqual(changed.alert, acknowledged);
});

test("an error names the field and the reason", async (test) => {
  const rules = (await connector(test))(AlertRuleServiceClient);
  const request = CreateAlertRuleRequest.fromPartial({ alertRule: { name: "rule", riskThreshold: 101 } });
  await assert.rejects(call(rules.createAlertRule.bind(rules), request), (error: ServiceError) => {
    assert.equal(error.code, status.INVALID_ARGUMENT);
    const [bytes] = error.metadata.get("grpc-status-details-bin");
    const details = Status.decode(bytes as Buffer).details;
    const detail = (name: string) => details.find((any) => any.typeUrl.endsWith(`/google.rpc.${name}`))!.value;
    const info = ErrorInfo.decode(detail("ErrorInfo"));
    assert.equal(`${info.domain}/${info.reason}`, "watchpost.v1/INVALID_FIELD");
    const fields = BadRequest.decode(detail("BadRequest")).fieldViolations.map((violation) => violation.field);
    assert.deepEqual(fields, ["alert_rule.risk_threshold"]);
    return true;
  });
});

type Service<C extends Client> = new (address: string, credentials: ChannelCredentials) => C;

/** Starts a server, and returns what makes clients of it. */
async function connector(test: TestContext) {
  const address = await startServer(test);
  return <C extends Client>(service: Service<C>): C => {
    const client = new service(address, credentials.createInsecure());
    test.after(() => client.close());
    return client;
  };
}

/** Makes a unary call. */
function call<Request, Response>(
  method: (
    request: Request,
    metadata: Metadata,
    options: Partial<CallOptions>,
    callback: (error: ServiceError | null, response: Response) => void,
  ) => ClientUnaryCall,
  request: Request,
): Promise<Response> {
  return new Promise((resolve, reject) => {
    method(request, new Metadata(), deadline(), (error, response) => (error ? reject(error) : resolve(response)));
  });
}

function deadline(): Partial<CallOptions> {
  return { deadline: Date.now() + patience };
}

/** Waits for the next change, past the heartbeats. */
async function nextAlert(responses: AsyncIterator<WatchResponse>): Promise<AlertChange> {
  for (;;) {
    const { done, value } = await responses.next();
    assert.ok(!done, "the watch ended");
    if (value.update?.$case === "alert") return value.update.value;
  }
}
