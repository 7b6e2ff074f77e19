"""Asynchronous SDK for the Flinks partner access API: access tokens in, typed account data out.

Public modules. The names in their `__all__` are stable; everything else is private and may change in any release.

    flinks_async                            the client, and what a call needs
    flinks_async.config                     settings and presets
    flinks_async.errors                     the tree of errors
    flinks_async.models                     the data that a call returns
    flinks_async.tables                     answers as Arrow tables
    flinks_async.otel                       traces and metrics with OpenTelemetry; needs an extra
    flinks_async.testing                    a simulated Flinks, an in-memory transport and clocks for your tests
    flinks_async.bulk                       jobs over many tokens
    flinks_async.bulk.stores                where a job writes answers, and what your own store must do
    flinks_async.bulk.stores.parquet        each needs its own extra
    flinks_async.bulk.stores.duckdb
    flinks_async.bulk.stores.postgresql
    flinks_async.cli                        the command `flinks-async`, also as `python -m flinks_async.cli`
"""

from . import config, errors, models
from ._version import __version__
from .client import FlinksClient
from .codec import Codec
from .config import (
    Adaptive,
    AuthScheme,
    Breaker,
    Connection,
    Hedge,
    Limits,
    Pause,
    PollPending,
    Quota,
    RateLimiter,
    Retry,
    Settings,
    ShareQuota,
    Timeouts,
    TokenBucketQuota,
)
from .errors import *  # noqa: F403
from .fanout import Failed, Fetched, Outcome, TableBatch, table_batches
from .limits.shared import RedisRateLimiter
from .messages import Call, Handler, Middleware, Request, Response, Transport
from .models import (
    Account,
    AccountsDetail,
    Address,
    Balance,
    Holder,
    Link,
    Login,
    Meta,
    PartnerAccessResponse,
    Timestamp,
    Transaction,
)
from .observe import (
    AttemptFinished,
    AttemptStarted,
    ClientStats,
    Event,
    InstanceDown,
    InstanceUp,
    Observer,
    Paused,
    Resumed,
    RetryScheduled,
)
from .secret import Secret, SecretFilter, fingerprint
from .transport.session import ConnectionStats, SessionManager
from .verdict import Kind, Verdict

__all__ = [
    "Account",
    "AccountsDetail",
    "Adaptive",
    "Address",
    "AttemptFinished",
    "AttemptStarted",
    "AuthScheme",
    "Balance",
    "Breaker",
    "Call",
    "ClientStats",
    "Codec",
    "Connection",
    "ConnectionStats",
    "Event",
    "Failed",
    "Fetched",
    "FlinksClient",
    "Handler",
    "Hedge",
    "Holder",
    "InstanceDown",
    "InstanceUp",
    "Kind",
    "Limits",
    "Link",
    "Login",
    "Meta",
    "Middleware",
    "Observer",
    "Outcome",
    "PartnerAccessResponse",
    "Pause",
    "Paused",
    "PollPending",
    "Quota",
    "RateLimiter",
    "RedisRateLimiter",
    "Request",
    "Response",
    "Resumed",
    "Retry",
    "RetryScheduled",
    "Secret",
    "SecretFilter",
    "SessionManager",
    "Settings",
    "ShareQuota",
    "TableBatch",
    "Timeouts",
    "Timestamp",
    "TokenBucketQuota",
    "Transaction",
    "Transport",
    "Verdict",
    "__version__",
    "config",
    "errors",
    "fingerprint",
    "models",
    "table_batches",
]
__all__ += errors.__all__
