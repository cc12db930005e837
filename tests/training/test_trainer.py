"""The trainer: phases that resume to the bit, and that choose by validation alone."""

from __future__ import annotations

import csv
import dataclasses
import signal
import time
from concurrent.futures import wait
from dataclasses import dataclass, field

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from spikeformer_lt import create_dataset, create_model
from spikeformer_lt.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError
from spikeformer_lt.images.augment import Augment, Mixing, normalize
from spikeformer_lt.training import checkpoint
from spikeformer_lt.training.monitor import spiking_layers
from spikeformer_lt.training.options import OptimConfig, Step, TrainConfig
from spikeformer_lt.training.phase import Capture, Hook, Phase
from spikeformer_lt.training.run import RunDir
from spikeformer_lt.training.trainer import PhaseRun, Trainer


@dataclass(frozen=True)
class Config:
    """Stands for a recipe's configuration."""

    run: str = ""
    train: TrainConfig = field(default_factory=TrainConfig)


@pytest.fixture(scope="module")
def data():
    return create_dataset("digits", image_size=16, limit_train=96, limit_test=40)


def toy() -> nn.Module:
    torch.manual_seed(0)
    return create_model("spikformer_toy", image_size=16, embed_dim=16, depth=1, num_heads=2, T=2)


def settings(**kwargs) -> TrainConfig:
    optim = OptimConfig(lr=5e-3, warmup_epochs=1)
    return TrainConfig(**{"batch_size": 16, "cpu": True, "optim": optim, **kwargs})


def trainer(folder, data, config, *, mixing=None, stop=None) -> Trainer:
    run = RunDir.open(str(folder), Config(train=config), resume="auto")
    return Trainer(
        data,
        config,
        run,
        Accelerator(cpu=True),
        augment=Augment.standard("digits"),
        mixing=mixing or Mixing(),
        stop=stop,
    )


def rows(folder, table="summary") -> list[dict[str, str]]:
    with (folder / f"{table}.csv").open() as file:
        return list(csv.DictReader(file))


CASES = {
    "plain": {},
    "ema": {"ema_decay": 0.9},
    "accumulate": {"accumulate": 2, "batch_size": 8},
    "workers": {"workers": 1},
    "momentum": {"optim": OptimConfig(opt="sgd", lr=0.05, momentum=0.9)},
    "tet": {"loss": "tet"},
    "ema, accumulate, tet": {"ema_decay": 0.9, "accumulate": 2, "batch_size": 8, "loss": "tet"},
    "momentum, workers": {"optim": OptimConfig(opt="sgd", lr=0.05, momentum=0.9), "workers": 1},
}
TOGETHER = ("ema, accumulate, tet", "momentum, workers")


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=() if c in TOGETHER else pytest.mark.slow) for c in CASES]
)
@pytest.mark.fault(6)
def test_a_stopped_phase_goes_on_to_the_same_bits(case, data, tmp_path, stop_after):
    config = settings(checkpoint_steps=1, **CASES[case])
    phase, mixing = Phase("joint", 3), Mixing(mixup=0.5, smoothing=0.1)
    whole, parts = toy(), toy()
    result = trainer(tmp_path / "whole", data, config, mixing=mixing).fit(whole, phase)
    for stops in (2, 5):
        once = trainer(tmp_path / "parts", data, config, mixing=mixing, stop=stop_after(stops))
        with pytest.raises(Interrupted) as caught:
            once.fit(parts, phase)
        once.run.close()
        assert caught.value.signum == signal.SIGTERM
        parts = toy()  # a new process starts from nothing
    again = trainer(tmp_path / "parts", data, config, mixing=mixing).fit(parts, phase)
    assert again.val_accuracy == result.val_accuracy
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    assert rows(tmp_path / "whole") == rows(tmp_path / "parts")
    rates = rows(tmp_path / "whole", "firing")
    assert rates == rows(tmp_path / "parts", "firing")
    assert [row["epoch"] for row in rates] == ["1", "2", "3"]
    spiking = list(spiking_layers(whole))
    assert list(rates[0]) == ["phase", "epoch", *spiking] and len(spiking) == 12


@pytest.mark.parametrize(("until", "mixed"), [(1.0, 3), (2 / 3, 2), (0.0, 0)])
def test_mixup_ends_where_it_is_told_to(data, tmp_path, monkeypatch, until, mixed):
    asked, apply = [], Mixing.apply

    def seen(self, *given, mix=True):
        asked.append(mix)
        return apply(self, *given, mix=mix)

    monkeypatch.setattr(Mixing, "apply", seen)
    mixing = Mixing(mixup=0.5, until=until)
    trainer(tmp_path, data, settings(), mixing=mixing).fit(toy(), Phase("joint", 3))
    steps = len(asked) // 3
    assert asked == [True] * steps * mixed + [False] * steps * (3 - mixed)


def test_the_best_on_test_is_a_by_product_that_chooses_nothing(data, tmp_path):
    plain, watched = toy(), toy()
    phase = Phase("joint", 3)
    without = trainer(tmp_path / "a", data, settings()).fit(plain, phase)
    made = trainer(tmp_path / "b", data, settings(best_on_test=True))
    seen, test_once = [], made.evaluate

    def noted(model, split):
        found = test_once(model, split)
        seen.append((split, found.accuracy))
        return found

    made.evaluate = noted
    found = made.fit(watched, phase)
    on_test = [accuracy for split, accuracy in seen if split == "test"]
    assert len(on_test) == 3
    assert (without.best_on_test, found.best_on_test) == (None, max(on_test))
    assert found.best_epoch == without.best_epoch
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, watched.state_dict()[name]), name
    assert (tmp_path / "b" / "best" / "joint" / "LATEST").is_file()


def test_a_finished_phase_is_not_trained_again(data, tmp_path):
    first, second = toy(), toy()
    one = trainer(tmp_path, data, settings())
    result = one.fit(first, Phase("joint", 2))
    one.run.close()
    again = trainer(tmp_path, data, settings()).fit(second, Phase("joint", 2))
    assert again == result
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())
    assert len(rows(tmp_path)) == 2


def test_what_the_disk_refuses_beside_the_training_ends_it_and_leaves_no_hooks(
    data, tmp_path, monkeypatch
):
    write, numbers = checkpoint.write_checkpoint, []

    def refuse(folder, number, *content):
        numbers.append(number)
        time.sleep(0.2)  # the training goes on meanwhile
        if number == 1:
            raise CheckpointError("no room for the second")
        write(folder, number, *content)

    monkeypatch.setattr(checkpoint, "write_checkpoint", refuse)
    model = toy()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    one = trainer(tmp_path, data, settings())
    with pytest.raises(CheckpointError, match="no room for the second"):
        one.fit(model, Phase("joint", 4))
    assert numbers == [0, 1] and one.last.load().number == 0
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    one.run.close()
    monkeypatch.setattr(checkpoint, "write_checkpoint", write)
    whole = trainer(tmp_path / "whole", data, settings())
    resumed, alone = toy(), toy()
    trainer(tmp_path, data, settings()).fit(resumed, Phase("joint", 4))
    whole.fit(alone, Phase("joint", 4))
    assert all(torch.equal(v, resumed.state_dict()[k]) for k, v in alone.state_dict().items())


def test_a_refused_save_ends_the_training_before_the_next_save_is_due(data, tmp_path, monkeypatch):
    steps, step = [], PhaseRun._step

    def refuse(folder, number, *content):
        raise CheckpointError("no room")

    def noted(run, batches):
        if (writing := run.trainer.last._writing) is not None:
            wait([writing])
        step(run, batches)
        steps.append(run.at.step)

    monkeypatch.setattr(checkpoint, "write_checkpoint", refuse)
    monkeypatch.setattr(PhaseRun, "_step", noted)
    with pytest.raises(CheckpointError, match="no room"):
        trainer(tmp_path, data, settings(batch_size=4, checkpoint_steps=3)).fit(
            toy(), Phase("joint", 1)
        )
    assert steps == [0, 1, 2]  # the save is begun after the third, and the fourth finds it refused


def test_a_stop_saves_although_the_save_before_it_was_refused(data, tmp_path, monkeypatch):
    write, asked = checkpoint.write_checkpoint, []

    class Stop:
        @property
        def signum(self):
            if one.last._writing is not None:
                wait([one.last._writing])  # the save is refused, and nobody has asked for it
            return signal.SIGTERM if asked else 0

    def refuse(folder, number, *content):
        asked.append(number)
        if len(asked) == 1:
            raise CheckpointError("no room yet")
        write(folder, number, *content)

    monkeypatch.setattr(checkpoint, "write_checkpoint", refuse)
    one = trainer(tmp_path, data, settings(checkpoint_steps=2), stop=Stop())
    with pytest.raises(Interrupted, match="epoch 1 step"):
        one.fit(toy(), Phase("joint", 2))
    assert asked == [0, 0] and one.last.load().number == 0


@pytest.mark.fault(45)
def test_results_do_not_depend_on_the_number_of_workers(data, tmp_path):
    models = []
    for workers in (0, 2):
        model = toy()
        config = settings(workers=workers)
        trainer(tmp_path / str(workers), data, config).fit(model, Phase("joint", 1))
        models.append(model.state_dict())
    assert all(torch.equal(v, models[1][k]) for k, v in models[0].items())


def test_what_is_computed_again_trains_the_same_network(data, tmp_path):
    found = {}
    for on in (False, True):
        one = trainer(tmp_path / str(on), data, settings(recompute=on, mixed_precision="bf16"))
        model = toy()
        result = one.fit(model, Phase("joint", 2))
        assert all(block.recompute == on for block in model.blocks)
        found[on] = result.val_accuracy, model.state_dict(), rows(tmp_path / str(on), "firing")
    assert found[True][0] == found[False][0] and found[True][2] == found[False][2]
    for name, tensor in found[False][1].items():
        assert torch.equal(found[True][1][name], tensor), name


def test_a_network_that_cannot_be_computed_again_is_refused_by_name(data, tmp_path):
    with pytest.raises(ConfigError, match="Sequential has no part that says recompute"):
        trainer(tmp_path, data, settings(recompute=True)).fit(
            nn.Sequential(nn.Flatten(), nn.Linear(256, 10)), Phase("joint", 1)
        )


def test_what_a_phase_freezes_does_not_train_and_does_after_it(data, tmp_path):
    model = toy()
    model.blocks[0].mlp.requires_grad_(False)
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    phase = Phase("p", 1, frozen=("conv_pep", "head"))
    trainer(tmp_path, data, settings()).fit(model, phase)
    moved = {n.split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"blocks"}
    assert {n: p.requires_grad for n, p in model.named_parameters()} == wanted


def test_accumulated_batches_make_fewer_steps(data, tmp_path):
    seen = []
    phase = Phase("joint", 1, before_step=seen.append)
    trainer(tmp_path, data, settings(batch_size=8, accumulate=2)).fit(toy(), phase)
    assert len(seen) == len(data.train) // 16
    assert {p.steps_per_epoch for p in seen} == {len(seen)}


def test_only_settled_epochs_are_chosen(data, tmp_path):
    result = trainer(tmp_path, data, settings()).fit(toy(), Phase("joint", 3, settled_from=2))
    assert result.best_epoch == 3  # counted from 1


def test_frozen_modules_do_not_move_and_keep_their_statistics(data, tmp_path):
    model = toy()
    model.conv_pep.requires_grad_(False)
    before = {k: v.clone() for k, v in model.conv_pep.state_dict().items()}
    trainer(tmp_path, data, settings()).fit(model, Phase("joint", 1, frozen=("conv_pep",)))
    assert all(torch.equal(v, before[k]) for k, v in model.conv_pep.state_dict().items())


def test_a_teacher_changes_the_training(data, tmp_path):
    models = []
    for weight in (0.0, 0.9):
        model, teacher = toy(), toy().requires_grad_(False)
        phase = Phase("joint", 1, teacher=teacher, distill=weight)
        trainer(tmp_path / str(weight), data, settings()).fit(model, phase)
        models.append(model.head.weight.detach())
    assert not torch.equal(*models)


def test_training_lowers_the_loss_and_learns(data, tmp_path):
    fast = OptimConfig(lr=0.02, warmup_epochs=1)
    trainer(tmp_path, data, settings()).fit(toy(), Phase("joint", 16, optim=fast))
    losses = [float(row["train_loss"]) for row in rows(tmp_path)]
    assert losses[-1] < 0.9 * losses[0]


class Poisoned(nn.Module):
    """Turns one batch of the training into NaN."""

    def __init__(self, model: nn.Module, at: int) -> None:
        super().__init__()
        self.model, self.at, self.calls = model, at, 0

    def forward(self, x):
        if self.training:
            self.calls += 1
            if self.calls == self.at:
                x = x.clone()
                x[0, 0, 0, 0] = float("nan")
        return self.model(x)


@pytest.mark.fault(15)
def test_a_nan_inside_stops_the_run_although_its_loss_is_finite(data, tmp_path):
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        trainer(tmp_path, data, settings()).fit(Poisoned(toy(), 3), Phase("joint", 1))


@pytest.mark.fault(15)
def test_a_skipped_step_leaves_no_trace_in_weights_or_statistics(data, tmp_path):
    model = Poisoned(toy(), 3)
    trainer(tmp_path, data, settings(nonfinite="skip")).fit(model, Phase("joint", 1))
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())


def test_bf16_trains_with_float32_neurons(data, tmp_path):
    AcceleratorState._reset_state()
    config = settings(mixed_precision="bf16")
    run = RunDir.open(str(tmp_path), Config(train=config))
    made = Trainer(
        data,
        config,
        run,
        Accelerator(cpu=True, mixed_precision="bf16"),
        augment=Augment.standard("none"),
        mixing=Mixing(),
    )
    kinds = set()
    model = toy()
    neuron = model.blocks[0].attn.q.act
    neuron.store_v_seq = True
    neuron.register_forward_hook(lambda m, i, o: kinds.add(m.v_seq.dtype))
    result = made.fit(model, Phase("joint", 1))
    AcceleratorState._reset_state()
    assert kinds == {torch.float32}
    assert result.val_accuracy >= 0


def test_a_stop_right_after_an_epoch_s_last_step_resumes_there(tmp_path, data, stop_after):
    """96 images less validation, batches of 16: the step count of an epoch is the stop's."""
    config = settings()
    whole = trainer(tmp_path / "whole", data, config)
    expected = toy()
    whole.fit(expected, Phase("joint", 2))
    steps = len(data.train) // 16
    model = toy()
    cut = trainer(tmp_path / "cut", data, config, stop=stop_after(steps - 1))
    with pytest.raises(Interrupted, match=f"step {steps}"):
        cut.fit(model, Phase("joint", 2))
    cut.run.close()
    model = toy()
    trainer(tmp_path / "cut", data, config).fit(model, Phase("joint", 2))
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in model.state_dict().items())
    rates = [[row["lr"] for row in rows(tmp_path / name)] for name in ("whole", "cut")]
    assert rates[0] == rates[1]


def test_a_schedule_is_entered_where_the_phase_says(tmp_path, data):
    """The last learning rates of a long phase are those of a short one that starts late."""
    rates = []
    for name, phase in {
        "long": Phase("a", 3),
        "late": Phase("a", 1, lr_from=Step(2)),
    }.items():
        trainer(tmp_path / name, data, settings()).fit(toy(), phase)
        rates.append(rows(tmp_path / name)[-1]["lr"])
    assert rates[0] == rates[1]


def test_a_hook_ends_a_phase_and_finds_its_state_when_it_is_asked_again(tmp_path, data):
    class Ends(Hook):
        seen = 0

        def before_epoch(self, model, epoch):
            self.seen = epoch
            return epoch == 2

        def state(self):
            return {"seen": self.seen}

        def load(self, tensors, state):
            self.seen = state["seen"]

    captured = []
    for _ in range(2):  # the second time the phase is finished and only restored
        hooks = (Ends(), Capture(Step(1)))
        result = trainer(tmp_path, data, settings()).fit(toy(), Phase("a", 9, hooks=hooks))
        assert (result.epochs, hooks[0].seen) == (2, 2)
        captured.append(hooks[1].captured["head.weight"])
    assert torch.equal(*captured)


@pytest.mark.fault(71)
def test_a_batch_is_some_of_each_class_without_augmentation(tmp_path, data):
    """Of a set that is sorted by class, as recordings are."""
    order = torch.argsort(data.train.labels, stable=True)
    by_class = dataclasses.replace(data, train=data.train.take(order))
    made = trainer(tmp_path, by_class, settings())
    images, labels = made.batch(20)
    assert torch.bincount(labels, minlength=10).tolist() == [2] * 10
    places = [int((by_class.train.labels == label).nonzero()[0]) for label in labels]
    assert len(set(places)) == 10
    shown = normalize(by_class.train.images, by_class.mean, by_class.std)
    assert all(any(torch.equal(image, other) for other in shown) for image in images)
    assert torch.equal(made.batch(20)[0], images)
    assert len(made.batch(10**6)[0]) == len(data.train)


@pytest.mark.parametrize(
    ("chosen", "asked", "limit", "threads"),
    [(False, 0, 60, 1), (False, 0, 0, 2), (True, 0, 60, 2), (False, 2, 60, 2)],
)
def test_a_small_network_has_one_thread_unless_somebody_chose(
    chosen, asked, limit, threads, data, tmp_path, monkeypatch
):
    monkeypatch.setattr("spikeformer_lt.training.trainer.threads_chosen", lambda threads: chosen)
    monkeypatch.setattr("spikeformer_lt.training.trainer.SMALL_STEP_MB", limit)
    torch.set_num_threads(2)
    made = trainer(tmp_path / "run", data, settings(threads=asked))
    PhaseRun(made, toy(), Phase("dense", epochs=1), 1)
    assert torch.get_num_threads() == threads
