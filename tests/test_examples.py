"""Each file in `examples` runs, in a process of its own, against a simulated Flinks."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import duckdb
import pytest
import yaml

from flinks_async.cli import Exit
from flinks_async.cli.app import app
from flinks_async.testing import ServeOptions, ServerProcess

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

pytestmark = [pytest.mark.slow, pytest.mark.once]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(ServeOptions(size="medium")) as process:
        yield process


def environment(server: ServerProcess, **more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("FLINKS_", "OTEL_"))}
    return own | {"FLINKS_BASE_URL": server.base_url, "FLINKS_AUTH_SECRET": server.auth_secret} | more


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def service(server: ServerProcess, *command: str, **more: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    port = free_port()
    environ = environment(server, PORT=str(port), **more)
    arguments = [word.replace("{port}", str(port)) for word in command]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=EXAMPLES, env=environ, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.communicate()


def get(url: str) -> tuple[int, Any]:
    try:
        with urlopen(url, timeout=30) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.loads(error.read() or b"null") if "json" in error.headers["Content-Type"] else None


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("fastapi", ["fastapi_service.py"]),
        ("aiohttp", ["aiohttp_service.py"]),
        ("django", ["-m", "uvicorn", "django_service:application", "--port", "{port}"]),
    ],
)
def test_services_answer_map_errors_and_end_when_asked(server: ServerProcess, module: str, command: list[str]) -> None:
    pytest.importorskip(module)
    pytest.importorskip("uvicorn")
    with service(server, *command) as (url, process):
        status, balances = get(f"{url}/balance/u1")
        assert (status, set(balances)) == (200, {"Chequing CAD", "Savings"})
        assert get(f"{url}/balance/nobody")[0] == 404
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM), said
    assert "Traceback" not in said
    with service(server, *command, FLINKS_AUTH_SECRET="refused") as (url, _):
        assert get(f"{url}/balance/u1") in [
            (502, {"error": "AuthenticationError"}),
            (502, {"error": "AuthenticationError", "request_id": None}),
        ]


def test_a_request_in_flight_ends_before_the_service_does() -> None:
    pytest.importorskip("uvicorn")
    with (
        ServerProcess(ServeOptions(latency=("fixed", 3.0, 0.0))) as slow,
        service(slow, "fastapi_service.py") as (url, process),
    ):
        client = subprocess.Popen(
            [sys.executable, "-c", f"import urllib.request as u; print(u.urlopen('{url}/balance/u1').status)"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        until(lambda: slow.stats()["requests"])
        process.send_signal(signal.SIGTERM)
        assert client.communicate(timeout=30)[0].strip() == "200"
        process.communicate(timeout=30)


def test_the_nightly_job_fetches_resumes_and_draws(server: ServerProcess, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    (tmp_path / "people.csv").write_text("token,user\n" + "".join(f"t-{n},u-{n}\n" for n in range(50)))
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, EXAMPLES / "nightly_job.py", "people.csv", "out"],
            check=False, cwd=tmp_path, env=environment(server, MPLBACKEND="agg"), capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "complete: 50 fetched, 0 failed\n"), done.stderr
    assert "<svg" in (tmp_path / "out" / "cash-flow.svg").read_text()


def test_the_nightly_assets_resume_a_job_that_was_killed(server: ServerProcess, tmp_path: Path) -> None:
    pytest.importorskip("dagster")
    (tmp_path / "people.csv").write_text("token,user\n" + "".join(f"t-{n},u-{n}\n" for n in range(3000)))
    (tmp_path / "dagster").mkdir()
    environ = environment(
        server,
        TOKENS="people.csv",
        OUT="nights",
        DAGSTER_HOME=str(tmp_path / "dagster"),
        DAGSTER_DISABLE_TELEMETRY="yes",
    )
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "-f", str(EXAMPLES / "dagster_nightly.py")]
    command += ["--select", "*", "--partition", "2026-11-28"]
    first = subprocess.Popen(
        command, cwd=tmp_path, env=environ, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    log = tmp_path / "nights" / "2026-11-28" / "job.log"
    for _ in range(600):
        if log.exists() and "run begins" in log.read_text():
            break
        assert first.poll() is None
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "RUN_SUCCESS" in done.stderr
    assert log.read_text().count("run begins") == 2
    assert "run over: complete" in log.read_text()
    with duckdb.connect(str(tmp_path / "nights" / "answers.duckdb"), read_only=True) as db:
        assert db.sql('SELECT count(*), count(DISTINCT "key") FROM current_fetches').fetchall() == [(3000, 3000)]


def test_the_notebook_runs(server: ServerProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("ipykernel", "pandas", "polars"):
        pytest.importorskip(package)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    program = (
        "import sys, nbformat, nbclient\n"
        "notebook = nbformat.read(sys.argv[1], 4)\n"
        "nbclient.NotebookClient(notebook, timeout=100).execute()\n"
        "print(notebook.cells[-1].outputs[0].data['text/plain'])\n"
    )
    assert nbformat.read(EXAMPLES / "answers.ipynb", 4)
    assert nbclient
    done = subprocess.run(
        [sys.executable, "-c", program, EXAMPLES / "answers.ipynb"],
        check=False, cwd=tmp_path, env=environment(server), capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "user-4" in done.stdout


# --- the tutorials, as they are written ------------------------------------------------------------------------------------


def commands(document: str, folder: Path, port: int) -> list[str]:
    """The shell blocks of a tutorial, with a free port for the simulator and without the commands that install packages.
    Writes its Python block into the file that it names.
    """
    text = (ROOT / "docs" / document).read_text(encoding="utf-8").replace("8085", str(port))
    named, program = (
        re.search(r"`(\w+\.py)`", text),
        re.search(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL),
    )
    assert named
    assert program
    (folder / named[1]).write_text(program[1], encoding="utf-8")
    installs = re.compile(r"^(python3 -m venv|\. \.venv|pip install).*\n", re.MULTILINE)
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [left for block in blocks if (left := installs.sub("", block))]


@contextmanager
def shell(command: str, folder: Path, **given: str) -> Iterator[subprocess.Popen[str]]:
    """A command in the background, in a process group of its own."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FLINKS_")}
    process = subprocess.Popen(
        ["bash", "-ec", command], cwd=folder, env={**clean, "PATH": programs, **given}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def until(condition: Callable[[], object]) -> None:
    for _ in range(300):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to pass within 30 s")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_first_service_works_as_its_tutorial_says(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    simulator, port = free_port(), free_port()
    simulate, serve, faults, serve_again = commands("tutorial-service.md", tmp_path, simulator)
    moved = f" --port {port}"
    export = serve.splitlines()[0]
    promised = re.search(r"`(\{.*\})`", (ROOT / "docs" / "tutorial-service.md").read_text(encoding="utf-8"))
    url = f"http://127.0.0.1:{port}/balance/u1"
    with shell(simulate, tmp_path), shell(serve.strip() + moved, tmp_path):
        until(lambda: answers(simulator) and answers(port))
        assert promised is not None
        assert get(url) == (200, json.loads(promised[1]))
        assert get(url.replace("u1", "u2"))[0] == 404
    with shell(f"{export}\n{serve_again.strip()}{moved}", tmp_path) as service_:
        with shell(faults, tmp_path):
            until(lambda: answers(simulator) and answers(port))
            found = [get(url)[0] for _ in range(20)]
            assert found.count(200) > 10
        assert get(url) == (502, {"detail": "ConnectError"})
        with shell(simulate, tmp_path):
            until(lambda: answers(simulator) and get(url)[0] == 200)
        os.killpg(service_.pid, signal.SIGTERM)
        assert "the next one in" in service_.communicate(timeout=30)[0]


def test_the_first_job_works_as_its_tutorial_says(tmp_path: Path) -> None:
    simulator = free_port()
    simulate, fetch, again, check, query = commands("tutorial-job.md", tmp_path, simulator)
    export, *_ = fetch.splitlines()
    subprocess.run([sys.executable, "people.py"], cwd=tmp_path, check=True)

    def done(command: str) -> tuple[int, str]:
        with shell(f"{export}\n{command}", tmp_path) as process:
            said = process.communicate(timeout=100)[0]
            return process.returncode, said

    with shell(simulate, tmp_path):
        until(lambda: answers(simulator))
        with shell(fetch, tmp_path):
            until(lambda: re.search(r"shards, [1-9]\d* done", done("flinks-async status jobs/first")[1]))
        code, said = done(again)
        assert re.search(r"^  fetched +5,000$", said, re.MULTILINE), said
        assert (code, "Answers differ" in said) == (1, False)  # one line of the file is no token
        assert len((tmp_path / "jobs/first/duplicates.jsonl").read_text().splitlines()) == 1
        code, said = done(f"set +e\n{check}")
        assert (code, "No problem found." in said) == (0, True)
        assert done(query) == (0, "[('CAD', 10000)]\n")


# --- Kubernetes -------------------------------------------------------------------------------------------------------

CRON_JOB = EXAMPLES / "kubernetes" / "cronjob.yaml"


def test_the_cron_job_fits_the_schema_and_is_restricted() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    manifest = yaml.safe_load(CRON_JOB.read_text())
    validator.validate(manifest, "1.30", strict=True)
    pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    drain = float(container["args"][container["args"].index("--drain") + 1])
    assert pod["terminationGracePeriodSeconds"] >= drain + 10
    uid = str(pod["securityContext"]["runAsUser"])
    assert f"--uid {uid}" in (CRON_JOB.parent / "Dockerfile").read_text()
    codes = manifest["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert codes == [Exit.USAGE, Exit.REFUSED]


def checked_containers(manifests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The containers by name, of manifests that fit the schema and are restricted. Pods of a RayCluster are checked as pods."""
    validator = pytest.importorskip("kubernetes_validate")
    containers = {}
    for manifest in manifests:
        spec = manifest.get("spec", {})
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if manifest["kind"] == "RayCluster" else [spec]
        if manifest["kind"] != "RayCluster":
            validator.validate(manifest, "1.30", strict=True)
        for template in [group["template"] for group in groups if "template" in group]:
            pod = template["spec"]
            validator.validate(
                {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": pod}, "1.30", strict=True
            )
            assert pod["securityContext"]["runAsNonRoot"]
            (container,) = pod["containers"]
            assert container["securityContext"]["readOnlyRootFilesystem"]
            containers[container["name"]] = container
    return containers


def assert_parsed(arguments: list[str]) -> None:
    with app.make_context("flinks-async", arguments[:]) as whole:
        app.commands[arguments[0]].make_context(arguments[0], arguments[1:], parent=whole)


def test_the_ray_cluster_fits_the_schema_and_its_commands_exist() -> None:
    start = pytest.importorskip("ray.scripts.scripts").start
    manifests = list(yaml.safe_load_all((EXAMPLES / "kubernetes" / "ray.yaml").read_text()))
    spec = manifests[0]["spec"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        start.make_context("start", [f"--{name}={value}" for name, value in group["rayStartParams"].items()])
    assert_parsed(checked_containers(manifests)["fetch"]["args"])


def test_the_dask_cluster_fits_the_schema_and_its_commands_and_settings_exist() -> None:
    config = pytest.importorskip("dask.config")
    manifests = list(yaml.safe_load_all((EXAMPLES / "kubernetes" / "dask.yaml").read_text()))
    containers = checked_containers(manifests)
    for name in ("scheduler", "worker"):
        program, command, *arguments = containers[name]["command"]
        assert program == "dask"
        main = import_module(f"distributed.cli.dask_{command}").main
        main.make_context(command, arguments)  # parses them
    assert_parsed(containers["fetch"]["args"])
    (known,) = config.collect_yaml([str(Path(import_module("distributed").__file__ or "").parent / "distributed.yaml")])
    for variable in manifests[0]["data"]:
        names = (
            variable.removeprefix("DASK_").lower().replace("_file", "-file").replace("require_", "require-").split("__")
        )
        assert config.get(".".join(names), default="missing", config=known) != "missing", variable


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")),
    reason="needs root on Linux, unshare and setpriv",
)
def test_the_command_of_the_cron_job_runs_without_root_on_a_read_only_file_system_and_stops_when_asked() -> None:
    manifest = yaml.safe_load(CRON_JOB.read_text())
    pod = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    uid = str(pod["securityContext"]["runAsUser"])
    args = [argument.replace("$(NIGHT)", "night-1") for argument in pod["containers"][0]["args"]]
    given = {
        entry["name"]: entry["value"].replace("/data", "/mnt/data")
        for entry in pod["containers"][0]["env"]
        if "value" in entry
    }
    # Mounts as in the pod: everything is read-only, but for the volume, which belongs to root and to the group.
    mounts = (
        "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt && mkdir /mnt/data /mnt/tokens /mnt/secret /mnt/python && "
        f"mount --bind {sys.base_prefix} /mnt/python && "  # perhaps in the home of root, where others may not look
        f"chown root:{uid} /mnt/data && chmod 2775 /mnt/data && "
        "{ echo token,user; seq 20000 | sed 's/.*/t-&,u-&/'; } >/mnt/tokens/people.csv && "
        'printf %s "$SECRET" >/mnt/secret/auth-secret && mount -o remount,bind,ro / && '
        f"exec setpriv --reuid {uid} --regid {uid} --clear-groups --no-new-privs --inh-caps=-all env -u SECRET "
    )
    with ServerProcess(ServeOptions(latency=("fixed", 0.02, 0.0))) as server:
        moved = [
            argument.replace("/data/", "/mnt/data/")
            .replace("/tokens/", "/mnt/tokens/")
            .replace("/secret/", "/mnt/secret/")
            for argument in args
        ]
        environ = environment(server, SECRET=server.auth_secret, HOME="/", **given)
        environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
        environ["LD_LIBRARY_PATH"] = "/mnt/python/lib"
        python = Path("/mnt/python", Path(sys.executable).resolve().relative_to(Path(sys.base_prefix).resolve()))
        del environ["FLINKS_AUTH_SECRET"]
        command = f'{mounts} "$0" -m flinks_async.cli "$@"'
        process = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", command, str(python), *moved],
            env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = []
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if '"fetched"' in line and '"fetched":0' not in line.replace(" ", ""):
                break
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=pod["terminationGracePeriodSeconds"])[1]
    assert process.returncode == Exit.SIGTERM, "".join(said) + rest
    assert time.monotonic() - began < 20
