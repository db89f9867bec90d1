package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "watchpost.example/clients/go/gen/watchpost/v1"
)

const (
	// lines is how many lines are sent at a time.
	lines = 500
	// again is after how long a report is told again that was refused for a reason that passes.
	again = 250 * time.Millisecond
)

// Why a job is to be given up, as context.Cause tells its handler.
var (
	// ErrCancelled says that somebody asked for the job to be cancelled.
	ErrCancelled = errors.New("worker: the job is cancelled")
	// ErrLeaseLost says that the worker has the job no more: it took too long, or the worker was not heard of.
	ErrLeaseLost = errors.New("worker: the lease of the job is lost")
	// ErrShutdown says that the worker shuts down and gives the job back.
	ErrShutdown = errors.New("worker: the worker shuts down")
)

// A Failure is an error that says more about how an attempt has failed.
type Failure struct {
	Err error
	// Code is what kind of error it is, for programs, at most 100 characters. Defaults to the error's type.
	Code string
	// Final says that trying again does not help.
	Final bool
	// RetryAfter is after how long to try again. 0: as the job's retry policy says.
	RetryAfter time.Duration
}

func (f *Failure) Error() string { return f.Err.Error() }

func (f *Failure) Unwrap() error { return f.Err }

// A Snooze is an error that gives a job back for later. It does not count as a failure.
type Snooze struct {
	Delay  time.Duration
	Reason string
}

func (s *Snooze) Error() string { return "snoozed: " + s.Reason }

// A panicked handler, and where.
type panicked struct {
	value any
	stack string
}

func (p *panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// attempt is the work on one job, under one lease.
type attempt struct {
	job      *Job
	leaseID  string
	handler  Handler
	reports  *reports
	log      *slog.Logger
	ctx      context.Context
	cancel   context.CancelCauseFunc
	lost     chan struct{}
	given    chan struct{} // closed when the job is given back
	loseOnce sync.Once
	giveOnce sync.Once
	sent     int64 // lines
}

func newAttempt(claimed *pb.ClaimedJob, handler Handler, reports *reports, log *slog.Logger) *attempt {
	ctx, cancel := context.WithCancelCause(context.Background())
	return &attempt{
		job:     newJob(claimed),
		leaseID: claimed.LeaseId,
		handler: handler,
		reports: reports,
		log:     log.With("job", claimed.Job.Id),
		ctx:     ctx,
		cancel:  cancel,
		lost:    make(chan struct{}),
		given:   make(chan struct{}),
	}
}

func (a *attempt) lease() *pb.JobLease {
	return &pb.JobLease{JobId: a.job.ID, LeaseId: a.leaseID}
}

// keep learns whether the worker still has the job after it was away.
func (a *attempt) keep(state *pb.JobLeaseState) {
	if state.Lost {
		a.lose()
	} else if state.CancelRequested {
		a.cancel(ErrCancelled)
	}
}

// lose has nothing more told of the job: the worker has it no more.
func (a *attempt) lose() {
	a.loseOnce.Do(func() {
		a.log.Warn("the lease is lost")
		a.cancel(ErrLeaseLost)
		close(a.lost)
	})
}

// giveBack gives the job back, whatever its handler does.
func (a *attempt) giveBack() {
	a.giveOnce.Do(func() {
		a.cancel(ErrShutdown)
		close(a.given)
	})
}

// run works on the job until all is told.
func (a *attempt) run() {
	defer a.cancel(nil)
	handled := make(chan *pb.WorkJobsRequest, 1)
	select {
	case <-a.given:
		// It came when the worker was stopping.
	default:
		go func() { handled <- a.outcome(a.handle()) }()
	}
	for {
		select {
		case outcome := <-handled:
			a.tellLast(outcome)
			return
		case <-a.given:
			a.tellLast(a.released(ErrShutdown.Error()))
			return
		case <-a.lost:
			return
		case <-a.job.changed:
			if a.tellChanges() != nil {
				return
			}
		}
	}
}

// handle runs the handler.
func (a *attempt) handle() (result any, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &panicked{value, string(debug.Stack())}
		}
	}()
	return a.handler(a.ctx, a.job)
}

// outcome is what is to be reported of what a handler returned.
func (a *attempt) outcome(result any, err error) *pb.WorkJobsRequest {
	if err == nil {
		object, unfit := object(result)
		if unfit == nil {
			completion := &pb.JobCompletion{Result: object}
			return &pb.WorkJobsRequest{Message: &pb.WorkJobsRequest_Complete{Complete: completion}}
		}
		err = &Failure{Err: unfit, Code: "BAD_RESULT", Final: true}
	}
	cause := context.Cause(a.ctx)
	var snooze *Snooze
	switch {
	case errors.As(err, &snooze):
		release := a.released(snooze.Reason)
		release.GetRelease().Snooze = durationpb.New(snooze.Delay)
		return release
	case cause == nil || !gaveUp(err, cause):
		a.log.Info("the attempt failed", "error", err)
		return failed(err)
	case cause == ErrCancelled:
		return acknowledged()
	default:
		return a.released(cause.Error())
	}
}

// gaveUp says whether a handler has returned because its context was done.
func gaveUp(err, cause error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, cause)
}

func acknowledged() *pb.WorkJobsRequest {
	acknowledge := &pb.AcknowledgeJobCancellationRequest{}
	return &pb.WorkJobsRequest{
		Message: &pb.WorkJobsRequest_AcknowledgeCancellation{AcknowledgeCancellation: acknowledge},
	}
}

func (a *attempt) released(reason string) *pb.WorkJobsRequest {
	release := &pb.ReleaseJobRequest{Reason: text(reason, 1_000)}
	return &pb.WorkJobsRequest{Message: &pb.WorkJobsRequest_Release{Release: release}}
}

func failed(err error) *pb.WorkJobsRequest {
	fail := &pb.FailJobRequest{ErrorMessage: text(err.Error(), 10_000)}
	if fail.ErrorMessage == "" {
		fail.ErrorMessage = fmt.Sprintf("%T", err)
	}
	code := ""
	var failure *Failure
	var crash *panicked
	if errors.As(err, &failure) {
		code = failure.Code
		fail.Retryable = proto.Bool(!failure.Final)
		if failure.RetryAfter > 0 {
			fail.RetryAfter = durationpb.New(failure.RetryAfter)
		}
		err = failure.Err
	} else if errors.As(err, &crash) {
		code = "PANIC"
		fail.ErrorTraceback = proto.String(text(crash.stack, 100_000))
	}
	if code == "" {
		code = reflect.TypeOf(err).String()
	}
	fail.ErrorCode = proto.String(text(code, 100))
	return &pb.WorkJobsRequest{Message: &pb.WorkJobsRequest_Fail{Fail: fail}}
}

// tellChanges tells progress and lines, one report at a time, so that the newest is told next.
func (a *attempt) tellChanges() error {
	if progress := a.job.takeProgress(); progress != nil {
		request := &pb.WorkJobsRequest{Message: &pb.WorkJobsRequest_Progress{Progress: progress}}
		if _, err := a.tell(request); err != nil {
			return err
		}
	}
	for {
		more := a.job.takeLines(lines)
		if len(more) == 0 {
			return nil
		}
		// A break may leave open whether the server has them: with the offset it takes them once.
		logs := &pb.AppendJobLogsRequest{Lines: more, Offset: proto.Int64(a.sent)}
		refused, err := a.tell(&pb.WorkJobsRequest{Message: &pb.WorkJobsRequest_Logs{Logs: logs}})
		if err != nil {
			return err
		}
		if refused == nil {
			a.sent += int64(len(more))
		}
	}
}

// tellLast tells what is left, and what came of the job.
func (a *attempt) tellLast(outcome *pb.WorkJobsRequest) {
	if a.tellChanges() != nil {
		return
	}
	refused, err := a.tell(outcome)
	if err != nil || refused == nil || refused.Reason == "LEASE_LOST" {
		return
	}
	switch {
	case refused.Reason == "JOB_CANCELLED":
		outcome = acknowledged()
	case outcome.GetComplete() != nil:
		// Its result, most likely: it would be refused the next time too.
		outcome = failed(&Failure{Err: errors.New(refused.Message), Code: refused.Reason, Final: true})
	default:
		outcome = a.released(refused.Message)
	}
	_, _ = a.tell(outcome)
}

// tell tells the server something of the job, again if the reason why it refuses it passes.
func (a *attempt) tell(request *pb.WorkJobsRequest) (*pb.ReportRefused, error) {
	name(request, a.lease())
	for {
		refused, err := a.reports.tell(a.lost, request)
		if err != nil || refused == nil {
			return refused, err
		}
		switch refused.Reason {
		case "DATABASE_AWAY", "SERVER_BUSY", "STORAGE_FULL", "STORAGE_FAILING", "CONTENTION", "STARTING", "SHUTTING_DOWN":
		default:
			a.log.Warn("a report was refused", "reason", refused.Reason, "message", refused.Message)
			return refused, nil
		}
		select {
		case <-a.lost:
			return nil, ErrLeaseLost
		case <-time.After(again):
		}
	}
}

// name says in a report which job it is about.
func name(request *pb.WorkJobsRequest, lease *pb.JobLease) {
	switch message := request.Message.(type) {
	case *pb.WorkJobsRequest_Progress:
		message.Progress.JobId, message.Progress.LeaseId = lease.JobId, lease.LeaseId
	case *pb.WorkJobsRequest_Logs:
		message.Logs.JobId, message.Logs.LeaseId = lease.JobId, lease.LeaseId
	case *pb.WorkJobsRequest_Complete:
		message.Complete.JobId, message.Complete.LeaseId = lease.JobId, lease.LeaseId
	case *pb.WorkJobsRequest_Fail:
		message.Fail.JobId, message.Fail.LeaseId = lease.JobId, lease.LeaseId
	case *pb.WorkJobsRequest_Release:
		message.Release.JobId, message.Release.LeaseId = lease.JobId, lease.LeaseId
	case *pb.WorkJobsRequest_AcknowledgeCancellation:
		acknowledge := message.AcknowledgeCancellation
		acknowledge.JobId, acknowledge.LeaseId = lease.JobId, lease.LeaseId
	}
}
