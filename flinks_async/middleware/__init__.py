"""The links of the chain, one idea a file.

A call passes them in this order; `[user]` marks the two places where users plug in their own:

    deadline ► [user: middleware] ► (coalesce) ► (pending) ► auth ► retry ► (hedge) ► [user: attempt_middleware] ► attempt

The deadline is the client's own scope around the call (see `FlinksClient._run`), so that it bounds everything, users'
middleware included. Those in brackets are off by default. The attempt is: governor, timer, transport, decode.
"""
