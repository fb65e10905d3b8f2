"Work in other processes leaves nothing behind, on the terminal or in the system."

import subprocess
import sys

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
