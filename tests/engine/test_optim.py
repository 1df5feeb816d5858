import torch
from torch import nn

from dcn_det.config.train import AdamWConfig, SGDConfig, TrainConfig, WarmupConfig
from dcn_det.engine.build import build_optimizer, learning_rate, run_length
from dcn_det.engine.optim import parameter_groups
from tests.messages import says


def model() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    net[2].weight.requires_grad_(False)
    return net


def test_groups_hold_every_trainable_parameter_once() -> None:
    net = model()
    groups = parameter_groups(net, 0.1, 1e-4, decay_bias=False, multipliers={"0.weight": 3.0})
    by_name = {name: group for group in groups for name in group["names"]}
    assert sorted(by_name) == ["0.bias", "0.weight", "1.bias", "1.weight", "2.bias"]
    assert sum(len(group["params"]) for group in groups) == 5
    assert by_name["0.weight"]["lr"] == by_name["0.weight"]["base_lr"] == 0.1 * 3.0
    assert by_name["0.weight"]["weight_decay"] == 1e-4
    assert by_name["0.bias"]["lr"] == 0.1
    assert {by_name[name]["weight_decay"] for name in ("0.bias", "1.weight", "1.bias", "2.bias")} == {0.0}


def test_decay_bias_reaches_everything() -> None:
    groups = parameter_groups(model(), 0.1, 1e-4, decay_bias=True, multipliers={})
    assert {group["weight_decay"] for group in groups} == {1e-4}


def test_sgd_steps_as_its_formula_says() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.ones_(net.weight)
    optimizer = build_optimizer(
        TrainConfig(iterations=1, optimizer=SGDConfig(momentum=0.9, weight_decay=0.5)), net, 0.1, {"weight": 2.0}
    )
    for _ in range(2):
        net.weight.grad = torch.full_like(net.weight, 0.25)
        optimizer.step()
    first = 1 - 0.2 * (0.25 + 0.5)
    velocity = 0.9 * 0.75 + 0.25 + 0.5 * first
    torch.testing.assert_close(net.weight.item(), first - 0.2 * velocity)


def test_adamw_is_built_with_its_betas() -> None:
    optimizer = build_optimizer(
        TrainConfig(iterations=1, optimizer=AdamWConfig(kind="adamw", betas=(0.8, 0.9))), nn.Linear(2, 2), 0.1, {}
    )
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_learning_rate_scales_with_the_global_batch() -> None:
    train = TrainConfig(iterations=1, batch_size=2, reference_batch=8, optimizer=SGDConfig(lr=0.004))
    assert learning_rate(train, 16).effective == 0.008
    assert says(str(learning_rate(train, 16)), 0.008, 0.004, 16, 8)
    off = train.model_copy(update={"scale_lr": False})
    assert learning_rate(off, 16).effective == 0.004


def test_run_length_counts_epochs_in_batches() -> None:
    none = WarmupConfig(kind="none")
    assert run_length(TrainConfig(epochs=2.5, warmup=none), 10, 1).run == 25
    assert run_length(TrainConfig(iterations=7, warmup=none), 10, 8).run == 7
