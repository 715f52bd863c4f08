"""Benches. One that is told to end (SIGTERM) ends what it has started, as one that is interrupted does."""

import signal
import sys

signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
