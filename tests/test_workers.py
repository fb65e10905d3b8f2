"Work in other processes leaves nothing behind, on the terminal or in the system."

import subprocess
import sys
import time

from medlab.basics.processes import process_lives

SCRIPT = """
import time
from tqdm import tqdm
from medlab.basics.workers import other_process, spread_work

def counted(number):
    time.sleep(0.05)
    return sum(1 for _ in tqdm(range(number), delay=9))

print(sum(spread_work(counted, range(60), workers=2, alone=0)))
with other_process() as call:
    print(call(counted, 7).result())
"""


def test_workers_with_progress_bars_leave_no_semaphore(tmp_path):
    "A semaphore that a worker leaves is a warning of Python's, after the last line of a step."
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1770", "7"], done.stderr
    assert "leaked" not in done.stderr and "Warning" not in done.stderr


def test_workers_end_when_their_parent_is_killed(tmp_path):
    "One that is left holds the memory of all it has loaded."
    script = tmp_path / "script.py"
    script.write_text("import os, time\nfrom medlab.basics.workers import other_process\nwith other_process() as call:\n    print(call(os.getpid).result(), flush=True)\n    time.sleep(60)\n")
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert process_lives(worker)
        parent.kill()
    ends = time.monotonic() + 20
    while process_lives(worker) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not process_lives(worker)
