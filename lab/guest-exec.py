#!/usr/bin/env python3
"""guest-exec.py AGENT-SOCKET 'SHELL COMMAND' [SECONDS]: run a command in a guest through its agent.

Waits for the agent to answer and the command to end, for at most SECONDS (60) each; prints what the command
printed and ends with its exit code.
"""

import base64
import sys
import time

from qmp import Monitor


def wait_for_agent(path, seconds):
    """The connected agent. One that is not up yet does not answer, so each try has a connection of its own."""
    end = time.monotonic() + seconds
    while True:
        try:
            return Monitor(path, agent=True, seconds=5)
        except OSError:
            if time.monotonic() > end:
                sys.exit(f"guest-exec.py: the agent at {path} does not answer")
            time.sleep(0.5)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    seconds = float(sys.argv[3]) if len(sys.argv) == 4 else 60.0
    agent = wait_for_agent(sys.argv[1], seconds)
    # A guest without KVM on a busy machine may take its time for every answer.
    agent.socket.settimeout(max(seconds, 30))
    shell = {"path": "/bin/sh", "arg": ["-c", sys.argv[2]], "capture-output": True}
    pid = agent.call("guest-exec", shell)["return"]["pid"]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        status = agent.call("guest-exec-status", {"pid": pid})["return"]
        if status["exited"]:
            sys.stdout.buffer.write(base64.b64decode(status.get("out-data", "")))
            sys.stderr.buffer.write(base64.b64decode(status.get("err-data", "")))
            sys.exit(status.get("exitcode", 99))
        time.sleep(0.2)
    sys.exit(f"guest-exec.py: not done after {seconds} s: {sys.argv[2]}")


if __name__ == "__main__":
    main()
