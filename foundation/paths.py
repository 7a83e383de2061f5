"""Where the configuration files are: in the user's folder first, then those that ship with the package."""

from __future__ import annotations

from pathlib import Path

from datamodules.errors import InputError

_PACKAGE = Path(__file__).resolve().parent


def shipped_configs() -> Path:
    """The folder of YAML files that ships with the package.

    An installed package holds it inside (``foundation/configs``); in a checkout it stands beside the package.
    """
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def config_path(name: str) -> Path:
    """Find a configuration file by the name given on the command line.

    Args:
        name: A path, absolute or relative to the current directory, or the name of a shipped file, with or
            without the leading ``configs/``: ``configs/pretrain.yaml`` and ``pretrain.yaml`` are the same.

    Returns:
        An existing file; one in the current directory wins over the shipped one of that name.

    Raises:
        InputError: If there is no such file in either place; the message lists what ships.
    """
    given = Path(name).expanduser()
    if given.is_file():
        return given
    shipped = shipped_configs()
    if not given.is_absolute():
        relative = Path(*given.parts[1:]) if given.parts[:1] == ("configs",) else given
        if ".." not in relative.parts and (shipped / relative).is_file():
            return shipped / relative
    names = ", ".join(sorted(path.relative_to(shipped).as_posix() for path in shipped.rglob("*.yaml"))) or "none"
    raise InputError(f"no configuration file {name!r} in {Path.cwd()} or among the shipped ones: {names}")
