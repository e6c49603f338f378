"""Read where the archives and annotations of a data set are kept; the form is described in mirrors.yaml."""

from __future__ import annotations

import difflib
import posixpath
import re
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs.loading import parse_yaml
from pipelines.data.annotations import read_text
from pipelines.data.transfer import check_address

SHIPPED = Path(__file__).parent / "mirrors.yaml"
_SPLIT_KEYS = ("archives", "annotations", "replacements")
_TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz")
_UNQUOTED = re.compile(r"%(?![0-9A-Fa-f]{2})")  # a percent sign that quotes nothing


class Split(NamedTuple):
    """The addresses of one split."""

    name: str
    archives: str | tuple[str, ...]  # a text file that lists them, or the archives themselves
    annotations: str  # ADDRESS, or ADDRESS#MEMBER of a tar
    replacements: tuple[str, ...] = ()


class Mirror(NamedTuple):
    """The addresses of one data set."""

    name: str
    splits: dict[str, Split]
    note: str = ""


def read_mirror(name: str, path: str | Path = SHIPPED) -> Mirror:
    """Read one data set of a file of mirrors.

    Raises ValueError with the nearest match for an unknown set or key, and with the key for a missing or wrong value.
    """
    content = parse_yaml(read_text(path), str(path))
    sets = {str(key): value for key, value in _mapping(content, f"{path}: expected sets such as k400").items()}
    _check_names([name], sets, f"{path}: unknown data set")
    fields = _mapping(sets[name], f"{path}: {name}: expected splits")
    _check_names(fields, ("note", "splits"), f"{path}: {name}: unknown key")
    splits = _mapping(fields.get("splits"), f"{path}: {name}: expected splits, such as train and val")
    return Mirror(
        name=name,
        splits={str(split): _read_split(str(split), splits[split], f"{path}: {name}.{split}") for split in splits},
        note=str(fields.get("note", "")),
    )


def choose_splits(mirror: Mirror, names: Iterable[str]) -> list[Split]:
    """Return splits by their names. Raises ValueError with the nearest match for an unknown one."""
    chosen = list(dict.fromkeys(names))
    _check_names(chosen, mirror.splits, f"split={','.join(chosen)}: {mirror.name} has no split")
    return [mirror.splits[name] for name in chosen]


def override_addresses(
    splits: Sequence[Split], archives: str = "", annotations: str = "", replacements: Sequence[str] = ()
) -> list[Split]:
    """Return the splits with the addresses that are not empty in place of their own.

    Raises ValueError for several splits, which would all get the same files, and for what is no address.
    """
    given: dict[str, Any] = {"archives": archives, "annotations": annotations, "replacements": list(replacements)}
    given = {key: value for key, value in given.items() if value}
    if given and len(splits) != 1:
        names = ",".join(split.name for split in splits)
        key, value = next(iter(given.items()))
        value = value if isinstance(value, str) else ",".join(value)
        raise ValueError(f"{key}={value}: expected a single split, got split={names}")
    parsed: dict[str, Any] = {
        key: _addresses(value, key) if isinstance(value, list) else _address(value, key) for key, value in given.items()
    }
    return [split._replace(**parsed) for split in splits]


def list_archives(text: str, source: str) -> tuple[str, ...]:
    """Return the addresses of archives in a text file, one per line, quoted as requests need them.

    `source` is the address of the file itself. Raises ValueError for a file that holds none, or something else.
    """
    addresses = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if not line.strip().endswith(_TAR_SUFFIXES):
            raise ValueError(
                f"{source}:{number}: expected the address of a {_TAR_SUFFIXES[0]}, got {line.strip()[:100]!r}"
            )
        addresses.append(urllib.parse.urljoin(quote_address(source), quote_address(line.strip())))
    if not addresses:
        raise ValueError(f"{source}: the list of archives is empty")
    return tuple(addresses)


def quote_address(address: str) -> str:
    """Quote the spaces and other signs of an address that a request cannot hold; what is quoted already stays."""
    return urllib.parse.quote(_UNQUOTED.sub("%25", address), safe="%/:?&=+,;@!$'()*~[]")


def file_name(address: str) -> str:
    """Return the name of the file that an address ends with. Raises ValueError if it ends with none."""
    name = posixpath.basename(urllib.parse.unquote(urllib.parse.urlsplit(address).path))
    if name in ("", ".", ".."):
        raise ValueError(f"{address}: expected an address that ends with the name of a file")
    return name


def local_path(address: str) -> str:
    """Return the relative path under which a file is kept: HOST/FOLDER/NAME, quoted as in the address.

    Raises ValueError as file_name().
    """
    file_name(address)
    parts = urllib.parse.urlsplit(quote_address(address))
    return "/".join([parts.netloc, *(part for part in parts.path.split("/") if part not in ("", ".", ".."))])


def _read_split(name: str, fields: Any, where: str) -> Split:
    fields = _mapping(fields, f"{where}: expected {', '.join(_SPLIT_KEYS)}")
    _check_names(fields, _SPLIT_KEYS, f"{where}: unknown key")
    if posixpath.basename(name) != name or name in ("", ".", "..", "archives", "annotations", "replacement"):
        raise ValueError(f"{where}: not usable as a split's name, which names the folder of its videos")
    archives = fields.get("archives")
    read_archives = _addresses if isinstance(archives, list) else _address
    return Split(
        name=name,
        archives=read_archives(archives, f"{where}.archives"),
        annotations=_address(fields.get("annotations"), f"{where}.annotations"),
        replacements=_addresses(fields.get("replacements", []), f"{where}.replacements"),
    )


def _address(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected an address, got {value!r}")
    try:
        check_address(value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return value


def _addresses(values: Any, where: str) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{where}: expected a list of addresses, got {values!r}")
    return tuple(quote_address(_address(value, where)) for value in values)


def _mapping(value: Any, expectation: str) -> dict[Any, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError(f"{expectation}, found {value!r}")
    return value


def _check_names(names: Iterable[Any], known: Iterable[Any], problem: str) -> None:
    """Raise ValueError for the first name that is not among the known ones."""
    known = [str(name) for name in known]
    for name in map(str, names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"{problem} {name}; {hint}")
