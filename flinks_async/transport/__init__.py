"""The transport over aiohttp. No other package of the SDK's client imports aiohttp.

- `aiohttp`: `AiohttpTransport` makes one attempt and turns aiohttp's errors into ours;
- `fast_path`: most requests, without `ClientSession`'s work per request;
- `session`: one session per event loop, its connector, TLS and proxies;
- `inflate`: decompression with a cap;
- `pool`: what derived clients share.

`flinks_async.messages.Transport` is the contract for other transports.
"""
