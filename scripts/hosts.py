#!/usr/bin/env python3
"""Test hosts on this machine: network namespaces joined by a shaped network.

  hosts.py up 2 --rate 1gbit --delay 0.1ms   makes hosts, prints their name X
  hosts.py run X-1 -- COMMAND                runs COMMAND on the second host
  hosts.py each X -- COMMAND                 on all at once; {number} stands for
                                             a host's, {count} for how many
                                             there are, {first} for X-0
  hosts.py counters X                        bytes that crossed, as JSON
  hosts.py down X                            removes them and what runs there
  hosts.py list                              who has hosts on this machine
  hosts.py check                             exit 0 where this is permitted

Each host has a network of its own (eth0 with the address 10.77.0.NUMBER+1, and
lo), a host name (X-NUMBER, which every host can resolve), /dev/shm, and
process ids; NFOLD_HOST names it. Files are shared. Only root can make hosts.

The network is a switch. --rate limits what each host sends and what it
receives, separately. --delay is added to every frame on its way from one host
to another, so a round trip takes twice that, plus what this machine needs to
carry it (tens of microseconds).

  hosts.py run X-1 -- ip link set eth0 down    the host vanishes silently
  hosts.py run X-1 -- sh -c 'kill -9 -1'       everything that it runs dies

Hosts end with their owner, the process that called `up` (or --owner, such as
--owner $$ where a shell may not be that process itself), also if that is
killed: one process keeps them all and watches it. Nothing of them is visible
outside, so any number of users can have hosts at the same time.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import select
import shutil
import signal
import string
import subprocess
import sys
import time

import hosts_wire

STATE = pathlib.Path("/run/nfold-hosts")
MAX_HOSTS = 64
# A frame is up to 64 KiB here; less would be cut into segments.
BURST = "80kb"
# How long a frame may wait for its turn before it is lost.
QUEUE_TIME = "100ms"
TIME_LIMIT_SECONDS = 20
NOT_PERMITTED = 3

# Run by the first process of a host, in its namespaces; then it stays. Of the
# congestion controls only reno is permitted everywhere, so that hosts behave
# alike on all machines; round trips are short enough for it.
HOST_SCRIPT = """
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount --bind "$2" /etc/hosts
echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6
echo reno > /proc/sys/net/ipv4/tcp_congestion_control
ip link set lo up
echo ready
exec sleep infinity
"""


class HostsError(Exception):
    pass


def address_of(number):
    return f"10.77.0.{number + 1}"


def _call(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise HostsError(f"{' '.join(command)}: "
                         f"{(done.stderr or done.stdout).strip()}")


def _start_time(pid):
    """Tells a process from a later one with its number; None if it is gone."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def seconds_of(text):
    """Of "0.1ms", "50us" or "1s"."""
    match = re.fullmatch(r"([0-9.]+)(us|ms|s)", text)
    try:
        return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f'expected a time such as 0.1ms, 50us or 1s, found "{text}"'
        ) from None


# What is known of running hosts.

def load(name):
    try:
        return json.loads((STATE / name / "state.json").read_text())
    except FileNotFoundError:
        raise HostsError(f"there are no hosts {name}; list shows "
                         "which there are") from None


def _is_alive(name):
    try:
        state = load(name)
    except HostsError:
        return False
    return _start_time(state["keeper"]) == state["keeper_start"]


def _names():
    return sorted(path.name for path in STATE.glob("*") if path.is_dir())


def _remove_leftovers():
    """A keeper that was killed took its hosts along, but not its folder."""
    for name in _names():
        folder = STATE / name
        is_new = time.time() - folder.stat().st_mtime < TIME_LIMIT_SECONDS
        has_state = (folder / "state.json").exists()
        if not _is_alive(name) and (has_state or not is_new):
            shutil.rmtree(folder, ignore_errors=True)


def host_of(host):
    """The state of one host, by its name."""
    name = host.rpartition("-")[0]
    for entry in load(name)["hosts"]:
        if entry["name"] == host:
            return entry
    raise HostsError(f"there is no host {host}")


def counters(state):
    """{host: {"sent_bytes": ..., "received_bytes": ...}} of eth0."""
    result = {}
    for host in state["hosts"]:
        lines = pathlib.Path(f"/proc/{host['pid']}/net/dev").read_text()
        fields = re.search(r"eth0:(.*)", lines)[1].split()
        result[host["name"]] = {"sent_bytes": int(fields[8]),
                                "received_bytes": int(fields[0])}
    return result


def command_on(host, command):
    """What to execute to run the command on a host."""
    entry = host_of(host)
    # The command must not outlive the nsenter that waits for it.
    return ["nsenter", f"--target={entry['pid']}", "--net", "--uts", "--mount",
            "--pid", "setpriv", "--pdeathsig", "KILL", "env",
            f"NFOLD_HOST={host}", "sh", "-c", 'cd "$0" && exec "$@"',
            os.getcwd(), *command]


# The process that keeps hosts; it lives in the switch's network namespace.

def _start_host(name, hosts_file):
    """Returns the host's first process, as this namespace numbers it."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--uts",
         "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
         "sh", "-ec", HOST_SCRIPT, "sh", name, str(hosts_file)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    if process.stdout.readline() != "ready\n":
        raise HostsError(f"cannot start the host {name}")
    process.stdout.close()
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(children.read_text())


def _shape(prefix, interface, rate):
    if rate:
        _call(*prefix, "tc", "qdisc", "add", "dev", interface, "root", "tbf",
              "rate", rate, "burst", BURST, "latency", QUEUE_TIME)


def _connect_host(number, pid, rate):
    port = f"port{number}"
    inside = ("nsenter", f"--target={pid}", "--net")
    _call("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0",
          "address", hosts_wire.mac_of(number), "netns", str(pid))
    _call(*inside, "ip", "address", "add", f"{address_of(number)}/24", "dev",
          "eth0")
    _shape(inside, "eth0", rate)
    _shape((), port, rate)
    _call(*inside, "ip", "link", "set", "eth0", "up")
    _call("ip", "link", "set", port, "up")


def _bridge(ports):
    # With snooping it would send frames of its own, which the hosts count.
    _call("ip", "link", "add", "name", "switch", "type", "bridge",
          "mcast_snooping", "0")
    for port in ports:
        _call("ip", "link", "set", port, "master", "switch")
    _call("ip", "link", "set", "switch", "up")


def keep(arguments):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    folder = STATE / arguments.name
    names = [f"{arguments.name}-{i}" for i in range(arguments.num_hosts)]
    try:
        owner = os.pidfd_open(arguments.owner)
        pathlib.Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
        hosts_file = folder / "hosts"
        hosts_file.write_text("127.0.0.1 localhost\n" + "".join(
            f"{address_of(i)} {name}\n" for i, name in enumerate(names)))
        pids = [_start_host(name, hosts_file) for name in names]
        for i, pid in enumerate(pids):
            _connect_host(i, pid, arguments.rate)
        ports = [f"port{i}" for i in range(len(names))]
        wire = None
        if arguments.delay:
            wire = hosts_wire.Wire(ports, arguments.delay)
        else:
            _bridge(ports)
        state = {"keeper": os.getpid(), "keeper_start": _start_time(os.getpid()),
                 "owner": arguments.owner, "rate": arguments.rate,
                 "delay_seconds": arguments.delay,
                 "hosts": [{"name": name, "pid": pid, "address": address_of(i)}
                           for i, (name, pid) in enumerate(zip(names, pids))]}
        unfinished = folder / "state.part"
        unfinished.write_text(json.dumps(state, indent=1) + "\n")
        unfinished.rename(folder / "state.json")
        print("ready", flush=True)
        # Nobody who reads our output should have to wait for our end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if wire:
            wire.run(until=owner)
        else:
            select.select([owner], [], [])
    finally:
        # The hosts' first processes die with this one, as they asked.
        shutil.rmtree(folder, ignore_errors=True)


# Commands.

def up(arguments):
    check(arguments)
    STATE.mkdir(exist_ok=True)
    _remove_leftovers()
    while True:
        letters = string.ascii_lowercase + string.digits
        name = "nf" + "".join(random.choices(letters, k=4))
        with contextlib.suppress(FileExistsError):
            (STATE / name).mkdir()
            break
    log_path = STATE / name / "keeper.log"
    command = ["unshare", "--net", sys.executable, os.path.abspath(__file__),
               "keep", name, str(arguments.num_hosts), "--owner",
               str(arguments.owner)]
    if arguments.rate:
        command += ["--rate", arguments.rate]
    if arguments.delay:
        command += ["--delay", f"{arguments.delay * 1e6}us"]
    with open(log_path, "w+") as log:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=log, text=True, start_new_session=True)
        if keeper.stdout.readline() != "ready\n":
            keeper.kill()
            keeper.wait()
            log.seek(0)
            text = log.read().strip()
            shutil.rmtree(STATE / name, ignore_errors=True)
            raise HostsError(text.removeprefix("hosts: ") or
                             "the hosts could not be made")
    print(name)


def words_of(arguments):
    is_marked = arguments.command[:1] == ["--"]
    words = arguments.command[1:] if is_marked else arguments.command
    if not words:
        raise HostsError("no command to run")
    return words


def run(arguments):
    words = command_on(arguments.host, words_of(arguments))
    os.execvp(words[0], words)


def each(arguments):
    """Exits with 0 if all did, else with what the first to fail did."""
    hosts = load(arguments.name)["hosts"]
    running = []

    def end(*_):
        for process in running:
            process.terminate()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    for number, host in enumerate(hosts):
        words = [word.replace("{number}", str(number))
                 .replace("{count}", str(len(hosts)))
                 .replace("{first}", hosts[0]["name"])
                 for word in words_of(arguments)]
        # Input is the first host's, as rank 0 keeps the terminal.
        stdin = None if number == 0 else subprocess.DEVNULL
        running.append(subprocess.Popen(command_on(host["name"], words),
                                        stdin=stdin))
    exit_code = 0
    while running:
        pid, status = os.wait()
        exit_code = exit_code or os.waitstatus_to_exitcode(status)
        running = [process for process in running if process.pid != pid]
    sys.exit(exit_code if exit_code >= 0 else 128 - exit_code)


def down(arguments):
    state = load(arguments.name)
    if _is_alive(arguments.name):
        os.kill(state["keeper"], signal.SIGTERM)
    deadline = time.monotonic() + TIME_LIMIT_SECONDS
    waiting = [state["keeper"], *(host["pid"] for host in state["hosts"])]
    while any(_start_time(pid) is not None for pid in waiting):
        if time.monotonic() > deadline:
            raise HostsError(f"{arguments.name} did not end within "
                             f"{TIME_LIMIT_SECONDS} s")
        time.sleep(0.01)
    shutil.rmtree(STATE / arguments.name, ignore_errors=True)


def show_counters(arguments):
    print(json.dumps(counters(load(arguments.name)), indent=1))


def show_list(_):
    for name in _names():
        if not _is_alive(name):
            print(f"{name}: left by a process that was killed; the next up "
                  "removes it")
            continue
        state = load(name)
        print(f"{name}: {len(state['hosts'])} hosts of process "
              f"{state['owner']}, rate {state['rate'] or 'unlimited'}, delay "
              f"{state['delay_seconds'] * 1e3:g} ms")


def check(_):
    """Raises HostsError with the reason where hosts cannot be made."""
    for tool in ("ip", "tc", "unshare", "nsenter", "setpriv"):
        if not shutil.which(tool):
            raise HostsError(f"{tool} is not installed (iproute2, util-linux)")
    if os.geteuid() != 0:
        raise HostsError("only root can make test hosts")
    try:
        _call("unshare", "--net", "--uts", "--mount", "--pid", "--fork",
              "--mount-proc", "sh", "-ec", "mount -t tmpfs none /dev/shm; "
              "ip link add type veth")
    except HostsError as error:
        raise HostsError(f"namespaces are not permitted: {error}") from None


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="hosts.py", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, call in (("up", up), ("keep", keep)):
        command = commands.add_parser(name)
        if name == "keep":  # what `up` starts in the background
            command.add_argument("name")
        command.add_argument("num_hosts", type=int, metavar="NUMBER")
        command.add_argument("--rate", help="of each host, in tc's words: "
                             "1gbit, 200mbit (default: unlimited)")
        command.add_argument("--delay", type=seconds_of, default=0.0,
                             help="one way: 0.1ms, 50us (default: none)")
        command.add_argument("--owner", type=int, default=os.getppid(),
                             metavar="PID", help="end with this process "
                             "(default: the one that runs this)")
        command.set_defaults(call=call)
    command = commands.add_parser("run")
    command.add_argument("host")
    command.add_argument("command", nargs=argparse.REMAINDER)
    command.set_defaults(call=run)
    for name, call in (("counters", show_counters), ("down", down),
                       ("each", each)):
        command = commands.add_parser(name)
        command.add_argument("name")
        if call is each:
            command.add_argument("command", nargs=argparse.REMAINDER)
        command.set_defaults(call=call)
    for name, call in (("list", show_list), ("check", check)):
        commands.add_parser(name).set_defaults(call=call)
    arguments = parser.parse_args()
    if not 1 <= getattr(arguments, "num_hosts", 1) <= MAX_HOSTS:
        parser.error(f"expected 1 to {MAX_HOSTS} hosts")
    return arguments


def main():
    arguments = parse_arguments()
    try:
        arguments.call(arguments)
    except (HostsError, OSError) as error:
        print(f"hosts: {error}", file=sys.stderr)
        return NOT_PERMITTED if arguments.call is check else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
