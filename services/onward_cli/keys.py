"""`onward keys`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from onward_gateway.access import KeysInvalid, Scope, line_of, new_key
from onward_serving.environment import members


def keys(
    action: Annotated[Literal["new"], Parameter(help="Makes one.")],
    /,
    *,
    namespace: Annotated[str, Parameter(help="The tenant whose runs it opens.")] = "default",
    scopes: Annotated[
        str, Parameter(help="What it is for, comma-separated: read, write, admin (see executors).")
    ] = "read,write",
    name: Annotated[str, Parameter(help="For people: whose it is.")] = "",
    file: Annotated[Path | None, Parameter(help="Add its line to this file, and print the key alone.")] = None,
) -> None:
    """Make an API key. It is shown once; the file of `onward gateway --keys` keeps its hash.

    Example: onward keys new --namespace acme --name ci --file keys.txt
    """
    key = new_key()
    try:
        line = line_of(key, namespace, frozenset(Scope(scope) for scope in members(scopes)), name)
    except KeysInvalid as error:
        sys.exit(f"onward: {error}")
    except ValueError:
        sys.exit(f"onward: --scopes are some of {', '.join(Scope)}, not {scopes}")
    if file is None:
        print(f"key   {key}\nline  {line}")
        print("The key is not shown again. The line goes into the file of `onward gateway --keys`.", file=sys.stderr)
        return
    try:
        with file.open("a") as lines:
            lines.write(f"{line}\n")
    except OSError as error:
        sys.exit(f"onward: {file}: {error.strerror}")
    print(key)
