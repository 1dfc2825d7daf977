"""Trackers: one contract for all, real offline W&B runs read back, and W&B failing everywhere."""

import json
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from circuitspex._shared import Spec
from circuitspex.algebra import Interactions
from circuitspex.circuits import Circuit, CircuitReport
from circuitspex.errors import TrackingWarning
from circuitspex.evaluation.store import MemoryStore
from circuitspex.findings import Findings
from circuitspex.report import head_map_image, write_page
from circuitspex.tracking import NullTracker, Tracker, _wandb, wandb_tracker
from circuitspex.verification import Verification

UNITS = ("L0H0", "L0H1", "L1H0", "L1H1")
SPEC = Spec(
    {"model": "toy", "task": {"name": "ioi"}, "n_units": 4, "n_prompts": 2},
    {"decoder": "lasso", "keep_rate": 0.9},
    {"torch": "2.13"},
)
INTERACTIONS = Interactions(
    n_units=4,
    units=UNITS,
    basis="moebius",
    origin="intact",
    keep_rate=0.9,
    support=((), (0,), (2,), (0, 2), (1, 2, 3)),
    coefficients=torch.tensor([4.0, -1.0, -0.5, -2.0, 0.25]),
    covariance=torch.eye(5, dtype=torch.float64) * 0.01,
    error_source="masks",
    n_evaluations=400,
    held_out_r2=0.75,
    decoder="lasso",
)
CIRCUIT = Circuit((0, 2), ("L0H0", "L1H0"), 4, 3.5, 0.9, "lasso")
VERIFICATION = CircuitReport(
    units=CIRCUIT.units,
    n_units=4,
    intact=4.0,
    ablated=-1.0,
    circuit=3.0,
    faithfulness=0.8,
    std_error=0.05,
    predicted_value=3.5,
    predicted_faithfulness=0.9,
    held_out=True,
    n_prompts=8,
    n_evaluations=24,
)

VERIFIED = Verification(
    units=UNITS,
    around="intact",
    support=((0, 2), (1, 2, 3), (0, 1)),
    estimates=(-2.0, 0.25, 0.125),
    verdicts=("verified", "refuted", "not checked"),
    measured=(-1.5, -0.25, None),
    std_errors=(0.25, 0.125, None),
    intervals=((-2.0, -1.0), (-0.5, 0.0), None),
    p_values=(0.001, 0.1, None),
    prompt_values=((-1.25, -1.75), (-0.125, -0.375), None),
    n_prompts=2,
    n_evaluations=22,
)

FINDINGS = Findings(SPEC, INTERACTIONS, VERIFIED, CIRCUIT, VERIFICATION)
BARE = Findings(SPEC, INTERACTIONS)


def make_evaluations() -> pa.Table:
    store = MemoryStore(4, 2)
    masks = torch.tensor([[True, False, True, True], [True, True, True, False]])
    store.append(masks, torch.tensor([0, 1]), torch.tensor([1.25, -3.5]))
    return store.table()


@pytest.fixture(autouse=True)
def _wandb_at_home(tmp_path, monkeypatch):
    """Keep what W&B writes and says inside the test."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


class FakeRun:
    def __init__(self, world: "FakeWandb") -> None:
        self._world = world

    def log(self, values):
        self._world.call("log")

    def log_artifact(self, artifact):
        self._world.call("log_artifact")

    def finish(self, exit_code):
        self._world.call("finish")


class FakeWandb:
    """Stands in for the module; raises at one call, and remembers all of them."""

    def __init__(self, fails_at: str) -> None:
        self.fails_at, self.calls = fails_at, []

    def call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails_at:
            raise RuntimeError(f"no {name} today")

    def init(self, **options):
        self.call("init")
        return FakeRun(self)

    def Artifact(self, name, type):
        self.call("Artifact")
        return SimpleNamespace(add_file=lambda path, name: self.call("add_file"))

    def __getattr__(self, name):
        return lambda *args, **options: self.call(name)


def offline_tracker(folder: Path) -> Tracker:
    return wandb_tracker("test", mode="offline", directory=folder, group="sweep", tags=["a", "b"])


def finish(tracker: Tracker, page: Path | None = None) -> None:
    tracker.finish(FINDINGS, page=page, evaluations=make_evaluations())


# The contract


@pytest.fixture(params=["null", "disabled", "offline", "broken"])
def tracker(request, tmp_path, monkeypatch) -> Tracker:
    if request.param == "null":
        return NullTracker()
    if request.param == "disabled":
        return wandb_tracker(mode="disabled")
    if request.param == "broken":
        monkeypatch.setattr(_wandb, "wandb", FakeWandb("init"))
    return offline_tracker(tmp_path)


@pytest.mark.filterwarnings("ignore::circuitspex.errors.TrackingWarning")
def test_every_tracker_takes_a_whole_run_and_a_bare_one(tracker):
    assert isinstance(tracker, Tracker)
    with tracker as entered:
        assert entered is tracker
        tracker.start(SPEC)
        tracker.log({"perf/masks_per_s": 50.0})
        finish(tracker)
        tracker.start(SPEC)
        assert tracker.finish(BARE) is None


@pytest.mark.filterwarnings("ignore::circuitspex.errors.TrackingWarning")
def test_no_tracker_swallows_the_error_of_the_run(tracker):
    def run():
        with tracker:
            tracker.start(SPEC)
            raise ZeroDivisionError("division by zero")

    with pytest.raises(ZeroDivisionError, match="division by zero"):
        run()


def test_a_tracker_that_was_not_started_does_nothing(tracker, tmp_path):
    with tracker:
        tracker.log({"a": 1.0})
        finish(tracker)
    assert not list(tmp_path.glob("wandb/offline-run-*"))


# Scalars


def test_scalars_sum_the_result_up():
    scalars = FINDINGS.scalars
    energy = {name: scalars.pop(name) for name in list(scalars) if name.startswith("energy/")}
    assert scalars == {
        "fit/r2_heldout": 0.75,
        "fit/n_terms": 5,
        "fit/n_evaluations": 400,
        "circuit/n_units": 2,
        "circuit/predicted_faithfulness": 0.9,
        "eval/faithfulness": 0.8,
        "eval/faithfulness_std_error": 0.05,
        "eval/intact": 4.0,
        "eval/ablated": -1.0,
        "eval/circuit": 3.0,
        "interactions/n_verified": 1,
        "interactions/n_refuted": 1,
        "interactions/n_undecided": 0,
        "interactions/n_not_checked": 1,
        "interactions/n_evaluations": 22,
    }
    expected = {f"energy/order_{k}": e for k, e in INTERACTIONS.energy_by_order().items()}
    assert energy == expected
    assert set(energy) == {"energy/order_1", "energy/order_2", "energy/order_3"}


def test_what_was_not_measured_is_no_scalar():
    scalars = BARE.scalars
    assert "eval/faithfulness" not in scalars
    assert "interactions/n_verified" not in scalars


# A real run, read back


def read_records(path: Path) -> Iterator[Any]:
    """Read W&B's transaction log: a LevelDB log after a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    new_record: Any = vars(wandb_internal_pb2)["Record"]
    data, offset, parts = path.read_bytes(), 7, b""
    while offset + 7 <= len(data):
        if 32768 - offset % 32768 < 7:  # no header fits into the rest of the block
            offset += 32768 - offset % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, offset)
        if offset + 7 + length > len(data):  # still being written
            return
        parts += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # whole, or last
            record = new_record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class OfflineRun:
    """What one offline run left on disk."""

    def __init__(self, folder: Path) -> None:
        (self.folder,) = (folder / "wandb").glob("offline-run-*")
        (self.log,) = self.folder.glob("run-*.wandb")
        self.records = []
        deadline = time.monotonic() + 30  # W&B's service writes on after finish() has returned
        while not self.of_kind("exit") and time.monotonic() < deadline:
            time.sleep(0.05)
            self.records = list(read_records(self.log))

    def of_kind(self, kind: str) -> list[Any]:
        records = [r for r in self.records if r.WhichOneof("record_type") == kind]
        return [getattr(record, kind) for record in records]

    def history(self) -> dict[str, Any]:
        items = [item for row in self.of_kind("history") for item in row.item]
        return {
            "/".join([i.key, *i.nested_key]).strip("/"): json.loads(i.value_json) for i in items
        }

    def artifact(self, kind: str) -> dict[str, Path]:
        (artifact,) = [record for record in self.of_kind("artifact") if record.type == kind]
        return {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}

    def media(self, pattern: str) -> Path:
        (path,) = (self.folder / "files" / "media").glob(pattern)
        return path


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory) -> OfflineRun:
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(folder))
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("SOME_SECRET", "hunter2-the-secret")
        page = write_page(folder / "report.html", FINDINGS)
        with offline_tracker(folder) as tracker:
            tracker.start(SPEC)
            tracker.log({"perf/masks_per_s": 50.0})
            finish(tracker, page)
    return OfflineRun(folder)


def test_the_run_is_named_by_the_spec_and_configured_with_it(offline_run):
    run = offline_run.of_kind("run")[0]
    assert run.run_id == SPEC.run_hash
    assert (run.project, run.run_group, list(run.tags)) == ("test", "sweep", ["a", "b"])
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    config.pop("_wandb", None)
    assert config == SPEC.as_dict()


def test_environment_variables_stay_at_home(offline_run):
    assert "hunter2-the-secret" not in offline_run.log.read_bytes().decode(errors="ignore")


def test_the_scalars_are_logged(offline_run):
    history = offline_run.history()
    expected = {
        "perf/masks_per_s": 50.0,
        **FINDINGS.scalars,
    }
    assert {name: history[name] for name in expected} == pytest.approx(expected)


def test_the_interactions_are_a_table(offline_run):
    table = json.loads(offline_run.media("table/interactions_*.table.json").read_text())
    assert table["columns"] == [
        "units", "order", "coefficient", "std_error", "low", "high", "average", "kind", "measured",
        "measured_std_error", "measured_low", "measured_high", "measured_p_value", "verdict",
        "basis", "origin",
    ]  # fmt: skip
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    first, second, *others = rows
    assert first["units"] == "L0H0 + L1H0"
    assert (first["order"], first["kind"], first["coefficient"]) == (2, "redundant", -2.0)
    assert [first["low"], first["high"]] == pytest.approx([-2.196, -1.804], abs=1e-3)
    assert list(first.values())[8:14] == [-1.5, 0.25, -2.0, -1.0, 0.001, "verified"]
    assert second["units"] == "L0H1 + L1H0 + L1H1"
    assert list(second.values())[8:14] == [-0.25, 0.125, -0.5, 0.0, 0.1, "refuted"]
    assert [row["verdict"] for row in others] == ["not checked"] * 2
    assert [row["units"] for row in rows] == [term.label for term in FINDINGS.terms]
    assert [row["coefficient"] for row in rows] == [term.coefficient for term in FINDINGS.terms]


def test_the_page_is_logged_as_it_is(offline_run):
    page = offline_run.media("html/report_*.html").read_text()
    assert page == (offline_run.folder.parent.parent / "report.html").read_text()


def test_the_head_map_is_an_image(offline_run):
    from PIL import Image

    with Image.open(offline_run.media("images/head_map_*.png")) as image:
        pixels = np.asarray(image.convert("RGB"))
    expected = head_map_image(FINDINGS)
    assert expected is not None
    np.testing.assert_array_equal(pixels, expected)


def test_the_circuit_is_an_artifact_that_loads(offline_run, tmp_path):
    files = offline_run.artifact("circuit")
    assert Spec.load(files["spec.json"]) == SPEC
    assert Circuit.load(files["circuit.json"]) == CIRCUIT
    assert CircuitReport.load(files["verification.json"]) == VERIFICATION
    assert Verification.load(files["verified_interactions.json"]) == VERIFIED
    loaded = Interactions.load(files["interactions.json"])
    torch.testing.assert_close(loaded.coefficients, INTERACTIONS.coefficients, rtol=0, atol=0)
    for name, file in files.items():
        shutil.copy(file, tmp_path / name)
    assert FINDINGS.differences(Findings.load(tmp_path)) == {}


def test_the_evaluations_are_an_artifact_that_loads(offline_run):
    files = offline_run.artifact("mask-evals")
    assert pq.read_table(files["evaluations.parquet"]).equals(make_evaluations())


def test_a_finished_run_succeeded_and_a_block_left_early_failed(offline_run, tmp_path):
    assert [record.exit_code for record in offline_run.of_kind("exit")] == [0]

    def interrupted_run():
        with offline_tracker(tmp_path) as tracker:
            tracker.start(SPEC)
            raise KeyboardInterrupt("by hand")

    with pytest.raises(KeyboardInterrupt, match="by hand"):
        interrupted_run()
    assert [record.exit_code for record in OfflineRun(tmp_path).of_kind("exit")] == [1]


# W&B failing

CALLS = (
    "init", "Settings", "log", "Table", "Html", "Artifact", "add_file", "log_artifact", "Image",
    "finish",
)  # fmt: skip


def run_on_fake(fake: FakeWandb, tmp_path: Path) -> None:
    with offline_tracker(tmp_path) as tracker:
        tracker.start(SPEC)
        tracker.log({"perf/masks_per_s": 50.0})
        finish(tracker, tmp_path / "report.html")


@pytest.mark.parametrize("call", CALLS)
def test_any_failing_call_is_one_warning_and_then_silence(call, tmp_path, monkeypatch):
    fake = FakeWandb(call)
    monkeypatch.setattr(_wandb, "wandb", fake)
    with pytest.warns(
        TrackingWarning, match=f"RuntimeError: no {call} today.*not affected"
    ) as said:
        run_on_fake(fake, tmp_path)
    assert len(said) == 1
    after = fake.calls[fake.calls.index(call) + 1 :]
    started = call not in ("init", "Settings")
    assert after == (["finish"] if started else [])


def test_the_fake_is_called_for_everything_when_nothing_fails(tmp_path, monkeypatch):
    fake = FakeWandb("nothing")
    monkeypatch.setattr(_wandb, "wandb", fake)
    run_on_fake(fake, tmp_path)
    assert set(fake.calls) == set(CALLS)
    assert fake.calls[-1] == "finish"


def test_the_end_of_a_run_waits_for_a_server_only_so_long(tmp_path, monkeypatch):
    import wandb

    given = []
    monkeypatch.setattr(wandb, "init", lambda **options: given.append(options["settings"]))
    offline_tracker(tmp_path).start(SPEC)
    assert 0 < given[0].finish_timeout <= 3600
    assert given[0].finish_timeout_raises
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "5")
    offline_tracker(tmp_path).start(SPEC)
    assert "finish_timeout" not in given[1].model_fields_set


def test_a_wandb_that_cannot_be_imported_is_one_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.delitem(sys.modules, "circuitspex.tracking._wandb")
    monkeypatch.delattr("circuitspex.tracking._wandb")
    with pytest.warns(TrackingWarning, match="cannot be imported .* pip install wandb") as said:
        tracker = wandb_tracker()
    assert len(said) == 1
    assert isinstance(tracker, NullTracker)


def test_a_result_that_cannot_be_written_is_a_warning_too(tmp_path, monkeypatch):
    monkeypatch.setattr(_wandb, "wandb", FakeWandb("nothing"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.warns(TrackingWarning, match="while logging the artifacts") as said:
        run_on_fake(FakeWandb("nothing"), tmp_path)
    assert len(said) == 1


@pytest.mark.slow
def test_wandb_is_imported_only_when_asked_for():
    code = "import sys, circuitspex.tracking as tracking\n" + "".join(
        f"tracking.wandb_tracker(mode={mode!r})\nprint('wandb' in sys.modules)\n"
        for mode in ("disabled", "offline")
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True"]
