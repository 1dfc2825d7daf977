"""The import rules of the package, read from its source, each with a negative control."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "circuitspex"

SHARED = ["errors", "_shared"]
MATHEMATICS = ["algebra", "designs", "decoders", "games", "verification", "circuits"]
MODEL = ["models", "units", "ablation", "tasks", "evaluation", "lenses"]
PEOPLE = ["findings", "report", "tracking", "cluster", "spex", "runs", "sweeps", "cli"]
ORDER = [*SHARED, *MATHEMATICS, *MODEL, *PEOPLE]
"""A room imports only those before it."""
MEETING = {("evaluation", "algebra"), ("lenses", "algebra")}
"""Where the model may import mathematics."""
LAZY = {("findings", "report")}
"""Where a room may import a later one inside a function: findings can write their own page."""
INNER = {
    "decoders": ["measuring", "regression", "codes", "around_intact", "process"],
    "evaluation": ["store"],
}
"""Rooms within a room, in the order of their imports; the room's own files come after them."""
ROOT = {"__init__", "spex", "findings", "errors"}

FENCES = {
    "transformer_lens": {"units", "ablation", "models"},
    "transformers": {"models"},
    "gguf": {"models"},
    "wandb": {"tracking/_wandb"},
    "lightgbm": {"decoders"},
    "ray": {"cluster"},
    "submitit": {"cluster"},
    "plotly": {"report"},
    "pyarrow": {"evaluation/store", "tracking"},
    "yaml": {"_shared", "runs"},
    "typer": {"cli"},
    "rich": {"cli"},
}


def room_of(path: str) -> str:
    """Name the room that a file or module is in, such as ``decoders/codes``."""
    parts = path.split("/")
    inner = parts[1:2] if parts[0] in INNER and parts[1:2][0:1] else []
    return "/".join([parts[0], *(name for name in inner if name in INNER[parts[0]])])


def imports(source: str) -> Iterator[tuple[str, str, bool]]:
    """Yield the module of every import, what is taken from it, and whether in a function."""
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inside = {node for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "", node in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "relative imports hide the rules"
            yield from ((node.module, alias.name, node in inside) for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """Name every rule that a file breaks; ``path`` is relative to the package, without ``.py``."""
    found = []
    for module, name, lazily in imports(source):
        top, _, rest = module.partition(".")
        if top == "circuitspex" and path != "__init__":
            target = rest.replace(".", "/") or name
            found += [
                f"{path} imports {module}.{name}: {rule}"
                for rule in broken(path, target, name, lazily)
            ]
        allowed = FENCES.get(top)
        if allowed is not None and not any(path == a or path.startswith(f"{a}/") for a in allowed):
            found.append(f"{path} imports {module}: outside its fence")
    return found


def broken(path: str, target: str, name: str, lazily: bool) -> Iterator[str]:
    """Yield the rules that importing ``name`` from ``target`` breaks in a file."""
    mine, theirs = room_of(path), room_of(target)
    here, there = mine.split("/")[0], theirs.split("/")[0]
    if there not in ORDER:
        yield "the package itself, or no known room"
        return
    if mine != theirs:
        if target != theirs:
            yield "reaches past the door of a room"
        if name.startswith("_") and name != "_shared":
            yield "a name with an underscore stays in its room"
    if here != there:
        late = ORDER.index(there) > ORDER.index(here)
        if late and not (lazily and (here, there) in LAZY):
            yield "lower never imports higher"
        halves = [half for half in (MATHEMATICS, MODEL) for room in (here, there) if room in half]
        if len({id(half) for half in halves}) > 1 and (here, there) not in MEETING:
            yield "mathematics and model never meet here"
    elif mine != theirs:
        order = [f"{here}/{inner}" for inner in INNER[here]] + [here]
        if order.index(theirs) > order.index(mine):
            yield "an inner room imports only those before it"


def real_violations() -> list[str]:
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).with_suffix("").as_posix().removesuffix("/__init__")
        found += violations(path, file.read_text())
    return found


def test_package_keeps_the_import_rules() -> None:
    assert real_violations() == []


def test_the_root_holds_only_what_a_newcomer_opens_first() -> None:
    files = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py"}
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files <= ROOT
    assert ROOT | rooms == {"__init__", *ORDER}


def test_every_inner_room_is_known() -> None:
    inner = {
        path.parent.relative_to(PACKAGE).as_posix() for path in PACKAGE.glob("*/*/__init__.py")
    }
    assert inner == {f"{room}/{name}" for room, names in INNER.items() for name in names}


@pytest.mark.parametrize("door", sorted(PACKAGE.glob("*/**/__init__.py")), ids=str)
def test_a_door_says_in_a_sentence_what_a_room_is(door: Path) -> None:
    first = (ast.get_docstring(ast.parse(door.read_text())) or "").split("\n")[0]
    assert first.endswith(".")


@pytest.mark.parametrize(
    ("path", "source", "rule"),
    [
        ("algebra/masks", "from circuitspex import decoders", "lower never imports higher"),
        ("designs/bch", "from circuitspex.decoders import get", "lower never"),
        ("units/sites", "from circuitspex.ablation import ablate", "lower never"),
        ("decoders/lasso", "from circuitspex.ablation import ablate", "never meet"),
        ("ablation/forking", "from circuitspex.algebra import pack", "never meet"),
        ("circuits/criteria", "def f():\n    from circuitspex.tasks import Task", "never meet"),
        ("decoders/lasso", "from circuitspex.algebra.masks import pack", "past the door"),
        ("spex", "from circuitspex.decoders.codes.bins import decode_bins", "past the door"),
        ("decoders/spex", "from circuitspex.decoders.codes.bins import decode_bins", "past the"),
        ("decoders/spex", "from circuitspex.algebra import _pack", "underscore stays"),
        ("decoders/codes/bins", "from circuitspex.decoders.process import Process", "before it"),
        ("decoders/codes/bins", "from circuitspex.decoders import get", "before it"),
        ("evaluation/store/base", "from circuitspex.evaluation import Rows", "before it"),
        ("evaluation/evaluation", "import transformer_lens", "outside its fence"),
        ("spex", "def f():\n    import wandb", "outside its fence"),
        ("tracking/base", "import wandb", "outside its fence"),
        ("report/page", "from lightgbm import Booster", "outside its fence"),
        ("runs/discover", "import ray", "outside its fence"),
        ("spex", "import submitit", "outside its fence"),
        ("tracking/base", "import plotly.graph_objects", "outside its fence"),
        ("sweeps/file", "import yaml", "outside its fence"),
        ("evaluation/runner", "import pyarrow", "outside its fence"),
        ("runs/discover", "from circuitspex import sweeps", "lower never imports higher"),
        ("findings", "from circuitspex.report import write_page", "lower never imports higher"),
        ("findings", "def f():\n    from circuitspex.cli import app", "lower never imports"),
        ("runs/discover", "import circuitspex", "the package itself"),
        ("runs/discover", "from circuitspex import Interactions", "the package itself"),
    ],
)
def test_each_rule_can_fail(path: str, source: str, rule: str) -> None:
    assert any(rule in found for found in violations(path, source))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("decoders/spex", "from circuitspex.decoders.codes import decode_bins"),
        ("decoders/spex", "from circuitspex.algebra import masks"),
        ("decoders/codes/bins", "from circuitspex.decoders.codes.aliasing import Aliasing"),
        ("evaluation/evaluation", "from circuitspex.algebra import pack"),
        ("runs/discover", "from circuitspex._shared import Spec"),
        ("findings", "def f():\n    from circuitspex.report import write_page"),
    ],
)
def test_what_is_allowed_is_not_refused(path: str, source: str) -> None:
    assert violations(path, source) == []


HEAVY = ("transformer_lens", "wandb", "plotly", "lightgbm", "sklearn", "pandas", "transformers")


def _modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nsys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert _modules_after("import circuitspex") & set(HEAVY) == set()


def test_the_check_of_heavy_imports_can_fail() -> None:
    assert "plotly" in _modules_after("import circuitspex, plotly")


# Tests too speak to doors; what is left to mend may only become less

TESTS = Path(__file__).parent
REACHED_INTO = 97
"""Names that tests import past a door."""
NAMED_IN_STRINGS = 16
"""Places of the package that tests replace by a path in a string, which no renaming finds."""


def handed_on(door: Path) -> set[str]:
    """Name what a room's door, or a file of the root, gives to others."""
    tree = ast.parse((door / "__init__.py" if door.is_dir() else door).read_text())
    names = {
        a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    defined = (ast.FunctionDef, ast.ClassDef)
    return names | {node.name for node in tree.body if isinstance(node, defined)}


def reached_into(source: str) -> list[str]:
    """Name every import of a test that is not handed on by a door."""
    found = []
    for module, name, _ in imports(source):
        top, _, rest = module.partition(".")
        place = PACKAGE / rest.replace(".", "/")
        if top != "circuitspex" or (not name and not rest):
            continue
        is_door = place.is_dir() or (place.parent == PACKAGE and place.stem in ROOT)
        is_file = is_door and place.is_dir() and (place / f"{name}.py").exists()
        if (
            not is_door
            or (name.startswith("_") and name != "_shared")
            or (is_file and place != PACKAGE and name not in handed_on(place))
        ):
            found.append(f"{module}.{name}")
    return found


def named_in_strings(source: str) -> list[str]:
    """Name every place of the package that a test replaces by its path."""
    return [
        str(argument.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        for argument in node.args[:1]
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("circuitspex.")
        if any(word in ast.unparse(node.func) for word in ("setattr", "patch"))
    ]


def in_all_tests(look: Callable[[str], list[str]]) -> list[str]:
    return [
        f"{file.relative_to(TESTS)}: {found}"
        for file in sorted(TESTS.rglob("*.py"))
        for found in look(file.read_text())
    ]


def test_tests_reach_past_doors_less_and_less() -> None:
    found = in_all_tests(reached_into)
    assert len(found) <= REACHED_INTO, "\n".join(["import from a room's door:", *found])


def test_tests_name_places_in_strings_less_and_less() -> None:
    found = in_all_tests(named_in_strings)
    assert len(found) <= NAMED_IN_STRINGS, "\n".join(["replace an object's attribute:", *found])


@pytest.mark.parametrize(
    "source",
    [
        "from circuitspex.algebra.masks import pack",
        "def test_a():\n    from circuitspex.decoders.codes.bins import decode_bins",
        "from circuitspex.designs import _rank",
        "from circuitspex.evaluation.store import index as _index",
        "import circuitspex.tracking._wandb",
    ],
)
def test_reaching_in_is_counted(source: str) -> None:
    assert len(reached_into(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import circuitspex as cs",
        "import numpy.random",
        "from circuitspex import decoders, Task, _shared",
        "from circuitspex.algebra import masks, pack",
        "from circuitspex.decoders.codes import decode_bins",
        "from circuitspex.errors import MaskError",
    ],
)
def test_a_door_may_be_used(source: str) -> None:
    assert reached_into(source) == []


def test_strings_that_name_places_are_counted() -> None:
    assert named_in_strings('monkeypatch.setattr("circuitspex.a._b", 1)') == ["circuitspex.a._b"]
    assert named_in_strings('patch("circuitspex.a.b")\nrun(["circuitspex", "x"])') != []
    assert named_in_strings('monkeypatch.setattr(module, "_b", 1)\nload("circuitspex.a")') == []
