"""What walsync exports exists, is typed, is documented, and has a place in the reference."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType

import pytest

import walsync
from tests.docs.pages import PAGES, blocks, page_name
from tests.support.processes import REPOSITORY
from walsync import exceptions

REFERENCE = "\n".join(
    page.read_text(encoding="utf-8") for page in PAGES if page_name(page).startswith("docs/reference/")
)


def _modules() -> list[str]:
    """Every importable module of the package; a module that runs when it is imported is left out."""
    found = ["walsync"]
    for module in pkgutil.walk_packages(walsync.__path__, "walsync."):
        if not module.name.endswith("__main__"):
            found.append(module.name)
    return found


MODULES = _modules()
EXPORTED = sorted(name for name in walsync.__all__ if not name.startswith("__"))


def _has_own_docstring(thing: object) -> bool:
    """Whether somebody wrote it: dataclasses without one get their signature for a docstring, enums get a phrase."""
    text = inspect.getdoc(thing)
    if not text:
        return False
    if inspect.isclass(thing):
        own = thing.__dict__.get("__doc__")
        return bool(own) and not own.startswith(f"{thing.__name__}(") and own != "An enumeration."
    return True


def _public_members(class_: type) -> list[tuple[str, object]]:
    """Methods and properties that a class of walsync defines or inherits from a class of walsync."""
    members = []
    for base in class_.__mro__:
        if base.__module__.partition(".")[0] != "walsync":
            continue
        for name, member in vars(base).items():
            if not name.startswith("_") and (
                inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
            ):
                members.append((name, member))
    return members


def _function_of(member: object) -> object:
    if isinstance(member, property):
        return member.fget
    if isinstance(member, (classmethod, staticmethod)):
        return member.__func__
    return member


def _unannotated(function: object) -> list[str]:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    missing = [
        name
        for position, (name, parameter) in enumerate(signature.parameters.items())
        if parameter.annotation is parameter.empty and not (position == 0 and name in {"self", "cls"})
    ]
    if signature.return_annotation is signature.empty:
        missing.append("return")
    return missing


@pytest.mark.parametrize("name", MODULES)
def test_module_says_what_it_owns_and_exports_what_exists(name: str) -> None:
    module: ModuleType = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    exported = list(getattr(module, "__all__", []))
    assert len(set(exported)) == len(exported), f"{name}.__all__ names something twice"
    assert [item for item in exported if not hasattr(module, item)] == []


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_name_is_documented(name: str) -> None:
    thing = getattr(walsync, name)
    assert re.search(rf"\b{name}\b", REFERENCE), f"no page in docs/reference names {name}"
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert _has_own_docstring(thing), f"walsync.{name} has no docstring"
    if inspect.isclass(thing):
        silent = [member for member, value in _public_members(thing) if not inspect.getdoc(value)]
        assert silent == [], f"walsync.{name} has members without a docstring"


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_name_is_typed(name: str) -> None:
    thing = getattr(walsync, name)
    missing = {}
    if inspect.isfunction(thing):
        missing = {name: _unannotated(thing)}
    elif inspect.isclass(thing):
        missing = {member: _unannotated(_function_of(value)) for member, value in _public_members(thing)}
    assert {where: what for where, what in missing.items() if what} == {}


@pytest.mark.parametrize("name", exceptions.__all__)
def test_error_is_in_the_tree_and_exported(name: str) -> None:
    error = getattr(exceptions, name)
    assert issubclass(error, exceptions.WalsyncError)
    assert getattr(walsync, name) is error
    assert name in walsync.__all__


def test_every_error_that_a_package_exports_is_in_the_tree() -> None:
    """What modules of one package raise for each other's eyes, and PEP 249's errors, are not exported by a package."""
    strangers = []
    for package_name in MODULES:
        package = importlib.import_module(package_name)
        if not hasattr(package, "__path__"):
            continue
        for name in getattr(package, "__all__", []):
            thing = getattr(package, name)
            is_error = inspect.isclass(thing) and issubclass(thing, Exception)
            if is_error and not issubclass(thing, exceptions.WalsyncError):
                strangers.append(f"{package_name}.{name}")
    assert strangers == []


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(exceptions.ConfigurationError, ValueError)
    assert issubclass(exceptions.EntryNotFoundError, LookupError)
    timeouts = {name for name in exceptions.__all__ if issubclass(getattr(exceptions, name), TimeoutError)}
    assert {name for name in exceptions.__all__ if "Timeout" in name} <= timeouts
    assert "BacklogFullError" in timeouts


def test_an_error_has_one_to_blame() -> None:
    branches = (exceptions.UsageError, exceptions.ConfigurationError, exceptions.LogError, exceptions.TargetError)
    for name in exceptions.__all__:
        error = getattr(exceptions, name)
        if error not in (exceptions.WalsyncError, exceptions.EntryNotFoundError):
            assert sum(issubclass(error, branch) for branch in branches) == 1, name


def test_version_is_the_distributions() -> None:
    from importlib.metadata import version

    from walsync._version import __version__

    assert walsync.__version__ == __version__ == version("sqlalchemy-walsync")


def _tree(error: type[BaseException], depth: int = 0) -> list[str]:
    """The errors as an indented tree, each with what it is besides."""
    besides = [base.__name__ for base in error.__bases__ if base.__module__ == "builtins" and base is not Exception]
    lines = ["    " * depth + error.__name__ + (f" ({', '.join(besides)})" if besides else "")]
    for child in sorted(error.__subclasses__(), key=lambda child: child.__name__):
        if child.__module__ == exceptions.__name__:
            lines += _tree(child, depth + 1)
    return lines


def test_tree_of_errors_in_the_reference_is_the_real_one() -> None:
    page = REPOSITORY / "docs" / "reference" / "api.md"
    assert [block.lines for block in blocks(page, "text")] == [_tree(exceptions.WalsyncError)]
