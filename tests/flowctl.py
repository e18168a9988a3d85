"""A stand-in of Estuary's `flowctl`, to be run as a program: its arguments and answers, and a file for a catalog.

What it keeps to: unknown arguments are refused as clap does; no token, an unknown token and an API key without its
prefix are refused; credentials go to the config folder of HOME; `pull-specs` writes the canonical layout with larger
configs and schemas in files of their own and `expectPubId` in each definition, into a folder that exists; `publish`
takes nothing if one definition is not at the expected publication, encrypts what connectors mark as secret, and leaves
header values of webhooks alone; collections that are bound must exist. Messages are those of flowctl's source.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ZERO = "0" * 16
SECRET_KEYS = {"password", "private_key", "privateKey"}
KINDS = {"captures": "capture", "collections": "collection", "materializations": "materialization", "tests": "test"}
LARGE = 512


def install(folder: Path, token: str = "flow_sa_test") -> Catalog:  # noqa: S107 - of the stand-in
    """Put a program `flowctl` into `folder`, with an empty catalog beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "flowctl"
    root = Path(__file__).parents[1]
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(root)!r})\n"
        f"from tests.flowctl import main\nmain({str(folder / 'state.json')!r})\n"
    )
    program.chmod(0o755)
    catalog = Catalog(folder / "state.json")
    catalog.write({"token": token, "specs": {}, "next": 1, "calls": [], "fault": None})
    return catalog


class Catalog:
    """The stand-in's state: specs by name, calls, a fault to play."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.path.read_text())
        return state

    def write(self, state: dict[str, Any]) -> None:
        # Whole or not at all: a test may read while the program writes.
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(state, indent=1))
        beside.replace(self.path)

    @property
    def specs(self) -> dict[str, Any]:
        """What is published: name to {kind, model, pub_id}."""
        return dict(self.read()["specs"])

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Arguments and what was seen of files and environment, call by call."""
        return list(self.read()["calls"])

    def play(self, fault: str | None) -> None:
        """From now on every publication fails in that way."""
        self.write({**self.read(), "fault": fault})

    def edit(self, name: str, **fields: Any) -> None:
        """Somebody else publishes another model of a definition."""
        state = self.read()
        spec = state["specs"][name]
        spec["model"].update(fields)
        spec["pub_id"] = _id(state)
        self.write(state)

    def add(self, kind: str, name: str, model: dict[str, Any]) -> None:
        """Somebody else publishes a definition."""
        state = self.read()
        state["specs"][name] = {"kind": kind, "model": model, "pub_id": _id(state)}
        self.write(state)


def main(state_file: str) -> None:
    """The program."""
    catalog = Catalog(Path(state_file))
    arguments = _parser().parse_args()
    state = catalog.read()
    state["calls"].append(_seen(arguments))
    catalog.write(state)
    _authenticate(state)
    command = {"pull-specs": _pull, "test": _test, "publish": _publish, "delete": _delete}[arguments.command]
    command(catalog, state, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flowctl", allow_abbrev=False)
    groups = parser.add_subparsers(dest="group", required=True)
    commands = groups.add_parser("catalog", allow_abbrev=False).add_subparsers(dest="command", required=True)
    pull = commands.add_parser("pull-specs", allow_abbrev=False)
    pull.add_argument("--name", action="append", default=[])
    pull.add_argument("--prefix", action="append", default=[])
    pull.add_argument("--target", default="flow.yaml")
    pull.add_argument("--overwrite", action="store_true")
    pull.add_argument("--flat", action="store_true")
    for name in ("test", "publish"):
        command = commands.add_parser(name, allow_abbrev=False)
        command.add_argument("--source", required=True)
        command.add_argument("--init-data-plane", default="ops/dp/public/gcp-us-central1-c2")
        if name == "publish":
            command.add_argument("--auto-approve", action="store_true")
    delete = commands.add_parser("delete", allow_abbrev=False)
    delete.add_argument("--name", action="append", default=[])
    delete.add_argument("--prefix", action="append", default=[])
    delete.add_argument("--dangerous-auto-approve", action="store_true")
    return parser


def _seen(arguments: argparse.Namespace) -> dict[str, Any]:
    source = getattr(arguments, "source", None)
    return {
        "arguments": sys.argv[1:],
        "environment": sorted(os.environ),
        "home": os.environ.get("HOME"),
        "mode": stat.filemode(Path(source).stat().st_mode) if source else None,
        "folder_mode": stat.filemode(Path(source).parent.stat().st_mode) if source else None,
        "source": source,
    }


def _authenticate(state: dict[str, Any]) -> None:
    key, token = os.environ.get("FLOW_API_KEY"), os.environ.get("FLOW_AUTH_TOKEN")
    if key is not None and not key.startswith("flow_sa_"):
        _fail("FLOW_API_KEY must be a service-account API key, starting with `flow_sa_`")
    given = key or token
    if given is None:
        _fail("You are not currently authenticated. Please run `flowctl auth login`.")
    if given != state["token"]:
        _fail(f"control-plane API returned 401 Unauthorized for the token {given}")
    config = Path(os.environ["HOME"]) / ".config" / "flowctl" / "default.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({"user_access_token": given}))


def _pull(catalog: Catalog, state: dict[str, Any], arguments: argparse.Namespace) -> None:
    _play(state, ("away", "slow"))
    target = Path(arguments.target)
    if not target.parent.is_dir():
        _fail(f"No such file or directory: {target.parent}")
    chosen = {
        name: spec
        for name, spec in state["specs"].items()
        if name in arguments.name or name.startswith(tuple(arguments.prefix))
    }
    files: dict[Path, dict[str, Any]] = {target: {}}
    for name, spec in chosen.items():
        folder = target.parent / Path(name).parent
        folder.mkdir(parents=True, exist_ok=True)
        model = _indirect(json.loads(json.dumps(spec["model"])), folder, name.rpartition("/")[2])
        if isinstance(model, dict):
            model["expectPubId"] = spec["pub_id"]
        file = folder / "flow.yaml" if folder != target.parent else target
        section = next(key for key, kind in KINDS.items() if kind == spec["kind"])
        files.setdefault(file, {}).setdefault(section, {})[name] = model
    files[target]["import"] = sorted(str(path.relative_to(target.parent)) for path in files if path != target)
    for path, document in files.items():
        path.write_text(_yaml({key: value for key, value in document.items() if value} or {"tests": {}}))
    print(f"Wrote {len(chosen)} specifications under {target}.")


def _indirect(model: Any, folder: Path, name: str) -> Any:
    """Larger configs and schemas become files of their own."""
    if not isinstance(model, dict):
        return model
    connector = model.get("endpoint", {}).get("connector", {})
    places = [(connector, "config", f"{name}.config.yaml")]
    places += [(model, key, f"{name}.{key}.yaml") for key in ("schema", "writeSchema", "readSchema")]
    for holder, key, file in places:
        if isinstance(holder.get(key), dict) and len(json.dumps(holder[key])) > LARGE:
            (folder / file).write_text(_yaml(holder[key]))
            holder[key] = file
    return model


def _yaml(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=yaml.CSafeDumper)
    return text


def _load(arguments: argparse.Namespace) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load(Path(arguments.source).read_text(), Loader=yaml.CSafeLoader)
    return document


def _test(catalog: Catalog, state: dict[str, Any], arguments: argparse.Namespace) -> None:
    _play(state, ("away", "slow", "slow-test", "bad", "leak"), arguments)
    _validated(state, _load(arguments))
    print("Tests successful")


def _publish(catalog: Catalog, state: dict[str, Any], arguments: argparse.Namespace) -> None:
    if not arguments.auto_approve:
        _fail("The publish command must be run interactively unless the `--auto-approve` flag is provided")
    _play(state, ("publish-away", "publish-leak"), arguments)
    document = _load(arguments)
    if state["fault"] == "race":
        # Somebody publishes between the test and the publication.
        for spec in state["specs"].values():
            spec["pub_id"] = _id(state)
    specs = _validated(state, document)
    for name, (kind, model) in specs.items():
        model = (
            {key: value for key, value in model.items() if key != "expectPubId"} if isinstance(model, dict) else model
        )
        state["specs"][name] = {"kind": kind, "model": _encrypted(model), "pub_id": _id(state)}
    catalog.write(state)
    print(f"Will publish the following {len(specs)} specs\n\nPublish successful")


def _validated(state: dict[str, Any], document: dict[str, Any]) -> dict[str, tuple[str, Any]]:
    specs = {name: (KINDS[section], model) for section, models in document.items() for name, model in models.items()}
    for name, (kind, model) in specs.items():
        live = state["specs"].get(name)
        actual = live["pub_id"] if live else ZERO
        expected = model.get("expectPubId", actual) if isinstance(model, dict) else actual
        if not isinstance(expected, str):
            _fail(f"invalid id: {expected}")
        if expected != actual:
            _fail(
                f"expected publication ID {expected} was not matched (it's actually {actual}): your changes have "
                "already been published or another publication has modified this spec; please try again with a fresh "
                "copy of the spec."
            )
        for binding in model.get("bindings", ()) if isinstance(model, dict) else ():
            bound = binding.get("target") or binding["source"]
            if bound not in specs and bound not in state["specs"]:
                _fail(f"{kind} {name} references collection {bound} which is not defined")
    return specs


def _encrypted(model: Any) -> Any:
    connector = model.get("endpoint", {}).get("connector") if isinstance(model, dict) else None
    if connector:
        config, count = _sealed(connector["config"])
        connector["config"] = {**config, "sops": {"mac": "ENC[x]"}} if count else config
        triggers = model.get("triggers")
        if triggers:
            # The present shape, whatever was given.
            config = triggers["config"]
            each = config if isinstance(config, list) else list(config.values())
            named = {f"trigger-{number}": trigger for number, trigger in enumerate(each)}
            for trigger in named.values():
                trigger["headers"] = {
                    f"{name}_sops": f"ENC[{len(value)}]" for name, value in trigger["headers"].items()
                }
                trigger.update(timeout="30s", maxAttempts=3)
            model["triggers"] = {"config": named, "sops": {"mac": "ENC[y]"}}
    return model


def _sealed(value: Any) -> tuple[Any, int]:
    count, sealed = 0, {}
    for key, item in value.items():
        if isinstance(item, dict):
            sealed[key], inside = _sealed(item)
            count += inside
        elif key in SECRET_KEYS:
            sealed[f"{key}_sops"], count = f"ENC[AES256_GCM,data:{len(item)}]", count + 1
        else:
            sealed[key] = item
    return sealed, count


def _delete(catalog: Catalog, state: dict[str, Any], arguments: argparse.Namespace) -> None:
    if not arguments.dangerous_auto_approve:
        _fail("delete operation cancelled")
    names = [name for name in state["specs"] if name in arguments.name or name.startswith(tuple(arguments.prefix))]
    if not names:
        _fail("no specs found matching given selector")
    for name in names:
        del state["specs"][name]
    catalog.write(state)
    print(f"successfully deleted {len(names)} spec(s)")


def _play(state: dict[str, Any], faults: tuple[str, ...], arguments: argparse.Namespace | None = None) -> None:
    fault = state["fault"]
    if fault not in faults:
        return
    if fault.startswith("slow"):
        time.sleep(600)
    if fault.endswith("away"):
        _fail("error sending request for url (https://api.estuary.dev/): connection refused")
    if fault.endswith("leak") and arguments is not None:
        _fail(f"cannot build: {Path(arguments.source).read_text()}\n{os.environ.get('FLOW_API_KEY')}")
    _fail("build failed: the connector could not be started")


def _id(state: dict[str, Any]) -> str:
    state["next"] += 1
    # Digits only and an e: what a careless reader takes for a number.
    return f"{state['next']:04d}e{0:011d}"


def _fail(message: str) -> Any:
    print(f"ERROR flowctl: {message}", file=sys.stderr)
    sys.exit(1)
