"""The transport over aiohttp. No other package of the SDK's client imports aiohttp.

- `aiohttp`: `AiohttpTransport` makes one attempt and turns aiohttp's errors into ours;
- `http1`: connections of our own, with a parser for answers, and their pool;
- `session`: what each event loop has: a pool, an aiohttp session where one is needed, TLS and proxies;
- `inflate`: decompression with a cap;
- `pool`: what derived clients share.

`flinks_async.messages.Transport` is the contract for other transports.
"""
