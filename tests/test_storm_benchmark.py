"""The simulation of a retry storm, on a tenth of its scale."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "retry_storm.py"


@pytest.fixture
def storm(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("retry_storm", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "retry_storm", module)
    spec.loader.exec_module(module)
    for name in ("CLIENTS", "CALLS_PER_SECOND", "HEALTHY", "IN_TROUBLE"):
        monkeypatch.setattr(module, name, getattr(module, name) // 10)
    return module


def test_only_ours_relieves_the_server_and_lets_it_recover(storm: ModuleType) -> None:
    naive = storm.simulate("naive", storm.NaiveClient)
    patient = storm.simulate("patient", storm.PatientClient)
    ours = storm.simulate("ours", storm.OurClient)
    assert naive.amplification > 2.5
    assert naive.recovery is None
    assert patient.amplification > 2.5  # jitter spreads retries out, but does not make them fewer
    assert ours.amplification < 1.0
    assert ours.recovery is not None
    assert ours.recovery < 30
    assert sum(ours.good) > 2 * sum(naive.good)
    assert storm.plot([naive, patient, ours]).startswith("<svg")
    assert storm.table([ours]).count("\n") == 2


def test_it_is_deterministic(storm: ModuleType) -> None:
    assert storm.simulate("ours", storm.OurClient) == storm.simulate("ours", storm.OurClient)
