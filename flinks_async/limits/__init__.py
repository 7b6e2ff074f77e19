"""Limits on what is sent.

Each (instance, secret) has one `governor` per event loop. Every attempt asks it for a slot before it is sent and reports
its verdict afterwards. The governor owns all waiting; it decides with four states that have no I/O and no clock of their
own, one file each:

- `concurrency`: how many requests may be on the wire at once;
- `pace`: how many may be sent per second, learned from refusals, and when to wait for a new window;
- `rate`: the ceiling that a user sets;
- `breaker`: whether the instance is down, and when to probe it.

`shared` takes permits of a rate that several processes share, also by Redis. `quota` bounds the retries of all calls together. `rate` also reads what a server says: its limit, and how long to wait.
"""
