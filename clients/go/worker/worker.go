// Package worker works jobs of Watchpost's queue: it takes them over one stream, has them handled, and reports
// what came of them.
//
//	w := worker.New(conn, worker.Options{Capacity: 4})
//	w.Handle("thumbnail", func(ctx context.Context, job *worker.Job) (any, error) {
//		job.Info("making it", "path", job.Payload["path"])
//		job.SetPercent(50)
//		return map[string]any{"path": "/tmp/small.jpg"}, nil
//	})
//	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
//	defer stop()
//	if err := w.Run(ctx); err != nil {
//		log.Fatal(err)
//	}
package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "watchpost.example/clients/go/gen/watchpost/v1"
)

const (
	// firstBackoff is how long to wait before the first try to connect again; then twice as long each time.
	firstBackoff   = 50 * time.Millisecond
	longestBackoff = 5 * time.Second
	// farewell is how long a server has at the end to answer what it was told.
	farewell = 5 * time.Second
)

// ErrNoHandler says that a worker has no handler, so that the server would give it jobs of any type.
var ErrNoHandler = errors.New("worker: there is no handler")

// A Handler works a job. What it returns is the job's result: something that is an object in JSON, or nil. With an
// error the attempt has failed; see Failure and Snooze. Its context is done when the job is to be given up, and
// context.Cause says why: ErrCancelled, ErrLeaseLost or ErrShutdown.
type Handler func(ctx context.Context, job *Job) (any, error)

// Options say what a worker works. The zero value is good.
type Options struct {
	// ID is who works. Defaults to host and process.
	ID string
	// Queues are the queues to take jobs from. Defaults to "default".
	Queues []string
	// Capacity is how many jobs it works at a time. Defaults to 1.
	Capacity int
	// Lease is how long the server waits for a sign of life before it gives a job to another worker. Defaults to
	// 10 s.
	Lease time.Duration
	// Grace is how long jobs may take to finish when the worker is stopped; then they are given back. Defaults
	// to 20 s.
	Grace time.Duration
	// Log is told what happens. Defaults to slog.Default().
	Log *slog.Logger
}

// A Worker works jobs until it is stopped.
type Worker struct {
	client   pb.JobWorkerServiceClient
	options  Options
	handlers map[string]Handler
	reports  *reports

	mu       sync.Mutex
	attempts map[string]*attempt // by their leases
	stopping bool
	left     chan struct{} // when there is one less
}

// New makes a worker that does nothing until it runs.
func New(conn grpc.ClientConnInterface, options Options) *Worker {
	if options.ID == "" {
		host, _ := os.Hostname()
		options.ID = fmt.Sprintf("%s-%d", host, os.Getpid())
	}
	if options.Capacity == 0 {
		options.Capacity = 1
	}
	if options.Lease == 0 {
		options.Lease = 10 * time.Second
	}
	if options.Grace == 0 {
		options.Grace = 20 * time.Second
	}
	if options.Log == nil {
		options.Log = slog.Default()
	}
	return &Worker{
		client:   pb.NewJobWorkerServiceClient(conn),
		options:  options,
		handlers: map[string]Handler{},
		reports:  newReports(),
		attempts: map[string]*attempt{},
		left:     make(chan struct{}, 1),
	}
}

// Handle has jobs of a type worked by a handler. To be called before Run.
func (w *Worker) Handle(jobType string, handler Handler) {
	w.handlers[jobType] = handler
}

// Run works until ctx is done. Then the worker takes no more jobs; those that it has may finish, and those that do
// not are given back. Returns an error only if the server does not take the worker.
func (w *Worker) Run(ctx context.Context) error {
	if len(w.handlers) == 0 {
		return ErrNoHandler
	}
	connected, disconnect := context.WithCancel(context.WithoutCancel(ctx))
	defer disconnect()
	ended := make(chan error, 1)
	go func() { ended <- w.connect(connected) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	w.finish()
	w.reports.close()
	// The server answers what it was told, and ends the stream.
	select {
	case err := <-ended:
		return err
	case <-time.After(farewell):
		return nil
	}
}

// finish waits until the worker has no jobs any more, or gives them back.
func (w *Worker) finish() {
	w.mu.Lock()
	w.stopping = true
	w.options.Log.Info("the worker stops", "jobs", len(w.attempts))
	w.mu.Unlock()
	w.reports.say(&pb.WorkJobsRequest{Message: &pb.WorkJobsRequest_Capacity{Capacity: &pb.WorkerCapacity{}}})
	if w.waitFor(w.options.Grace) {
		return
	}
	for _, attempt := range w.held() {
		attempt.giveBack()
	}
	// A server that is away is not told; its leases expire.
	w.waitFor(farewell)
}

// waitFor waits until the worker has no jobs, and says whether that is so in time.
func (w *Worker) waitFor(most time.Duration) bool {
	over := time.After(most)
	for len(w.held()) > 0 {
		select {
		case <-w.left:
		case <-over:
			return false
		}
	}
	return true
}

func (w *Worker) held() []*attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := make([]*attempt, 0, len(w.attempts))
	for _, attempt := range w.attempts {
		held = append(held, attempt)
	}
	return held
}

// connect keeps a stream open, until the worker has nothing more to tell.
func (w *Worker) connect(ctx context.Context) error {
	backoff := firstBackoff
	for {
		welcomed, err := w.stream(ctx)
		if err == nil && w.reports.isClosed() || ctx.Err() != nil {
			return nil
		}
		switch status.Code(err) {
		case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
			return err
		}
		w.options.Log.Warn("the stream has ended; the worker connects again", "error", err)
		if welcomed {
			backoff = firstBackoff
		}
		// Not all workers at once.
		pause := backoff/2 + rand.N(backoff/2)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		backoff = min(2*backoff, longestBackoff)
	}
}

// stream has one stream open until it ends, and says whether the server welcomed the worker.
func (w *Worker) stream(ctx context.Context) (welcomed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		w.reports.disconnected()
	}()
	stream, err := w.client.WorkJobs(ctx, grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	held := w.held()
	if err := stream.Send(w.hello(held)); err != nil {
		// What is wrong is what Recv says.
		_, err := stream.Recv()
		return false, err
	}
	heard := make(chan struct{}, 1)
	for {
		response, err := stream.Recv()
		if err != nil {
			return welcomed, endOf(err)
		}
		select {
		case heard <- struct{}{}:
		default:
		}
		if welcome := response.GetWelcome(); welcome != nil {
			welcomed = true
			for at, state := range welcome.Held {
				held[at].keep(state)
			}
			w.reports.connected(ctx, stream)
			go w.beat(ctx, cancel, welcome.HeartbeatInterval.AsDuration(), heard)
		}
		w.hear(response)
	}
}

func (w *Worker) hello(held []*attempt) *pb.WorkJobsRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	hello := &pb.WorkerHello{
		WorkerId:      w.options.ID,
		QueueNames:    w.options.Queues,
		Capacity:      int32(w.options.Capacity),
		LeaseDuration: durationpb.New(w.options.Lease),
	}
	if w.stopping {
		hello.Capacity = 0
	}
	for jobType := range w.handlers {
		hello.JobTypes = append(hello.JobTypes, jobType)
	}
	slices.Sort(hello.JobTypes)
	for _, attempt := range held {
		hello.Held = append(hello.Held, attempt.lease())
	}
	return &pb.WorkJobsRequest{Message: &pb.WorkJobsRequest_Hello{Hello: hello}}
}

// beat tells the server that the worker is there, and gives a server up that does not answer.
func (w *Worker) beat(ctx context.Context, giveUp func(), interval time.Duration, heard <-chan struct{}) {
	ticker := time.NewTicker(max(interval, 10*time.Millisecond))
	defer ticker.Stop()
	for unheard := 0; unheard < 3; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		select {
		case <-heard:
			unheard = 0
		default:
			unheard++
		}
		w.reports.say(&pb.WorkJobsRequest{Message: &pb.WorkJobsRequest_Heartbeat{Heartbeat: &pb.WorkerHeartbeat{}}})
	}
	w.options.Log.Warn("the server is not heard of")
	giveUp()
}

// hear does what the server says.
func (w *Worker) hear(response *pb.WorkJobsResponse) {
	switch said := response.Message.(type) {
	case *pb.WorkJobsResponse_Job:
		w.begin(said.Job)
	case *pb.WorkJobsResponse_Cancel:
		if attempt := w.attempt(said.Cancel.LeaseId); attempt != nil {
			attempt.cancel(ErrCancelled)
		}
	case *pb.WorkJobsResponse_LeaseLost:
		if attempt := w.attempt(said.LeaseLost.LeaseId); attempt != nil {
			attempt.lose()
		}
	case *pb.WorkJobsResponse_Accepted:
		for _, number := range said.Accepted.Numbers {
			w.reports.answered(number, nil)
		}
	case *pb.WorkJobsResponse_Refused:
		w.reports.answered(said.Refused.Number, said.Refused)
	case *pb.WorkJobsResponse_Draining:
		w.options.Log.Info("the server shuts down")
	}
}

func (w *Worker) attempt(leaseID string) *attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.attempts[leaseID]
}

// begin has a job handled.
func (w *Worker) begin(claimed *pb.ClaimedJob) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, earlier := range w.attempts {
		if earlier.job.ID == claimed.Job.Id {
			// It would not be given to anybody while the lease of that attempt was good.
			earlier.lose()
		}
	}
	attempt := newAttempt(claimed, w.handlers[claimed.Job.JobType], w.reports, w.options.Log)
	if w.stopping {
		attempt.giveBack()
	}
	w.attempts[claimed.LeaseId] = attempt
	go func() {
		attempt.run()
		w.mu.Lock()
		delete(w.attempts, claimed.LeaseId)
		w.mu.Unlock()
		select {
		case w.left <- struct{}{}:
		default:
		}
	}()
}
