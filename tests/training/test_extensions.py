"""A process that dies while it compiles keeps nobody from compiling after it."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from grm_ray.training import extensions
from grm_ray.training.extensions import Baton, keep_own_extensions
from tests.conftest import ROOT

HOLD = """
import sys, time
from grm_ray.training.extensions import Baton
assert Baton(sys.argv[1]).try_acquire()
print("has it", flush=True)
time.sleep(600)
"""
SOURCE = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "grm_ray_test_operator", NULL, -1, NULL};
extern "C" PyMODINIT_FUNC PyInit_grm_ray_test_operator(void) { return PyModule_Create(&module); }
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that compiles for ever."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "lock")], cwd=ROOT, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"has it\n"
        yield process
        process.kill()


def test_one_compiles_while_others_wait_and_death_ends_both(tmp_path, holder):
    baton = Baton(str(tmp_path / "lock"))
    assert not baton.try_acquire()
    waiting = threading.Thread(target=baton.wait)
    waiting.start()
    time.sleep(0.3)
    assert waiting.is_alive()
    holder.send_signal(signal.SIGKILL)
    waiting.join(30)
    assert not waiting.is_alive()
    following = Baton(str(tmp_path / "lock"))
    assert following.try_acquire()
    following.release()


def test_torch_compiles_where_a_dead_process_left_its_lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")  # so that it is put back
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setattr(extensions.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(cpp_extension, "FileBaton", cpp_extension.FileBaton)
    keep_own_extensions()
    folder = tmp_path / "torch_extensions" / "grm_ray_test_operator"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    (tmp_path / "operator.cpp").write_text(SOURCE)
    made = cpp_extension.load("grm_ray_test_operator", [str(tmp_path / "operator.cpp")])
    assert Path(made.__file__).parent == folder
    assert cpp_extension.FileBaton is Baton and (folder / "lock.held").exists()


def test_a_folder_of_the_user_s_has_torch_s_own_way(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    before = cpp_extension.FileBaton
    monkeypatch.setattr(cpp_extension, "FileBaton", before)
    keep_own_extensions()
    assert cpp_extension.FileBaton is before
