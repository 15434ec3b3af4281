"""What every test starts from: one thread, a fixed seed, the devices that there are."""

import gc
import importlib.util
import os

import hypothesis
import pytest
import torch
from outcomes import (  # noqa: F401 (hooks)
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_configure,
)
from vision import import_torchvision

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
torch.set_num_threads(1)  # the tests run side by side
# Inductor's kernels for the CPU without vector instructions: there is less to compile.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded
# Full precision on a GPU too: the tests compare numbers of one device with those of another.
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
if importlib.util.find_spec("torchvision"):  # the tests of GPUs run where it may be missing
    import_torchvision()

collect_ignore = ["helpers"]  # test files import these; pytest would import each a second time


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device; CUDA is skipped, visibly, where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


def pytest_collection_finish():
    """What collection has made stays: the garbage collector need not look at it again."""
    gc.collect()
    gc.freeze()
