// Package watchpost_test shows that a Go program with generated stubs can do
// the main job: be told of an alert as it happens, and act on it.
package watchpost_test

import (
	"context"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "watchpost.example/clients/go/gen/watchpost/v1"
)

func TestAnAlertIsWatchedAndAcknowledged(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn := dial(ctx, t)

	camera, err := pb.NewCameraServiceClient(conn).CreateCamera(ctx, &pb.CreateCameraRequest{
		Camera: &pb.Camera{Name: "Front Door"},
	})
	if err != nil {
		t.Fatal(err)
	}
	rule, err := pb.NewAlertRuleServiceClient(conn).CreateAlertRule(ctx, &pb.CreateAlertRuleRequest{
		AlertRule: &pb.AlertRule{
			Name:          "Person at night",
			Severity:      pb.Severity_SEVERITY_HIGH,
			ObjectTypes:   []string{"person"},
			MinConfidence: proto.Float64(0.8),
			CameraIds:     []string{camera.Id},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	watch := openWatch(ctx, t, conn)

	ingested, err := pb.NewEventServiceClient(conn).IngestEvent(ctx, &pb.IngestEventRequest{
		Event:      &pb.Event{CameraId: camera.Id, RiskScore: proto.Int32(80)},
		Detections: []*pb.Detection{{ObjectType: proto.String("person"), Confidence: proto.Float64(0.9)}},
		RequestId:  "1",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(ingested.Alerts) != 1 || len(ingested.Detections) != 1 || ingested.Replayed {
		t.Fatalf("want one alert and one detection, got %v", ingested)
	}

	raised := nextAlert(t, watch)
	if raised.Kind != pb.AlertChangeKind_ALERT_CHANGE_KIND_CREATED || !proto.Equal(raised.Alert, ingested.Alerts[0]) {
		t.Fatalf("want the alert %v as created, got %v", ingested.Alerts[0], raised)
	}
	if raised.Alert.GetRuleId() != rule.Id || raised.Alert.EventId != ingested.Event.Id {
		t.Fatalf("want an alert of rule %s and event %d, got %v", rule.Id, ingested.Event.Id, raised.Alert)
	}

	acknowledged, err := pb.NewAlertServiceClient(conn).AcknowledgeAlert(ctx, &pb.AcknowledgeAlertRequest{
		Id:                raised.Alert.Id,
		ExpectedVersionId: proto.Int32(raised.Alert.VersionId),
	})
	if err != nil {
		t.Fatal(err)
	}
	changed := nextAlert(t, watch)
	if changed.Kind != pb.AlertChangeKind_ALERT_CHANGE_KIND_ACKNOWLEDGED || !proto.Equal(changed.Alert, acknowledged) {
		t.Fatalf("want the alert %v as acknowledged, got %v", acknowledged, changed)
	}
}

func TestAnErrorNamesTheFieldAndTheReason(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	_, err := pb.NewAlertRuleServiceClient(dial(ctx, t)).CreateAlertRule(ctx, &pb.CreateAlertRuleRequest{
		AlertRule: &pb.AlertRule{Name: "rule", RiskThreshold: proto.Int32(101)},
	})
	if status.Code(err) != codes.InvalidArgument {
		t.Fatalf("want InvalidArgument, got %v", err)
	}
	var field, reason string
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.BadRequest:
			field = detail.FieldViolations[0].Field
		case *errdetails.ErrorInfo:
			reason = detail.Domain + "/" + detail.Reason
		}
	}
	if field != "alert_rule.risk_threshold" || reason != "watchpost.v1/INVALID_FIELD" {
		t.Fatalf("got field %q and reason %q of %v", field, reason, err)
	}
}

// openWatch opens a watch of alerts. It is open when this returns.
func openWatch(ctx context.Context, t *testing.T, conn *grpc.ClientConn) pb.MonitorService_WatchClient {
	t.Helper()
	watch, err := pb.NewMonitorServiceClient(conn).Watch(ctx, &pb.WatchRequest{Topics: []pb.Topic{pb.Topic_TOPIC_ALERTS}})
	if err != nil {
		t.Fatal(err)
	}
	first, err := watch.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if first.GetHeartbeat() == nil || first.Cursor == "" {
		t.Fatalf("want a heartbeat with a cursor first, got %v", first)
	}
	return watch
}

// nextAlert waits for the next change, past the heartbeats.
func nextAlert(t *testing.T, watch pb.MonitorService_WatchClient) *pb.AlertChange {
	t.Helper()
	for {
		response, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if change := response.GetAlert(); change != nil {
			return change
		}
	}
}
