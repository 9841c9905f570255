"""What a chapter's results depend on: the definitions of the package it reaches, and stored data.

Read off the sources, without importing them. A definition is a function, a class or an assignment
at the top of a module; it reaches the definitions that its body names, in its own module and
through imports. Docstrings and comments decide no result and are left out.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

PACKAGE = "bnmlp"
Place = tuple[str, str]  # module, name; an empty name stands for the module's other statements


@dataclass
class Module:
    """One file of the package: its definitions, what its names are imported from, the rest."""

    name: str
    path: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, Place] = field(default_factory=dict)
    rest: list[ast.stmt] = field(default_factory=list)


class Package:
    """The sources of a package, and who needs whom.

    Args:
        folder: Folder of the package.
        name: Its name in imports.
    """

    def __init__(self, folder: Path, name: str = PACKAGE) -> None:
        self.folder, self.name = folder, name
        self._texts: dict[Place, str] = {}
        self._next: dict[Place, set[Place]] = {}

    @cached_property
    def modules(self) -> dict[str, Module]:
        """Every module by its dotted name."""
        found = {}
        for path in sorted(self.folder.rglob("*.py")):
            parts = (self.name, *path.relative_to(self.folder).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path)
        for module in found.values():
            for statement in ast.parse(module.path.read_text(encoding="utf8")).body:
                self._sort(module, statement, found)
        return found

    def _sort(self, module: Module, statement: ast.stmt, known: dict[str, Module]) -> None:
        match statement:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body, orelse=[]) if all(
                isinstance(inner, ast.Import | ast.ImportFrom) for inner in body
            ):
                for inner in body:  # names that come late, or types
                    self._sort(module, inner, known)
            case ast.Import() | ast.ImportFrom():
                module.imports |= imported(statement, self.name, known)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                module.definitions.setdefault(name, []).append(statement)
            case ast.Assign(targets=targets) if all(isinstance(t, ast.Name) for t in targets):
                for target in targets:
                    module.definitions.setdefault(target.id, []).append(statement)
            case ast.AnnAssign(target=ast.Name(id=name)):
                module.definitions.setdefault(name, []).append(statement)
            case ast.Expr(value=ast.Constant()):
                pass
            case _:
                module.rest.append(statement)

    def reached(self, code: str) -> set[Place]:
        """Definitions that a program reaches.

        Args:
            code: Source of the program.

        Returns:
            Their places.
        """
        tree = ast.parse(code)
        names: dict[str, Place] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names |= imported(node, self.name, self.modules)
        found: set[Place] = set()
        todo = self._resolved(self._uses([tree], names))
        while todo:
            place = todo.pop()
            if place not in found:
                found.add(place)
                todo |= self._neighbours(place) - found
        return found

    def _neighbours(self, place: Place) -> set[Place]:
        """What one definition names, and the other statements of its module."""
        if place not in self._next:
            module = self.modules[place[0]]
            own = {name: (module.name, name) for name in module.definitions}
            uses = self._uses(self._statements(place), module.imports | own)
            self._next[place] = self._resolved([*uses, (module.name, "")])
        return self._next[place]

    def _statements(self, place: Place) -> list[ast.stmt]:
        module = self.modules[place[0]]
        return module.definitions[place[1]] if place[1] else module.rest

    def _resolved(self, places: Iterable[Place]) -> set[Place]:
        return {found for place in places if (found := self._resolve(place))}

    def _resolve(self, place: Place) -> Place | None:
        """Where a name is defined, through re-exports; None outside the package."""
        module, name = place
        seen = set()
        while module in self.modules and (module, name) not in seen:
            seen.add((module, name))
            here = self.modules[module]
            if not name or name in here.definitions:
                return module, name
            if name not in here.imports:
                return None
            module, name = here.imports[name]
        return None

    def _uses(self, statements: Iterable[ast.AST], names: dict[str, Place]) -> Iterator[Place]:
        """Places that some statements name; all of a module that is passed around as a value."""
        for statement in statements:
            local, inner = dict(names), set()
            for node in ast.walk(statement):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    local |= imported(node, self.name, self.modules)
                elif isinstance(node, ast.Attribute):
                    inner.add(id(node.value))
            for node in ast.walk(statement):
                if isinstance(node, ast.Name | ast.Attribute) and id(node) not in inner:
                    yield from self._places(node, local)

    def _places(self, node: ast.Name | ast.Attribute, names: dict[str, Place]) -> Iterator[Place]:
        """What a name, or a chain of attributes of one, stands for."""
        attributes = []
        while isinstance(node, ast.Attribute):
            attributes.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id not in names:
            return
        place = names[node.id]
        while (module := self._module(place)) and attributes:
            place = module, attributes.pop(0)
        if module:
            yield from ((module, name) for name in self.modules[module].definitions)
        else:
            yield place

    def _module(self, place: Place | None) -> str | None:
        """The module that a place is, if it is one."""
        if place is None:
            return None
        dotted = ".".join(filter(None, place))
        return dotted if dotted in self.modules else None

    def _in_c(self, module: str, statements: Iterable[ast.stmt]) -> Iterator[str]:
        """Files in C beside a module that some of its statements name."""
        constants = (n for s in statements for n in ast.walk(s) if isinstance(n, ast.Constant))
        for value in (constant.value for constant in constants):
            if isinstance(value, str) and value.endswith(".c"):
                path = self.modules[module].path.with_name(value)
                if path.is_file():
                    yield path.read_text(encoding="utf8")

    def digest(self, code: str, without: Iterable[str] = ()) -> str:
        """Hash of all definitions that a program reaches.

        Args:
            code: Source of the program.
            without: Modules that do not count.

        Returns:
            SHA-256, in hexadecimal.
        """
        found = hashlib.sha256()
        for place in sorted(self.reached(code)):
            if place[0] in without:
                continue
            if place not in self._texts:
                statements = self._statements(place)
                self._texts[place] = "".join(
                    (*map(_bare, statements), *self._in_c(place[0], statements))
                )
            found.update(f"{place}: {self._texts[place]}\n".encode())
        return found.hexdigest()


def imported(
    statement: ast.Import | ast.ImportFrom, package: str, known: dict[str, Module]
) -> dict[str, Place]:
    """What each name that an import binds stands for, as far as it comes from the package."""
    found: dict[str, Place] = {}
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if alias.name.split(".")[0] == package:
                bound = alias.asname or package
                found[bound] = (alias.name if alias.asname else package, "")
    elif statement.module and statement.module.split(".")[0] == package:
        for alias in statement.names:
            submodule = f"{statement.module}.{alias.name}"
            place = (submodule, "") if submodule in known else (statement.module, alias.name)
            found[alias.asname or alias.name] = place
    return found


def data_files(code: str, folder: Path, slug: str) -> list[Path]:
    """Stored results a chapter may read: its own folder, and those its strings name.

    Args:
        code: Source of the chapter.
        folder: Folder of all stored results.
        slug: Name of the chapter.

    Returns:
        The files, without programs.
    """
    strings = {n.value for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Constant)}
    named = {s.split("/")[0] for s in strings if isinstance(s, str) and "/" in s}
    folders = [
        folder / name for name in sorted((named | {slug}) - {""}) if (folder / name).is_dir()
    ]
    files = [path for each in folders for path in sorted(each.rglob("*"))]
    return [p for p in files if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts]


def _bare(statement: ast.stmt) -> str:
    """The statement without docstrings and positions."""
    copy = ast.parse(ast.unparse(statement))
    for node in ast.walk(copy):
        body = getattr(node, "body", None)
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and len(body) > 1:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                del body[0]
    return ast.dump(copy)
