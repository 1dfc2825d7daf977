"""Execute notebooks from empty and fail where a cell fails: ``python -m notebooks.run FILE ...``.

The files in the repository hold no outputs; ``--write`` stores what was run beside the original, as
``NAME.executed.ipynb``, to look at.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(path: Path, *, write: bool) -> None:
    """Execute one notebook in a fresh kernel.

    Args:
        path: The notebook; it must hold no outputs.
        write: Whether to store the executed copy.

    Raises:
        ValueError: If the notebook was committed with outputs.
    """
    notebook = nbformat.read(path, as_version=4)
    if any(cell.get("outputs") for cell in notebook.cells):
        raise ValueError(f"{path} holds outputs; clear them before committing.")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": "."}}).execute()
    if write:
        nbformat.write(notebook, path.with_suffix(".executed.ipynb"))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        if argument != "--write":
            run(Path(argument), write="--write" in sys.argv)
