"""What a worker and the server say to each other, made and read."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.struct_pb2 import Struct, Value
from watchpost.v1 import job_logs_pb2
from watchpost.v1 import job_workers_pb2 as pb

LEVELS = {
    "debug": job_logs_pb2.JOB_LOG_LEVEL_DEBUG,
    "info": job_logs_pb2.JOB_LOG_LEVEL_INFO,
    "warning": job_logs_pb2.JOB_LOG_LEVEL_WARNING,
    "error": job_logs_pb2.JOB_LOG_LEVEL_ERROR,
}
"""The levels of log lines."""


def duration(length: timedelta | None) -> Duration | None:
    """A length of time as protobuf has it."""
    if length is None:
        return None
    result = Duration()
    result.FromTimedelta(length)
    return result


def struct(value: Mapping[str, object] | None) -> Struct | None:
    """A JSON object as protobuf has it. Raises `TypeError` or `ValueError` for what is none."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"a JSON object is needed, not {type(value).__name__}")
    result = Struct()
    result.update(value)
    return result


def plain(struct: Struct) -> dict[str, object]:
    """A JSON object as Python has it, whole numbers as `int`."""
    return {key: plain_value(value) for key, value in struct.fields.items()}


def plain_value(value: Value) -> object:
    """A JSON value as Python has it."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        return int(value.number_value) if value.number_value.is_integer() else value.number_value
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        return [plain_value(entry) for entry in value.list_value.values]
    return getattr(value, kind) if kind in ("string_value", "bool_value") else None


def line(level: str, message: str, context: Mapping[str, object]) -> pb.JobLogLine:
    """A line of a log, logged now."""
    result = pb.JobLogLine(message=text(message, 10_000) or " ", level=LEVELS[level])
    result.timestamp.FromNanoseconds(time.time_ns())
    if context:
        try:
            result.context.CopyFrom(struct(context))
        except (TypeError, ValueError):
            result.context.CopyFrom(struct({key: repr(value) for key, value in context.items()}))
    return result


def failure(
    error: BaseException,
    code: str | None = None,
    retryable: bool | None = None,
    retry_after: timedelta | None = None,
) -> pb.FailJobRequest:
    """That an attempt has failed by an exception."""
    trace = "".join(traceback.format_exception(error))
    return pb.FailJobRequest(
        error_message=text(str(error), 10_000) or type(error).__name__,
        # The end tells where it happened.
        error_traceback=text(trace[-100_000:], 100_000),
        error_code=text(code or type(error).__name__, 100),
        retryable=retryable,
        retry_after=duration(retry_after),
    )


def text(value: str, most: int) -> str:
    """What the server takes of a text."""
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()[:most]
