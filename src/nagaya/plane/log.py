"""The holder's log: on stderr, bounded, with Python's own logging (structlog would cost 9 MiB)."""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
import time

_FILE_LIMIT = (
    8 * 2**20
)  # bytes of a log file; it is emptied then, for nobody rotates it while the holder runs
_QUOTA = 200  # ordinary records in a window: a machine that reconnects in a loop must not fill the log
_WINDOW_SECONDS = 10.0


def log_to_stderr() -> None:
    """Records of `nagaya.*` and of asyncio go to stderr: text on a terminal, else JSON lines."""
    handler = _BoundedStderr()
    handler.setFormatter(_Text() if sys.stderr.isatty() else _JsonLine())
    handler.addFilter(Quota(_QUOTA, _WINDOW_SECONDS))
    for name in ("nagaya", "asyncio"):  # failures of callbacks are told by asyncio
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger("nagaya").setLevel(logging.INFO)


class Quota(logging.Filter):
    """Lets `count` records below WARNING pass in each window, and then says how many did not."""

    def __init__(self, count: int, window_seconds: float) -> None:
        super().__init__()
        self._count = count
        self._window = window_seconds
        self._ends = 0.0
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            return True
        now = time.monotonic()
        if now >= self._ends:
            suppressed = max(0, self._seen - self._count)
            self._ends, self._seen = now + self._window, 0
            if suppressed:
                record.suppressed_before = suppressed
        self._seen += 1
        return self._seen <= self._count


class _BoundedStderr(logging.StreamHandler):  # type: ignore[type-arg]
    def emit(self, record: logging.LogRecord) -> None:
        status = os.fstat(2)
        if stat.S_ISREG(status.st_mode) and status.st_size > _FILE_LIMIT:
            os.ftruncate(2, 0)  # it is open for appending: the next write is at the start
        super().emit(record)


_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _PLAIN}


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        line: dict[str, object] = {
            "timestamp": at,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line | _facts(record), default=str)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name, value in _facts(record).items())
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{at} {record.levelname.lower():7} {record.getMessage()} {facts}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
