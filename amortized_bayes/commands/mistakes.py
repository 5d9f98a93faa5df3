"""Typing mistakes, each reported in one line: the wrong flag or value, what was expected, and the nearest valid one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from amortized_bayes.configuration import SettingError
from amortized_bayes.refusals import did_you_mean, nearest, type_words
from amortized_bayes.terminal import plain

__all__ = ["check_command", "check_flags", "flags_of", "in_one_line"]


def check_command(name: str, known: Sequence[str]) -> None:
    """Refuse a command that does not exist.

    Raises:
        SettingError: it does not.
    """
    if name not in known:
        raise SettingError(f"expected a command among {', '.join(known)}, got {name!r}{did_you_mean(name, known)}")


def flags_of(command: Any, setting: Any = None) -> dict[str, Any]:
    """The flags of a command, ``--no-`` ones among them, with the annotations of what they set.

    Args:
        command: its dataclass.
        setting: the dataclass of its settings, in the place of a field of that name.
    """
    found: dict[str, Any] = {"--help": bool}
    hints = get_type_hints(command, include_extras=True)
    for entry in dataclasses.fields(command):
        hint = setting if entry.name == "setting" and setting is not None else hints[entry.name]
        if dataclasses.is_dataclass(hint):
            found |= flags_of(hint)
            continue
        name = entry.name.replace("_", "-")
        found[f"--{name}"] = hint
        if hint is bool:
            found[f"--no-{name}"] = hint
    return found


def check_flags(command: str, given: Sequence[str], flags: Mapping[str, Any]) -> None:
    """Refuse flags that a command does not have, and those that are given twice.

    Raises:
        SettingError: there are such.
    """
    seen: list[str] = []
    for argument in given:
        if not argument.startswith("--") or argument == "--":
            continue
        flag = "--" + argument[2:].split("=")[0].replace("_", "-")
        if flag not in flags:
            near = nearest(flag[2:], [known[2:] for known in flags])
            more = f"; did you mean --{near}?" if near else f"; `{command} --help` lists its flags"
            raise SettingError(f"expected a flag of {command}, got {plain(flag)}{more}")
        same = "--" + flag[2:].removeprefix("no-") if f"--no-{flag[2:].removeprefix('no-')}" in flags else flag
        seen.append(same)
    for flag in dict.fromkeys(seen):
        if (times := seen.count(flag)) > 1:
            values = ", ".join(_values(flag, given))
            raise SettingError(f"expected {flag} once, got it {times} times{f': {values}' if values else ''}")


def in_one_line(box: str, command: str, given: Sequence[str], flags: Mapping[str, Any]) -> str:
    """What tyro says of a command line that it cannot read, in a box of several sections, in one line of ours."""
    lines = [line.strip("│|+╭╮╰╯ ") for line in box.splitlines()[1:]]
    parts = " ".join("\n" if line and not set(line) - set("─-") else line for line in lines).split("\n")
    text = next((part.strip() for part in parts if part.strip()), "expected flags with their values, got others")
    if found := re.search(r"invalid choice '(.*?)' for argument '(--[\w-]+)'", text):
        choices = re.findall(r"'([^']*)'", text.partition("Expected one of")[2])
        value, flag = found.groups()
        return f"expected {flag} among {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}"
    if found := re.search(r"Missing value for argument '(--[\w-]+)'(?:.*Expected (\d+) values)?", text):
        flag, count = found.groups()
        values = _values(flag, given)
        wanted = f"{count} values" if count and count != "1" else "a value"
        return f"expected {wanted} after {flag}, got {_listed(values)}"
    if (found := re.search(r"Error parsing (--[\w-]+)", text)) and found[1] in flags:
        return f"expected {found[1]} {type_words(flags[found[1]])}, got {_listed(_values(found[1], given))}"
    if found := re.search(r"Unrecognized (?:or misplaced )?options: (\S.*?)(?:,? --| \(applied|,|\.?  |$)", text):
        return f"expected flags of {command} with their values, got {found[1]!r}, which belongs to none"
    return text.strip().rstrip(".")


def _values(flag: str, given: Sequence[str]) -> list[str]:
    """What stands after a flag on the command line."""
    found: list[str] = []
    inside = False
    for argument in given:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            inside = "--" + name[2:].replace("_", "-") == flag
            found += [value] if inside and "=" in argument else []
        elif inside:
            found.append(argument)
    return found


def _listed(values: Sequence[str]) -> str:
    return " ".join(map(repr, values)) or "none"
