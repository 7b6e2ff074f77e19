"""Everything that knows aiohttp: sessions and connections, the request on the wire, inflating, and the shared pool.

`AiohttpTransport` (`aiohttp`) makes one attempt. It uses the lean request of `fast_path` where it can, and
`ClientSession` otherwise. The contract of a transport is `flinks_async.messages.Transport`.
"""
