"""Finds passes by name without importing them: by file names in a package, and by entry points of other packages.

The pass `fuse-norm` is the class `FuseNorm` in the file `fuse_norm.py` of a stage's folder. A file without the class
that its name asks for is no pass (patterns that several passes share), and so is one whose class derives from nothing
or whose name begins with `_`. The index is handed down to the pipeline, which lies below the passes.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from irx.errors import NameClash, UnknownPass
from irx.pipeline.base import Pass, Stage

GROUP = "irx.passes"


@dataclass(frozen=True)
class Place:
    """Where a pass is declared: a module, the class in it, and the stage that its folder names, if it stands in one."""

    module: str
    attribute: str
    stage: Stage | None = None

    def __str__(self) -> str:
        return f"{self.module}:{self.attribute}"


@dataclass(frozen=True)
class PassIndex:
    """Places of passes by the name that pipelines use."""

    places: Mapping[str, Place] = field(default_factory=dict)

    @staticmethod
    def scan(package: str, entries: Iterable[EntryPoint] | None = None) -> PassIndex:
        """The passes in the stage folders of `package`, and those of installed packages.

        Only the package's parent is imported. Raises NameClash where two declare the same name.
        """
        announced = entry_points(group=GROUP) if entries is None else entries
        places: dict[str, Place] = {}
        for name, place in (*_declared(package), *_announced(announced)):
            if name in places and places[name] != place:
                raise NameClash("pass", name, str(places[name]), str(place))
            places[name] = place
        return PassIndex(places)

    @staticmethod
    def of(*kinds: type[Pass]) -> PassIndex:
        """An index of classes at hand."""
        return PassIndex({kind.name: Place(kind.__module__, kind.__qualname__) for kind in kinds})

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.places))

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def load(self, name: str) -> type[Pass]:
        """The class of that pass, imported now. Raises UnknownPass with the nearest name."""
        if name not in self.places:
            raise UnknownPass(name, self.places)
        place = self.places[name]
        found: object = importlib.import_module(place.module)
        for part in place.attribute.split("."):
            found = getattr(found, part)
        return _checked(name, place, found)


def spelled(module: str) -> str:
    """`fuse_norm` as pipelines spell it: `fuse-norm`."""
    return module.replace("_", "-")


def class_name(module: str) -> str:
    """The class that the file `fuse_norm.py` declares: `FuseNorm`."""
    return "".join(part[:1].upper() + part[1:] for part in module.split("_"))


def _checked(name: str, place: Place, found: object) -> type[Pass]:
    if not isinstance(found, type) or not issubclass(found, Pass):
        raise TypeError(f"{place} is announced as the pass {name!r}, but is no Pass")
    if found.name != name:
        raise TypeError(f"{place} is found as {name!r}, but calls itself {found.name!r}")
    if place.stage not in (None, found.stage):
        raise TypeError(f"{place} is of stage {found.stage.name}, but stands in the folder of another")
    return found


def _declared(package: str) -> Iterator[tuple[str, Place]]:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for stage in Stage:
            for path in sorted(Path(folder, stage.name.lower()).glob("[!_]*.py")):
                if re.search(rf"^class {class_name(path.stem)}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
                    module = f"{package}.{path.parent.name}.{path.stem}"
                    yield spelled(path.stem), Place(module, class_name(path.stem), stage)


def _announced(entries: Iterable[EntryPoint]) -> Iterator[tuple[str, Place]]:
    for entry in entries:
        yield entry.name, Place(entry.module, entry.attr)
