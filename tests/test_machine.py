"""What is asked of the machine."""

import subprocess
import sys

import numpy as np

MEGABYTE = 2**20
CHILD = """
import numpy
from kd_convnext.machine import peak_memory
before = peak_memory()
block = numpy.ones(50 * 2**20, numpy.uint8)
print(before, peak_memory())
"""


def test_peak_memory_is_the_process_s_own():
    large = np.ones(600 * MEGABYTE, np.uint8)  # what a child of ours would inherit in ru_maxrss
    found = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    before, after = (int(word) for word in found.stdout.split())
    assert before < 300 * MEGABYTE < large.nbytes
    assert 40 * MEGABYTE < after - before < 60 * MEGABYTE
