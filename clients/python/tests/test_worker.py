"""A worker in Python works jobs of the real server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from tests.jobs import CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, SECONDS, Jobs, working
from tests.server import Server
from watchpost_worker import Job, JobFailedError, SnoozeError, Worker

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def jobs(channel: grpc.Channel) -> Jobs:
    return Jobs(channel)


def new_worker(server: Server, **options: object) -> Worker:
    return Worker(server.address, worker_id="w1", **{"grace": timedelta(seconds=5), **options})


def test_handlers_complete_jobs_with_their_results(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server, capacity=8)

    @worker.handles("plain")
    def plain(job: Job) -> dict[str, object]:
        return {"doubled": job.payload["number"] * 2, "list": [1, None, {"a": 1.5}], "attempt": job.attempt}

    @worker.handles("awaited")
    async def awaited(job: Job) -> None:
        await asyncio.sleep(0.01)
        assert job.queue == "default"

    with working(worker):
        made = [jobs.create("plain", {"number": number}) for number in range(20)]
        made.append(jobs.create("awaited"))
        for number, job_id in enumerate(made):
            job = jobs.ended(job_id)
            assert (job.status, job.worker_id) == (COMPLETED, "w1")
            result = MessageToDict(job.result)
            if number < 20:
                assert result == {"doubled": number * 2, "list": [1, None, {"a": 1.5}], "attempt": 1}


def test_a_handler_that_fails_is_tried_again(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server)
    tries: list[int] = []

    @worker.handles("shaky")
    def shaky(job: Job) -> None:
        tries.append(job.attempt)
        if job.attempt == 1:
            raise ValueError("no luck")
        if job.attempt == 2:
            raise JobFailedError("still none", code="LUCK", retry_after=timedelta(milliseconds=1))

    @worker.handles("hopeless")
    async def hopeless(job: Job) -> None:
        raise JobFailedError(f"never: {job.id}", code="HOPELESS", retryable=False)

    with working(worker):
        shaken = jobs.create("shaky", retry_policy={"initial_delay": timedelta(milliseconds=1), "jitter": 0})
        failed = jobs.ended(jobs.create("hopeless"))
        job = jobs.ended(shaken)
    assert (job.status, tries, jobs.outcomes(shaken)) == (COMPLETED, [1, 2, 3], ["failed", "failed", "succeeded"])
    first, second, _ = job.attempts
    assert (first.error_code, first.error_message) == ("ValueError", "no luck")
    assert "in shaky" in first.error_traceback
    assert (second.error_code, second.error_message) == ("LUCK", "still none")
    assert (failed.status, failed.error_code, failed.failures) == (FAILED, "HOPELESS", 1)


def test_progress_and_logs_reach_the_server_in_order(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server)
    go_on = threading.Event()

    @worker.handles("told")
    def told(job: Job) -> None:
        for number in range(1200):
            job.info(f"line {number}", number=number)
        job.error("nul \0 and \ud800", odd=object())
        job.progress(percent=10, step="reading", done=1, total=10)
        job.progress(done=2)
        assert go_on.wait(SECONDS)
        job.progress(percent=90)
        job.warning("last")

    with working(worker):
        job_id = jobs.create("told")
        job = jobs.until(job_id, lambda job: job.items_processed == 2)
        assert (job.progress_percent, job.current_step, job.items_total) == (10, "reading", 10)
        go_on.set()
        job = jobs.ended(job_id)
    assert (job.status, job.progress_percent, job.current_step) == (COMPLETED, 100, "reading")
    assert job.log_lines == 1202
    log = jobs.log(job_id)
    assert [line.message for line in log[:3]] == ["line 0", "line 1", "line 2"]
    assert MessageToDict(log[2].context) == {"number": 2}
    assert [line.line for line in log] == list(range(1, 1001))


def test_a_job_that_is_to_be_cancelled_is_given_up(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server, capacity=3)
    begun = threading.Barrier(4)

    @worker.handles("looks")
    def looks(job: Job) -> None:
        begun.wait(SECONDS)
        job.sleep(SECONDS)

    @worker.handles("awaits")
    async def awaits(_: Job) -> None:
        await asyncio.to_thread(begun.wait, SECONDS)
        await asyncio.sleep(SECONDS)

    @worker.handles("ignores")
    def ignores(job: Job) -> dict[str, object]:
        begun.wait(SECONDS)
        while not job.cancelled:
            time.sleep(0.01)
        return {"reason": job.cancel_reason}

    with working(worker):
        made = [jobs.create(job_type) for job_type in ("looks", "awaits", "ignores")]
        begun.wait(SECONDS)
        for job_id in made:
            jobs.cancel(job_id, "not needed")
        for job_id in made:
            job = jobs.ended(job_id)
            assert (job.status, job.cancel_reason) == (CANCELLED, "not needed")
            assert jobs.outcomes(job_id) == ["cancelled"]


def test_a_snoozed_job_comes_back_without_having_failed(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server)

    @worker.handles("early")
    def early(job: Job) -> None:
        if job.attempt == 1:
            raise SnoozeError(timedelta(milliseconds=50), "too early")

    with working(worker):
        job = jobs.ended(jobs.create("early"))
    assert (job.status, job.failures, jobs.outcomes(job.id)) == (COMPLETED, 0, ["snoozed", "succeeded"])


def test_a_handler_that_blocks_does_not_lose_its_lease(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server, lease=timedelta(seconds=1))

    @worker.handles("blocks")
    def blocks(_: Job) -> None:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            sum(range(10_000))

    with working(worker):
        job = jobs.ended(jobs.create("blocks"))
    assert (job.status, job.attempt_number, jobs.outcomes(job.id)) == (COMPLETED, 1, ["succeeded"])


def test_a_job_that_takes_too_long_is_taken_back(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server)
    ended = threading.Event()

    @worker.handles("slow")
    def slow(job: Job) -> None:
        if job.attempt == 1:
            while not job.cancelled:
                time.sleep(0.01)
            ended.set()

    with working(worker):
        job_id = jobs.create(
            "slow", timeout=timedelta(seconds=1), retry_policy={"initial_delay": timedelta(milliseconds=1), "jitter": 0}
        )
        job = jobs.ended(job_id)
        assert ended.wait(SECONDS), "the handler is told"
    assert (job.status, jobs.outcomes(job_id)) == (COMPLETED, ["timed_out", "succeeded"])


def test_a_result_that_is_none_fails_the_job(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server)

    @worker.handles("list")
    def returns_a_list(_: Job) -> list[int]:
        return [1]

    @worker.handles("large")
    def large(_: Job) -> dict[str, object]:
        return {"text": "x" * (1 << 20)}

    with working(worker):
        job = jobs.ended(jobs.create("list", max_attempts=1))
        assert (job.status, job.error_code) == (FAILED, "TypeError")
        job = jobs.ended(jobs.create("large"))
        assert (job.status, job.error_code, job.failures) == (FAILED, "INVALID_FIELD", 1)


def test_a_worker_that_stops_gives_back_what_it_has_not_finished(server: Server, jobs: Jobs) -> None:
    worker = new_worker(server, capacity=3, grace=timedelta(seconds=2))
    begun = threading.Barrier(4)
    stopped = threading.Event()

    @worker.handles("short")
    def short(_: Job) -> None:
        begun.wait(SECONDS)
        assert stopped.wait(SECONDS)

    @worker.handles("long")
    def long(job: Job) -> None:
        begun.wait(SECONDS)
        job.sleep(SECONDS)

    @worker.handles("forever")
    def forever(_: Job) -> None:
        begun.wait(SECONDS)
        threading.Event().wait(SECONDS)

    with working(worker) as thread:
        finished, *left = [jobs.create(job_type) for job_type in ("short", "long", "forever")]
        begun.wait(SECONDS)
        worker.stop()
        stopped.set()
        assert jobs.ended(finished).status == COMPLETED
        thread.join(SECONDS)
        for job_id in left:
            job = jobs.get(job_id)
            assert (job.status, job.failures, jobs.outcomes(job_id)) == (QUEUED, 0, ["released"])
        # It takes no more.
        assert jobs.get(jobs.create("short")).status == QUEUED


@pytest.mark.parametrize("count", [3])
def test_a_server_that_is_killed_costs_no_attempt(server: Server, count: int) -> None:
    worker = new_worker(server, capacity=count, lease=timedelta(seconds=30))
    begun, go_on = threading.Barrier(count + 1), threading.Event()

    @worker.handles("long")
    def long(job: Job) -> dict[str, object]:
        job.info("before")
        begun.wait(SECONDS)
        assert go_on.wait(SECONDS)
        job.info("after")
        return {"attempt": job.attempt}

    address = server.address
    with working(worker):
        with grpc.insecure_channel(address) as channel:
            jobs = Jobs(channel)
            made = [jobs.create("long") for _ in range(count)]
            begun.wait(SECONDS)
            for job_id in made:
                jobs.until(job_id, lambda job: job.log_lines == 1)
        server.kill()
        # One is finished while the server is away, and told when it is back.
        go_on.set()
        server.start(address)
        with grpc.insecure_channel(address) as channel:
            jobs = Jobs(channel)
            for job_id in made:
                job = jobs.ended(job_id)
                assert (job.status, jobs.outcomes(job_id)) == (COMPLETED, ["succeeded"])
                assert [line.message for line in jobs.log(job_id)] == ["before", "after"]
            # And it goes on taking jobs.
            go_on.clear()
            begun.reset()
            more = [jobs.create("long") for _ in range(count)]
            begun.wait(SECONDS)
            go_on.set()
            assert all(jobs.ended(job_id).status == COMPLETED for job_id in more)


PROGRAM = """
import sys
from datetime import timedelta
from watchpost_worker import Worker

worker = Worker(sys.argv[1], grace=timedelta(seconds=1))


@worker.handles("t")
def work(job):
    job.sleep(60)


worker.run()
"""


def test_sigterm_ends_a_worker_cleanly(server: Server, jobs: Jobs) -> None:
    job_id = jobs.create("t")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, server.address], env=environment)
    try:
        jobs.until(job_id, lambda job: job.status == RUNNING)
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
        assert (jobs.get(job_id).status, jobs.outcomes(job_id)) == (QUEUED, ["released"])
    finally:
        process.kill()


def test_a_worker_that_the_server_does_not_take_says_so(server: Server) -> None:
    worker = Worker(server.address, worker_id="x" * 101)

    @worker.handles("t")
    def work(_: Job) -> None:
        pass

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        asyncio.run(worker.work())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(ValueError, match="handler"):
        asyncio.run(Worker(server.address).work())
