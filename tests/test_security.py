"""What strangers' files cannot do: run code, get into a page as markup, or steer a terminal."""

import ast
import html
import io
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from circuitspex._shared import Spec
from circuitspex.cli import show
from circuitspex.errors import CircuitSpexError
from circuitspex.findings import load
from circuitspex.report import render_page
from circuitspex.runs import Settings, discover

PACKAGE = Path(__file__).parent.parent / "circuitspex"

# Nothing is unpickled, and no text becomes code

UNPICKLERS = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"),
    *("code", "codeop", "runpy", "imp"),
}
RUNNERS = {"eval", "exec", "compile", "__import__", "execfile"}
LOADERS = {"torch.load", "np.load", "numpy.load", "pd.read_pickle", "yaml.unsafe_load"}
SAFE_LOADERS = {"_Loader"}
"""Subclasses of yaml.SafeLoader."""


def dangers(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                found += [name.name for name in names if name.name.split(".")[0] in UNPICKLERS]
            case ast.ImportFrom(module) if module and module.split(".")[0] in UNPICKLERS:
                found.append(module)
            case ast.Call(ast.Name(name)) if name in RUNNERS:
                found.append(name)
            case ast.Call(ast.Attribute() as called):
                name = ast.unparse(called)
                shell = any(k.arg == "shell" for k in node.keywords) or name == "os.system"
                full = name in ("yaml.load", "yaml.load_all", "yaml.full_load") and not (
                    len(node.args) == 2 and ast.unparse(node.args[1]) in SAFE_LOADERS
                )
                if name in LOADERS or shell or full:
                    found.append(name)
    return found


def test_nothing_is_unpickled_and_no_text_is_run():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 50
    assert {str(file): d for file in files if (d := dangers(file.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "exec(compile(text, 'a', 'exec'))",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, yaml.Loader)",
        "subprocess.run(words, shell=True)",
        "os.system(words)",
    ],
)
def test_the_look_for_dangers_finds_them(source):
    assert dangers(source)


def test_the_loader_of_settings_makes_plain_values_only():
    import yaml

    from circuitspex._shared.mappings import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        yaml.load("a: !!python/object/apply:os.getcwd []", _Loader)


# Pages and terminals

EVIL = """</script><script>document.title="owned"</script><img src=x onerror="document.title=1">"""


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs), f"{tag} would run {attrs}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    discover(Settings(units="heads@1", n_prompts=2, budget=32), folder)
    return folder


def strings(node: Any) -> Iterator[tuple[Any, Any]]:
    keys = node if isinstance(node, dict) else range(len(node) if isinstance(node, list) else 0)
    for key in keys:
        if isinstance(node[key], str):
            yield node, key
        yield from strings(node[key])


def fill_with(evil: str, folder: Path) -> int:
    """Put a text wherever a result folder takes one, labels in all files at once; how often."""
    names = ("spec", "interactions", "circuit", "verification", "verified_interactions")
    files = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    labels, groups = set(files["interactions"]["units"]), dict[Any, list[tuple[Any, Any]]]()
    for document in files.values():
        for holder, key in strings(document):
            together = holder[key] if holder[key] in labels else (id(holder), key)
            groups.setdefault(together, []).append((holder, key))
    n_filled = 0
    for text, places in groups.items():
        before = [holder[key] for holder, key in places]
        for holder, key in places:
            holder[key] = f"{text}{evil}" if text in labels else evil
        _write(files, folder)
        try:
            load(folder)
            n_filled += len(places)
        except CircuitSpexError:
            for (holder, key), old in zip(places, before, strict=True):
                holder[key] = old
            _write(files, folder)
    assert all(evil in label for label in files["interactions"]["units"])
    return n_filled


def _write(files: dict[str, Any], folder: Path) -> None:
    for name, document in files.items():
        whole = _with_hashes(document) if name == "spec" else document
        (folder / f"{name}.json").write_text(json.dumps(whole))


def _with_hashes(document: dict[str, Any]) -> dict[str, Any]:
    # Whoever changes a spec can compute its hashes too.
    return Spec(*(document[part] for part in ("evaluation", "discovery", "versions")))._document()


def draw(folder: Path) -> str:
    return render_page(load(folder))


def test_no_text_of_a_result_folder_gets_into_a_page_as_markup(whole: Path, tmp_path: Path):
    clean = Tags(draw(whole)).tags
    folder = shutil.copytree(whole, tmp_path / "evil")
    assert fill_with(EVIL, folder) > 30
    page = draw(folder)
    assert f"<title>{html.escape(EVIL)}" in page
    found = Tags(page).tags
    for tag in ("script", "img", "svg", "iframe", "object", "a"):
        assert found.count(tag) == clean.count(tag), tag


def test_no_text_of_a_result_folder_steers_the_terminal(whole: Path, tmp_path: Path, monkeypatch):
    evil = "[/][link=file:///x]\x1b]0;owned\x07[red]"
    folder = shutil.copytree(whole, tmp_path / "evil")
    assert fill_with(evil, folder) > 30
    shown = io.StringIO()
    monkeypatch.setattr(show, "out", Console(file=shown, width=400))
    show.show_findings(load(folder), top=10)
    assert "[link=file:///x]" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()
    assert "\x07" not in shown.getvalue()
