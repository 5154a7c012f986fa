"""A Ray of this process alone, for tests of pools."""

import pytest
import ray


@pytest.fixture(scope="module")
def small_cluster():
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    yield
    ray.shutdown()
