"""Names for masks and objectives: the extension point of the project."""

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points

from .errors import SparsePOError


class Registry:
    """A table from names to classes, which third parties can add to.

    A name is found in this order: registered in this process, given as `package.module:ClassName`, or declared by an
    installed package in the entry-point group.

    Args:
        kind: What is registered, in the singular; error messages use it.
        group: Entry-point group through which installed packages add entries.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator that registers under `name`.

        Raises:
            SparsePOError: the name is taken by another class, or is not a plain word.
        """
        if not name.replace("_", "").replace("-", "").isalnum():
            raise SparsePOError(f"{self.kind} name {name!r}: only letters, digits, '_' and '-' are allowed")

        def add(cls: type) -> type:
            known = self._classes.get(name)
            if known is not None and known is not cls:
                raise SparsePOError(f"{self.kind} {name!r} is already registered by {known.__module__}")
            self._classes[name] = cls
            return cls

        return add

    def get(self, name: str) -> type:
        """The class behind `name`.

        Raises:
            SparsePOError: nothing has that name, or `package.module:ClassName` cannot be imported.
        """
        if name in self._classes:
            return self._classes[name]
        if ":" in name:
            module, _, attribute = name.partition(":")
            return self._load(name, lambda: getattr(importlib.import_module(module), attribute))
        for entry in entry_points(group=self.group):
            if entry.name == name:
                return self._load(name, entry.load)
        raise SparsePOError(
            f"unknown {self.kind} {name!r}: registered are {', '.join(self.names())}; "
            "a class of your own is named as package.module:ClassName"
        )

    def names(self) -> list[str]:
        """All names, those of installed packages included, sorted."""
        return sorted({*self._classes, *(entry.name for entry in entry_points(group=self.group))})

    def _load(self, name: str, load: Callable[[], type]) -> type:
        try:
            return load()
        except (ImportError, AttributeError, ValueError) as error:
            raise SparsePOError(f"{self.kind} {name!r} cannot be imported: {error}") from error


MASKS = Registry("mask", "sparsepo.masks")
OBJECTIVES = Registry("objective", "sparsepo.objectives")
