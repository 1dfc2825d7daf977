"""Gates that linters lack: comparisons whose answer is dropped, tests that assert nothing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    file
    for folder in ("circuitspex", "tests", "benchmarks")
    for file in (ROOT / folder).rglob("*.py")
)
COMPARISONS = {"allclose", "array_equal", "equal", "isclose", "is_close"}


def complaints(source: str, *, is_test: bool) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name = getattr(node.value.func, "attr", getattr(node.value.func, "id", ""))
            if name in COMPARISONS:
                found.append(f"line {node.lineno}: the result of {name} is dropped")
        if not is_test:
            continue
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("raises", "warns"):
            if not any(keyword.arg == "match" for keyword in node.keywords):
                found.append(f"line {node.lineno}: {ast.unparse(node.func)} without match")
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
            if not any(_checks_something(child) for child in ast.walk(node)):
                found.append(f"line {node.lineno}: {node.name} asserts nothing")
    return found


def _checks_something(node: ast.AST) -> bool:
    if isinstance(node, ast.Assert):
        return True
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return any(word in called for word in ("assert", "raises", "warns", "check"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_file_is_clean(file: Path) -> None:
    is_test = file.relative_to(ROOT).parts[0] != "circuitspex"
    assert complaints(file.read_text(), is_test=is_test) == []


@pytest.mark.parametrize(
    "source",
    [
        "def test_a():\n    torch.allclose(x, y)",
        "np.array_equal(x, y)",
        "def test_a():\n    with pytest.raises(ValueError):\n        f()",
        "def test_a():\n    f()",
    ],
)
def test_each_gate_can_fail(source: str) -> None:
    assert complaints(source, is_test=True)


def test_there_are_files_to_look_at() -> None:
    assert len(FILES) > 40
