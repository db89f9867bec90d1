package worker

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "watchpost.example/clients/go/gen/watchpost/v1"
)

// A Job is a job as its handler sees it. Its methods may be called from any goroutine.
type Job struct {
	// ID is the id of the job, a UUID.
	ID string
	// Type is what kind of work it is.
	Type string
	// Queue is the queue that it came from.
	Queue string
	// Attempt counts from 1.
	Attempt int
	// Payload is what is to be done.
	Payload map[string]any
	// Deadline is when the attempt has taken too long, by the server's clock. Zero if it may take any time.
	Deadline time.Time

	changed  chan struct{}
	mu       sync.Mutex
	progress *pb.UpdateJobProgressRequest
	lines    []*pb.JobLogLine
}

func newJob(claimed *pb.ClaimedJob) *Job {
	job := &Job{
		ID:      claimed.Job.Id,
		Type:    claimed.Job.JobType,
		Queue:   claimed.Job.GetQueueName(),
		Attempt: int(claimed.Job.AttemptNumber),
		Payload: claimed.Job.Payload.AsMap(),
		changed: make(chan struct{}, 1),
	}
	if claimed.AttemptDeadlineAt != nil {
		job.Deadline = claimed.AttemptDeadlineAt.AsTime()
	}
	return job
}

// SetPercent tells how much of the job is done, in percent.
func (j *Job) SetPercent(percent int) {
	j.tell(&pb.UpdateJobProgressRequest{ProgressPercent: proto.Int32(int32(percent))})
}

// SetStep tells what is being done.
func (j *Job) SetStep(step string) {
	j.tell(&pb.UpdateJobProgressRequest{CurrentStep: proto.String(text(step, 255))})
}

// SetItems tells how many items are done, and how many there are.
func (j *Job) SetItems(done, total int64) {
	j.tell(&pb.UpdateJobProgressRequest{ItemsProcessed: proto.Int64(done), ItemsTotal: proto.Int64(total)})
}

// tell has progress sent. What is told too fast is told together.
func (j *Job) tell(progress *pb.UpdateJobProgressRequest) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.progress == nil {
		j.progress = progress
	} else {
		proto.Merge(j.progress, progress)
	}
	j.nudge()
}

// Debug logs what helps whoever looks for a fault. Pairs are keys and values, as in slog.
func (j *Job) Debug(message string, pairs ...any) {
	j.log(pb.JobLogLevel_JOB_LOG_LEVEL_DEBUG, message, pairs)
}

// Info logs what happens.
func (j *Job) Info(message string, pairs ...any) {
	j.log(pb.JobLogLevel_JOB_LOG_LEVEL_INFO, message, pairs)
}

// Warn logs something to look at.
func (j *Job) Warn(message string, pairs ...any) {
	j.log(pb.JobLogLevel_JOB_LOG_LEVEL_WARNING, message, pairs)
}

// Error logs something that failed.
func (j *Job) Error(message string, pairs ...any) {
	j.log(pb.JobLogLevel_JOB_LOG_LEVEL_ERROR, message, pairs)
}

func (j *Job) log(level pb.JobLogLevel, message string, pairs []any) {
	line := &pb.JobLogLine{Message: text(message, 10_000), Level: level, Timestamp: timestamppb.Now()}
	if line.Message == "" {
		line.Message = " "
	}
	if len(pairs) > 0 {
		line.Context = &structpb.Struct{Fields: map[string]*structpb.Value{}}
	}
	for len(pairs) > 0 {
		key, value := fmt.Sprint(pairs[0]), any(nil)
		if len(pairs) > 1 {
			value = pairs[1]
		}
		pairs = pairs[min(2, len(pairs)):]
		line.Context.Fields[text(key, 1_000)] = plain(value)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
	j.nudge()
}

func (j *Job) nudge() {
	select {
	case j.changed <- struct{}{}:
	default:
	}
}

// takeProgress is what was told of the progress and is to be sent; nil if that is nothing.
func (j *Job) takeProgress() *pb.UpdateJobProgressRequest {
	j.mu.Lock()
	defer j.mu.Unlock()
	progress := j.progress
	j.progress = nil
	return progress
}

// takeLines is the lines that are to be sent.
func (j *Job) takeLines(most int) []*pb.JobLogLine {
	j.mu.Lock()
	defer j.mu.Unlock()
	most = min(most, len(j.lines))
	lines := j.lines[:most:most]
	j.lines = j.lines[most:]
	return lines
}

// plain is a value as JSON has it, or how it is printed.
func plain(value any) *structpb.Value {
	result := &structpb.Value{}
	encoded, err := json.Marshal(value)
	if err == nil {
		err = result.UnmarshalJSON(encoded)
	}
	if err != nil {
		return structpb.NewStringValue(text(fmt.Sprint(value), 10_000))
	}
	return result
}

// object is a result as JSON has it.
func object(result any) (*structpb.Struct, error) {
	if result == nil {
		return nil, nil
	}
	encoded, err := json.Marshal(result)
	if err != nil {
		return nil, err
	}
	object := &structpb.Struct{}
	if err := object.UnmarshalJSON(encoded); err != nil {
		return nil, fmt.Errorf("the result is no object in JSON: %w", err)
	}
	return object, nil
}

// text is what the server takes of a text.
func text(value string, most int) string {
	value = strings.ReplaceAll(strings.ToValidUTF8(value, "\uFFFD"), "\x00", "\uFFFD")
	if len(value) <= most {
		return value
	}
	runes := []rune(value)
	return string(runes[:min(most, len(runes))])
}
