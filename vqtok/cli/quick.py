"""Commands that start without Pydantic."""

from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from typer.core import TyperCommand

_NUMBERS = (bool, int, float)


class QuickCommand(TyperCommand):
    """A command whose parameters are `spared`."""

    def get_params(self, ctx: Any) -> Any:
        return spared(super().get_params(ctx), self.callback)


def spared(parameters: Any, command: Any) -> Any:
    """Lets parameters of a command pass on values that need no check: text, paths, and what was
    not given.

    Typer 0.29 imports Pydantic and builds a validator for these, too, which takes 1/15 of the
    import of torch.
    """
    hints = getattr(command, "__annotations__", {})
    for parameter in parameters:
        if "process_value" not in vars(parameter):
            parameter.process_value = _process(parameter, _bare(hints.get(parameter.name)))
    return parameters


def _bare(hint: Any) -> Any:
    """Returns the type in `Annotated[type | None, ...]`."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else None
    return hint


def _process(parameter: Any, kind: Any) -> Callable[[Any, Any], Any]:
    """Makes the `process_value` of a parameter of that type."""
    check = parameter.process_value
    several = parameter.multiple or parameter.nargs != 1

    def process(context: Any, value: Any) -> Any:
        if value is None and not several and not parameter.required:
            made = None
        elif kind in (str, Path) and type(value) is str:
            made = kind(value)
        elif kind == list[str] and several and value and all(type(one) is str for one in value):
            made = list(value)
        elif kind in _NUMBERS and type(value) is kind and _is_default(context, parameter):
            made = value
        else:
            return check(context, value)
        return made if parameter.callback is None else parameter.callback(context, parameter, made)

    return process


def _is_default(context: Any, parameter: Any) -> bool:
    source = context.get_parameter_source(parameter.name)
    return source is not None and source.name == "DEFAULT"
