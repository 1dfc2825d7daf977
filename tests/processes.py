"""What code prints in processes of its own, where no state and no hash order is shared."""

import subprocess
import sys


def outputs_by_hash_seed(code: str) -> list[str]:
    """Return what the code prints under two different orders of sets of strings."""
    return [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PATH": ""},
        ).stdout
        for seed in ("1", "2")
    ]
