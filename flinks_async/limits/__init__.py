"""Limits on what is sent.

Each (instance, secret) has one `governor` per event loop. Every attempt asks it for a slot before it is sent and reports
its verdict afterwards. The governor owns all waiting; it decides with four states that have no I/O and no clock of their
own, one file each:

- `concurrency`: how many requests may be on the wire at once;
- `rate`: how many may be sent per second;
- `pause`: until when nothing is sent after a throttled answer, and how fast traffic returns;
- `breaker`: whether the instance is down, and when to probe it.

`quota` bounds the retries of all calls together. `rate` also reads what a server says: its limit, and how long to wait.
"""
