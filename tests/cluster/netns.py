"""Hosts in network namespaces on one machine: own names, addresses, links to cut and slow down. Linux, root.

with Network(tmp_path, num_hosts=2) as network:
    a, b = network.hosts
    process = a.start(["torchrun", ...])
    a.cut(); a.mend(); a.shape("8mbit"); a.kill()

Everything made (namespaces, bridge, processes) goes when the block ends, whatever happened in it.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.training import REPOSITORY

_numbers = itertools.count()

TOOLS = ("ip", "tc", "unshare", "hostname", "mount")


def missing():
    """Why this machine cannot make hosts; "" where it can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"no {', '.join(absent)} here (Debian packages iproute2, util-linux, hostname, mount)"
    probe = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, text=True)
    return f"no network namespaces: {probe.stderr.strip()}" if probe.returncode else ""


def run(*words):
    """Run a command to its end; returns what it printed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


def _limit(interface, rate):
    """Words for tc; a burst of 4 KiB lets no message through at once."""
    return ["qdisc", "replace", "dev", interface, "root", "tbf", "rate", rate, "burst", "32kbit",
            "latency", "400ms"]  # fmt: skip


@dataclass
class Host:
    """A namespace that stands for a machine.

    Attributes:
        name: its host name, which all hosts resolve.
        namespace: as `ip netns` calls it.
        address: of its eth0, on the network that all share.
        link: the bridge's end of its cable.
        folder: for logs and mounts.
        processes: that it started.
    """

    name: str
    namespace: str
    address: str
    link: str
    folder: Path
    processes: list = field(default_factory=list)

    def start(self, command, *, hide=(), binds=None, environment=None, log=None, own_processes=False):
        """Start a command there.

        Args:
            command: words.
            hide: folders that are empty on this host.
            binds: {source: target}: `source` lies at `target` on this host.
            environment: more variables.
            log: name of a file in `folder` for the output, of which the process's `log` is the path; without
                one it is read by `communicate`.
            own_processes: processes are counted from 1 there, as on another machine or in a container.
        """
        steps = [f"hostname {self.name}"]
        steps += [f"mount -t tmpfs none '{place}'" for place in hide]
        steps += [f"mount --bind '{source}' '{target}'" for source, target in (binds or {}).items()]
        inside = " && ".join([*steps, 'exec "$0" "$@"'])
        path = self.folder / log if log else None
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount",
             *(("--pid", "--fork", "--mount-proc") if own_processes else ()), "sh", "-c", inside,
             *map(str, command)],
            env={
                **os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY),
                "GLOO_SOCKET_IFNAME": "eth0", **(environment or {}),
            },
            stdout=path.open("ab") if path else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )  # fmt: skip
        process.log = path
        self.processes.append(process)
        return process

    def python(self, *words, **options):
        """Start this Python there."""
        return self.start([sys.executable, *words], **options)

    def pids(self):
        """Every process of the host."""
        return [int(word) for word in run("ip", "netns", "pids", self.namespace).split()]

    def kill(self, which=signal.SIGKILL):
        """End all of the host's processes at once, as a power cut does."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, which)

    def cut(self):
        """Pull the cable: packets are lost, nobody is told."""
        run("ip", "link", "set", self.link, "down")

    def mend(self):
        """Put the cable back."""
        run("ip", "link", "set", self.link, "up")

    def shape(self, rate):
        """Limit what the host sends, such as "8mbit"."""
        run("tc", "-n", self.namespace, *_limit("eth0", rate))

    def shape_incoming(self, rate):
        """Limit what the host receives."""
        run("tc", *_limit(self.link, rate))

    def add_interface(self, name, address):
        """Give the host a further interface, such as "eth1" with "10.88.0.2/24", on a cable of its own."""
        peer = f"p{os.getpid() % 10_000}n{next(_numbers)}"
        run("ip", "-n", self.namespace, "link", "add", name, "type", "veth", "peer", "name", peer)
        for end in (name, peer):
            run("ip", "-n", self.namespace, "link", "set", end, "up")
        run("ip", "-n", self.namespace, "addr", "add", address, "dev", name)


class Network:
    """Hosts on a bridge; a context that clears everything away."""

    def __init__(self, folder, num_hosts=2):
        """Make nothing yet; `folder` is for logs."""
        number = next(_numbers)
        self.tag = f"{os.getpid() % 10_000}x{number}"
        self.bridge = f"lb{self.tag}"
        # A network of its own for every one alive at once, in 198.18.0.0/15, which is for such tests.
        self.prefix = f"198.{18 + os.getpid() % 2}.{(os.getpid() // 2 + 31 * number) % 256}"
        self.hosts = [
            Host(
                name=f"host{chr(ord('A') + i)}",
                namespace=f"lgd{self.tag}{chr(ord('A') + i)}",
                address=f"{self.prefix}.{11 + i}",
                link=f"lv{self.tag}{chr(ord('A') + i)}",
                folder=Path(folder),
            )
            for i in range(num_hosts)
        ]

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(self, *error):
        self._clear()

    def _make(self):
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "link", "set", self.bridge, "up")
        names = "".join(f"{host.address} {host.name}\n" for host in self.hosts)
        for host in self.hosts:
            run("ip", "netns", "add", host.namespace)
            run(
                "ip",
                "link",
                "add",
                host.link,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                host.namespace,
            )
            run("ip", "link", "set", host.link, "master", self.bridge, "up")
            run("ip", "-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            for interface in ("lo", "eth0"):
                run("ip", "-n", host.namespace, "link", "set", interface, "up")
            settings = Path("/etc/netns") / host.namespace
            settings.mkdir(parents=True)  # `ip netns exec` lays its files over those of /etc
            (settings / "hosts").write_text(f"127.0.0.1 localhost\n{names}")

    def _clear(self):
        for host in self.hosts:
            if host.namespace in run("ip", "netns", "list").split():
                host.kill()
                run("ip", "netns", "del", host.namespace)
            for process in host.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
            shutil.rmtree(Path("/etc/netns") / host.namespace, ignore_errors=True)
            subprocess.run(["ip", "link", "del", host.link], capture_output=True)
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()


def wait_until(condition, seconds, what):
    """Wait for `condition()`; fails after `seconds`, saying what did not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
        time.sleep(0.1)
