"""A worker: takes jobs from the server over one stream, has them handled, and reports what came of them."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
import signal
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from datetime import timedelta

import grpc
from watchpost.v1 import job_workers_pb2 as pb
from watchpost.v1 import job_workers_pb2_grpc

from watchpost_worker import messages
from watchpost_worker.attempt import Attempt
from watchpost_worker.job import Job
from watchpost_worker.reports import Reports

log = logging.getLogger(__name__)

Handler = Callable[[Job], object]

FIRST_BACKOFF = 0.05
"""How long to wait before the first try to connect again, in seconds; then twice as long each time."""

LONGEST_BACKOFF = 5.0

HOPELESS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
}
"""With these the stream would end again and again."""


class Worker:
    """Works jobs until it is stopped.

    Handlers that are plain functions run in a thread each, so that nothing that they do keeps the worker from
    telling the server that it is there. Those that are `async` run in the event loop and must not block it.
    """

    def __init__(
        self,
        server: str,
        *,
        queues: list[str] | None = None,
        capacity: int = 1,
        lease: timedelta = timedelta(seconds=10),
        grace: timedelta = timedelta(seconds=20),
        worker_id: str = "",
    ) -> None:
        """Works up to `capacity` jobs of `queues` at a time.

        The server gives a job to another worker when it has not heard of this one for `lease`. When the worker
        is stopped, jobs have `grace` to finish; those that have not are given back.
        """
        self.server = server
        self.queues = queues or ["default"]
        self.capacity = capacity
        self.lease = lease
        self.grace = grace
        self.worker_id = worker_id or f"{socket.gethostname()}-{os.getpid()}"
        self.handlers: dict[str, Handler] = {}
        self.attempts: dict[str, Attempt] = {}
        """The jobs that it has, by their leases."""
        self.reports = Reports()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stopping = asyncio.Event()

    def handles(self, job_type: str) -> Callable[[Handler], Handler]:
        """Decorates the handler of a type. What it returns is the job's result: a dictionary, or nothing."""

        def register(handler: Handler) -> Handler:
            self.handlers[job_type] = handler
            return handler

        return register

    def run(self) -> None:
        """Works until SIGTERM or SIGINT."""
        asyncio.run(self.work(signals=True))

    def stop(self) -> None:
        """Takes no more jobs, and has `work` end when those that it has are finished or the grace is over."""
        # One that has ended need not be told.
        with suppress(RuntimeError):
            if self.loop:
                self.loop.call_soon_threadsafe(self.stopping.set)

    async def work(self, signals: bool = False) -> None:
        """Works until it is stopped. Raises `grpc.aio.AioRpcError` if the server does not take the worker."""
        if not self.handlers:
            raise ValueError("there is no handler, and the server would give jobs of any type")
        self.loop = asyncio.get_running_loop()
        if signals:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.loop.add_signal_handler(number, self.stopping.set)
        ending = asyncio.create_task(self.end())
        connecting = asyncio.create_task(self.connect())
        try:
            await asyncio.wait({ending, connecting}, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                connecting.result()
            else:
                self.reports.close()
                # The server answers what it was told, and ends the stream.
                await asyncio.wait({connecting}, timeout=5)
        finally:
            for task in (ending, connecting):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def end(self) -> None:
        """Waits until the worker is stopped, and then until it has no jobs any more."""
        await self.stopping.wait()
        log.info("the worker stops: it has %d jobs", len(self.attempts))
        self.reports.say(pb.WorkJobsRequest(capacity=pb.WorkerCapacity(capacity=0)))
        if self.attempts:
            await asyncio.wait(self.tasks(), timeout=self.grace.total_seconds())
        for attempt in self.attempts.values():
            attempt.give_back("the worker shuts down")
        if self.attempts:
            # A server that is away will not be told; its leases expire.
            await asyncio.wait(self.tasks(), timeout=5)

    def tasks(self) -> set[asyncio.Task[None]]:
        """What works on the jobs that it has."""
        return {attempt.task for attempt in self.attempts.values() if attempt.task}

    async def connect(self) -> None:
        """Keeps a stream open, until the worker has stopped."""
        options = [
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.initial_reconnect_backoff_ms", 100),
        ]
        async with grpc.aio.insecure_channel(self.server, options=options) as channel:
            stub = job_workers_pb2_grpc.JobWorkerServiceStub(channel)
            backoff = FIRST_BACKOFF
            while True:
                welcomed = False
                try:
                    async with aclosing(self.stream(stub)) as responses:
                        async for response in responses:
                            welcomed |= response.HasField("welcome")
                            self.hear(response)
                    if self.reports.closed:
                        return
                    log.info("the server has ended the stream; the worker connects again")
                except grpc.aio.AioRpcError as error:
                    if error.code() in HOPELESS:
                        raise
                    log.warning("the stream broke: %s: %s", error.code().name, error.details())
                finally:
                    self.reports.disconnected()
                if welcomed:
                    backoff = FIRST_BACKOFF
                # Not all workers at once.
                await asyncio.sleep(backoff * random.uniform(0.5, 1))  # noqa: S311
                backoff = min(2 * backoff, LONGEST_BACKOFF)

    async def stream(
        self, stub: job_workers_pb2_grpc.JobWorkerServiceStub
    ) -> AsyncGenerator[pb.WorkJobsResponse, None]:
        """The responses of a stream, on which the worker is heard of often enough. Ends when the server does, or
        is not heard of any more.
        """
        held = list(self.attempts.values())
        hello = pb.WorkerHello(
            worker_id=self.worker_id,
            queue_names=self.queues,
            job_types=sorted(self.handlers),
            capacity=0 if self.stopping.is_set() else self.capacity,
            lease_duration=messages.duration(self.lease),
            held=[attempt.lease() for attempt in held],
        )
        call = stub.WorkJobs(self.reports.connected(pb.WorkJobsRequest(hello=hello)))
        heard = asyncio.Event()
        beating: asyncio.Task[None] | None = None
        try:
            async for response in call:
                heard.set()
                if response.HasField("welcome"):
                    interval = response.welcome.heartbeat_interval.ToTimedelta()
                    beating = asyncio.create_task(self.beat(interval, heard, call))
                    self.keep(held, response.welcome)
                    self.reports.send_again()
                yield response
        except asyncio.CancelledError:
            # A call that was cancelled for its silence ends like this too.
            if not (beating and beating.done()):
                raise
        finally:
            if beating:
                beating.cancel()
            call.cancel()

    async def beat(self, interval: timedelta, heard: asyncio.Event, call: grpc.aio.Call) -> None:
        """Tells the server that the worker is there, and gives a server up that does not answer."""
        unheard = 0
        while True:
            await asyncio.sleep(interval.total_seconds())
            unheard = 0 if heard.is_set() else unheard + 1
            if unheard >= 3:
                log.warning("the server is not heard of")
                call.cancel()
                return
            heard.clear()
            self.reports.say(pb.WorkJobsRequest(heartbeat=pb.WorkerHeartbeat()))

    def keep(self, held: list[Attempt], welcome: pb.WorkerWelcome) -> None:
        """Learns which jobs it still has after it was away."""
        for attempt, state in zip(held, welcome.held, strict=False):
            if state.lost:
                attempt.lose("its lease expired while the worker was cut off")
            elif state.cancel_requested:
                attempt.cancel(state.cancel_reason)

    def hear(self, response: pb.WorkJobsResponse) -> None:
        """Does what the server says."""
        match response.WhichOneof("message"):
            case "job":
                self.begin(response.job)
            case "cancel":
                if attempt := self.attempts.get(response.cancel.lease_id):
                    attempt.cancel(response.cancel.reason)
            case "lease_lost":
                if attempt := self.attempts.get(response.lease_lost.lease_id):
                    attempt.lose("the server has taken it back")
            case "accepted":
                for number in response.accepted.numbers:
                    self.reports.answered(number, None)
            case "refused":
                self.reports.answered(response.refused.number, response.refused)
            case "draining":
                log.info("the server shuts down")

    def begin(self, claimed: pb.ClaimedJob) -> None:
        """Has a job handled."""
        for earlier in self.attempts.values():
            if earlier.job.id == claimed.job.id:
                # It would not be given to anybody while the lease of that attempt was good.
                earlier.lose("it was given to this worker again")
        handler = self.handlers[claimed.job.job_type]
        attempt = Attempt(claimed, handler, inspect.iscoroutinefunction(handler), self.reports)
        self.attempts[claimed.lease_id] = attempt
        if self.stopping.is_set():
            attempt.give_back("the worker shuts down")
        attempt.task = asyncio.create_task(attempt.run())
        attempt.task.add_done_callback(lambda _: self.attempts.pop(claimed.lease_id, None))
