"""A real SLURM of two nodes on this machine, for tests: no systemd, no cgroups, no GPU, nothing left behind.

Every daemon runs in the foreground as a child of this process, in a folder of its own, on free ports, and in
namespaces of its own for the host's name and for /etc/hosts, so that the nodes have names of their own.
"""

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = {
    "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge",
    "slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server",
    "mariadb": "mariadb-client", "unshare": "util-linux",
}  # fmt: skip
"""What the cluster is made of, and the Debian packages that have it."""

NODES = ("node1", "node2")
GPUS_PER_NODE = 4
PATIENCE = 300
"""Seconds for whatever is to come on a busy machine; on an idle one some 10 to 40 are enough."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

SLURM_CONF = """
ClusterName=test
SlurmctldHost=controller(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job may start once its old credential has run out: 120 s unless told otherwise.
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
# No cgroup controllers: follow processes through /proc, bind nothing.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
# TorchX's jobs are heterogeneous: only the backfill scheduler starts those.
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0,requeue_delay=1
SlurmdParameters=config_overrides
GresTypes=gpu
KillWait=10
MinJobAge=3600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={database_port}
AccountingStoragePass={root}/munge.socket
NodeName=node1 NodeAddr=127.0.0.1 Port={node1_port} CPUs=64 RealMemory=500000 Gres=gpu:{gpus}
NodeName=node2 NodeAddr=127.0.0.1 Port={node2_port} CPUs=64 RealMemory=500000 Gres=gpu:{gpus}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE DefMemPerCPU=100
PartitionName=low Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=high PriorityTier=10 PreemptMode=OFF
"""

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost=controller
DbdAddr=127.0.0.1
DbdPort={database_port}
SlurmUser=root
LogFile={root}/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mariadb_port}
StorageUser=slurm
StoragePass=slurm
"""


def missing_parts():
    """What this machine lacks to run the cluster, in words; empty if nothing."""
    missing = sorted({package for name, package in PROGRAMS.items() if shutil.which(name, path=PATH) is None})
    if missing:
        return f"Debian packages {', '.join(missing)}"
    probe = subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, check=False)
    return "" if probe.returncode == 0 and os.geteuid() == 0 else "root, who may make namespaces"


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass
class Cluster:
    """The daemons, and what a user of the cluster types."""

    root: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    @property
    def environment(self):
        """A user's environment: this process's, on this cluster, without another job's variables."""
        plain = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
        return {**plain, "SLURM_CONF": str(self.root / "slurm.conf")}

    def start(self):
        """Start everything and wait until the nodes take jobs.

        Raises:
            RuntimeError: it does not come up; the logs are in the message.
        """
        try:
            self._configure()
            self._start_database()
            files = {"key-file": "munge.key", "pid-file": "munged.pid", "log-file": "munged.log",
                     "seed-file": "munged.seed", "socket": "munge.socket"}  # fmt: skip
            options = [f"--{option}={self.root / name}" for option, name in files.items()]
            # --force: it minds that others cannot look into a test's folder.
            self._daemon("munged", "controller", ["munged", "--foreground", "--force", *options])
            self._wait("munge", lambda: (self.root / "munge.socket").exists())
            self._daemon("slurmdbd", "controller", ["slurmdbd", "-D"])
            self._wait("accounting", lambda: self.run("sacctmgr", "-n", "list", "user", check=False)[0] == 0)
            # Jobs are accounted for from the start only if the cluster and its user are known by then.
            self.run("sacctmgr", "-i", "add", "cluster", "test", check=False)
            self.run("sacctmgr", "-i", "add", "account", "default", "cluster=test")
            self.run("sacctmgr", "-i", "add", "user", "root", "account=default")
            self._daemon("slurmctld", "controller", ["slurmctld", "-D"])
            for node in NODES:
                self._daemon(f"slurmd-{node}", node, ["slurmd", "-D", "-N", node])
            self._wait("nodes", lambda: self.run("sinfo", "-hp", "low", "-t", "idle", "-o", "%D")[1] == "2")
        except BaseException:
            self.stop()
            raise

    def stop(self):
        """Stop every daemon and every process of every job."""
        if "slurmctld" in self.daemons and self.daemons["slurmctld"].poll() is None:
            self.run("scancel", "--user=root", "--signal=KILL", check=False)
        for process in reversed(self.daemons.values()):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for process_id, _ in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)

    def run(self, *command, check=True, **options):
        """Run a command of SLURM; return its exit code and what it says."""
        done = subprocess.run(
            command, env=self.environment, text=True, check=False, timeout=PATIENCE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}")
        return done.returncode, done.stdout.strip()

    def state(self, job):
        """The job's state, such as PENDING; for a job of several parts the first one's."""
        lines = self.run("squeue", "--noheader", "--states=all", "--jobs", str(job), "--format=%T")[1]
        return lines.split()[0] if lines else ""

    def restarts(self, job):
        text = self.run("scontrol", "show", "job", str(job))[1]
        return int(text.split("Restarts=")[1].split()[0])

    def wait_for(self, job, *states):
        """Wait until the job is in one of the states; return it."""
        found = ""

        def arrived():
            nonlocal found
            found = self.state(job)
            return found in states

        self._wait(f"job {job} to be one of {states}", arrived, lambda: f"it is {found}")
        return found

    def ranks(self, job):
        """Process ids of the job's ranks, which are up once they write metrics."""
        return [*self._find(job, b"lgd.train"), *self._find(job, b"submitit.core._submit")]

    def _find(self, job, module):
        """Python processes of a job that run a module."""
        for process_id, variables in self._processes():
            if f"SLURM_JOB_ID={job}".encode() in variables:
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{process_id}/cmdline").read_bytes().split(b"\0")
                    if module in words and b"python" in words[0]:
                        yield process_id

    def signal_frozen(self, job, send):
        """Freeze the ranks, have them sent a signal by `send`, thaw them once it has arrived.

        So that a test need not guess how long a rank has yet to run.
        """
        ranks = self.ranks(job)
        assert ranks, f"job {job} has no rank"
        for process_id in ranks:
            os.kill(process_id, signal.SIGSTOP)
        try:
            send()
            self._wait("the signal", lambda: any(map(was_signalled, ranks)))
        finally:
            for process_id in ranks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGCONT)

    def _configure(self):
        ports = free_ports(5)
        names = ("controller_port", "node1_port", "node2_port", "database_port", "mariadb_port")
        self._values = {"root": self.root, "gpus": GPUS_PER_NODE, **dict(zip(names, ports, strict=True))}
        for folder in ("state", "mariadb", *(f"spool-{node}" for node in NODES)):
            (self.root / folder).mkdir()
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (self.root / "hosts").write_text(f"127.0.0.1 localhost controller {' '.join(NODES)}\n")
        (self.root / "slurm.conf").write_text(SLURM_CONF.format(**self._values))
        accounting = self.root / "slurmdbd.conf"
        accounting.write_text(SLURMDBD_CONF.format(**self._values))
        accounting.chmod(0o600)
        # slurmd counts GPUs by their device files; any will do.
        for number in range(GPUS_PER_NODE):
            os.mknod(self.root / f"gpu{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        gpus = f"{self.root}/gpu[0-{GPUS_PER_NODE - 1}]"
        (self.root / "gres.conf").write_text(f"AutoDetect=off\nNodeName=node[1-2] Name=gpu File={gpus}\n")

    def _start_database(self):
        data, port = self.root / "mariadb", str(self._values["mariadb_port"])
        with (self.root / "mariadb-install.log").open("w") as log:
            subprocess.run(
                ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db",
                 "--auth-root-authentication-method=normal"],
                env={**self.environment, "PATH": PATH}, stdout=log, stderr=log, check=True, timeout=PATIENCE,
            )  # fmt: skip
        server = self.root / "mariadb.socket"
        self._daemon(
            "mariadbd", "controller",
            ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={server}",
             "--bind-address=127.0.0.1", f"--port={port}", "--innodb-buffer-pool-size=64M",
             "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0"],
        )  # fmt: skip
        client = ["mariadb", "--no-defaults", f"--socket={server}", "--execute"]
        self._wait("mariadb", lambda: self.run(*client, "select 1", check=False)[0] == 0)
        self.run(*client, "create user slurm@'127.0.0.1' identified by 'slurm';"
                          "create user slurm@localhost identified by 'slurm';"
                          "grant all on slurm_acct_db.* to slurm@'127.0.0.1', slurm@localhost;")  # fmt: skip

    def _daemon(self, name, host, command):
        """Start a daemon on a "host" of its own name and /etc/hosts; it goes down with this process."""
        script = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'
        with (self.root / f"{name}.out").open("w") as log:
            self.daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "--uts", "sh", "-ec", script, "sh",
                 host, str(self.root / "hosts"), *command],
                env={**self.environment, "PATH": f"{PATH}:{os.environ['PATH']}"}, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _wait(self, what, condition, details=lambda: ""):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            ended = [name for name, process in self.daemons.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                reason = f"{', '.join(ended)} ended" if ended else f"not within {PATIENCE} s"
                raise RuntimeError(f"waited for {what}: {reason} {details()}\n{self._logs()}")
            time.sleep(0.1)

    def _logs(self):
        logs = sorted([*self.root.glob("*.log"), *self.root.glob("*.out")])
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)

    def _processes(self):
        """Process id and environment of whatever was started by this cluster's jobs: it knows their SLURM."""
        mark = f"SLURM_CONF={self.root}/slurm.conf".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (folder / "environ").read_bytes().split(b"\0")
                if mark in variables and int(folder.name) != os.getpid():
                    yield int(folder.name), variables


def was_signalled(process_id):
    """Whether a frozen process has SIGUSR2 or SIGTERM waiting for it, or is frozen no more."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except OSError:
        return True
    fields = dict(line.split(":", 1) for line in status.splitlines())
    waiting = int(fields["ShdPnd"], 16) | int(fields["SigPnd"], 16)
    asked = sum(1 << (number - 1) for number in (signal.SIGUSR2, signal.SIGTERM))
    return bool(waiting & asked) or "T" not in fields["State"].split()[0]
