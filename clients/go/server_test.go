package watchpost_test

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// patience is how long anything may take before a test fails.
const patience = time.Minute

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// dial starts the real server with an empty database and connects to it. Both
// end with the test.
func dial(ctx context.Context, t *testing.T) *grpc.ClientConn {
	t.Helper()
	return connect(ctx, t, start(ctx, t))
}

// connect connects to a server, and waits until it is healthy.
func connect(ctx context.Context, t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })

	health, err := healthpb.NewHealthClient(conn).Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for {
		state, err := health.Recv()
		if err != nil {
			t.Fatalf("the server does not become healthy: %v", err)
		}
		if state.Status == healthpb.HealthCheckResponse_SERVING {
			return conn
		}
	}
}

// start starts the server and returns the address that it says it listens on.
func start(ctx context.Context, t *testing.T) string {
	t.Helper()
	address, _ := serve(ctx, t, t.TempDir(), "127.0.0.1:0")
	return address
}

// serve starts the server on a data folder. Returns the address that it says it listens on, and what kills it.
func serve(ctx context.Context, t *testing.T, data, listen string) (string, func()) {
	t.Helper()
	binary := os.Getenv("WATCHPOST_TEST_SERVER_BIN")
	if binary == "" {
		t.Fatal("WATCHPOST_TEST_SERVER_BIN must name the server's binary")
	}
	server := exec.Command(binary, "serve", "--listen", listen,
		"--data-dir", data, "--database-url", "sqlite://"+filepath.Join(data, "watchpost.db"))
	stderr, err := server.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	address, log := make(chan string, 1), make(chan string, 1)
	go read(bufio.NewScanner(stderr), address, log)
	kill := sync.OnceFunc(func() {
		server.Process.Kill()
		printed := <-log
		server.Wait()
		if t.Failed() {
			t.Logf("the server's log:\n%s", printed)
		}
	})
	t.Cleanup(kill)
	select {
	case found, ok := <-address:
		if ok {
			return found, kill
		}
		t.Fatal("the server ended before it listened")
	case <-ctx.Done():
		t.Fatal("the server does not say where it listens")
	}
	return "", nil
}

// read sends the address that the log tells, and at its end the whole log.
func read(lines *bufio.Scanner, address, log chan<- string) {
	var all strings.Builder
	for lines.Scan() {
		all.WriteString(lines.Text() + "\n")
		if found := listening.FindStringSubmatch(lines.Text()); found != nil {
			address <- found[1]
		}
	}
	close(address)
	log <- all.String()
}
