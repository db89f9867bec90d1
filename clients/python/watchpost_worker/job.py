"""A job as its handler sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from watchpost.v1 import job_workers_pb2 as pb

from watchpost_worker import messages


class JobCancelledError(Exception):
    """Raised by a handler that gives its job up because it was asked to."""


class JobFailedError(Exception):
    """Raised by a handler whose job has failed, to say more than another exception does."""

    def __init__(
        self, message: str, code: str = "FAILED", retryable: bool = True, retry_after: timedelta | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable
        self.retry_after = retry_after


class SnoozeError(Exception):
    """Raised by a handler that gives its job back for later. It does not count as a failure."""

    def __init__(self, delay: timedelta, reason: str = "") -> None:
        super().__init__(reason)
        self.delay = delay
        self.reason = reason


class Job:
    """A job as its handler sees it. Its methods may be called from any thread."""

    def __init__(self, claimed: pb.ClaimedJob, changed: Callable[[], None]) -> None:
        job = claimed.job
        self.id: str = job.id
        self.type: str = job.job_type
        self.queue: str = job.queue_name
        self.attempt: int = job.attempt_number
        """Counts from 1."""
        self.payload: dict[str, object] = messages.plain(job.payload)
        self.deadline: datetime | None = None
        """When the attempt has taken too long, by the server's clock."""
        if claimed.HasField("attempt_deadline_at"):
            self.deadline = claimed.attempt_deadline_at.ToDatetime(UTC)
        self.cancel_reason = ""
        """Why it is to be given up, once it is."""
        self._changed = changed
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._progress: pb.UpdateJobProgressRequest | None = None
        self._lines: list[pb.JobLogLine] = []

    @property
    def cancelled(self) -> bool:
        """Whether the job is to be given up: somebody asked for it, the lease is lost, or the worker shuts down."""
        return self._cancelled.is_set()

    def check_cancelled(self) -> None:
        """Raises `JobCancelledError` if the job is to be given up."""
        if self.cancelled:
            raise JobCancelledError(self.cancel_reason)

    def sleep(self, seconds: float) -> None:
        """Sleeps; raises `JobCancelledError` as soon as the job is to be given up. Not for `async` handlers."""
        if self._cancelled.wait(seconds):
            raise JobCancelledError(self.cancel_reason)

    def progress(
        self,
        percent: int | None = None,
        step: str | None = None,
        done: int | None = None,
        total: int | None = None,
    ) -> None:
        """Tells how far the job is. What is left out stays as it was; what is told too fast is told together."""
        step = None if step is None else messages.text(step, 255)
        told = pb.UpdateJobProgressRequest(
            progress_percent=percent, current_step=step, items_processed=done, items_total=total
        )
        with self._lock:
            if self._progress is None:
                self._progress = told
            else:
                self._progress.MergeFrom(told)
        self._changed()

    def log(self, level: str, message: str, **context: object) -> None:
        """Adds a line to the log of the job: `debug`, `info`, `warning` or `error`."""
        line = messages.line(level, message, context)
        with self._lock:
            self._lines.append(line)
        self._changed()

    def debug(self, message: str, **context: object) -> None:
        """Logs what helps whoever looks for a fault."""
        self.log("debug", message, **context)

    def info(self, message: str, **context: object) -> None:
        """Logs what happens."""
        self.log("info", message, **context)

    def warning(self, message: str, **context: object) -> None:
        """Logs something to look at."""
        self.log("warning", message, **context)

    def error(self, message: str, **context: object) -> None:
        """Logs something that failed."""
        self.log("error", message, **context)

    def cancel(self, reason: str) -> None:
        """Tells the handler to give the job up. For the worker."""
        self.cancel_reason = self.cancel_reason or reason
        self._cancelled.set()

    def take_progress(self) -> pb.UpdateJobProgressRequest | None:
        """What was told of the progress and is to be sent. For the worker."""
        with self._lock:
            progress, self._progress = self._progress, None
        return progress

    def take_lines(self, most: int) -> list[pb.JobLogLine]:
        """Lines that are to be sent. For the worker."""
        with self._lock:
            lines, self._lines = self._lines[:most], self._lines[most:]
        return lines
