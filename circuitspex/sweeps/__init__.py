"""A W&B sweep file in, many runs and their comparison in one folder out; no server needed."""

from circuitspex.sweeps.collecting import Collected, collect, sync
from circuitspex.sweeps.expansion import expand
from circuitspex.sweeps.file import SweepFile, parse_sweep, read_sweep
from circuitspex.sweeps.jobs import states_with_jobs, submit_sweep, sweep_script
from circuitspex.sweeps.manifest import Manifest, plan_sweep, read_manifest
from circuitspex.sweeps.running import WandbMode, due, run_entry, run_sweep
from circuitspex.sweeps.state import RunState, run_state, sweep_states
