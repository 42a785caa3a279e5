"""Holds the tree's import rules: who may import whom, what is imported late, and how a module looks from outside."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = {"ingest", "processor", "notifier"}
PACKAGES = {"common", "local"} | SERVICES
TOOLS = {"benchmarks", "tests"}

MAY_IMPORT = {
    "common": {"common"},
    "local": PACKAGES,
    **{service: {"common", service} for service in SERVICES},
}

# Cold start is a feature: these cost 50 ms to 2 s, so a module loads them in the function that needs them.
LATE_IN_COMMON = ("PIL", "aiohttp", "google", "jwt", "pebble")
LATE_EVERYWHERE = ("PIL", "google.genai")
# Worker processes and the stand-in do nothing else than pictures.
EAGER_BY_DESIGN = {
    ("ingest/imaging.py", "PIL"),
    ("local/drawing.py", "PIL"),
    ("processor/pictures.py", "PIL"),
}
LINES_MAX = 300


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name as `package.module.name`, the line where it stands, and a relative import's dots."""

    module: str
    line: int
    level: int
    late: bool

    def within(self, *names: str) -> bool:
        return any(self.module == name or self.module.startswith(f"{name}.") for name in names)


def imports(source: str) -> list[Import]:
    """Every import of a module; late means inside a function or only for the type checker."""
    return list(walk(ast.parse(source), late=False))


def walk(node: ast.AST, *, late: bool) -> Iterator[Import]:
    match node:
        case ast.Import():
            yield from (Import(alias.name, node.lineno, 0, late) for alias in node.names)
        case ast.ImportFrom():
            for alias in node.names:
                yield Import(f"{node.module or ''}.{alias.name}", node.lineno, node.level, late)
        case ast.If() if ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (found for child in node.body for found in walk(child, late=True))
            yield from (found for child in node.orelse for found in walk(child, late=late))
        case _:
            late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from (found for child in ast.iter_child_nodes(node) for found in walk(child, late=late))


@cache
def modules(*packages: str) -> dict[str, str]:
    """Path from the root to source, of every module in these packages."""
    found = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
    }
    assert found, f"no modules under {packages}: the rules would hold for nothing"
    return found


def listed(offenders: list[str], rule: str) -> str:
    return "\n  ".join([f"{rule}:", *offenders])


def test_a_package_imports_only_what_its_place_allows() -> None:
    offenders = [
        f"{path}:{found.line} imports {found.module}"
        for path, source in modules(*sorted(PACKAGES)).items()
        for found in imports(source)
        if found.within(*(PACKAGES | TOOLS) - MAY_IMPORT[path.split("/")[0]])
    ]
    assert not offenders, listed(
        offenders,
        "common imports common only, a service common and itself, local anything but tests and benchmarks; "
        "move what two services share to common, or let a message carry it",
    )


def test_common_loads_no_heavy_sdk_when_it_is_imported() -> None:
    offenders = [
        f"{path}:{found.line} imports {found.module}"
        for path, source in modules("common").items()
        for found in imports(source)
        if not found.late and found.within(*LATE_IN_COMMON)
    ]
    assert not offenders, listed(
        offenders, "every service pays for this at each cold start; import it in the function that uses it"
    )


def test_the_gemini_sdk_and_pillow_are_loaded_only_when_used() -> None:
    offenders = [
        f"{path}:{found.line} imports {found.module}"
        for path, source in modules(*sorted(PACKAGES)).items()
        for found in imports(source)
        for sdk in LATE_EVERYWHERE
        if not found.late and found.within(sdk) and (path, sdk) not in EAGER_BY_DESIGN
    ]
    assert not offenders, listed(offenders, "import it in the function that uses it, or under TYPE_CHECKING")


def test_imports_are_absolute() -> None:
    offenders = [
        f"{path}:{found.line}"
        for path, source in modules(*sorted(PACKAGES | TOOLS)).items()
        for found in imports(source)
        if found.level
    ]
    assert not offenders, listed(offenders, "write the import from the package's root")


def test_no_module_is_longer_than_300_lines() -> None:
    offenders = [
        f"{path}: {lines} lines"
        for path, source in modules(*sorted(PACKAGES)).items()
        if (lines := len(source.splitlines())) > LINES_MAX
    ]
    assert not offenders, listed(offenders, "a module has one subject; move the second one out")


def test_every_module_begins_by_saying_what_lives_there() -> None:
    offenders = [
        path
        for path, source in modules(*sorted(PACKAGES | TOOLS)).items()
        if not ast.get_docstring(ast.parse(source), clean=True)
    ]
    assert not offenders, listed(offenders, "the first statement is a docstring: what lives here, and what never may")


def test_no_installed_package_hides_one_of_ours() -> None:
    """Our folders need no `__init__.py`, and then Python prefers any installed package of the same name."""
    installed = {
        entry.name for place in sys.path if place.endswith("site-packages") for entry in Path(place).glob("*/")
    }
    offenders = sorted(installed & (PACKAGES | TOOLS))
    assert not offenders, listed(offenders, "a dependency installs a package of our name; do without it")


@pytest.mark.parametrize(
    ("source", "late"),
    [
        ("import google.genai", False),
        ("from google import genai", False),
        ("class Client:\n    from google.genai import types", False),
        ("try:\n    import google.genai\nexcept ImportError:\n    pass", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from google import genai", False),
        ("if TYPE_CHECKING:\n    from google.genai import types", True),
        ("def ask():\n    from google import genai", True),
        ("async def ask():\n    if True:\n        import google.genai.types", True),
    ],
)
def test_an_import_is_late_only_in_a_function_or_for_the_type_checker(source: str, late: bool) -> None:
    (found,) = imports(source)
    assert found.within("google.genai")
    assert found.late is late
