"""Start the command line again and again in fresh processes, and kill all but the last.

Run as a program: `kill_driver.py again PLANS`, JSON lists of SEED KILLS CHECKPOINTS WAIT ARGUMENT....
Importing is the dear part of a start, so this process imports and every start is a fork of it. A kill
falls once the process has replaced the checkpoint 1 to CHECKPOINTS times, and up to WAIT seconds later. Or
`kill_driver.py at PLACES ARGUMENT...`: a kill once a file is there that fits a pattern, for each of
PLACES (JSON) in turn, and none after the last. What happened goes to standard output as JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import lightning_fabric  # noqa: F401
import sklearn.datasets  # noqa: F401

import regraft.cli
import regraft.cli.find
import regraft.cli.finetune
import regraft.jobs.finetune.job
import regraft.jobs.train


def start(arguments):
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            code = regraft.cli.main(arguments)
        finally:
            os._exit(code)
    return pid


def identity(path):
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def kill_one(arguments, out, checkpoints, wait, deadline):
    """Return what was found after the kill, or None where the process ended by itself."""
    file = out / "checkpoint.safetensors"
    last = identity(file)
    pid = start(arguments)
    while checkpoints:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return None, status
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError("no new checkpoint was written")
        now = identity(file)
        checkpoints -= now != last
        last = now
        time.sleep(0.0005)
    time.sleep(wait)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    files = sorted(path.name for path in out.iterdir())
    return {"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, "files": files}, status


def at_places(places, *arguments):
    out = Path(arguments[arguments.index("--out") + 1])
    ends = []
    for place in json.loads(places):
        pid = start(list(arguments))
        done = 0
        while not done and not any(out.glob(place)):
            time.sleep(0.001)
            done, status = os.waitpid(pid, os.WNOHANG)
        if not done:
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
        ends.append(os.waitstatus_to_exitcode(status))
    print(json.dumps(ends))


def again(plans):
    print(json.dumps([killed_again(*plan) for plan in json.loads(plans)]))


def killed_again(seed, kills, checkpoints, wait, *arguments):
    chance = random.Random(int(seed))
    out = Path(arguments[arguments.index("--out") + 1])
    deadline = time.monotonic() + 180
    found = []
    for _ in range(int(kills)):
        after = chance.randint(1, int(checkpoints)), chance.uniform(0, float(wait))
        kill, status = kill_one(list(arguments), out, *after, deadline)
        if kill is None:
            break
        found.append(kill)
    else:
        status = os.waitpid(start(list(arguments)), 0)[1]
    return {"kills": found, "exit": os.waitstatus_to_exitcode(status)}


if __name__ == "__main__":
    {"again": again, "at": at_places}[sys.argv[1]](*sys.argv[2:])
