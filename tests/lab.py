"""Hosts of a cluster on this machine: namespaces, each with its own network, processes, root, /tmp and SSH server.

A host lives as long as its first process, and the kernel takes the rest of it along: processes, mounts and network
devices. They all end with the process that made them, whatever becomes of it. The bridge that joins them is inside the
operator's namespace, so nothing of it is in this machine's own network.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / ".pytest_cache" / "lab"
"""The packages of the lock, kept from one time to the next."""
VENV = "/root/dgnet/.venv"
"""Where hosts find them already: what a cluster's setup installs there then takes a moment, and no network."""
OPERATOR, HEAD = "operator", "head"
WORKERS = ("w1", "w2", "w3")
ADDRESSES = {OPERATOR: "10.77.0.1", HEAD: "10.77.0.10"} | {name: f"10.77.0.1{name[1:]}" for name in WORKERS}
TOOLS = ("ip", "nsenter", "pivot_root", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare", "uv")
NEW = ["setpriv", "--pdeathsig", "KILL"]
NEW += ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
"""Starts a process in namespaces of its own; it ends with the thread that started it."""


def obstacle() -> str:
    """Why there can be no lab on this machine; nothing if there can."""
    if sys.platform != "linux" or os.geteuid():
        return "hosts are made by root on Linux"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"hosts need {', '.join(lacking)}"
    overlay = "mount -t tmpfs lab /mnt && cd /mnt && mkdir u w r"
    overlay += " && mount -t overlay -o lowerdir=/,upperdir=u,workdir=w lab r"
    tried = subprocess.run([*NEW, "sh", "-c", overlay], check=False, capture_output=True, text=True)
    return f"this machine allows no namespaces or overlays ({tried.stderr.strip()})" if tried.returncode else ""


class Host:
    """One host that is switched on."""

    def __init__(self, name: str, folder: Path):
        (folder / name).mkdir(exist_ok=True)
        log = (folder / f"{name}.log").open("ab")
        role = "operator" if name == OPERATOR else "host"
        python, uv = os.path.realpath(sys.executable), os.environ.get("UV") or shutil.which("uv")
        boot = ["bash", ROOT / "tests" / "lab_host.sh", name, role, folder, ENVIRONMENT, VENV, uv, python, ROOT]
        environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        self._process = subprocess.Popen(
            [*NEW, *boot], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        wait_for(lambda: children.read_text().strip(), 10, f"first process of {name}")
        self.pid = int(children.read_text())
        """Its first process."""

    def kill(self) -> None:
        """Switch it off: no process of it has a chance to say goodbye."""
        self._process.kill()
        self._process.wait()

    def gone(self) -> bool:
        """Whether the kernel has cleared up."""
        return not Path(f"/proc/{self.pid}").exists()


class Lab:
    """An operator's machine and hosts for a cluster, in one network."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._hosts: dict[str, Host] = {}
        self.shared = folder / "shared"
        """The folder that all hosts see as /shared."""
        self.shared.mkdir()
        (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in ADDRESSES.items()))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)

    @property
    def names(self) -> list[str]:
        """Hosts that are on."""
        return list(self._hosts)

    def on(self, name: str) -> None:
        """Switch a host on; it starts blank."""
        host = self._hosts[name] = Host(name, self._folder)
        address = f"{ADDRESSES[name]}/24"
        if name == OPERATOR:
            self._network("link add bridge type bridge", "link set bridge up", f"addr add {address} dev bridge")
            return
        card = "02:00:00:00:00:" + ADDRESSES[name][-2:]  # the same each time, as others remember it
        self._network(
            f"link add {name} type veth peer name eth0 address {card} netns {host.pid}",
            f"link set {name} master bridge up",
        )
        inside = f"ip addr add {address} dev eth0 && ip link set eth0 up"
        subprocess.run(["nsenter", "--net", "--target", str(host.pid), "sh", "-c", inside], check=True)
        knock = self.start(OPERATOR, f"until timeout 1 bash -c 'read < /dev/tcp/{name}/22'; do sleep 0.1; done")
        knock.communicate(timeout=20)

    def off(self, *names: str) -> None:
        """Switch hosts off."""
        hosts = [self._hosts.pop(name) for name in names]
        for host in hosts:
            host.kill()
        wait_for(lambda: all(host.gone() for host in hosts), 20, "the kernel's clearing up")

    def cut(self, name: str) -> None:
        """Pull a host's network cable: nothing arrives, nobody is told."""
        self._network(f"link set {name} down")

    def mend(self, name: str) -> None:
        """Put it in again."""
        self._network(f"link set {name} up")

    def start(self, name: str, command: str) -> subprocess.Popen[str]:
        """Start a command of a login shell on a host."""
        enter = ["nsenter", "--mount", "--uts", "--ipc", "--net", "--pid", "--target", str(self._hosts[name].pid)]
        login = ["env", "-i", "HOME=/root", "USER=root", "TERM=dumb", "LANG=C.UTF-8", "bash", "--login", "-c"]
        return subprocess.Popen(
            [*enter, *login, f"cd; {command}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, name: str, command: str, *, status: int = 0, timeout: float = 120) -> str:
        """Run a command of a login shell on a host, and return what it printed.

        Raises:
            AssertionError: it ended with another status.
        """
        process = self.start(name, command)
        output, _ = process.communicate(timeout=timeout)
        assert process.returncode == status, f"on {name}: {command}\nstatus {process.returncode}\n{output}"
        return output

    def _network(self, *commands: str) -> None:
        """Change the network, which is the operator's."""
        for command in commands:
            enter = ["nsenter", "--net", "--target", str(self._hosts[OPERATOR].pid)]
            subprocess.run([*enter, "ip", *command.split()], check=True)


@contextmanager
def lab() -> Iterator[Lab]:
    """Hosts that are switched on: an operator's machine, a cluster's head and its workers; nothing of them is left.

    Python, uv and the packages of the lock are there, as on machines that somebody has set up.
    """
    sync = "uv sync --quiet --locked --no-dev --no-install-project --compile-bytecode"
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(ENVIRONMENT)}
    if not ENVIRONMENT.exists():
        subprocess.run(["uv", "venv", "--quiet", "--relocatable", "--python", sys.executable, ENVIRONMENT], check=True)
    subprocess.run(sync.split(), check=True, cwd=ROOT, env=environment)
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        hosts = Lab(Path(folder))
        try:
            for name in ADDRESSES:
                hosts.on(name)
            yield hosts
        finally:
            hosts.off(*hosts.names)


def wait_for(condition, seconds: float, what: str) -> None:
    """Wait until a condition holds; raises AssertionError if it does not within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} seconds"
        time.sleep(0.1)
