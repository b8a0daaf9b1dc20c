#!/usr/bin/env python3
"""qmp.py [-g] SOCKET COMMAND ['{JSON ARGUMENTS}'] [COMMAND ...]: QMP commands to QEMU, or with -g to a guest's agent.

Prints each answer and the events between them; ends with 1 after the first answer that is an error.
"""

import json
import os
import socket
import sys


class Monitor:
    """A connection to QEMU's monitor, or to a guest's agent."""

    def __init__(self, path, agent=False, seconds=30):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(seconds)
        self.socket.connect(path)
        self.file = self.socket.makefile("rw")
        if agent:
            self.synchronise()
        else:
            json.loads(self.file.readline())
            self.call("qmp_capabilities")

    def synchronise(self):
        """Skip answers to whoever was connected before: they stand in the channel until they are read."""
        number = int.from_bytes(os.urandom(4), "big")
        self.send("guest-sync", {"id": number})
        while json.loads(self.read_line()).get("return") != number:
            pass

    def send(self, command, arguments=None):
        message = {"execute": command}
        if arguments is not None:
            message["arguments"] = arguments
        self.file.write(json.dumps(message) + "\n")
        self.file.flush()

    def read_line(self):
        line = self.file.readline()
        if not line:
            raise ConnectionError("the other side has closed the connection")
        return line

    def call(self, command, arguments=None):
        """The answer: an object with `return` or `error`."""
        self.send(command, arguments)
        while True:
            answer = json.loads(self.read_line())
            if "event" not in answer:
                return answer
            print("event", answer["event"], json.dumps(answer.get("data")))


def main():
    arguments = sys.argv[1:]
    agent = arguments[:1] == ["-g"]
    if agent:
        arguments = arguments[1:]
    if len(arguments) < 2:
        sys.exit(__doc__)
    monitor = Monitor(arguments.pop(0), agent)
    while arguments:
        command = arguments.pop(0)
        values = json.loads(arguments.pop(0)) if arguments and arguments[0].startswith("{") else None
        answer = monitor.call(command, values)
        print(command, json.dumps(answer))
        if "error" in answer:
            sys.exit(1)


if __name__ == "__main__":
    main()
