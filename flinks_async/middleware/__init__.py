"""The chain of handlers that each call passes, one idea a file.

    deadline ► [middleware] ► (coalesce) ► (pending) ► auth ► retry ► (hedge) ► [attempt_middleware] ► attempt

`[...]` are the two places for users' own middleware: around the whole call and around each attempt. `(...)` are off by
default. `auth` is in the chain only if the AuthSecret comes from a callable. The chain is composed once, when a client is
made; see `flinks_async.messages` for what a handler and a middleware are.

The deadline is a cancel scope of the client around the chain (`FlinksClient._run`), so that it also bounds users'
middleware. An attempt is: a slot from the governor, a timer, the transport, then decoding.
"""
