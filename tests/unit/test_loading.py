"""From a file, a folder or a module to the workflows in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onward.loading import LoadError, load

FLOW = """
from __future__ import annotations
from dataclasses import dataclass
from onward import workflow

@dataclass
class Post:
    title: str

@workflow
async def {name}(topic: str) -> Post:
    return Post(topic)
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(file: Path, name: str = "flow") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FLOW.format(name=name))
    return file


async def test_a_file_is_loaded(tmp_path: Path) -> None:
    """Its annotations resolve, and the build is named after what it contains."""
    file = write(tmp_path / "blog_writer_a.py")
    loaded = load(str(file))
    assert list(loaded.workflows) == ["flow"]
    assert (await loaded.workflows["flow"]("tea")).title == "tea"
    stem, _, digest = loaded.name.rpartition("-")
    assert stem == "blog_writer_a"
    assert len(digest) == 6
    assert loaded.sources == (file,)
    assert load(str(file)).name == loaded.name
    assert load(str(file), deployment="mine").name == "mine"


def test_another_content_is_another_build(tmp_path: Path) -> None:
    """Also where only a neighbour changed that the file imports."""
    names = []
    for content in ("A = 1", "A = 2"):
        (tmp_path / "neighbour_b.py").write_text(content)
        file = write(tmp_path / "main_b.py")
        file.write_text(
            "import neighbour_b\n" + FLOW.format(name="flow").replace("from __future__ import annotations", "")
        )
        names.append(load(str(file)).name)
        for module in ("neighbour_b", "main_b"):
            del sys.modules[module]
    assert names[0] != names[1]


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    """One that is called like a module of Python's, or like no module at all."""
    assert list(load(str(write(tmp_path / "json.py"))).workflows) == ["flow"]
    assert list(load(str(write(tmp_path / "my-flow 2.py"))).workflows) == ["flow"]
    import json

    assert hasattr(json, "loads")


def test_a_folder_is_all_its_files(tmp_path: Path) -> None:
    """But those that begin with an underscore; the build takes its name from the folder."""
    write(tmp_path / "flows" / "one_c.py", "one")
    write(tmp_path / "flows" / "two_c.py", "two")
    write(tmp_path / "flows" / "_shared_c.py", "hidden")
    loaded = load(str(tmp_path / "flows"))
    assert list(loaded.workflows) == ["one", "two"]
    assert loaded.name.startswith("flows-")


def test_a_module_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the working directory, as `python -m` does."""
    (tmp_path / "agents_d").mkdir()
    (tmp_path / "agents_d" / "__init__.py").write_text("")
    write(tmp_path / "agents_d" / "blog.py")
    monkeypatch.chdir(tmp_path)
    loaded = load("agents_d.blog")
    assert list(loaded.workflows) == ["flow"]
    assert loaded.name.startswith("agents_d.blog-")
    assert [file.name for file in loaded.sources] == ["__init__.py", "blog.py"]


def test_a_file_in_a_package_is_loaded_as_part_of_it(tmp_path: Path) -> None:
    """Its relative imports work."""
    (tmp_path / "agents_e").mkdir()
    (tmp_path / "agents_e" / "__init__.py").write_text("")
    write(tmp_path / "agents_e" / "flows.py")
    (tmp_path / "agents_e" / "main.py").write_text("from .flows import flow")
    loaded = load(str(tmp_path / "agents_e" / "main.py"))
    assert list(loaded.workflows) == ["flow"]


def test_two_workflows_of_one_name_are_refused(tmp_path: Path) -> None:
    """The message names both places; one that is imported twice is one."""
    write(tmp_path / "flows" / "one_f.py")
    (tmp_path / "flows" / "three_f.py").write_text("from one_f import flow")
    assert list(load(str(tmp_path / "flows")).workflows) == ["flow"]
    write(tmp_path / "flows" / "two_f.py")
    with pytest.raises(LoadError, match=r"two workflows are named 'flow': flow in .*one_f.py and flow in .*two_f.py"):
        load(str(tmp_path / "flows"))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("missing.py", "there is no file missing.py"),
        ("no.such.module", "no file, folder or module 'no.such.module'"),
        ("", "say what to load"),
    ],
)
def test_what_is_not_there_is_named(target: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was looked for."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match=message):
        load(target)


def test_no_workflow_says_what_to_do(tmp_path: Path) -> None:
    """An empty file, a folder without one."""
    (tmp_path / "empty_g.py").write_text("x = 1")
    with pytest.raises(LoadError, match="put @workflow"):
        load(str(tmp_path / "empty_g.py"))
    (tmp_path / "none").mkdir()
    with pytest.raises(LoadError, match="no Python file in"):
        load(str(tmp_path / "none"))


def test_a_workflow_that_cannot_be_served_is_named(tmp_path: Path) -> None:
    """Before any run is accepted for it."""
    file = tmp_path / "bad_h.py"
    file.write_text("from onward import workflow\n@workflow\nasync def flow(x: 'Missing') -> None: ...\n")
    with pytest.raises(LoadError, match=r"flow in .*bad_h.py cannot be served: .*Missing"):
        load(str(file))


def test_an_error_of_the_users_code_is_the_users(tmp_path: Path) -> None:
    """And a second load tries again."""
    file = tmp_path / "broken_i.py"
    file.write_text("raise RuntimeError('mine')")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="mine"):
            load(str(file))
