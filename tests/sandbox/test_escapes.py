"""What a script must not reach: each test tries, from inside, what would be an escape."""

from __future__ import annotations

import errno
import json
import platform
import socket
from pathlib import Path

import pytest

from node.sandbox.port import Sandbox
from node.sandbox.seccomp import numbers
from tests.sandbox.programs import LIMITS, printed, program

REFUSED = {errno.EPERM, errno.ENOSYS}

# System calls by name: numbers on x86-64 and aarch64, and arguments that would do something.
CALLS = {
    "ptrace": (101, 117, "0, 0, 0, 0"),
    "mount": (165, 40, 'b"none", b"/tmp", b"tmpfs", 0, 0'),
    "umount2": (166, 39, 'b"/tmp", 2'),
    "pivot_root": (155, 41, 'b"/tmp", b"/tmp"'),
    "chroot": (161, 51, 'b"/tmp"'),
    "unshare": (272, 97, "0x10000000"),
    "setns": (308, 268, "0, 0"),
    "open_tree": (428, 428, '-100, b"/", 1'),
    "fsopen": (430, 430, 'b"tmpfs", 0'),
    "bpf": (321, 280, "0, 0, 0"),
    "add_key": (248, 217, 'b"user", b"a", b"b", 1, -2'),
    "keyctl": (250, 219, "0, -3, 1"),
    "request_key": (249, 218, 'b"user", b"a", 0, -3'),
    "perf_event_open": (298, 241, "0, 0, -1, -1, 0"),
    "userfaultfd": (323, 282, "0"),
    "io_uring_setup": (425, 425, "1, 0"),
    "process_vm_readv": (310, 270, "1, 0, 0, 0, 0, 0"),
    "kcmp": (312, 272, "1, 1, 0, 0, 0"),
    "pidfd_getfd": (438, 438, "0, 0, 0"),
    "name_to_handle_at": (303, 264, '-100, b"/", 0, 0, 0'),
    "open_by_handle_at": (304, 265, "0, 0, 0"),
    "init_module": (175, 105, "0, 0, 0"),
    "kexec_load": (246, 104, "0, 0, 0, 0"),
    "reboot": (169, 142, "0, 0, 0, 0"),
    "swapon": (167, 224, 'b"/tmp/x", 0'),
    "settimeofday": (164, 170, "0, 0"),
    "sethostname": (170, 161, 'b"x", 1'),
    "syslog": (103, 116, "3, 0, 0"),
    "acct": (163, 89, 'b"/tmp/x"'),
    "personality": (135, 92, "0x0040000"),
    "a call of the future": (9999, 9999, "0"),
}


def hidden(folder: Path) -> Path:
    """A file that everybody on this machine may read."""
    secret = folder / "operator.json"
    secret.write_text("the operator's key")
    folder.chmod(0o755)
    return secret


async def test_nothing_outside_tmp_can_be_written(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import os
        written = []
        places = ["/x", "/usr/x", "/usr/bin/x", "/etc/x", "/script/x", "/dev/x", "/dev/shm/x", "/run/x", "/run/triggerx/x"]
        places += ["/var/tmp/x", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/sys/fs/cgroup/x", "/root/x", "/home/x"]
        for place in places:
            try:
                open(place, "w" if place.endswith("/x") else "r+").close()
                written.append(place)
            except OSError:
                pass
        try:
            os.mkdir("/y")
            written.append("/y")
        except OSError:
            pass
        print(written)
        """,
    )
    assert said == "[]\n"


async def test_neither_the_script_nor_the_programs_can_be_changed(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import os, sys
        changed = []
        for place in (sys.executable, __file__, os.__file__):
            for change in (lambda: open(place, "ab"), lambda: os.chmod(place, 0o777), lambda: os.replace("/tmp", place)):
                try:
                    change()
                    changed.append(place)
                except OSError:
                    pass
        print(changed)
        """,
    )
    assert said == "[]\n"


async def test_files_of_the_host_cannot_be_read(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = hidden(tmp_path)
    said = await printed(
        sandbox,
        f"""
        import os
        read = []
        places = [{str(secret)!r}, {str(Path(__file__))!r}, "/etc/shadow", "/etc/machine-id", "/proc/1/environ"]
        places += ["/proc/1/root{secret}", "/proc/self/root{secret}", "/proc/kcore", "/proc/kmsg", "/dev/mem", "/dev/vda"]
        for place in places:
            try:
                with open(place, "rb") as file:
                    file.read(1)
                if place != "/proc/1/environ":
                    read.append(place)
            except OSError:
                pass
        for place in ("/home", "/boot", "/var/lib", "/srv", "/mnt"):
            try:
                read += [f"{{place}}/{{name}}" for name in os.listdir(place)]
            except OSError:
                pass
        print(read)
        """,
    )
    assert said == "[]\n"


async def test_the_environment_is_the_scripts_own(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERATORS_PASSWORD", "swordfish")
    finished = await sandbox.run(
        program(
            """
            import glob, os
            seen = dict(os.environ)
            for place in glob.glob("/proc/[0-9]*/environ"):
                try:
                    seen[place] = open(place).read()
                except OSError:
                    pass
            print("swordfish" in str(seen), os.environ["TRIGGERX_JOB_ID"], os.environ["PATH"][:1], os.environ["PYTHONHASHSEED"])
            """,
            environment={"TRIGGERX_JOB_ID": "7", "PYTHONHASHSEED": "random"},
        ),
        LIMITS,
    )
    assert finished.stdout == b"False 7 / 0\n", finished


async def test_there_is_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as here, socket.socket(socket.AF_INET6) as six:
        six.bind(("::1", 0))
        six.listen()
        said = await printed(
            sandbox,
            f"""
            import socket
            reached = []
            for family, place in (
                (socket.AF_INET, ("127.0.0.1", {here.getsockname()[1]})),
                (socket.AF_INET, ("192.0.2.1", 80)),
                (socket.AF_INET, ("169.254.169.254", 80)),
                (socket.AF_INET, ("172.17.0.1", 80)),
                (socket.AF_INET6, ("::1", {six.getsockname()[1]})),
                (socket.AF_INET6, ("2001:db8::1", 80)),
            ):
                with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
                    tcp.settimeout(2)
                    try:
                        tcp.connect(place)
                        reached.append(place)
                    except OSError:
                        pass
                    try:
                        udp.sendto(b"x", place)
                        reached += [] if place[0] in ("127.0.0.1", "::1") else [place]
                    except OSError:
                        pass
            try:
                reached.append(socket.getaddrinfo("example.com", 80))
            except OSError:
                pass
            print(reached, [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:] if " lo:" not in line])
            """,
        )
    assert said == "[] []\n"


async def test_sockets_are_neither_raw_nor_of_a_family_beyond_the_internets(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import socket
        made = []
        for family in range(50):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
                try:
                    socket.socket(family, kind).close()
                    made.append((family, int(kind)))
                except OSError:
                    pass
        print(made)
        """,
    )
    allowed = {(int(family), int(kind)) for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6) for kind in (1, 2)}
    assert {tuple(each) for each in json.loads(said.replace("(", "[").replace(")", "]"))} <= allowed


async def test_sockets_speak_no_protocol_that_the_kernel_would_load_for_them(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import errno, socket
        refused = set()
        for family in (socket.AF_INET, socket.AF_INET6):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for protocol in set(range(1, 300)) - {6, 17}:
                    try:
                        socket.socket(family, kind, protocol)
                        refused.add("made")
                    except OSError as error:
                        refused.add(error.errno)
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        print(refused == {errno.EPERM})
        """,
    )
    assert said == "True\n"


async def test_unix_sockets_of_the_host_are_out_of_reach(sandbox: Sandbox, tmp_path: Path) -> None:
    name = f"suite-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX) as named, socket.socket(socket.AF_UNIX) as abstract:
        folder = tmp_path.relative_to(Path.cwd()) if tmp_path.is_relative_to(Path.cwd()) else tmp_path
        named.bind(str(folder / "s"))
        abstract.bind(f"\0{name}")
        named.listen()
        abstract.listen()
        said = await printed(
            sandbox,
            f"""
            import socket
            reached = []
            for place in ({str(tmp_path / "s")!r}, "\\0{name}", "/run/docker.sock", "/var/run/docker.sock"):
                with socket.socket(socket.AF_UNIX) as each:
                    try:
                        each.connect(place)
                        reached.append(place)
                    except OSError:
                        pass
            print(reached)
            """,
        )
    assert said == "[]\n"


async def test_calls_that_reach_beyond_a_process_are_refused(sandbox: Sandbox) -> None:
    column = {"x86_64": 0, "aarch64": 1}[platform.machine()]
    lines = "\n".join(f"found[{name!r}] = call({row[column]}, {row[2]})" for name, row in CALLS.items())
    said = await printed(
        sandbox,
        f"""
import ctypes, json
libc = ctypes.CDLL(None, use_errno=True)
found = {{}}
def call(*arguments):
    ctypes.set_errno(0)
    return ctypes.get_errno() if libc.syscall(*arguments) == -1 else 0
{lines}
print(json.dumps(found))
""",
    )
    assert {name: error for name, error in json.loads(said).items() if error not in REFUSED} == {}


async def test_no_process_is_made_in_a_new_namespace(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        f"""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        made = []
        for name, flag in dict(NS=0x20000, CGROUP=0x2000000, UTS=0x4000000, IPC=0x8000000, USER=0x10000000, PID=0x20000000,
                               NET=0x40000000).items():
            pid = libc.syscall({numbers(platform.machine())["clone"]}, flag | 17, 0, 0, 0, 0)
            if pid == 0:
                os._exit(0)
            if pid > 0:
                made.append(name)
        print(made, libc.syscall(435, ctypes.create_string_buffer(88), 88) == -1 and ctypes.get_errno())
        """,
    )
    assert said == f"[] {errno.ENOSYS}\n"


async def test_others_processes_can_be_neither_seen_nor_killed(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import os, signal
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        killed = []
        for pid in set(range(3, 4_000)) - {os.getpid()}:
            try:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            except OSError:
                pass
        try:
            os.kill(1, signal.SIGKILL)  # the first of its namespace: the kernel drops what its own children send
        except OSError:
            pass
        print(len(pids) < 6, killed)
        """,
    )
    assert said == "True []\n"


async def test_a_script_has_no_rights_and_gains_none(sandbox: Sandbox) -> None:
    said = await printed(
        sandbox,
        """
        import os
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        print(*(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")))
        print(status["NoNewPrivs"].strip(), status["Seccomp"].strip(), os.getuid() != 0, os.getgid() != 0)
        gained = []
        for gain in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0]), lambda: os.setresuid(0, 0, 0),
                     lambda: os.chown("/tmp", 0, 0), lambda: os.nice(-5), lambda: os.mknod("/tmp/d", 0o60600, os.makedev(8, 0)),
                     lambda: os.setpriority(os.PRIO_PROCESS, 0, -10)):
            try:
                gain()
                gained.append(gain.__code__.co_names)
            except OSError:
                pass
        print(gained)
        """,
    )
    assert said == "0 0 0 0 0\n1 2 True True\n[]\n"


async def test_links_lead_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = hidden(tmp_path)
    said = await printed(
        sandbox,
        f"""
        import os
        read = []
        for number, target in enumerate(({str(secret)!r}, "/etc/shadow", "/proc/1/root{secret}", "/proc/1/cwd/../{secret}",
                                         "../../../../../../..{secret}", "/proc/self/fd/../../../../{secret}")):
            os.symlink(target, f"/tmp/{{number}}")
            try:
                read.append(open(f"/tmp/{{number}}").read())
            except OSError:
                pass
        for target in ("/usr", "/script", "/proc/1/root"):
            try:
                os.link(target, "/tmp/hard")
                read.append(target)
            except OSError:
                pass
        os.symlink("/tmp/loop", "/tmp/loop")
        os.rename("/tmp/loop", "/tmp/stdout")
        for fd in range(3, 200):
            try:
                read.append(os.readlink(f"/proc/self/fd/{{fd}}"))
            except OSError:
                pass
        print(read)
        """,
    )
    assert said == "[]\n"


async def test_nothing_is_left_for_the_next_run(sandbox: Sandbox) -> None:
    await printed(sandbox, "import os; os.mkdir('/tmp/.left'); open('/tmp/.left/here', 'w').write('x')")
    assert await printed(sandbox, "import os; print(os.path.exists('/tmp/.left'))") == "False\n"
