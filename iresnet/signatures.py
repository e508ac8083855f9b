"""Options of models, from signatures and docstrings: read as text, since importing them would import torch."""

__all__ = ["model_options"]

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from docstring_parser import DocstringStyle, parse

from iresnet.options import Option, yaml_text

_FROM_ELSEWHERE = {"self", "g", "dense", "name", "shape", "task", "n_classes", "mean", "std", "context", "generator"}
_NOT_LISTED = {"options", "logdet", "solver"}  # but what they consist of
_Definition = ast.FunctionDef | ast.ClassDef


class _Parameter(NamedTuple):
    type: str
    default: str
    help: str


def model_options() -> Iterator[Option]:
    """Yield the options of ``model``: of all architectures, of estimators of log-determinants and of solvers.

    Example:
        >>> option = next(o for o in model_options() if o.name == "model.injective_pad")
        >>> option.type, option.default, option.help
        ('int', '0', 'iresnet, resnet: channels of zeros appended to the image; classification only')
    """
    blocks, own = _parameters("iresnet.blocks", "block"), _registered("iresnet.architectures", "ARCHITECTURES")
    architectures = {name: found | blocks if "options" in found else found for name, found in own.items()}
    yield Option("model.name", "str", "iresnet; of vectors: toy-mlp", f"architecture: {', '.join(architectures)}")
    yield from _merged("model.", architectures)
    yield from _merged("model.", {"all": _parameters("iresnet.zoo", "build")})
    for part, default, registry in (("logdet", "krylov", "LOGDETS"), ("solver", "anderson", "SOLVERS")):
        choices = _registered("iresnet.blocks", registry)
        yield Option(f"model.{part}.name", "str", default, ", ".join(choices))
        yield from _merged(f"model.{part}.", choices)


def _merged(where: str, owners: dict[str, dict[str, _Parameter]]) -> Iterator[Option]:
    """Yield each option once, with the names of those that have it, unless all do, and with their defaults."""
    for key in dict.fromkeys(key for parameters in owners.values() for key in parameters if key not in _NOT_LISTED):
        having = {owner: parameters[key] for owner, parameters in owners.items() if key in parameters}
        usual, _ = Counter(p.default for p in having.values()).most_common(1)[0]
        defaults = [usual, *(f"{owner}: {p.default}" for owner, p in having.items() if p.default != usual)]
        lacking = [owner for owner in owners if owner not in having]
        of = f"{', '.join(having)}: " if lacking else ""
        if len(lacking) == 1 < len(having):
            of = f"not for {lacking[0]}: "
        text, kind = next(p.help for p in having.values() if p.help), next(iter(having.values())).type
        yield Option(f"{where}{key}", kind, "; ".join(defaults), of + text)


# -- source ------------------------------------------------------------------------------------------------------------


@cache
def _tree(module: str) -> ast.Module:
    file = Path(__file__).parent.joinpath(*module.split(".")[1:])
    return ast.parse((file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text(encoding="utf-8"))


def _find(module: str, name: str) -> tuple[str, _Definition]:
    """Find a function or class of a module, or in the one that it is imported from."""
    for node in _tree(module).body:
        if isinstance(node, _Definition) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return _find(node.module, name)
    raise LookupError(f"{module} has no {name}")


def _registry(module: str, name: str) -> dict[str, ast.expr]:
    """Return keys and values of a dictionary of a module."""
    for node in _tree(module).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and isinstance(node.value, ast.Dict):
            return {
                ast.literal_eval(key): value
                for key, value in zip(node.value.keys, node.value.values, strict=True)
                if key
            }
    raise LookupError(f"{module} has no dictionary {name}")


def _registered(module: str, registry: str) -> dict[str, dict[str, _Parameter]]:
    """Return the parameters of everything in a registry."""
    return {key: _parameters(module, ast.unparse(value)) for key, value in _registry(module, registry).items()}


def _parameters(module: str, name: str) -> dict[str, _Parameter]:
    """Return the parameters of a function or class; ``options`` stands for further ones."""
    module, node = _find(module, name)
    described = parse(ast.get_docstring(node) or "", DocstringStyle.GOOGLE).params
    helps = {p.arg_name: _plain(p.description or "") for p in described}
    if isinstance(node, ast.FunctionDef):
        return _of_function(node, helps)
    inherited: dict[str, _Parameter] = {}
    for base in map(ast.unparse, node.bases):
        inherited |= _parameters(module, base) if base != "ABC" else {}
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return inherited
    own = {key: text for key, text in helps.items() if not text.startswith("see ")}
    return _of_function(init, {key: p.help for key, p in inherited.items()} | own)


def _of_function(node: ast.FunctionDef, helps: dict[str, str]) -> dict[str, _Parameter]:
    positional, keyword = node.args.args, node.args.kwonlyargs
    defaults = [None] * (len(positional) - len(node.args.defaults)) + node.args.defaults + node.args.kw_defaults
    found = {}
    for argument, default in zip([*positional, *keyword], defaults, strict=True):
        if argument.arg not in _FROM_ELSEWHERE:
            text = "" if default is None else yaml_text(ast.literal_eval(default))
            found[argument.arg] = _Parameter(_type(argument.annotation), text, helps.get(argument.arg, ""))
    return found | ({"options": _Parameter("", "", "")} if node.args.kwarg else {})


def _type(annotation: ast.expr | None) -> str:
    """Write an annotation as a type of YAML, without the classes that only Python has."""
    kinds = ast.unparse(annotation).split(" | ") if annotation else []
    plain = {"None": "null", "Mapping[str, Any]": "mapping"}
    names = [plain.get(kind, re.sub(r"Sequence\[(\w+)\]", r"list of \1", kind)) for kind in kinds]
    return " | ".join(name for name in names if name[0].islower())


def _plain(text: str) -> str:
    """Write a description without markup, and the keys of a dictionary in place of its name."""
    text = " ".join(text.replace("``", "").replace("None", "null").split()).rstrip(".")
    for role, kind, target in re.findall(r"(:(\w+):`~?([\w.]+)`)", text):
        module, _, name = target.rpartition(".")
        text = text.replace(role, ", ".join(_registry(module, name)) if kind == "data" and module else name)
    return text
