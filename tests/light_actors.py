"""Ray actors that stand in for workers; nothing heavy is imported before it is needed."""

import os
import signal
from typing import Any


class LightActor:
    """Gives prompt numbers back, and dies of prompt 7."""

    def __init__(self, dies_at_start: bool = False) -> None:
        self.dies_at_start = dies_at_start

    def start(self) -> Any:
        if self.dies_at_start:
            os.kill(os.getpid(), signal.SIGKILL)
        from circuitspex.ablation import Room
        from circuitspex.cluster.worker import Started

        return Started({}, Room(1.0, "cpu"))

    def run(self, key: str, job: list[Any], chunk: Any) -> Any:
        from circuitspex.cluster.worker import Done

        if 7 in chunk.prompts:
            os.kill(os.getpid(), signal.SIGKILL)
        return Done(chunk.prompts.astype(float), None)
