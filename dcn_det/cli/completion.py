"""``dcn-det completion``: prints a script with which bash completes commands, options, files and settings."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcn_det.cli import COMMANDS
from dcn_det.cli.arguments import Parser
from dcn_det.cli.benchmark import BENCHMARKS
from dcn_det.config.reference import words_by_key

CONFIG, FILE, FOLDER, NOTHING = "_dcn_det_configs", "_dcn_det_files", "_dcn_det_folders", ":"
"""Functions of the script, and bash's command that does nothing."""

SCRIPT = """\
# Completion of dcn-det for bash; made by `dcn-det completion bash`.

_dcn_det_words() { COMPREPLY+=($(compgen -W "$*" -- "$cur")); }

_dcn_det_paths() {  # the arguments of compgen
  local IFS=$'\\n'
  compopt -o filenames 2>/dev/null
  COMPREPLY+=($(compgen "$@" -- "$cur"))
}

_dcn_det_folders() { _dcn_det_paths -d; }
_dcn_det_files() { _dcn_det_paths -f; }

_dcn_det_configs() {
  _dcn_det_paths -f -X '!*.yaml'
  _dcn_det_paths -d
}

_dcn_det_keys() {  # after a config
  local before=${#COMPREPLY[@]}
  [[ " ${COMP_WORDS[*]:1:COMP_CWORD-1} " == *.yaml" "* ]] || return
  _dcn_det_words @KEYS@ overlay=
  # As names of files, they would be written with a backslash before "=".
  ((${#COMPREPLY[@]} > before)) && compopt +o filenames -o nospace 2>/dev/null
}

_dcn_det_values() {  # of the setting $prev
  case $prev in
    overlay) _dcn_det_configs ;;
@VALUES@
  esac
}

_dcn_det() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} first=${COMP_WORDS[1]} command value=
  COMPREPLY=()
  # Bash splits words at "=".
  if [[ $cur == = ]]; then
    cur= value=1
  elif [[ $prev == = ]]; then
    prev=${COMP_WORDS[COMP_CWORD-2]} value=1
  fi
  if ((COMP_CWORD == 1)); then
    _dcn_det_words @COMMANDS@ --help --version
    return
  fi
  command=$first
  case $first in
@GROUPS@
  esac
  case "$command $prev" in
@OPTIONS@
  esac
  if [[ $value ]]; then
    _dcn_det_values
    return
  fi
  case $command in
@POSITIONALS@
  esac
}

complete -F _dcn_det dcn-det
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det completion",
        description="Print a script with which bash completes commands, options, their values, files, configs and "
        "settings of dcn-det. Write it to a file once, since it takes seconds to make.",
        examples=["dcn-det completion bash > ~/.local/share/bash-completion/completions/dcn-det"],
    )
    result.add_argument("shell", choices=("bash",), help="the shell")
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser().parse_args(argv)
    print(bash(all_parsers()), end="")
    return 0


def all_parsers() -> dict[str, argparse.ArgumentParser]:
    """Returns the parsers of all commands by name; those of ``benchmark`` and ``config`` have names of two words."""
    found: dict[str, argparse.ArgumentParser] = {}
    modules = {name: module for name, (module, _) in COMMANDS.items()}
    modules |= {f"benchmark {name}": module for name, (module, _) in BENCHMARKS.items()}
    for name, module in modules.items():
        found[name] = importlib.import_module(module).parser()
        for action in found[name]._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {below}": each for below, each in action.choices.items()}
    return found


def bash(parsers: dict[str, argparse.ArgumentParser]) -> str:
    """Returns the script for parsers by command."""
    groups: dict[str, list[str]] = {}
    for first, _, second in (name.partition(" ") for name in parsers):
        if second:
            groups.setdefault(first, []).append(second)
    keys = words_by_key()
    lists = {
        "@KEYS@": [" ".join(f"{key}=" for key in keys)],
        "@VALUES@": [f"    {key}) _dcn_det_words {' '.join(words)} ;;" for key, words in keys.items() if words],
        "@COMMANDS@": [" ".join(name for name in parsers if " " not in name)],
        "@GROUPS@": list(_groups(groups)),
        "@OPTIONS@": [line for name, each in parsers.items() for line in _options(name, each)],
        "@POSITIONALS@": [line for name, each in parsers.items() for line in _positionals(name, each)],
    }
    script = SCRIPT
    for mark, lines in lists.items():
        script = script.replace(mark, "\n".join(lines))
    return script


def _groups(groups: dict[str, list[str]]) -> Iterator[str]:
    for name, below in groups.items():
        yield f"    {name})"
        yield f"      if ((COMP_CWORD == 2)); then _dcn_det_words {' '.join(below)} --help; return; fi"
        yield f'      command="{name} ${{COMP_WORDS[2]}}"'
        yield "      ;;"


def _options(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yields the cases of options with a value."""
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            patterns = "|".join(f'"{name} {option}"' for option in action.option_strings)
            yield f"    {patterns}) {_values(action)}; return ;;"


def _positionals(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yields the case of a command: its options after a dash, otherwise what its other arguments can be."""
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    yield f'    "{name}")'
    yield f"      if [[ $cur == -* ]]; then _dcn_det_words {' '.join(options)}; return; fi"
    for command in dict.fromkeys(_values(action) for action in parser._actions if not action.option_strings):
        yield f"      {command}"
    yield "      ;;"


def _values(action: argparse.Action) -> str:
    """Returns the command that completes the value of an argument."""
    named = str(action.metavar or action.dest).lower()
    if action.choices is not None:
        return f"_dcn_det_words {_words(list(action.choices))}"
    if "key=value" in named:
        return CONFIG if "config" in named else "_dcn_det_keys"
    if "config" in named:
        return CONFIG
    if action.type is Path or getattr(action.type, "__name__", "") in ("png", "place"):
        return FOLDER if named in ("dir", "output") and "folder" in str(action.help) else FILE
    return NOTHING


def _words(choices: Sequence[object]) -> str:
    return " ".join(map(str, choices))
