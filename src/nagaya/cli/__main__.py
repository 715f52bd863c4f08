"""`python -m nagaya.cli`."""

import sys

from nagaya.cli import main

sys.exit(main())
