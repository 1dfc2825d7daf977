"""Execute notebooks from empty and fail where a cell fails: ``python -m notebooks.run FILE ...``.

A notebook in the repository holds no outputs, or those of one run from top to bottom: ``--write``
stores them. Outputs of a file are never read, so a cell that no longer runs cannot hide behind them.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path, *, write: bool) -> None:
    """Execute one notebook in a fresh kernel.

    Args:
        path: The notebook.
        write: Whether to store its new outputs in the file.
    """
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    client = NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": "."}}, record_timing=False
    )
    client.execute()
    if write:
        for cell in code:  # without stderr, whose warnings name paths of this machine
            cell.outputs = [part for part in cell.outputs if part.get("name") != "stderr"]
        nbformat.write(notebook, path)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument != "--write":
            run(Path(argument), write="--write" in sys.argv)
