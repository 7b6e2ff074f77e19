"""Limits on what is sent: one governor per (instance, secret) and event loop, made of pure states.

The governor is the only place that waits before a request is sent. It asks four states, each a file of its own without
I/O or a clock: `concurrency`, `rate`, `pause` and `breaker`. `quota` limits retries; `retry_after` reads what the server
asks for.
"""
