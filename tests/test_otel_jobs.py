"""Spans and metrics of jobs, and what the documents say about all of them."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from flinks_async import FlinksClient, config
from flinks_async.bulk import InProcess, InputFile, Job, JSONLFile, Processes
from flinks_async.bulk.counters import WAITED_FOR, Counters, WorkerState
from flinks_async.bulk.errors import WorkerError
from flinks_async.otel import _GAUGES
from flinks_async.testing import KINDS, FlinksServer, InMemoryTransport

from .support import until
from .test_canaries import SECRET, shows_nothing
from .test_otel import ANSWER, AT_ONCE, Telemetry, attributes


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


# --- jobs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [0, 2])
async def test_a_run_and_its_shards_are_linked_spans(telemetry: Telemetry, tmp_path: Path, processes: int) -> None:
    source = tmp_path / "tokens.txt"
    source.write_text("".join(f"canary-{number}\n" for number in range(7)))
    async with FlinksServer(auth_secret=SECRET) as server:
        server.script("canary-3", [KINDS["session_nonexistent"]])
        async with FlinksClient(auth_secret=SECRET, base_url=server.base_url, settings=config.bulk()) as client:
            with Job.start(tmp_path / "job", InputFile(source), JSONLFile(tmp_path / "out"), shard_size=3) as job:
                executor = telemetry.executor(Processes(processes) if processes else InProcess())
                with telemetry.tracers.get_tracer("nightly").start_as_current_span("nightly"):
                    result = await job.run(client if processes else telemetry.instrument(client), executor=executor)
                totals = job.totals
    assert result.state == "complete"
    (run,) = telemetry.spans("flinks job run")
    shards = telemetry.spans("flinks job shard")
    assert attributes(run) == {"flinks.run.state": "complete", "flinks.run.fetched": 6, "flinks.run.failed": 1}
    assert run.parent is not None
    for span in (*shards, *telemetry.calls()):
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [run.context.span_id]
    assert len(telemetry.calls()) == (0 if processes else 7)
    told = {
        s["flinks.shard.id"]: (s["flinks.shard.tokens"], s["flinks.shard.fetched"], s["flinks.shard.failed"])
        for s in map(attributes, shards)
    }
    assert told == {0: (3, 3, 0), 1: (3, 2, 1), 2: (1, 1, 0)}
    counted = {p.attributes["flinks.outcome"]: p.value for p in telemetry.metric("flinks.job.tokens")}
    assert counted == {"fetched": totals.fetched, "failed": totals.failed}
    assert telemetry.metric("flinks.job.workers") == []  # of a run that has ended
    shows_nothing(telemetry.everything())


async def test_workers_are_counted_by_state_and_their_drift_is_added_once(telemetry: Telemetry, tmp_path: Path) -> None:
    source = tmp_path / "tokens.txt"
    source.write_text("".join(f"canary-{number}\n" for number in range(4)))
    body: dict[str, Any] = {"GetAccountsDetail": None, "RequestId": "r", "Foo": "canary"}
    both, seen = {"flinks.worker.state": "working", "count": 2}, False
    async with FlinksServer(auth_secret=SECRET) as server:
        server.script_all(["hang"] * 4)
        for number in range(4):
            server.set_answer(f"canary-{number}", body)
        async with FlinksClient(auth_secret=SECRET, base_url=server.base_url, settings=config.bulk()) as client:
            with Job.start(tmp_path / "job", InputFile(source), JSONLFile(tmp_path / "out"), shard_size=2) as job:
                run = asyncio.ensure_future(job.run(client, executor=telemetry.executor(Processes(2))))
                while not run.done():
                    job.progress()
                    seen |= both in [{**p.attributes, "count": p.value} for p in telemetry.metric("flinks.job.workers")]
                    if seen:
                        server.release()
                    await asyncio.sleep(0.05)
                assert run.result().state == "complete"
    assert seen
    (drift,) = telemetry.metric("flinks.client.drift")
    assert (drift.value, drift.attributes["flinks.drift.path"]) == (4, "Foo")
    shows_nothing(telemetry.everything())


async def test_a_job_that_is_cancelled_ends_its_spans(telemetry: Telemetry, tmp_path: Path) -> None:
    async def hang(_: Any) -> Any:
        await asyncio.Event().wait()

    source = tmp_path / "tokens.txt"
    source.write_text("a\nb\n")
    client = FlinksClient(auth_secret="s", transport=InMemoryTransport(default=hang))
    with Job.start(tmp_path / "job", InputFile(source), JSONLFile(tmp_path / "out")) as job:
        run = asyncio.ensure_future(job.run(client, executor=telemetry.executor(InProcess())))
        await until(lambda: client.stats().requests_in_flight)
        run.cancel()
        await asyncio.wait([run])
    await client.close()
    names = {span.name: attributes(span).get("error.type") for span in telemetry.exporter.get_finished_spans()}
    assert names == {"flinks job shard": "CancelledError", "flinks job run": "CancelledError"}


class Told:
    """An executor that tells these workers, one list a look, and ends like this."""

    def __init__(self, *looks: list[WorkerState], error: BaseException | None = None, stopped: Any = None) -> None:
        self._looks, self._error, self.stopped = list(looks), error, stopped

    def map_shards(self, *_: Any) -> Told:
        return self

    def stop(self, *_: Any) -> None: ...

    def break_off(self, *_: Any) -> None: ...

    def counters(self) -> Counters:
        return Counters(workers=tuple(self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]))

    async def go(self) -> None:
        if self._error is not None:
            raise self._error


def totals(telemetry: Telemetry, name: str) -> dict[str | None, float]:
    return {
        p.attributes.get("flinks.run.state", p.attributes.get("flinks.worker.state")): p.value
        for p in telemetry.metric(f"flinks.job.{name}")
    }


async def test_each_lost_worker_and_its_shards_are_counted_once(telemetry: Telemetry) -> None:
    works, missing = WorkerState("1"), WorkerState("2", note=WAITED_FOR)
    one, other = (WorkerState(name, note="died by x", reassigned=shards) for name, shards in (("3", 2), ("4", 3)))
    looks = ([works], [works, missing], [works, one], [works, missing, one, other])
    run = telemetry.executor(Told(*looks)).map_shards(None, None, None)  # type: ignore[arg-type]
    going = asyncio.ensure_future(run.go())
    await asyncio.sleep(0)
    assert (totals(telemetry, "lost_workers"), totals(telemetry, "reassigned_shards")) == ({None: 0}, {None: 0})
    await going  # one look
    states, lost = [], []
    for _ in range(4):
        telemetry_states = run.states_of_workers
        states.append(tuple(telemetry_states.values()))
        lost.append((*totals(telemetry, "lost_workers").values(), *totals(telemetry, "reassigned_shards").values()))
        run.counters()
    assert states == [(1, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1, 2)]  # zeros too: a gauge that is missing seems to last
    assert lost == [(0, 0), (0, 0), (1, 2), (2, 5)]
    run.counters()
    assert totals(telemetry, "lost_workers") == {None: 2}


@pytest.mark.parametrize(
    ("error", "stopped", "state"),
    [
        (None, None, "complete"),
        (None, ("stopped", "the time limit"), "stopped"),
        (None, ("refused", "the AuthSecret"), "refused"),
        (WorkerError("workers keep crashing"), ("stopped", "it broke off"), "failed"),
        (WorkerError("the connection is lost"), None, "failed"),
        (asyncio.CancelledError(), None, "interrupted"),
    ],
)
async def test_a_run_is_counted_by_its_end(
    telemetry: Telemetry, error: BaseException | None, stopped: Any, state: str
) -> None:
    run = telemetry.executor(Told([], error=error, stopped=stopped)).map_shards(None, None, None)  # type: ignore[arg-type]
    await asyncio.wait([asyncio.ensure_future(run.go())])
    (span,) = telemetry.spans("flinks job run")
    assert attributes(span)["flinks.run.state"] == state
    assert totals(telemetry, "runs") == {state: 1}
    assert totals(telemetry, "workers") == {}


# --- documents --------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parent.parent


async def exported(telemetry: Telemetry, folder: Path) -> dict[str, str]:
    """Every metric after a job and a call that is retried: its unit, and in Prometheus' way its name."""
    source = folder / "tokens.txt"
    source.write_text("a\n")
    transport = InMemoryTransport({"a": [KINDS["http_503"], ANSWER]})
    async with FlinksClient(auth_secret="s", transport=transport, retry=AT_ONCE) as client:
        flinks = telemetry.instrument(client)
        with Job.start(folder / "job", InputFile(source), JSONLFile(folder / "out")) as job:
            await job.run(flinks, executor=telemetry.executor(InProcess()))
        data = telemetry.reader.get_metrics_data()
    assert data is not None
    suffixes = {"s": "_seconds", "{request}/s": "_per_second"}  # as Prometheus' translation of OTLP adds them
    names = {name: name.replace(".", "_") + suffixes.get(unit, "") for name, unit, *_ in _GAUGES}
    names["flinks.job.workers"] = "flinks_job_workers"  # only of runs with several
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        suffix = suffixes.get(metric.unit, "")
        total = "_total" if type(metric.data).__name__ == "Sum" else ""
        names[metric.name] = metric.name.replace(".", "_") + suffix + total
    return names


async def test_the_page_lists_every_metric_and_dashboard_and_alerts_use_no_other(
    telemetry: Telemetry, tmp_path: Path
) -> None:
    names = await exported(telemetry, tmp_path)
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    table = page.partition("## Metrics")[2].partition("## What you see")[0]
    assert set(re.findall(r"^\| `([\w.]+)` \|", table, re.MULTILINE)) == set(names)
    dashboard = json.loads((ROOT / "examples" / "grafana_dashboard.json").read_text(encoding="utf-8"))
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    used = re.compile(r"\b(?:flinks|http)_(?:client|job)_\w+")
    assert {re.sub("_(bucket|count)$", "", name) for name in used.findall(shown)} == set(names.values())
    rules = yaml.safe_load((ROOT / "examples" / "prometheus_alerts.yml").read_text(encoding="utf-8"))["groups"][0][
        "rules"
    ]
    for rule in rules:
        assert {re.sub("_(bucket|count)$", "", name) for name in used.findall(rule["expr"])} <= set(names.values())
        assert rule["expr"].count("(") == rule["expr"].count(")")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_the_alerts_fire_and_end(tmp_path: Path) -> None:
    calls = 'flinks_client_call_duration_seconds_count{server_address="h", error_type="AuthenticationError"}'
    held = 'flinks_client_held_back_seconds{server_address="h"}'
    lost = 'flinks_job_lost_workers_total{job="nightly", instance="1"}'
    missing = 'flinks_job_workers{job="nightly", flinks_worker_state="missing"}'
    stopped, complete = (
        f'flinks_job_runs_total{{job="nightly", flinks_run_state="{s}"}}' for s in ("stopped", "complete")
    )

    def case(series: str, values: str, alert: str, minutes: dict[int, int]) -> dict[str, Any]:
        """The alert has so many instances at these minutes."""
        samples = {0: [], 1: [{"labels": "{}", "value": 1}]}
        named = 'job="nightly"' if "nightly" in series else 'server_address="h"'
        count = f'count(ALERTS{{alertname="{alert}", alertstate="firing", {named}}})'
        tests = [{"expr": count, "eval_time": f"{at}m", "exp_samples": samples[n]} for at, n in minutes.items()]
        return {"interval": "1m", "input_series": [{"series": series, "values": values}], "promql_expr_test": tests}

    (tmp_path / "test.yml").write_text(
        yaml.safe_dump(
            {
                "rule_files": [str(ROOT / "examples" / "prometheus_alerts.yml")],
                "evaluation_interval": "1m",
                "tests": [
                    case(calls, "_x2 9x20", "FlinksAuthSecretRefused", {1: 0, 3: 1, 12: 0}),  # a job that stopped
                    case(calls, "0+2x20", "FlinksAuthSecretRefused", {1: 0, 9: 1}),
                    case(held, "0 5 0 7 0 9 0 9 0 9 0x9", "FlinksHeldBack", {5: 0, 8: 1, 14: 0}),  # 0: a probe is due
                    case(held, "0 9 _x20", "FlinksHeldBack", {5: 0, 6: 0, 7: 0}),  # a process that ended
                    case(lost, "0 1 1 3 4 4x30", "FlinksWorkersLost", {2: 0, 5: 1, 25: 0}),
                    case(lost, "0 1 1x20", "FlinksWorkersLost", {1: 0, 2: 0, 9: 0}),  # one machine of many
                    case(missing, "0 1 1 1 1 0 0", "FlinksNoWorker", {2: 0, 4: 1, 6: 0}),
                    case(missing, "0 1 0 1 0 1 0", "FlinksNoWorker", {2: 0, 4: 0, 6: 0}),
                    case(stopped, "_ _ 1x3", "FlinksRunNotComplete", {1: 0, 3: 1}),  # the process ends with the run
                    case(stopped, "1 1 1 2 2x90", "FlinksRunNotComplete", {4: 1, 80: 0}),
                    case(complete, "_ _ 1 2 3", "FlinksRunNotComplete", {2: 0, 4: 0}),
                ],
            }
        )
    )
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_the_page_lists_every_span_and_attribute(telemetry: Telemetry, tmp_path: Path) -> None:
    await exported(telemetry, tmp_path)
    spans = telemetry.exporter.get_finished_spans()
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    table = page.partition("## Spans")[2].partition("## Jobs")[0]
    assert {span.name for span in spans} == set(re.findall(r"^\| `((?:flinks|GET) [^`]+)` \|", table, re.MULTILINE))
    rows = re.findall(r"^\| (`.+?) \| .* \| .* \|$", table.partition("| attribute |")[2], re.MULTILINE)
    listed = set()
    for row in rows:
        first, *others = re.findall(r"`([^`]+)`", row)
        listed |= {first, *(first.rpartition(".")[0] + other if other.startswith(".") else other for other in others)}
    assert {name for span in spans for name in attributes(span)} | {"flinks.request_id", "error.type"} == listed
