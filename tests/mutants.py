"""Break random lines of the package, one at a time, and see whether the room's quick tests notice.

    OMP_NUM_THREADS=1 python tests/mutants.py --n 30 --seed 0

Works on a copy of the tree. Prints one line per mutant and one JSON document at the end. A mutant
that is missed either means the same as the original, or shows an assertion that is missing.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROOMS = ("algebra", "decoders", "verification", "ablation")
SWAPS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "zeros": "ones", "ones": "zeros"}


@dataclass
class Mutant:
    """One broken line, and what became of it."""

    file: str
    line: int
    before: str
    after: str
    caught: bool = False
    how: str = ""


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a node's wrong versions."""
    wrong: Any = deepcopy(node)
    match wrong:
        case ast.Compare(ops=[op, *_]) if type(op) in SWAPS:
            wrong.ops[0] = SWAPS[type(op)]()
        case ast.BoolOp(op=op) | ast.BinOp(op=op) if type(op) in SWAPS:
            wrong.op = SWAPS[type(op)]()
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            wrong = operand
        case ast.Constant(value=bool(value)):
            wrong.value = not value
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value - 1)
            wrong.value = value + 1
        case ast.Name(id=name) if name in NAMES:
            wrong.id = NAMES[name]
        case ast.Attribute(attr=name) if name in NAMES:
            wrong.attr = NAMES[name]
        case ast.AugAssign() | ast.Expr(value=ast.Call()):
            wrong = ast.Pass()
        case _:
            return
    yield wrong


def code_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what runs: no annotations, and no default that is only documentation."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        if getattr(tree, "arg", "") == "strict":  # of zip, whose lengths agree
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from code_nodes(child)


def mutants_of(path: Path) -> dict[int, list[tuple[Mutant, str]]]:
    """Return every mutant of a file with its source, by the line that it breaks."""
    source = path.read_text()
    lines = source.encode().splitlines(keepends=True)
    found: dict[int, list[tuple[Mutant, str]]] = {}
    for node in code_nodes(ast.parse(source)):
        if not isinstance(node, ast.expr | ast.stmt) or node.lineno != node.end_lineno:
            continue
        line = lines[node.lineno - 1]
        for wrong in changes(node):
            text = ast.unparse(ast.fix_missing_locations(wrong))
            new = text if isinstance(wrong, ast.Pass) else f"({text})"
            broken = line[: node.col_offset] + new.encode() + line[node.end_col_offset :]
            lines[node.lineno - 1] = broken
            whole = b"".join(lines).decode()
            lines[node.lineno - 1] = line
            before, after = line.decode().strip(), broken.decode().strip()
            mutant = Mutant(str(path.relative_to(ROOT)), node.lineno, before, after)
            found.setdefault(node.lineno, []).append((mutant, whole))
    return found


def draw(n_mutants: int, seed: int, rooms: list[str]) -> list[tuple[Mutant, str]]:
    """Draw lines at random, each with one of its mutants."""
    rng = random.Random(seed)
    files = [file for room in rooms for file in (ROOT / "circuitspex" / room).rglob("*.py")]
    lines = [line for file in sorted(files) for line in mutants_of(file).values()]
    return [rng.choice(line) for line in rng.sample(lines, n_mutants)]


def judge(mutant: Mutant, source: str, copy: Path, seconds: float) -> None:
    """Run the room's quick tests on the broken copy, and mend the copy."""
    path = copy / mutant.file
    whole = path.read_text()
    path.write_text(source)
    room = Path(mutant.file).parts[1]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["-m", "not slow", f"tests/{room}", f"circuitspex/{room}"]
    environment = os.environ | {"PYTHONPATH": str(copy), "CI": "1"}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=seconds
        )
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        mutant.caught, mutant.how = done.returncode != 0, "; ".join(failed)[:200]
    except subprocess.TimeoutExpired:
        mutant.caught, mutant.how = True, f"still ran after {seconds:g} s"
    finally:
        path.write_text(whole)


def main() -> None:
    """Judge mutants one by one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=[*ROOMS])
    parser.add_argument("--seconds", type=float, default=600, help="after which a mutant hangs")
    options = parser.parse_args()
    judged = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=ignored, dirs_exist_ok=True)
        drawn = draw(options.n, options.seed, options.rooms)
        for room in {Path(mutant.file).parts[1] for mutant, _ in drawn}:
            unbroken = Path("circuitspex", room, "__init__.py")
            control = Mutant(str(unbroken), 1, "", "")
            judge(control, (copy / unbroken).read_text(), copy, options.seconds)
            if control.caught:
                sys.exit(f"The quick tests of {room} fail on the unbroken tree: {control.how}")
        for mutant, source in drawn:
            judge(mutant, source, copy, options.seconds)
            judged.append(mutant)
            verdict = "caught" if mutant.caught else "MISSED"
            words = f"{verdict} {mutant.file}:{mutant.line}  {mutant.before}  ->  {mutant.after}"
            sys.stdout.write(f"{words}\n")
            sys.stdout.flush()
    report = {"caught": sum(m.caught for m in judged), "tried": len(judged), "seed": options.seed}
    sys.stdout.write(json.dumps(report | {"mutants": [asdict(m) for m in judged]}) + "\n")


if __name__ == "__main__":
    main()
