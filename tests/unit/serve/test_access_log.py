"""Every request leaves a line, and the hot path never waits for the disk."""

from __future__ import annotations

import io
import json
import time

from serve.access_log import AccessLog
from serve.answer import Answer
from serve.delta import ErrorClass
from serve.split import Assignment, AssignmentReason

ANSWER = Answer(
    200,
    b"{}",
    headers=(
        (b"x-chancery-variant", b"stable"),
        (b"x-chancery-version", b"3"),
        (b"x-chancery-signer", b"alice"),
        (b"x-chancery-retried", b"1"),
        (b"x-other", b"secret"),
    ),
)
ASSIGNMENT = Assignment("canary", AssignmentReason.STICKY, 0.01)


def test_a_line_names_version_signer_and_reason() -> None:
    out = io.BytesIO()
    log = AccessLog(out, clock=lambda: 12.3456)
    headers = {"x-request-id": "r1", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    log.add(ANSWER, headers, ASSIGNMENT, 1.23456, ErrorClass.TIMEOUT)
    log.flush()
    assert json.loads(out.getvalue()) == {
        "time": 12.346,
        "requestId": "r1",
        "traceId": "a" * 32,
        "status": 200,
        "latencyMs": 1.235,
        "assigned": "canary",
        "reason": "sticky",
        "error": "timeout",
        "variant": "stable",
        "version": "3",
        "signer": "alice",
        "retried": True,
    }


def test_what_does_not_fit_is_lost_and_counted() -> None:
    out = io.BytesIO()
    log = AccessLog(out, kept=10)
    for _ in range(2):
        for _ in range(25):
            log.add(ANSWER, {}, ASSIGNMENT, 1.0, None)
        log.flush()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["lost"] for line in lines if "lost" in line] == [15, 15]
    assert len(lines) == 22


def test_a_thread_writes_and_closing_writes_the_rest() -> None:
    out = io.BytesIO()
    log = AccessLog(out, pause_s=0.01)
    log.start()
    log.add(ANSWER, {}, ASSIGNMENT, 1.0, None)
    for _ in range(500):
        if out.getvalue():
            break
        time.sleep(0.01)
    log.add(ANSWER, {}, ASSIGNMENT, 1.0, None)
    log.close()
    assert out.getvalue().count(b"\n") == 2


def test_a_disk_that_is_full_ends_nothing() -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    log = AccessLog(Full(), pause_s=0.01)
    log.start()
    log.add(ANSWER, {}, ASSIGNMENT, 1.0, None)
    time.sleep(0.05)
    log.add(ANSWER, {}, ASSIGNMENT, 1.0, None)
    assert log.alive
    log.close()
