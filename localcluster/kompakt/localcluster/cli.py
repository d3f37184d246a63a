# SPDX-License-Identifier: Apache-2.0
"""The command line: `kompakt-localcluster up|down|status|kubeconfig|logs|build`.

Exit codes: 0 done or running; 1 an error, told in one sentence and what to do; 2 wrong usage; 3
(`status` and `kubeconfig`) not running.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kompakt.localcluster import build, cluster, host, state
from kompakt.localcluster.errors import LocalClusterError
from kompakt.localcluster.progress import Progress
from kompakt.localcluster.settings import Settings, from_environment

NOT_RUNNING = 3
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    progress = Progress()
    try:
        settings = from_environment()
        code: int = arguments.command(settings, arguments, progress)
    except LocalClusterError as error:
        progress.say(f"[bold red]kompakt-localcluster:[/] {escape(error.message)}.")
        remedy = error.remedy[0].upper() + error.remedy[1:]
        progress.say(f"{escape(remedy)}.")
        return 1
    except OSError as error:
        what = error.filename or "the machine"
        progress.say(f"[bold red]kompakt-localcluster:[/] {escape(f'{what}: {error.strerror}')}.")
        progress.say("Mend that, and run it again, as root where it is a question of permission.")
        return 1
    except KeyboardInterrupt:
        progress.say("interrupted: run up again, or down to remove what was started")
        return INTERRUPTED
    return code


def _up(settings: Settings, arguments: argparse.Namespace, progress: Progress) -> int:
    lease = cluster.up(settings, progress, with_gateway=not arguments.without_gateway)
    seconds = " · ".join(f"{name} {value:.1f} s" for name, value in progress.seconds.items())
    versions = " · ".join(f"{name} {value}" for name, value in lease.versions.items())
    lines = {
        "KUBECONFIG": f"{lease.state}/admin.kubeconfig",
        "gateway": f"http://{lease.gateway_address}" if lease.gateway_address else "none",
        "versions": versions,
        "seconds": seconds,
    }
    console = Console(highlight=False)
    for name, value in lines.items():
        console.print(f"[dim]{name:<10}[/] {escape(value)}", soft_wrap=True)
    return 0


def _down(settings: Settings, _arguments: argparse.Namespace, progress: Progress) -> int:
    if not cluster.down(settings, progress):
        progress.say("there is no local cluster on this machine")
    return 0


def _build(settings: Settings, _arguments: argparse.Namespace, progress: Progress) -> int:
    host.check_here()  # a build takes minutes: first whether it will be of use
    builds = cluster.Builds.of(settings)
    build.ensure((builds.controlplane, builds.gateway), settings, progress)
    sys.stdout.write(f"{builds.controlplane.folder}\n{builds.gateway.folder}\n")
    return 0


def _status(settings: Settings, arguments: argparse.Namespace, _progress: Progress) -> int:
    found = cluster.status(settings)
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        _print_status(found)
    return 0 if found["running"] else NOT_RUNNING


def _print_status(found: dict[str, Any]) -> None:
    console = Console(highlight=False)
    if "processes" not in found:
        console.print("there is no local cluster running on this machine")
        return
    minutes, seconds = divmod(found["uptimeSeconds"], 60)
    table = Table(box=None, show_header=False, pad_edge=False)
    state_text = "running" if found["running"] else f"not healthy ({found['phase']})"
    table.add_row("cluster", f"{state_text}, for {minutes} min {seconds} s")
    table.add_row("checkout", found["checkout"])
    table.add_row("KUBECONFIG", found["kubeconfig"])
    table.add_row("gateway", f"http://{found['gateway']}" if found["gateway"] else "none")
    for node in found["nodes"]:
        table.add_row(f"node {node['name']}", "ready" if node["ready"] else "not ready")
    for process in found["processes"]:
        alive = f"process {process['pid']}" if process["alive"] else "ended"
        table.add_row(process["name"], alive)
    console.print(table)


def _kubeconfig(settings: Settings, _arguments: argparse.Namespace, progress: Progress) -> int:
    running = state.current(settings)
    if not running.kubeconfig.exists():
        progress.say("there is no local cluster on this machine: start it with up")
        return NOT_RUNNING
    sys.stdout.write(f"{running.kubeconfig}\n")
    return 0


def _logs(settings: Settings, arguments: argparse.Namespace, _progress: Progress) -> int:
    folder = state.current(settings).logs
    names = sorted(path.stem for path in folder.glob("*.log"))
    if arguments.component not in names:
        known = ", ".join(names) or "none: no cluster was started"
        raise LocalClusterError(
            "UnknownComponent",
            f"there is no component {arguments.component}",
            remedy=f"name one of them ({known})",
        )
    tail = ["tail", "--lines=+1", *(["--follow"] if arguments.follow else [])]
    return subprocess.run(
        [*tail, str(folder / f"{arguments.component}.log")], check=False
    ).returncode


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kompakt-localcluster",
        description="A real Kubernetes cluster on this machine, for the demo and the tests.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start the cluster, or do nothing if it runs")
    up.add_argument("--without-gateway", action="store_true", help="start no gateway")
    up.set_defaults(command=_up)
    down = commands.add_parser("down", help="take the cluster away, whoever started it")
    down.set_defaults(command=_down)
    status = commands.add_parser("status", help="say what runs (exit code 3: nothing)")
    status.add_argument("--json", action="store_true", help="for machines")
    status.set_defaults(command=_status)
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    kubeconfig.set_defaults(command=_kubeconfig)
    logs = commands.add_parser("logs", help="print the log of one component")
    logs.add_argument("component", help="its name in status, such as kube-apiserver")
    logs.add_argument("-f", "--follow", action="store_true", help="go on as it grows")
    logs.set_defaults(command=_logs)
    builder = commands.add_parser("build", help="build the Go programs, and start nothing")
    builder.set_defaults(command=_build)
    return parser
