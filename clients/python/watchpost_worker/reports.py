"""What a worker tells the server, kept until it is answered, however often the stream breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from watchpost.v1 import job_workers_pb2 as pb

Answer = pb.ReportRefused | None
"""Nothing if a report was carried out, else why it was not."""


class LeaseLostError(Exception):
    """The worker has the job no more, and nothing that it says of it counts."""


@dataclass
class Report:
    """Something told of a job."""

    request: pb.WorkJobsRequest
    lease_id: str
    answer: asyncio.Future[Answer] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Reports:
    """The requests of the stream that is open, and the reports that are not answered."""

    def __init__(self) -> None:
        self.last_number = 0
        self.unanswered: dict[int, Report] = {}
        self.requests: asyncio.Queue[pb.WorkJobsRequest | None] | None = None
        """Those of the stream that is open. `None` ends them."""
        self.welcomed = False
        """Whether the server has said what the worker still has, so that it may be told of it."""
        self.closed = False

    async def tell(self, lease_id: str, request: pb.WorkJobsRequest) -> Answer:
        """Tells the server, and waits for its answer. Raises `LeaseLostError` if the job is lost meanwhile."""
        self.last_number += 1
        request.number = self.last_number
        report = Report(request, lease_id)
        self.unanswered[request.number] = report
        if self.welcomed:
            self.say(request)
        try:
            return await report.answer
        finally:
            self.unanswered.pop(request.number, None)

    def say(self, request: pb.WorkJobsRequest) -> None:
        """Tells the server something that has no answer, if it is there."""
        if self.requests and self.welcomed:
            self.requests.put_nowait(request)

    def answered(self, number: int, answer: Answer) -> None:
        """The server has answered a report."""
        if (report := self.unanswered.get(number)) and not report.answer.done():
            report.answer.set_result(answer)

    def forget(self, lease_id: str) -> None:
        """A job is lost: nothing more is told of it."""
        for report in list(self.unanswered.values()):
            if report.lease_id == lease_id and not report.answer.done():
                report.answer.set_exception(LeaseLostError())

    def connected(self, hello: pb.WorkJobsRequest) -> AsyncIterator[pb.WorkJobsRequest]:
        """The requests of a new stream."""
        self.requests = asyncio.Queue()
        self.requests.put_nowait(hello)
        return requests(self.requests)

    def send_again(self) -> None:
        """The server has welcomed the worker: what it has not answered is told again, in its order."""
        self.welcomed = True
        for number in sorted(self.unanswered):
            if not self.unanswered[number].answer.done():
                self.say(self.unanswered[number].request)
        if self.closed:
            self.close()

    def disconnected(self) -> None:
        """The stream has ended."""
        self.requests = None
        self.welcomed = False

    def close(self) -> None:
        """There is nothing more to tell."""
        self.closed = True
        if self.requests:
            self.requests.put_nowait(None)


async def requests(queue: asyncio.Queue[pb.WorkJobsRequest | None]) -> AsyncIterator[pb.WorkJobsRequest]:
    """What is put into a queue, up to `None`."""
    while (request := await queue.get()) is not None:
        yield request
