"""Jobs as the tests of workers use them, and a worker beside a test."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.struct_pb2 import Struct
from watchpost.v1 import job_attempts_pb2, job_logs_pb2, job_service_pb2, job_service_pb2_grpc, jobs_pb2

from watchpost_worker import Worker

SECONDS = 60
"""How long anything may take before a test fails."""

RUNNING = jobs_pb2.JOB_STATUS_RUNNING
QUEUED = jobs_pb2.JOB_STATUS_QUEUED
COMPLETED = jobs_pb2.JOB_STATUS_COMPLETED
FAILED = jobs_pb2.JOB_STATUS_FAILED
CANCELLED = jobs_pb2.JOB_STATUS_CANCELLED


class Jobs:
    """The jobs of a server."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = job_service_pb2_grpc.JobServiceStub(channel)

    def create(self, job_type: str, payload: dict[str, object] | None = None, **fields: object) -> str:
        """Puts a job into its queue, and returns its id."""
        struct = Struct()
        struct.update(payload or {})
        job = jobs_pb2.Job(job_type=job_type, payload=struct, **fields)
        return self.stub.CreateJob(job_service_pb2.CreateJobRequest(job=job)).id

    def get(self, job_id: str) -> jobs_pb2.Job:
        """The job as it is."""
        return self.stub.GetJob(job_service_pb2.GetJobRequest(id=job_id))

    def cancel(self, job_id: str, reason: str = "") -> None:
        """Asks for a job to be cancelled."""
        self.stub.CancelJob(job_service_pb2.CancelJobRequest(id=job_id, actor="ann", reason=reason))

    def until(self, job_id: str, is_so: Callable[[jobs_pb2.Job], bool]) -> jobs_pb2.Job:
        """Waits until this is so of a job."""
        end = time.monotonic() + SECONDS
        while not is_so(job := self.get(job_id)):
            assert time.monotonic() < end, job
            time.sleep(0.01)
        return job

    def ended(self, job_id: str) -> jobs_pb2.Job:
        """Waits until a job is finished."""
        return self.until(job_id, lambda job: job.status in (COMPLETED, FAILED, CANCELLED))

    def log(self, job_id: str) -> list[job_logs_pb2.JobLog]:
        """The lines of a job's log."""
        request = job_logs_pb2.ListJobLogsRequest(job_id=job_id, page_size=1000)
        return list(self.stub.ListJobLogs(request).logs)

    def outcomes(self, job_id: str) -> list[str]:
        """Why the attempts of a job ended."""
        attempts = self.get(job_id).attempts
        names = (job_attempts_pb2.JobAttemptOutcome.Name(attempt.outcome) for attempt in attempts)
        return [name.removeprefix("JOB_ATTEMPT_OUTCOME_").lower() for name in names]


@contextmanager
def working(worker: Worker) -> Iterator[threading.Thread]:
    """Has a worker work beside the test; it is stopped at the end."""
    thread = threading.Thread(target=lambda: asyncio.run(worker.work()), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        worker.stop()
        thread.join(SECONDS)
        assert not thread.is_alive(), "the worker does not stop"
