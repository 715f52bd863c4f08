"""`python -m nagaya.testing.daemon`: a daemon on fakes, for tests that need a process of its own."""

from nagaya.daemon.main import run
from nagaya.testing.stores import fake_parts

if __name__ == "__main__":
    run(fake_parts)
