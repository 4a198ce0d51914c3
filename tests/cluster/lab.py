"""Several machines on this one: hosts out of namespaces, and a cluster that `ray up` makes of them.

A host has its own network, processes, disk, /tmp and SSH server. It lives as long as its first process: with that the
kernel takes its other processes, its mounts and its network card. The network is inside the operator's namespace, so
nothing of it touches this machine's own. All of it ends with the process that made it, whatever becomes of that.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / ".pytest_cache" / "lab"
"""The packages of the lock, kept from one time to the next; the setup commands of a cluster find them in VENV."""
VENV, PYTHON = "/root/dgnet/.venv", "3.11"
"""As in platform/cluster/environment.sh."""
OPERATOR, HEAD, WORKERS = "operator", "head", ("w1", "w2", "w3")
ADDRESSES = {OPERATOR: "10.0.0.1", HEAD: "10.0.0.10"} | {name: f"10.0.0.1{name[1:]}" for name in WORKERS}
TOOLS = ("curl", "ip", "nsenter", "pivot_root", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare", "uv")


def obstacle() -> str:
    """Why there can be no lab on this machine; nothing if there can."""
    if sys.platform != "linux" or os.geteuid():
        return "only root on Linux can make hosts"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"hosts need {', '.join(lacking)}"
    overlay = "mount -t tmpfs lab /mnt && cd /mnt && mkdir u w r"
    overlay += " && mount -t overlay -o lowerdir=/,upperdir=u,workdir=w lab r"
    tried = subprocess.run(
        [*_apart("--mount", "--net", "--pid"), "sh", "-c", overlay], check=False, capture_output=True
    )
    return f"this machine allows no namespaces or overlays ({tried.stderr.decode()})" if tried.returncode else ""


class Lab:
    """An operator's machine and hosts for a cluster, in one network."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.shared = folder / "shared"
        """The folder that all hosts see as /shared."""
        self.shared.mkdir()
        (folder / "disks").mkdir()
        (folder / "hosts").write_text("".join(f"{address} {name}\n" for name, address in ADDRESSES.items()))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "key"], check=True)
        disks = f"mount -t tmpfs lab {folder / 'disks'} && echo && exec sleep infinity"
        self._disks = subprocess.Popen([*_apart("--mount"), "sh", "-c", disks], stdout=subprocess.PIPE)
        assert self._disks.stdout is not None
        self._disks.stdout.readline()
        self._hosts: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        """By name the process that a host ends with, and the id of its first process."""

    @property
    def names(self) -> list[str]:
        """Hosts that are on, without the operator's."""
        return [name for name in self._hosts if name != OPERATOR]

    def on(self, name: str) -> None:
        """Switch a host on."""
        python, uv = (ENVIRONMENT / "bin" / "python").resolve(), os.environ.get("UV") or shutil.which("uv")
        boot = [
            "bash",
            ROOT / "tests" / "cluster" / "lab_host.sh",
            name,
            self._folder,
            ENVIRONMENT,
            VENV,
            python,
            uv,
            ROOT,
        ]
        apart = _apart("--net", "--mount", "--uts", "--ipc", "--pid")
        with (self._folder / f"{name}.log").open("ab") as log:
            enter = ["nsenter", "--mount", "--target", str(_first_process(self._disks))]
            process = subprocess.Popen(
                [*apart[:3], *enter, *apart[3:], *boot],
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._hosts[name] = process, (first := _first_process(process))
        address = f"{ADDRESSES[name]}/24"
        if name == OPERATOR:
            self._network("link add bridge type bridge", "link set bridge up", f"addr add {address} dev bridge")
            return
        card = "02:00:00:00:00:" + ADDRESSES[name][-2:]  # the same each time, as the others remember it
        self._network(
            f"link add {name} type veth peer name eth0 address {card} netns {first}",
            f"link set {name} master bridge up",
        )
        plug = f"ip addr add {address} dev eth0 && ip link set eth0 up"
        subprocess.run(["nsenter", "--net", "--target", first, "sh", "-c", plug], check=True)
        self.run(OPERATOR, f"until timeout 1 bash -c 'read < /dev/tcp/{name}/22' 2> /dev/null; do sleep 0.1; done")

    def off(self, *names: str) -> None:
        """Switch hosts off: nobody has a chance to say goodbye."""
        hosts = [self._hosts.pop(name) for name in names]
        for process, _ in hosts:
            process.kill()
        for process, first in hosts:
            process.wait()
            wait_for(lambda first=first: not Path("/proc", first).exists(), 20, "a host's end")

    def cut(self, name: str) -> None:
        """Pull a host's network cable: nothing arrives, nobody is told."""
        self._network(f"link set {name} down")

    def mend(self, name: str) -> None:
        """Put it in again."""
        self._network(f"link set {name} up")

    def start(self, name: str, command: str) -> subprocess.Popen[str]:
        """Start a command of a login shell on a host."""
        enter = ["nsenter", "--mount", "--uts", "--ipc", "--net", "--pid", "--target", self._hosts[name][1]]
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

    def close(self) -> None:
        """Switch all hosts off; nothing is left of them."""
        self.off(*self._hosts)
        self._disks.kill()
        self._disks.communicate()

    def _network(self, *commands: str) -> None:
        """Change the network, which is the operator's."""
        for command in commands:
            enter = ["nsenter", "--net", "--target", self._hosts[OPERATOR][1]]
            subprocess.run([*enter, "ip", *command.split()], check=True)


@contextmanager
def lab() -> Iterator[Lab]:
    """Hosts that are switched on: an operator's machine, a cluster's head and its workers.

    Python, uv and the packages of the lock are there, as on machines that somebody has set up.
    """
    if not ENVIRONMENT.exists():
        subprocess.run(["uv", "venv", "--quiet", "--relocatable", "--python", PYTHON, ENVIRONMENT], check=True)
    sync = "uv sync --quiet --locked --no-dev --no-install-project --all-extras --compile-bytecode"
    subprocess.run(sync.split(), check=True, cwd=ROOT, env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(ENVIRONMENT)})
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        hosts = Lab(Path(folder))
        try:
            for name in ADDRESSES:
                hosts.on(name)
            yield hosts
        finally:
            hosts.close()


def _apart(*namespaces: str) -> list[str]:
    """Starts a process in namespaces of its own; it ends with the thread that started it."""
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, "--fork", "--kill-child"]


def _first_process(unshare: subprocess.Popen[bytes]) -> str:
    """The id of the process that ends with `unshare`, once it is there."""
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    wait_for(lambda: children.read_text(encoding="utf-8").strip(), 10, "a host's first process")
    return children.read_text(encoding="utf-8").strip()


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until a condition holds; raises AssertionError if it does not within so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} seconds"
        time.sleep(0.1)
