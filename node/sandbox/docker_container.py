"""What a container of the sandbox is made of: limits, and everything a program could do harm with taken away."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.sandbox.egress import MOUNTED
from node.sandbox.languages import FOLDER, Tools
from node.sandbox.port import Limits
from node.sandbox.seccomp import docker_profile

LABEL: Final = "triggerx.sandbox"
"""On every container of ours; its value says which node's it is."""
NOBODY: Final = "65534:65534"

TOOLS: Final = Tools(
    python="/usr/local/bin/python3",
    node="/usr/local/bin/node",
    esbuild="/usr/local/bin/esbuild",
    go_compile="/usr/local/lib/triggerx/go/compile",
    go_link="/usr/local/lib/triggerx/go/link",
    go_importcfg="/usr/local/lib/triggerx/go/importcfg",
)
"""Where an image has its programs: deploy/sandbox puts them there. All but Python may be missing."""
CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
"""Where an image has the certificates of the usual authorities."""

_LAUNCHER = Path(__file__).with_name("launcher.py").read_text()
_OURS = 2  # processes: the launcher, and the relay of one with hosts
_PERIOD_US = 100_000
_PROFILE = json.dumps(docker_profile(), separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Shape:
    """The limits that a container is born with."""

    cpus: float
    memory: int
    pids: int
    files: int

    @classmethod
    def of(cls, limits: Limits) -> Shape:
        return cls(limits.cpus, limits.memory, limits.pids, limits.files)


def paths() -> list[str]:
    """All of `TOOLS`."""
    every = (TOOLS.python, TOOLS.node, TOOLS.esbuild, TOOLS.go_compile, TOOLS.go_link, TOOLS.go_importcfg)
    return [path for path in every if path is not None]


def tools(has: Collection[str]) -> Tools:
    """Those of `TOOLS` that an image has."""

    def there(path: str | None) -> str | None:
        return path if path in has else None

    return Tools(
        there(TOOLS.python),
        there(TOOLS.node),
        there(TOOLS.esbuild),
        there(TOOLS.go_compile),
        there(TOOLS.go_link),
        there(TOOLS.go_importcfg),
    )


def config(image: str, owner: str, shape: Shape, folder: Path) -> dict[str, Any]:
    """The engine's `POST /containers/create` for one container, whose `folder` has `script` and `egress` in it."""
    return {
        "Image": image,
        "Entrypoint": [TOOLS.python, "-I", "-S", "-B", "-c", _LAUNCHER],
        "Cmd": paths(),
        "Env": [],
        "User": NOBODY,
        "WorkingDir": "/tmp",  # noqa: S108 - the container's own
        "Hostname": "sandbox",
        "StopSignal": "SIGKILL",  # the launcher hears no other, and an engine that stops would wait for it
        "Labels": {LABEL: owner},
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": True,
        "StdinOnce": True,
        "Tty": False,
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "CpuPeriod": _PERIOD_US,
            "CpuQuota": round(shape.cpus * _PERIOD_US),
            "Memory": shape.memory,
            "MemorySwap": shape.memory,  # none beyond memory
            "PidsLimit": shape.pids + _OURS,
            "NetworkMode": "none",
            "IpcMode": "none",  # no /dev/shm: it could be written to
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": f"rw,noexec,nosuid,nodev,size={shape.files},mode=1777"},  # noqa: S108
            "Mounts": [
                {"Type": "bind", "Source": str(folder / "script"), "Target": FOLDER, "ReadOnly": True},
                {"Type": "bind", "Source": str(folder / "egress"), "Target": MOUNTED, "ReadOnly": True},
            ],
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true", f"seccomp={_PROFILE}"],
            "Privileged": False,
            "LogConfig": {"Type": "none"},  # what is printed is read as it comes, up to its limit, and kept nowhere
            "RestartPolicy": {"Name": "no"},
            "Ulimits": [{"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "nofile", "Soft": 256, "Hard": 256}],
        },
    }
