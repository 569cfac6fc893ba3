"""Runs a command on a terminal of its own, as a person does who sits before it."""

import contextlib
import fcntl
import os
import pty
import struct
import termios


class Terminal:
    """A command that runs on one. columns: its width; None: unknown."""

    def __init__(self, command, cwd, env, columns=None):
        self.process, self.screen = pty.fork()
        if self.process == 0:
            os.chdir(cwd)
            os.execve(command[0], [str(word) for word in command], env)
        if columns is not None:
            fcntl.ioctl(self.screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def press(self, keys):
        os.write(self.screen, keys)

    def finish(self):
        """What it has written, and its exit code."""
        output = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while block := os.read(self.screen, 65536):
                output += block
        code = os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
        os.close(self.screen)
        return code, output.decode(errors="replace")
