import pytest


@pytest.fixture(scope="session")
def tiny_settings(tiny_settings: dict) -> dict:
    """Settings of a longer run that logs and saves more often."""
    train = {"iterations": 20, "optimizer": {"lr": 0.005}, "log_every": 1, "checkpoint_every": 3}
    return tiny_settings | {"device": "cpu", "train": tiny_settings["train"] | train, "test": {"batch_size": 2}}
