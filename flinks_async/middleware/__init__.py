"""The links of the chain, one idea a file.

A call passes them in this order; `[user]` marks the two places where users plug in their own:

    [user: middleware] ► deadline ► auth ► retry ► [user: attempt_middleware] ► attempt (governor ► timer ► transport ► decode)
"""
