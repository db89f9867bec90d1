"""The work on one job: its handler runs, its progress and log are told, and what came of it is reported."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from watchpost.v1 import job_workers_pb2 as pb

from watchpost_worker import messages
from watchpost_worker.job import Job, JobCancelledError, JobFailedError, SnoozeError
from watchpost_worker.reports import Answer, LeaseLostError, Reports

log = logging.getLogger(__name__)

LINES = 500
"""How many lines are sent at a time."""

PASSING = {
    "DATABASE_AWAY",
    "SERVER_BUSY",
    "STORAGE_FULL",
    "STORAGE_FAILING",
    "CONTENTION",
    "STARTING",
    "SHUTTING_DOWN",
}
"""Reports that are refused for these reasons are told again."""

AGAIN = 0.25
"""After how many seconds."""


class Attempt:
    """The work on one job, under one lease."""

    def __init__(
        self, claimed: pb.ClaimedJob, handler: Callable[[Job], object], is_async: bool, reports: Reports
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.lease_id = claimed.lease_id
        self.handler = handler
        self.is_async = is_async
        self.reports = reports
        self.changed = asyncio.Event()
        self.job = Job(claimed, lambda: self.from_thread(self.changed.set))
        self.task: asyncio.Task[None] | None = None
        self.handling: asyncio.Future[object] | None = None
        self.lines_sent = 0
        self.cancel_requested = False
        self.is_handled = False
        self.lost = False
        self.given_back: str | None = None

    def lease(self) -> pb.JobLease:
        """How the server knows it."""
        return pb.JobLease(job_id=self.job.id, lease_id=self.lease_id)

    def cancel(self, reason: str) -> None:
        """Somebody asked for the job to be cancelled."""
        self.cancel_requested = True
        self.stop(reason or "cancelled")

    def lose(self, reason: str) -> None:
        """The worker has the job no more."""
        log.warning("job %s is lost: %s", self.job.id, reason)
        self.lost = True
        self.reports.forget(self.lease_id)
        self.stop(reason)

    def give_back(self, reason: str) -> None:
        """The job is not finished here."""
        self.given_back = reason
        self.stop(reason)

    def stop(self, reason: str) -> None:
        """Tells the handler to give the job up. One that runs in a thread must look for itself, but is not waited
        for if nothing that it does counts any more.
        """
        self.job.cancel(reason)
        if self.handling and (self.is_async or self.lost or self.given_back is not None):
            self.handling.cancel()

    async def run(self) -> None:
        """Works on the job until all is told."""
        telling = asyncio.create_task(self.tell_changes())
        try:
            outcome = await self.handle()
            self.is_handled = True
            self.changed.set()
            await telling
            await self.tell_last(outcome)
        except LeaseLostError:
            pass
        except Exception:
            # Else the job would stay until its lease expires, and nobody knew why.
            log.exception("job %s cannot be reported", self.job.id)
        finally:
            telling.cancel()

    async def handle(self) -> pb.WorkJobsRequest:
        """Runs the handler. Returns what is to be reported."""
        if self.job.cancelled:
            return self.given_up()
        if self.is_async:
            self.handling = asyncio.ensure_future(self.handler(self.job))
        else:
            self.handling = self.loop.create_future()
            threading.Thread(target=self.thread, name=f"job-{self.job.id}", daemon=True).start()
        try:
            result = await self.handling
            return pb.WorkJobsRequest(complete=pb.JobCompletion(result=messages.struct(result)))
        except (asyncio.CancelledError, JobCancelledError) as error:
            return self.given_up() if self.job.cancelled else pb.WorkJobsRequest(fail=messages.failure(error))
        except SnoozeError as snoozed:
            release = pb.ReleaseJobRequest(
                reason=messages.text(snoozed.reason, 1_000), snooze=messages.duration(snoozed.delay)
            )
            return pb.WorkJobsRequest(release=release)
        except JobFailedError as error:
            failure = messages.failure(error, error.code, error.retryable, error.retry_after)
            return pb.WorkJobsRequest(fail=failure)
        except Exception as error:
            log.info("job %s failed: %r", self.job.id, error)
            return pb.WorkJobsRequest(fail=messages.failure(error))

    def thread(self) -> None:
        """Runs a handler that is a plain function."""
        try:
            result, error = self.handler(self.job), None
        except BaseException as raised:
            result, error = None, raised
        self.from_thread(self.handled, result, error)

    def from_thread(self, call: Callable[..., None], *arguments: object) -> None:
        """Calls something in the event loop. A handler may outlive it."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call, *arguments)

    def handled(self, result: object, error: BaseException | None) -> None:
        """A handler that ran in a thread has ended."""
        if self.handling is None or self.handling.done():
            return
        if error is None:
            self.handling.set_result(result)
        elif isinstance(error, Exception):
            self.handling.set_exception(error)
        else:
            self.handling.set_exception(RuntimeError(repr(error)))

    def given_up(self) -> pb.WorkJobsRequest:
        """That the handler has given the job up because it was asked to."""
        if self.cancel_requested:
            return pb.WorkJobsRequest(acknowledge_cancellation=pb.AcknowledgeJobCancellationRequest())
        return self.released(self.job.cancel_reason)

    def released(self, reason: str) -> pb.WorkJobsRequest:
        """That the job is given back."""
        return pb.WorkJobsRequest(release=pb.ReleaseJobRequest(reason=messages.text(reason, 1_000)))

    async def tell_changes(self) -> None:
        """Tells progress and lines as they come, one report at a time, so that the newest is told next."""
        while not self.is_handled:
            await self.changed.wait()
            self.changed.clear()
            await self.tell_progress()
            await self.tell_lines()

    async def tell_progress(self) -> None:
        """Tells how far the job is, if that is new."""
        if progress := self.job.take_progress():
            await self.tell(pb.WorkJobsRequest(progress=progress))

    async def tell_lines(self) -> None:
        """Sends the lines that are not sent yet."""
        while lines := self.job.take_lines(LINES):
            logs = pb.AppendJobLogsRequest(lines=lines, offset=self.lines_sent)
            # A break may leave open whether the server has them: with the offset it takes them once.
            if await self.tell(pb.WorkJobsRequest(logs=logs)) is None:
                self.lines_sent += len(lines)

    async def tell_last(self, outcome: pb.WorkJobsRequest) -> None:
        """Tells what is left, and what came of the job."""
        await self.tell_progress()
        await self.tell_lines()
        refused = await self.tell(outcome)
        if refused is None or refused.reason == "LEASE_LOST":
            return
        if refused.reason == "JOB_CANCELLED":
            acknowledge = pb.AcknowledgeJobCancellationRequest()
            await self.tell(pb.WorkJobsRequest(acknowledge_cancellation=acknowledge))
        elif outcome.HasField("complete"):
            # Its result, most likely: it would be refused the next time too.
            failure = pb.FailJobRequest(
                error_message=messages.text(refused.message, 10_000), error_code=refused.reason, retryable=False
            )
            await self.tell(pb.WorkJobsRequest(fail=failure))
        else:
            await self.tell(self.released(refused.message))

    async def tell(self, request: pb.WorkJobsRequest) -> Answer:
        """Tells the server something of the job, again if the reason why it refuses it passes."""
        message = getattr(request, request.WhichOneof("message"))
        message.job_id, message.lease_id = self.job.id, self.lease_id
        while True:
            if self.lost:
                raise LeaseLostError
            refused = await self.reports.tell(self.lease_id, request)
            if refused is None:
                return None
            if refused.reason not in PASSING:
                log.warning("job %s: refused: %s: %s", self.job.id, refused.reason, refused.message)
                return refused
            await asyncio.sleep(AGAIN)
