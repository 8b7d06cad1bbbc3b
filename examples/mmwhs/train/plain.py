"""From plain values, as YAML holds them, to the dataclasses of a configuration, and back."""

import re
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from examples.mmwhs.messages import message
from examples.mmwhs.train.config import Run

T = TypeVar("T")


@cache
def _parser(kind: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser


def parse(kind: type[T], values: Any, *, where: str) -> T:
    """An instance of a dataclass from plain values, with every value checked.

    Raises:
        ValueError: A value is missing, unknown or of the wrong type; the message names it and `where`.
    """
    parser = _parser(kind)
    try:
        return parser.instantiate(parser.parse_object({"value": values})).value
    except ArgumentError as error:
        raise ValueError(message(f"{where} to describe a {kind.__name__.lower()}", in_a_line(str(error)))) from error


def in_a_line(text: str) -> str:
    """What jsonargparse says of a wrong value, in one line: the path of its key, and what is wrong there."""
    path = [key.removeprefix("value.") for key in re.findall(r'Parser key "([^"]+)"', text)]
    text = re.sub(
        r'Parser key "[^"]+":|Problem with given class_path \S+:|Given value type: .*|Errors:|(?m:^ *- )', " ", text
    )
    text = re.sub(r"Does not validate against any of the Union subtypes\s*Subtypes: .*", " ", text)
    text = " ".join(re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "null").replace("value.", "").split())
    text = re.sub(r"Group 'value' does not accept option (\S+?)\.?$", r"no key \1 is known", text)
    text = re.sub(r"Option (\S+) is not accepted", r"no key \1 is known", text)
    text = text.replace("the following arguments are required:", "no value of").replace("typing.Literal", "one of ")
    if "no key" in text:
        text = text[text.index("no key") :].partition(" is known")[0] + " is known"
    elif kinds := re.findall(r"Expected an? (.+?)\.?(?= Expected| Given| Got|$)", text):
        value = re.search(r"(?:Given|Got) value: (.*?)\.?$", text)
        text = f"{value[1] if value else 'a value'} where {' or '.join(kinds)} is expected"
    return f"{'.'.join(path)}: {text.rstrip('.')}" if path else text.rstrip(".")


def to_yaml(run: Run) -> str:
    """The whole configuration of a run as YAML, in the order of its fields."""
    return yaml.safe_dump(asdict(run), sort_keys=False, allow_unicode=True)
