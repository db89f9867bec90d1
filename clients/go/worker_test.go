package watchpost_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	pb "watchpost.example/clients/go/gen/watchpost/v1"
	"watchpost.example/clients/go/worker"
)

// jobs is the jobs of a server, as tests use them.
type jobs struct {
	t      *testing.T
	ctx    context.Context
	client pb.JobServiceClient
}

func newJobs(ctx context.Context, t *testing.T, conn *grpc.ClientConn) jobs {
	return jobs{t, ctx, pb.NewJobServiceClient(conn)}
}

func (j jobs) create(job *pb.Job) string {
	j.t.Helper()
	created, err := j.client.CreateJob(j.ctx, &pb.CreateJobRequest{Job: job})
	if err != nil {
		j.t.Fatal(err)
	}
	return created.Id
}

func (j jobs) get(id string) *pb.Job {
	j.t.Helper()
	job, err := j.client.GetJob(j.ctx, &pb.GetJobRequest{Id: id})
	if err != nil {
		j.t.Fatal(err)
	}
	return job
}

// until waits until this is so of a job.
func (j jobs) until(id string, isSo func(*pb.Job) bool) *pb.Job {
	j.t.Helper()
	for {
		job := j.get(id)
		if isSo(job) {
			return job
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (j jobs) ended(id string) *pb.Job {
	j.t.Helper()
	return j.until(id, func(job *pb.Job) bool {
		return job.Status != pb.JobStatus_JOB_STATUS_QUEUED && job.Status != pb.JobStatus_JOB_STATUS_RUNNING
	})
}

func (j jobs) messages(id string) []string {
	j.t.Helper()
	logs, err := j.client.ListJobLogs(j.ctx, &pb.ListJobLogsRequest{JobId: id, PageSize: 1000})
	if err != nil {
		j.t.Fatal(err)
	}
	var messages []string
	for _, line := range logs.Logs {
		messages = append(messages, line.Message)
	}
	return messages
}

// outcomes is why the attempts of a job ended.
func outcomes(job *pb.Job) []string {
	var outcomes []string
	for _, attempt := range job.Attempts {
		name := strings.TrimPrefix(attempt.Outcome.String(), "JOB_ATTEMPT_OUTCOME_")
		outcomes = append(outcomes, strings.ToLower(name))
	}
	return outcomes
}

// expect fails unless a job ended like this.
func expect(t *testing.T, job *pb.Job, want pb.JobStatus, attempts ...string) {
	t.Helper()
	if job.Status != want || !slices.Equal(outcomes(job), attempts) {
		t.Fatalf("want %v by %v, got %v by %v: %v", want, attempts, job.Status, outcomes(job), job)
	}
}

// work has a worker work until the test ends, or the returned function stops it and waits.
func work(t *testing.T, w *worker.Worker) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("the worker ends with %v", err)
			}
		case <-time.After(patience):
			t.Error("the worker does not stop")
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestAWorkerCompletesJobs(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn := dial(ctx, t)
	jobs := newJobs(ctx, t, conn)
	w := worker.New(conn, worker.Options{ID: "w1", Capacity: 8})
	w.Handle("double", func(_ context.Context, job *worker.Job) (any, error) {
		return map[string]any{"doubled": 2 * job.Payload["number"].(float64), "list": []int{1, 2}}, nil
	})
	work(t, w)

	var ids []string
	for number := range 20 {
		payload, _ := structpb.NewStruct(map[string]any{"number": number})
		ids = append(ids, jobs.create(&pb.Job{JobType: "double", Payload: payload}))
	}
	for number, id := range ids {
		job := jobs.ended(id)
		expect(t, job, pb.JobStatus_JOB_STATUS_COMPLETED, "succeeded")
		if doubled := job.Result.AsMap()["doubled"]; doubled != float64(2*number) || job.GetWorkerId() != "w1" {
			t.Fatalf("want %d doubled by w1, got %v", number, job)
		}
	}
}

func TestAWorkerTriesAgainWhatHasFailed(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn := dial(ctx, t)
	jobs := newJobs(ctx, t, conn)
	w := worker.New(conn, worker.Options{Capacity: 4})
	w.Handle("shaky", func(_ context.Context, job *worker.Job) (any, error) {
		switch job.Attempt {
		case 1:
			return nil, errors.New("no luck")
		case 2:
			panic("still none")
		case 3:
			return nil, &worker.Snooze{Delay: time.Millisecond, Reason: "too early"}
		}
		return nil, nil
	})
	w.Handle("hopeless", func(context.Context, *worker.Job) (any, error) {
		return nil, &worker.Failure{Err: errors.New("never"), Code: "HOPELESS", Final: true}
	})
	w.Handle("unfit", func(context.Context, *worker.Job) (any, error) { return []int{1}, nil })
	w.Handle("large", func(context.Context, *worker.Job) (any, error) {
		return map[string]any{"text": strings.Repeat("x", 1<<20)}, nil
	})
	work(t, w)

	soon := &pb.RetryPolicy{InitialDelay: durationpb.New(time.Millisecond), Jitter: proto.Float64(0)}
	job := jobs.ended(jobs.create(&pb.Job{JobType: "shaky", RetryPolicy: soon}))
	expect(t, job, pb.JobStatus_JOB_STATUS_COMPLETED, "failed", "failed", "snoozed", "succeeded")
	if first := job.Attempts[0]; first.GetErrorMessage() != "no luck" || first.GetErrorCode() != "*errors.errorString" {
		t.Fatalf("want the error of the handler, got %v", first)
	}
	if second := job.Attempts[1]; second.GetErrorCode() != "PANIC" || !strings.Contains(second.GetErrorTraceback(), "worker_test.go") {
		t.Fatalf("want where it panicked, got %v", second)
	}
	for jobType, code := range map[string]string{
		"hopeless": "HOPELESS", "unfit": "BAD_RESULT", "large": "INVALID_FIELD",
	} {
		job := jobs.ended(jobs.create(&pb.Job{JobType: jobType}))
		expect(t, job, pb.JobStatus_JOB_STATUS_FAILED, "failed")
		if job.GetErrorCode() != code {
			t.Fatalf("want %s, got %v", code, job)
		}
	}
}

func TestAWorkerTellsProgressAndLogs(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn := dial(ctx, t)
	jobs := newJobs(ctx, t, conn)
	goOn := make(chan struct{})
	w := worker.New(conn, worker.Options{})
	w.Handle("told", func(_ context.Context, job *worker.Job) (any, error) {
		for number := range 1200 {
			job.Info("line", "number", number)
		}
		job.Error("nul \x00 and \xff", "odd", make(chan int), "alone")
		job.SetPercent(10)
		job.SetStep("reading")
		job.SetItems(2, 10)
		<-goOn
		job.Warn("last")
		return nil, nil
	})
	work(t, w)

	id := jobs.create(&pb.Job{JobType: "told"})
	job := jobs.until(id, func(job *pb.Job) bool { return job.GetItemsProcessed() == 2 })
	if job.ProgressPercent != 10 || job.GetCurrentStep() != "reading" || job.GetItemsTotal() != 10 {
		t.Fatalf("want the progress, got %v", job)
	}
	close(goOn)
	job = jobs.ended(id)
	expect(t, job, pb.JobStatus_JOB_STATUS_COMPLETED, "succeeded")
	if messages := jobs.messages(id); job.LogLines != 1202 || len(messages) != 1000 {
		t.Fatalf("want 1202 lines, got %d, and %d on a page", job.LogLines, len(messages))
	}
}

func TestAWorkerGivesUpWhatIsCancelledOrTooLong(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn := dial(ctx, t)
	jobs := newJobs(ctx, t, conn)
	begun, causes := make(chan struct{}), make(chan error, 3)
	w := worker.New(conn, worker.Options{Capacity: 3})
	w.Handle("waits", func(ctx context.Context, job *worker.Job) (any, error) {
		if job.Attempt > 1 {
			return nil, nil
		}
		begun <- struct{}{}
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return nil, ctx.Err()
	})
	w.Handle("ignores", func(ctx context.Context, job *worker.Job) (any, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, nil
	})
	work(t, w)

	for _, jobType := range []string{"waits", "ignores"} {
		id := jobs.create(&pb.Job{JobType: jobType})
		<-begun
		if _, err := jobs.client.CancelJob(ctx, &pb.CancelJobRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
		expect(t, jobs.ended(id), pb.JobStatus_JOB_STATUS_CANCELLED, "cancelled")
	}
	if cause := <-causes; cause != worker.ErrCancelled {
		t.Fatalf("want ErrCancelled, got %v", cause)
	}
	second := durationpb.New(time.Second)
	soon := &pb.RetryPolicy{InitialDelay: durationpb.New(time.Millisecond), Jitter: proto.Float64(0)}
	id := jobs.create(&pb.Job{JobType: "waits", Timeout: second, RetryPolicy: soon})
	<-begun
	expect(t, jobs.ended(id), pb.JobStatus_JOB_STATUS_COMPLETED, "timed_out", "succeeded")
	if cause := <-causes; cause != worker.ErrLeaseLost {
		t.Fatalf("want ErrLeaseLost, got %v", cause)
	}
}

func TestAWorkerThatStopsGivesBackWhatItHasNotFinished(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn := dial(ctx, t)
	jobs := newJobs(ctx, t, conn)
	begun, goOn := make(chan struct{}), make(chan struct{})
	w := worker.New(conn, worker.Options{Capacity: 3, Grace: 2 * time.Second})
	w.Handle("short", func(context.Context, *worker.Job) (any, error) {
		begun <- struct{}{}
		<-goOn
		return nil, nil
	})
	w.Handle("long", func(ctx context.Context, _ *worker.Job) (any, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	w.Handle("forever", func(context.Context, *worker.Job) (any, error) {
		begun <- struct{}{}
		select {}
	})
	stop := work(t, w)

	short := jobs.create(&pb.Job{JobType: "short"})
	left := []string{jobs.create(&pb.Job{JobType: "long"}), jobs.create(&pb.Job{JobType: "forever"})}
	for range 3 {
		<-begun
	}
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	close(goOn)
	expect(t, jobs.ended(short), pb.JobStatus_JOB_STATUS_COMPLETED, "succeeded")
	<-stopped
	for _, id := range left {
		expect(t, jobs.get(id), pb.JobStatus_JOB_STATUS_QUEUED, "released")
	}
}

func TestAWorkerKeepsItsJobsWhenTheServerIsKilled(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	data := t.TempDir()
	address, kill := serve(ctx, t, data, "127.0.0.1:0")
	conn := connect(ctx, t, address)
	jobs := newJobs(ctx, t, conn)
	begun, goOn := make(chan struct{}), make(chan struct{})
	w := worker.New(conn, worker.Options{Capacity: 3, Lease: 30 * time.Second})
	w.Handle("long", func(_ context.Context, job *worker.Job) (any, error) {
		job.Info("before")
		begun <- struct{}{}
		<-goOn
		job.Info("after")
		return nil, nil
	})
	work(t, w)

	var ids []string
	for range 3 {
		ids = append(ids, jobs.create(&pb.Job{JobType: "long"}))
	}
	for _, id := range ids {
		<-begun
		jobs.until(id, func(job *pb.Job) bool { return job.LogLines == 1 })
	}
	kill()
	// They are finished while the server is away, and told when it is back.
	close(goOn)
	serve(ctx, t, data, address)
	again := newJobs(ctx, t, connect(ctx, t, address))
	for _, id := range ids {
		expect(t, again.ended(id), pb.JobStatus_JOB_STATUS_COMPLETED, "succeeded")
		if messages := again.messages(id); !slices.Equal(messages, []string{"before", "after"}) {
			t.Fatalf("want both lines once, got %v", messages)
		}
	}
	more := again.create(&pb.Job{JobType: "long"})
	<-begun
	expect(t, again.ended(more), pb.JobStatus_JOB_STATUS_COMPLETED, "succeeded")
}

func TestAWorkerThatTheServerDoesNotTakeSaysSo(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := worker.New(dial(ctx, t), worker.Options{ID: strings.Repeat("x", 101)})
	if err := w.Run(ctx); err != worker.ErrNoHandler {
		t.Fatalf("want ErrNoHandler, got %v", err)
	}
	w.Handle("t", func(context.Context, *worker.Job) (any, error) { return nil, nil })
	if err := w.Run(ctx); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("want InvalidArgument, got %v", err)
	}
}
