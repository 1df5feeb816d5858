import os

import pytest

from tests.ops import cuda_on_host

# cuBLAS is deterministic only with workspaces of a fixed size; it reads this variable once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
from tests.ops.pooling_tiers import TIERS


@pytest.fixture(scope="session")
def host(tmp_path_factory) -> cuda_on_host.Host:
    """The CUDA kernels, callable without a GPU."""
    if not cuda_on_host.compiler() or not cuda_on_host.CSRC.is_dir():
        pytest.skip("needs g++ and the sources of the operators")
    # With pytest-xdist, each process has its own folder inside a shared one.
    folder = tmp_path_factory.getbasetemp()
    if folder.name.startswith("popen-"):
        folder = folder.parent
    return cuda_on_host.Host(cuda_on_host.build(folder))


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    """Each tier of the operators that is present."""
    return request.param
