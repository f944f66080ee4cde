"""From a file, a folder or a module to the workflows in it."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from onward.errors import OnwardError
from onward.workflows import Workflow

WORKFLOW_NAME_MAX = 128


class LoadError(OnwardError):
    """The workflows cannot be loaded, and the message says what to do."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """One build of the user's code.

    Attributes:
        name: Names the build; of the same code it is the same.
        workflows: What it serves, by name.
        sources: The files that it was made of.
    """

    name: str
    workflows: Mapping[str, Workflow[..., Any, Any]]
    sources: tuple[Path, ...]


def load(target: str, *, deployment: str = "") -> Deployment:
    """Import `target` and return the workflows that it defines or imports at its top level.

    Args:
        target: A Python file, a folder of them (files that begin with an underscore are left out), or a dotted module.
        deployment: Names the build. By default its name is made from the target and what its sources contain.

    Raises:
        LoadError: There is no such thing, it holds no workflow, two of them have one name, or one cannot be served.
        Exception: What the user's code raises when it is imported.
    """
    if not target:
        raise LoadError("say what to load: a Python file, a folder of them, or a module")
    path = Path(target)
    if path.is_dir():
        root, modules = _folder(path.resolve())
    elif path.suffix == ".py" or path.is_file():
        if not path.is_file():
            raise LoadError(f"there is no file {target}")
        root, modules = _file(path.resolve())
    else:
        root, modules = _dotted(target)
    workflows = _workflows(modules, target)
    sources = _sources(root, modules)
    return Deployment(deployment or _name(target, root, sources), workflows, sources)


def _file(path: Path) -> tuple[Path, list[ModuleType]]:
    root, name = _package(path)
    if "." in name:
        _importable(root)
        return root / name.partition(".")[0], [importlib.import_module(name)]
    _importable(root)
    return root, [_import_file(path)]


def _folder(path: Path) -> tuple[Path, list[ModuleType]]:
    files = sorted(file for file in path.glob("*.py") if not file.name.startswith("_"))
    if not files:
        raise LoadError(f"there is no Python file in {path}")
    return path, [module for file in files for module in _file(file)[1]]


def _dotted(name: str) -> tuple[Path, list[ModuleType]]:
    # As `python -m` does: what lies in the working directory can be named.
    _importable(Path.cwd())
    try:
        found = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        found = None
    if found is None:
        raise LoadError(
            f"there is no file, folder or module {name!r}: run this where it can be seen, or give a path to a .py file"
        )
    module = importlib.import_module(name)
    if module.__file__ is None:
        raise LoadError(f"{name!r} is a folder without an __init__.py: give its path instead")
    file = Path(module.__file__)
    root, dotted = _package(file.resolve())
    return (root / dotted.partition(".")[0] if "." in dotted or file.name == "__init__.py" else root), [module]


def _package(path: Path) -> tuple[Path, str]:
    """Return the folder that a file's outermost package lies in, and its dotted name from there."""
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.append(folder.name)
        folder = folder.parent
    return folder, ".".join(reversed(parts))


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import_file(path: Path) -> ModuleType:
    # Under its own name where that is free: `json.py` must not become everybody's json.
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    if known is not None or not name.isidentifier() or name in sys.stdlib_module_names:
        name = "workflows_" + re.sub(r"\W", "_", name)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Annotations are resolved through it.
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _workflows(modules: Iterable[ModuleType], target: str) -> dict[str, Workflow[..., Any, Any]]:
    found: dict[str, tuple[Workflow[..., Any, Any], str]] = {}
    for module in modules:
        for variable, value in vars(module).items():
            if not isinstance(value, Workflow):
                continue
            here = f"{variable} in {module.__file__ or module.__name__}"
            there = found.setdefault(value.name, (value, here))
            if there[0] is not value:
                raise LoadError(
                    f"two workflows are named {value.name!r}: {there[1]} and {here}. Rename one, or use .named()"
                )
    if not found:
        raise LoadError(
            f"there is no workflow in {target}: put @workflow (from onward import workflow) above a top-level function"
        )
    for workflow, here in found.values():
        try:
            workflow.to_proto()
        except TypeError as error:
            raise LoadError(f"the workflow {here} cannot be served: {error}") from error
    return {name: workflow for name, (workflow, _) in sorted(found.items())}


def _sources(root: Path, modules: Iterable[ModuleType]) -> tuple[Path, ...]:
    """Return the files that were imported from below `root`, but for what is installed there (a .venv)."""
    files = {Path(module.__file__).resolve() for module in modules if module.__file__}
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if name and name.endswith(".py"):
            file = Path(name).resolve()
            if file.is_relative_to(root) and "site-packages" not in file.parts:
                files.add(file)
    return tuple(sorted(files))


def _name(target: str, root: Path, sources: Iterable[Path]) -> str:
    digest = blake2b(digest_size=3)
    for source in sources:
        content = source.read_bytes()
        place = source.relative_to(root) if source.is_relative_to(root) else Path(source.name)
        digest.update(f"{place.as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    path = Path(target)
    stem = (path.resolve().name if path.exists() else target).removesuffix(".py")
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', stem)}-{digest.hexdigest()}"
