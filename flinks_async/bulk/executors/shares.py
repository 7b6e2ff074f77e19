"""What each of several processes gets of what is allowed in all. The rate is not divided but shared: see `shared_rate`."""

from __future__ import annotations

from attrs import evolve

from ...config import Limits, Retry, Settings
from ...errors import ConfigError
from ...policies import Adaptive, ShareQuota
from ..rules import Rules


def share(whole: int, place: int, places: int) -> int:
    """One place's part of a number; at least 1. The parts of a number that is large enough add up to it."""
    return max(1, whole // places + (place < whole % places))


def settings_for(settings: Settings, place: int, places: int) -> Settings:
    """The settings of one process.

    Raises:
        ConfigError: so many processes are not allowed to send anything at once.
    """
    retry, limits = settings.retry, settings.limits
    return evolve(settings, retry=_retry_for(retry, places), limits=_limits_for(limits, place, places))


def rules_for(rules: Rules, place: int, places: int) -> Rules:
    """The rules of one process. What counts tokens or time in all is watched by the job.

    Raises:
        ConfigError: as for `settings_for`.
    """
    if rules.concurrency is not None:
        _refuse_too_few(rules.concurrency, places)
    return evolve(
        rules,
        concurrency=None if rules.concurrency is None else share(rules.concurrency, place, places),
        open_shards=share(rules.open_shards, place, places),
        max_failures=None,
        max_failure_share=None,
        max_duration=None,
    )


def _retry_for(retry: Retry, places: int) -> Retry:
    quota = retry.quota
    return (
        evolve(retry, quota=evolve(quota, minimum=quota.minimum / places)) if isinstance(quota, ShareQuota) else retry
    )


def _limits_for(limits: Limits, place: int, places: int) -> Limits:
    _refuse_too_few(limits.most_at_once, places)
    concurrency = limits.concurrency
    if isinstance(concurrency, Adaptive):
        bounds = {name: share(getattr(concurrency, name), place, places) for name in ("minimum", "initial", "maximum")}
        return evolve(limits, concurrency=evolve(concurrency, **bounds))
    return evolve(limits, concurrency=share(concurrency, place, places))


def _refuse_too_few(concurrency: int, places: int) -> None:
    if concurrency < places:
        raise ConfigError(f"{places} processes need a concurrency of at least {places} in all, not {concurrency}")
