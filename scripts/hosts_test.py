"""Tests of hosts.py: needs root, and a kernel that permits namespaces."""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import hosts

SCRIPT = pathlib.Path(hosts.__file__).resolve()
LIMIT_SECONDS = 20

# Answers every byte with a byte; then counts what comes until the end.
SERVER = """
import socket, sys
listener = socket.create_server(("0.0.0.0", 5000))
print("ready", flush=True)
peer, _ = listener.accept()
peer.sendall(peer.recv(1))
num_bytes = 0
while data := peer.recv(1 << 20):
    num_bytes += len(data)
print(num_bytes)
"""
# Prints the seconds of a round trip, and those of sending argv[2] bytes.
CLIENT = """
import socket, sys, time
peer = socket.create_connection((sys.argv[1], 5000), timeout=20)
begin = time.monotonic()
peer.sendall(b"x")
peer.recv(1)
print(time.monotonic() - begin)
begin = time.monotonic()
peer.sendall(bytes(int(sys.argv[2])))
peer.shutdown(socket.SHUT_WR)
peer.recv(1)
print(time.monotonic() - begin)
"""


def script(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], text=True,
                          capture_output=True, timeout=60)


def why_not():
    done = script("check")
    return done.stderr.strip() if done.returncode else None


class PureTest(unittest.TestCase):
    def test_times_have_a_unit(self):
        self.assertAlmostEqual(hosts.seconds_of("0.1ms"), 1e-4)
        self.assertAlmostEqual(hosts.seconds_of("50us"), 5e-5)
        self.assertAlmostEqual(hosts.seconds_of("2s"), 2)
        for text in ("1", "ms", "1.2.3ms", "-1ms", ""):
            with self.assertRaises(argparse.ArgumentTypeError):
                hosts.seconds_of(text)

    def test_hosts_that_are_not_there_are_named(self):
        done = script("run", "nowhere-1", "--", "true")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no hosts nowhere", done.stderr)


class HostsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        reason = why_not()
        if reason and os.environ.get("CI"):
            raise AssertionError(f"in CI: {reason}")
        if reason:
            raise unittest.SkipTest(reason)

    def up(self, *arguments):
        done = script("up", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        name = done.stdout.strip()
        self.addCleanup(script, "down", name)
        return name

    def on(self, host, *command):
        done = script("run", host, "--", *command)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def exchange(self, name, num_bytes):
        """Seconds of a round trip from host 1 to 0, and of sending."""
        server = subprocess.Popen(
            [sys.executable, SCRIPT, "run", f"{name}-0", "--", sys.executable,
             "-c", SERVER], stdout=subprocess.PIPE, text=True)
        self.assertEqual(server.stdout.readline(), "ready\n")
        times = self.on(f"{name}-1", sys.executable, "-c", CLIENT,
                        f"{name}-0", str(num_bytes)).split()
        self.assertEqual(server.communicate(timeout=30)[0], f"{num_bytes}\n")
        return [float(text) for text in times]

    def wait_until_gone(self, pids):
        deadline = time.monotonic() + LIMIT_SECONDS
        while any(hosts._start_time(pid) is not None for pid in pids):
            self.assertLess(time.monotonic(), deadline, "still there")
            time.sleep(0.01)

    def test_each_has_its_own_name_memory_processes_and_address(self):
        name = self.up("2")
        for number in ("0", "1"):
            host = f"{name}-{number}"
            self.assertEqual(self.on(host, "hostname"), host)
            self.assertEqual(
                self.on(host, "sh", "-c", "echo $NFOLD_HOST"), host)
            self.assertEqual(self.on(host, "pwd"), os.getcwd())
            self.assertEqual(self.on(host, "ls", "/dev/shm"), "")
            self.on(host, "touch", "/dev/shm/here")
            # Every host resolves every name, its own to its own address.
            self.assertIn(hosts.address_of(int(number)),
                          self.on(host, "hostname", "-I"))
            for other in (0, 1):
                self.assertIn(
                    hosts.address_of(other),
                    self.on(host, "getent", "hosts", f"{name}-{other}"))
        self.assertFalse(pathlib.Path("/dev/shm/here").exists())

    def test_run_gives_arguments_and_exit_code_on(self):
        name = self.up("1")
        done = script("run", f"{name}-0", "--", "sh", "-c", 'echo "$@"; exit 7',
                      "sh", "a b", "--rate", "--")
        self.assertEqual(done.stdout, "a b --rate --\n")
        self.assertEqual(done.returncode, 7)

    def test_each_runs_on_all_at_once(self):
        name = self.up("3")
        done = script("each", name, "--", "sh", "-c",
                      "echo $NFOLD_HOST {number} {count} {first}; "
                      "exit $(( {number} * 3 ))")
        self.assertEqual(
            sorted(done.stdout.splitlines()),
            [f"{name}-{i} {i} 3 {name}-0" for i in range(3)])
        self.assertIn(done.returncode, (3, 6))
        done = script("each", name, "--", "sh", "-c",
                      "[ {number} = 2 ] && kill -9 $$; exit 0")
        self.assertEqual(done.returncode, 128 + signal.SIGKILL)

    def test_each_ends_what_it_runs(self):
        name = self.up("2")
        each = subprocess.Popen(
            [sys.executable, SCRIPT, "each", name, "--", "sh", "-c",
             "echo ready; exec sleep 600"], stdout=subprocess.PIPE, text=True)
        for _ in range(2):
            self.assertEqual(each.stdout.readline(), "ready\n")
        each.terminate()
        self.assertEqual(each.wait(LIMIT_SECONDS), 128 + signal.SIGTERM)
        each.stdout.close()
        for number in (0, 1):
            self.assertNotIn("sleep 600", self.on(f"{name}-{number}", "ps",
                                                  "ax"))

    def test_counters_tell_what_crossed(self):
        name = self.up("2")
        num_bytes = 5_000_000
        self.exchange(name, num_bytes)
        counted = json.loads(script("counters", name).stdout)
        sent = counted[f"{name}-1"]["sent_bytes"]
        self.assertGreater(sent, num_bytes)
        self.assertLess(sent, 1.05 * num_bytes + 10_000)
        self.assertEqual(counted[f"{name}-0"]["received_bytes"], sent)
        self.assertLess(counted[f"{name}-0"]["sent_bytes"], 0.1 * num_bytes)

    def test_a_rate_bounds_how_fast_bytes_move(self):
        name = self.up("2", "--rate", "100mbit")
        _, seconds = self.exchange(name, 5_000_000)
        self.assertGreater(seconds, 0.38)  # 0.4 s less what is in flight
        self.assertLess(seconds, 4)

    def test_a_delay_is_one_way(self):
        name = self.up("2", "--delay", "50ms", "--rate", "1gbit")
        seconds, _ = self.exchange(name, 1_000_000)
        self.assertGreater(seconds, 0.1)
        self.assertLess(seconds, 1)

    def test_hosts_of_several_users_do_not_meet(self):
        first, second = self.up("1"), self.up("1")
        self.assertNotEqual(first, second)
        # Both have the same address, and no process of the other.
        self.on(f"{first}-0", "sh", "-c", "kill -9 -1; true")
        self.assertEqual(self.on(f"{second}-0", "hostname"), f"{second}-0")
        self.assertEqual(script("down", first).returncode, 0)
        self.assertEqual(self.on(f"{second}-0", "hostname"), f"{second}-0")

    def test_down_ends_what_runs_there(self):
        name = self.up("2")
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "started")
            command = subprocess.Popen(
                [sys.executable, SCRIPT, "run", f"{name}-1", "--", "sh", "-c",
                 f"touch {file}; exec sleep 600"])
            while not file.exists():
                time.sleep(0.01)
        self.assertEqual(script("down", name).returncode, 0)
        self.assertNotEqual(command.wait(LIMIT_SECONDS), 0)
        self.assertNotIn(name, script("list").stdout)
        self.assertFalse((hosts.STATE / name).exists())

    def test_hosts_end_with_their_owner(self):
        owner = subprocess.Popen(["sleep", "600"])
        name = self.up("2", "--owner", str(owner.pid))
        state = hosts.load(name)
        owner.kill()
        owner.wait()
        self.wait_until_gone([state["keeper"],
                              *(host["pid"] for host in state["hosts"])])
        self.assertNotIn(name, script("list").stdout)

    def test_a_killed_keeper_leaves_nothing(self):
        name = self.up("2")
        state = hosts.load(name)
        os.kill(state["keeper"], signal.SIGKILL)
        self.wait_until_gone([host["pid"] for host in state["hosts"]])
        self.up("1")
        self.assertFalse((hosts.STATE / name).exists())

    def test_wrong_arguments_make_nothing(self):
        done = script("up", "2", "--rate", "fast")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("rate", done.stderr)
        self.assertEqual(script("up", "0").returncode, 2)
        self.assertEqual(script("up", "2", "--delay", "1").returncode, 2)

    def test_others_than_root_are_told(self):
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/env",
             "python3", "-c", "import os; print(os.geteuid())"],
            capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest("another user cannot run this Python")
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", sys.executable,
             SCRIPT, "check"], capture_output=True, text=True)
        self.assertEqual(done.returncode, hosts.NOT_PERMITTED)
        self.assertIn("only root", done.stderr)


if __name__ == "__main__":
    unittest.main()
