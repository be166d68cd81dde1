"""A real Ray cluster on this machine: nodes with processes of their own, which a test can kill.

In: the application's configuration. Out: the address of Ray's proxy, and the Penstock servers of
each node. Everything that a node starts is a descendant of its `ray start --block`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from tests.faults.proxy import Address
from tests.support.ports import free_port
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "ray"
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
BIN = Path(sys.executable).parent
SMALL = ["--object-store-memory=80000000", "--disable-usage-stats"]
# By default Ray may give a worker any port above 10,000: also one of ours.
ANY_PORTS = ["--min-worker-port=0", "--max-worker-port=0"]


class Node:
    """A node of the cluster: Ray's processes, and what they started."""

    def __init__(self, log: Path, environment: Mapping[str, str], *flags: str) -> None:
        """Start a node, and return when it has joined. Its output goes to the file `log`."""
        command = [str(BIN / "ray"), "start", "--block", *SMALL, *ANY_PORTS, *flags]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdout=output, stderr=output, env=dict(environment)
            )
        joined = eventually(lambda: "Ray runtime started" in log.read_text(), START_TIMEOUT_S)
        assert joined, log.read_text()

    @property
    def is_up(self) -> bool:
        """True until the node is killed."""
        return self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """Return all processes of the node."""
        first = psutil.Process(self._process.pid)
        return [first, *first.children(recursive=True)]

    def named(self, title: str) -> list[psutil.Process]:
        """Return the processes whose title begins with this."""
        found = []
        for each in self.processes():
            try:
                if "".join(each.cmdline()[:1]).startswith(title):
                    found.append(each)
            except psutil.Error:  # it has just ended
                continue
        return found

    def servers(self) -> list[psutil.Process]:
        """Return the Penstock servers that run on this node and accept connections."""
        return [each for each in self.named("penstock: server") if _ports_of(each)]

    def kill(self) -> None:
        """Kill every process of the node with -9, as a machine's end does."""
        processes = self.processes()
        for each in processes:
            each.suspend()  # so that none sees another one's death
        for each in processes:
            each.kill()
        self._process.wait(STOP_TIMEOUT_S)
        psutil.wait_procs(processes, STOP_TIMEOUT_S)


def address_of(server: psutil.Process) -> Address:
    """Return the address at which a Penstock server accepts connections."""
    (port,) = _ports_of(server)
    return ("127.0.0.1", port)


def _ports_of(process: psutil.Process) -> set[int]:
    try:
        listening = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {each.laddr.port for each in listening if each.status == psutil.CONN_LISTEN}


class Cluster:
    """A head node with Ray's proxy, and any number of other nodes, which have the replicas.

    A replica on the head node would get all requests, because Ray's proxy prefers its own node.
    """

    def __init__(self) -> None:
        # Ray puts sockets there, whose paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self._gcs = free_port()
        self._proxy = free_port()
        self.nodes: list[Node] = []
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        ports = [f"--port={self._gcs}", f"--ray-client-server-port={free_port()}"]
        here = f"--temp-dir={self._folder / 'ray'}"
        self.head = self._start("--head", "--num-cpus=0", "--include-dashboard=false", here, *ports)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in reversed(self.nodes):
            if node.is_up:
                node.kill()
        shutil.rmtree(self._folder)

    @property
    def address(self) -> Address:
        """The address of Ray's proxy."""
        return ("127.0.0.1", self._proxy)

    def add_node(self) -> Node:
        """Start a node that has room for replicas."""
        return self._start("--num-cpus=2", f"--address=127.0.0.1:{self._gcs}")

    def _start(self, *flags: str) -> Node:
        log = self._folder / f"node-{len(self.nodes)}.log"
        self.nodes.append(Node(log, self._environment, *flags))
        return self.nodes[-1]

    def serve(self, flags: list[str], **options: Any) -> None:
        """Deploy `config.yaml` with these flags of Penstock and options of the deployment."""
        config = yaml.safe_load((SHIPPED / "config.yaml").read_text(encoding="utf-8"))
        # All nodes have one address here, so there is room for one proxy.
        config["proxy_location"] = "HeadOnly"
        config["http_options"] |= {"host": "127.0.0.1", "port": self._proxy}
        (application,) = config["applications"]
        application["args"]["flags"] = flags
        (deployment,) = application["deployments"]
        deployment |= {"ray_actor_options": {"num_cpus": 1}, "max_replicas_per_node": 1, **options}
        config["applications"] = [application | {"deployments": [deployment]}]
        file = self._folder / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [str(BIN / "serve"), "run", "--non-blocking", "--working-dir", str(SHIPPED)]
        to_here = ["--address", f"127.0.0.1:{self._gcs}", str(file)]
        ran = subprocess.run(
            [*command, *to_here],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT_S,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def servers(self) -> list[psutil.Process]:
        """Return the Penstock servers of all nodes."""
        return [each for node in self.nodes if node.is_up for each in node.servers()]

    def has_servers(self, num: int) -> bool:
        """Wait until there are this many Penstock servers."""
        return eventually(lambda: len(self.servers()) == num, START_TIMEOUT_S)
