"""`python -m nagaya.daemon` is `nagayad`."""

from nagaya.daemon.main import main

main()
