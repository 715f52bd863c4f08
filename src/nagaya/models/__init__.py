"""What the API answers, as plain dataclasses: the daemon writes them, the SDK reads them.

They import nothing but the standard library and one another, and each command of the client imports those
that it needs: making a dataclass takes 0.6 ms. Times are seconds since 1970 (UTC), sizes bytes.
"""
