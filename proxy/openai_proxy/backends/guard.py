"""Runs one command and ends it, whatever becomes of the program that asked for it.

    python -I -S guard.py COMMAND [ARGUMENT ...]     (stdin: a pipe that only the owner writes to)

The owner's end of the pipe is its life line: when it closes, also because the owner was killed,
the command's whole process group gets SIGTERM and, a second later, SIGKILL. Before that the owner
may write one of two letters: T asks the command to finish (SIGTERM to it alone, no limit of time),
K ends its group at once. The command is in a session of its own, so that a terminal's Ctrl-C does
not reach it, and dies with the guard (PR_SET_PDEATHSIG). What leaves the group is adopted
(PR_SET_CHILD_SUBREAPER) and ended last. The exit status is the command's, 128 + N for signal N.

Only the standard library, and little of it: this process lives as long as the backend does.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHORT_WAIT_SECONDS = 1.0
EXIT_CANNOT_RUN = 127
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def start(command: list[str]) -> int:
    """Start the command in its own session; returns its process id, also its group's."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = os.getpid()
    # A signal that comes before exec must end the command, not our handler of it.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return child
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != guard:  # the guard died before the line above took effect
            os._exit(EXIT_CANNOT_RUN)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # the owner's command, no shell wanted
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(EXIT_CANNOT_RUN)


def has_ended(child: int) -> bool:
    """Tell whether the child has ended, without reaping it: a zombie keeps its group's id ours."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, child, flags) is not None


def reap_adopted(child: int) -> None:
    """Reap what has ended of the adopted, and not the child: zombies would fill up the table."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while (ended := os.waitid(os.P_ALL, 0, flags)) is not None and ended.si_pid != child:
        os.waitpid(ended.si_pid, 0)


def on_ended_children() -> int:
    """Return a descriptor that can be read when a child has ended."""
    news, wakes = os.pipe()
    os.set_blocking(news, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return news


def wait(child: int, pidfd: int) -> None:
    """Wait until the command ends, or the owner wants it to."""
    poll = select.poll()
    news = on_ended_children()
    for descriptor in (0, pidfd, news):
        poll.register(descriptor, select.POLLIN)
    while not has_ended(child):
        reap_adopted(child)
        ready = {fd for fd, _ in poll.poll()}
        if news in ready:
            os.read(news, 4096)
        if 0 not in ready:
            continue
        order = os.read(0, 1)
        if order == b"T":
            os.kill(child, signal.SIGTERM)
        elif order == b"K":
            return
        elif not order:
            signal_group(child, signal.SIGTERM)
            end = select.poll()
            end.register(pidfd, select.POLLIN)
            end.poll(SHORT_WAIT_SECONDS * 1000)
            return


def signal_group(group: int, number: int) -> None:
    """Send a signal to all of the group that is left."""
    with contextlib.suppress(ProcessLookupError):
        try:
            os.killpg(group, number)
        except ProcessLookupError:  # the command has only just begun, and made no group yet
            os.kill(group, number)


def end_adopted() -> None:
    """Kill and reap what is left: the command, and descendants that had left its group."""
    children = f"/proc/self/task/{os.getpid()}/children"
    give_up_at = time.monotonic() + SHORT_WAIT_SECONDS
    while time.monotonic() < give_up_at:
        try:
            with open(children) as listing:  # noqa: PTH123  # pathlib is slow to import
                for pid in listing.read().split():
                    os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.005)
        except ChildProcessError:
            return


def main(command: list[str]) -> int:
    """Run the command to its end; returns the exit status."""
    # A handler, not SIG_IGN: handlers do not outlive exec, and the command must hear its signals.
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    child = start(command)
    wait(child, os.pidfd_open(child))
    signal_group(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    end_adopted()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
