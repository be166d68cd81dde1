"""Measures what Ray's proxy costs beside direct access to the same Penstock server.

    make bench-ray
    make bench-ray ARGS="--streams 64 --tokens 400 --repeats 3"

It runs in the environment of `make ray-check`. A cluster has one replica, whose engine
makes a token for each stream every 20 ms. The clients read it directly and through Ray's proxy, in
turns. CPU is that of each process on the token's way, without engine and clients.
"""

import argparse
import asyncio
from statistics import median

import psutil

from benchmarks.paced import LENGTH, Round, measure
from tests.faults.processes import until_readiness
from tests.ray.cluster import Cluster, address_of

TOKEN_S = 0.02
FLAGS = [
    "--engine=mock",
    "--engine-arg=numbered=true",
    f"--engine-arg=length={LENGTH}",
    f"--mock-interval={TOKEN_S}",
    "--slots=1024",
    "--insecure",
]


def main() -> None:
    """Start the cluster, measure, and print the medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_proxy")
    parser.add_argument("--streams", type=int, default=32, help="streams at once")
    parser.add_argument("--tokens", type=int, default=300, help="tokens of each stream")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way")
    wanted = parser.parse_args()
    with Cluster() as cluster:
        node = cluster.add_node()
        cluster.serve(FLAGS, autoscaling_config={"min_replicas": 1, "max_replicas": 1})
        assert cluster.has_servers(1)
        (server,) = cluster.servers()
        (replica,) = node.named("ray::ServeReplica")
        (proxy,) = cluster.head.named("ray::ProxyActor")
        processes = {"Penstock": [server], "Ray's replica": [replica], "Ray's proxy": [proxy]}
        ways = {"direct": address_of(server), "through Ray": cluster.address}
        rounds: dict[str, list[Round]] = {way: [] for way in ways}
        for address in ways.values():
            asyncio.run(until_readiness(address, 200))
        for _ in range(wanted.repeats):
            for way, address in ways.items():
                asked = measure(address, processes, wanted.streams, wanted.tokens)
                rounds[way].append(asyncio.run(asked))
    print(
        f"{wanted.streams} streams, a token every {TOKEN_S * 1e3:g} ms, load {psutil.getloadavg()}"
    )
    print("| | " + " | ".join([f"{name}, µs/token" for name in processes]), end=" | ")
    print("first event, ms | gap p50, ms | gap p99, ms |")
    print("|---" * (len(processes) + 4) + "|")
    for way, measured in rounds.items():
        cells = [median(each.cpu_us[name] for each in measured) for name in processes]
        cells += [
            median(each.first_ms for each in measured),
            median(each.gap_p50_ms for each in measured),
            median(each.gap_p99_ms for each in measured),
        ]
        print(f"| {way} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")


if __name__ == "__main__":
    main()
