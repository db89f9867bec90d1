"""Starts and ends the real server."""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_SECONDS = 60


class Server:
    """A server process on one data folder, which can be ended and started again."""

    def __init__(self, binary: Path, data: Path, *more: str, environment: dict[str, str] | None = None) -> None:
        self.binary = binary
        self.data = data
        self.more = more
        self.environment = environment
        self.address = ""

    def start(self, listen: str = "127.0.0.1:0") -> None:
        """Starts the process, and returns once it says that it serves."""
        database = f"sqlite://{self.data / 'watchpost.db'}"
        options = ["--listen", listen, "--data-dir", self.data, "--database-url", database, *self.more]
        self.process = subprocess.Popen(
            [self.binary, "serve", *options], stderr=subprocess.PIPE, text=True, env=self.environment
        )
        self.log: list[str] = []
        self.told = threading.Event()
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()
        assert self.told.wait(START_SECONDS), f"the server did not say where it listens:\n{''.join(self.log)}"
        assert self.address, f"the server ended:\n{''.join(self.log)}"
        with grpc.insecure_channel(self.address) as channel:
            states = health_pb2_grpc.HealthStub(channel).Watch(
                health_pb2.HealthCheckRequest(), timeout=START_SECONDS, wait_for_ready=True
            )
            for state in states:
                if state.status == health_pb2.HealthCheckResponse.SERVING:
                    return

    def read_log(self) -> None:
        """Keeps what the process logs, and takes its address from it."""
        for line in self.process.stderr or ():
            self.log.append(line)
            if listening := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                self.address = listening[1]
                self.told.set()
        self.told.set()

    def kill(self) -> None:
        """Ends the process as a power cut would."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.address = ""
