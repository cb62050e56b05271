"""Runs one command and prints a line of JSON: its CPU and wall seconds and its peak memory in MB. Exits as it does.

Imports next to nothing: the peak that the system reports of a process is at least that of the one which started it.
"""

import json
import os
import sys
import time


def main() -> int:
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    began = time.perf_counter()
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - began
    result = {'cpu': usage.ru_utime + usage.ru_stime, 'wall': wall, 'peak': usage.ru_maxrss / 1024}
    print(json.dumps(result))
    return os.waitstatus_to_exitcode(status)


if __name__ == '__main__':
    sys.exit(main())
