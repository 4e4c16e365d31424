import os
import subprocess
import sys
import time

from mmflow.data.workers import processors, worker_pool
from tests.test_processes import is_running

PARENT = """
import os, signal, time
from multiprocessing import active_children
from mmflow.data.workers import worker_pool

if __name__ == "__main__":
    with worker_pool(2) as pool:
        pool.submit(time.sleep, 60)  # when the parent goes one is at work, and one waits for it
        pool.submit(os.getpid).result()
        print(*[worker.pid for worker in active_children()], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_the_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    killed = subprocess.run([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, check=False)
    workers = [int(word) for word in killed.stdout.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, f"workers {workers} still run after their parent was killed"
        time.sleep(0.05)


def test_the_initializer_is_called_in_each_worker():
    with worker_pool(1, os.putenv, "MMFLOW_TEST", "7") as pool:
        assert pool.submit(subprocess.getoutput, "echo $MMFLOW_TEST").result() == "7"


def test_processors_are_those_that_this_process_may_use():
    code = "import os; from mmflow.data.workers import processors; {}; print(processors())"
    one = code.format("os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])")
    assert subprocess.run([sys.executable, "-c", one], stdout=subprocess.PIPE, check=True).stdout == b"1\n"
    assert processors() == len(os.sched_getaffinity(0))
