"""What the shim does with its spec: `container` (hold one and log it), `join` (exec into a running one), `transient` (exec
in a pod that has no process: a stand-in), `host` (a command in the node's host namespace).

Contract, in JSON lines on fd `spec["control"]`: {"pid": n} when the program runs, or {"error": text, "code": 126|127|128}
when it could not be started; for an exec then {"exit": code}. With a TTY the line {"tty": true} carries the master side as
a file descriptor. A container's shim writes `exit_file` at its end: {"code", "finished"}, code 128+n for signal n.

A container's program is PID 1 of its namespace, with what that means in Linux (unhandled signals but SIGKILL are ignored).
An exec'd command in a `transient` namespace is not: PID 1 there is this shim, which reaps and passes signals on.
The program dies with its shim (PDEATHSIG), so there is never a container that nobody watches.
Order to read: main, container, exec, the child's side, waiting.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from podwire_nodeagent.kubelet.shim import jail, system
from podwire_nodeagent.kubelet.shim.cri import CriLog

Spec = dict[str, Any]
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441
TIOCSCTTY, TIOCSWINSZ = 0x540E, 0x5414
FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)


def main() -> None:
    spec = _read_spec(sys.argv[1])
    for name in ("control", "terminal"):
        if name in spec:
            os.set_inheritable(spec[name], False)
    if spec["mode"] == "container":
        _container(spec)
    else:
        _exec(spec)


def _read_spec(path: str) -> Spec:
    """A file, or "fd:N": an open one that the program must not inherit."""
    with open(int(path[3:]) if path.startswith("fd:") else path, "rb") as file:
        spec: Spec = json.load(file)
        return spec


# --- a container --------------------------------


def _container(spec: Spec) -> None:
    log = CriLog(spec["log"])
    control = spec["control"]
    outputs, stdio = _terminal_pair(spec) if spec.get("tty") else _pipes(spec)
    system.unshare(system.CLONE_NEWPID)
    pid, report = _start(spec, lambda: _enter_container(spec), stdio)
    if "error" in report:
        _say(control, report)
        log.close(time.time())
        return
    _write_atomically(spec["run_file"], {"shim": os.getpid(), "ticks": _ticks(), "pid": pid})
    _say(control, {"pid": pid, **report})
    os.close(control)
    if spec.get("tty"):
        outputs = {_receive_fd(next(iter(outputs))): "stdout"}
    code = _pump(pid, outputs, log)
    _write_atomically(spec["exit_file"], {"code": code, "finished": time.time()})


def _pipes(spec: Spec) -> tuple[dict[int, str], dict[str, int]]:
    """(what we read, by stream; what the child takes as 0, 1, 2)."""
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    if spec.get("stdin"):
        stdin, _kept_open = os.pipe()  # nobody writes, and nobody closes: a shell waits for ever, as in Kubernetes
    else:
        stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    return {out_read: "stdout", err_read: "stderr"}, {"stdin": stdin, "stdout": out_write, "stderr": err_write}


def _terminal_pair(spec: Spec) -> tuple[dict[int, str], dict[str, int]]:
    """A terminal needs no pipes: the child sends its master side through a socket pair."""
    import socket

    ours, theirs = socket.socketpair()
    spec["terminal"] = theirs.detach()
    return {ours.detach(): "stdout"}, {"terminal": spec["terminal"]}


def _enter_container(spec: Spec) -> list[str]:
    _join_cgroups(spec)
    _join_netns(spec)
    return jail.build(spec["root"], spec["mounts"], spec["hostname"])


def _pump(pid: int, outputs: dict[int, str], log: CriLog) -> int:
    """Copies output to the log until the program is gone; its exit code."""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    for fd in outputs:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    while True:
        ready = [fd for fd, _ in poll.poll()]
        for fd in ready:
            if fd != pidfd and not _copy(fd, outputs[fd], log):
                poll.unregister(fd)
        if pidfd in ready:
            code = _code(os.waitpid(pid, 0)[1])
            for fd, stream in outputs.items():
                while _copy(fd, stream, log):
                    pass
            log.close(time.time())
            return code


def _copy(fd: int, stream: str, log: CriLog) -> bool:
    """False at the end of the stream, or when there is nothing to read now."""
    try:
        data = os.read(fd, 1 << 16)
    except OSError:  # EAGAIN; EIO: the last holder of a terminal closed it
        return False
    log.feed(stream, data, time.time())
    return bool(data)


# --- an exec --------------------------------


def _exec(spec: Spec) -> None:
    control = spec["control"]
    enter: Callable[[], list[str]]
    match spec["mode"]:
        case "join":
            _join_container(spec)
            enter = list
        case "transient":
            system.unshare(system.CLONE_NEWPID)
            enter = lambda: _enter_container(spec)  # noqa: E731
        case _:
            _join_netns(spec)
            system.unshare(system.CLONE_NEWUTS)
            system.sethostname(spec["hostname"])
            enter = list
    pid, report = _start(spec, enter, {"stdin": 0, "stdout": 1, "stderr": 2}, init=spec["mode"] == "transient")
    if "error" in report:
        _say(control, report)
        return
    _say(control, {"pid": pid})
    for fd in (0, 1, 2):
        os.close(fd)  # so that the agent sees the end of the output when the command's is closed
    code = _code(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # the agent is gone, and nobody wants to know
        _say(control, {"exit": code})


def _join_container(spec: Spec) -> None:
    _join_cgroups(spec)
    kinds = ("pid", "net", "ipc", "uts", "mnt")  # mnt last: /proc is another one afterwards
    fds = [os.open(f"/proc/{spec['join']}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in kinds]
    for fd in fds:
        system.setns(fd)
        os.close(fd)


# --- the child's side --------------------------------


def _start(spec: Spec, enter: Callable[[], list[str]], stdio: dict[str, int], init: bool = False) -> tuple[int, dict[str, Any]]:
    """Forks; the child enters and executes. (pid, what it reports: "plain" directories, or "error" and "code")."""
    status_read, status_write = os.pipe()  # close-on-exec: end of file means that the program runs
    pid = os.fork()
    if pid == 0:
        os.close(status_read)
        _child(spec, enter, stdio, init, status_write)
    os.close(status_write)
    if spec["mode"] == "container":
        for fd in stdio.values():
            os.close(fd)
    said = b""
    while chunk := os.read(status_read, 4096):
        said += chunk
    os.close(status_read)
    report: dict[str, Any] = {}
    for line in said.splitlines():
        report |= json.loads(line)
    if "error" in report:
        os.waitpid(pid, 0)
    return pid, report


def _child(spec: Spec, enter: Callable[[], list[str]], stdio: dict[str, int], init: bool, status: int) -> NoReturn:
    try:
        plain = enter()
        if plain:
            _say(status, {"plain": plain})
        if init:
            _become_init(status)
        if spec.get("tty"):
            _take_terminal(spec)
        else:
            _take_pipes(spec, stdio)
        _change_directory(spec)
        _drop_privileges(spec)
        system.die_with_parent(signal.SIGKILL)
    except OSError as error:
        _say(status, {"error": f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), "code": 128})
        os._exit(128)
    _execute(spec, status)


def _execute(spec: Spec, status: int) -> NoReturn:
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and exec would pass that on
    program = spec["argv"][0]
    path = _find(program, spec["env"].get("PATH", ""))
    code, text = 127, "executable file not found in $PATH"
    try:
        if path:
            os.execve(path, spec["argv"], spec["env"])
    except (FileNotFoundError, NotADirectoryError) as error:
        code, text = 127, f"stat {program}: {error.strerror}".lower()
    except OSError as error:
        code, text = 126, str(error.strerror).lower()
    _say(status, {"error": f'exec: "{program}": {text}', "code": code})
    os._exit(code)


def _find(program: str, path: str) -> str:
    """The program's file: the first in PATH that can be executed, else the first there is, else ""."""
    if "/" in program:
        return program
    there = [file for folder in path.split(":") if os.path.isfile(file := f"{folder or '.'}/{program}")]
    return next((file for file in there if os.access(file, os.X_OK)), there[0] if there else "")


def _become_init(status: int) -> None:
    """This process stays PID 1 of its namespace and forks the command; the child returns, the parent never does."""
    system.die_with_parent(signal.SIGKILL)
    child = os.fork()
    if child == 0:
        return
    os.close(status)
    for number in FORWARDED:
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    for fd in (0, 1, 2):
        os.close(fd)
    while True:
        pid, status_word = os.wait()
        if pid == child:
            os._exit(_code(status_word))


def _take_pipes(spec: Spec, stdio: dict[str, int]) -> None:
    if spec["mode"] != "join":
        os.setsid()
    for target, name in enumerate(("stdin", "stdout", "stderr")):
        os.dup2(stdio[name], target)


def _take_terminal(spec: Spec) -> None:
    """A terminal of the container's own devpts, so that `tty` and screen programs find its name; the master goes to the agent."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, TIOCSPTLCK, struct.pack("i", 0))
    slave = fcntl.ioctl(master, TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
    fcntl.ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", spec.get("rows", 24), spec.get("columns", 80), 0, 0))
    _send_fd(spec["terminal"], master)
    os.close(master)
    os.setsid()
    fcntl.ioctl(slave, TIOCSCTTY, 0)
    for target in (0, 1, 2):
        os.dup2(slave, target)
    if slave > 2:
        os.close(slave)


def _send_fd(through: int, fd: int) -> None:
    import socket  # only terminals need it, and it costs milliseconds

    with socket.socket(fileno=os.dup(through)) as channel:
        socket.send_fds(channel, [b"\n"], [fd])


def _receive_fd(through: int) -> int:
    import socket

    with socket.socket(fileno=through) as channel:
        return socket.recv_fds(channel, 1, 1)[1][0]


def _change_directory(spec: Spec) -> None:
    directory = spec.get("cwd") or "/"
    if spec["mode"] in ("container", "transient"):
        os.makedirs(directory, exist_ok=True)  # as container runtimes do
    os.chdir(directory)


def _drop_privileges(spec: Spec) -> None:
    """User, groups and capabilities as asked; in a user namespace with one user, that user is all there is."""
    if (kept := spec.get("capabilities")) is not None:
        system.drop_capabilities(set(kept))
    for change, value in ((os.setgroups, spec.get("groups")), (os.setgid, spec.get("gid")), (os.setuid, spec.get("uid"))):
        if value is None:
            continue
        try:
            change(value)
        except OSError:
            if not spec.get("in_userns"):
                raise


def _join_netns(spec: Spec) -> None:
    fd = os.open(spec["netns"], os.O_RDONLY | os.O_CLOEXEC)
    system.setns(fd, system.CLONE_NEWNET)
    os.close(fd)


def _join_cgroups(spec: Spec) -> None:
    for path in spec.get("cgroups", ()):
        with open(f"{path}/cgroup.procs", "w") as file:
            file.write("0")  # the writer itself, in whatever PID namespace


# --- reports --------------------------------


def _code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _ticks() -> int:
    """Our start time, so that nobody takes a later process with the same pid for us."""
    with open("/proc/self/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def _say(fd: int, message: dict[str, Any]) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")


def _write_atomically(path: str, value: dict[str, Any]) -> None:
    with open(f"{path}.tmp", "w") as file:
        json.dump(value, file)
    os.replace(f"{path}.tmp", path)
