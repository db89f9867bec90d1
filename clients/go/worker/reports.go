package worker

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc"

	pb "watchpost.example/clients/go/gen/watchpost/v1"
)

type stream = grpc.BidiStreamingClient[pb.WorkJobsRequest, pb.WorkJobsResponse]

// reports is what the server is told, kept until it is answered, however often the stream breaks.
type reports struct {
	mu         sync.Mutex
	lastNumber int64
	unanswered map[int64]report
	welcomed   bool                  // by the stream that is open
	queue      []*pb.WorkJobsRequest // to be sent on it
	queued     chan struct{}
	closed     bool
}

type report struct {
	request *pb.WorkJobsRequest
	answer  chan *pb.ReportRefused
}

func newReports() *reports {
	return &reports{unanswered: map[int64]report{}, queued: make(chan struct{}, 1)}
}

// tell tells the server, and waits for its answer: nil if the report was carried out. Gives up when lost is closed.
func (r *reports) tell(lost <-chan struct{}, request *pb.WorkJobsRequest) (*pb.ReportRefused, error) {
	answer := make(chan *pb.ReportRefused, 1)
	r.mu.Lock()
	r.lastNumber++
	number := r.lastNumber
	request.Number = number
	r.unanswered[number] = report{request, answer}
	r.send(request)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.unanswered, number)
	}()
	select {
	case refused := <-answer:
		return refused, nil
	case <-lost:
		return nil, ErrLeaseLost
	}
}

// say tells the server something that has no answer, if it is there.
func (r *reports) say(request *pb.WorkJobsRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.send(request)
}

// send has something sent, if there is a stream for it. Whoever holds the lock must not wait for the server.
func (r *reports) send(request *pb.WorkJobsRequest) {
	if r.welcomed {
		r.queue = append(r.queue, request)
		r.nudge()
	}
}

func (r *reports) nudge() {
	select {
	case r.queued <- struct{}{}:
	default:
	}
}

func (r *reports) answered(number int64, refused *pb.ReportRefused) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if report, ok := r.unanswered[number]; ok {
		delete(r.unanswered, number)
		report.answer <- refused
	}
}

// connected tells again what is not answered, in its order, and then what comes, until ctx is done: the server has
// welcomed the worker.
func (r *reports) connected(ctx context.Context, open stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.welcomed = true
	numbers := make([]int64, 0, len(r.unanswered))
	for number := range r.unanswered {
		numbers = append(numbers, number)
	}
	slices.Sort(numbers)
	for _, number := range numbers {
		r.send(r.unanswered[number].request)
	}
	go r.pump(ctx, open)
}

// pump sends what is queued. A stream that breaks is told by its Recv.
func (r *reports) pump(ctx context.Context, open stream) {
	for {
		r.mu.Lock()
		if ctx.Err() != nil {
			// What is queued is for another stream.
			r.mu.Unlock()
			return
		}
		queue, closed := r.queue, r.closed
		r.queue = nil
		r.mu.Unlock()
		for _, request := range queue {
			if open.Send(request) != nil {
				return
			}
		}
		if closed {
			_ = open.CloseSend()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-r.queued:
		}
	}
}

// disconnected forgets the stream; to be called when its context is done.
func (r *reports) disconnected() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.welcomed, r.queue = false, nil
}

// close says that there is nothing more to tell.
func (r *reports) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.nudge()
}

func (r *reports) isClosed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed
}

// endOf is nil for a stream that the server has ended.
func endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
