"""Names for masks and objectives: the extension point of the project."""

import importlib
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from importlib.util import find_spec
from types import ModuleType

from .errors import SparsePOError, fault, shown


class Registry:
    """A table from names to classes, which third parties can add to.

    A name is found in this order: registered in this process, given as `package.module:ClassName`, or declared by an
    installed package in the entry-point group.

    Args:
        kind: What is registered, in the singular; error messages use it.
        group: Entry-point group through which installed packages add entries.
        own: Package whose modules register this project's own classes, imported when the table is first used.

    Examples:
        >>> shapes = Registry("shape", group="example.shapes")
        >>> @shapes.register("round")
        ... class Round:
        ...     pass
        >>> shapes.get("round") is Round
        True
        >>> shapes.get("square")
        Traceback (most recent call last):
        sparsepo_plugin.errors.SparsePOError: unknown shape 'square': registered are round; a class of your own is ...
    """

    def __init__(self, kind: str, group: str, own: str | None = None) -> None:
        self.kind = kind
        self.group = group
        self._own = own
        self._classes: dict[str, type] = {}

    @property
    def _known(self) -> dict[str, type]:
        """All that is registered in this process, our own included."""
        if self._own:
            importlib.import_module(self._own)
        return self._classes

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator that registers under `name`.

        Raises:
            SparsePOError: the name is taken by another class, or is not a plain word; or no class is registered.
        """
        if not name.replace("_", "").replace("-", "").isalnum():
            raise SparsePOError(f"{self.kind} name {name!r}: only letters, digits, '_' and '-' are allowed")

        def add(cls: type) -> type:
            if not isinstance(cls, type):
                raise SparsePOError(f"{self.kind} {name!r}: a class is needed, not {shown(cls)}")
            known = self._known.get(name)
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
        if name in self._known:
            return self._known[name]
        if ":" in name:
            module, _, attribute = name.partition(":")
            return self._load(name, module, attribute)
        for entry in entry_points(group=self.group):
            if entry.name == name:
                return self._load(name, entry.module, entry.attr)
        raise SparsePOError(
            f"unknown {self.kind} {shown(name)}: registered are {', '.join(self.names())}; "
            "a class of your own is named as package.module:ClassName"
        )

    def __contains__(self, name: str) -> bool:
        """Whether `names` has it; installed packages, 10 ms to look through, are asked last."""
        return name in self._known or name in self.names()

    def names(self) -> list[str]:
        """All names, those of installed packages included, sorted."""
        return sorted({*self._known, *(entry.name for entry in entry_points(group=self.group))})

    def _load(self, name: str, module: str, attribute: str) -> type:
        found = import_module(module, f"{self.kind} {name!r}")
        if not isinstance(getattr(found, attribute, None), type):
            raise SparsePOError(f"{self.kind} {name!r} cannot be imported: {module} has no class {attribute!r}")
        return getattr(found, attribute)


MASKS = Registry("mask", "sparsepo.masks", own="sparsepo_plugin.masks")
OBJECTIVES = Registry("objective", "sparsepo.objectives", own="sparsepo_plugin.objectives")


def import_plugins(modules: Iterable[str]) -> None:
    """Import the modules listed under `loss_plugins:`, which may register masks and objectives.

    Raises:
        SparsePOError: one cannot be imported; the line names the file and line of the fault.
    """
    for module in modules:
        import_module(module, f"loss_plugins: {module!r}")


def import_module(module: str, what: str) -> ModuleType:
    """A module of somebody else's.

    Args:
        module: Its dotted name.
        what: What is imported, for the error.

    Raises:
        SparsePOError: it cannot be imported; the line names the file and line of the fault.
    """
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit(0) there must not end the run as if it had succeeded
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            found = "no such module in the current folder or among the installed packages"
        else:
            found = fault(error, _source(module))
        raise SparsePOError(f"{what} cannot be imported: {found}") from error


def _source(module: str) -> str | None:
    """File of the package that a module lies in; the module itself is not looked for, as that runs the package."""
    try:
        spec = find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return None
    return spec and spec.origin
