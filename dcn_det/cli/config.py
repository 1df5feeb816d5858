"""``dcn-det config``: lists, shows and compares configs, and describes their keys."""

from __future__ import annotations

import argparse
import fnmatch
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from dcn_det.cli.arguments import COLUMNS, Parser, add_config
from dcn_det.config import differences, json_schema, load_any, print_config
from dcn_det.config.reference import reference, words_by_key
from dcn_det.config.shipped import REFERENCE, SCHEMA, configs_folder, shipped, summary
from dcn_det.errors import UserError, did_you_mean
from dcn_det.files import read_text, write_text

DIFFERENT = 1
"""Exit code if two configs differ."""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    result = Parser(
        prog="dcn-det config",
        description="List, show and compare configs, and describe their keys.",
        examples=["dcn-det config list 'sample/*'", "dcn-det config show configs/sample/rfcn.yaml train.epochs=2"],
    )
    commands = result.add_subparsers(dest="command", required=True, metavar="command")
    for add in (_add_list, _add_show, _add_diff, _add_reference, _add_schema):
        add(commands)
    return result


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def _add_list(commands: Commands) -> None:
    add = commands.add_parser(
        "list",
        help="list the project's configs with a description",
        description="List the project's configs by folder, with the first sentence of each.",
        examples=["dcn-det config list", "dcn-det config list 'coco/*' '*_dcn'"],
    )
    add.add_argument("patterns", nargs="*", metavar="PATTERN", help="names to list, such as 'coco/*' (default: all)")
    add.set_defaults(run=_list)


def _add_show(commands: Commands) -> None:
    add = commands.add_parser(
        "show",
        help="print every value of a config, and where it was set",
        description="Print every value of a config with the file and line that set it.",
        examples=[
            "dcn-det config show configs/coco/rfcn_r101_dcn.yaml",
            "dcn-det config show configs/coco/rfcn_r101.yaml overlay=configs/base/coco.yaml",
        ],
    )
    add_config(add)
    add.set_defaults(run=_show)


def _add_diff(commands: Commands) -> None:
    add = commands.add_parser(
        "diff",
        help="compare all values of two configs",
        description="Print the keys with different values in two configs, with the file and line that set each value. "
        "Name and expected results are not compared.",
        notes="exit codes: 0 no difference; 1 differences; 2 invalid arguments or config",
        examples=["dcn-det config diff configs/voc/rfcn_r101_dpool.yaml \\", "    configs/voc/rfcn_r101_dcn.yaml"],
    )
    add.add_argument("configs", nargs=2, metavar="config", type=Path, help="YAML file")
    add.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override both configs")
    add.set_defaults(run=_diff)


def _add_reference(commands: Commands) -> None:
    add = commands.add_parser(
        "reference",
        help="describe keys: allowed values, default, meaning",
        description="Print the reference of all keys, or of one key or block, in Markdown.",
        examples=["dcn-det config reference train.optimizer", "dcn-det config reference test.nms"],
    )
    what = add.add_mutually_exclusive_group()
    what.add_argument("key", nargs="?", default="", help="key or block, such as model.backbone (default: all)")
    what.add_argument("--write", action="store_true", help=f"replace configs/{REFERENCE} of the project")
    add.set_defaults(run=_reference)


def _add_schema(commands: Commands) -> None:
    add = commands.add_parser(
        "schema",
        help="print the JSON schema of configs, for editors",
        description="Print the JSON schema of configs of all tasks, with which editors complete and check YAML.",
        examples=["dcn-det config schema"],
    )
    add.add_argument("--write", action="store_true", help=f"replace configs/{SCHEMA} of the project instead")
    add.set_defaults(run=_schema)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


def _list(args: argparse.Namespace) -> int:
    folder = configs_folder()
    found = False
    for below, paths in shipped(folder).items():
        names = {path: path.relative_to(folder).with_suffix("").as_posix() for path in paths}
        wanted = [p for p in paths if not args.patterns or any(fnmatch.fnmatch(names[p], a) for a in args.patterns)]
        if wanted:
            print(f"{'' if not found else chr(10)}{folder / below}:")
            found = True
        for path in wanted:
            print(f"  {path.name}")
            print(textwrap.fill(summary(read_text(path)), COLUMNS, initial_indent="      ", subsequent_indent="      "))
    if not found:
        raise UserError(f"no config of {folder} matches {' '.join(args.patterns)}; dcn-det config list prints all")
    return 0


def _show(args: argparse.Namespace) -> int:
    print(print_config(load_any(args.config, *args.overrides)), end="")
    return 0


def _diff(args: argparse.Namespace) -> int:
    first, second = (load_any(path, *args.overrides) for path in args.configs)
    found = differences(first, second)
    for key, before, after in found:
        print(key)
        for sign, value in (("-", before), ("+", after)):
            if value:
                print(f"  {sign} {value}")
    if not found:
        print("no difference")
    return DIFFERENT if found else 0


def _reference(args: argparse.Namespace) -> int:
    try:
        text = reference(args.key)
    except KeyError:
        raise UserError(f"unknown key '{args.key}'{did_you_mean(args.key, words_by_key())}") from None
    return _give(text, configs_folder() / REFERENCE if args.write else None)


def _schema(args: argparse.Namespace) -> int:
    text = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    return _give(text, configs_folder() / SCHEMA if args.write else None)


def _give(text: str, path: Path | None) -> int:
    """Writes text to a file, or prints it."""
    if path is None:
        print(text, end="")
    else:
        write_text(path, text)
        print(f"written: '{path}'")
    return 0
