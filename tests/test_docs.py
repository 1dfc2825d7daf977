"""What the documents promise: code runs, names exist, links lead somewhere, maps are complete."""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest
from test_architecture import ORDER
from test_examples import check_command, commands

import circuitspex as cs

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BENCHMARKS = ROOT / "benchmarks"
DOCUMENTS = sorted(
    path
    for folder in (".", "benchmarks", "docs", "examples", "notebooks/data", "tests/faults")
    for path in (ROOT / folder).glob("*.md")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken_links(text: str, document: Path) -> list[str]:
    """Name the links in a document's text that lead to no file, or to no heading of one."""
    broken = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (document.parent / path) if path else document
        if link.startswith("http"):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document.read_text(), document) == []


def test_there_are_links_to_test() -> None:
    assert len(DOCUMENTS) >= 30
    assert sum(len(LINK.findall(document.read_text())) for document in DOCUMENTS) >= 100


@pytest.mark.parametrize("link", ["no_such.md", "benchmarks/no_such.md", "#no-such", "LICENSE#no"])
def test_a_broken_link_is_seen(link: str) -> None:
    assert broken_links(f"[here](README.md) and [there]({link})", ROOT / "README.md") == [link]


PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)
NAME = re.compile(r"(?<![\w./])(cs|spex)((?:\.[a-zA-Z_]\w*)+)")


def unknown_names(text: str) -> list[str]:
    """Name what a text calls ``cs.…`` or ``spex.…`` and the package does not have."""
    unknown = []
    for root, path in NAME.findall(text):
        value, names = (cs if root == "cs" else cs.CircuitSpex), path[1:].split(".")
        while names and hasattr(value, names[0]):
            value = getattr(value, names.pop(0))
        if names and root + path not in ("spex.py",):
            unknown.append(root + path)
    return unknown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_in_documents_exist(document: Path) -> None:
    assert unknown_names(document.read_text()) == []
    for block in PYTHON.findall(document.read_text()):
        compile(block, document.name, "exec")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_in_documents_exist(document: Path) -> None:
    for line in commands(document.read_text()):
        check_command(line)


def test_a_name_that_does_not_exist_is_seen() -> None:
    text = "`cs.heads(model)`, `cs.tasks.no_such`, `spex.discover`, `spex.no_such()`, cs.tasks.ioi."
    assert unknown_names(text) == ["cs.tasks.no_such", "spex.no_such"]


SCRIPTS = sorted([*BENCHMARKS.rglob("*.py"), *(ROOT / "notebooks").rglob("*.py")])


def missing_imports(source: str) -> list[str]:
    """Name what a script takes from the package and the package does not have."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "circuitspex":
            for name in (alias.name for alias in node.names):
                try:
                    if not hasattr(importlib.import_module(node.module or ""), name):
                        importlib.import_module(f"{node.module}.{name}")
                except ModuleNotFoundError:
                    missing.append(f"{node.module}.{name}")
    return missing


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_scripts_take_from_the_package_what_it_has(script: Path) -> None:
    assert missing_imports(script.read_text()) == []


def test_a_missing_import_is_seen() -> None:
    source = "from circuitspex.designs import no_such\nfrom circuitspex.no_such import masks\n"
    wanted = ["circuitspex.designs.no_such", "circuitspex.no_such.masks"]
    assert missing_imports(source + "from circuitspex.algebra import masks") == wanted


@pytest.mark.slow
def test_readme_example_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = PYTHON.findall(README)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "L0H3 + L1H" in printed
    assert "faithfulness" in printed
    assert "L0H3" in (tmp_path / "induction.html").read_text()


ROOM = re.compile(r"^\| \[`(\w+)/`\]\(circuitspex/\1/__init__\.py\) \| (.+) \|$", re.MULTILINE)
ADDITION = re.compile(r"`([A-Z_]+)` in \[[^]]+\]\((\S+)\)")


def doors() -> dict[str, str]:
    """Return the first paragraph of every room's docstring, by the room's name."""
    texts = {
        door.parent.name: ast.get_docstring(ast.parse(door.read_text())) or ""
        for door in (ROOT / "circuitspex").glob("*/__init__.py")
    }
    return {
        room: " ".join(text.split("\n\n")[0].split()).replace("``", "`")
        for room, text in texts.items()
        if not room.startswith("_")
    }


def test_readme_names_every_room_and_says_what_its_door_says() -> None:
    rooms = dict(ROOM.findall(README))
    assert rooms == doors()
    assert list(rooms) == [room for room in ORDER if room in rooms]


def test_a_room_that_is_missing_or_says_something_else_is_seen() -> None:
    row = "| [`designs/`](circuitspex/designs/__init__.py) |"
    assert row in README
    renamed = README.replace(row, row.replace("designs", "drafts"))
    assert set(doors()) - set(dict(ROOM.findall(renamed))) == {"designs"}
    assert dict(ROOM.findall(README.replace(row, f"{row} Not"))) != doors()


def test_registers_of_additions_exist() -> None:
    named = ADDITION.findall(README)
    assert len(named) >= 4
    for name, file in named:
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), name


def faults_of_pages(scripts: set[str], pages: dict[str, str], index: str) -> list[str]:
    """Name scripts without a page or a row of the index, and pages that lack what they promise."""
    rows = dict(
        re.findall(r"^\| \[.+?\?\]\((\w+)\.md\) \| .+ \| (\d{4}-\d\d-\d\d) \|$", index, re.M)
    )
    found = [f"{name} has no page" for name in sorted(scripts - set(pages))]
    found += [f"{name} has no row" for name in sorted(scripts - set(rows))]
    found += [f"{name} has no script" for name in sorted((set(pages) | set(rows)) - scripts)]
    for name, page in pages.items():
        parts = {
            "asks no question": re.match(r"# .+\?\n", page),
            "gives no command": re.search(rf"```sh\n[^`]*python benchmarks/{name}\.py", page),
            "has another date": rows.get(name, "")[:7] in page,
        }
        found += [f"{name} {fault}" for fault, present in parts.items() if not present]
    return found


def real_pages() -> tuple[set[str], dict[str, str], str]:
    pages = {path.stem: path.read_text() for path in BENCHMARKS.glob("*.md")}
    return {path.stem for path in BENCHMARKS.glob("*.py")}, pages, pages.pop("README")


def test_every_benchmark_has_a_page_and_a_row_and_every_page_a_script() -> None:
    scripts, pages, index = real_pages()
    assert len(scripts) >= 25
    assert faults_of_pages(scripts, pages, index) == []


def test_a_missing_page_row_script_question_command_or_date_is_seen() -> None:
    scripts, pages, index = real_pages()
    page = "# What?\n\n```sh\npython benchmarks/new.py\n```\n\nMeasured 2026-11-22."
    row = "\n| [What?](new.md) | 3 | 2026-11-22 |\n"

    def faults(page: str, row: str, script: str = "new") -> list[str]:
        return faults_of_pages(scripts | {script}, {**pages, "new": page}, index + row)

    assert faults(page, row) == []
    assert faults(page, "") == ["new has no row"]
    assert faults(page, row, script="noise") == ["new has no script"]
    assert faults_of_pages(scripts | {"new"}, pages, index + row) == ["new has no page"]
    assert faults(page.replace("?", "!"), row) == ["new asks no question"]
    assert faults(page.replace("new.py", "old.py"), row) == ["new gives no command"]
    assert faults(page, row.replace("2026-11", "2027-01")) == ["new has another date"]


def test_notebooks_check_themselves_and_hold_outputs_of_one_run_or_none() -> None:
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert len(notebooks) >= 2
    for path in notebooks:
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        assert any("assert" in cell.source for cell in cells)
        counts = [cell.execution_count for cell in cells]
        assert counts in ([None] * len(cells), list(range(1, len(cells) + 1))), path
        outputs = [output for cell in cells for output in cell.outputs]
        assert bool(outputs) == (counts[0] is not None), path
        kinds = {output.get("name", output.output_type) for output in outputs}
        assert kinds <= {"stdout", "display_data", "execute_result"}, path
