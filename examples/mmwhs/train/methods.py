"""Methods and scales from YAML files: what they share is said once, and any of it can be overridden.

A method file may say ``extends: NAME``, the name of a built-in method, of another in the same file, or
``FILE.yaml:NAME`` of one in a file beside it: it then says only what differs. Mappings are merged key by key;
everything else, lists included, replaces what was there; null takes it away. A key at the top may be a dotted path.
Stages are a mapping from their names; the one called ``finetune`` runs last, but for one of kind ``selftrain``. A stage
may say ``like: NAME``: what it does not say itself is as in that stage of the method. A file may hold several methods,
by name, below ``methods:``, as ``experiments/acdc64/variants.yaml`` does; ``FILE.yaml:NAME`` is one of them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml

from examples.mmwhs.messages import message, one_of
from examples.mmwhs.train.config import Method, Scale, plain_name
from examples.mmwhs.train.plain import parse

HERE = Path(__file__).parents[1]
FOLDERS = {Method: HERE / "methods", Scale: HERE / "scales"}
T = TypeVar("T", Method, Scale)


def built_in(kind: type) -> list[str]:
    """The built-in names of methods or scales."""
    return sorted(path.stem for path in FOLDERS[kind].glob("*.yaml"))


def load(kind: type[T], source: str | Path, overrides: Iterable[str] = ()) -> T:
    """A `Method` or `Scale` by its built-in name or from a YAML file, with every value checked.

    Args:
        kind: `Method` or `Scale`.
        source: A name or a file.
        overrides: ``PATH=VALUE``, the path dotted and the value YAML: ``stages.local.loss.options.formula=mmgl``.

    Raises:
        ValueError: The name is unknown, the file does not describe one, or an override leads nowhere.
    """
    found = _read(kind, source)
    if len(found) != 1:
        raise ValueError(message(f"{source} to hold one {kind.__name__.lower()}", f"{len(found)} of them"))
    return _finish(kind, next(iter(found.values())), parse_overrides(overrides), where=str(source), strict=True)


def load_all(sources: Iterable[str | Path], overrides: Iterable[str] = ()) -> dict[str, Method]:
    """Methods by name, from names and files, a file with ``methods:`` giving all it holds.

    An override that names a stage applies to the methods that have it.
    """
    given = parse_overrides(overrides)
    found: dict[str, Method] = {}
    for source in sources:
        for name, values in _read(Method, source).items():
            if name in found:
                cure = "The names of files are those of methods: rename one."
                raise ValueError(message("every method once", f"{name!r} twice", cure))
            plain_name("the name of a method", str(name))
            found[name] = _finish(Method, values, given, where=name, strict=False)
    titles = [method.title for method in found.values()]
    if shared := {title for title in titles if titles.count(title) > 1}:
        names = [name for name, method in found.items() if method.title in shared]
        raise ValueError(message("every method to have its own title", f"{sorted(shared)} of {names}", "Rename one."))
    for path in given:
        name = path.split(".")[1] if path.startswith("stages.") else None
        if name and not any(stage.name == name for method in found.values() for stage in method.stages):
            raise ValueError(message(f"a method with the stage {name!r} for the override {path}", "none"))
    return found


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """``PATH=VALUE`` as path -> value, the value read as YAML."""
    given = {}
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ValueError(message("an override like stages.local.loss.options.formula=mmgl", repr(text)))
        given[path.strip()] = _yaml(value, f"the value of the override {text}")
    return given


def read(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        ValueError: It is not YAML.
    """
    return _yaml(path.read_bytes(), str(path))


def _yaml(text: str | bytes, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        got = repr(" ".join(str(error).split()))
        raise ValueError(message(f"plain values as YAML in {where}", got)) from error


def merge(base: Any, change: Any) -> Any:
    """`base` with `change` laid over it; null takes away."""
    if not isinstance(change, Mapping):
        return deepcopy(change)
    merged = dict(base) if isinstance(base, Mapping) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def lay(base: Any, change: Mapping[str, Any]) -> Any:
    """`base` with `change` laid over it, whose own keys may be dotted paths."""
    for path, value in change.items():
        for key in reversed(str(path).split(".")):
            value = {key: value}
        base = merge(base, value)
    return base


def _read(kind: type, source: str | Path, chain: Sequence[str] = ()) -> dict[str, Any]:
    """Name -> plain values, extended; of a file or a built-in name."""
    word, file = kind.__name__.lower(), re.fullmatch(r"(.+\.ya?ml)(?::(.*))?", str(source))
    if file:
        beside = Path(chain[-1]).parent if chain else Path()  # the file that extends it
        path, name = beside / file[1], file[2]
    else:
        one_of(word, str(source), built_in(kind))
        path, name = FOLDERS[kind] / f"{source}.yaml", None
    if not path.is_file():
        raise ValueError(message(f"`{word}` to be a built-in name or a YAML file", f"{source} (no file)"))
    if str(path) in chain:
        raise ValueError(message("methods that extend one another without a circle", [*chain, str(path)]))
    content, chain = read(path), (*chain, str(path))
    if isinstance(content, dict) and {"method", "scale"} <= set(content):  # the config.yaml that a run has saved
        content = content[word]
        if word == "method" and isinstance(content.get("stages"), list):
            named = {s["name"]: {k: v for k, v in s.items() if k != "name"} for s in content["stages"]}
            content = {**content, "stages": named}
    if kind is Method and isinstance(content, dict) and set(content) == {"methods"}:
        held = content["methods"]
        if name:
            one_of(f"method in {path}", name, held)
        return {each: _extended(values, {k: v for k, v in held.items() if k != each}, chain)
                for each, values in held.items() if not name or each == name}  # fmt: skip
    if name:
        raise ValueError(message(f"{path} to hold several methods below `methods:`", "one method"))
    return {path.stem: _extended(content, {}, chain)}


def _extended(values: Any, beside: Mapping[str, Any], chain: Sequence[str]) -> Any:
    """`values` over what they extend: a method beside them in their file, or one of another."""
    if not isinstance(values, dict) or "extends" not in values:
        return lay({}, values) if isinstance(values, dict) else values
    base, own = values["extends"], {key: value for key, value in values.items() if key != "extends"}
    if base in beside:
        below = _extended(beside[base], {key: value for key, value in beside.items() if key != base}, chain)
    else:
        (below,) = _read(Method, base, chain).values()
    return lay(below, own)


def _finish(kind: type[T], values: Any, overrides: Mapping[str, Any], *, where: str, strict: bool) -> T:
    stages = values.get("stages") if isinstance(values, dict) else None
    for path, value in overrides.items():
        parts = path.split(".")
        if parts[0] == "stages" and isinstance(stages, dict) and parts[1:] and parts[1] not in stages:
            if strict:
                raise ValueError(message(f"a stage of {where} in {path}, one of {list(stages)}", parts[1]))
            continue
        values = lay(values, {path: value})
    if isinstance(values, dict) and isinstance(values.get("stages"), dict):
        # The values of a stage go first, so that a name of its own in the file would be an error and not silent.
        stages = {name: _alike(name, stage, values["stages"]) for name, stage in values["stages"].items()}
        items = sorted(
            stages.items(), key=lambda item: 2 if item[1].get("kind") == "selftrain" else item[0] == "finetune"
        )
        values = {**values, "stages": [{**stage, "name": name} for name, stage in items]}
    return parse(kind, values, where=where)


def _alike(name: str, stage: Any, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a stage over those of the stage that it is like."""
    if not isinstance(stage, Mapping) or "like" not in stage:
        return {**stage}
    model, own = stage["like"], {key: value for key, value in stage.items() if key != "like"}
    one_of(f"like of the stage {name!r}", str(model), [each for each in stages if each != name])
    if "like" in stages[model]:
        raise ValueError(message(f"stage {model!r} to be like no other, as {name!r} is like it", stages[model]["like"]))
    return merge(stages[model], own)
